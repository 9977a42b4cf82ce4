"""Kernels that turn UTF-8 bytes into the columns of a `TextBatch`.

Each runs once over a whole batch, outside the interpreter lock.
Array shapes are those of `dqs.text.batch.TextBatch`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.text.unicode_tables import CharClass

_UNSPACED = np.uint8(CharClass.UNSPACED)
_WORD = np.uint8(CharClass.WORD)

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x00000100000001B3)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)


@njit(cache=True, nogil=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """The 64-bit finaliser of MurmurHash3: every input bit reaches every output bit.

    Source: Austin Appleby, MurmurHash3 `fmix64` (public domain).
    """
    value ^= value >> np.uint64(33)
    value *= _MIX_1
    value ^= value >> np.uint64(33)
    value *= _MIX_2
    value ^= value >> np.uint64(33)
    return value


@njit(cache=True, nogil=True)
def decode(
    utf8: NDArray[np.uint8],
    byte_offsets: NDArray[np.int64],
    class_table: NDArray[np.uint8],
    fold_length_table: NDArray[np.uint8],
    contextual_table: NDArray[np.bool_],
    codepoints: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    codepoint_offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    contextual: NDArray[np.bool_],
    folded_lengths: NDArray[np.int64],
) -> None:
    """Decodes strictly (as `bytes.decode("utf-8")` does) and classifies every code point.

    `codepoints` and `classes` must hold as many entries as there are bytes; the
    used part ends at `codepoint_offsets[-1]`. An invalid document leaves no code point.
    """
    out = 0
    for document in range(valid.size):
        codepoint_offsets[document] = out
        position = byte_offsets[document]
        end = byte_offsets[document + 1]
        ok = True
        needs_context = False
        folded = 0
        while position < end:
            first = np.uint32(utf8[position])
            if first < 0x80:
                value = first
                position += 1
            elif first < 0xC2:
                ok = False
                break
            elif first < 0xE0:
                if position + 1 >= end or (utf8[position + 1] & 0xC0) != 0x80:
                    ok = False
                    break
                value = ((first & np.uint32(0x1F)) << np.uint32(6)) | np.uint32(utf8[position + 1] & 0x3F)
                position += 2
            elif first < 0xF0:
                if position + 2 >= end or (utf8[position + 1] & 0xC0) != 0x80 or (utf8[position + 2] & 0xC0) != 0x80:
                    ok = False
                    break
                value = (
                    ((first & np.uint32(0x0F)) << np.uint32(12))
                    | (np.uint32(utf8[position + 1] & 0x3F) << np.uint32(6))
                    | np.uint32(utf8[position + 2] & 0x3F)
                )
                if value < 0x800 or (0xD800 <= value <= 0xDFFF):
                    ok = False
                    break
                position += 3
            elif first < 0xF5:
                if (
                    position + 3 >= end
                    or (utf8[position + 1] & 0xC0) != 0x80
                    or (utf8[position + 2] & 0xC0) != 0x80
                    or (utf8[position + 3] & 0xC0) != 0x80
                ):
                    ok = False
                    break
                value = (
                    ((first & np.uint32(0x07)) << np.uint32(18))
                    | (np.uint32(utf8[position + 1] & 0x3F) << np.uint32(12))
                    | (np.uint32(utf8[position + 2] & 0x3F) << np.uint32(6))
                    | np.uint32(utf8[position + 3] & 0x3F)
                )
                if value < 0x10000 or value > 0x10FFFF:
                    ok = False
                    break
                position += 4
            else:
                ok = False
                break
            codepoints[out] = value
            classes[out] = class_table[value]
            folded += fold_length_table[value]
            needs_context |= contextual_table[value]
            out += 1
        if not ok:
            out = codepoint_offsets[document]
            folded = 0
            needs_context = False
        valid[document] = ok
        contextual[document] = needs_context
        folded_lengths[document] = folded
    codepoint_offsets[valid.size] = out


@njit(cache=True, nogil=True)
def fold(
    codepoints: NDArray[np.uint32],
    codepoint_offsets: NDArray[np.int64],
    contextual: NDArray[np.bool_],
    class_table: NDArray[np.uint8],
    fold_table: NDArray[np.uint32],
    fold_length_table: NDArray[np.uint8],
    expansion: NDArray[np.uint32],
    folded: NDArray[np.uint32],
    folded_classes: NDArray[np.uint8],
    folded_origin: NDArray[np.int32],
    folded_offsets: NDArray[np.int64],
) -> None:
    """Folds every document whose characters fold one by one; leaves room for the contextual ones."""
    for document in range(contextual.size):
        if contextual[document]:
            continue
        out = folded_offsets[document]
        start = codepoint_offsets[document]
        for position in range(start, codepoint_offsets[document + 1]):
            value = codepoints[position]
            length = fold_length_table[value]
            origin = np.int32(position - start)
            if length == 1:
                value = fold_table[value]
                folded[out] = value
                folded_classes[out] = class_table[value]
                folded_origin[out] = origin
                out += 1
            else:
                first = np.int64(fold_table[value])
                for k in range(length):
                    part = expansion[first + k]
                    folded[out] = part
                    folded_classes[out] = class_table[part]
                    folded_origin[out] = origin
                    out += 1


@njit(cache=True, nogil=True)
def split_lines(
    codepoints: NDArray[np.uint32],
    codepoint_offsets: NDArray[np.int64],
    line_start: NDArray[np.int64],
    line_end: NDArray[np.int64],
    line_offsets: NDArray[np.int64],
) -> None:
    """Lines end at a line feed; a carriage return right before it belongs to the break.

    `line_start` and `line_end` must hold one entry per line feed and one per document.
    """
    out = 0
    for document in range(codepoint_offsets.size - 1):
        line_offsets[document] = out
        start = codepoint_offsets[document]
        end = codepoint_offsets[document + 1]
        for position in range(start, end):
            if codepoints[position] == 10:
                stop = position
                if stop > start and codepoints[stop - 1] == 13:
                    stop -= 1
                line_start[out] = start
                line_end[out] = stop
                out += 1
                start = position + 1
        if start < end:
            line_start[out] = start
            line_end[out] = end
            out += 1
    line_offsets[codepoint_offsets.size - 1] = out


@njit(cache=True, nogil=True)
def split_words(
    folded: NDArray[np.uint32],
    folded_classes: NDArray[np.uint8],
    folded_offsets: NDArray[np.int64],
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_hash: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
) -> None:
    """A word is one UNSPACED word character, or a maximal run of other word characters.

    `word_start`, `word_end` and `word_hash` must hold as many entries as `folded`.
    """
    out = 0
    for document in range(folded_offsets.size - 1):
        word_offsets[document] = out
        position = folded_offsets[document]
        end = folded_offsets[document + 1]
        while position < end:
            flags = folded_classes[position]
            if not flags & _WORD:
                position += 1
                continue
            start = position
            value = (_FNV_OFFSET ^ np.uint64(folded[position])) * _FNV_PRIME
            position += 1
            if not flags & _UNSPACED:
                while position < end and (folded_classes[position] & (_WORD | _UNSPACED)) == _WORD:
                    value = (value ^ np.uint64(folded[position])) * _FNV_PRIME
                    position += 1
            word_start[out] = start
            word_end[out] = position
            word_hash[out] = mix64(value)
            out += 1
    word_offsets[folded_offsets.size - 1] = out
