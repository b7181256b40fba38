"""A report as one HTML file: nothing comes from outside, nothing runs, and it prints on one or two A4 pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pgkeep.drill.report.document import (
    Block,
    Column,
    Document,
    Fields,
    HistoryChart,
    Items,
    Paragraph,
    PhasesChart,
    Section,
    Side,
    Table,
    Text,
    Tile,
    Verdict,
)
from pgkeep.drill.report.plots import COLOURS, history_svg, phase_colour, phases_svg
from pgkeep.drill.report.style import STYLE

__all__ = ["html_document"]

# The browser itself holds what the first line of this module says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_document(document: Document) -> str:
    """The whole file, ending in a newline."""
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="{document.language}">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light">',
        f"<title>{escape(document.title)}: {escape(document.verdict.state)}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        _head(document),
        _verdict(document.verdict),
        f'<div class="tiles">{"".join(map(_tile, document.tiles))}</div>',
        *map(_section, document.sections),
        f"<footer>{escape(document.footer)}</footer>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _head(document: Document) -> str:
    tone = "good" if document.verdict.passed else "bad"
    return (
        f'<header><div><h1>{escape(document.title)}</h1><p class="when">{escape(document.subtitle)}</p></div>'
        f'<strong class="badge {tone}">{escape(document.verdict.state)}</strong></header>'
    )


def _verdict(verdict: Verdict) -> str:
    parts = [f'<p class="headline">{escape(verdict.headline)}</p>']
    if not verdict.passed:
        note = f"<small>{escape(verdict.cause_note)}</small>" if verdict.cause_note else ""
        parts.append(f'<dl class="why"><dt>{escape(verdict.cause_label)}</dt><dd>{note}{escape(verdict.cause)}</dd>')
        if verdict.remedy:
            parts.append(f"<dt>{escape(verdict.remedy_label)}</dt><dd>{escape(verdict.remedy)}</dd>")
        parts.append("</dl>")
    return f'<div class="verdict {"good" if verdict.passed else "bad"}">{"".join(parts)}</div>'


def _tile(tile: Tile) -> str:
    notes = "".join(f"<small>{escape(note)}</small>" for note in tile.notes)
    return f'<div class="tile {tile.tone}"><span>{escape(tile.label)}</span><strong>{escape(tile.value)}</strong>{notes}</div>'


def _section(section: Section) -> str:
    body = "".join(map(_block, section.blocks))
    return f'<section class="{section.name}"><h2>{escape(section.title)}</h2>{body}</section>'


def _block(block: Block) -> str:
    match block:
        case Fields():
            return f'<dl class="fields">{"".join(_field(name, text) for name, text in block.rows)}</dl>'
        case Table():
            return "".join(_table(block))
        case Paragraph():
            return f"<p{_class(block.text)}>{_inner(block.text)}</p>"
        case Items():
            tag = "ol" if block.numbered else "ul"
            items = "".join(f"<li{_class(item)}>{_inner(item, 'code')}</li>" for item in block.items)
            return f"<{tag}>{items}</{tag}>"
        case PhasesChart():
            return phases_svg(block)
        case Side():
            return f'<div class="side">{"".join(map(_chart, block.charts))}</div>'


def _field(name: str, text: Text) -> str:
    return f"<dt>{escape(name)}</dt><dd{_class(text)}>{_inner(text)}</dd>"


def _table(table: Table) -> Iterator[str]:
    yield f'<div class="wide"><table{_classes("keyed" if table.keyed else "")}><thead><tr>'
    for column in table.columns:
        yield f'<th scope="col"{_classes(_place(column))}>{escape(column.title)}</th>'
    yield "</tr></thead><tbody>"
    for number, row in enumerate(table.rows):
        yield "<tr>"
        for place, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            key = f'<i style="background:{phase_colour(number)}"></i>' if table.keyed and place == 0 else ""
            yield f"<td{_class(cell, _place(column))}>{key}{_inner(cell)}</td>"
        yield "</tr>"
    yield "</tbody></table></div>"


def _place(column: Column) -> str:
    return "right" if column.right else "tight" if column.tight else ""


def _class(text: Text, *more: str) -> str:
    return _classes(text.tone, "strong" if text.strong else "", *more)


def _classes(*names: str) -> str:
    given = " ".join(filter(None, names))
    return f' class="{given}"' if given else ""


def _inner(text: Text, note_tag: str = "small") -> str:
    value = f"<code>{escape(text.text)}</code>" if text.mono else escape(text.text)
    return f"{value}<{note_tag}>{escape(text.note)}</{note_tag}>" if text.note else value


def _chart(chart: HistoryChart) -> str:
    if not chart.points:
        return (
            f'<figure><figcaption>{escape(chart.title)}</figcaption><p class="quiet">{escape(chart.empty)}</p></figure>'
        )
    legend = "".join(
        f'<span><i style="background:{COLOURS[tone]}"></i>{escape(label)}</span>'
        if tone
        else f"<span><b>I</b>{escape(label)}</span>"
        for tone, label in chart.legend
    )
    return f'<figure><figcaption>{escape(chart.title)}</figcaption>{history_svg(chart)}<p class="legend">{legend}</p></figure>'
