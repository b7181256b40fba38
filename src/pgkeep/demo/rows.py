"""The rows of the demo's authentication service, with the entropy of real ones.

Password hashes, token hashes and ids do not compress, the rest does. All of it follows from the ``random.Random`` that is
handed in.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from pgkeep.demo.schema import PLATFORMS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = [
    "LOCALES",
    "MAIL_HOSTS",
    "NAMES",
    "REASONS",
    "audit_details",
    "audit_line",
    "display_name",
    "ip_address",
    "link_line",
    "password_hash",
    "token_line",
    "user_agent",
    "user_line",
]

_FIRST_MOMENT: Final = datetime(2024, 1, 1, tzinfo=UTC)
_SPAN_SECONDS: Final = 2 * 365 * 86400

NAMES: Final = (  # noqa: SIM905 - words read best as words
    "mina joon sora tae haneul jisoo bora daniel emma liam olivia noah ava lucas mia leo zoe ivan nora felix hugo "
    "alice kenji yuki aiko chen wei lin sofia mateo lucia omar layla ravi priya"
).split()
_KOREAN_SURNAMES: Final = "김이박최정강조윤장임한오서신권황안송류홍"
_KOREAN_FIRST: Final = "민서도지하시수예다주채건유현소"
_KOREAN_SECOND: Final = "준연윤우은아호원나율진빈"
MAIL_HOSTS: Final = ("gmail.com", "naver.com", "daum.net", "outlook.com", "icloud.com", "example.org", "kakao.com")
LOCALES: Final = ("ko-KR", "ko-KR", "en-US", "ja-JP", "zh-TW", "de-DE", "pt-BR")
_ACTIONS: Final = (
    "login",
    "login",
    "login",
    "token.refresh",
    "token.refresh",
    "logout",
    "login.failed",
    "profile.update",
)
REASONS: Final = ("logout", "password_changed", "rotated", "admin_revoked", "suspicious_activity")
_CITIES: Final = ("KR/Seoul", "KR/Busan", "KR/Incheon", "JP/Tokyo", "US/Seattle", "DE/Berlin", "BR/Recife", "TW/Taipei")
_AGENTS: Final[tuple[Callable[[int, int], str], ...]] = (
    lambda major, build: (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        f"Chrome/{110 + major}.0.{build}.{build % 200} Safari/537.36"
    ),
    lambda major, build: (
        f"Mozilla/5.0 (iPhone; CPU iPhone OS {14 + major % 4}_{build % 7} like Mac OS X) AppleWebKit/605.1.15 "
        f"(KHTML, like Gecko) Version/{14 + major % 4}.{build % 7} Mobile/15E148 Safari/604.1"
    ),
    lambda major, build: (
        f"Mozilla/5.0 (Linux; Android {10 + major % 5}; SM-S9{build % 90:02}N) AppleWebKit/537.36 "
        f"(KHTML, like Gecko) Chrome/{110 + major}.0.{build}.{build % 200} Mobile Safari/537.36"
    ),
    lambda major, build: f"UnityPlayer/2022.3.{major}f1 (UnityWebRequest/1.0, libcurl/8.5.{build % 10}-DEV)",
    lambda major, build: f"AuthSdk/3.{major}.{build % 40} okhttp/4.12.0 (Android {10 + major % 5}; ko-KR)",
)


def _uuid(rng: random.Random) -> str:
    digits = rng.randbytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _base64(rng: random.Random, size: int) -> str:
    return b64encode(rng.randbytes(size)).rstrip(b"=").decode()


def password_hash(rng: random.Random) -> str:
    """Argon2id's encoded form; no password belongs to it."""
    return f"$argon2id$v=19$m=65536,t=3,p=4${_base64(rng, 16)}${_base64(rng, 32)}"


def display_name(rng: random.Random) -> str:
    """A Korean name, or a nickname."""
    if rng.random() < 0.4:
        return rng.choice(_KOREAN_SURNAMES) + rng.choice(_KOREAN_FIRST) + rng.choice(_KOREAN_SECOND)
    return f"{rng.choice(NAMES)}_{int(rng.random() * 10_000)}"


def _platform_user_id(rng: random.Random, platform: str) -> str:
    if platform == "steam":
        return f"7656119{int(rng.random() * 10**10):010}"
    if platform == "apple":
        return f"{int(rng.random() * 10**6):06}.{rng.randbytes(16).hex()}.{int(rng.random() * 10**4):04}"
    if platform == "naver":
        return _base64(rng, 32)
    return f"{int(rng.random() * 9 * 10**17) + 10**17}"


def ip_address(rng: random.Random) -> str:
    """An IPv4 address."""
    a, b, c = rng.randbytes(3)
    return f"{(211, 175, 121, 58, 24, 91)[a % 6]}.{a}.{b}.{c}"


def user_agent(rng: random.Random) -> str:
    """What a browser, a game or a mobile library calls itself."""
    return _AGENTS[int(rng.random() * len(_AGENTS))](int(rng.random() * 20), 4000 + int(rng.random() * 2000))


def audit_details(rng: random.Random, action: str, ip: str) -> dict[str, object]:
    """The JSON of an audit row; no text in it has a quote."""
    return {
        "ip": ip,
        "geo": _CITIES[int(rng.random() * len(_CITIES))],
        "device": {"id": rng.randbytes(8).hex(), "app": f"3.{int(rng.random() * 20)}.{int(rng.random() * 9)}"},
        "request_id": _uuid(rng),
        "method": ("password", "refresh_token", "oauth")[len(action) % 3],
        "latency_ms": int(rng.random() * 400),
        "risk": round(rng.random(), 2),
    }


def _moment(fraction: float) -> str:
    """A time in the demo's two years, in ISO 8601."""
    return (_FIRST_MOMENT + timedelta(seconds=fraction * _SPAN_SECONDS)).isoformat()


# One line of COPY's text format a row. ``number`` is the row's own from 1, ``when`` how far into the two years it lies.


def user_line(rng: random.Random, number: int, when: float, _users: int) -> str:
    """A row of ``users``."""
    signed_up = _moment(when)
    email = f"{rng.choice(NAMES)}.{number}@{rng.choice(MAIL_HOSTS)}"
    status = "active" if rng.random() < 0.97 else "locked"
    verified = signed_up if rng.random() < 0.9 else "\\N"
    return (
        f"{number}\t{_uuid(rng)}\t{email}\t{password_hash(rng)}\t{display_name(rng)}\t{rng.choice(LOCALES)}\t{status}\t"
        f"{int(rng.random() ** 8 * 5)}\t{verified}\t{_moment(when + (1 - when) * rng.random())}\t{signed_up}\t{signed_up}\n"
    )


def link_line(rng: random.Random, number: int, when: float, users: int) -> str:
    """A row of ``platform_accounts``."""
    platform = PLATFORMS[int(rng.random() * len(PLATFORMS))]
    owner = 1 + int(rng.random() * users)
    profile = f'{{"nickname": "{display_name(rng)}", "country": "{rng.choice(_CITIES)[:2]}", "level": {number % 80}}}'
    return (
        f"{number}\t{owner}\t{platform}\t{_platform_user_id(rng, platform)}\t\\\\x{rng.randbytes(48).hex()}\t"
        f"{profile}\t{_moment(when)}\n"
    )


def token_line(rng: random.Random, _number: int, when: float, users: int) -> str:
    """A row of ``token_blacklist``."""
    return (
        f"{_uuid(rng)}\t{1 + int(rng.random() * users)}\t\\\\x{rng.randbytes(32).hex()}\t{rng.choice(REASONS)}\t"
        f"{_moment(when)}\t{_moment(when + rng.random() / 100)}\n"
    )


def audit_line(rng: random.Random, number: int, when: float, users: int) -> str:
    """A row of ``audit_logs``."""
    action = _ACTIONS[int(rng.random() * len(_ACTIONS))]
    ip = ip_address(rng)
    details = str(audit_details(rng, action, ip)).replace("'", '"')
    success = "f" if action == "login.failed" else "t"
    return (
        f"{number}\t{1 + int(rng.random() * users)}\t{action}\t{success}\t{ip}\t{user_agent(rng)}\t{details}\t"
        f"{_moment(when)}\n"
    )
