"""A client of its own process: writes a row so many times a second, and logs each commit that the server acknowledged.

``python -m bench.heartbeat DSN LOG RATE``; ends when the server does. A log line: number, seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
import sys
import time

import psycopg


def main() -> None:
    dsn, log, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    beat = 0
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            due = time.monotonic()
            while True:
                beat += 1
                connection.execute("INSERT INTO heartbeat VALUES (%s)", [beat])
                os.write(descriptor, f"{beat} {time.monotonic():.6f}\n".encode())
                due = max(due + 1 / rate, time.monotonic() - 1)
                time.sleep(max(due - time.monotonic(), 0))
    except psycopg.OperationalError:
        # the server is gone, which is what this waits for
        return


if __name__ == "__main__":
    main()
