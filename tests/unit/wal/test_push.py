"""What the archiver is told: exit codes, the text of the setting, and what a push remembers of the configuration."""

from __future__ import annotations

import shlex
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from pgkeep import errors
from pgkeep.errors import Interrupted, PgkeepError, StoreError, TargetError, UsageError
from pgkeep.repository import KeyFile, Repository, open_store
from pgkeep.wal import push_settings, thin_push
from pgkeep.wal.claims import Claim, ForeignServerError, check_claim, claim_timeline, data_directory_claim
from pgkeep.wal.push import control_file_of, exit_code_of, push_line
from pgkeep.wal.push_settings import push_state, settings_of_program
from pgkeep.wal.socket_server import PushServer
from pgkeep.wal.thin_push import UNANSWERED

if TYPE_CHECKING:
    from collections.abc import Callable

CLUSTER = 7123456789012345678


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__])
def test_no_error_ends_the_archiver(kind: type[PgkeepError]) -> None:
    assert 1 <= exit_code_of(kind("words")) <= 125


def test_what_nobody_expected_does_not_end_the_archiver_either() -> None:
    assert exit_code_of(ZeroDivisionError()) == 1
    assert exit_code_of(Interrupted(signal_number=15)) == 1


def test_the_setting_survives_the_server_and_the_shell() -> None:
    """The server replaces %p and %%, the shell splits; what comes out are the words that went in."""
    line = push_line("/py thon", Path("/a/th'in.py"), Path("/s/100%/x.sock"), "my db", Path("/c.toml"), Path("/s t"))
    as_run = line.replace("%%", "\0").replace("%p", "pg_wal/000000010000000000000001").replace("\0", "%")
    assert shlex.split(as_run) == [
        "/py thon",
        "-I",
        "-S",
        "/a/th'in.py",
        "/s/100%/x.sock",
        "my db",
        "pg_wal/000000010000000000000001",
        "/py thon",
        "-P",
        "-m",
        "pgkeep.wal.push_program",
        "/c.toml",
        "my db",
        "/s t",
    ]


def test_a_directory_that_is_none_of_a_server_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no data directory") as caught:
        control_file_of(tmp_path)
    assert caught.value.hint


class TestSettings:
    """A push reads the configuration once, and again after it was changed."""

    def _write(self, place: Path, policy: str = "all") -> Path:
        path = place / "pgkeep.toml"
        path.write_text(
            f'[repository.main]\nurl = "file://{place}/main"\nkey = "file:{place}/key"\n'
            f'[cluster.auth]\ndsn = "dbname=x"\nrepositories = ["main"]\nwal = {{ policy = "{policy}", push_ahead = 7 }}\n'
        )
        return path

    def test_the_second_time_nothing_is_parsed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, state = self._write(tmp_path), tmp_path / "state"
        first = settings_of_program(path, "auth", state)
        monkeypatch.delattr(push_settings, "_load")
        assert settings_of_program(path, "auth", state) == first
        assert (first.policy, first.push_ahead) == ("all", 7)
        assert first.repositories[0].key_path == f"{tmp_path}/key"

    def test_a_changed_file_is_read_again(self, tmp_path: Path) -> None:
        path, state = self._write(tmp_path), tmp_path / "state"
        settings_of_program(path, "auth", state)
        self._write(tmp_path, "first")
        assert settings_of_program(path, "auth", state).policy == "first"

    @pytest.mark.parametrize("stamp", ["", "{}", "[]", "null", '{"path": 1, "source": 2, "cluster": 3}'])
    def test_a_damaged_note_is_written_anew(self, tmp_path: Path, stamp: str) -> None:
        path, state = self._write(tmp_path), tmp_path / "state"
        wanted = settings_of_program(path, "auth", state)
        (state / "settings.json").write_text(stamp)
        assert settings_of_program(path, "auth", state) == wanted

    def test_no_secret_is_in_the_note(self, tmp_path: Path) -> None:
        key = KeyFile.generate(tmp_path / "key")
        settings_of_program(self._write(tmp_path), "auth", tmp_path / "state")
        assert key.text() not in (tmp_path / "state" / "settings.json").read_text()
        assert (tmp_path / "state").stat().st_mode & 0o077 == 0

    def test_the_state_is_beside_the_spool(self) -> None:
        assert push_state(Path("/var/spool/pgkeep/auth")) == Path("/var/spool/pgkeep/auth.push")


class TestClaims:
    """Which data directory a timeline belongs to."""

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Repository:
        return Repository.create(open_store(str(tmp_path / "repository")), None)

    def test_the_first_one_has_it_and_another_is_refused(self, repository: Repository) -> None:
        first, other = Claim(1, 2, "here", "/a"), Claim(1, 3, "here", "/b")
        check_claim(repository, CLUSTER, 1, first)
        check_claim(repository, CLUSTER, 1, first)
        with pytest.raises(ForeignServerError, match="/a on here, and this is /b on here"):
            check_claim(repository, CLUSTER, 1, other)
        check_claim(repository, CLUSTER, 2, other)

    def test_a_claim_may_change_hands_and_come_back(self, repository: Repository) -> None:
        first, other = Claim(1, 2, "here", "/a"), Claim(5, 6, "there", "/b")
        assert claim_timeline(repository, CLUSTER, 1, first) is None
        assert claim_timeline(repository, CLUSTER, 1, other) == first
        with pytest.raises(ForeignServerError):
            check_claim(repository, CLUSTER, 1, first)
        assert claim_timeline(repository, CLUSTER, 1, first) == other
        check_claim(repository, CLUSTER, 1, first)

    def test_two_that_ask_at_once_have_one_winner(self, repository: Repository) -> None:
        together = threading.Barrier(4)
        won: list[int] = []

        def ask(number: int) -> None:
            together.wait(30)
            try:
                check_claim(repository, CLUSTER, 1, Claim(number, 0, "here", f"/{number}"))
            except ForeignServerError:
                return
            won.append(number)

        threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1

    def test_a_data_directory_that_is_moved_is_the_same_and_a_copy_is_another(self, tmp_path: Path) -> None:
        (tmp_path / "data" / "global").mkdir(parents=True)
        before = data_directory_claim(tmp_path / "data")
        (tmp_path / "data").rename(tmp_path / "moved")
        (tmp_path / "data" / "global").mkdir(parents=True)
        moved, copy = data_directory_claim(tmp_path / "moved"), data_directory_claim(tmp_path / "data")
        assert moved.is_same(before)
        assert not copy.is_same(before)


class TestSocket:
    """A request and its answer, over a real socket, from the client that `archive_command` runs."""

    @pytest.fixture
    def ask(self, tmp_path: Path) -> Callable[[Callable[[str, BinaryIO], None]], int]:
        (tmp_path / "000000010000000000000001").write_bytes(b"content")

        def run(handler: Callable[[str, BinaryIO], None]) -> int:
            place = tmp_path / "s"
            with PushServer(place, handler):
                return thin_push.main([str(place), "auth", str(tmp_path / "000000010000000000000001")])

        return run

    def test_the_handler_gets_the_name_and_the_open_file(
        self, ask: Callable[[Callable[[str, BinaryIO], None]], int]
    ) -> None:
        seen = []
        assert ask(lambda name, file: seen.append((name, file.read()))) == 0
        assert seen == [("000000010000000000000001", b"content")]

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (StoreError("disk full\nreally", hint="free some"), 9, "pgkeep: disk full really (free some)\n"),
            (Interrupted(), 125, "pgkeep: interrupted\n"),
            (ZeroDivisionError("what"), 1, "pgkeep: unexpected ZeroDivisionError: what\n"),
        ],
    )
    def test_an_error_is_told_in_one_line_with_a_code_that_has_the_server_try_again(
        self,
        ask: Callable[[Callable[[str, BinaryIO], None]], int],
        capsys: pytest.CaptureFixture[str],
        error: Exception,
        code: int,
        words: str,
    ) -> None:
        def fail(_name: str, _file: BinaryIO) -> None:
            raise error

        assert ask(fail) == code
        assert capsys.readouterr().err == words

    @pytest.mark.parametrize("request_bytes", [b"", b"push\0auth\0x\0", b"fetch\0auth\0x\0", b"\0" * 4096])
    def test_what_is_no_push_is_refused(self, tmp_path: Path, request_bytes: bytes) -> None:
        with PushServer(tmp_path / "s", lambda *_: None), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(request_bytes)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(4096).startswith(b"1 ")

    def test_a_socket_that_a_dead_receiver_left_is_replaced_and_goes_at_the_end(self, tmp_path: Path) -> None:
        place = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(place))
        with PushServer(place, lambda *_: None):
            (tmp_path / "000000010000000000000001").touch()
            assert thin_push.main([str(place), "auth", str(tmp_path / "000000010000000000000001")]) == 0
        assert not place.exists()

    def test_a_path_that_no_socket_can_have_is_a_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(TargetError, match="longer than 107"), PushServer(tmp_path / ("s" * 108), lambda *_: None):
            pass

    def test_without_a_receiver_and_a_fallback_the_push_fails(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "000000010000000000000001"
        path.touch()
        assert thin_push.main([str(tmp_path / "none"), "auth", str(path)]) == UNANSWERED
        assert "no receiver listens" in capsys.readouterr().err
        assert thin_push.main([str(tmp_path / "none"), "auth", str(path), str(tmp_path / "no program")]) == UNANSWERED
        assert "cannot run" in capsys.readouterr().err
        assert thin_push.main([str(tmp_path / "none"), "auth", str(tmp_path / "gone")]) == UNANSWERED
        assert "cannot read" in capsys.readouterr().err

    def test_the_client_imports_nothing_that_costs_time(self) -> None:
        names = Path(thin_push.__file__).read_text().splitlines()
        assert [line for line in names if line.startswith(("import ", "from "))] == [
            "import _socket",
            "import posix",
            "import sys",
        ]
