"""The recovery sheet: a recovery key on paper, as plain text or as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import segno

__all__ = ["LANGUAGES", "Sheet", "find_recovery_key"]

LANGUAGES = ("en", "ko")

_GROUPS_IN_LINE = 4
_WIDTHS = {"en": 78, "ko": 46}
"""Letters in a line of text; Korean ones are twice as wide."""
_SEPARATED = re.compile(r"PGKEEP1(?:[\s-]*[A-Za-z2-7]){58}")
_TAG = re.compile(r"<(style|head)\b.*?</\1>|<[^>]*>", re.DOTALL)

_TEXTS = {
    "en": {
        "title": "Recovery sheet of a pgkeep repository",
        "warning": (
            "Whoever has this sheet can read every backup in the repository. Where all keys and all sheets are lost, nobody can."
            " Keep it as you keep deeds: away from the servers, in a place that survives them."
        ),
        "repository": "Repository",
        "identity": "Repository id",
        "slot": "Key slot",
        "made": "Made",
        "kept": "Kept at, by",
        "key": "Recovery key",
        "key note": (
            "Letters A to Z and digits 2 to 7 only: what looks like a zero is the letter O, what looks like a one is I. Dashes, spaces"
            " and case do not matter. A mistyped letter is found by the key's check sum. The code below holds the same text."
        ),
        "use": "When it is needed",
        "steps": (
            "On any machine with pgkeep, write the key into a file that only you can read, recovery.key for example.",
            "Look what there is: pgkeep list --repository {url} --key-file recovery.key",
            "Restore: pgkeep restore latest --repository {url} --key-file recovery.key --target-dir /srv/restored",
            (
                "Without pgkeep: tools/pgkeep_rescue.py of its sources is one file that does the same from a directory or a copy of the"
                " bucket; docs/reference/format.md describes every byte."
            ),
        ),
        "care": "From time to time",
        "care steps": (
            "Prove that it works: pgkeep key verify asks for the key, opens the repository with it and decrypts stored objects.",
            "Lost or seen by others: pgkeep key remove {slot}, then pgkeep key rotate --new-root, then a new sheet.",
        ),
    },
    "ko": {
        "title": "pgkeep 저장소 복구 용지",
        "warning": (
            "이 용지를 가진 사람은 저장소의 모든 백업을 읽을 수 있습니다. 모든 키와 모든 용지를 잃어버리면 아무도 읽을 수 없습니다."
            " 권리증처럼 보관하십시오. 서버에서 떨어진 곳, 서버가 사라져도 남아 있을 곳에 두어야 합니다."
        ),
        "repository": "저장소",
        "identity": "저장소 ID",
        "slot": "키 슬롯",
        "made": "작성 시각",
        "kept": "보관 장소, 보관자",
        "key": "복구 키",
        "key note": (
            "영문자 A~Z와 숫자 2~7만 사용합니다. 0처럼 보이는 글자는 영문자 O이고, 1처럼 보이는 글자는 영문자 I입니다."
            " 하이픈, 공백, 대소문자는 구분하지 않습니다. 잘못 입력한 글자는 체크섬으로 알아냅니다. 아래 QR 코드에 같은 내용이 들어 있습니다."
        ),
        "use": "복구가 필요할 때",
        "steps": (
            "pgkeep이 설치된 아무 컴퓨터에서나, 본인만 읽을 수 있는 파일(예: recovery.key)에 키를 적습니다.",
            "백업 목록 확인: pgkeep list --repository {url} --key-file recovery.key",
            "복원: pgkeep restore latest --repository {url} --key-file recovery.key --target-dir /srv/restored",
            (
                "pgkeep이 없을 때: 소스에 들어 있는 tools/pgkeep_rescue.py 파일 하나로 디렉터리나 버킷 사본에서 복원할 수 있습니다."
                " docs/reference/format.md에 모든 바이트의 형식이 설명되어 있습니다."
            ),
        ),
        "care": "정기 점검",
        "care steps": (
            "동작 확인: pgkeep key verify를 실행하면 키를 묻고, 그 키로 저장소를 열어 저장된 객체를 복호화해 봅니다.",
            (
                "분실했거나 다른 사람이 보았을 때: pgkeep key remove {slot}, 이어서 pgkeep key rotate --new-root를 실행한 뒤 새 용지를"
                " 만드십시오."
            ),
        ),
    },
}

_STYLE = """
body { font: 11pt/1.45 "Noto Sans", "Noto Sans KR", "Malgun Gothic", sans-serif; color: #000; background: #fff; margin: 2rem auto;
  max-width: 44rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 1.6rem; }
.warning { border: 2px solid #000; padding: .6rem .8rem; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.kept { border-bottom: 1px solid #000; min-height: 1.6rem; }
pre { font: 600 1.25rem/1.7 "DejaVu Sans Mono", Consolas, monospace; border: 1px solid #000; padding: .5rem .9rem; width: max-content; }
img { width: 52mm; height: 52mm; image-rendering: pixelated; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
@page { size: A4; margin: 18mm; } @media print { body { margin: 0; max-width: none; } }
"""


@dataclass(frozen=True, repr=False)
class Sheet:
    """What goes on a sheet. ``key`` is the recovery key's printed form, ``made`` in UTC."""

    key: str
    url: str
    identity: str
    slot: str
    made: datetime
    language: str = "en"

    def text(self) -> str:
        """Plain text; the code is drawn with block characters, to be printed in a monospaced font."""
        words = self._words()
        width = _WIDTHS[self.language]
        rule = "-" * 78
        lines = [str(words["title"]).upper(), rule, *textwrap.wrap(str(words["warning"]), width), ""]
        lines += [f"{name}: {value}" for name, value in self._facts()]
        lines += [f"{words['kept']}: {'_' * 40}", "", f"{words['key']}:", ""]
        lines += [f"    {line}" for line in self._key_lines()]
        lines += [
            "",
            *textwrap.wrap(str(words["key note"]), width),
            "",
            *(f"    {line}" for line in self._blocks()),
            rule,
        ]
        for heading, steps in (("use", "steps"), ("care", "care steps")):
            lines += ["", f"{words[heading]}:"]
            for number, step in enumerate(self._steps(steps), 1):
                # an address or a command is not broken: it is typed
                wrapped = textwrap.wrap(step, width - 5, break_long_words=False, break_on_hyphens=False)
                lines += [f"  {number}. {wrapped[0]}", *(f"     {line}" for line in wrapped[1:])]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """One page of HTML with its style and its picture; it loads nothing."""
        words = self._words()

        def shown(text: object) -> str:
            return html.escape(str(text))

        facts = "".join(f"<dt>{shown(name)}</dt><dd>{shown(value)}</dd>" for name, value in self._facts())
        lists = "".join(
            f"<h2>{shown(words[heading])}</h2><ol>"
            + "".join(f"<li>{shown(step)}</li>" for step in self._steps(steps))
            + "</ol>"
            for heading, steps in (("use", "steps"), ("care", "care steps"))
        )
        return (
            f'<!doctype html>\n<html lang="{self.language}"><head><meta charset="utf-8">'
            '<meta name="robots" content="noindex"><meta name="viewport" content="width=device-width">'
            f"<title>{shown(words['title'])}</title><style>{_STYLE}</style></head><body>"
            f'<h1>{shown(words["title"])}</h1><p class="warning">{shown(words["warning"])}</p>'
            f'<dl>{facts}<dt>{shown(words["kept"])}</dt><dd class="kept"></dd></dl>'
            f"<h2>{shown(words['key'])}</h2><pre>{shown(chr(10).join(self._key_lines()))}</pre>"
            f"<p>{shown(words['key note'])}</p>"
            f'<img alt="{shown(words["key"])}" src="{self._code().png_data_uri(scale=8, border=4)}">'
            f"{lists}</body></html>\n"
        )

    def _words(self) -> dict[str, object]:
        return dict(_TEXTS[self.language])

    def _facts(self) -> list[tuple[str, str]]:
        words = self._words()
        values = (
            ("repository", self.url),
            ("identity", self.identity),
            ("slot", self.slot),
            ("made", f"{self.made:%Y-%m-%d %H:%M} UTC"),
        )
        return [(str(words[name]), value) for name, value in values]

    def _steps(self, name: str) -> Sequence[str]:
        steps = self._words()[name]
        assert isinstance(steps, tuple)
        return [step.format(url=shlex.quote(self.url), slot=self.slot) for step in steps]

    def _key_lines(self) -> list[str]:
        groups = self.key.split("-")
        return ["-".join(groups[at : at + _GROUPS_IN_LINE]) for at in range(0, len(groups), _GROUPS_IN_LINE)]

    def _code(self) -> segno.QRCode:
        import segno

        return segno.make(self.key, error="m", micro=False)

    def _blocks(self) -> list[str]:
        """Two rows of the code in a line of text, with the quiet border that readers want (ISO/IEC 18004)."""
        rows = [[bool(module) for module in row] for row in self._code().matrix_iter(border=4)]
        if len(rows) % 2:
            rows.append([False] * len(rows[0]))
        signs = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
        return [
            "".join(signs[pair] for pair in zip(upper, lower, strict=True)).rstrip()
            for upper, lower in zip(rows[::2], rows[1::2], strict=True)
        ]


def find_recovery_key(text: str) -> str | None:
    """The recovery key in the text of a sheet, of a key file or of anything else; None where there is none."""
    found = _SEPARATED.search(_TAG.sub(" ", text))
    return found[0] if found else None
