"""How findings of checks are shown: one line each, its remedy below."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgkeep.checks import Finding
    from pgkeep.cli.output import Output

__all__ = ["show_findings"]

_MARKS = {
    "ok": ("ok      ", "green"),
    "warning": ("warning ", "yellow"),
    "failed": ("FAILED  ", "bold red"),
    "unknown": ("unknown ", "cyan"),
}


def show_findings(output: Output, findings: Iterable[Finding]) -> None:
    """Print them."""
    for finding in findings:
        output.styled(_MARKS[finding.status], (f"{finding.name}: ", "bold"), (finding.message, ""))
        if finding.remedy and finding.status != "ok":
            output.styled(("        -> ", "dim"), (finding.remedy, ""))
