"""What is known of PostgreSQL's files, held against the files and the programs of real servers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import google_crc32c
import pytest

from pgkeep.postgres.account import give_to
from pgkeep.postgres.backup_label import (
    format_tablespace_map,
    parse_backup_label,
    parse_tablespace_map,
    strip_incremental_lines,
)
from pgkeep.postgres.backup_manifest import ManifestFile, crc32c_of, format_manifest, manifest_lines, parse_manifest
from pgkeep.postgres.binaries import ServerBinaries
from pgkeep.postgres.control_file import CONTROL_FILE, ControlFile, parse_control_file
from pgkeep.postgres.layout import is_checksummed, is_excluded, must_be_empty, parse_relation_path
from pgkeep.postgres.lsn import LSN
from pgkeep.postgres.pages import PAGE_SIZE, page_lsns, sane_headers, verify_pages
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.postgres.tar import END_OF_ARCHIVE, EndOfMember, MemberType, TarMember, TarReader, padding, tar_header
from pgkeep.postgres.timeline import format_history, parse_history
from pgkeep.postgres.wal import (
    PAGE_MAGIC,
    check_segment_header,
    classify,
    parse_segment_name,
    read_segment_header,
    segment_name,
    segments_between,
)
from support.servers import TEST_SETTINGS, run_program, sql

MIB = 1 << 20
LABEL = "nightly: all of it"


@dataclass(frozen=True)
class Cluster:
    """A stopped server on its second timeline, and backups of it from its first.

    ``files`` lay in its data directory when the backups were taken, and ``unlogged`` are those of an unlogged table.
    """

    server: ThrowawayServer
    tablespace: Path
    table: str
    unlogged: str
    files: frozenset[bytes]
    wal_names: list[tuple[str, str]]

    @property
    def major(self) -> int:
        return self.server.binaries.major

    @property
    def data(self) -> Path:
        return self.server.data_directory

    def backup(self, name: str) -> Path:
        return self.server.directory / name

    def control_file(self) -> ControlFile:
        return parse_control_file((self.data / CONTROL_FILE).read_bytes())


@pytest.fixture(scope="module")
def cluster(postgres_major: int, binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[Cluster]:
    """One for each major version, for all tests here: none of them changes it."""
    with ThrowawayServer(binaries_of(postgres_major), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        summaries = {"summarize_wal": True} if postgres_major >= 17 else {}
        server.start({**TEST_SETTINGS, **summaries})
        tablespace = server.directory / "odd\\place"
        tablespace.mkdir()
        give_to(server.account, tablespace)
        dsn = server.dsn()
        sql(dsn, f"CREATE TABLESPACE elsewhere LOCATION '{tablespace}'")
        sql(dsn, "CREATE TABLE t AS SELECT n, repeat('x', 400) AS filler FROM generate_series(1, 5000) n")
        sql(dsn, "CREATE INDEX ON t (n) TABLESPACE elsewhere; CREATE UNLOGGED TABLE u AS SELECT 1 AS n")
        sql(dsn, "VACUUM")
        sql(dsn, "CHECKPOINT")
        ((table, unlogged),) = sql(dsn, "SELECT pg_relation_filepath('t'), pg_relation_filepath('u')")
        files = frozenset(files_below(server.data_directory))
        take_backups(server, tablespace)
        wal_names = sql(
            dsn,
            "SELECT lsn::text, pg_walfile_name(lsn) FROM unnest(ARRAY['0/1', '0/FFFFF', '5/FFF00001', 'A/1234567']::pg_lsn[]) lsn",
        )
        server.stop()
        switch_timeline(server)
        yield Cluster(server, tablespace, table, unlogged, files, [(lsn, name) for lsn, name in wal_names])


def take_backups(server: ThrowawayServer, tablespace: Path) -> None:
    options = [f"--dbname={server.dsn()}", "--checkpoint=fast", "--no-sync", f"--label={LABEL}"]
    for name, more in {
        "plain": [],
        "incremental": [f"--incremental={server.directory / 'plain' / 'backup_manifest'}"],
        "tar": ["--format=tar", "--wal-method=none", "--manifest-checksums=SHA256"],
    }.items():
        if name == "incremental" and server.binaries.major < 17:
            continue
        target = server.directory / name
        mapping = [] if name == "tar" else [f"--tablespace-mapping={tablespace}={target}-tablespace"]
        run_program(server, "pg_basebackup", f"--pgdata={target}", *options, *mapping, *more)


def switch_timeline(server: ThrowawayServer) -> None:
    """Recover to the end of the WAL at hand: the server goes on on timeline 2."""
    signal = server.data_directory / "recovery.signal"
    signal.touch()
    give_to(server.account, signal)
    server.start({**TEST_SETTINGS, "restore_command": "false"})
    while sql(server.dsn(), "SELECT pg_is_in_recovery()") != [(False,)]:
        continue
    server.stop()


def files_below(directory: Path) -> Iterator[bytes]:
    for parent, _, names in os.walk(os.fsencode(directory), followlinks=True):
        for name in names:
            yield os.path.relpath(os.path.join(parent, name), os.fsencode(directory))


def data_of(cluster: Cluster, path: bytes) -> bytes:
    return (cluster.data / os.fsdecode(path)).read_bytes()


def checksum(algorithm: str, data: bytes) -> str:
    return (
        google_crc32c.value(data).to_bytes(4, "little").hex()
        if algorithm == "CRC32C"
        else hashlib.sha256(data).hexdigest()
    )


def read_tar(data: bytes) -> list[tuple[TarMember, bytes]]:
    """The members of an archive, fed as a server sends it."""
    reader = TarReader()
    members: list[tuple[TarMember, list[memoryview]]] = []
    for start in range(0, len(data), 32768):
        for event in reader.feed(memoryview(data)[start : start + 32768]):
            if isinstance(event, TarMember):
                members.append((event, []))
            elif not isinstance(event, EndOfMember):
                members[-1][1].append(event)
    reader.finish()
    return [(member, b"".join(pieces)) for member, pieces in members]


def test_the_control_file_says_what_pg_controldata_says(cluster: Cluster) -> None:
    control = cluster.control_file()
    output = run_program(cluster.server, "pg_controldata", cluster.data)
    told = dict(line.split(":", 1) for line in output.splitlines())
    expected = {name: value.strip() for name, value in told.items()}
    assert expected == {
        **expected,
        "pg_control version number": str(control.control_version),
        "Catalog version number": str(control.catalog_version),
        "Database system identifier": str(control.system_identifier),
        "Database cluster state": control.state.value,
        "Latest checkpoint location": str(control.checkpoint),
        "Latest checkpoint's REDO location": str(control.redo),
        "Latest checkpoint's REDO WAL file": segment_name(control.timeline, control.redo, control.wal_segment_size),
        "Latest checkpoint's TimeLineID": str(control.timeline),
        "Latest checkpoint's PrevTimeLineID": str(control.prev_timeline),
        "Latest checkpoint's full_page_writes": "on" if control.full_page_writes else "off",
        "Latest checkpoint's NextXID": f"{control.next_xid >> 32}:{control.next_xid & 0xFFFFFFFF}",
        "Latest checkpoint's NextOID": str(control.next_oid),
        "Latest checkpoint's oldestXID": str(control.oldest_xid),
        "Minimum recovery ending location": str(control.min_recovery_point),
        "Min recovery ending loc's timeline": str(control.min_recovery_point_timeline),
        "Backup start location": str(control.backup_start_point),
        "Backup end location": str(control.backup_end_point),
        "End-of-backup record required": "yes" if control.backup_end_required else "no",
        "wal_level setting": control.wal_level,
        "wal_log_hints setting": "on" if control.wal_log_hints else "off",
        "max_connections setting": str(control.max_connections),
        "max_worker_processes setting": str(control.max_worker_processes),
        "max_wal_senders setting": str(control.max_wal_senders),
        "max_prepared_xacts setting": str(control.max_prepared_transactions),
        "max_locks_per_xact setting": str(control.max_locks_per_transaction),
        "track_commit_timestamp setting": "on" if control.track_commit_timestamp else "off",
        "Database block size": str(control.block_size),
        "Blocks per segment of large relation": str(control.relseg_size),
        "WAL block size": str(control.wal_block_size),
        "Bytes per WAL segment": str(control.wal_segment_size),
        "Data page checksum version": str(control.data_checksum_version),
    }
    assert control.state.value == "shut down"
    assert 0 <= (control.time - control.checkpoint_time).total_seconds() < 60
    assert abs((datetime.now(UTC) - control.time).total_seconds()) < 600


def test_the_control_file_of_a_running_server_is_in_a_backup(cluster: Cluster) -> None:
    control = parse_control_file((cluster.backup("plain") / CONTROL_FILE).read_bytes())
    assert (control.state.value, control.timeline) == ("in production", 1)
    assert control.data_checksums


def test_the_same_files_and_pages_are_checked_as_pg_checksums_checks(cluster: Cluster) -> None:
    output = run_program(cluster.server, "pg_checksums", "--check", cluster.data)
    counts = {name: int(number) for name, number in re.findall(r"(\w+ scanned): +(\d+)", output)}
    checks = []
    for path in filter(is_checksummed, files_below(cluster.data)):
        data = data_of(cluster, path)
        checks.append(verify_pages(data, first_block=0, start_lsn=None))
        assert checks[-1].failures.tolist() == []
        assert sane_headers(data).all()
    assert counts == {
        "Files scanned": len(checks),
        "Blocks scanned": sum(check.checked + check.new for check in checks),
    }


def test_a_flipped_bit_in_a_table_is_reported_by_its_block(cluster: Cluster) -> None:
    data = bytearray((cluster.data / cluster.table).read_bytes())
    data[33 * PAGE_SIZE + 5000] ^= 1
    assert verify_pages(data, first_block=0, start_lsn=None).failures.tolist() == [33]


def test_pages_are_older_than_the_checkpoint(cluster: Cluster) -> None:
    lsns = page_lsns((cluster.data / cluster.table).read_bytes())
    written = lsns[lsns > 0]
    assert len(written) > 200
    assert written.max() < cluster.control_file().checkpoint


def test_a_position_is_in_the_segment_that_the_server_names(cluster: Cluster) -> None:
    assert [(lsn, segment_name(1, LSN.parse(lsn), MIB)) for lsn, _ in cluster.wal_names] == cluster.wal_names


@pytest.mark.parametrize("timeline", [1, 2])
def test_the_headers_of_segments_are_what_their_names_say(cluster: Cluster, timeline: int) -> None:
    control = cluster.control_file()
    if timeline == 1:
        (wal,) = parse_manifest((cluster.backup("plain") / "backup_manifest").read_bytes()).wal_ranges
        directory, start, stop = cluster.backup("plain") / "pg_wal", wal.start_lsn, wal.end_lsn
    else:
        directory, start, stop = cluster.data / "pg_wal", control.redo, LSN(control.checkpoint + 1)
    names = segments_between(timeline, start, stop, MIB)
    assert names
    for name in names:
        header = read_segment_header((directory / name).read_bytes())
        assert header.magic == PAGE_MAGIC[cluster.major]
        assert header.major_version == cluster.major
        check_segment_header(
            header,
            system_identifier=control.system_identifier,
            timeline=timeline,
            start=parse_segment_name(name, MIB)[1],
            segment_size=MIB,
        )


def test_the_first_segment_of_a_timeline_begins_as_its_parents(cluster: Cluster) -> None:
    names = sorted(path.name for path in (cluster.data / "pg_wal").glob("00000002" + "?" * 16))
    assert read_segment_header((cluster.data / "pg_wal" / names[0]).read_bytes()).timeline == 1


def test_every_file_in_pg_wal_is_known_by_its_name(cluster: Cluster) -> None:
    names = [path.name for path in (cluster.data / "pg_wal").iterdir() if path.is_file()]
    assert "00000002.history" in names
    assert [name for name in names if classify(name) is None] == []


def test_a_history_file_is_written_as_the_server_wrote_it(cluster: Cluster) -> None:
    text = (cluster.data / "pg_wal" / "00000002.history").read_text()
    history = parse_history(2, text)
    assert history.timelines == (1, 2)
    assert history.switches[0].reason == "no recovery target specified"
    assert format_history(history) == text


@pytest.mark.parametrize("backup", ["plain", "tar"])
def test_a_manifest_is_written_as_the_server_wrote_it(cluster: Cluster, backup: str) -> None:
    data = (cluster.backup(backup) / "backup_manifest").read_bytes()
    manifest = parse_manifest(data)
    assert manifest.version == (2 if cluster.major >= 17 else 1)
    assert manifest.system_identifier in {None, cluster.control_file().system_identifier}
    assert format_manifest(manifest) == data


def test_pg_verifybackup_accepts_a_manifest_of_our_own(cluster: Cluster) -> None:
    plain = cluster.backup("plain")
    manifest = parse_manifest((plain / "backup_manifest").read_bytes())
    ours = [
        ManifestFile(
            file.path,
            file.size,
            file.last_modified,
            "SHA256",
            checksum("SHA256", (plain / os.fsdecode(file.path)).read_bytes()),
        )
        for file in manifest.files
    ]
    rewritten = cluster.backup("rewritten_manifest")
    rewritten.write_bytes(
        b"".join(
            manifest_lines(
                ours,
                manifest.wal_ranges,
                version=manifest.version,
                system_identifier=manifest.system_identifier,
                force_encode=True,
            )
        )
    )
    assert "successfully verified" in run_program(
        cluster.server, "pg_verifybackup", f"--manifest-path={rewritten}", plain
    )


def test_a_crc32c_in_a_manifest_is_the_files(cluster: Cluster) -> None:
    plain = cluster.backup("plain")
    for file in parse_manifest((plain / "backup_manifest").read_bytes()).files:
        assert file.algorithm == "CRC32C"
        assert crc32c_of(file.checksum or "") == google_crc32c.value((plain / os.fsdecode(file.path)).read_bytes())


def test_a_backup_label_is_read(cluster: Cluster) -> None:
    data = (cluster.backup("plain") / "backup_label").read_bytes()
    label = parse_backup_label(data)
    (wal_range,) = parse_manifest((cluster.backup("plain") / "backup_manifest").read_bytes()).wal_ranges
    assert (label.start_lsn, label.start_timeline) == (wal_range.start_lsn, wal_range.timeline)
    assert label.start_segment == segment_name(1, label.start_lsn, MIB)
    assert (label.label, label.backup_method, label.backup_from) == (LABEL, "streamed", "primary")
    assert label.start_lsn < label.checkpoint < wal_range.end_lsn
    assert strip_incremental_lines(data) == data


def test_the_label_of_an_incremental_backup_is_made_that_of_a_full_one(cluster: Cluster) -> None:
    if cluster.major < 17:
        assert not cluster.backup("incremental").exists()
        return
    data = (cluster.backup("incremental") / "backup_label").read_bytes()
    full = parse_backup_label((cluster.backup("plain") / "backup_label").read_bytes())
    label = parse_backup_label(data)
    assert (label.incremental_from_lsn, label.incremental_from_timeline) == (full.start_lsn, 1)
    assert parse_backup_label(strip_incremental_lines(data)).incremental_from_lsn is None


def test_a_base_backup_leaves_out_what_we_say(cluster: Cluster) -> None:
    manifest = parse_manifest((cluster.backup("plain") / "backup_manifest").read_bytes())
    held = {file.path for file in manifest.files}
    left_out = cluster.files - held
    unlogged = {path for path in left_out if path.startswith(cluster.unlogged.encode())}
    assert unlogged
    assert [path for path in left_out - unlogged if not is_excluded(path)] == []
    assert {path for path in held if is_excluded(path)} <= {b"backup_label", b"tablespace_map"}


def test_every_relation_in_a_backup_is_known_by_its_path(cluster: Cluster) -> None:
    manifest = parse_manifest((cluster.backup("plain") / "backup_manifest").read_bytes())
    relations = [file for file in manifest.files if parse_relation_path(file.path)]
    others = {os.path.basename(file.path) for file in manifest.files if not parse_relation_path(file.path)}
    assert all(file.size % PAGE_SIZE == 0 for file in relations)
    assert not [name for name in others if re.fullmatch(rb"\d{5,}.*", name)]
    assert {b"pg_control", b"pg_filenode.map", b"PG_VERSION"} <= others
    assert any(file.path.startswith(b"pg_tblspc/") for file in relations)


def test_an_archive_of_a_server_is_read_and_written_byte_for_byte(cluster: Cluster) -> None:
    archive = (cluster.backup("tar") / "base.tar").read_bytes()
    members = read_tar(archive)
    ours = b"".join(
        tar_header(
            member.name,
            size=member.size,
            mode=member.mode,
            mtime=member.mtime,
            type=member.type,
            linkname=member.linkname,
            uid=member.uid,
            gid=member.gid,
        )
        + data
        + padding(member.size)
        for member, data in members
    )
    assert ours + END_OF_ARCHIVE == archive


def test_an_archive_of_a_server_holds_what_its_manifest_says(cluster: Cluster) -> None:
    backup = cluster.backup("tar")
    manifest = parse_manifest((backup / "backup_manifest").read_bytes())
    expected = {file.path: file.checksum for file in manifest.files}
    found: dict[bytes, str] = {}
    for archive in backup.glob("*.tar"):
        prefix = b"" if archive.stem == "base" else f"pg_tblspc/{archive.stem}/".encode()
        for member, data in read_tar(archive.read_bytes()):
            assert not must_be_empty(os.path.dirname(member.name)) or member.type is MemberType.DIRECTORY
            if member.type is MemberType.FILE:
                found[prefix + member.name] = checksum("SHA256", data)
    assert found == expected


def test_a_tablespace_map_is_written_as_the_server_wrote_it(cluster: Cluster) -> None:
    members = {member.name: data for member, data in read_tar((cluster.backup("tar") / "base.tar").read_bytes())}
    tablespaces = parse_tablespace_map(members[b"tablespace_map"])
    assert list(tablespaces.values()) == [os.fsencode(cluster.tablespace)]
    assert format_tablespace_map(tablespaces.items()) == members[b"tablespace_map"]
