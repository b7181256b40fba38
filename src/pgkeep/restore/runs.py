"""How the pieces of files come together before they are written: neighbours that lie in several contents go to the disk in one write.

A cell that incremental backups have changed is made of a content of its own and of pages of bundles, which hold pages of many cells. The
bundles of a window are fetched first and held; then each cell is put together when its own content comes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Assembly", "Piece", "Run", "assemble"]


@dataclass(frozen=True, slots=True)
class Piece:
    """``size`` bytes of a file from ``position`` on; a content has them from its byte ``start`` on.

    ``is_new`` where the file was made just now, so that what is on the disk need not be looked at.
    """

    place: bytes
    shown_path: str
    content: bytes
    start: int
    position: int
    size: int
    is_new: bool = True


Run = list[Piece]
"""Pieces that follow one another in a file without a gap."""


@dataclass
class Assembly:
    """What is written when: ``held`` contents are needed by runs of other ones, and are fetched first.

    ``by_content`` are the runs that can be written once a content is there, and the held ones are; ``rest`` need held ones alone.
    """

    held: set[bytes] = field(default_factory=set)
    by_content: dict[bytes, list[Run]] = field(default_factory=lambda: defaultdict(list))
    rest: list[Run] = field(default_factory=list)


def assemble(pieces: Sequence[Piece], cell_size: int, plain_sizes: Mapping[bytes, int], room: int) -> Assembly:
    """Put pieces, in order of file and position, together within cells; each is in one run.

    ``plain_sizes`` are the contents' in bytes, ``room`` what may be held of them: pieces of others than fit are runs of their own.
    """
    assembly = Assembly()
    cells = [(cell, _largest(cell)) for cell in _cells(pieces, cell_size)]
    needed = Counter(content for cell, own in cells for content in {piece.content for piece in cell} - {own})
    for content, _ in needed.most_common():
        if plain_sizes[content] <= room:
            assembly.held.add(content)
            room -= plain_sizes[content]
    for cell, own in cells:
        run: Run = []
        for piece in cell:
            if piece.content == own or piece.content in assembly.held:
                run.append(piece)
            else:
                _add(assembly, run, own)
                assembly.by_content[piece.content].append([piece])
                run = []
        _add(assembly, run, own)
    return assembly


def _cells(pieces: Sequence[Piece], cell_size: int) -> Iterator[Run]:
    """Neighbours that begin in the same cell of their file."""
    cell: Run = []
    for piece in pieces:
        if cell and not (
            piece.place == cell[-1].place
            and piece.position == cell[-1].position + cell[-1].size
            and piece.position // cell_size == cell[-1].position // cell_size
        ):
            yield cell
            cell = []
        cell.append(piece)
    if cell:
        yield cell


def _largest(cell: Run) -> bytes:
    """The content that most of a cell is in."""
    if len(cell) == 1:
        return cell[0].content
    sizes: Counter[bytes] = Counter()
    for piece in cell:
        sizes[piece.content] += piece.size
    return sizes.most_common(1)[0][0]


def _add(assembly: Assembly, run: Run, own: bytes) -> None:
    if not run:
        return
    if own not in assembly.held and any(piece.content == own for piece in run):
        assembly.by_content[own].append(run)
    else:
        assembly.rest.append(run)
