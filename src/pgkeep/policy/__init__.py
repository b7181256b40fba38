"""What is wanted of backups, held against what is: which stay and for how long, and the run that removes the others; objectives,
predictions, and when the next backup is due.
"""

from __future__ import annotations

from pgkeep.policy.expire import ExpireReport, ExpireRequest, plan_expiry, run_expire
from pgkeep.policy.retention import Rules

__all__ = ["ExpireReport", "ExpireRequest", "Rules", "plan_expiry", "run_expire"]
