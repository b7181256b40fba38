"""Deleting the contents that no backup needs any more, beside everything else that goes on."""

from __future__ import annotations

from pgkeep.collection.job import CollectReport, CollectRequest, run_collect

__all__ = ["CollectReport", "CollectRequest", "run_collect"]
