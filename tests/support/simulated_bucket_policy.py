"""A way to an S3 server that simulates the part of a bucket's policy that SeaweedFS does not know.

Amazon can demand that whoever puts an object does so on condition that there is none (Amazon S3 User Guide, "Enforce conditional writes
on Amazon S3 buckets": Deny s3:PutObject where ``Null: {"s3:if-none-match": "true"}``). SeaweedFS 4.48 takes such a policy, and then
denies every put. So here a put without ``If-None-Match: *`` is denied before the server hears of it; what else is denied, SeaweedFS denies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from support.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from support.fault_proxy import Message

__all__ = ["SimulatedBucketPolicy"]

_DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied by the simulated policy.</Message></Error>"


class SimulatedBucketPolicy(FaultProxy):
    """Denies everybody who comes this way to put an object where there is one."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.answer = _deny

    def __enter__(self) -> SimulatedBucketPolicy:
        super().__enter__()
        return self


def _deny(message: Message) -> tuple[int, str] | None:
    parts = urlsplit(message.path)
    names = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    is_put = message.method == "PUT" and not names & {"retention", "policy", "lifecycle"}
    is_multipart = message.method == "POST" and "uploads" in names
    if (is_put or is_multipart) and message.header("if-none-match") != "*":
        return 403, _DENIED
    return None
