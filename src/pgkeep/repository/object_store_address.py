"""Addresses of object stores: what stands where, and how it is reached; never a secret.

.. code-block:: text

    s3://BUCKET/PREFIX?OPTIONS    Amazon S3, and what speaks its protocol
    gs://BUCKET/PREFIX?OPTIONS    Google Cloud Storage
    az://CONTAINER/PREFIX?OPTIONS Azure Blob Storage

The options are those of `OPTIONS`, as in the query of a URL. In a configuration file they are keys beside ``url``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pgkeep.errors import ConfigError
from pgkeep.units import parse_duration

__all__ = ["OPTIONS", "SCHEMES", "ObjectAddress", "is_object_address"]

SCHEMES = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}

_PATHS, _SWITCHES = {"ca_file", "credentials_file"}, {"path_style", "allow_http"}

OPTIONS: Mapping[str, str] = {
    "endpoint": "the address of a service other than the cloud's own: https://minio.example:9000",
    "region": "the bucket's region",
    "path_style": "true: BUCKET is in the path, not in the host name",
    "ca_file": "the absolute path of certificates (PEM) to trust beside the system's",
    "profile": "the profile of the shared credentials file",
    "credentials_file": "the absolute path of a file with credentials",
    "account": "the storage account (Azure)",
    "storage_class": "the storage class of packs with data",
    "allow_http": "true: an endpoint without TLS may be elsewhere than on this machine",
    "retry_for": "the longest that an operation is tried again: 5min",
    "lock": "compliance or governance: objects are locked as they are written (S3)",
    "lock_for": "how long: 14d",
}
"""What an address may say beside the place."""

_ONLY_S3 = {"region", "path_style", "profile", "lock", "lock_for"}

_LOCKS = {"compliance", "governance"}

# Amazon S3 User Guide, "General purpose bucket naming rules"; Google's may have underscores, and Azure's are within both
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", re.ASCII)
_PREFIX = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?", re.ASCII)


def is_object_address(text: str) -> bool:
    """Whether the text begins as an address of an object store."""
    return text.partition("://")[0] in SCHEMES and "://" in text


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """A bucket (Azure: a container), a prefix in it without slashes around, and options."""

    scheme: str
    bucket: str
    prefix: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, more: Mapping[str, str] | None = None) -> ObjectAddress:
        """Read an address, with options from elsewhere.

        Raises ConfigError, without repeating the query: someone may have put a secret into it.
        """
        parts = urlsplit(text)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        example = f"write it like {parts.scheme}://bucket/prefix"
        if "@" in parts.netloc:
            raise ConfigError(
                f"{shown} is written with a user or a secret before the bucket",
                hint="name a profile or a credentials_file, or set the environment's variables of the cloud",
            )
        if parts.scheme not in SCHEMES or parts.fragment or _BUCKET.fullmatch(parts.netloc) is None:
            raise ConfigError(f"{shown} names no bucket", hint=example)
        prefix = parts.path.strip("/")
        if _PREFIX.fullmatch(prefix) is None:
            raise ConfigError(f"the prefix in {shown} is not one: use letters, digits, - _ . and /", hint=example)
        given = parse_qsl(parts.query, keep_blank_values=True)
        options = dict(given)
        twice = sorted((options.keys() & (more or {}).keys()) | {name for name, _ in given if given_twice(name, given)})
        if twice:
            raise ConfigError(f"{shown} is given {twice[0]} twice", hint="leave one of them out")
        options.update(more or {})
        for name, value in options.items():
            _check_option(parts.scheme, shown, name, value)
        address = cls(parts.scheme, parts.netloc, prefix, dict(sorted(options.items())))
        address.check_transport(shown)
        if ("lock" in options) != ("lock_for" in options):
            raise ConfigError(f"{shown} needs lock and lock_for together", hint='lock = "compliance", lock_for = "14d"')
        return address

    def __str__(self) -> str:
        place = f"{self.place}/" if not self.prefix and self.options else self.place
        return f"{place}?{urlencode(self.options, quote_via=quote, safe=':/')}" if self.options else place

    @property
    def place(self) -> str:
        """Where it is, without the options."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def endpoint(self) -> str | None:
        """The service's address, from the options or the environment; None for the cloud's own."""
        if (given := self.options.get("endpoint")) is not None:
            return given.rstrip("/")
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if self.scheme == "s3" else ()
        found = next((value for name in names if (value := os.environ.get(name))), None)
        return found.rstrip("/") if found is not None else None

    @property
    def path_style(self) -> bool:
        """Whether the bucket goes into the path: with an endpoint of one's own, and where its name has a dot."""
        given = self.options.get("path_style")
        return given == "true" if given is not None else self.endpoint is not None or "." in self.bucket

    @property
    def is_plain(self) -> bool:
        """Whether it is reached without TLS."""
        return (self.endpoint or "").startswith("http://")

    @property
    def lists_in_order(self) -> bool:
        """Whether listings are known to come sorted by name: in the clouds' own services, directory buckets apart.

        Amazon S3 API Reference, ListObjectsV2; JSON API of Google Cloud Storage, Objects: list; List Blobs of Azure.
        """
        return self.endpoint is None and not self.bucket.endswith("--x-s3")

    @property
    def lock(self) -> tuple[str, timedelta] | None:
        """The mode, as S3 spells it, and how long new objects are locked; None where they are not."""
        mode, text = self.options.get("lock"), self.options.get("lock_for")
        return (mode.upper(), parse_duration(text)) if mode is not None and text is not None else None

    @property
    def retry_for(self) -> float | None:
        """Seconds, or None where it is not said."""
        text = self.options.get("retry_for")
        return parse_duration(text).total_seconds() if text is not None else None

    def check_transport(self, shown: str) -> None:
        """Without TLS only on this machine, unless it is allowed. Raises ConfigError."""
        if self.is_plain and self.options.get("allow_http") != "true" and not _is_loopback(self.endpoint or ""):
            raise ConfigError(
                f"{shown} would be reached without TLS, at {self.endpoint}",
                hint="use https:// (with ca_file where its certificate is your own), or say allow_http = true",
            )


def given_twice(name: str, pairs: list[tuple[str, str]]) -> bool:
    """Whether several pairs have the name."""
    return sum(other == name for other, _ in pairs) > 1


def _check_option(scheme: str, shown: str, name: str, value: str) -> None:
    known = {option for option in OPTIONS if not (option in _ONLY_S3 and scheme != "s3")} - (
        {"account"} if scheme != "az" else {"credentials_file"}
    )
    if name not in known:
        raise ConfigError(f"{shown} has no option {name!r}", hint=f"it takes: {', '.join(sorted(known))}")
    if name in _SWITCHES and value not in {"true", "false"}:
        raise ConfigError(f"the {name} of {shown} is neither true nor false")
    if name in _PATHS and not value.startswith("/"):
        raise ConfigError(f"the {name} of {shown} is not an absolute path: {value!r}")
    if name == "endpoint":
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or "@" in parts.netloc:
            raise ConfigError(f"the endpoint of {shown} is not an address", hint="write it like https://host:port")
    if name == "lock" and value not in _LOCKS:
        raise ConfigError(f"the lock of {shown} is neither compliance nor governance: {value!r}")
    if name in {"retry_for", "lock_for"}:
        try:
            parse_duration(value)
        except ValueError as error:
            raise ConfigError(f"the {name} of {shown}: {error}") from None
    if not value.isprintable() or not value:
        raise ConfigError(f"the {name} of {shown} is empty, or has characters that nothing can print")


def _is_loopback(endpoint: str) -> bool:
    import ipaddress

    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
