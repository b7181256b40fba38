"""What was restored: who asked, from which backup, to which target, by which server."""

from __future__ import annotations

from pgkeep.drill.record import DrillRecord, DrillTarget
from pgkeep.drill.report.document import Fields, Section, Text
from pgkeep.drill.report.sentences import said
from pgkeep.drill.report.wording import Wording, clip, visible
from pgkeep.units import format_size

__all__ = ["drill_section", "target_line"]


def drill_section(record: DrillRecord, words: Wording) -> Section:
    """The section with the facts; those that the record does not have are left out."""
    rows = [
        ("asked_by", Text(clip(record.asked_by, 84))),
        ("reason", Text(clip(said(record.reason, words), 84))),
        ("scenario", Text(clip(record.scenario or "", 80))),
        ("when", Text(f"{words.time(record.started)} – {words.time(record.ended)}")),
        ("took", Text(words.duration(max(0.0, (record.ended - record.started).total_seconds())))),
        (
            "cluster",
            Text(words("field.cluster.value", cluster=clip(record.cluster, 40), system=str(record.system_identifier))),
        ),
        ("repository", Text(clip(record.repository, 90))),
        ("backup", _backup(record, words)),
        ("target", _target(record.target, words)),
        ("reached", _reached(record, words)),
        ("server", _server(record, words)),
        ("host", Text(clip(record.host, 120))),
        ("volume", Text(_volume(record, words))),
        ("seed", _seed(record, words)),
    ]
    return Section(
        "drill", words("section.drill"), [Fields([(words(f"field.{name}"), text) for name, text in rows if text.text])]
    )


def target_line(target: DrillTarget, words: Wording, *, short: bool = False) -> str:
    """The target as the server was told it, in one line; ``short`` leaves UTC out where there is another zone."""
    value = visible(target.value)
    if target.kind == "time" and target.time is not None:
        if short and not target.exclusive:
            return words.bare_time(target.time)
        value = words.bare_time(target.time) if short else words.time(target.time)
    line = words(f"target.kind.{target.kind}", value=value)
    return f"{line}, {words('target.exclusive')}" if target.exclusive else line


def _backup(record: DrillRecord, words: Wording) -> Text:
    note = words.known("backup", record.backup_kind) if record.backup_kind else ""
    if record.backup_started is not None:
        note = words("field.backup.taken", kind=note or "–", time=words.time(record.backup_started))
    return Text(visible(record.backup), note=note, mono=True)


def _target(target: DrillTarget | None, words: Wording) -> Text:
    if target is None:
        return Text(words("target.none"))
    notes = [words.known("target.how", target.how)]
    if target.asked and target.how == "given":
        notes.append(words("target.asked", asked=clip(target.asked, 80)))
    if target.kind != "time" and target.time is not None:
        notes.append(words.time(target.time))
    if target.kind != "lsn" and target.lsn:
        notes.append(f"LSN {visible(target.lsn)}")
    if target.timeline is not None:
        notes.append(words("target.timeline", timeline=str(target.timeline)))
    return Text(clip(target_line(target, words), 160), note="; ".join(notes))


def _reached(record: DrillRecord, words: Wording) -> Text:
    reached = record.reached
    if reached is None:
        return Text(words("reached.none"), tone="bad")
    notes = []
    if reached.time is not None:
        notes.append(words("reached.last", time=words.time(reached.time)))
    if len(reached.crossed) > 1:
        notes.append(words("reached.crossed", path=clip(" → ".join(map(str, reached.crossed)), 80)))
    return Text(words("reached.value", lsn=visible(reached.lsn), timeline=str(reached.timeline)), note="; ".join(notes))


def _server(record: DrillRecord, words: Wording) -> Text:
    version = record.server_version or (str(record.server_major) if record.server_major else "")
    note = words("field.server.from", place=clip(record.server_from, 120)) if record.server_from else ""
    return Text(f"PostgreSQL {clip(version, 60)}" if version else "", note=note)


def _volume(record: DrillRecord, words: Wording) -> str:
    sizes = (("logical", record.logical_bytes), ("fetched", record.fetched_bytes), ("wal", record.wal_bytes))
    return ", ".join(words(f"volume.{name}", size=format_size(size)) for name, size in sizes if size)


def _seed(record: DrillRecord, words: Wording) -> Text:
    if record.seed is None:
        return Text("")
    return Text(str(record.seed), note=words("field.seed.note", seed=str(record.seed)), mono=True)
