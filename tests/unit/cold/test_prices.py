"""What thawing takes in hours and money, by the table and by what the user knows better."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.cold.from_settings import class_facts, cold_request
from pgkeep.cold.prices import CLASSES, Tier, TierChange, corrected, price
from pgkeep.config import Config, load_config
from pgkeep.errors import ConfigError
from pgkeep.repository.storage_classes import ARCHIVES

GIB = 1 << 30


def config(directory: Path, cold: str, url: str = "s3://backups/auth", more: str = "") -> Config:
    """One repository, ``offsite``, with these lines in its table for cold storage."""
    path = directory / "pgkeep.toml"
    path.write_text(
        f'[repository.offsite]\nurl = "{url}"\nkey = "none"\n[repository.offsite.cold]\n{cold}\n'
        f'[cluster.auth]\ndsn = "host=/tmp"\nrepositories = ["offsite"]\n{more}\n'
    )
    return load_config(path)


RULE = 'after = "30d"\nclass = "GLACIER"\n'


@pytest.mark.parametrize("scheme", CLASSES)
def test_archives_alone_have_tiers_and_the_first_one_is_quickest(scheme: str) -> None:
    for name, facts in CLASSES[scheme].items():
        assert facts.name == name
        assert bool(facts.tiers) is (name in ARCHIVES)
        hours = [tier.hours for tier in facts.tiers]
        assert hours == sorted(hours)
        assert facts.quickest_hours == min(hours, default=0)
        costs = [price(tier, 1000, GIB) for tier in facts.tiers]
        assert costs == sorted(costs, reverse=True), "what is quicker costs more"


@pytest.mark.parametrize(
    ("name", "days"), [("STANDARD_IA", 30), ("GLACIER_IR", 90), ("GLACIER", 90), ("DEEP_ARCHIVE", 180)]
)
def test_least_times_of_amazons_classes(name: str, days: int) -> None:
    assert CLASSES["s3"][name].minimum_days == days


def test_a_price_is_of_bytes_and_of_objects() -> None:
    tier = Tier("Standard", 5, per_gib=0.01, per_1000=0.05)

    assert price(tier, 0, 0) == 0
    assert price(tier, 2000, 100 * GIB) == pytest.approx(100 * 0.01 + 2 * 0.05)


def test_the_user_changes_what_he_names_and_nothing_else() -> None:
    facts = corrected(CLASSES["s3"]["GLACIER"], {"standard": TierChange(per_gib=0.5), "BULK": TierChange(hours=20)})

    before = {tier.name: tier for tier in CLASSES["s3"]["GLACIER"].tiers}
    after = {tier.name: tier for tier in facts.tiers}
    assert after["Standard"] == Tier("Standard", 5, 0.5, 0.05)
    assert after["Bulk"] == Tier("Bulk", 20, before["Bulk"].per_gib, before["Bulk"].per_1000)
    assert after["Expedited"] == before["Expedited"]


def test_the_configuration_corrects_the_table(tmp_path: Path) -> None:
    found = config(tmp_path, RULE + "tiers.GLACIER.Bulk = { hours = 9, per_gib = 0.004 }")

    facts = class_facts(found.repository("offsite"))

    assert facts is not None
    assert facts["GLACIER"].tier("bulk") == Tier("Bulk", 9, 0.004, 0)
    assert facts["DEEP_ARCHIVE"] == CLASSES["s3"]["DEEP_ARCHIVE"]


@pytest.mark.parametrize(
    ("tiers", "message", "hint"),
    [
        ("tiers.GLACIER.Quick = { hours = 1 }", "GLACIER has no tier Quick", "Expedited, Standard, Bulk"),
        ("tiers.STANDARD_IA.Bulk = { hours = 1 }", "STANDARD_IA has no tier Bulk", "none: it is read at once"),
        ("tiers.FREEZER.Bulk = { hours = 1 }", "FREEZER is no storage class", "DEEP_ARCHIVE"),
    ],
)
def test_a_tier_that_is_none_is_refused_by_name(tmp_path: Path, tiers: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        class_facts(config(tmp_path, RULE + tiers).repository("offsite"))

    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "cold",
    [
        'after = "30d"',
        'class = "GLACIER"',
        RULE + 'rules = [{ after = "1y", class = "DEEP_ARCHIVE" }]',
        'rules = [{ after = "30d", class = "GLACIER" }, { after = "30d", class = "DEEP_ARCHIVE" }]',
        RULE + "tiers.GLACIER.Bulk = { hours = -1 }",
    ],
)
def test_rules_that_say_too_little_or_too_much_are_refused(tmp_path: Path, cold: str) -> None:
    with pytest.raises(ConfigError, match="cold"):
        config(tmp_path, cold)


def test_a_directory_has_no_classes(tmp_path: Path) -> None:
    assert class_facts(config(tmp_path, RULE, f"file://{tmp_path}/repository").repository("offsite")) is None


def test_rules_and_objectives_come_from_the_configuration(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        'rules = [{ after = "30d", class = "GLACIER_IR" }, { after = "180d", class = "DEEP_ARCHIVE" }]',
        more='objectives = { rto = "1h", rto_span = "7d" }',
    )

    request = cold_request(found, found.repository("offsite"))

    assert request is not None
    assert [(rule.after, rule.storage_class) for rule in request.rules] == [
        (30 * 86400, "GLACIER_IR"),
        (180 * 86400, "DEEP_ARCHIVE"),
    ]
    (objective,) = request.objectives
    assert (objective.cluster, objective.rto, objective.span) == ("auth", 3600, 7 * 86400)
