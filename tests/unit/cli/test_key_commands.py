"""``pgkeep key``: every command as a person and as a program call it, and the sheet as a camera reads it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgkeep.cli.key_sheet import LANGUAGES
from pgkeep.cli.main import execute
from pgkeep.repository import KeyFile, Passphrase, Repository, open_store
from pgkeep.repository.packs import PackKind
from support.gpg_home import KeyRingHome, key_ring
from support.qr_codes import png_pixels, read_code, text_pixels

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "json.md"


class Keeper:
    """Command lines with a configuration of two repositories that one key file opens."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.key = directory / "main.key"
        self.config = directory / "pgkeep.toml"
        self._capsys = capsys
        key = KeyFile.generate(self.key)
        tables = ""
        for name in ("main", "offsite"):
            repository = Repository.create(open_store(str(directory / name)), key)
            with repository.writer() as writer:
                writer.put(PackKind.DATA, b"kept")
            tables += f'[repository.{name}]\nurl = "{directory / name}"\nkey = "file:{self.key}"\n'
        self.config.write_text(f'{tables}[cluster.auth]\ndsn = "host=/nowhere"\nrepositories = ["main", "offsite"]\n')

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        self._capsys.readouterr()
        code = execute(["--config", str(self.config), "key", *map(str, words)])
        return code, *self._capsys.readouterr()

    def say(self, *words: str | Path) -> str:
        """What a command says that must succeed."""
        code, out, err = self.run(*words)
        assert code == 0, err
        return out

    def document(self, *words: str | Path) -> dict[str, Any]:
        """Its JSON document."""
        document: dict[str, Any] = json.loads(self.say(*words, "--json"))
        return document

    def fail(self, *words: str | Path) -> tuple[int, str]:
        """Exit code and complaint of a command that must fail, with a hint."""
        code, _, err = self.run(*words)
        assert code != 0
        assert "hint: " in err
        return code, err

    def open(self, secret: KeyFile | Passphrase | None = None, name: str = "main") -> Repository:
        """By the key file, or by another secret; what was stored reads back."""
        repository = Repository.open(open_store(str(self.directory / name)), secret or KeyFile.read(self.key))
        assert repository.reader().get(repository.keys.content_id(b"kept")) == b"kept"
        return repository


@pytest.fixture
def keeper(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Keeper:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    return Keeper(tmp_path, capsys)


@pytest.fixture(scope="module")
def people() -> Iterator[KeyRingHome]:
    with key_ring() as home:
        home.new_key("Ann <ann@example.com>")
        yield home


def typed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_list_shows_who_opens_the_repository_and_which_slot_is_yours(keeper: Keeper) -> None:
    own = keeper.open().slots.own
    keeper.say("add", "file:second.key", "--label", "safe of the bank", "--repository", "main")

    (first, second) = keeper.document("list")["slots"]
    said = keeper.say("list").splitlines()

    assert first == {
        "slot": own.name, "kind": "key", "label": "", "created": own.created, "whose": None, "reads": True, "yours": True,
        "state": "good",
    }  # fmt: skip
    assert (second["label"], second["yours"]) == ("safe of the bank", False)
    assert [line.split()[0] for line in said] == ["SLOT", own.name, second["slot"]]
    assert said[1].endswith("yours")


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_list_works_without_a_key_and_says_so(keeper: Keeper) -> None:
    keeper.key.rename(keeper.directory / "lost.key")

    said = keeper.say("list")
    document = keeper.document("list")

    assert "none of them was opened: cannot read" in said
    assert (document["root_keys"], [slot["yours"] for slot in document["slots"]]) == (None, [False])


def test_a_repository_without_encryption_has_no_keys_to_list(keeper: Keeper) -> None:
    Repository.create(open_store(str(keeper.directory / "plain")), None)

    said = keeper.say("list", "--repository", f"file://{keeper.directory}/plain")

    assert "is not encrypted and has no keys" in said


def test_an_added_key_file_is_made_and_opens(keeper: Keeper) -> None:
    document = keeper.document("add", f"file:{keeper.directory}/second.key")

    assert document == {
        "slot": keeper.open(KeyFile.read(keeper.directory / "second.key")).slots.own.name,
        "key": f"file:{keeper.directory}/second.key",
        "created_key_file": True,
        "proven": True,
    }


def test_a_recipient_whose_secret_key_is_elsewhere_is_added_and_said_to_be_unproven(
    keeper: Keeper, people: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = people.fingerprints()[0]
    with key_ring() as host:
        people.give_public(ann, host)
        monkeypatch.setenv("GNUPGHOME", str(host.directory))
        said = keeper.say("add", f"gpg:{ann}")
        proven = keeper.document("add", f"gpg:{ann}", "--label", "again")["proven"]

    assert "that is not proven" in said
    assert f"pgkeep key verify gpg:{ann}" in said
    assert proven is False
    monkeypatch.setenv("GNUPGHOME", str(people.directory))
    assert keeper.document("verify", "gpg:ann@example.com")["ok"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("add", "none"), 2, "encryption is chosen when it is made"),
        (("add", "vault:x"), 2, "is none of"),
        (("add", "file:/nowhere/x.key"), 7, "cannot create the key file"),
        (("add", "file:x.key", "--adds-only"), 2, "only a repository in sealed mode"),
        (("remove", "zz"), 11, "no key slot has a name that begins with 'zz'"),
        (("rotate", "--to", "none"), 2, "encryption is chosen when it is made"),
        (("export", "/nowhere/sheet.html"), 2, "cannot create /nowhere/sheet.html"),
        (("verify", "/nowhere/sheet.html"), 7, "cannot read /nowhere/sheet.html"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error_and_changes_nothing(
    keeper: Keeper, words: tuple[str, ...], code: int, said: str
) -> None:
    before = sorted(path.name for path in keeper.directory.rglob("*") if path.is_file())

    found, complaint = keeper.fail(*words)

    assert (found, said in complaint) == (code, True), complaint
    assert sorted(path.name for path in keeper.directory.rglob("*") if path.is_file()) == before


def test_a_removed_key_opens_nothing_and_the_last_one_stays(keeper: Keeper) -> None:
    old = keeper.open().slots.own.name
    keeper.say("add", "file:second.key")

    assert "is the one to be removed" in keeper.fail("remove", old, "--yes")[1]
    second = keeper.directory / "second.key"
    document = keeper.document("remove", old[:4], "--yes", "--key-file", second)

    assert document == {"removed": old, "opens": keeper.open(KeyFile.read(second)).slots.own.name}
    assert "does not open the repository" in keeper.fail("rotate", "--new-root")[1]
    assert "is the one to be removed" in keeper.fail("remove", document["opens"], "--yes", "--key-file", second)[1]


def test_rotate_writes_the_key_file_anew_for_all_repositories_that_it_opens(keeper: Keeper) -> None:
    old = KeyFile.read(keeper.key)

    document = keeper.document("rotate")

    assert KeyFile.read(keeper.key) != old
    assert keeper.key.stat().st_mode & 0o777 == 0o600
    assert [change["repository"].rpartition("/")[2] for change in document["repositories"]] == ["main", "offsite"]
    for name, change in zip(("main", "offsite"), document["repositories"], strict=True):
        assert keeper.open(name=name).slots.own.name == change["slot"] != change["removed"]
        assert "does not open" in keeper.fail("verify", f"file:{_written(keeper, old)}")[1]


def _written(keeper: Keeper, key: KeyFile) -> Path:
    place = keeper.directory / "old.key"
    place.write_text(key.text())
    return place


def test_rotate_to_another_kind_says_what_belongs_into_the_configuration(keeper: Keeper) -> None:
    (keeper.directory / "passphrase").write_text("open sesame\n")

    said = keeper.say("rotate", "--to", "passphrase-file:passphrase")

    assert f'key = "passphrase-file:{keeper.directory}/passphrase"' in said
    assert keeper.open(Passphrase("open sesame")).slots.own.kind == "passphrase"
    assert "does not open" in keeper.fail("verify", f"file:{keeper.key}")[1]


def test_a_new_root_key_is_for_what_is_stored_from_now_on(keeper: Keeper) -> None:
    slot = keeper.open().slots.own.name

    document = keeper.document("rotate", "--new-root", "--repository", "main")

    assert document["repositories"][0] == {
        "repository": f"file://{keeper.directory}/main",
        "removed": None,
        "slot": slot,
        "root_keys": 2,
        "new_root": True,
    }
    with keeper.open().writer() as writer:
        writer.put(PackKind.DATA, b"new")
    store = open_store(str(keeper.directory / "main"))
    assert {store.get(info.name, 10, 1) for info in store.list("packs/")} == {b"\0", b"\1"}


def test_a_rotation_that_was_broken_off_shows_and_is_finished_by_the_next(keeper: Keeper) -> None:
    """Killed after the key file was replaced, before the old slot was removed."""
    repository = keeper.open()
    old, own = KeyFile.read(keeper.key), repository.slots.own
    new = KeyFile.new()
    repository.slots.add(new, replaces=own.name)
    keeper.key.write_text(new.text())

    assert "a rotation was broken off" in keeper.say("list", "--repository", "main")
    document = keeper.document("rotate", "--repository", "main", "--key-file", keeper.key)

    assert len(keeper.document("list")["slots"]) == 1
    assert document["repositories"][0]["removed"] not in {None, own.name}
    assert "does not open" in keeper.fail("verify", f"file:{_written(keeper, old)}")[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sheets_picture_and_its_text_both_open_the_repository(keeper: Keeper, language: str) -> None:
    """The picture is read by a decoder of another make, out of the page that is printed."""
    document = keeper.document("export", "sheet.html", "--language", language)
    page = (keeper.directory / "sheet.html").read_text("utf-8")
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert picture is not None

    key = read_code(png_pixels(base64.b64decode(picture[1])))

    assert keeper.open(KeyFile.from_recovery_key(key)).slots.own.name == document["slot"]
    assert document == {"slot": document["slot"], "file": "sheet.html", "format": "html"}
    assert keeper.document("verify", "sheet.html")["slot"] == document["slot"]
    assert f'<html lang="{language}">' in page
    assert (keeper.directory / "sheet.html").stat().st_mode & 0o777 == 0o600
    for fact in (f"file://{keeper.directory}/main", document["slot"]):
        assert fact in page
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == [], "it loads nothing"


def test_a_sheet_of_text_has_its_code_in_blocks_that_print_and_fits_a_page(keeper: Keeper) -> None:
    document = keeper.document("export", "sheet.txt")
    text = (keeper.directory / "sheet.txt").read_text("utf-8")
    blocks = [line for line in text.splitlines() if set(line.strip()) <= set(" ▀▄█") and line.startswith("    ")]

    key = read_code(text_pixels(["", "", *blocks, "", ""]))

    assert keeper.open(KeyFile.from_recovery_key(key)).slots.own.name == document["slot"]
    assert keeper.document("verify", "sheet.txt")["slot"] == document["slot"]
    assert max(len(line) for line in text.splitlines() if "pgkeep " not in line and "://" not in line) <= 80


def test_a_sheet_can_go_to_a_printer_and_nowhere_else(keeper: Keeper) -> None:
    said = keeper.say("export", "-")

    assert said.startswith("RECOVERY SHEET")
    assert keeper.run("export", "-", "--json")[0] == 2


def test_a_sheet_is_never_written_over(keeper: Keeper) -> None:
    keeper.say("export", "sheet.html")
    before = (keeper.directory / "sheet.html").read_bytes()

    assert "cannot create sheet.html: File exists" in keeper.fail("export", "sheet.html")[1]
    assert (keeper.directory / "sheet.html").read_bytes() == before


def test_the_language_of_a_sheet_is_that_of_the_environment(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "ko_KR.UTF-8")
    keeper.say("export", "sheet.txt")
    assert "복구 용지" in (keeper.directory / "sheet.txt").read_text("utf-8")


def test_what_was_typed_from_a_sheet_is_proved(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    document = keeper.document("export", "sheet.txt")
    text = (keeper.directory / "sheet.txt").read_text("utf-8")
    lines = re.findall(r"^ {4}((?:PGKEEP1|[A-Z2-7]{2,4})(?:-[A-Z2-7]{2,4})*)$", text, re.MULTILINE)
    key = KeyFile.from_recovery_key(" ".join(lines))

    typed(key.text().lower().replace("-", " ") + "\n", monkeypatch)
    assert keeper.document("verify")["slot"] == document["slot"]
    wrong = "B" if key.text()[20] != "B" else "C"
    typed(key.text()[:20] + wrong + key.text()[21:], monkeypatch)
    assert "what you gave does not hold a pgkeep key" in keeper.fail("verify")[1]
    typed(KeyFile.new().text(), monkeypatch)
    assert "this key does not open the repository" in keeper.fail("verify")[1]


def test_a_passphrase_can_be_typed_to_be_proved(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = keeper.open().slots.add(Passphrase("open sesame"))

    typed("open sesame\n", monkeypatch)
    assert keeper.document("verify")["slot"] == slot.name
    typed("open sesam\n", monkeypatch)
    assert "this passphrase does not open" in keeper.fail("verify")[1]


def test_a_key_of_any_kind_opens_what_the_configuration_does_not_name(
    keeper: Keeper, people: KeyRingHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNUPGHOME", str(people.directory))
    keeper.say("add", "gpg:ann@example.com")
    address = ("--repository", f"file://{keeper.directory}/main")

    slots = keeper.document("list", *address, "--key", "gpg:ann@example.com")["slots"]

    assert {slot["kind"]: slot["yours"] for slot in slots} == {"key": False, "openpgp": True}
    code, said = keeper.fail("list", *address, "--key", "gpg:ann@example.com", "--key-file", keeper.key)
    assert (code, "exclude each other" in said) == (2, True)


def _documented(heading: str) -> set[str]:
    section = re.split(rf"^## {heading}$", REFERENCE.read_text(), maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0]
    return {
        name for cell in re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }


def test_the_json_of_each_command_has_the_documented_fields(keeper: Keeper) -> None:
    listed = keeper.document("list")
    added = keeper.document("add", "file:second.key")
    removed = keeper.document("remove", added["slot"], "--yes")
    rotated = keeper.document("rotate")
    exported = keeper.document("export", "sheet.html")
    verified = keeper.document("verify", "sheet.html")

    assert set(listed) | set(listed["slots"][0]) == _documented("key list")
    assert set(added) == _documented("key add")
    assert set(removed) == _documented("key remove")
    assert set(rotated) | set(rotated["repositories"][0]) == _documented("key rotate")
    assert set(exported) == _documented("key export")
    assert set(verified) == _documented("key verify")
