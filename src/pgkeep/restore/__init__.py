"""Repository -> PostgreSQL: plan, write, recover."""

from __future__ import annotations

from pgkeep.restore.export import export_tar
from pgkeep.restore.job import RestoreOutcome, RestoreRequest, run_restore
from pgkeep.restore.plan import RestorePlan, make_plan

__all__ = ["RestoreOutcome", "RestorePlan", "RestoreRequest", "export_tar", "make_plan", "run_restore"]
