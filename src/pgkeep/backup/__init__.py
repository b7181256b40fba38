"""PostgreSQL -> repository: where pages come from, and how they become a backup."""

from __future__ import annotations

from pgkeep.backup.everywhere import Stored, run_backup_everywhere
from pgkeep.backup.job import BackupRequest, run_backup

__all__ = ["BackupRequest", "Stored", "run_backup", "run_backup_everywhere"]
