"""The configuration file: what it may say, who overrides it, and how mistakes are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgkeep.config import Config, find_config, load_config, parse_config, search_paths
from pgkeep.config_writer import CONFIG_HEADING, format_cluster, format_repository
from pgkeep.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[repository.main]
url = "file:///backups"
key = "file:/etc/pgkeep/main.key"

[cluster.auth]
dsn = "host=db user=replication_user"
repositories = ["main"]
backup = { jobs = 2, rate = "50MB", label = "nightly" }
"""


def parse(text: str, path: Path) -> Config:
    return parse_config(text, path / "pgkeep.toml")


def mistakes_in(text: str, path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, path)
    return str(caught.value)


def test_a_good_file_becomes_settings(tmp_path: Path) -> None:
    config = parse(GOOD, tmp_path)
    cluster = config.cluster()
    assert (cluster.name, cluster.repositories) == ("auth", ("main",))
    assert (cluster.backup.jobs, cluster.backup.rate, cluster.backup.mode) == (2, 50 << 20, "auto")
    assert [str(repository.key) for repository in config.repositories_of(cluster)] == ["file:/etc/pgkeep/main.key"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("dsn =", "dns ="), "[cluster.auth] dns is not a setting (nearest: dsn;"),
        (("jobs", "jbos"), "[cluster.auth] backup.jbos is not a setting (nearest: jobs;"),
        (("[repository.", "[repositories."), "'repositories' is not a setting (nearest: repository;"),
        (('["main"]', '["mian"]'), "[cluster.auth] repositories names 'mian', which is not there (nearest: main;"),
        (("key = ", "# key ="), "[repository.main] key is missing"),
        (("file:/etc", "vault:/etc"), 'is none of "file:/path"'),
        (("file:///backups", "ftp://backups"), "a kind that this version does not know"),
        (("file:///backups", "file://backups"), "needs an absolute path"),
        (("jobs = 2", "jobs = 0"), "[cluster.auth] backup.jobs: input should be greater than or equal to 1"),
        (("jobs = 2", 'jobs = "2"'), "[cluster.auth] backup.jobs: input should be a valid integer"),
        (("50MB", "fast"), "not a size: 'fast'"),
        (("50MB", "1kB"), "[cluster.auth] backup.rate: input should be greater than or equal to 32768"),
        (("host=db", "hots=db"), "because of the option 'hots'"),
        (("[cluster.auth]", '[cluster."a b"]'), "is not a name"),
        (("[cluster.auth]", "[cluster]"), "[cluster] dsn is not a table: write [cluster.NAME]"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: tuple[str, str], complaint: str, tmp_path: Path) -> None:
    assert complaint in mistakes_in(GOOD.replace(*change), tmp_path)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = mistakes_in(GOOD.replace("url =", "ulr =").replace("dsn =", "dns ="), tmp_path)
    assert all(
        word in text for word in (str(tmp_path / "pgkeep.toml"), "ulr", "url is missing", "dns", "dsn is missing")
    )


def test_a_password_in_a_broken_dsn_is_not_repeated(tmp_path: Path) -> None:
    assert "geheim" not in mistakes_in(GOOD.replace("host=db", "host=db password=my geheim"), tmp_path)


def test_broken_toml_is_told_with_its_line(tmp_path: Path) -> None:
    assert "line 2" in mistakes_in("\n[cluster\n", tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("file:///backups", "../store").replace("file:/etc/pgkeep/main.key", "file:main.key")
    repository = parse(text, tmp_path).repository()
    assert repository.url == f"file://{tmp_path.parent}/store"
    assert repository.key.path == tmp_path / "main.key"


def test_the_only_repository_need_not_be_named(tmp_path: Path) -> None:
    text = GOOD.replace('repositories = ["main"]', "")
    assert parse(text, tmp_path).cluster().repositories == ("main",)


def test_of_several_clusters_one_must_be_named(tmp_path: Path) -> None:
    config = parse(GOOD + '[cluster.b]\ndsn = "host=b"\n', tmp_path)
    with pytest.raises(ConfigError, match="several clusters") as caught:
        config.cluster()
    assert caught.value.hint == "choose one with --cluster: auth, b"
    assert config.cluster("b").dsn == "host=b"
    with pytest.raises(NotFoundError, match="'c'"):
        config.cluster("c")


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "pgkeep.toml").write_text(GOOD.replace("cluster.auth", "cluster.auth-db"))
    config = load_config(tmp_path / "pgkeep.toml", {"PGKEEP_CLUSTER_AUTH_DB_DSN": "host=other"})
    assert config.cluster("auth-db").dsn == "host=other"


def test_the_environment_can_be_the_whole_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "PGKEEP_CLUSTER_MAIN_DSN": "host=db",
        "PGKEEP_REPOSITORY_MAIN_URL": "/backups",
        "PGKEEP_REPOSITORY_MAIN_KEY": "none",
    }
    config = load_config(None, environment)
    assert config.repositories_of(config.cluster("main"))[0].url == "file:///backups"


def test_a_misspelt_variable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pgkeep.toml").write_text(GOOD)
    with pytest.raises(
        ConfigError, match=r"PGKEEP_CLUSTER_AUTH_DNS is not a setting \(nearest: PGKEEP_CLUSTER_AUTH_DSN"
    ):
        load_config(tmp_path / "pgkeep.toml", {"PGKEEP_CLUSTER_AUTH_DNS": "host=db"})


def test_files_are_searched_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    here, users, system = search_paths(environment)
    assert (here, users) == (tmp_path / "pgkeep.toml", tmp_path / "home/pgkeep/pgkeep.toml")
    assert str(system) == "/etc/pgkeep/pgkeep.toml"
    users.parent.mkdir(parents=True)
    users.write_text(GOOD)
    assert find_config(None, environment) == users
    here.write_text(GOOD)
    assert find_config(None, environment) == here
    assert find_config(None, {**environment, "PGKEEP_CONFIG": "/x/y.toml"}) == users.__class__("/x/y.toml")
    assert find_config(tmp_path / "z.toml", {"PGKEEP_CONFIG": "/x/y.toml"}) == tmp_path / "z.toml"


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_config(tmp_path / "pgkeep.toml", {})


def test_what_the_writer_writes_is_read_back(tmp_path: Path) -> None:
    dsn = "host=db password='a\"b\\\\c' dbname=über"
    text = (
        CONFIG_HEADING
        + format_repository("r-1", "file:///a%20b", "passphrase-file:/x y")
        + format_cluster("c", dsn, ["r-1"])
    )
    config = parse(text, tmp_path)
    assert config.cluster().dsn == dsn
    assert (config.repository().url, str(config.repository().key)) == ("file:///a%20b", "passphrase-file:/x y")


WAL = """
wal = { ship_every = "1min 30s", slot_cap = "none", spool = "spool", policy = "first" }
objectives = { rto = "10min" }
server = { data_directory = "/srv/data", unit = "postgresql" }
time_zone = "Asia/Seoul"

[[cluster.auth.after_restore]]
name = "clean"
sql = "SELECT 1"

[[cluster.auth.after_restore]]
name = "tell"
command = "true"
timeout = "5s"
"""


def test_wal_objectives_server_and_hooks_become_settings(tmp_path: Path) -> None:
    cluster = parse(GOOD + WAL, tmp_path).cluster()
    assert (cluster.wal.ship_every, cluster.wal.slot_cap, cluster.wal.policy) == (90.0, None, "first")
    assert (cluster.slot, cluster.spool) == ("pgkeep_auth", tmp_path / "spool")
    assert (cluster.objectives.rpo, cluster.objectives.rto) == (300.0, 600.0)
    assert (str(cluster.server.data_directory), cluster.server.unit) == ("/srv/data", "postgresql")
    assert [(hook.name, hook.sql, hook.command, hook.timeout) for hook in cluster.after_restore] == [
        ("clean", "SELECT 1", None, 600.0),
        ("tell", None, "true", 5.0),
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("ship_every", "ship_evry"), "[cluster.auth] wal.ship_evry is not a setting (nearest: ship_every;"),
        (('"1min 30s"', '"soon"'), "not a duration: 'soon'"),
        (('"1min 30s"', '"0s"'), "[cluster.auth] wal.ship_every: input should be greater than 0"),
        (("Asia/Seoul", "Asia/Soul"), "'Asia/Soul' is not a time zone of this machine"),
        (('sql = "SELECT 1"', ""), "after_restore.0: needs either sql or command"),
        (('command = "true"', 'comand = "true"'), "after_restore.1.comand is not a setting (nearest: command;"),
        (('"first"', '"some"'), "[cluster.auth] wal.policy: input should be 'all' or 'first'"),
    ],
)
def test_mistakes_in_nested_tables_name_the_nearest_setting(
    change: tuple[str, str], complaint: str, tmp_path: Path
) -> None:
    assert complaint in mistakes_in((GOOD + WAL).replace(*change), tmp_path)


def test_a_slot_is_named_after_the_cluster_in_letters_that_postgresql_takes(tmp_path: Path) -> None:
    assert parse(GOOD.replace("cluster.auth", "cluster.Auth-DB"), tmp_path).cluster().slot == "pgkeep_auth_db"


RULES = '[retention]\nwindow = "14d"\nmonthly = 12\n'


@pytest.mark.parametrize(
    ("own", "window"),
    [("", 14 * 86400.0), ('[repository.main.retention]\nwindow = "30d"\n', 30 * 86400.0)],
    ids=["the default", "its own"],
)
def test_a_repository_has_its_own_rules_or_the_default(own: str, window: float, tmp_path: Path) -> None:
    rules = parse(GOOD + own + RULES, tmp_path).repository().retention
    assert rules is not None
    assert (rules.window, rules.monthly) == (window, 0 if own else 12)


def test_a_repository_may_keep_everything_beside_the_default(tmp_path: Path) -> None:
    text = GOOD.replace("[cluster.auth]", 'retention = "none"\n[cluster.auth]')
    assert parse(text + RULES, tmp_path).repository().retention is None
    assert parse(GOOD, tmp_path).repository().retention is None


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ('[retention]\nwindwo = "14d"\n', "[retention] windwo is not a setting (nearest: window;"),
        ('[retention]\nwindow = "14 of them"\n', "[retention] window: not a duration"),
        ('[retention]\ntime_zone = "Mars/Olympus"\ndaily = 1\n', "is not a time zone of this machine"),
        ('[retention]\ngrace = "1d"\n', "[retention]: names no rule: say what to keep"),
        ('[retention]\nwindow = "200000d"\n', "window is longer than a hundred years"),
        (
            "[repository.main.retention]\ndayly = 3\n",
            "[repository.main] retention.dayly is not a setting (nearest: daily;",
        ),
        ("[repository.main.retention]\nminimum = 0\n", "retention.minimum: input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_in_the_rules_is_named_with_its_place(rules: str, complaint: str, tmp_path: Path) -> None:
    assert complaint in mistakes_in(GOOD + rules, tmp_path)


DRILLS = """
[cluster.auth.drill]
sample_for = "5min"
checks = ["tables", "amcheck"]
settings = { shared_buffers = "1GB" }

[[cluster.auth.drill.assert]]
name = "accounts"
query = "SELECT count(*) FROM account"
expect = ">= 100"

[[cluster.auth.drill.plan]]
name = "monthly"
every = "30d"
scenario = "table-dropped"
"""


def test_drills_have_assertions_and_plans(tmp_path: Path) -> None:
    cluster = parse(GOOD + DRILLS, tmp_path).cluster()
    drill = cluster.drill
    assert (drill.sample_for, drill.checks, drill.settings) == (300.0, ("tables", "amcheck"), {"shared_buffers": "1GB"})
    assert [(each.name, each.expect, each.timeout) for each in drill.assertions] == [("accounts", ">= 100", 300.0)]
    assert [(each.name, each.every, each.scenario) for each in drill.plans] == [("monthly", 2592000.0, "table-dropped")]
    assert type(cluster).model_validate(cluster.model_dump()) == cluster


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("expect =", "expct ="), "[cluster.auth] drill.assert.0.expct is not a setting (nearest: expect;"),
        (("sample_for", "sample_four"), "drill.sample_four is not a setting (nearest: sample_for;"),
        (('"tables", ', '"tabels", '), "drill.checks.0"),
        (('"table-dropped"', '"tables-dropped"'), "drill.plan.0.scenario"),
    ],
)
def test_mistakes_in_the_settings_of_drills_are_told(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    assert complaint in mistakes_in((GOOD + DRILLS).replace(*change), tmp_path)
