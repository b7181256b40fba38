"""Markup read by parsers that take nothing amiss: HTML with every tag closed, and what a browser would be asked to fetch."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec

__all__ = ["Page", "read_html"]

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(msgspec.Struct):
    """What was found: ``text`` is what a person reads, ``tags`` every tag with its attributes, in order."""

    text: list[str] = []
    tags: list[tuple[str, dict[str, str | None]]] = []

    def of_class(self, name: str) -> list[str]:
        """The tags that have this class."""
        return [tag for tag, attributes in self.tags if name in (attributes.get("class") or "").split()]

    def names(self) -> set[str]:
        """The names of all tags."""
        return {tag for tag, _attributes in self.tags}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _value in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.page.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if data.strip() and (not self._open or self._open[-1] != "style"):
            self.page.text.append(data)

    def close(self) -> None:
        super().close()
        assert self._open == []


def read_html(text: str) -> Page:
    """The page; fails where a tag is left open or closes another."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.page
