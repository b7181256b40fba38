"""Connections to an object store, and calls over them: with time limits, and tried again while that can help.

obstore's own retries are off. It tries a put again that was carried out, and takes its own object for somebody else's; it has no
limit for the whole; and it knows neither the answers that only look final, nor which call is being made.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pgkeep.errors import ConfigError, PgkeepError, StoreError
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_credentials import profile_provider, profile_region
from pgkeep.repository.object_store_errors import Failure, Kind, explain, read_failure
from pgkeep.repository.store import ObjectArchived

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, S3Store

    Client = AzureStore | GCSStore | S3Store

__all__ = ["LARGE", "SMALL", "Clients", "Patience", "Refused", "Request"]

T = TypeVar("T")

SMALL = 1 << 20
"""Bytes that any connection moves within the time of a small request."""

LARGE = 64 << 20
"""Bytes that any connection moves within the time of a transfer; few objects are larger."""


_GRACE = 1.0
"""Seconds that a request may still take once a signal came."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. How long things may take, and how long they are tried again.

    ``small``: a request that moves up to `SMALL` bytes; ``transfer``: one that moves up to `LARGE`, which is 110 kB/s; ``stall``: an
    answer of which nothing more comes; ``retry_for``: an operation with all its tries; ``first``: the same until the store has
    answered for the first time, since an address that is wrong is no outage. Between tries it waits from ``wait_least``
    on, doubling up to ``wait_most``, less up to a half by chance.
    """

    connect: float = 10.0
    small: float = 30.0
    transfer: float = 600.0
    stall: float = 30.0
    retry_for: float = 300.0
    first: float = 20.0
    wait_least: float = 0.1
    wait_most: float = 15.0


class Request:
    """One try of an operation. ``uncertain``: an earlier try got no answer, and may have been carried out all the same."""

    def __init__(self) -> None:
        self.uncertain = False


class Clients:
    """Clients of one place, made at first use, since that reads credentials; safe for threads."""

    def __init__(self, address: ObjectAddress, patience: Patience | None = None) -> None:
        self.address = address
        self._patience = patience or Patience()
        if address.retry_for is not None:
            limit = address.retry_for
            self._patience = replace(self._patience, retry_for=limit, first=min(self._patience.first, limit))
        self._has_answered = False

    @cached_property
    def small(self) -> Client:
        """For requests that move little."""
        return self._client(self._patience.small)

    @cached_property
    def _upload(self) -> Client:
        return self._client(self._patience.transfer)

    def upload(self, size: int) -> Client:
        """For a put of so many bytes: nothing comes back while it runs, so that only the whole has a limit."""
        if size <= SMALL:
            return self.small
        # a segment of 1 GiB that does not compress is the largest that there is
        return self._upload if size <= LARGE else self._client(self._patience.transfer * size / LARGE)

    @cached_property
    def download(self) -> Client:
        """For large gets."""
        return self._client(self._patience.transfer, stall=self._patience.stall)

    def call(self, verb: str, name: str, work: Callable[[Request], T], *, final: frozenset[Kind] = frozenset()) -> T:
        """Do work that asks the store, again and again while that can help.

        Raises `Refused` for the kinds of failures in ``final``, and StoreError for the others.
        """
        begun, tries, request = time.monotonic(), 0, Request()
        while True:
            try:
                result = _interruptible(lambda: work(request))
            except PgkeepError:
                raise
            except Exception as error:
                failure = read_failure(error)
                self._has_answered |= failure.status is not None
                if failure.kind in final:
                    raise Refused(failure, request) from None
                limit = self._patience.retry_for if self._has_answered else self._patience.first
                left = begun + limit - time.monotonic()
                tries += 1
                # a try that hung took all the time by itself: one more
                if failure.kind is not Kind.TRANSIENT or (left <= 0 and tries > 1):
                    raise self.error(verb, name, failure, tries=tries, seconds=time.monotonic() - begun) from error
                request.uncertain = True
                wait = min(self._patience.wait_least * 2 ** min(tries - 1, 30), self._patience.wait_most)
                time.sleep(max(min(wait * random.uniform(0.5, 1), left), 0))  # noqa: S311 - no secret
            else:
                self._has_answered = True
                return result

    def error(self, verb: str, name: str, failure: Failure, *, tries: int = 1, seconds: float = 0) -> StoreError:
        """The error of a failure, in the user's words."""
        reason, hint = explain(failure, self.address, writes=verb in {"write", "delete"})
        at = f" at {endpoint}" if (endpoint := self.address.endpoint) and endpoint not in reason else ""
        again = f", {tries} times within {seconds:.0f} s" if tries > 1 else ""
        kind = ObjectArchived if failure.kind is Kind.ARCHIVED else StoreError
        return kind(f"cannot {verb} {name} in {self.address.place}{at}: {reason}{again}", hint=hint)

    def _client(self, timeout: float, *, stall: float | None = None) -> Client:
        from obstore.store import AzureStore, GCSStore, S3Store

        address = self.address
        options: ClientConfig = {
            "connect_timeout": f"{round(self._patience.connect * 1000)}ms",
            "timeout": f"{round(timeout * 1000)}ms",
            "allow_http": address.is_plain,
            "user_agent": "pgkeep",
        }
        if stall is not None:
            options["read_timeout"] = f"{round(stall * 1000)}ms"
        if "ca_file" in address.options:
            options["root_certificate"] = _read_certificates(address.options["ca_file"])
        shared: dict[str, Any] = {
            "prefix": address.prefix or None,
            "client_options": options,
            "retry_config": {"max_retries": 0},
        }
        try:
            if address.scheme == "s3":
                return S3Store(
                    address.bucket, **shared, config=_s3_config(address), credential_provider=profile_provider(address)
                )
            if address.scheme == "gs":
                return GCSStore(address.bucket, **shared, config=_gs_config(address))
            return AzureStore(address.bucket, **shared, config=_az_config(address))
        except PgkeepError:
            raise
        except Exception as error:
            raise StoreError(
                f"cannot use {address.place}: {read_failure(error).reason}", hint="see the options of its address"
            ) from error


class Refused(Exception):
    """A failure that the caller of `Clients.call` judges itself, and the try that met it."""

    def __init__(self, failure: Failure, request: Request) -> None:
        super().__init__(failure.reason)
        self.failure = failure
        self.request = request


def _interruptible(work: Callable[[], T]) -> T:
    """Run work so that a signal ends the waiting soon: the main thread would see it only after obstore's call.

    What is under way gets a moment to end, so that whoever cleans up after the signal finds what was made.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    done, results, errors = threading.Event(), list[T](), list[BaseException]()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised by the one who waits
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, name="object store", daemon=True)
    try:
        thread.start()
        done.wait()
    except BaseException:
        done.wait(_GRACE)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _read_certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None


def _s3_config(address: ObjectAddress) -> Any:
    """See obstore's S3Config. The check sum of a put is what Amazon demands of buckets with object lock, and protects all others."""
    config: dict[str, Any] = {"checksum_algorithm": "SHA256", "disable_bulk_delete": True, "conditional_put": "etag"}
    region = address.options.get("region") or profile_region(address)
    if region is not None:
        config["region"] = region
    config["virtual_hosted_style_request"] = not address.path_style
    if (endpoint := address.endpoint) is not None:
        scheme, _, host = endpoint.partition("://")
        config["endpoint"] = endpoint if address.path_style else f"{scheme}://{address.bucket}.{host}"
    return config


def _gs_config(address: ObjectAddress) -> Any:
    config: dict[str, Any] = {}
    if "credentials_file" in address.options:
        config["application_credentials"] = address.options["credentials_file"]
    if (endpoint := address.endpoint) is not None:
        config["base_url"] = endpoint
    return config


def _az_config(address: ObjectAddress) -> Any:
    config: dict[str, Any] = {}
    if "account" in address.options:
        config["account_name"] = address.options["account"]
    if (endpoint := address.endpoint) is not None:
        config["endpoint"] = endpoint
    return config
