"""What `restore_command` is given: the right bytes from whoever has them, "absent" only where nobody has them, else an error."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgkeep.cli.main import execute
from pgkeep.errors import DamageError, Interrupted, NotFoundError, PgkeepError, StoreError, UsageError
from pgkeep.repository.wal_objects import WalArchive, piece_name
from pgkeep.wal import thin_fetch
from pgkeep.wal.fetch import exit_code_of, fetch_file, restore_command
from pgkeep.wal.fetch_sources import WalSources
from support.fetch import CLUSTER, SIZE, make_segment, name_of, source_at
from support.jobs import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgkeep.repository import Repository


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Two:
    """Two repositories of one cluster, and where files go."""

    def __init__(self, directory: Path) -> None:
        (self.main_source, self.main_store, self.main_repository) = source_at(directory / "main", "main")
        (self.far_source, self.far_store, self.far_repository) = source_at(directory / "far", "far")
        self.target = directory / "target"
        self.target.mkdir()
        self.sources = WalSources([self.main_source, self.far_source], CLUSTER, SIZE, time_limit=30)
        # so that each knows the cluster
        self.main.put(name_of(1), make_segment(1))
        self.far.put(name_of(1), make_segment(1))

    @property
    def main(self) -> WalArchive:
        return self.main_repository.wal(CLUSTER)

    @property
    def far(self) -> WalArchive:
        return self.far_repository.wal(CLUSTER)

    def fetch(self, name: str) -> bytes | None:
        """The file's bytes, None for absent."""
        path = self.target / "RECOVERYXLOG"
        path.unlink(missing_ok=True)
        fetched = fetch_file(self.sources, name, path)
        self.notes = [] if fetched is None else fetched.notes
        assert path.exists() == (fetched is not None)
        return None if fetched is None else path.read_bytes()

    def fail(self, name: str, kind: type[PgkeepError]) -> str:
        """What is said where it fails so; nothing is left in the target then."""
        with pytest.raises(kind) as caught:
            fetch_file(self.sources, name, self.target / "RECOVERYXLOG")
        assert list(self.target.iterdir()) == []
        return str(caught.value)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    made.main_store.healthy.set()
    made.far_store.healthy.set()


def damage(repository: Repository, name: str) -> str:
    """Flip a byte of an object; its name."""
    stored = repository.wal(CLUSTER).object_name(name)
    path = Path(repository.store.url.removeprefix("file://")) / stored
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    return stored


def test_a_whole_segment_comes_from_the_first_repository_that_has_it(two: Two) -> None:
    two.far.put(name_of(5), make_segment(5))
    assert two.fetch(name_of(5)) == make_segment(5)
    assert two.notes == []


def test_a_segment_that_nobody_has_is_absent(two: Two) -> None:
    assert two.fetch(name_of(5)) is None


def test_a_segment_stored_a_moment_after_it_was_absent_is_found(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgkeep.wal.fetch_sources._LISTING_AGE", 0.0)
    assert two.fetch(name_of(5)) is None
    two.far.put(name_of(5), make_segment(5))
    assert two.fetch(name_of(5)) == make_segment(5)


def test_absence_is_answered_out_of_one_listing_of_one_folder_for_a_second(two: Two) -> None:
    assert two.fetch(name_of(5)) is None
    two.main_store.asked.clear()
    assert [two.fetch(name_of(number)) for number in range(5, 25)] == [None] * 20
    assert two.main_store.asked == []


def test_a_damaged_segment_comes_from_the_next_repository_and_that_is_said(two: Two) -> None:
    for archive in (two.main, two.far):
        archive.put(name_of(5), make_segment(5))
    stored = damage(two.main_repository, name_of(5))
    assert two.fetch(name_of(5)) == make_segment(5)
    assert len(two.notes) == 1
    assert "comes from far, because main failed" in two.notes[0]
    assert stored in two.notes[0]


def test_a_segment_that_is_damaged_everywhere_is_an_error_that_names_the_objects(two: Two) -> None:
    for archive in (two.main, two.far):
        archive.put(name_of(5), make_segment(5))
    stored = {damage(two.main_repository, name_of(5)), damage(two.far_repository, name_of(5))}
    said = two.fail(name_of(5), DamageError)
    assert all(name in said for name in stored)


def test_a_damaged_segment_that_nobody_else_has_is_not_absent(two: Two) -> None:
    two.main.put(name_of(5), make_segment(5))
    damage(two.main_repository, name_of(5))
    two.fail(name_of(5), DamageError)


def test_an_unreachable_repository_beside_one_that_says_absent_is_an_error(two: Two) -> None:
    two.far_store.failing = True
    assert "far: cannot read" in two.fail(name_of(5), StoreError)


def test_an_unreachable_repository_beside_one_that_has_the_segment_is_a_note(two: Two) -> None:
    two.main_store.failing = True
    two.far.put(name_of(5), make_segment(5))
    assert two.fetch(name_of(5)) == make_segment(5)
    assert "comes from far, because main failed" in two.notes[0]


def test_a_repository_that_failed_is_not_asked_first_for_a_while(two: Two) -> None:
    two.main_store.failing = True
    for number in (5, 6, 7):
        two.far.put(name_of(number), make_segment(number))
    two.fetch(name_of(5))
    two.main_store.asked.clear()
    assert two.fetch(name_of(6)) == make_segment(6)
    assert two.main_store.asked == []


def test_a_hung_store_is_given_up_after_the_time_limit(two: Two) -> None:
    two.sources = WalSources([two.main_source, two.far_source], CLUSTER, SIZE, time_limit=0.3)
    two.main_store.hang()
    assert "main did not answer in 0.3 s" in two.fail(name_of(5), StoreError)


def test_a_file_that_a_hung_store_gives_too_late_is_removed(two: Two) -> None:
    two.sources = WalSources([two.main_source], CLUSTER, SIZE, time_limit=0.3)
    two.main.put(name_of(5), make_segment(5))
    assert two.sources.has_whole(1, 5 * SIZE)
    two.main_store.hang()
    two.fail(name_of(5), StoreError)
    two.main_store.healthy.set()
    for thread in threading.enumerate():
        if thread.name == "wal-fetch":
            thread.join(10)
    assert list(two.target.iterdir()) == []


def test_a_repository_that_went_away_is_not_empty(two: Two, tmp_path: Path) -> None:
    (tmp_path / "far").rename(tmp_path / "unmounted")
    (tmp_path / "far").mkdir()
    assert "is no repository any more" in two.fail(name_of(5), StoreError)


def test_a_repository_that_goes_away_between_two_questions_is_not_empty(two: Two, tmp_path: Path) -> None:
    two.main.put(name_of(5), make_segment(5))
    assert two.fetch(name_of(9)) is None
    for name in ("main", "far"):
        (tmp_path / name).rename(tmp_path / f"unmounted-{name}")
        (tmp_path / name).mkdir()
    two.fail(name_of(5), StoreError)
    two.fail(name_of(5), StoreError)


def test_a_cluster_that_no_repository_knows_is_an_error(two: Two) -> None:
    two.sources = WalSources(
        [
            source_at(two.target.parent / name, name)[0].of(name, repository, 42)
            for name, repository in (("main", two.main_repository), ("far", two.far_repository))
        ],
        42,
        SIZE,
    )
    assert "no repository holds anything of cluster 42: main, far" in two.fail(name_of(5), NotFoundError)


def test_the_segment_of_another_cluster_is_not_handed_over(two: Two) -> None:
    two.main.put(name_of(5), make_segment(5, cluster=42))
    assert "system identifier 42 instead of" in two.fail(name_of(5), DamageError)


def test_a_segment_under_another_name_is_not_handed_over(two: Two) -> None:
    two.main.put(name_of(5), make_segment(6))
    assert "start LSN 0/600000 instead of 0/500000" in two.fail(name_of(5), DamageError)


def test_a_short_segment_is_not_handed_over(two: Two) -> None:
    two.main.put(name_of(5), make_segment(5)[:-1])
    assert f"has {SIZE - 1} bytes instead of {SIZE}" in two.fail(name_of(5), DamageError)


def put_piece(archive: WalArchive, number: int, first: int, end: int) -> None:
    archive.put(piece_name(name_of(number), first, end), make_segment(number)[first:end])


def padded(number: int, end: int) -> bytes:
    return make_segment(number)[:end] + bytes(SIZE - end)


def test_the_open_segment_is_put_together_and_filled_with_zeros(two: Two) -> None:
    put_piece(two.main, 5, 0, 4000)
    put_piece(two.main, 5, 4000, 9000)
    assert two.fetch(name_of(5)) == padded(5, 9000)


def test_the_longest_of_the_open_segments_is_taken(two: Two) -> None:
    put_piece(two.main, 5, 0, 4000)
    put_piece(two.far, 5, 0, 9000)
    assert two.fetch(name_of(5)) == padded(5, 9000)


def test_an_open_segment_grows_and_becomes_whole(two: Two) -> None:
    put_piece(two.main, 5, 0, 4000)
    assert two.fetch(name_of(5)) == padded(5, 4000)
    put_piece(two.main, 5, 4000, 9000)
    assert two.fetch(name_of(5)) == padded(5, 9000)
    two.main.put(name_of(5), make_segment(5))
    assert two.fetch(name_of(5)) == make_segment(5)


def test_an_open_segment_asked_for_again_costs_only_what_is_new(two: Two) -> None:
    put_piece(two.main, 5, 0, 4000)
    two.fetch(name_of(5))
    put_piece(two.main, 5, 4000, 9000)
    two.main_store.asked.clear()
    two.fetch(name_of(5))
    assert [name.rpartition("/")[2] for verb, name in two.main_store.asked if verb == "get"] == [
        piece_name(name_of(5), 4000, 9000)
    ]


def test_pieces_are_not_offered_while_a_repository_that_may_have_more_is_unreachable(two: Two) -> None:
    put_piece(two.main, 5, 0, 4000)
    two.far_store.failing = True
    two.fail(name_of(5), StoreError)


def test_pieces_are_not_offered_for_a_whole_segment_that_is_damaged(two: Two) -> None:
    put_piece(two.far, 5, 0, 4000)
    two.main.put(name_of(5), make_segment(5))
    damage(two.main_repository, name_of(5))
    two.fail(name_of(5), DamageError)


def test_a_damaged_piece_is_an_error_where_nobody_has_as_much(two: Two) -> None:
    put_piece(two.far, 5, 0, 4000)
    put_piece(two.main, 5, 0, 9000)
    damage(two.main_repository, piece_name(name_of(5), 0, 9000))
    two.fail(name_of(5), DamageError)


def test_a_damaged_piece_is_a_note_where_somebody_has_as_much(two: Two) -> None:
    put_piece(two.far, 5, 0, 9000)
    put_piece(two.main, 5, 0, 9000)
    damage(two.main_repository, piece_name(name_of(5), 0, 9000))
    assert two.fetch(name_of(5)) == padded(5, 9000)
    assert "comes from far" in two.notes[0]


def test_pieces_without_the_beginning_are_nothing(two: Two) -> None:
    put_piece(two.main, 5, 4000, 9000)
    assert two.fetch(name_of(5)) is None


def test_a_partial_segment_is_offered_last(two: Two) -> None:
    two.main.put(name_of(5) + ".partial", make_segment(5))
    assert two.fetch(name_of(5)) == make_segment(5)
    put_piece(two.main, 5, 0, 4000)
    assert two.fetch(name_of(5)) == padded(5, 4000)


def test_a_partial_segment_is_worth_what_lies_before_the_switch(two: Two) -> None:
    put_piece(two.main, 5, 0, 4000)
    two.far.put(name_of(5) + ".partial", make_segment(5))
    two.far.put("00000002.history", b"1\t0/502000\tno reason\n")
    assert two.fetch(name_of(5)) == make_segment(5)


def test_a_history_file_comes_as_it_is_stored(two: Two) -> None:
    two.far.put("00000002.history", b"1\t0/502000\tno reason\n")
    assert two.fetch("00000002.history") == b"1\t0/502000\tno reason\n"
    assert two.fetch("00000003.history") is None


def test_a_history_file_that_is_none_is_not_handed_over(two: Two) -> None:
    two.main.put("00000002.history", b"not at all\n")
    assert "00000002.history" in two.fail("00000002.history", DamageError)


def test_files_that_no_archive_holds_are_absent(two: Two) -> None:
    assert two.fetch(f"{name_of(5)}.00000028.backup") is None
    assert two.fetch(f"{name_of(5)}.partial") is None


def test_a_name_of_nothing_is_an_error(two: Two) -> None:
    two.fail("postgresql.conf", UsageError)


def test_a_file_that_nobody_waits_for_is_not_put_there(two: Two) -> None:
    with pytest.raises(Interrupted):
        fetch_file(two.sources, name_of(1), two.target / "RECOVERYXLOG", lambda: False)
    assert list(two.target.iterdir()) == []


def test_what_a_killed_fetch_left_is_removed_by_the_next(two: Two) -> None:
    (two.target / f"{name_of(4)}.pgkeep-999999999-abcd").write_bytes(b"left")
    (two.target / f"{name_of(4)}.pgkeep-{os.getpid()}-abcd").write_bytes(b"of somebody at work")
    (two.target / "0000.pgkeep").write_bytes(b"not ours")
    two.fetch(name_of(1))
    assert sorted(path.name for path in two.target.iterdir()) == sorted(
        ["RECOVERYXLOG", "0000.pgkeep", f"{name_of(4)}.pgkeep-{os.getpid()}-abcd"]
    )


# The thin client


def thin(*words: str | Path, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", thin_fetch.__file__, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Prefetcher:
    """Answers one request with these bytes."""

    def __init__(self, place: Path, answer: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(place))
        self._listener.listen()
        self._thread = threading.Thread(target=self._answer, args=(answer,))
        self._thread.start()

    def _answer(self, answer: bytes) -> None:
        connection, _ = self._listener.accept()
        self.request = connection.recv(1000)
        connection.sendall(answer)
        connection.close()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"1 \n", 1, ""),
        (b"0 from far\n", 0, "pgkeep: from far\n"),
        (b"wait\nwait\n0 \n", 0, ""),
        (b"209 main did not answer\n", 209, "pgkeep: main did not answer\n"),
    ],
)
def test_the_thin_client_ends_as_the_prefetcher_says(tmp_path: Path, answer: bytes, code: int, said: str) -> None:
    (tmp_path / "there").touch()
    with Prefetcher(tmp_path / "s", answer) as prefetcher:
        ended = thin("s", name_of(5), "there", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (code, said)
    assert prefetcher.request == f"fetch\0{name_of(5)}\0there\0".encode()


@pytest.mark.parametrize("answer", [b"", b"0", b"wait\n", b"refused\n", b"wait\n1 ha", b"\n", b"999 \n"])
def test_the_thin_client_falls_back_where_the_answer_is_none(tmp_path: Path, answer: bytes) -> None:
    with Prefetcher(tmp_path / "s", answer):
        ended = thin("s", name_of(5), "p", "/bin/sh", "-c", "exit 7", cwd=tmp_path)
    assert ended.returncode == 207


def test_the_thin_client_takes_a_success_without_a_file_for_a_failure(tmp_path: Path) -> None:
    with Prefetcher(tmp_path / "s", b"0 \n"):
        assert thin("s", name_of(5), "p", cwd=tmp_path).returncode == 201
    assert thin("gone", name_of(5), "p", "/bin/true", cwd=tmp_path).returncode == 201


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("touch p", 0),
        ("exit 1", 201),
        ("exit 2", 202),
        ("exit 125", 255),
        ("exit 100", 1),
        ("exit 209", 209),
        ("kill -TERM $$", 143),
        ("kill -9 $$", 137),
    ],
)
def test_the_thin_client_says_absent_only_where_the_fallback_means_it(tmp_path: Path, script: str, code: int) -> None:
    assert thin("none", name_of(5), "p", "/bin/sh", "-c", script, cwd=tmp_path).returncode == code


def test_the_thin_client_gives_the_fallback_name_and_path(tmp_path: Path) -> None:
    ended = thin("none", name_of(5), "p", "/bin/sh", "-c", 'echo "$@"; touch p', "sh", cwd=tmp_path)
    assert ended.stdout == f"--absent-code={thin_fetch.ABSENT_CODE} {name_of(5)} p\n"


def test_the_thin_client_without_anybody_ends_above_125(tmp_path: Path) -> None:
    assert thin("none", name_of(5), "p", cwd=tmp_path).returncode == 199
    assert thin("none", name_of(5), "p", "/no/such/program", cwd=tmp_path).returncode == 199
    assert thin("none", cwd=tmp_path).returncode == 199


def test_the_thin_client_imports_builtin_modules_only() -> None:
    script = (
        "import sys; before = set(sys.modules); sys.argv = ['thin']; sys.path.insert(0, sys.orig_argv[-1]);"
        "import thin_fetch; print(sorted(set(sys.modules) - before - {'thin_fetch'} - set(sys.builtin_module_names)))"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(Path(thin_fetch.__file__).parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# The setting


def test_the_setting_survives_the_server_and_the_shell(tmp_path: Path) -> None:
    words = ["/bin/sh", "-c", 'printf "%s|" "$@"; touch "$5"', "sh", "a b", "it's", "100%", "%p$HOME"]
    value = restore_command(words)
    # as src/common/percentrepl.c does it
    line = ""
    rest = value
    while rest:
        plain, percent, rest = rest.partition("%")
        line += plain
        if percent:
            line += {"%": "%", "f": name_of(5), "p": "pg_wal/RECOVERY XLOG"}[rest[0]]
            rest = rest[1:]
    (tmp_path / "pg_wal").mkdir()
    line = line.replace('"$5"', '"$7"')
    ended = subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    expected = ["a b", "it's", "100%", "%p$HOME", "--absent-code=100", name_of(5), "pg_wal/RECOVERY XLOG"]
    assert (ended.stdout, ended.stderr, ended.returncode) == ("|".join(expected) + "|", "", 0)


def test_the_setting_names_the_interpreter_and_the_socket() -> None:
    words = shlex.split(restore_command([]))
    assert words[:4] == ["exec", sys.executable, "-I", "-S"]
    assert words[5:] == ["pg_wal/pgkeep.prefetch/socket", "%f", "%p"]


# The command


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    capsys.readouterr()
    code = execute(["wal", "fetch", *map(str, words)])
    return code, capsys.readouterr().err


@pytest.fixture
def options(two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """Those that name a repository by its address."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(KEY.text())
    return ["--repository", f"file://{tmp_path}/main", "--key-file", tmp_path / "key", "--prefetch", "0"]


def test_the_command_brings_a_file(
    two: Two, options: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *options, name_of(1), "x") == (0, "")
    assert (tmp_path / "x").read_bytes() == make_segment(1)


def test_the_command_is_silent_about_what_is_absent(
    two: Two, options: list[str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *options, name_of(5), "x") == (1, "")
    assert run(capsys, *options, "--absent-code", "100", name_of(5), "x") == (100, "")


def test_the_command_ends_above_125_for_damage(
    two: Two, options: list[str | Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stored = damage(two.main_repository, name_of(1))
    code, said = run(capsys, *options, name_of(1), "x")
    assert code == 208
    assert stored in said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--no-such-option", "a", "b"], 202),
        (["a"], 202),
        (["a", "b", "c"], 202),
        (["--time-limit", "never", "a", "b"], 202),
        (["--prefetch", "many", "a", "b"], 202),
        (["--config", "/no/such/file", name_of(1), "x"], 203),
        (["--repository", "/no/such/place", name_of(1), "x"], 206),
        (["--repository", "ftp://x/y", name_of(1), "x"], 203),
        (["--key-file", "/no/such/key", "--repository", "/no/such/place", name_of(1), "x"], 207),
    ],
)
def test_the_command_ends_above_125_for_every_mistake(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *words)[0] == code


def test_the_command_ends_above_125_for_a_fault_of_its_own(
    two: Two, options: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pgkeep.wal.fetch.fetch_file", lambda *_: 1 / 0)
    code, said = run(capsys, *options, name_of(1), "x")
    assert code == 201
    assert "unexpected ZeroDivisionError" in said


def test_every_error_ends_above_125() -> None:
    assert {exit_code_of(error("x")) for error in (PgkeepError, StoreError, UsageError, DamageError)} == {
        201,
        209,
        202,
        208,
    }
    assert [exit_code_of(error) for error in (Interrupted(signal_number=15), ValueError("x"))] == [143, 201]


def test_the_command_prints_a_setting_that_means_the_same(
    two: Two, options: list[str | Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["wal", "fetch", *map(str, options), "--setting"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith("restore_command = '")
    value = line.removeprefix("restore_command = '").removesuffix("'").replace("''", "'")
    shell = value.replace("%f", name_of(1)).replace("%p", "x").replace("%%", "%")
    assert subprocess.run(["/bin/sh", "-c", shell], cwd=tmp_path, check=False, timeout=60).returncode == 0
    assert (tmp_path / "x").read_bytes() == make_segment(1)
    absent = value.replace("%f", name_of(9)).replace("%p", "x").replace("%%", "%")
    assert subprocess.run(["/bin/sh", "-c", absent], cwd=tmp_path, check=False, timeout=60).returncode == 1
