"""Which lines a corpus has seen: a table of hashes of bounded size, one Redis string.

Web text repeats in parts: menus, notices, licences. The table answers which of a document's
lines an earlier document of the corpus had. It may forget lines, and it has a bound.

A slot holds a whole 32-bit hash, 0 if it is empty. A hash may stand in either of two slots, which its
lowest bits name. Where both are taken, one of them is overwritten: the table forgets old lines
as it fills up and never grows beyond its bound. Until then it doubles: since the slots are named by
the lowest bits, the doubled table is the old one twice, end to end, and what stands in the
wrong half is overwritten in time.

Chosen over a Bloom filter, which cannot forget, errs more often the fuller it gets and takes
one look-up per bit, and over the buckets of the bands, which cost one cold look-up each. A look-up here
is one of many in a single command, at 4 bytes a line. A line is taken for another one with
a probability of the number of lines remembered in 2 ** 31.

The table is not part of the atomic step that decides about a document: of two documents that are
decided at the same time neither may have seen the other's lines. Pure but for Redis's command names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.index.connection import Packed

FIRST_SLOTS = 1 << 14
"""Slots of a new table; a power of two."""

COPY_BYTES = 1 << 18
"""Copied by one call of `double_lines.lua`."""

COMMAND_LINES = 1024
"""Lines looked up or written by one command: less than a millisecond of Redis's time."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenLines:
    """What a corpus knows of the lines of n documents.

    Attributes:
        lines: uint32[n, LINES], as in `Signatures`.
        hashes: uint32[m]; the distinct ones.
        of: int64[n, LINES]; where in `hashes` each stands; meaningless where there is no line.
        pairs: uint32[m, 2]; what the two slots of each hash hold.
        slots: of the table when it was read.
        counts: uint8[n]; how many of a document's lines an earlier document had, of the corpus or of these.
    """

    lines: NDArray[np.uint32]
    hashes: NDArray[np.uint32]
    of: NDArray[np.int64]
    pairs: NDArray[np.uint32]
    slots: int
    counts: NDArray[np.uint8]

    def unknown(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Which of `hashes` are to be written once the documents of `kept`, bool[n], are in the corpus."""
        wanted = np.zeros(self.hashes.size, dtype=np.bool_)
        wanted[self.of[kept][self.lines[kept] > 0]] = True
        return np.flatnonzero(wanted & (self.pairs != self.hashes[:, np.newaxis]).all(axis=1))


def line_counts(lines: NDArray[np.uint32]) -> NDArray[np.int64]:
    """int64[n]: how many hashes each row holds."""
    counts: NDArray[np.int64] = np.count_nonzero(lines, axis=1)
    return counts


def share_seen(seen: NDArray[np.uint8], lines: NDArray[np.uint32]) -> NDArray[np.float32]:
    """float32[n] in [0, 1]: share of each document's lines that were seen before; NaN where it has no line."""
    counts = line_counts(lines)
    share = np.full(seen.size, np.nan, dtype=np.float32)
    has = counts > 0
    share[has] = np.minimum(seen[has] / counts[has], 1.0)
    return share


def distinct(lines: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct hashes, where each of `lines` stands among them, and the first document that has each."""
    flat = lines.ravel()
    present = np.flatnonzero(flat)
    hashes, first, inverse = np.unique(flat[present], return_index=True, return_inverse=True)
    of = np.zeros(flat.size, dtype=np.int64)
    of[present] = inverse
    return hashes, of.reshape(lines.shape), present[first] // max(lines.shape[1], 1)


def count_seen(
    lines: NDArray[np.uint32],
    hashes: NDArray[np.uint32],
    of: NDArray[np.int64],
    first: NDArray[np.int64],
    pairs: NDArray[np.uint32],
) -> NDArray[np.uint8]:
    """uint8[n]: see `SeenLines.counts`; the arguments are those of `distinct` and `SeenLines`."""
    if not hashes.size:
        return np.zeros(lines.shape[0], dtype=np.uint8)
    known = (pairs == hashes[:, np.newaxis]).any(axis=1)
    document = np.arange(lines.shape[0])[:, np.newaxis]
    seen = (known[of] | (first[of] < document)) & (lines > 0)
    counts: NDArray[np.uint8] = np.count_nonzero(seen, axis=1).astype(np.uint8)
    return counts


def reads(hashes: NDArray[np.uint32], slots: int) -> Iterator[Packed]:
    """Arguments of BITFIELD_RO that read the two slots of each hash as one 64-bit number."""
    places = (hashes & np.uint32(slots // 2 - 1)).astype(np.int64)
    for start in range(0, places.size, COMMAND_LINES):
        part = places[start : start + COMMAND_LINES]
        buffer = np.empty(part.size * _OPERATION_BYTES, dtype=np.uint8)
        yield Packed(3 * part.size, buffer[: _write_operations(_GET, part, part[:0], buffer)].tobytes())


def as_pairs(numbers: list[int]) -> NDArray[np.uint32]:
    """uint32[m, 2]: the slots that `reads` has read; Redis's numbers are big-endian."""
    return np.array(numbers, dtype=">i8").view(">u4").reshape(-1, 2).astype(np.uint32)


def writes(hashes: NDArray[np.uint32], pairs: NDArray[np.uint32], slots: int) -> Iterator[tuple[Packed, int]]:
    """Arguments of BITFIELD that write hashes, and how many of them take an empty slot.

    Args:
        hashes: uint32[m].
        pairs: uint32[m, 2]; what their slots held.
        slots: of the table.
    """
    mask = np.uint32(slots // 2 - 1)
    first = 2 * (hashes & mask).astype(np.int64)
    # What a doubling has left in the wrong half is nobody's.
    free = (pairs == 0) | ((pairs & mask) != (hashes & mask)[:, np.newaxis])
    # A bit that names no slot chooses whom to overwrite.
    chosen = (hashes >> np.uint32(31)).astype(np.int64)
    side = np.where(free[:, 0], 0, np.where(free[:, 1], 1, chosen))
    fresh = free.any(axis=1)
    places, values = first + side, hashes.astype(np.int64)
    for start in range(0, places.size, COMMAND_LINES):
        part = slice(start, start + COMMAND_LINES)
        size = places[part].size
        buffer = np.empty(size * _OPERATION_BYTES, dtype=np.uint8)
        end = _write_operations(_SET, places[part], values[part], buffer)
        yield Packed(4 * size, buffer[:end].tobytes()), int(np.count_nonzero(fresh[part]))


_GET = np.frombuffer(b"$3\r\nGET\r\n$3\r\ni64\r\n", dtype=np.uint8)
_SET = np.frombuffer(b"$3\r\nSET\r\n$3\r\nu32\r\n", dtype=np.uint8)
_OPERATION_BYTES = 64
"""No operation has more: its frame, and two numbers of at most eleven characters with theirs."""


@njit(cache=True, nogil=True)
def _write_operations(
    frame: NDArray[np.uint8], places: NDArray[np.int64], values: NDArray[np.int64], out: NDArray[np.uint8]
) -> int:
    """Writes operations of BITFIELD in Redis's protocol, without values if there are none; returns their length."""
    end = 0
    for operation in range(places.size):
        for position in range(frame.size):
            out[end] = frame[position]
            end += 1
        end = _write_number(places[operation], True, out, end)
        if values.size:
            end = _write_number(values[operation], False, out, end)
    return end


@njit(cache=True, nogil=True)
def _write_number(number: int, is_place: bool, out: NDArray[np.uint8], end: int) -> int:
    """Writes `$length CR LF digits CR LF`, with the mark of a place before the digits."""
    digits = 1
    power = 10
    while number >= power:
        digits += 1
        power *= 10
    length = digits + (1 if is_place else 0)
    out[end] = 36
    end += 1
    if length >= 10:
        out[end] = 48 + length // 10
        end += 1
    out[end] = 48 + length % 10
    out[end + 1] = 13
    out[end + 2] = 10
    end += 3
    if is_place:
        out[end] = 35
        end += 1
    for position in range(digits - 1, -1, -1):
        out[end + position] = 48 + number % 10
        number //= 10
    end += digits
    out[end] = 13
    out[end + 1] = 10
    return end + 2
