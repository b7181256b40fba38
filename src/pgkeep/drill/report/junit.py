"""A drill as JUnit XML: a test suite whose test cases are what was checked, for Jenkins, GitLab, GitHub and their kin."""

from __future__ import annotations

import re
from datetime import UTC
from xml.sax.saxutils import escape, quoteattr

import msgspec

from pgkeep.drill.record import Check, DrillRecord
from pgkeep.drill.report.facts import target_line
from pgkeep.drill.report.messages import Language
from pgkeep.drill.report.sentences import said
from pgkeep.drill.report.wording import Wording, visible

__all__ = ["junit_document"]

# What XML 1.0 cannot hold, escaped or not (its production "Char").
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Case(msgspec.Struct, frozen=True):
    group: str
    name: str
    seconds: float
    failure: tuple[str, str] | None = None
    """What is wrong in a line, and in full."""
    error: bool = False
    skipped: str | None = None
    output: str = ""


def junit_document(record: DrillRecord, *, language: Language = "en", zone: str | None = None) -> str:
    """The file. The first test case is the drill itself, so that one which ended before any check is not without a failure.

    A missed objective is a failed test case of its own.
    """
    words = Wording(language, zone)
    cases = [_drill(record, words), *(_check(check, words) for check in record.checks), *_objectives(record, words)]
    counts = {
        "tests": len(cases),
        "failures": sum(case.failure is not None and not case.error for case in cases),
        "errors": sum(case.error for case in cases),
        "skipped": sum(case.skipped is not None for case in cases),
    }
    numbers = " ".join(f'{name}="{count}"' for name, count in counts.items())
    took = max(0.0, (record.ended - record.started).total_seconds())
    suite = (
        f'<testsuite name={_attribute(f"pgkeep drill {record.cluster}")} {numbers} time="{took:.3f}"'
        f' timestamp="{record.started.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z" hostname={_attribute(record.host)}'
        f" id={_attribute(record.id)}>"
    )
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="pgkeep drill" {numbers} time="{took:.3f}">',
        suite,
    ]
    lines += [
        "<properties>",
        *(
            f"<property name={_attribute(name)} value={_attribute(value)}/>"
            for name, value in _properties(record, words)
        ),
        "</properties>",
    ]
    lines += [line for case in cases for line in _xml(case)]
    return "\n".join([*lines, "</testsuite>", "</testsuites>", ""])


def _drill(record: DrillRecord, words: Wording) -> _Case:
    took = sum(phase.seconds for phase in record.phases if phase.name not in {"checks", "compare"})
    output = "\n".join(said(note, words) for note in record.notes)
    if record.passed:
        return _Case("drill", words("junit.drill"), took, output=output)
    cause = said(record.cause, words) if record.cause else words("cause.unknown")
    remedy = f"{words('remedy')}: {said(record.remedy, words)}" if record.remedy else ""
    # an error, in JUnit's words, is what kept the test from being made; a failed check is a failure
    ran = any(check.outcome == "failed" for check in record.checks)
    return _Case(
        "drill", words("junit.drill"), took, (cause, "\n".join(filter(None, (cause, remedy)))), not ran, output=output
    )


def _check(check: Check, words: Wording) -> _Case:
    label = words.known("check", check.kind)
    name = label if check.name in {"", check.kind} else f"{label}: {check.name}"
    detail = said(check.detail, words)
    if check.outcome == "failed":
        remedy = f"{words('remedy')}: {said(check.remedy, words)}" if check.remedy else ""
        return _Case(check.kind, name, check.seconds, (detail, "\n".join(filter(None, (detail, remedy)))))
    if check.outcome == "skipped":
        return _Case(check.kind, name, check.seconds, skipped=detail)
    return _Case(check.kind, name, check.seconds, output=detail)


def _objectives(record: DrillRecord, words: Wording) -> list[_Case]:
    measured = [
        ("rto", None if record.rto is None else (record.rto.measured, record.rto.objective)),
        ("rpo", None if record.rpo is None else (record.rpo.seconds, record.rpo.objective)),
    ]
    cases = []
    for name, figures in measured:
        if figures is None or figures[1] is None:
            continue
        seconds, objective = words.duration(figures[0]), words.duration(figures[1])
        missed = words("junit.missed", measured=seconds, objective=objective)
        failure = (missed, missed) if figures[0] > figures[1] else None
        cases.append(
            _Case("objective", words(f"junit.{name}"), max(0.0, figures[0]), failure, output="" if failure else seconds)
        )
    return cases


def _properties(record: DrillRecord, words: Wording) -> list[tuple[str, str]]:
    rto, rpo, target = record.rto, record.rpo, record.target
    pairs = [
        ("drill", record.id),
        ("state", record.state),
        ("cluster", record.cluster),
        ("system_identifier", str(record.system_identifier)),
        ("repository", record.repository),
        ("backup", record.backup),
        ("target", "" if target is None else target_line(target, words)),
        ("reached_lsn", "" if record.reached is None else record.reached.lsn),
        ("seed", "" if record.seed is None else str(record.seed)),
        ("rto_seconds", "" if rto is None else f"{rto.measured:.3f}"),
        ("rto_objective_seconds", "" if rto is None or rto.objective is None else f"{rto.objective:g}"),
        ("rpo_seconds", "" if rpo is None else f"{rpo.seconds:.3f}"),
        ("rpo_objective_seconds", "" if rpo is None or rpo.objective is None else f"{rpo.objective:g}"),
    ]
    return [(name, value) for name, value in pairs if value]


def _xml(case: _Case) -> list[str]:
    head = f'<testcase classname="pgkeep.{case.group.replace(" ", "_")}" name={_attribute(case.name)} time="{case.seconds:.3f}"'
    inner = []
    if case.failure is not None:
        tag = "error" if case.error else "failure"
        inner.append(
            f'<{tag} type="{case.group}" message={_attribute(case.failure[0])}>{_text(case.failure[1])}</{tag}>'
        )
    if case.skipped is not None:
        inner.append(f"<skipped message={_attribute(case.skipped)}/>")
    if case.output:
        inner.append(f"<system-out>{_text(case.output)}</system-out>")
    return [f"{head}>", *inner, "</testcase>"] if inner else [f"{head}/>"]


def _attribute(text: str) -> str:
    return quoteattr(_FORBIDDEN.sub("\ufffd", visible(text)))


def _text(text: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", text))
