"""Undoing overwrites in a bucket that keeps versions: pgkeep creates objects once, so that a later version is somebody else's.

Whoever may write and not delete can put other bytes over an object where no policy forbids it. Its reader finds them damaged; the right
version is still there, and locked. It is laid on top again, by a copy (Amazon S3 API Reference: ListObjectVersions, CopyObject).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pgkeep.errors import RepositoryError
from pgkeep.repository.locks import format_moment
from pgkeep.repository.storage_classes import HOT, StorageClasses
from pgkeep.units import utc_now

__all__ = ["Overwritten", "lay_on_top", "overwritten"]

_KEPT = ("packs/", "clusters/", "keys/", "index/", "pgkeep.json")


@dataclass(frozen=True, slots=True)
class _Version:
    name: str
    id: str
    etag: str
    size: int
    modified: datetime
    storage_class: str
    is_marker: bool


@dataclass(frozen=True, slots=True)
class Overwritten:
    """An object that is not what was first written: ``right`` is that version's id, ``since`` when it was covered by another one."""

    name: str
    right: str
    size: int
    storage_class: str
    since: datetime


def overwritten(classes: StorageClasses, prefix: str = "") -> Iterator[Overwritten]:
    """The objects whose newest version has other bytes than the first since it was last deleted.

    Raises RepositoryError where the store is not S3 or keeps no versions, StoreError.
    """
    if classes.scheme != "s3":
        raise RepositoryError(f"{classes.store.url} is not on S3", hint="see the versions with the service's own tools")
    has_versions = False
    for versions in _by_name(classes, prefix):
        has_versions |= versions[0].id != "null"
        newest = versions[0]
        if newest.is_marker or not newest.name.startswith(_KEPT):
            continue
        since = next((number for number, version in enumerate(versions) if version.is_marker), len(versions))
        first = versions[since - 1]
        if (first.etag, first.size) == (newest.etag, newest.size):
            continue
        covered = next(version for version in reversed(versions[:since]) if version.etag != first.etag)
        yield Overwritten(first.name, first.id, first.size, first.storage_class, covered.modified)
    if not has_versions:
        raise RepositoryError(
            f"{classes.store.url} keeps no versions: what was overwritten is gone",
            hint="bring damaged objects back from another repository: pgkeep copy",
        )


def lay_on_top(classes: StorageClasses, found: Overwritten) -> None:
    """Make the first version the newest again, locked as new objects are. Raises StoreError."""
    headers = {
        "x-amz-copy-source": f"{classes.requests.source}{found.name}?versionId={found.right}",
        "x-amz-metadata-directive": "REPLACE",
    }
    if found.storage_class != HOT["s3"]:
        headers["x-amz-storage-class"] = found.storage_class
    if (lock := classes.store.address.lock) is not None:
        headers["x-amz-object-lock-mode"] = lock[0]
        headers["x-amz-object-lock-retain-until-date"] = format_moment(utc_now() + lock[1])
    classes.requests.send("write", "PUT", found.name, headers=headers)


def _by_name(classes: StorageClasses, prefix: str) -> Iterator[list[_Version]]:
    """All versions of each object, the newest first."""
    group: list[_Version] = []
    for version in _versions(classes, prefix):
        if group and group[0].name != version.name:
            yield group
            group = []
        group.append(version)
    if group:
        yield group


def _versions(classes: StorageClasses, prefix: str) -> Iterator[_Version]:
    root = f"{classes.store.address.prefix}/" if classes.store.address.prefix else ""
    query = {"versions": "", "prefix": root + prefix}
    while True:
        page = ET.fromstring(classes.requests.send("list", "GET", "", query=query).body)  # noqa: S314 - as trusted as all listings
        texts = {child.tag.rpartition("}")[2]: child.text or "" for child in page}
        for child in page:
            kind = child.tag.rpartition("}")[2]
            if kind not in {"Version", "DeleteMarker"}:
                continue
            fields = {field.tag.rpartition("}")[2]: field.text or "" for field in child}
            moment = datetime.fromisoformat(fields["LastModified"])
            yield _Version(
                fields["Key"].removeprefix(root),
                fields["VersionId"],
                fields.get("ETag", ""),
                int(fields.get("Size", 0) or 0),
                moment if moment.tzinfo else moment.replace(tzinfo=UTC),
                fields.get("StorageClass") or HOT["s3"],
                kind == "DeleteMarker",
            )
        if texts.get("IsTruncated") != "true":
            return
        query["key-marker"] = texts.get("NextKeyMarker", "")
        query["version-id-marker"] = texts.get("NextVersionIdMarker", "")
