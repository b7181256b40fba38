"""The style sheet of the HTML report."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #d9dfe5; --good: #2e7d4f; --bad: #b83227; --warn: #96610f; }
* { box-sizing: border-box; }
html { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { margin: 0; background: #fff; color: var(--ink); overflow-wrap: anywhere;
  font: 13px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", "Noto Sans KR", "Noto Sans CJK KR",
    NanumGothic, "Nanum Gothic", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif; }
:lang(ko) body { word-break: keep-all; line-height: 1.5;
  font-family: "Noto Sans KR", "Noto Sans CJK KR", NanumGothic, "Nanum Gothic", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 24px 28px; }
h1 { font-size: 21px; line-height: 1.25; margin: 0; }
h2 { font-size: 14px; margin: 18px 0 6px; padding-bottom: 3px; border-bottom: 1px solid var(--line); }
p { margin: 4px 0; }
small { display: block; font-size: 11px; color: var(--soft); }
code { font: 12px/1.4 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
header { display: flex; justify-content: space-between; align-items: flex-start; gap: 16px; }
.when { color: var(--soft); margin: 2px 0 0; }
.badge { flex: none; padding: 4px 14px; border-radius: 4px; color: #fff; font-size: 16px; }
.badge.good { background: var(--good); }
.badge.bad { background: var(--bad); }
.verdict { margin: 12px 0; padding: 8px 12px; border-left: 4px solid var(--good); background: #f1f7f3; }
.verdict.bad { border-color: var(--bad); background: #fcf2f1; }
.headline { margin: 0; font-weight: 600; }
dl { display: grid; margin: 0; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 14px; }
dt { color: var(--soft); }
dd { margin: 0; }
.why { margin-top: 6px; }
.why dt { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 10px; }
.tile { border: 1px solid var(--line); border-top: 3px solid #9aa5b1; border-radius: 4px; padding: 6px 10px 8px; }
.tile.good { border-top-color: var(--good); }
.tile.bad { border-top-color: var(--bad); }
.tile span { display: block; color: var(--soft); font-size: 11.5px; }
.tile strong { display: block; font-size: 17px; line-height: 1.35; }
.tile.bad strong { color: var(--bad); }
.tile.quiet strong { color: var(--soft); font-weight: 400; }
table { width: 100%; border-collapse: collapse; margin: 6px 0; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 11.5px; border-bottom: 1px solid var(--line); }
th, td { padding: 2px 12px 2px 0; vertical-align: top; }
.checks th:first-child, .comparison th:first-child { width: 24%; }
th:last-child, td:last-child { padding-right: 0; }
td { border-bottom: 1px solid #edf0f3; }
dl.fields dd small { display: inline; margin-left: 10px; }
.right, .tight { white-space: nowrap; }
.right { text-align: right; }
th.right { text-align: right; }
td.good { color: var(--good); }
td.bad, dd.bad, p.bad, li.bad { color: var(--bad); font-weight: 600; }
td.warn { color: var(--warn); }
.quiet { color: var(--soft); }
.strong { font-weight: 600; }
td.good, td.bad, td.warn { white-space: nowrap; }
ol, ul { margin: 4px 0; padding-left: 22px; }
li code { display: block; color: var(--soft); }
.keyed i, .legend i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px; vertical-align: -1px; }
svg { display: block; width: 100%; height: auto; font-size: 10.5px; fill: var(--ink); }
svg .in { fill: #fff; font-size: 11px; }
svg .axis { stroke: #9aa5b1; stroke-width: 1; }
svg .tick, svg text.objective { fill: var(--soft); font-size: 9.5px; }
svg .value { font-size: 9.5px; }
svg .value, svg text.objective { paint-order: stroke; stroke: #fff; stroke-width: 3px; }
svg line.objective { stroke: var(--bad); stroke-width: 1; stroke-dasharray: 5 3; }
svg line.above { stroke-dasharray: 1 3; }
svg .whisker { stroke: var(--ink); stroke-width: 1.2; fill: none; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 4px 28px; margin-top: 8px; }
.wide { overflow-x: auto; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: 12px; margin-bottom: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 11px; color: var(--soft); }
.legend i { margin-right: 5px; }
.legend b { display: inline-block; width: 10px; text-align: center; margin-right: 5px; color: var(--ink); }
footer { margin-top: 18px; padding-top: 6px; border-top: 1px solid var(--line); color: var(--soft); font-size: 11px; }
@media screen and (max-width: 560px) {
  main { padding: 14px; }
  dl { grid-template-columns: minmax(0, 1fr); }
  dd { margin-bottom: 4px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
  .wide table { min-width: 620px; }
}
@page { size: A4; margin: 12mm 13mm; }
@media print {
  body { font-size: 11px; line-height: 1.35; }
  :lang(ko) body { line-height: 1.38; }
  main { max-width: none; padding: 0; }
  h1 { font-size: 18px; }
  h2 { margin: 8px 0 4px; font-size: 12.5px; break-after: avoid; }
  svg, .keyed { break-inside: avoid; }
  svg.phases { break-after: avoid; }
  tr, .tile, .verdict, li { break-inside: avoid; }
  small, .tile span, th, .legend, footer { font-size: 9.5px; }
  code { font-size: 10.5px; }
  th, td { padding-top: 1px; padding-bottom: 1px; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
  .wide { overflow: visible; }
  footer { margin-top: 8px; padding-top: 4px; }
  .side { grid-template-columns: 1fr 1fr; }
}
"""
