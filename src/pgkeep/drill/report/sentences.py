"""Sentences that pgkeep wrote into a record in English, said again in the report's language.

A sentence is known by its English pattern: ``{name}`` stands for a value, which is carried over as it is. What no pattern knows, such as
the words of PostgreSQL itself, stays as it was written.
"""

from __future__ import annotations

import functools
import re

from pgkeep.drill.report.wording import Wording

__all__ = ["SENTENCES", "said"]

SENTENCES: dict[str, str] = {}
"""English pattern -> Korean pattern."""


def said(sentence: str, words: Wording) -> str:
    """The sentence in the language of the words, as far as it is known."""
    if words.language == "en" or not sentence:
        return sentence
    for pattern, korean in _compiled():
        match = pattern.fullmatch(sentence.rstrip("."))
        if match is not None:
            return korean.format(**match.groupdict())
    return sentence


@functools.cache
def _compiled() -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(english), korean) for english, korean in SENTENCES.items()]


def _pattern(english: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", english)
    return re.compile(
        "".join(re.escape(part) if index % 2 == 0 else f"(?P<{part}>.+?)" for index, part in enumerate(parts)),
        re.DOTALL,
    )
