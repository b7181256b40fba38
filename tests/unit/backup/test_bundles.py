from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.backup.bundles import PageBundler, Placed, zero_pages
from pgkeep.backup.overlay import Extents, Pages
from pgkeep.errors import StoreError
from pgkeep.repository import Repository
from support.maps import pages_of

PAGE = 512
ROOM = 8


def page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE) if seed else bytes(PAGE)


def numbers(*pages: int) -> Pages:
    return np.array(pages, np.uint32)


class Answers:
    """What a bundler said of each file."""

    def __init__(self) -> None:
        self.extents: dict[bytes, list[Extents]] = {}
        self.stored = 0
        self._lock = threading.Lock()

    def of(self, path: bytes) -> Placed:
        def placed(extents: Extents, stored: int) -> None:
            with self._lock:
                self.extents.setdefault(path, []).append(extents)
                self.stored += stored

        return placed

    def read(self, repository: Repository, path: bytes) -> dict[int, bytes]:
        """The bytes of a file's pages that are somewhere."""
        reader = repository.reader()
        return {
            int(extent["first_page"]) + step: reader.get(extent["id"].tobytes())[
                (int(extent["content_page"]) + step) * PAGE :
            ][:PAGE]
            for extents in self.extents[path]
            for extent in extents
            for step in range(int(extent["pages"]))
        }


def test_pages_of_many_files_share_a_content(repository: Repository) -> None:
    answers = Answers()
    with repository.writer() as writer:
        bundler = PageBundler(writer, repository.parameters)
        for number in range(ROOM):
            bundler.add(b"%d" % number, numbers(number * 3), page(number + 1), answers.of(b"%d" % number))
        assert answers.extents == {}
        bundler.flush()

    assert len({extents[0]["id"][0].tobytes() for extents in answers.extents.values()}) == 1
    for number in range(ROOM):
        assert answers.read(repository, b"%d" % number) == {number * 3: page(number + 1)}
    content = answers.extents[b"0"][0]["id"][0].tobytes()
    assert abs(answers.stored - repository.reader().locate(content).entry.stored_size) < ROOM


def test_pages_that_do_not_fit_open_a_new_content(repository: Repository) -> None:
    answers = Answers()
    with repository.writer() as writer:
        bundler = PageBundler(writer, repository.parameters)
        bundler.add(b"a", numbers(0, 1, 2, 3, 4), b"".join(map(page, range(1, 6))), answers.of(b"a"))
        bundler.add(b"b", numbers(0, 1, 2, 3), b"".join(map(page, range(6, 10))), answers.of(b"b"))
        assert list(answers.extents) == [b"a"]
        bundler.flush()
        bundler.flush()

    assert answers.read(repository, b"b") == {number: page(number + 6) for number in range(4)}


def test_pages_of_zeros_are_holes(repository: Repository) -> None:
    """They are in no extent, and a part that is nothing else is answered at once."""
    answers = Answers()
    with repository.writer() as writer:
        bundler = PageBundler(writer, repository.parameters)
        bundler.add(b"a", numbers(3, 4), bytes(2 * PAGE), answers.of(b"a"))
        assert answers.read(repository, b"a") == {}
        bundler.add(b"b", numbers(3, 4, 5), page(1) + page(0) + page(2), answers.of(b"b"))
        bundler.flush()

    assert answers.read(repository, b"b") == {3: page(1), 5: page(2)}
    assert [extents["content_page"].tolist() for extents in answers.extents[b"b"]] == [[0, 1]]


def test_a_page_whose_header_is_zeros_and_whose_body_is_not_is_no_hole() -> None:
    data = bytes(PAGE) + bytes(PAGE - 1) + b"x" + bytes(PAGE)
    assert zero_pages(data, PAGE).tolist() == [True, False, True]


@given(seeds=st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_zero_pages_are_found(seeds: list[int]) -> None:
    assert zero_pages(b"".join(map(page, seeds)), PAGE).tolist() == [seed == 0 for seed in seeds]


def test_many_threads_fill_bundles_and_every_page_is_found_again(repository: Repository) -> None:
    """Within a content, the pages of a file lie in order."""
    answers = Answers()

    def feed(number: int) -> None:
        chance = random.Random(number)
        first = 0
        for _ in range(50):
            count = chance.randint(1, 5)
            chosen = numbers(*range(first, first + 2 * count, 2))
            first += 2 * count
            data = b"".join(page(1 + number * 100_000 + int(one)) for one in chosen)
            bundler.add(b"%d" % number, chosen, data, answers.of(b"%d" % number))

    with repository.writer() as writer:
        bundler = PageBundler(writer, repository.parameters)
        threads = [threading.Thread(target=feed, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bundler.flush()

    for number in range(4):
        path = b"%d" % number
        found = answers.read(repository, path)
        assert len(found) > 50
        assert found == {one: page(1 + number * 100_000 + one) for one in found}
        for extents in answers.extents[path]:
            pages_of(extents)


def test_an_error_of_the_store_reaches_the_one_who_fills_the_bundle(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with repository.writer() as writer:
        bundler = PageBundler(writer, repository.parameters)

        def fail(*_: object) -> None:
            raise StoreError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(writer, "put", fail)
            bundler.add(b"a", numbers(0), page(1), Answers().of(b"a"))
            with pytest.raises(StoreError, match="no room"):
                bundler.flush()
