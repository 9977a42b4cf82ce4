"""Statistics of the text itself: sizes, shares of character classes, repetition.

Needs no model and no language. Word and character counts use the shared
segmentation: a word is a run of word characters, or one character of a
script without spaces.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch
from dqs.text.prose import is_closer, is_terminator
from dqs.text.repetition import DUPLICATE_SIZES, TOP_SIZES, duplicate_lines, ngram_shares, trimmed
from dqs.text.unicode_tables import CharClass

_WORSE_HIGH = Direction.HIGHER_IS_WORSE
_NEUTRAL = Direction.NEUTRAL

_COUNTS = (
    Signal("characters", "code points", 0, math.inf, _NEUTRAL, "Length of the text."),
    Signal("words", "words", 0, math.inf, _NEUTRAL, "Words; each character of a script without spaces is one."),
    Signal("lines", "lines", 0, math.inf, _NEUTRAL, "Lines, blank ones included."),
)
_SHARES = (
    Signal("mean_word_length", "characters", 1, math.inf, _NEUTRAL, "Characters of words divided by words."),
    Signal("letter_share", "share of characters", 0, 1, Direction.LOWER_IS_WORSE, "Letters of any script."),
    Signal("digit_share", "share of characters", 0, 1, _WORSE_HIGH, "Digits and other numerals."),
    Signal("punctuation_share", "share of characters", 0, 1, _WORSE_HIGH, "Punctuation of any script."),
    Signal("symbol_share", "share of characters", 0, 1, _WORSE_HIGH, "Symbols: mathematics, currency, emoji."),
    Signal("whitespace_share", "share of characters", 0, 1, _WORSE_HIGH, "White space, line breaks included."),
    Signal("han_share", "share of characters", 0, 1, _NEUTRAL, "Han characters."),
)
_REPEATED_LINES = (
    Signal("duplicate_line_share", "share of lines", 0, 1, _WORSE_HIGH, "Lines that repeat an earlier line."),
    Signal("duplicate_line_character_share", "share of characters of lines", 0, 1, _WORSE_HIGH,
           "Characters in lines that repeat an earlier line."),
)  # fmt: skip
_LINE_SHAPES = (
    Signal("short_line_share", "share of lines", 0, 1, _WORSE_HIGH,
           "Lines under 30 columns wide, wide characters taking two; missing under 5 lines, as are the next two."),
    Signal("terminated_line_share", "share of lines", 0, 1, Direction.LOWER_IS_WORSE,
           "Lines that end a sentence: a full stop, question or exclamation mark, closing quotes and brackets apart."),
    Signal("ellipsis_line_share", "share of lines", 0, 1, _WORSE_HIGH, "Lines that end in an ellipsis."),
)  # fmt: skip
_NGRAMS = tuple(
    Signal(f"top_{n}gram_share", "share of characters of words", 0, 1, _WORSE_HIGH,
           f"Characters under the most repeated sequence of {n} words.")
    for n in TOP_SIZES
) + tuple(
    Signal(f"duplicate_{n}gram_share", "share of characters of words", 0, 1, _WORSE_HIGH,
           f"Characters under sequences of {n} words that occurred before.")
    for n in DUPLICATE_SIZES
)  # fmt: skip

SHORT_LINE_COLUMNS = 30
"""FineWeb's limit of 30 characters, with wide characters counted twice."""
MIN_SHAPED_LINES = 5
"""Lines that are not blank below which a share of their shapes says nothing: a short text is no menu."""

_ELLIPSIS = ord("…")
_UNSPACED = np.uint8(CharClass.UNSPACED)


class StatisticsScorer:
    """Counts and shares; missing (TOO_SHORT) where a share has nothing to be a share of."""

    name: ClassVar[str] = "statistics"
    needs: ClassVar[tuple[str, ...]] = ()
    signals = _COUNTS + _SHARES + _REPEATED_LINES + _LINE_SHAPES + _NGRAMS

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills every column of `signals`."""
        n = len(batch)
        counts = np.empty((n, len(_COUNTS)), dtype=np.float32)
        shares = np.empty((n, len(_SHARES)), dtype=np.float32)
        _count(
            batch.classes, batch.codepoint_offsets, batch.line_offsets,
            batch.word_start, batch.word_end, batch.word_offsets, counts, shares,
        )  # fmt: skip
        lines = np.empty((n, len(_REPEATED_LINES)), dtype=np.float32)
        duplicate_lines(batch.codepoints, batch.classes, batch.line_start, batch.line_end, batch.line_offsets, lines)
        shapes = np.empty((n, len(_LINE_SHAPES)), dtype=np.float32)
        _line_shapes(batch.codepoints, batch.classes, batch.line_start, batch.line_end, batch.line_offsets, shapes)
        ngrams = np.empty((n, len(_NGRAMS)), dtype=np.float32)
        ngram_shares(batch.word_hash, batch.word_start, batch.word_end, batch.word_offsets, ngrams)
        tables = [table.T for table in (counts, shares, lines, shapes, ngrams)]
        rows = np.ascontiguousarray(np.concatenate(tables))
        missing = np.where(np.isnan(rows), np.uint8(Missing.TOO_SHORT.value), np.uint8(Missing.PRESENT.value))
        columns.put_rows([signal.name for signal in self.signals], rows, missing)


@njit(cache=True, nogil=True)
def _count(
    classes: NDArray[np.uint8],
    codepoint_offsets: NDArray[np.int64],
    line_offsets: NDArray[np.int64],
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_offsets: NDArray[np.int64],
    counts: NDArray[np.float32],
    shares: NDArray[np.float32],
) -> None:
    histogram = np.empty(256, dtype=np.int64)
    for document in range(codepoint_offsets.size - 1):
        start = codepoint_offsets[document]
        end = codepoint_offsets[document + 1]
        histogram[:] = 0
        for position in range(start, end):
            histogram[classes[position]] += 1
        words = word_offsets[document + 1] - word_offsets[document]
        word_characters = np.int64(0)
        for word in range(word_offsets[document], word_offsets[document + 1]):
            word_characters += word_end[word] - word_start[word]
        counts[document, 0] = np.float32(end - start)
        counts[document, 1] = np.float32(words)
        counts[document, 2] = np.float32(line_offsets[document + 1] - line_offsets[document])
        shares[document, 0] = np.float32(word_characters / words) if words else np.float32(np.nan)
        for flag in range(6):  # LETTER, DIGIT, PUNCTUATION, SYMBOL, SPACE, HAN: bits 0 to 5
            members = np.int64(0)
            for value in range(256):
                if value >> flag & 1:
                    members += histogram[value]
            shares[document, 1 + flag] = np.float32(members / (end - start)) if end > start else np.float32(np.nan)


@njit(cache=True, nogil=True)
def _line_shapes(
    codepoints: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    line_start: NDArray[np.int64],
    line_end: NDArray[np.int64],
    line_offsets: NDArray[np.int64],
    shares: NDArray[np.float32],
) -> None:
    for document in range(line_offsets.size - 1):
        lines = np.int64(0)
        short = np.int64(0)
        terminated = np.int64(0)
        ellipsis = np.int64(0)
        for line in range(line_offsets[document], line_offsets[document + 1]):
            first, last = trimmed(classes, line_start[line], line_end[line])
            if first == last:
                continue
            lines += 1
            columns = last - first
            if columns < SHORT_LINE_COLUMNS:
                for position in range(first, last):
                    if classes[position] & _UNSPACED:
                        columns += 1
                short += columns < SHORT_LINE_COLUMNS
            while last > first + 1 and is_closer(codepoints[last - 1]):
                last -= 1
            end = codepoints[last - 1]
            if end == _ELLIPSIS or (
                end == 46 and last - first > 2 and codepoints[last - 2] == 46 and codepoints[last - 3] == 46
            ):
                ellipsis += 1
            elif is_terminator(end):
                terminated += 1
        if lines >= MIN_SHAPED_LINES:
            shares[document, 0] = np.float32(short / lines)
            shares[document, 1] = np.float32(terminated / lines)
            shares[document, 2] = np.float32(ellipsis / lines)
        else:
            shares[document, :] = np.float32(np.nan)
