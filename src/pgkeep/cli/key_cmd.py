"""``pgkeep key``: who can open a repository."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgkeep.cli.options import Context, add_global_options, common_options, examples
from pgkeep.cli.repositories import Chosen, repository_options
from pgkeep.errors import KeyFailure, PgkeepError, UsageError

if TYPE_CHECKING:
    from pgkeep.config import KeyReference
    from pgkeep.repository import Repository, Secret

__all__ = ["command"]

_KINDS = {"key": "key file", "passphrase": "passphrase", "openpgp": "OpenPGP", "aws-kms": "AWS KMS"}


@click.group(
    "key",
    epilog=examples(
        "pgkeep key list",
        "pgkeep key add gpg:0123456789ABCDEF0123456789ABCDEF01234567",
        "pgkeep key export recovery-sheet.html",
    ),
)
@add_global_options
def command() -> None:
    """Who can open a repository. Each key has a slot, and each slot opens everything.

    Keys are named as in the configuration: file:/path, passphrase-file:/path, gpg:RECIPIENT, aws-kms:KEY_ID.
    """


@command.command("list", epilog=examples("pgkeep key list", "pgkeep key list --json"))
@common_options
@repository_options
def list_command(context: Context, chosen: Chosen) -> None:
    """Show the key slots. Works without a key, too; it cannot say then which one is yours."""
    from pgkeep.repository.keys.changes import list_slots

    store = chosen.store()
    repository, trouble = None, None
    try:
        repository = chosen.open()
    except KeyFailure as error:
        trouble = error
    own = repository.slots.own.name if repository is not None and repository.encrypted else None
    roots = repository.slots.root_keys if repository is not None and repository.encrypted else None
    documents = []
    found = list_slots(store)
    replaced = {listed.slot.replaces for listed in found if listed.slot is not None}
    for listed in found:
        slot = listed.slot
        state = "damaged" if slot is None else "leaving" if listed.leaving else "good"
        if state == "good" and listed.name in replaced:
            state = "replaced"
        documents.append(
            {
                "slot": listed.name,
                "kind": None if slot is None else slot.kind,
                "label": "" if slot is None else slot.label,
                "created": None if slot is None else slot.created or None,
                "whose": None if slot is None else slot.whose or None,
                "reads": slot is not None and not slot.appends_only,
                "yours": listed.name == own,
                "state": state,
            }
        )
    context.output.table(
        ("SLOT", "KIND", "CREATED", "LABEL", "WHOSE", ""),
        [
            (
                str(document["slot"]),
                _KINDS.get(str(document["kind"]), "?")
                + ("" if document["reads"] or document["kind"] is None else ", adds only"),
                _shown_time(document["created"]),
                str(document["label"]),
                str(document["whose"] or ""),
                "yours" if document["yours"] else "" if document["state"] == "good" else str(document["state"]),
            )
            for document in documents
        ],
    )
    if any(document["state"] == "replaced" for document in documents):
        context.output.line("a rotation was broken off: pgkeep key rotate removes the slot that was replaced", "yellow")
    if trouble is not None:
        context.output.line(f"none of them was opened: {trouble}", "yellow")
    elif own is None:
        context.output.line("the repository is not encrypted and has no keys")
    context.output.document({"repository": store.url, "root_keys": roots, "slots": documents})


@command.command(
    "add",
    epilog=examples(
        "pgkeep key add file:/root/second.key --label 'second key, safe of the bank'",
        "pgkeep key add gpg:0123456789ABCDEF0123456789ABCDEF01234567",
        "pgkeep key add aws-kms:alias/backups",
    ),
)
@common_options
@repository_options
@click.argument("key")
@click.option("--label", default="", metavar="TEXT", help="What to call it in lists.")
@click.option(
    "--adds-only", is_flag=True, help="In sealed mode: for a database host, which then cannot read data back."
)
def add(context: Context, chosen: Chosen, key: str, label: str, adds_only: bool) -> None:
    """Let one more KEY open the repository. A key file that is not there is made."""
    from pgkeep.key_care import new_secret

    reference = _reference(key)
    repository = chosen.open()
    secret, made = new_secret(reference)
    slots = repository.slots
    try:
        slot = slots.add(secret, label=label, appends_only=adds_only)
    except PgkeepError:
        if made and reference.path is not None:
            reference.path.unlink()
        raise
    if made:
        context.output.line(f"created the key file {reference.path}")
    context.output.line(f"{reference} opens the repository now (slot {slot.name})", "green")
    if slots.unproven is not None:
        context.output.line(f"that is not proven, since it cannot be opened here: {slots.unproven}", "yellow")
        context.output.line(f"where it can be: pgkeep key verify {reference}")
    proven = slots.unproven is None
    context.output.document({"slot": slot.name, "key": str(reference), "created_key_file": made, "proven": proven})


@command.command("remove", epilog=examples("pgkeep key remove 1f2e3d4c", "pgkeep key remove 1f2e --key-file sheet.key"))
@common_options
@repository_options
@click.argument("slot")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(context: Context, chosen: Chosen, slot: str, yes: bool) -> None:
    """Remove a key's SLOT, so that the key does not open the repository any more.

    The repository must open by another slot's key, the configured one or one that you give. Who has had the key may have kept the
    root keys of then: pgkeep key rotate --new-root keeps what comes from them.
    """
    repository = chosen.open()
    name = repository.slots.find(slot)
    if not yes and not context.json and sys.stdin.isatty():
        click.confirm(f"Remove the key slot {name}? What opens it is good for nothing then.", default=False, abort=True)
    repository.slots.remove(name)
    context.output.line(f"slot {name} is gone; the repository opens by slot {repository.slots.own.name}", "green")
    context.output.document({"removed": name, "opens": repository.slots.own.name})


@command.command(
    "rotate",
    epilog=examples(
        "pgkeep key rotate", "pgkeep key rotate --to aws-kms:alias/backups", "pgkeep key rotate --new-root"
    ),
)
@common_options
@repository_options
@click.option("--to", metavar="KEY", help="The key that takes the place. Default: a new one of the same kind.")
@click.option("--new-root", is_flag=True, help="Seal what is stored from now on with a new root key, too.")
def rotate(context: Context, chosen: Chosen, to: str | None, new_root: bool) -> None:
    """Put a new key in the place of the one that is in use. Nothing that is stored is touched.

    A key file is written anew, for all repositories of the configuration that it opens. With --new-root alone, keys stay as
    they are, and what is stored from now on does not open with a root key that somebody has kept.
    """
    from pgkeep.key_care import rotate_key
    from pgkeep.repository import Repository

    key = chosen.key()
    if key is None:
        raise UsageError("there is no key to rotate", hint="give it with --key-file FILE or --passphrase-file FILE")
    new = None if to is None else _reference(to)
    repositories = _repositories_of(context, chosen, key)
    rotated = [] if new_root and new is None else rotate_key(repositories, key, new)
    documents: list[dict[str, object]] = []
    by_url = {change.url: change for change in rotated}
    for repository in repositories:
        change = by_url.get(repository.store.url)
        if change is not None:
            # its slot is gone
            repository = Repository.open(repository.store, _secret(new or key), slot=change.new)
        generation = repository.slots.new_root() if new_root else None
        documents.append(
            {
                "repository": repository.store.url,
                "removed": None if change is None else change.old,
                "slot": repository.slots.own.name,
                "root_keys": repository.slots.root_keys,
                "new_root": generation is not None,
            }
        )
        if change is not None:
            context.output.line(f"{change.url}: slot {change.new} has taken the place of {change.old}", "green")
        if generation is not None:
            context.output.line(
                f"{repository.store.url}: what is stored from now on is sealed with root key {generation}", "green"
            )
    if rotated and new is not None and new != key:
        context.output.line(f'now write into the configuration: key = "{new}"', "bold")
    context.output.document({"key": str(new or key), "repositories": documents})


@command.command(
    "export",
    epilog=examples("pgkeep key export recovery-sheet.html", "pgkeep key export - --language ko | lpr"),
)
@common_options
@repository_options
@click.argument("file")
@click.option(
    "--format", "format_", type=click.Choice(["html", "text"]), help="Default: by the name of FILE, else text."
)
@click.option("--language", type=click.Choice(["en", "ko"]), help="Default: that of the environment, else English.")
@click.option("--label", default="recovery sheet", show_default=True, metavar="TEXT", help="What to call it in lists.")
def export(context: Context, chosen: Chosen, file: str, format_: str | None, language: str | None, label: str) -> None:
    """Make a new recovery key, and write it as a sheet to print into FILE (- for standard output).

    The sheet has the key as text and as a QR code. It is the only copy of that key: print it, then delete the file.
    """
    import secrets

    from pgkeep.cli.key_sheet import Sheet
    from pgkeep.repository import KeyFile
    from pgkeep.units import utc_now

    if file == "-" and context.json:
        raise UsageError("a sheet and a JSON document cannot share standard output", hint="name a file")
    repository = chosen.open()
    slots = repository.slots
    key, name = KeyFile.new(), secrets.token_hex(4)
    sheet = Sheet(key.text(), repository.store.url, repository.id, name, utc_now(), language or _language())
    as_html = (format_ or ("html" if file.endswith((".html", ".htm")) else "text")) == "html"
    text = sheet.html() if as_html else sheet.text()
    # the sheet first: a slot whose key nobody has would stay for ever
    if file != "-":
        _write_private(Path(file), text)
    try:
        slots.add(key, label=label, name=name)
    except BaseException:
        if file != "-":
            Path(file).unlink(missing_ok=True)
        raise
    if file == "-":
        click.echo(text, nl=False)
        return
    context.output.line(f"{file} holds a new recovery key (slot {name}): print it, then delete the file", "green")
    context.output.line("pgkeep key verify proves that what was printed can be read back")
    context.output.document({"slot": name, "file": file, "format": "html" if as_html else "text"})


@command.command(
    "verify",
    epilog=examples(
        "pgkeep key verify", "pgkeep key verify recovery-sheet.html", "pgkeep key verify gpg:ops@example.com"
    ),
)
@common_options
@repository_options
@click.argument("key", required=False)
def verify(context: Context, chosen: Chosen, key: str | None) -> None:
    """Prove that a KEY opens the repository, has all its root keys, and decrypts stored objects.

    KEY is a key file or a sheet (as text or HTML), or a key as the configuration names it. Without it, pgkeep asks for a recovery
    key or passphrase, or reads it from standard input.
    """
    from pgkeep.key_care import prove_key

    # what stands before the configuration in other commands does here, too
    named = chosen.key() if key is None and not chosen.is_configured else None
    proof = prove_key(chosen.store(), _given(key if named is None else str(named)))
    context.output.line(f"the key opens slot {proof.slot} and has all {proof.root_keys} root keys", "green")
    for name in proof.objects:
        context.output.line(f"  decrypted {name}")
    if not proof.objects:
        context.output.line("there is no backup yet that it could be tried on", "yellow")
    context.output.document(
        {"slot": proof.slot, "root_keys": proof.root_keys, "decrypted": list(proof.objects), "ok": True}
    )


def _shown_time(created: object) -> str:
    from pgkeep.units import format_time

    try:
        return format_time(datetime.fromisoformat(str(created)))
    except ValueError:
        return ""


def _reference(text: str) -> KeyReference:
    from pgkeep.config import KeyReference

    try:
        return KeyReference.parse(text)
    except ValueError as error:
        raise UsageError(str(error), hint="name the key as the configuration does") from None


def _secret(key: KeyReference) -> Secret | None:
    from pgkeep.opening import read_secret

    return read_secret(key)


def _repositories_of(context: Context, chosen: Chosen, key: KeyReference) -> list[Repository]:
    """The one that was chosen, and others of the configuration whose key is in the same file."""
    from pgkeep.opening import open_repository

    first = chosen.open()
    others: list[Repository] = []
    if key.kind == "file" and chosen.is_configured:
        others = [
            open_repository(settings)
            for settings in context.config().repositories.values()
            if settings.key == key and settings.url != first.store.url
        ]
    return [first, *others]


def _given(key: str | None) -> Secret:
    from pgkeep.cli.key_sheet import find_recovery_key
    from pgkeep.repository import KeyFile, Passphrase

    if key is not None and key.partition(":")[0] in {"file", "passphrase-file", "gpg", "aws-kms"}:
        secret = _secret(_reference(key))
        assert secret is not None
        return secret
    if key is None and sys.stdin.isatty():
        text = str(click.prompt("Recovery key or passphrase", hide_input=True, err=True))
    elif key in {None, "-"}:
        text = sys.stdin.read()
    else:
        try:
            text = Path(str(key)).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise KeyFailure(f"cannot read {key}: {reason}", hint="name a key file or a sheet") from None
    found = find_recovery_key(text)
    if found is not None:
        return KeyFile.from_recovery_key(found, where="what you gave")
    if key is not None and key != "-":
        raise KeyFailure(f"there is no recovery key in {key}", hint="a passphrase is named as passphrase-file:/path")
    passphrase = text.rstrip("\r\n")
    if not passphrase or passphrase.upper().startswith("PGKEEP1"):
        return KeyFile.from_recovery_key(text, where="what you gave")
    return Passphrase(passphrase)


def _language() -> str:
    named = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    return "ko" if named.startswith("ko") else "en"


def _write_private(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot create {path}: {error.strerror}", hint="name a file that is not there yet") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="name another place") from None
