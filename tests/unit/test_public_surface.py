"""What other programs may import: every module says it in ``__all__``."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import pgkeep

PROJECT = Path(__file__).parents[2]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(pgkeep.__path__, "pgkeep.") if "__main__" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_is_there_in_order(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])

    assert list(public) == sorted(public, key=_as_sorted_by_ruff)
    assert [entry for entry in public if not hasattr(module, entry)] == []


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", pgkeep.__version__)


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert Path(pgkeep.__file__).with_name("py.typed").exists()


def test_every_dependency_is_pinned_with_its_hashes() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["demo"]]
    for group in project["dependency-groups"].values():
        wanted += group

    pinned = re.findall(
        r"^([\w-]+)==[^\n]*\\\n +--hash=sha256:", (PROJECT / "constraints.txt").read_text(), re.MULTILINE
    )

    assert {_normal(re.split(r"[\[<>=; ]", entry)[0]) for entry in wanted} <= set(pinned)


def test_the_pins_name_no_place_to_fetch_from() -> None:
    text = (PROJECT / "constraints.txt").read_text()

    assert re.findall(r"://|^ *-(?!-hash=)\S*", text, re.MULTILINE) == []


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _as_sorted_by_ruff(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: ruff's RUF022."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)
