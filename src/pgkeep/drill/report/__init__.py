"""Drill records for people and for CI: HTML, Markdown, JSON and JUnit XML, in English and Korean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pgkeep.drill.record import DrillRecord, record_json
from pgkeep.drill.report.messages import LANGUAGES, Language

__all__ = ["FORMATS", "LANGUAGES", "Format", "Language", "render"]

Format = Literal["html", "md", "json", "junit"]

FORMATS: tuple[Format, ...] = ("html", "md", "json", "junit")


def render(
    record: DrillRecord,
    form: Format,
    *,
    earlier: Sequence[DrillRecord] = (),
    language: Language = "en",
    zone: str | None = None,
) -> str:
    """The report of a record, as text that ends in a newline.

    ``earlier`` are the cluster's other drills, for the history; ``zone`` is the time zone shown first. JSON is the record itself,
    the same in all languages.
    """
    if form == "json":
        return json.dumps(record_json(record), indent=2, ensure_ascii=False) + "\n"
    if form == "junit":
        from pgkeep.drill.report.junit import junit_document

        return junit_document(record, language=language, zone=zone)
    from pgkeep.drill.report.template import make_document

    document = make_document(record, earlier, language=language, zone=zone)
    if form == "md":
        from pgkeep.drill.report.markdown import markdown_document

        return markdown_document(document)
    from pgkeep.drill.report.html import html_document

    return html_document(document)
