"""The hooks of a cluster's configuration, for a restore into a directory of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pgkeep.config import Cluster
from pgkeep.progress import Progress
from pgkeep.restore.hooks import HookContext, run_hooks
from pgkeep.restore.private_server import superuser_dsn
from pgkeep.restore.recover import Recovered

__all__ = ["hooks_of"]


def hooks_of(cluster: Cluster, target: Path, progress: Progress) -> Callable[[Recovered], None] | None:
    """What is to be done on the recovered server in ``target``, None where nothing is; their log is beside it.

    The callable raises HookError at the first that fails.
    """
    if not cluster.after_restore:
        return None

    def run(recovered: Recovered) -> None:
        facts = {
            "cluster": cluster.name,
            "lsn": str(recovered.lsn),
            "timeline": str(recovered.timeline),
            "data_directory": str(target),
        }
        log_file = target.with_name(target.name + ".pgkeep-hooks.log")
        run_hooks(cluster.after_restore, HookContext(superuser_dsn(recovered.dsn, target), log_file, facts), progress)

    return run
