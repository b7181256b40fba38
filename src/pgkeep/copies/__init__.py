"""Between repositories: backups and WAL copied from one to another, and read from whichever has them whole."""

from __future__ import annotations

from pgkeep.copies.job import CopiedBackup, CopyPlan, CopyReport, CopyRequest, plan_copy, run_copy
from pgkeep.copies.mend import MendReport, run_mend

__all__ = [
    "CopiedBackup",
    "CopyPlan",
    "CopyReport",
    "CopyRequest",
    "MendReport",
    "plan_copy",
    "run_copy",
    "run_mend",
]
