"""Worker threads with a bounded queue: a feeder that runs ahead is held back, and a failure stops it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Self

__all__ = ["Workers"]

P = ParamSpec("P")


class Workers:
    """Runs calls in threads; use as a context manager.

    ``waiting`` is how many calls may wait or run for each thread: what bounds memory. The first exception of a call is
    raised by the next `submit` or by `drain`; leaving the context without `drain` drops what has not begun.
    """

    def __init__(self, jobs: int | None, name: str, *, waiting: int = 3) -> None:
        self.jobs = jobs or os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(self.jobs, thread_name_prefix=name)
        self._room = threading.BoundedSemaphore(self.jobs * waiting)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads: what runs is waited for, what has not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, call: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Run a call soon; waits while the queue is full."""
        self.raise_failure()
        self._room.acquire()
        self._executor.submit(call, *arguments, **named).add_done_callback(self._done)

    def drain(self) -> None:
        """Wait until every call is done. Nothing can be submitted afterwards."""
        self._executor.shutdown(wait=True)
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a call raised, if any did."""
        if self._failure is not None:
            raise self._failure

    def _done(self, future: Future[None]) -> None:
        self._room.release()
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failure = self._failure or error
