"""Drill reports as a browser shows and prints them. ``PGKEEP_PICTURES=DIR`` keeps the pictures, to be looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.drill.record import DrillRecord
from pgkeep.drill.report import LANGUAGES, Language, render
from pgkeep.drill.report.limits import limits_for
from support.browser import Browser, open_browser
from support.drill_records import (
    ZONE,
    broken_record,
    crowded_record,
    earlier_records,
    failed_record,
    full_record,
    passed_record,
)

RECORDS = {
    "passed": passed_record,
    "failed": failed_record,
    "full": full_record,
    "broken": broken_record,
    "crowded": crowded_record,
}
PHONE = 360

PICTURES = os.environ.get("PGKEEP_PICTURES")  # read here: the tests themselves do not see the operator's variables

# Draws every character that the page shows, and a character that no font has; one that looks like the latter is a box ("tofu").
_BOXES = """(() => {
  const canvas = document.createElement("canvas");
  const drawing = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = canvas.height = 32;
  drawing.font = "20px " + getComputedStyle(document.body).fontFamily;
  const drawn = (text) => {
    drawing.clearRect(0, 0, 32, 32);
    drawing.fillText(text, 4, 24);
    return drawing.getImageData(0, 0, 32, 32).data.join();
  };
  const boxes = new Set([drawn("\\u{10fffd}"), drawn("\\u{ffffe}"), drawn(" ")]);
  const shown = new Set(document.body.innerText.replace(/\\s/g, ""));
  return [...shown].filter((character) => boxes.has(drawn(character))).join("");
})()"""

_WIDER_THAN_THE_WINDOW = """[...document.querySelectorAll("body, body *")]
  .filter((part) => part.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map((part) => part.tagName + "." + part.className + " " + part.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def write(record: DrillRecord, language: Language, directory: Path) -> Path:
    path = directory / "drill.html"
    path.write_text(render(record, "html", earlier=earlier_records(record), language=language, zone=ZONE))
    return path


def keep(name: str, data: bytes) -> None:
    if PICTURES is not None:
        Path(PICTURES, name).write_bytes(data)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", RECORDS)
def test_a_report_fits_its_window_and_two_printed_pages(
    name: str, language: Language, browser: Browser, tmp_path: Path
) -> None:
    path = write(RECORDS[name](), language, tmp_path)
    browser.open(path)
    keep(f"{name}-{language}.png", browser.picture())
    wider = browser.value(_WIDER_THAN_THE_WINDOW)
    pdf = browser.pdf()
    keep(f"{name}-{language}.pdf", pdf)

    assert wider == []
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) in {1, 2}
    assert re.findall(rb"/MediaBox \[0 0 59[45][.\d]* 84[12][.\d]*\]", pdf), "not A4"
    assert browser.requests == [path.as_uri()]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_fits_a_telephone(language: Language, browser: Browser, tmp_path: Path) -> None:
    browser.open(write(failed_record(), language, tmp_path), width=PHONE)
    keep(f"telephone-{language}.png", browser.picture())

    assert browser.value("document.documentElement.scrollWidth") <= PHONE


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_character_of_a_report_has_a_glyph(language: Language, browser: Browser, tmp_path: Path) -> None:
    browser.open(write(failed_record(), language, tmp_path))

    assert len(browser.value("document.body.innerText")) > 1000
    assert browser.value(_BOXES) == "", "install a font for them: apt-get install fonts-nanum"


def test_a_character_that_no_font_has_would_be_noticed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "box.html"
    path.write_text('<!DOCTYPE html><html lang="ko"><meta charset="utf-8"><body>복구 \U0010fffe \ue123</body></html>')
    browser.open(path)

    assert "복" not in browser.value(_BOXES)
    assert "\ue123" in browser.value(_BOXES)


def test_nothing_in_a_report_runs(browser: Browser, tmp_path: Path) -> None:
    path = write(passed_record(), "en", tmp_path)
    attack = '<script>document.title = "run"</script><img src=x onerror="document.title=\'run\'"></body>'
    path.write_text(path.read_text().replace("</body>", attack))
    browser.open(path)

    assert browser.value("document.title") == "Restore drill of auth: Passed"


@pytest.mark.parametrize("name", ["full", "broken"])
def test_the_records_that_are_tried_lie_at_the_limit(name: str) -> None:
    assert limits_for(RECORDS[name]()).drills == 10
    assert limits_for(crowded_record()).drills < 10
