"""The message catalogue: both languages, the same placeholders, and nothing that a report asks for is missing."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path
from typing import get_args

import pytest

import pgkeep.drill.report
from pgkeep import errors
from pgkeep.drill.record import CheckKind, Outcome, PhaseName
from pgkeep.drill.report.messages import LANGUAGES, MESSAGES, message
from pgkeep.drill.report.sentences import SENTENCES, said
from pgkeep.drill.report.wording import Wording

PACKAGE = Path(pgkeep.drill.report.__file__).parent


def placeholders(text: str) -> set[str]:
    return {name for _text, name, _spec, _conversion in string.Formatter().parse(text) if name is not None}


def asked_for() -> set[str]:
    """The keys that the package's modules name in full."""
    found = set()
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "words":
                found |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


@pytest.mark.parametrize("key", MESSAGES)
def test_a_message_has_both_languages_with_the_same_placeholders(key: str) -> None:
    entry = MESSAGES[key]

    assert entry.en
    assert entry.ko
    assert placeholders(entry.en) == placeholders(entry.ko)
    assert placeholders(entry.en_one) <= placeholders(entry.en)


@pytest.mark.parametrize("key", MESSAGES)
def test_a_korean_message_is_korean(key: str) -> None:
    text = re.sub(r"\{\w+\}|--\w+|pgkeep drill report.*", "", MESSAGES[key].ko)
    terms = {"JSON", "LSN", "PostgreSQL", "RPO", "RTO", "SQL", "WAL", "amcheck"}

    assert set(re.findall(r"[A-Za-z]+", text)) <= terms
    assert re.search(r"[가-힣]", text) or set(re.findall(r"\w+", text)) <= terms


@pytest.mark.parametrize("key", [key for key, entry in MESSAGES.items() if entry.ko.endswith(".")])
def test_korean_sentences_are_polite(key: str) -> None:
    assert re.findall(r"(?:니다|십시오)\.(?= |$)", MESSAGES[key].ko)


def test_every_message_that_is_asked_for_is_there() -> None:
    assert len(asked_for()) > 40
    assert asked_for() - set(MESSAGES) == set()


@pytest.mark.parametrize(
    ("prefix", "values"),
    [("phase", get_args(PhaseName)), ("check", get_args(CheckKind)), ("outcome", get_args(Outcome))],
)
def test_every_name_of_the_record_has_a_word(prefix: str, values: tuple[str, ...]) -> None:
    assert {f"{prefix}.{value}" for value in values} - set(MESSAGES) == set()


def test_every_exit_code_of_an_error_has_a_word() -> None:
    codes = {getattr(errors, name).exit_code for name in errors.__all__}

    assert {f"exit.{code}" for code in codes} - set(MESSAGES) == set()


def test_one_of_a_thing_is_singular_in_english() -> None:
    assert message("en", "comparison.unequal", count=1) == "1 table differs"
    assert message("en", "comparison.unequal", count=1200) == "1,200 tables differ"
    assert message("ko", "comparison.unequal", count=1) == "테이블 1개 불일치"


@pytest.mark.parametrize(
    ("seconds", "english", "korean"),
    [
        (0, "0 s", "0초"),
        (0.05, "0.05 s", "0.05초"),
        (12.34, "12.3 s", "12.3초"),
        (59.96, "1 min", "1분"),
        (75, "1 min 15 s", "1분 15초"),
        (900, "15 min", "15분"),
        (3700, "1 h 1 min", "1시간 1분"),
        (90000, "1 d 1 h", "1일 1시간"),
        (-75, "-1 min 15 s", "-1분 15초"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float, english: str, korean: str) -> None:
    assert [Wording(language).duration(seconds) for language in LANGUAGES] == [english, korean]


@pytest.mark.parametrize("english", SENTENCES)
def test_a_sentence_is_known_again_in_korean_with_its_values(english: str) -> None:
    korean = SENTENCES[english]
    values = {name: f"<{name} 1>" for name in placeholders(english)}

    assert placeholders(english) == placeholders(korean)
    assert said(english.format(**values), Wording("ko")) == korean.format(**values)


def written_patterns() -> list[str]:
    """Every text in the sources, with the values of f-strings as ``{}``."""
    found = []
    for path in (PACKAGE.parents[1]).rglob("*.py"):
        if path.parent == PACKAGE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_sentence_is_one_that_pgkeep_writes() -> None:
    """Words that a source puts together itself, as plurals, are values there: each of ours matches some text of the sources."""
    written = {re.sub(r"\W*\{\}\W*", "{}", text) for text in written_patterns()}
    patterns = [
        re.compile(".+?".join(map(re.escape, text.split("{}")))) for text in written if len(text.replace("{}", "")) > 8
    ]
    ours = {english: re.sub(r"\W*\{\w+\}\W*", " v ", english).strip() for english in SENTENCES}
    unknown = {
        english
        for english, text in ours.items()
        if not any(pattern.fullmatch(text) or pattern.fullmatch(text.replace(" v ", "v")) for pattern in patterns)
    }

    assert unknown == set()


def test_sentences_that_were_joined_are_known_one_by_one() -> None:
    joined = "it differs; something else; what changed around the moment was left out"

    assert (
        said(joined, Wording("ko"))
        == "일치하지 않습니다; something else; 비교 시점 전후에 변경된 부분은 제외하였습니다"
    )


def test_a_sentence_of_someone_else_stays_as_it_was_written() -> None:
    sentence = 'relation "{count}" does not exist'

    assert [said(sentence, Wording(language)) for language in LANGUAGES] == [sentence, sentence]
