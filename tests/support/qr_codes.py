"""QR codes as a camera sees them: pictures, and blocks on a screen, read by a decoder that has no part in making them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import zxingcpp

__all__ = ["png_pixels", "read_code", "text_pixels"]

Pixels = npt.NDArray[np.uint8]


def read_code(pixels: Pixels) -> str:
    """The text of the one code in a grey picture."""
    (found,) = zxingcpp.read_barcodes(pixels)
    return str(found.text)


def png_pixels(data: bytes) -> Pixels:
    """A grey picture of one bit a pixel, its rows as they are or less the row above (PNG specification, 7 and 9)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 12 + size
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (chunks[0][0], depth, colour) == (b"IHDR", 1, 0)
    raw = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + -(-width // 8))
    assert set(rows[:, 0].tolist()) <= {0, 2}
    packed = rows[:, 1:].copy()
    for number in np.flatnonzero(rows[:, 0] == 2).tolist():
        packed[number] += packed[number - 1] if number else 0
    return np.unpackbits(packed, axis=1)[:, :width] * np.uint8(255)


def text_pixels(lines: Sequence[str], scale: int = 6) -> Pixels:
    """Blocks as dark print on paper."""
    width = max(map(len, lines))
    signs = {" ": (255, 255), "▀": (0, 255), "▄": (255, 0), "█": (0, 0)}
    halves = [[signs[sign][half] for sign in line.ljust(width)] for line in lines for half in (0, 1)]
    return np.array(halves, np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
