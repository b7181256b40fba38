"""The words of a report, in English and Korean: one catalogue, each message with both and with the same placeholders.

What a person or another program wrote (an assertion's name, a table's, a scenario's reason) is shown as it is.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["LANGUAGES", "MESSAGES", "Language", "Message", "message"]

Language = Literal["en", "ko"]

LANGUAGES: tuple[Language, ...] = ("en", "ko")


class Message(msgspec.Struct, frozen=True):
    """A text with ``{placeholders}``; ``en_one`` is the English one where its ``count`` is 1. Korean has no plural."""

    en: str
    ko: str
    en_one: str = ""


def message(language: Language, key: str, /, **values: object) -> str:
    """The message ``key`` with its placeholders filled in."""
    entry = MESSAGES[key]
    template = entry.ko if language == "ko" else entry.en
    if language == "en" and entry.en_one and values.get("count") == 1:
        template = entry.en_one
    shown = {name: f"{value:,}" if type(value) is int else value for name, value in values.items()}
    return template.format(**shown)


MESSAGES = {
    # the head
    "title": Message("Restore drill of {cluster}", "{cluster} 복구 훈련 보고서"),
    "state.passed": Message("Passed", "성공"),
    "state.failed": Message("Failed", "실패"),
    "headline.passed": Message(
        "The backup came back: it was restored, recovered to its target and passed {count} checks.",
        "백업이 정상적으로 복구되었습니다. 목표 지점까지 복구하였고, 검사 {count}건을 모두 통과하였습니다.",
        "The backup came back: it was restored, recovered to its target and passed the one check there was.",
    ),
    "headline.passed.skipped": Message(
        "The backup came back: it was restored, recovered to its target and passed {count} checks ({skipped} skipped).",
        "백업이 정상적으로 복구되었습니다. 목표 지점까지 복구하였고, 검사 {count}건을 통과하였습니다. {skipped}건은 건너뛰었습니다.",
    ),
    "headline.failed": Message(
        "This drill did not prove the backup. The cause comes first, then what mends it.",
        "이번 훈련에서는 백업을 복구할 수 있음을 증명하지 못하였습니다. 원인과 조치 방법을 먼저 안내합니다.",
    ),
    "cause": Message("Cause", "원인"),
    "remedy": Message("Remedy", "조치 방법"),
    "cause.unknown": Message("The record names no cause.", "기록에 원인이 남아 있지 않습니다."),
    # the tiles
    "tile.rto": Message("Time to restore (RTO)", "복구 소요 시간(RTO)"),
    "tile.rpo": Message("Loss at the time (RPO)", "당시 데이터 손실(RPO)"),
    "tile.checks": Message("Checks", "검사"),
    "tile.comparison": Message("Against the live database", "운영 데이터베이스와의 비교"),
    "objective.met": Message("within the objective of {objective}", "목표 {objective} 이내"),
    "objective.missed": Message("objective of {objective} missed", "목표 {objective} 초과"),
    "objective.none": Message("no objective set", "목표가 설정되지 않음"),
    "predicted": Message("predicted {predicted}", "예측 {predicted}"),
    "predicted.range": Message("predicted {predicted} ({low} to {high})", "예측 {predicted}({low}~{high})"),
    "not_measured": Message("not measured", "측정되지 않음"),
    "not_reached": Message("the drill did not come so far", "훈련이 이 단계까지 진행되지 못함"),
    "rpo.newest": Message("recoverable up to {time}", "복구 가능한 최신 시점 {time}"),
    "checks.all": Message("{count} of {total} passed", "{total}건 중 {count}건 통과"),
    "checks.failed": Message("{count} failed", "{count}건 실패"),
    "checks.skipped": Message("{count} skipped", "{count}건 건너뜀"),
    "checks.none": Message("nothing was checked", "검사 항목 없음"),
    "comparison.equal": Message("equal", "일치"),
    "comparison.unequal": Message("{count} tables differ", "테이블 {count}개 불일치", "{count} table differs"),
    "comparison.differs": Message("differs", "불일치"),
    "comparison.none": Message("not compared", "비교하지 않음"),
    "comparison.exact": Message("exact, at LSN {lsn}", "LSN {lsn} 시점 기준 정밀 비교"),
    "comparison.tolerance": Message("with a tolerance, at LSN {lsn}", "LSN {lsn} 시점 기준 허용 오차 비교"),
    # what was done
    "section.drill": Message("What was restored", "복구 내용"),
    "field.asked_by": Message("Asked by", "요청자"),
    "field.reason": Message("Reason", "사유"),
    "field.scenario": Message("Scenario", "시나리오"),
    "field.cluster": Message("Cluster", "클러스터"),
    "field.cluster.value": Message("{cluster}, system identifier {system}", "{cluster}, 시스템 식별자 {system}"),
    "field.repository": Message("Repository", "저장소"),
    "field.when": Message("Began, ended", "시작 및 종료"),
    "field.took": Message("Took", "소요 시간"),
    "field.host": Message("On", "수행 호스트"),
    "field.backup": Message("Backup", "백업"),
    "field.backup.taken": Message("{kind}, begun {time}", "{kind}, {time} 시작"),
    "field.target": Message("Target", "복구 목표"),
    "field.reached": Message("Reached", "도달 지점"),
    "field.server": Message("Server", "서버"),
    "field.server.from": Message("programs from {place}", "실행 파일 위치 {place}"),
    "field.seed": Message("Seed", "시드"),
    "field.seed.note": Message("the same draw again: --seed {seed}", "같은 목표로 다시 수행하려면 --seed {seed}"),
    "field.volume": Message("Volume", "데이터 양"),
    "volume.logical": Message("{size} restored", "복원 {size}"),
    "volume.fetched": Message("{size} fetched", "저장소에서 읽음 {size}"),
    "volume.wal": Message("{size} of WAL replayed", "재생한 WAL {size}"),
    "backup.full": Message("full", "전체"),
    "backup.incremental": Message("incremental", "증분"),
    "target.how.latest": Message("the newest moment", "가장 최신 시점"),
    "target.how.given": Message("given", "직접 지정"),
    "target.how.random": Message("drawn at random in the recovery window", "복구 가능 구간에서 무작위 선택"),
    "target.how.compared": Message("the restore point of the comparison", "비교용 복원 지점"),
    "target.kind.immediate": Message("the end of the backup", "백업 종료 지점"),
    "target.kind.latest": Message("the end of the WAL", "WAL의 끝"),
    "target.kind.time": Message("time {value}", "시각 {value}"),
    "target.kind.lsn": Message("LSN {value}", "LSN {value}"),
    "target.kind.xid": Message("transaction {value}", "트랜잭션 {value}"),
    "target.kind.name": Message("restore point {value}", "복원 지점 {value}"),
    "target.exclusive": Message("just before it", "해당 지점 직전까지"),
    "target.timeline": Message("along timeline {timeline}", "타임라인 {timeline} 기준"),
    "target.asked": Message("asked: {asked}", "요청 내용: {asked}"),
    "target.none": Message("no target was chosen", "목표가 정해지지 않음"),
    "reached.value": Message("LSN {lsn}, timeline {timeline}", "LSN {lsn}, 타임라인 {timeline}"),
    "reached.last": Message("last transaction {time}", "마지막 트랜잭션 {time}"),
    "reached.crossed": Message("across timelines {path}", "거쳐 온 타임라인 {path}"),
    "reached.none": Message("the server did not reach any target", "서버가 목표에 도달하지 못함"),
    # timings
    "section.timings": Message("Timings", "소요 시간"),
    "phases.title": Message("Where the time went", "단계별 소요 시간"),
    "phases.none": Message("No phase was measured.", "측정된 단계가 없습니다."),
    "column.phase": Message("Phase", "단계"),
    "column.time": Message("Time", "시간"),
    "column.share": Message("Share", "비율"),
    "column.bytes": Message("Bytes", "처리량"),
    "column.rate": Message("Rate", "속도"),
    "phase.plan": Message("plan", "계획"),
    "phase.fetch": Message("fetch", "저장소 읽기"),
    "phase.write": Message("write", "데이터 쓰기"),
    "phase.start": Message("start", "서버 시작"),
    "phase.replay": Message("replay", "WAL 재생"),
    "phase.promote": Message("promote", "승격"),
    "phase.first query": Message("first query", "첫 쿼리"),
    "phase.checks": Message("checks", "검사"),
    "phase.compare": Message("compare", "비교"),
    "phase.clean up": Message("clean up", "정리"),
    "chart.rto": Message("RTO of the last drills", "최근 훈련의 RTO"),
    "chart.rpo": Message("RPO of the last drills", "최근 훈련의 RPO"),
    "chart.objective": Message("objective {objective}", "목표 {objective}"),
    "chart.objective.above": Message("objective {objective}, above the plot", "목표 {objective}(그래프 범위 위)"),
    "chart.predicted": Message("predicted interval", "예측 구간"),
    "chart.within": Message("within the objective", "목표 이내"),
    "chart.over": Message("over the objective", "목표 초과"),
    "chart.failed": Message("drill failed", "훈련 실패"),
    "chart.none": Message("No drill has measured it yet.", "아직 측정값이 없습니다."),
    "wal_waited": Message(
        "Replay waited {waited} for WAL from the repository.", "WAL 재생 중 저장소에서 WAL을 기다린 시간은 {waited}입니다."
    ),
    # checks
    "section.checks": Message("What was checked", "검사 결과"),
    "column.check": Message("Check", "검사 항목"),
    "column.outcome": Message("Outcome", "결과"),
    "column.found": Message("Found", "내용"),
    "outcome.passed": Message("passed", "통과"),
    "outcome.failed": Message("failed", "실패"),
    "outcome.skipped": Message("skipped", "건너뜀"),
    "check.reached": Message("target reached", "목표 도달"),
    "check.server checksums": Message("page checksums", "페이지 체크섬"),
    "check.amcheck": Message("tables and indexes (amcheck)", "테이블 및 인덱스(amcheck)"),
    "check.visibility map": Message("visibility map", "가시성 맵"),
    "check.tables": Message("every table is readable", "모든 테이블 읽기"),
    "check.assertion": Message("assertion", "SQL 검증"),
    "check.extensions": Message("extensions load", "확장 로드"),
    "check.sequences": Message("sequences are ahead", "시퀀스 값"),
    "check.comparison": Message("same as the live database", "운영 데이터베이스와 일치"),
    "check.sampled": Message("a sample of {share}", "{share} 표본 검사"),
    "checks.more": Message(
        "{count} further checks passed; the record has them all.",
        "그 밖에 {count}건의 검사를 통과하였습니다. 전체 결과는 기록(JSON)에 있습니다.",
        "{count} further check passed; the record has it.",
    ),
    "checks.more.failed": Message(
        "{count} further checks failed; the record has them all.",
        "그 밖에 {count}건의 검사가 실패하였습니다. 전체 결과는 기록(JSON)에 있습니다.",
        "{count} further check failed; the record has it.",
    ),
    "checks.empty": Message("The drill ended before any check.", "검사 전에 훈련이 종료되었습니다."),
    # comparison
    "section.comparison": Message("Held against the live database", "운영 데이터베이스와의 비교"),
    "comparison.summary.equal": Message(
        "All {count} tables, {rows} rows, are the same on both sides.",
        "테이블 {count}개, 행 {rows}개가 양쪽에서 모두 일치합니다.",
        "The one table, {rows} rows, is the same on both sides.",
    ),
    "comparison.summary.unequal": Message(
        "{differing} of {count} tables differ.", "테이블 {count}개 중 {differing}개가 일치하지 않습니다."
    ),
    "comparison.sampled": Message(
        "{count} large tables were compared by sample.",
        "큰 테이블 {count}개는 표본으로 비교하였습니다.",
        "{count} large table was compared by sample.",
    ),
    "column.table": Message("Table", "테이블"),
    "column.rows.restored": Message("Rows restored", "복구된 행"),
    "column.rows.live": Message("Rows live", "운영 행"),
    "column.examples": Message("Examples", "예"),
    "difference.changed": Message(
        "{key}: live {live}, restored {restored}", "{key}: 운영 {live}, 복구 {restored}"
    ),
    "difference.lost": Message("{key}: only live: {live}", "{key}: 운영에만 있음: {live}"),
    "difference.extra": Message("{key}: only restored: {restored}", "{key}: 복구본에만 있음: {restored}"),
    "difference.more": Message("and {count} more", "외 {count}건"),
    "comparison.more": Message(
        "{count} further tables differ; the record has them all.",
        "그 밖에 {count}개의 테이블도 일치하지 않습니다. 전체 결과는 기록(JSON)에 있습니다.",
        "{count} further table differs; the record has it.",
    ),
    # runbook, history, notes
    "section.steps": Message("The runbook, as it was done", "수행한 절차"),
    "steps.more": Message(
        "{count} further steps; the record has them all.",
        "그 밖에 {count}개의 단계가 있습니다. 전체 내용은 기록(JSON)에 있습니다.",
        "{count} further step; the record has it.",
    ),
    "section.history": Message("The last drills", "최근 훈련 이력"),
    "column.began": Message("Began", "시작"),
    "column.state": Message("State", "상태"),
    "column.target": Message("Target", "복구 목표"),
    "column.rto": Message("RTO", "RTO"),
    "column.rpo": Message("RPO", "RPO"),
    "column.checks": Message("Checks", "검사"),
    "column.cause": Message("Cause", "원인"),
    "history.first": Message("This is the first drill on record.", "기록에 남은 첫 번째 훈련입니다."),
    "history.summary": Message(
        "{passed} of the last {count} drills passed.", "최근 {count}회의 훈련 중 {passed}회 성공하였습니다."
    ),
    "section.notes": Message("Notes", "참고 사항"),
    "notes.more": Message(
        "{count} further notes; the record has them all.",
        "그 밖에 {count}개의 참고 사항이 있습니다. 전체 내용은 기록(JSON)에 있습니다.",
        "{count} further note; the record has it.",
    ),
    "footer": Message(
        "The sealed record: pgkeep drill report {id} --format json",
        "봉인된 기록: pgkeep drill report {id} --format json",
    ),
    # JUnit
    "junit.drill": Message("the backup comes back", "백업 복구"),
    "junit.rto": Message("time to restore within its objective", "복구 소요 시간이 목표 이내"),
    "junit.rpo": Message("loss within its objective", "데이터 손실이 목표 이내"),
    "junit.missed": Message("{measured}, over the objective of {objective}", "{measured}, 목표 {objective} 초과"),
    # units
    "unit.second": Message("{count} s", "{count}초"),
    "unit.minute": Message("{count} min", "{count}분"),
    "unit.hour": Message("{count} h", "{count}시간"),
    "unit.day": Message("{count} d", "{count}일"),
    # what the exit code of a failed drill says, beside its own sentence
    "exit.1": Message("An unexpected error ended the drill.", "예상하지 못한 오류로 훈련이 중단되었습니다."),
    "exit.2": Message("The drill was asked for something that cannot be.", "수행할 수 없는 훈련이 요청되었습니다."),
    "exit.3": Message("The configuration is missing or wrong.", "설정 파일이 없거나 올바르지 않습니다."),
    "exit.4": Message("A PostgreSQL server could not be reached.", "PostgreSQL 서버에 연결할 수 없습니다."),
    "exit.5": Message(
        "A privilege or a setting of the server is missing.", "서버의 권한 또는 설정이 부족합니다."
    ),
    "exit.6": Message("The repository could not be opened.", "저장소를 열 수 없습니다."),
    "exit.7": Message("The key is missing or does not open the repository.", "키가 없거나 저장소를 열 수 없는 키입니다."),
    "exit.8": Message("Stored bytes are damaged or missing.", "저장된 데이터가 손상되었거나 없습니다."),
    "exit.9": Message("The store could not be read or written.", "스토리지를 읽거나 쓸 수 없습니다."),
    "exit.10": Message("Another job held what the drill needs.", "훈련에 필요한 자원을 다른 작업이 사용 중입니다."),
    "exit.11": Message("The backup or the cluster was not found.", "백업 또는 클러스터를 찾을 수 없습니다."),
    "exit.12": Message("The place or the target of the restore cannot be used.", "복원 위치 또는 복구 목표를 사용할 수 없습니다."),
    "exit.13": Message(
        "The server did not start, or recovery fell short of its target.",
        "서버가 시작되지 않았거나 복구가 목표에 도달하지 못하였습니다.",
    ),
    "exit.14": Message(
        "What came back is not what it should be.",
        "복구된 내용이 기대한 것과 다릅니다.",
    ),
    "exit.15": Message(
        "More would be lost, or a restore would take longer, than the objectives allow.",
        "예상되는 데이터 손실 또는 복구 시간이 목표를 초과합니다.",
    ),
    "exit.130": Message("The drill was stopped by hand.", "사용자가 훈련을 중지하였습니다."),
}  # fmt: skip
