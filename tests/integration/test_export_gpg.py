"""Exports that are encrypted with gpg open with plain gpg and tar, and PostgreSQL's own programs judge what comes out."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.cli.main import execute
from pgkeep.postgres.account import give_to, server_account
from pgkeep.postgres.server import ThrowawayServer
from support.gpg_home import KeyRingHome, key_ring
from support.jobs import KEY, backup, new_repository
from support.servers import TEST_SETTINGS, run_program, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries

WORDS = "words that nobody else may read"
PASSPHRASE = "correct horse, žluťoučký kůň"


class Kept:
    """A server and a repository with a backup of it."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.server = server
        self.key = server.directory / "main.key"
        self.key.write_text(KEY.text())
        repository = new_repository(server.directory / "repository")
        backup(server.dsn(), repository)
        self.address = repository.store.url

    def export(self, directory: Path, *options: str) -> int:
        """The exit code of ``pgkeep export``."""
        words = ["export", "latest", str(directory), "--repository", self.address, "--key-file", str(self.key)]
        return execute([*words, *options])


@pytest.fixture(scope="module")
def kept(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[Kept]:
    with ThrowawayServer(binaries_of(18), parent=work_root) as server:
        server.initdb()
        server.start(TEST_SETTINGS)
        sql(server.dsn(), f"CREATE TABLE t AS SELECT i, '{WORDS}' AS word FROM generate_series(1, 5000) i")
        yield Kept(server)


@pytest.fixture(scope="module")
def people() -> Iterator[KeyRingHome]:
    with key_ring() as home:
        home.new_key("Ann <ann@example.com>")
        yield home


def unpack(exported: Path, place: Path, gpg: str, tar: str, home: KeyRingHome) -> None:
    """As a person would who has never heard of pgkeep."""
    place.mkdir(mode=0o700)
    (place / "pg_wal").mkdir(mode=0o700)
    suffix = {"xz": ".gz", "x": ""}[tar]
    lines = [
        f"{gpg} --decrypt {shlex.quote(str(exported))}/{archive}.tar{suffix}.gpg | tar {tar} -C {shlex.quote(str(where))}"
        for archive, where in (("base", place), ("pg_wal", place / "pg_wal"))
    ]
    lines.append(f"{gpg} --decrypt {exported}/backup_manifest.gpg > {place}/backup_manifest")
    for line in lines:
        command = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(command, capture_output=True, env=home.environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
    give_to(server_account(), place, *place.rglob("*"))


def test_an_export_to_a_recipient_opens_with_gpg_and_tar_and_is_the_backup(
    kept: Kept, people: KeyRingHome, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNUPGHOME", str(people.directory))
    assert kept.export(work_dir / "exported", "--gpg", people.fingerprints()[0]) == 0

    unpack(work_dir / "exported", work_dir / "unpacked", "gpg --quiet", "xz", people)

    run_program(kept.server, "pg_verifybackup", "--exit-on-error", work_dir / "unpacked")


def test_an_export_with_a_passphrase_is_of_aes_256_and_opens_with_gpg_and_tar(
    kept: Kept, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has no plain byte in it, though it is not compressed."""
    (work_dir / "passphrase").write_text(PASSPHRASE + "\n")
    gpg = f"gpg --quiet --batch --pinentry-mode loopback --passphrase-file {work_dir}/passphrase"
    with key_ring() as home:
        monkeypatch.setenv("GNUPGHOME", str(home.directory))
        options = ("--gpg-passphrase-file", str(work_dir / "passphrase"), "--compress", "none")
        assert kept.export(work_dir / "exported", *options) == 0
        unpack(work_dir / "exported", work_dir / "unpacked", gpg, "x", home)
        packets = home.gpg("--pinentry-mode", "loopback", "--passphrase", PASSPHRASE, "--list-packets",
                           str(work_dir / "exported" / "backup_manifest.gpg"))  # fmt: skip

    run_program(kept.server, "pg_verifybackup", "--exit-on-error", work_dir / "unpacked")
    assert b"cipher 9" in packets, "RFC 9580: 9 is AES with 256 bits"
    stored = b"".join(path.read_bytes() for path in (work_dir / "exported").iterdir())
    restored = b"".join(path.read_bytes() for path in (work_dir / "unpacked" / "base").rglob("*") if path.is_file())
    assert WORDS.encode() in restored
    assert WORDS.encode() not in stored
    assert {path.suffix for path in (work_dir / "exported").iterdir()} == {".gpg"}


def test_a_recipient_that_gpg_does_not_know_is_an_error_before_anything_is_made(
    kept: Kept, people: KeyRingHome, work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GNUPGHOME", str(people.directory))

    assert kept.export(work_dir / "exported", "--gpg", "cid@example.com") == 7
    assert "gpg does not encrypt to 'cid@example.com'" in capsys.readouterr().err
    assert not (work_dir / "exported").exists()


def test_a_simulated_gpg_that_dies_in_the_middle_fails_the_export_with_its_reason(
    kept: Kept, work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (work_dir / "bin").mkdir()
    program = work_dir / "bin" / "gpg"
    program.write_text("#!/bin/sh\nhead -c 100000 >/dev/null\necho 'gpg: simulated: no room' >&2\nexit 2\n")
    program.chmod(0o755)
    (work_dir / "passphrase").write_text(PASSPHRASE)
    monkeypatch.setenv("PATH", str(work_dir / "bin"), prepend=":")

    assert kept.export(work_dir / "exported", "--gpg-passphrase-file", str(work_dir / "passphrase")) == 7
    assert "gpg does not encrypt: simulated: no room" in capsys.readouterr().err


def test_both_ways_to_encrypt_exclude_each_other(
    kept: Kept, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work_dir / "passphrase").write_text(PASSPHRASE)
    options = ("--gpg", "ann@example.com", "--gpg-passphrase-file", str(work_dir / "passphrase"))

    assert kept.export(work_dir / "exported", *options) == 2
    assert "--gpg and --gpg-passphrase-file exclude each other" in capsys.readouterr().err
