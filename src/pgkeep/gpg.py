"""The ``gpg`` program, as far as we use it: it finds recipients, encrypts to them or with a passphrase, and decrypts.

It works with the key rings of the user who runs this, or of ``GNUPGHOME``. Bytes go through pipes, secrets through pipes of
their own: never through arguments or files. (GnuPG manual, "Unattended Usage of GPG"; doc/DETAILS for ``--with-colons``.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO

from pgkeep.errors import KeyFailure

__all__ = ["Lock", "decrypt", "encrypt", "encrypting", "find_recipient", "gpg_program"]

_FINGERPRINT = re.compile(r"(?:0x)?([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})", re.ASCII)
_WITH_PASSPHRASE = (
    *("--symmetric", "--cipher-algo", "AES256", "--s2k-digest-algo", "SHA512", "--no-symkey-cache"),
    *("--pinentry-mode", "loopback", "--passphrase-fd"),
)
_SECONDS = 300
"""A person may have to find a smart card and type its PIN."""


def gpg_program() -> str:
    """Where ``gpg`` is. Raises KeyFailure."""
    path = shutil.which("gpg")
    if path is None:
        raise KeyFailure("there is no gpg program on this machine", hint="apt-get install gnupg")
    return path


def find_recipient(recipient: str) -> str:
    """The fingerprint of the one key in the key ring that a recipient names. Raises KeyFailure."""
    answer = _run(["--with-colons", "--fixed-list-mode", "--list-keys", "--", recipient])
    lines = [line.split(":") for line in answer.stdout.decode("utf-8", "replace").splitlines()]
    # the fingerprint that comes after a "pub" line is that key's, one after a "sub" line is a subkey's
    found = [after[9] for line, after in pairwise(lines) if line[0] == "pub" and after[0] == "fpr"]
    if answer.returncode != 0 or not found:
        raise KeyFailure(
            f"gpg knows no key for {recipient!r}",
            hint="gpg --list-keys shows what it knows; gpg --import FILE adds one; GNUPGHOME says where it looks",
        )
    if len(found) > 1:
        raise KeyFailure(
            f"gpg knows {len(found)} keys for {recipient!r}", hint=f"name one by its fingerprint: {', '.join(found)}"
        )
    return found[0]


@dataclass(frozen=True)
class Lock:
    """What opens a message: a recipient's secret key, or a passphrase (AES-256); one of the two."""

    recipient: str | None = None
    passphrase: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.recipient is None) != (self.passphrase is None)


def encrypt(plain: bytes, recipient: str) -> bytes:
    """An OpenPGP message to a recipient. Raises KeyFailure."""
    answer = _run(_to_recipient(recipient), plain)
    if answer.returncode != 0:
        raise KeyFailure(
            f"gpg does not encrypt to {recipient!r}: {_reason(answer.stderr)}",
            hint="name the key by its whole fingerprint, or say that you trust it: gpg --edit-key, then trust",
        )
    return answer.stdout


def decrypt(message: bytes) -> bytes:
    """The plain text of a message. Raises KeyFailure, also where the secret key is not in this user's key ring."""
    answer = _run(["--decrypt"], message)
    if answer.returncode != 0:
        raise KeyFailure(
            f"gpg does not decrypt: {_reason(answer.stderr)}",
            hint="the secret key must be in the key ring of the user who runs this: gpg --list-secret-keys",
        )
    return answer.stdout


@contextmanager
def encrypting(output: IO[bytes], lock: Lock) -> Iterator[IO[bytes]]:
    """A context manager: what is written to what it gives is written to ``output`` as an OpenPGP message.

    Nothing is compressed. Raises KeyFailure with what gpg says; where the block raises, gpg is ended.
    """
    with _passphrase_pipe(lock.passphrase) as descriptor:
        words = _to_recipient(lock.recipient) if lock.recipient is not None else [*_WITH_PASSPHRASE, str(descriptor)]
        process = subprocess.Popen(
            _command(["--compress-algo", "none", *words]),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.PIPE,
            pass_fds=() if descriptor is None else (descriptor,),
        )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError:
            # it says why below
            pass
        said = process.stderr.read()
        if process.wait() != 0:
            hint = "try it by hand: echo | gpg --symmetric --output /dev/null"
            if lock.recipient is not None:
                hint = "name the recipient by a whole fingerprint, or say that you trust the key: gpg --edit-key, then trust"
            raise KeyFailure(f"gpg does not encrypt: {_reason(said)}", hint=hint)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stderr.close()


@contextmanager
def _passphrase_pipe(passphrase: str | None) -> Iterator[int | None]:
    """The end of a pipe that a passphrase can be read from; None for none."""
    if passphrase is None:
        yield None
        return
    reading, writing = os.pipe()
    try:
        try:
            # far below what a pipe holds, so that this does not wait for gpg
            os.write(writing, passphrase.encode() + b"\n")
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _to_recipient(recipient: str) -> list[str]:
    """A full fingerprint needs no trust: no other key can have it."""
    exact = _FINGERPRINT.fullmatch(recipient)
    if exact is None:
        return ["--encrypt", "--recipient", recipient]
    return ["--encrypt", "--trust-model", "always", "--recipient", exact[1]]


def _command(words: Sequence[str]) -> list[str]:
    return [gpg_program(), "--batch", "--no-tty", "--quiet", "--yes", *words]


def _run(words: Sequence[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(_command(words), input=given, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise KeyFailure(
            f"gpg did not answer within {_SECONDS} s", hint="does its agent ask for a passphrase where nobody sees it?"
        ) from None


def _reason(said: bytes) -> str:
    """The last line that gpg said, without its name."""
    lines = said.decode("utf-8", "replace").strip().splitlines() or ["it did not say why"]
    return lines[-1].removeprefix("gpg: ")
