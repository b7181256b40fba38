"""Sentences that pgkeep wrote into a record in English, said again in the report's language.

A sentence is known by its English pattern: ``{name}`` stands for a value, which is carried over as it is. Sentences that were joined with
semicolons are looked up one by one. What no pattern knows, such as the words of PostgreSQL itself, stays as it was written.
"""

from __future__ import annotations

import functools
import re

from pgkeep.drill.report.wording import Wording

__all__ = ["SENTENCES", "said"]

SENTENCES = {
    # the comparison
    "{count} of {total} ranges of blocks differ: {places}": "블록 범위 {total}개 중 {count}개가 다릅니다: {places}",
    "{count} of {total} ranges of blocks differs: {places}": "블록 범위 {total}개 중 {count}개가 다릅니다: {places}",
    "{count} of {total} range of blocks differs: {places}": "블록 범위 {total}개 중 {count}개가 다릅니다: {places}",
    "it differs": "일치하지 않습니다",
    "what changed around the moment was left out": "비교 시점 전후에 변경된 부분은 제외하였습니다",
    "it cannot be read in the restored cluster: {reason}": "복구된 클러스터에서 읽을 수 없습니다: {reason}",
    "the restored sequence was never used, and the source had handed out {value}": (
        "복구된 시퀀스는 사용된 적이 없으나 원본에서는 {value}까지 발급하였습니다"
    ),
    "the restored sequence stands at {restored}, and the source had handed out {value}": (
        "복구된 시퀀스의 값은 {restored}이나 원본에서는 {value}까지 발급하였습니다"
    ),
    "with tolerance: what was written around the moment is not compared, since not every table was locked against writers": (
        "허용 오차 비교: 쓰기를 막지 못한 테이블이 있어 비교 시점 전후에 기록된 내용은 비교하지 않았습니다"
    ),
    "{count} sequences held against what they had handed out": "시퀀스 {count}개를 원본에서 발급한 값과 비교하였습니다",
    "rows that differ, by {key}: {keys}": "일치하지 않는 행({key} 기준): {keys}",
    "rows that differ, by place, since it has no primary key: {keys}": "일치하지 않는 행(기본 키가 없어 위치 기준): {keys}",
    "its rows cannot be shown: {reason}": "행을 표시할 수 없습니다: {reason}",
    "the rows that differ were changed on the source since, and cannot be shown": (
        "일치하지 않는 행이 이후 원본에서 변경되어 표시할 수 없습니다"
    ),
    "only the first {size} of what differs was searched": "일치하지 않는 부분 중 처음 {size}만 조사하였습니다",
    "tables could not be locked, so the comparison is not exact: {reason}": (
        "테이블을 잠글 수 없어 정밀 비교를 하지 못하였습니다: {reason}"
    ),
    "a transaction was still open some seconds after the moment": "비교 시점에서 몇 초가 지난 뒤에도 열려 있는 트랜잭션이 있었습니다",
    "table {table} was left out: {reason}": "테이블 {table} 제외: {reason}",
    # the checks
    "assertion {name} failed: {detail}": "SQL 검증 {name} 실패: {detail}",
    "the query returned {value}, expected {expected}": "쿼리 결과가 {value}이나 기대한 값은 {expected}입니다",
    "the query returned no row, expected some": "쿼리 결과로 행이 있어야 하나 없습니다",
    "the query returned no row, expected {expected}": "쿼리 결과로 행이 없으나 기대한 값은 {expected}입니다",
    "the query failed in database {database}: {reason}": "데이터베이스 {database}에서 쿼리가 실패하였습니다: {reason}",
    "{count} tables in {databases} databases, {rows} rows": "데이터베이스 {databases}개의 테이블 {count}개, 행 {rows}개",
    "table {table} of database {database} cannot be read: {reason}": (
        "데이터베이스 {database}의 테이블 {table}을(를) 읽을 수 없습니다: {reason}"
    ),
    "no sequence feeds a column": "열에 값을 공급하는 시퀀스가 없습니다",
    "{count} sequences are ahead of their columns": "시퀀스 {count}개가 모두 해당 열의 값보다 앞서 있습니다",
    "sequence {sequence} stands at {last}, behind {column}, which has {farthest}": (
        "시퀀스 {sequence}의 값은 {last}이나 열 {column}에는 {farthest}이(가) 있습니다"
    ),
    "{extensions} extensions in {databases} databases, their {libraries} libraries load": (
        "데이터베이스 {databases}개의 확장 {extensions}개, 라이브러리 {libraries}개를 불러올 수 있습니다"
    ),
    "the visibility map of table {table} of database {database} is stale: {reason}": (
        "데이터베이스 {database}의 테이블 {table}의 가시성 맵이 실제와 다릅니다: {reason}"
    ),
    "the checksum of block {block} of {path} is wrong": "{path}의 블록 {block}의 체크섬이 맞지 않습니다",
    "the cluster's pages carry no checksums": "클러스터의 페이지에 체크섬이 없습니다",
    "{tables} tables with {rows} rows are the same at {lsn}": "{lsn}에서 테이블 {tables}개, 행 {rows}개가 일치합니다",
    "the copy differs from the live cluster at {lsn}: {tables}": "{lsn}에서 복구본이 운영 클러스터와 다릅니다: {tables}",
    # how far it came
    "recovery ended at {reached}, short of its target at {stop} on timeline {timeline}": (
        "복구가 {reached}에서 끝나 타임라인 {timeline}의 목표 {stop}에 도달하지 못하였습니다"
    ),
    "timeline {newest} cannot be reached, since its history file is missing: a recovery ends on timeline {timeline}": (
        "타임라인 {newest}의 히스토리 파일이 없어 도달할 수 없습니다: 복구는 타임라인 {timeline}에서 끝납니다"
    ),
    "the cluster is on timeline {now}, and the repository has nothing of it: a recovery ends on timeline {timeline}": (
        "클러스터는 타임라인 {now}에 있으나 저장소에는 그 내용이 없습니다: 복구는 타임라인 {timeline}에서 끝납니다"
    ),
}
"""English pattern -> Korean pattern."""


def said(sentence: str, words: Wording) -> str:
    """The sentence in the language of the words, as far as it is known."""
    if words.language == "en" or not sentence:
        return sentence
    whole = _known(sentence)
    if whole is not None:
        return whole
    parts = sentence.split("; ")
    return "; ".join(_known(part) or part for part in parts)


def _known(sentence: str) -> str | None:
    stripped = sentence.removesuffix(".")
    for pattern, korean in _compiled():
        match = pattern.fullmatch(stripped)
        if match is not None:
            return korean.format(**match.groupdict()) + sentence[len(stripped) :]
    return None


@functools.cache
def _compiled() -> list[tuple[re.Pattern[str], str]]:
    # the longer the words, the closer the pattern
    ordered = sorted(SENTENCES, key=lambda english: len(re.sub(r"\{\w+\}", "", english)), reverse=True)
    return [(_pattern(english), SENTENCES[english]) for english in ordered]


def _pattern(english: str) -> re.Pattern[str]:
    words = re.split(r"\{(\w+)\}", english)
    parts = (re.escape(part) if index % 2 == 0 else f"(?P<{part}>.+?)" for index, part in enumerate(words))
    return re.compile("".join(parts), re.DOTALL)
