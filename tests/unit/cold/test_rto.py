"""Rules that would break an objective for recovery are refused before anything moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.cold.job import ColdRequest, check_rules
from pgkeep.cold.prices import CLASSES, TierChange, corrected
from pgkeep.cold.rto import ColdRule, Objective, conflicts

HOUR, DAY = 3600.0, 86400.0
URL = "s3://backups/auth"
S3 = CLASSES["s3"]


def test_a_rule_that_lets_go_what_must_be_back_sooner_is_refused_in_one_sentence() -> None:
    request = ColdRequest([ColdRule(30 * DAY, "DEEP_ARCHIVE")], [Objective("auth", HOUR, 90 * DAY)])

    (error,) = check_rules(URL, "s3", request)

    assert str(error) == (
        "the cold rules break an objective: cluster auth must be back within 1 h 0 min for 90 d 0 h, and what is older than"
        " 30 d 0 h would first be thawed from DEEP_ARCHIVE for 12 h 0 min at the least"
    )
    assert error.hint == "raise after, take a class that is read at once, or change objectives.rto"


@pytest.mark.parametrize(
    ("rule", "objective"),
    [
        (ColdRule(90 * DAY, "DEEP_ARCHIVE"), Objective("auth", HOUR, 90 * DAY)),
        (ColdRule(1 * DAY, "GLACIER_IR"), Objective("auth", HOUR, 90 * DAY)),
        (ColdRule(1 * DAY, "DEEP_ARCHIVE"), Objective("auth", 12 * HOUR, 90 * DAY)),
        (ColdRule(1 * DAY, "GLACIER"), Objective("auth", HOUR, 90 * DAY)),
        (ColdRule(0, "DEEP_ARCHIVE"), Objective("auth", HOUR, 0)),
    ],
    ids=["older than the span", "read at once", "time enough", "a tier is quick enough", "the newest backup alone"],
)
def test_rules_that_hold_every_objective_pass(rule: ColdRule, objective: Objective) -> None:
    assert check_rules(URL, "s3", ColdRequest([rule], [objective])) == []


def test_the_users_own_hours_decide() -> None:
    """Who cannot buy the quick tier says so, and is told what it breaks."""
    slow = {**S3, "GLACIER": corrected(S3["GLACIER"], {"Expedited": TierChange(hours=5)})}
    request = ColdRequest([ColdRule(DAY, "GLACIER")], [Objective("auth", HOUR, 90 * DAY)], slow)

    assert "thawed from GLACIER for 5 h 0 min" in str(check_rules(URL, "s3", request)[0])


def test_each_cluster_and_each_rule_is_named() -> None:
    rules = [ColdRule(DAY, "DEEP_ARCHIVE"), ColdRule(2 * DAY, "GLACIER"), ColdRule(9 * DAY, "GLACIER")]

    found = conflicts(rules, S3, [Objective("auth", 60, 7 * DAY), Objective("shop", HOUR, 7 * DAY)])

    assert [("auth" in text, "shop" in text, "DEEP_ARCHIVE" in text) for text in found] == [
        (True, False, True),
        (True, False, False),
        (False, True, True),
    ]


@given(
    after=st.floats(0, 1000 * DAY),
    storage_class=st.sampled_from(sorted(S3)),
    rto=st.floats(1, 100 * HOUR),
    span=st.floats(0, 1000 * DAY),
)
def test_no_rule_passes_that_leaves_a_moment_of_the_span_out_of_reach(
    after: float, storage_class: str, rto: float, span: float
) -> None:
    passes = not conflicts([ColdRule(after, storage_class)], S3, [Objective("auth", rto, span)])

    slow = S3[storage_class].quickest_hours * HOUR > rto
    assert passes is not (slow and after < span)


def test_classes_that_the_store_has_not_are_refused() -> None:
    request = ColdRequest([ColdRule(DAY, "Archive"), ColdRule(2 * DAY, "GLACIER")])

    unknown, untaken = check_rules(URL, "s3", request, ["GLACIER_IR"])

    assert str(unknown) == "'Archive' is no storage class that s3://backups/auth could move to"
    assert str(untaken) == "s3://backups/auth was found not to take the storage class GLACIER"
    assert untaken.hint == "it takes GLACIER_IR"


def test_a_directory_has_no_storage_classes() -> None:
    (error,) = check_rules("file:///srv/backups", None, ColdRequest([ColdRule(DAY, "GLACIER")]))

    assert str(error) == "file:///srv/backups is a directory and has no storage classes"
