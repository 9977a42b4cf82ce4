"""Repeated lines and repeated word n-grams of each document. Knows nothing of thresholds."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.text.kernels import mix64
from dqs.text.unicode_tables import CharClass

TOP_SIZES = (2, 3, 4)
"""Sizes whose most frequent n-gram is measured."""
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)
"""Sizes whose repeated n-grams are measured together."""

_SPACE = np.uint8(CharClass.SPACE)
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_LONGEST = DUPLICATE_SIZES[-1]
_FIRST_DUPLICATE = DUPLICATE_SIZES[0]


@njit(cache=True, nogil=True, inline="always")
def trimmed(classes: NDArray[np.uint8], first: int, last: int) -> tuple[int, int]:
    """A range of code points without the white space at both its ends."""
    while first < last and classes[first] & _SPACE:
        first += 1
    while first < last and classes[last - 1] & _SPACE:
        last -= 1
    return first, last


@njit(cache=True, nogil=True)
def ngram_shares(
    word_hash: NDArray[np.uint64],
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_offsets: NDArray[np.int64],
    shares: NDArray[np.float32],
) -> None:
    """Gopher's repetition measures for n = 2 to 10 in one walk.

    An n-gram can only repeat where its first n - 1 words repeat, so each size
    looks at what the size before left over; on ordinary prose little is left
    after n = 3.

    Args:
        word_hash: uint64[words]; with the next three as in `TextBatch`.
        word_start: int64[words].
        word_end: int64[words].
        word_offsets: int64[n + 1].
        shares: float32[n, 9], filled with shares (0 to 1) of the characters of all words:
            for sizes 2, 3 and 4, what the occurrences of the n-gram with the most
            characters cover; for sizes 5 to 10, what n-grams that occurred before cover.
            NaN for a document without words.

    Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from
    Training Gopher", appendix A1.1. We differ from the common code (datatrove
    `gopher_repetition_filter.py`@a649de7): the denominator is the characters of words
    rather than of the text, an n-gram that occurs once is no top n-gram, and characters
    under overlapping repeats count once.
    """
    longest = np.int64(0)
    for document in range(word_offsets.size - 1):
        longest = max(longest, word_offsets[document + 1] - word_offsets[document])
    capacity = np.int64(16)
    while capacity < 2 * longest:
        capacity *= 2
    keys = np.empty(capacity, dtype=np.uint64)
    counts = np.zeros(capacity, dtype=np.int32)
    seen = np.empty(capacity, dtype=np.bool_)
    positions = np.empty(longest, dtype=np.int64)
    hashes = np.empty(longest, dtype=np.uint64)
    slots = np.empty(longest, dtype=np.int64)
    for document in range(word_offsets.size - 1):
        start = word_offsets[document]
        end = word_offsets[document + 1]
        if start == end:
            shares[document, :] = np.float32(np.nan)
            continue
        shares[document, :] = np.float32(0)
        total = np.int64(0)
        for word in range(start, end):
            total += word_end[word] - word_start[word]
            positions[word - start] = word
            hashes[word - start] = word_hash[word]
        live = end - start
        for size in range(2, _LONGEST + 1):
            table = np.int64(16)
            while table < 2 * live:
                table *= 2
            mask = np.uint64(table - 1)
            counts[:table] = 0
            inserted = 0
            for k in range(live):
                position = positions[k]
                if position + size > end:
                    continue
                value = mix64(hashes[k] * _PRIME + word_hash[position + size - 1])
                slot = np.int64(value & mask)
                while counts[slot] != 0 and keys[slot] != value:
                    slot = (slot + 1) & np.int64(table - 1)
                keys[slot] = value
                counts[slot] += 1
                seen[slot] = False
                positions[inserted] = position
                hashes[inserted] = value
                slots[inserted] = slot
                inserted += 1
            best = np.int64(0)
            covered = np.int64(0)
            covered_to = start
            live = 0
            for k in range(inserted):
                slot = slots[k]
                if counts[slot] < 2:
                    continue
                position = positions[k]
                if size < _FIRST_DUPLICATE:
                    if not seen[slot]:
                        length = np.int64(0)
                        for word in range(position, position + size):
                            length += word_end[word] - word_start[word]
                        best = max(best, length * counts[slot])
                elif seen[slot]:
                    for word in range(max(position, covered_to), position + size):
                        covered += word_end[word] - word_start[word]
                    covered_to = position + size
                seen[slot] = True
                positions[live] = position
                hashes[live] = hashes[k]
                live += 1
            repeated = best if size < _FIRST_DUPLICATE else covered
            shares[document, size - 2] = np.float32(min(1.0, repeated / total))
            if live == 0:
                break


@njit(cache=True, nogil=True)
def duplicate_lines(
    codepoints: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    line_start: NDArray[np.int64],
    line_end: NDArray[np.int64],
    line_offsets: NDArray[np.int64],
    shares: NDArray[np.float32],
) -> None:
    """Shares of lines, and of their characters, that repeat an earlier line of the document.

    Lines are compared without surrounding white space; blank lines are left out
    of every count, and the first copy of a line is not a duplicate.

    Args:
        codepoints: uint32[characters]; with the next four as in `TextBatch`.
        classes: uint8[characters].
        line_start: int64[lines].
        line_end: int64[lines].
        line_offsets: int64[n + 1].
        shares: float32[n, 2], filled with both shares (0 to 1); NaN where every line is blank.
    """
    most = np.int64(0)
    for document in range(line_offsets.size - 1):
        most = max(most, line_offsets[document + 1] - line_offsets[document])
    capacity = np.int64(16)
    while capacity < 2 * most:
        capacity *= 2
    keys = np.empty(capacity, dtype=np.uint64)
    used = np.zeros(capacity, dtype=np.bool_)
    for document in range(line_offsets.size - 1):
        table = np.int64(16)
        while table < 2 * (line_offsets[document + 1] - line_offsets[document]):
            table *= 2
        used[:table] = False
        lines = np.int64(0)
        characters = np.int64(0)
        repeated_lines = np.int64(0)
        repeated_characters = np.int64(0)
        for line in range(line_offsets[document], line_offsets[document + 1]):
            first, last = trimmed(classes, line_start[line], line_end[line])
            if first == last:
                continue
            value = np.uint64(last - first)
            for position in range(first, last):
                value = (value ^ np.uint64(codepoints[position])) * _PRIME
            value = mix64(value)
            lines += 1
            characters += last - first
            slot = np.int64(value & np.uint64(table - 1))
            while used[slot] and keys[slot] != value:
                slot = (slot + 1) & (table - 1)
            if used[slot]:
                repeated_lines += 1
                repeated_characters += last - first
            used[slot] = True
            keys[slot] = value
        if lines == 0:
            shares[document, :] = np.float32(np.nan)
        else:
            shares[document, 0] = np.float32(repeated_lines / lines)
            shares[document, 1] = np.float32(repeated_characters / characters)
