"""What is kept, and for how long: rules, and the run that removes what no rule keeps."""

from __future__ import annotations

from pgkeep.policy.expire import ExpireReport, ExpireRequest, plan_expiry, run_expire
from pgkeep.policy.retention import Rules

__all__ = ["ExpireReport", "ExpireRequest", "Rules", "plan_expiry", "run_expire"]
