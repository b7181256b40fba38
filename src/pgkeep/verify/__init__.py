"""Finding damage before it is needed: stored bytes (scrub) and whole backups (content)."""

from __future__ import annotations

from pgkeep.verify.job import VerifyRequest, run_verify
from pgkeep.verify.memory import VerifyMemory
from pgkeep.verify.report import Damage, VerifyReport

__all__ = ["Damage", "VerifyMemory", "VerifyReport", "VerifyRequest", "run_verify"]
