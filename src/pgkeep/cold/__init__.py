"""Cold storage: what moves to another storage class and when, and what it takes to have it back."""

from __future__ import annotations

from pgkeep.cold.job import ColdReport, ColdRequest, run_cold
from pgkeep.cold.needs import ColdBackup, refuse_cold
from pgkeep.cold.thaw import ThawReport, ThawRequest, run_thaw

__all__ = [
    "ColdBackup",
    "ColdReport",
    "ColdRequest",
    "ThawReport",
    "ThawRequest",
    "refuse_cold",
    "run_cold",
    "run_thaw",
]
