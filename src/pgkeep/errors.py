"""One tree of errors: each has an exit code and, wherever a person can act, a hint that names what mends it.

.. code-block:: text

    PgkeepError            1   anything that has no better name
    ├── UsageError         2   the command line asks for something that cannot be
    ├── ConfigError        3   the configuration file is missing, unreadable or wrong
    ├── ServerError        4   the PostgreSQL server cannot be reached, or broke off
    │   └── ServerSettingError  5   reached, but a privilege or a setting is missing
    ├── RepositoryError    6   not a repository, or a format that this version does not know
    ├── KeyFailure         7   the key is missing or does not open the repository
    ├── DamageError        8   stored bytes are not what was written
    ├── StoreError         9   the store cannot be read or written (permission, disk full, network)
    ├── BusyError         10   another job holds what this one needs
    ├── NotFoundError     11   no such backup, cluster, file
    ├── TargetError       12   the restore target cannot be used
    ├── RecoveryError     13   the server did not start, or recovery fell short of its target
    ├── ProofError        14   what a drill restored is not what it should be
    ├── ObjectiveMissed   15   more would be lost, or a restore would take longer, than the objectives allow
    └── Interrupted      130   stopped by the user (143 when by SIGTERM)

The same table stands in ``docs/reference/exit-codes.md``; a test holds the two together.
"""

from __future__ import annotations

__all__ = [
    "BusyError",
    "ConfigError",
    "DamageError",
    "Interrupted",
    "KeyFailure",
    "NotFoundError",
    "ObjectiveMissed",
    "PgkeepError",
    "ProofError",
    "RecoveryError",
    "RepositoryError",
    "ServerError",
    "ServerSettingError",
    "StoreError",
    "TargetError",
    "UsageError",
]


class PgkeepError(Exception):
    """Base of all errors that pgkeep raises on purpose.

    ``str(error)`` is one sentence that names the thing; ``hint`` is the command or setting that mends it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.hint, self.__dict__))


def _rebuild(kind: type[PgkeepError], message: str, hint: str | None, state: dict[str, object]) -> PgkeepError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.hint = hint
    error.__dict__.update(state)
    return error


class UsageError(PgkeepError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ConfigError(PgkeepError):
    """The configuration file is missing, unreadable or wrong."""

    exit_code = 3


class ServerError(PgkeepError):
    """The PostgreSQL server cannot be reached, or broke off."""

    exit_code = 4


class ServerSettingError(ServerError):
    """The server was reached, but a privilege or a setting is missing."""

    exit_code = 5


class RepositoryError(PgkeepError):
    """Not a repository, or one of a format that this version does not know."""

    exit_code = 6


class KeyFailure(PgkeepError):
    """The key is missing or does not open the repository."""

    exit_code = 7


class DamageError(PgkeepError):
    """Stored bytes are not what was written.

    ``object_name`` is the repository object that is damaged, ``path`` the cluster's file that needs it, where known.
    """

    exit_code = 8

    def __init__(
        self, message: str, *, hint: str | None = None, object_name: str | None = None, path: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.object_name = object_name
        self.path = path


class StoreError(PgkeepError):
    """The store cannot be read or written."""

    exit_code = 9


class BusyError(PgkeepError):
    """Another job holds what this one needs."""

    exit_code = 10


class NotFoundError(PgkeepError):
    """No such backup, cluster or file."""

    exit_code = 11


class TargetError(PgkeepError):
    """The restore target cannot be used."""

    exit_code = 12


class RecoveryError(PgkeepError):
    """The restored server did not start, or recovery fell short of its target."""

    exit_code = 13


class ProofError(PgkeepError):
    """What a drill restored is not what it should be, or was not checked at all."""

    exit_code = 14


class ObjectiveMissed(PgkeepError):
    """More would be lost, or a restore would take longer, than the cluster's objectives allow."""

    exit_code = 15


class Interrupted(PgkeepError):
    """Stopped by a signal: SIGINT (exit code 130) or SIGTERM (143)."""

    exit_code = 130

    def __init__(self, message: str = "interrupted", *, hint: str | None = None, signal_number: int = 2) -> None:
        super().__init__(message, hint=hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
