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
