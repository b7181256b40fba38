"""What an object store's answer means: is it final, or worth another try, and what mends it.

obstore raises one exception with everything in its text: the status and the body of the answer, or how the connection failed.
Codes: Amazon S3 API Reference, "Error responses"; XML API of Google Cloud Storage, "HTTP status and error codes"; Azure Storage,
"Blob service error codes".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from pgkeep.repository.object_store_address import ObjectAddress

__all__ = ["Failure", "Kind", "explain", "read_failure"]


class Kind(Enum):
    """What is to be done about a failure."""

    MISSING = "there is no such object"
    EXISTS = "there is such an object already"
    RANGE = "the object ends before the range begins"
    ARCHIVED = "the object must be brought back from an archive first"
    TRANSIENT = "it may work in a moment"
    FINAL = "it will not work before somebody changes something"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure, read: ``status`` and ``code`` of the answer where there was one, ``reason`` in a few words."""

    kind: Kind
    status: int | None
    code: str
    reason: str
    text: str


_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([A-Za-z]+)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*(.*?)\s*</Message>|\"message\": *\"([^\"]*)\"", re.DOTALL)
_CERTIFICATE = re.compile(r"InvalidCertificate\(|invalid peer certificate|certificate verify failed", re.IGNORECASE)
_PROVIDER = re.compile(r"credential provider: (?:\w+Error: )?(.*)")
"""How obstore names what it calls for credentials, and passes its error on."""
_METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal", "fd00:ec2::254")

_AGAIN = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
"""Codes that come with a 4xx and are worth another try: the bytes were damaged or lost on their way, or others were quicker."""

_AGAIN_STATUS = {408, 425, 429, 500, 502, 503, 504, 507, 509, 529}

_PERMISSIONS = {"AccessDenied", "AllAccessDisabled", "AuthorizationPermissionMismatch", "AuthorizationFailure"}
_CREDENTIALS = {
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_BUCKETS = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
_REGIONS = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_ARCHIVED = {"InvalidObjectState", "BlobArchived"}
_CLOCKS = {"RequestTimeTooSkewed", "RequestExpired"}


def read_failure(error: BaseException) -> Failure:
    """Understand an exception of obstore."""
    whole = str(error)
    text = whole.partition("\n\nDebug source:")[0]
    if _no_credentials(whole):
        # an answer about credentials is none of the store
        return Failure(Kind.FINAL, None, "", _connection(whole), whole)
    status = int(found[1]) if (found := _STATUS.search(text)) else None
    code = found[1] if (found := _CODE.search(text)) else ""
    name = type(error).__name__
    reason = (
        (found[1] or found[2] if (found := _MESSAGE.search(text)) else "")
        or code
        or _connection(whole)
        or f"status {status}"
    )
    return Failure(_kind(error, name, status, code, whole), status, code, " ".join(reason.split()), whole)


def _kind(error: BaseException, name: str, status: int | None, code: str, whole: str) -> Kind:
    if code in _AGAIN:
        return Kind.TRANSIENT
    if code in _ARCHIVED:
        return Kind.ARCHIVED
    if isinstance(error, FileNotFoundError) and code not in _BUCKETS:
        return Kind.MISSING
    if isinstance(error, ConnectionError):
        return Kind.TRANSIENT
    if isinstance(error, FileExistsError) or name in {"AlreadyExistsError", "PreconditionError"}:
        return Kind.EXISTS
    if status == 416:
        return Kind.RANGE
    if status is not None:
        return Kind.TRANSIENT if status in _AGAIN_STATUS else Kind.FINAL
    if _CERTIFICATE.search(whole) or name != "GenericError" or "without LOCATION" in whole:
        return Kind.FINAL
    # no whole answer came: refused, reset, timed out, cut off
    return Kind.TRANSIENT


def _no_credentials(whole: str) -> bool:
    return (
        _PROVIDER.search(whole) is not None
        or any(place in whole for place in _METADATA_SERVICES)
        or "MissingAccountKey" in whole
    )


def _connection(whole: str) -> str:
    """How it failed where there was no answer, in the words of the system."""
    if _CERTIFICATE.search(whole):
        return "its certificate is not trusted"
    if (found := _PROVIDER.search(whole)) is not None:
        return f"no credentials were found: {found[1]}"
    if _no_credentials(whole):
        return "no credentials were found"
    for words, meaning in (
        ("without LOCATION", "the bucket is in another region"),
        ("InvalidMessage", "the other side does not speak TLS"),
        ("ConnectionRefused", "the connection was refused"),
        ("dns error", "the host name is not known"),
        ("TimedOut", "it took too long"),
        ("operation timed out", "it took too long"),
        ("ConnectionReset", "the connection was reset"),
        ("BrokenPipe", "the connection was reset"),
        ("IncompleteMessage", "the connection broke off"),
        ("UnexpectedEof", "the answer was cut off"),
        ("error decoding response body", "the answer was cut off"),
    ):
        if words in whole:
            return meaning
    return " ".join(whole.partition("\n")[0].rpartition(" - ")[2].split())[:200]


def explain(failure: Failure, address: ObjectAddress, *, writes: bool) -> tuple[str, str | None]:
    """What went wrong, for the end of a sentence, and what mends it."""
    code, where = failure.code, address.endpoint or "the cloud"
    if code in _BUCKETS:
        kind = "container" if address.scheme == "az" else "bucket"
        hint = f"create the {kind}, or mend the address; pgkeep creates none itself"
        return f"there is no {kind} {address.bucket!r} at {where}", hint
    if code in _CLOCKS:
        return (
            f"this machine's clock and the store's are too far apart ({code})",
            "run an NTP client on this machine: date -u",
        )
    if code in _REGIONS or "without LOCATION" in failure.text:
        found = re.search(r"<Region>\s*([\w-]+)\s*</Region>|expecting '([\w-]+)'", failure.text)
        region = "…" if found is None else found[1] or found[2]
        hint = f'set region = "{region}", the one that the bucket was made in'
        return f"the bucket {address.bucket!r} is in another region", hint
    if code in _CREDENTIALS or failure.status == 401:
        return f"the credentials are not accepted: {failure.reason}", _credentials_hint(address)
    if code in _ARCHIVED:
        return "it lies in an archive and must be thawed first", "see what thawing it takes: pgkeep thaw --help"
    if code in _PERMISSIONS or failure.status == 403:
        return f"access denied{f' ({code})' if code else ''}", _permissions_hint(address, writes=writes)
    if _CERTIFICATE.search(failure.text):
        return failure.reason, 'name your own authority\'s certificate with ca_file = "/path/ca.pem"'
    if _no_credentials(failure.text):
        return failure.reason, _credentials_hint(address)
    if failure.status is None:
        if address.endpoint is None:
            return failure.reason, "can the cloud be reached from here? HTTPS_PROXY names a proxy"
        return failure.reason, f"is {where} right, and can it be reached from here? (curl -v {where})"
    return f"{failure.reason} (status {failure.status})", None


def _credentials_hint(address: ObjectAddress) -> str:
    if address.scheme == "s3":
        return (
            'give it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws/credentials (profile = "…"),'
            " or a role of the machine"
        )
    if address.scheme == "gs":
        return (
            'give it GOOGLE_APPLICATION_CREDENTIALS, credentials_file = "/path/key.json", or an account of the machine'
        )
    return "give it AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, AZURE_CLIENT_ID and its kin, or an identity of the machine"


def _permissions_hint(address: ObjectAddress, *, writes: bool) -> str:
    if address.scheme == "s3":
        rights = "s3:GetObject, s3:ListBucket" + (
            " and s3:PutObject (leases and expiry: s3:DeleteObject)" if writes else ""
        )
        return f"allow these credentials {rights} on {address.bucket}/{address.prefix}"
    role = {"gs": "Storage Object User", "az": "Storage Blob Data Contributor"}[address.scheme]
    return f"give these credentials the role {role} on {address.bucket}"
