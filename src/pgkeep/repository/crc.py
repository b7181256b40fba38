"""CRC-32C of a whole from the CRC-32C of its pieces, so that pieces can be summed in any order by any thread.

The CRC of a byte string followed by ``n`` zeros is a linear map of its CRC over GF(2); the map for ``n`` bytes is found by
squaring (Mark Adler's crc32_combine in zlib, with the polynomial of RFC 3720, appendix B.4).
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["combine_crc32c"]

_POLYNOMIAL = 0x82F63B78
_Matrix = tuple[int, ...]


def combine_crc32c(first: int, second: int, second_size: int) -> int:
    """The CRC of two byte strings one after the other, from their CRCs and the second one's size in bytes."""
    return _times(_shift(second_size), first) ^ second


@lru_cache(maxsize=256)
def _shift(size: int) -> _Matrix:
    """The map that ``size`` zero bytes are: a matrix of 32 columns."""
    result: _Matrix = tuple(1 << bit for bit in range(32))
    power = _one_byte()
    while size:
        if size & 1:
            result = tuple(_times(power, column) for column in result)
        power = tuple(_times(power, column) for column in power)
        size >>= 1
    return result


def _one_byte() -> _Matrix:
    one_bit: _Matrix = (_POLYNOMIAL, *(1 << bit for bit in range(31)))
    for _ in range(3):
        one_bit = tuple(_times(one_bit, column) for column in one_bit)
    return one_bit


def _times(matrix: _Matrix, vector: int) -> int:
    total = bit = 0
    while vector:
        if vector & 1:
            total ^= matrix[bit]
        vector >>= 1
        bit += 1
    return total
