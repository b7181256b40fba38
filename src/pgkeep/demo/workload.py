"""Traffic for the demo's authentication service: a fast seeded load, and a client that never stops writing."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, LiteralString, Self

import psycopg
from psycopg.types.json import Jsonb

from pgkeep.demo import rows, schema
from pgkeep.units import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

__all__ = ["AUDITS_PER_USER", "LINKS_PER_USER", "TOKENS_PER_USER", "Client", "Commit", "load"]

# How an authentication service's tables grow with its users.
LINKS_PER_USER: Final = 1
TOKENS_PER_USER: Final = 2
AUDITS_PER_USER: Final = 12

_ROWS_A_CHUNK: Final = 20_000


@dataclass(frozen=True, slots=True)
class _Kind:
    rows_per_user: int
    line: Callable[[random.Random, int, float, int], str]
    copy: LiteralString


_KINDS: Final = {
    "users": _Kind(1, rows.user_line, "COPY users FROM STDIN"),
    "platform_accounts": _Kind(LINKS_PER_USER, rows.link_line, "COPY platform_accounts FROM STDIN"),
    "token_blacklist": _Kind(TOKENS_PER_USER, rows.token_line, "COPY token_blacklist FROM STDIN"),
    "audit_logs": _Kind(AUDITS_PER_USER, rows.audit_line, "COPY audit_logs FROM STDIN"),
}


def _chunks(users: int) -> list[tuple[str, int, int]]:
    """The load in pieces: table, first row's number, end."""
    return [
        (table, first, min(first + _ROWS_A_CHUNK, users * kind.rows_per_user + 1))
        for table, kind in _KINDS.items()
        for first in range(1, users * kind.rows_per_user + 1, _ROWS_A_CHUNK)
    ]


def _lines(seed: int, users: int, table: str, first: int, end: int) -> Iterator[str]:
    """The chunk's rows, always the same for the same arguments."""
    kind = _KINDS[table]
    rng = random.Random(f"{seed} {table} {first}")  # noqa: S311 - rows that can be made again, not secrets
    total = users * kind.rows_per_user + 1
    for number in range(first, end):
        yield kind.line(rng, number, number / total, users)


def _copy_chunk(connection: psycopg.Connection, seed: int, users: int, chunk: tuple[str, int, int]) -> None:
    with connection.cursor() as cursor, cursor.copy(_KINDS[chunk[0]].copy) as copy:
        copy.write("".join(_lines(seed, users, *chunk)))


def _copy_chunk_alone(dsn: str, seed: int, users: int, chunk: tuple[str, int, int]) -> None:
    with psycopg.connect(dsn) as connection:
        _copy_chunk(connection, seed, users, chunk)


def load(dsn: str, *, users: int, seed: int = 1, jobs: int = 1) -> None:
    """Create the schema and fill it for so many users; the same seed gives the same rows.

    With ``jobs`` above 1, processes load side by side: the same rows, but their order in the tables is left to chance.
    The tables must not exist. Raises psycopg.Error where the server refuses.
    """
    with psycopg.connect(dsn) as connection:
        schema.create_tables(connection)
        if jobs == 1:
            for chunk in _chunks(users):
                _copy_chunk(connection, seed, users, chunk)
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(_copy_chunk_alone, dsn, seed, users), _chunks(users)))
    with psycopg.connect(dsn) as connection:
        schema.create_indexes(connection)
        for table in ("users", "platform_accounts", "audit_logs"):
            connection.execute(
                "SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (table, users * _KINDS[table].rows_per_user)
            )
        connection.execute("ANALYZE")


@dataclass(frozen=True, slots=True)
class Commit:
    """What one acknowledged transaction left behind: who, which audit row, which token.

    The server committed it between ``sent_at`` and ``committed_at``, when the client asked for it and when it heard of it.
    """

    action: str
    user_id: int
    audit_id: int
    sent_at: datetime
    committed_at: datetime
    jti: uuid.UUID | None = None


class Client(threading.Thread):
    """A client of the authentication service: signs users up, logs them in, revokes tokens, each in one transaction.

    ``rate`` is transactions a second; ``committed()`` tells what the server has acknowledged. ``stop()`` ends it after
    the transaction under way, and raises what ended it before, if anything did. A table that is gone does not end it: the
    transactions that need it are counted in ``refused``.

    Also a context manager::

        with Client(dsn, rate=100) as client:
            ...
        print(len(client.committed()))
    """

    def __init__(self, dsn: str, *, rate: float = 50, seed: int = 1) -> None:
        super().__init__(name="auth-service-client", daemon=True)
        self._dsn = dsn
        self._pause = 1 / rate
        self._rng = random.Random(seed)  # noqa: S311 - see _lines
        self._stopping = threading.Event()
        self._commits: list[Commit] = []
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self.refused = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def committed(self) -> list[Commit]:
        """All transactions that the server has acknowledged, oldest first."""
        with self._changed:
            return list(self._commits)

    def wait_for(self, count: int, timeout: float = 30) -> None:
        """Return when ``count`` transactions are committed; raises TimeoutError after so many seconds, or its own end."""
        with self._changed:
            in_time = self._changed.wait_for(lambda: len(self._commits) >= count or self._error is not None, timeout)
        if self._error is not None:
            raise self._error
        if not in_time:
            raise TimeoutError(f"the client committed {len(self.committed())} of {count} transactions in {timeout} s")

    def stop(self) -> None:
        """End after the transaction under way; raises what ended the client before that."""
        self._stopping.set()
        self.join()
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """The thread's work: ``start()`` calls it."""
        try:
            with psycopg.connect(self._dsn, autocommit=True, application_name="auth-service") as connection:
                due = time.monotonic()
                while not self._stopping.wait(max(0.0, due - time.monotonic())):
                    due += self._pause
                    try:
                        commit = self._act(connection)
                    except psycopg.errors.UndefinedTable:
                        self.refused += 1
                        continue
                    with self._changed:
                        self._commits.append(commit)
                        self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - stop() raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _act(self, connection: psycopg.Connection) -> Commit:
        chance = self._rng.random()
        with connection.transaction():
            user_id = None if chance < 0.3 else self._some_user(connection)
            jti = None
            if user_id is None:
                action, user_id = "signup", self._sign_up(connection)
            elif chance < 0.8:
                action = "login"
                connection.execute(
                    "UPDATE users SET last_login_at = now(), updated_at = now() WHERE id = %s", (user_id,)
                )
            else:
                action, jti = "token.revoke", self._revoke_token(connection, user_id)
            audit_id = self._audit(connection, action, user_id)
            sent_at = utc_now()
        return Commit(action, user_id, audit_id, sent_at, utc_now(), jti)

    def _some_user(self, connection: psycopg.Connection) -> int | None:
        """Any user that is there, or None where the service has none yet."""
        row = connection.execute(
            "SELECT id FROM users WHERE id >= (SELECT 1 + %s::float8 * max(id) FROM users)::bigint ORDER BY id LIMIT 1",
            (self._rng.random() * 0.99,),
        ).fetchone()
        return None if row is None else int(row[0])

    def _sign_up(self, connection: psycopg.Connection) -> int:
        # Unique whatever the seed: several clients may share a database.
        public_id = uuid.uuid4()
        email = f"{self._rng.choice(rows.NAMES)}.{public_id.hex}@{self._rng.choice(rows.MAIL_HOSTS)}"
        user_id = _only_value(
            connection,
            "INSERT INTO users (public_id, email, password_hash, display_name, locale) "
            "VALUES (%s, %s, %s, %s, %s) RETURNING id",
            (
                public_id,
                email,
                rows.password_hash(self._rng),
                rows.display_name(self._rng),
                self._rng.choice(rows.LOCALES),
            ),
        )
        platform = self._rng.choice(schema.PLATFORMS)
        connection.execute(
            "INSERT INTO platform_accounts (user_id, platform, platform_user_id, refresh_token) VALUES (%s, %s, %s, %s)",
            (user_id, platform, f"{platform}-{public_id.hex}", self._rng.randbytes(48)),
        )
        return user_id

    def _revoke_token(self, connection: psycopg.Connection, user_id: int) -> uuid.UUID:
        jti = uuid.uuid4()
        connection.execute(
            "INSERT INTO token_blacklist (jti, user_id, token_hash, reason, expires_at) "
            "VALUES (%s, %s, %s, %s, now() + interval '7 days')",
            (jti, user_id, self._rng.randbytes(32), self._rng.choice(rows.REASONS)),
        )
        return jti

    def _audit(self, connection: psycopg.Connection, action: str, user_id: int) -> int:
        ip = rows.ip_address(self._rng)
        return _only_value(
            connection,
            "INSERT INTO audit_logs (user_id, action, success, ip, user_agent, details) "
            "VALUES (%s, %s, true, %s, %s, %s) RETURNING id",
            (user_id, action, ip, rows.user_agent(self._rng), Jsonb(rows.audit_details(self._rng, action, ip))),
        )


def _only_value(connection: psycopg.Connection, query: LiteralString, parameters: tuple[object, ...]) -> int:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return int(row[0])
