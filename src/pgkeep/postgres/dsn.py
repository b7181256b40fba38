"""Connection strings (DSN), as libpq reads them: URI or ``key=value`` (PostgreSQL docs, 34.1.1 "Connection Strings").

None of the messages made here can hold a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ProgrammingError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Endpoint", "endpoint_of", "parse_dsn", "redact_dsn", "with_password_file"]

_HIDDEN_OPTIONS = "password|sslpassword|oauth_client_secret|scram_client_key|scram_server_key"
_SECRET_IN_PAIRS = re.compile(rf"\b({_HIDDEN_OPTIONS})(\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:\\.|[^\s\\])*)", re.DOTALL)
_SECRET_IN_QUERY = re.compile(rf"([?&](?:{_HIDDEN_OPTIONS})=)[^&]*")


def parse_dsn(dsn: str) -> dict[str, str]:
    """The DSN's own options, without defaults. Raises ValueError where libpq would not take it."""
    try:
        return {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    except ProgrammingError as error:
        # libpq's own message may quote a piece of the password; the name of an unknown option is harmless.
        option = re.search(r'invalid (?:connection option|URI query parameter):? "([a-z_]+)"', str(error))
        name = f", because of the option {option[1]!r}" if option else ""
        raise ValueError(f"is not a connection string of PostgreSQL (a URI, or key=value pairs){name}") from None


def redact_dsn(dsn: str) -> str:
    """The DSN with every password replaced by ``***``; where it is malformed, rather too much is hidden than too little."""
    if not re.match(r"postgres(ql)?://", dsn):
        return _SECRET_IN_PAIRS.sub(r"\1\2***", dsn)
    place, mark, query = dsn.partition("?")
    if "@" in query and ":" in place.partition("://")[2]:
        # Either an "@" among the options, or a password with an unescaped "?" in it: hide both.
        place, mark, query = dsn, "", ""
    place = re.sub(r"(://[^:@]*):.*@", r"\1:***@", place, flags=re.DOTALL)
    return place + _SECRET_IN_QUERY.sub(r"\1***", mark + query)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a DSN leads to and as whom, with libpq's defaults and environment variables applied."""

    host: str
    port: str
    user: str
    database: str

    @property
    def is_local(self) -> bool:
        """Whether it is a Unix socket."""
        return self.host.startswith(("/", "@")) or not self.host

    def passfile_place(self) -> tuple[str, str]:
        """Host and port for a line of a password file; "*" for sockets, and where the DSN names several."""
        if self.is_local or "," in self.host + self.port:
            return "*", "*"
        return self.host, self.port

    def __str__(self) -> str:
        return f"{self.host or 'the local socket'}:{self.port}"


def endpoint_of(dsn: str) -> Endpoint:
    """Raises ValueError as ``parse_dsn`` does."""
    options = {
        option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val is not None
    }
    options |= parse_dsn(dsn)
    user = options.get("user", "")
    return Endpoint(
        host=options.get("host") or options.get("hostaddr", ""),
        port=options.get("port") or "5432",
        user=user,
        database=options.get("dbname") or user,
    )


def with_password_file(dsn: str, path: Path) -> tuple[str, str | None]:
    """Move a DSN's password out of it: ``(DSN that names the passfile, line for that file)``.

    Without a password in the DSN, it comes back as it is, with None. The line's form is that of PostgreSQL docs, 34.16
    "The Password File"; any database matches, because replication connections ask for one of that name.
    """
    options = parse_dsn(dsn)
    password = options.pop("password", None)
    if password is None:
        return dsn, None
    endpoint = endpoint_of(dsn)
    fields = (*endpoint.passfile_place(), "*", endpoint.user, password)
    line = ":".join(field if field == "*" else re.sub(r"([\\:])", r"\\\1", field) for field in fields)
    return make_conninfo("", **options, passfile=str(path.absolute())), line
