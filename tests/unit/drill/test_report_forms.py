"""Drill reports in their forms: what stands where, what is escaped, and that any record gives a whole file."""

from __future__ import annotations

import json
import re
import string
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pgkeep.drill.record import Check, DrillRecord, Phase, Rto, record_json
from pgkeep.drill.report import FORMATS, LANGUAGES, Format, Language, render
from pgkeep.drill.report.markdown import escape_markdown
from support.any_drill import any_record
from support.drill_records import ZONE, crowded_record, earlier_records, failed_record, passed_record
from support.markup import read_html

FETCHING = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source"}


def shown(record: DrillRecord, form: Format, language: Language = "en") -> str:
    return render(record, form, earlier=earlier_records(record), language=language, zone=ZONE)


def check_html(text: str) -> None:
    page = read_html(text)
    assert page.names() & FETCHING == set()
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in {"src", "href", "srcset"}}, tag
    assert "url(" not in text
    assert "@import" not in text


def check_markdown(text: str) -> None:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert {token.type for token in (*tokens, *inline)} & {"html_block", "html_inline", "image", "link_open"} == set()
    assert text.count("\n```") % 2 == 0


def check_xml(text: str) -> None:
    suite = ET.fromstring(text.encode()).find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert cases
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == sum(case.find(tag) is not None for case in cases)
    assert int(suite.attrib["tests"]) == len(cases)


CHECKS: dict[Format, Callable[[str], object]] = {
    "html": check_html,
    "md": check_markdown,
    "json": json.loads,
    "junit": check_xml,
}


@settings(max_examples=60)
@given(record=any_record(), earlier=st.lists(any_record(), max_size=2), language=st.sampled_from(LANGUAGES))
def test_any_record_gives_a_whole_file_in_every_form(
    record: DrillRecord, earlier: list[DrillRecord], language: Language
) -> None:
    for form in FORMATS:
        text = render(record, form, earlier=earlier, language=language, zone=ZONE)
        CHECKS[form](text)
        assert text.endswith("\n")


def wordless(value: Any) -> Any:
    """The same record with digits for all that a person or the drill wrote in words."""
    kept = {"id", "state", "outcome", "kind", "how", "mode", "backup_kind"}
    if isinstance(value, list):
        return [wordless(item) for item in value]
    if not isinstance(value, msgspec.Struct):
        return "0/1" if isinstance(value, str) else value
    changes = {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, str):
            is_phase = isinstance(value, Phase)
            changes[name] = field if name in kept or is_phase else "0/1" if field else ""
        else:
            changes[name] = wordless(field)
    return msgspec.structs.replace(value, **changes)


@pytest.mark.parametrize("make", [passed_record, failed_record, crowded_record])
@pytest.mark.parametrize("form", ["html", "md", "junit"])
def test_a_korean_report_has_no_word_of_english(make: Callable[[], DrillRecord], form: Format) -> None:
    record = make()
    text = render(wordless(record), form, earlier=wordless(earlier_records(record)), language="ko", zone=ZONE)
    if form == "html":
        text = "\n".join(read_html(text).text)
    elif form == "junit":
        text = "\n".join(
            part or "" for each in ET.fromstring(text.encode()).iter() for part in (each.text, each.get("message"))
        )
    text = text.replace("pgkeep drill report", "").replace("--format json", "").replace("```text", "")

    assert set(re.findall(r"[A-Za-z]{3,}", text)) <= {
        "JSON", "LSN", "PostgreSQL", "RPO", "RTO", "SQL", "UTC", "WAL", "amcheck", "seed", "GiB", "MiB",
    }  # fmt: skip


def test_the_parts_of_a_passed_report_stand_in_order() -> None:
    page = read_html(shown(passed_record(), "html"))
    sections = [attributes["class"] for tag, attributes in page.tags if tag == "section"]

    assert sections == ["drill", "timings", "checks", "comparison", "history", "notes"]
    assert len(page.of_class("tile")) == 4
    assert page.of_class("badge") == ["strong"]
    assert [attributes["class"] for tag, attributes in page.tags if tag == "svg"] == ["phases", "history", "history"]


def test_a_failed_report_has_the_cause_and_the_remedy_first() -> None:
    text = shown(failed_record(), "html")
    sections = [attributes["class"] for tag, attributes in read_html(text).tags if tag == "section"]

    assert sections == ["checks", "comparison", "drill", "timings", "steps", "history", "notes"]
    places = [text.index(part) for part in ("differs from the live one", "see who writes", 'class="tiles"', "<section")]
    assert places == sorted(places)


def test_failed_checks_come_first_with_their_remedies() -> None:
    lines = shown(failed_record(), "md").splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("| Check"))

    assert "**failed**" in lines[header + 2]
    assert "every session has its account: the query returned 3" in lines[header + 2]
    assert "Remedy: look at the sessions without an account" in lines[header + 2]
    assert "**failed**" in lines[header + 3]
    assert "passed" in lines[header + 4]


def test_values_are_shown_and_never_run() -> None:
    attack = "<script>alert('x')</script>"
    record = msgspec.structs.replace(failed_record(), cause=attack, asked_by=attack, cluster="a&b")

    text = shown(record, "html")

    assert "<script" not in text
    assert read_html(text).text.count(attack) >= 2
    assert "Restore drill of a&b" in read_html(text).text


@given(text=st.text(alphabet=string.ascii_letters + string.punctuation + " 1한", min_size=1, max_size=40))
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    text = text.strip()
    inline = MarkdownIt("commonmark").enable("table").parse(escape_markdown(text))

    assert "".join(child.content for token in inline for child in token.children or []) == text


def test_times_are_in_the_zone_with_utc_beside() -> None:
    text = shown(passed_record(), "html")

    assert "2026-11-23 12:04:05+09:00 (03:04:05 UTC)" in text
    assert "2026-11-23 03:15:00+09:00 (2026-11-22 18:15:00 UTC)" in text


def test_without_a_zone_times_are_in_utc_alone() -> None:
    text = render(passed_record(), "md")

    assert "2026-11-23 03:04:05 UTC" in text
    assert "+00:00" not in text


def test_json_is_the_record_itself() -> None:
    for language in LANGUAGES:
        assert json.loads(shown(failed_record(), "json", language)) == json.loads(
            json.dumps(record_json(failed_record()))
        )


def test_a_passed_drill_is_a_green_suite() -> None:
    suite = ET.fromstring(shown(passed_record(), "junit").encode())[0]

    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"
    assert suite.attrib["skipped"] == "1"
    assert next(case.attrib["name"] for case in suite.iter("testcase")) == "the backup comes back"
    assert {item.attrib["name"]: item.attrib["value"] for item in suite.iter("property")}["rto_seconds"] == "547.900"


def test_a_failed_check_and_a_missed_objective_are_failures_with_their_remedies() -> None:
    suite = ET.fromstring(shown(failed_record(), "junit").encode())[0]
    failures = {case.attrib["name"]: case[0] for case in suite.iter("testcase") if case.find("failure") is not None}

    assert set(failures) == {
        "the backup comes back",
        "assertion: every session has its account",
        "same as the live database",
        "time to restore within its objective",
    }
    assert "Remedy: run pgkeep compare" in (failures["same as the live database"].text or "")
    assert (
        failures["time to restore within its objective"].attrib["message"]
        == "17 min 12 s, over the objective of 15 min"
    )


def test_a_drill_that_ended_before_any_check_is_an_error_in_junit() -> None:
    record = msgspec.structs.replace(failed_record(), checks=[], comparison=None, rto=None, reached=None)
    suite = ET.fromstring(shown(record, "junit").encode())[0]

    assert suite.attrib["errors"] == "1"
    assert suite.find("testcase/error") is not None


def test_the_history_holds_the_last_drills_of_this_cluster_up_to_this_one() -> None:
    record = passed_record()
    other = msgspec.structs.replace(record, id="20261101T000000.000Z-ffffffff", system_identifier=1, cause="of another")
    later = msgspec.structs.replace(
        record, id="20261201T000000.000Z-ffffffff", started=record.started + timedelta(days=8)
    )

    text = render(record, "md", earlier=[later, other, *earlier_records(record, 20)])

    assert "9 of the last 10 drills passed" in text
    assert len(re.findall(r"^\| \**2026-", text, re.MULTILINE)) == 10
    assert "2026-12" not in text
    assert "of another" not in text


def test_the_first_drill_says_so() -> None:
    assert "This is the first drill on record." in render(passed_record(), "md")


def test_an_objective_far_above_the_columns_does_not_flatten_them() -> None:
    record = msgspec.structs.replace(passed_record(), rto=Rto(measured=12.0, objective=900.0))
    text = render(record, "html", earlier=[])

    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)" rx', text)]
    assert "objective 15 min, above the plot" in text
    assert max(heights) > 50


def test_passed_checks_beyond_a_page_are_counted() -> None:
    checks = [Check(name=f"a{n}", kind="assertion", outcome="passed", detail="as expected") for n in range(40)]
    text = render(msgspec.structs.replace(passed_record(), checks=checks), "md")

    assert "24 further checks passed; the record has them all." in text
    assert text.count("| assertion") == 16


def test_an_unknown_cause_is_told_by_its_kind_in_korean() -> None:
    record = msgspec.structs.replace(failed_record(), cause="relation does not exist", exit_code=8)

    assert "저장된 데이터가 손상되었거나 없습니다." in render(record, "md", language="ko")
    assert "relation does not exist" in render(record, "md", language="ko")
