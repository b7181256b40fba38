"""Settings: one TOML file and the environment.

The file is the first of ``--config``, ``$PGKEEP_CONFIG``, ``./pgkeep.toml``, ``~/.config/pgkeep/pgkeep.toml`` and
``/etc/pgkeep/pgkeep.toml``. ``PGKEEP_CLUSTER_<NAME>_DSN`` and ``PGKEEP_REPOSITORY_<NAME>_URL`` / ``_KEY`` override it, and
may stand for it. ``docs/reference/configuration.md`` is the same for users.
"""

from pgkeep.config.drill_settings import DrillAssertion, DrillPlan, DrillScenario, DrillSettings
from pgkeep.config.loading import (
    NAME_PATTERN,
    SYSTEM_CONFIG,
    Config,
    find_config,
    load_config,
    parse_config,
    search_paths,
    user_config_path,
)
from pgkeep.config.repository_settings import ColdSettings, RepositorySettings, RetentionSettings
from pgkeep.config.settings import BackupSettings, Cluster, Objectives, RestoreHook, ServerControl, WalSettings
from pgkeep.config.values import KeyReference, state_directory

__all__ = [
    "NAME_PATTERN",
    "SYSTEM_CONFIG",
    "BackupSettings",
    "Cluster",
    "ColdSettings",
    "Config",
    "DrillAssertion",
    "DrillPlan",
    "DrillScenario",
    "DrillSettings",
    "KeyReference",
    "Objectives",
    "RepositorySettings",
    "RestoreHook",
    "RetentionSettings",
    "ServerControl",
    "WalSettings",
    "find_config",
    "load_config",
    "parse_config",
    "search_paths",
    "state_directory",
    "user_config_path",
]
