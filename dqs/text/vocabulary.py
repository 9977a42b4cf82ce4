"""Tokens of an n-gram language model: whole words, pieces of unknown words, characters, bytes.

The token of a text (normaliser `dqs`), from its folded code points:

1. Lines end at LF. Lines without a token do not count.
2. A maximal run of word characters of scripts with spaces is one token if the
   vocabulary holds it. Otherwise it is cut from the left into the longest
   pieces that the vocabulary holds, each written with a leading `~`.
3. Every other visible character is a token, Han and kana among them. The
   vocabulary may have a character read as another (traditional as simplified).
4. A space is a token (`%_`) only between two characters of scripts without spaces.
5. A character that the vocabulary does not hold becomes its UTF-8 bytes, one
   token each (`%e4`). So no text is ever folded into one unknown token.

This module knows nothing of language models but their tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.text.batch import TextBatch
from dqs.text.unicode_tables import CharClass

PIECE_MARK: Final = "~"
VARIANT_MARK: Final = "="
SPACE_TOKEN: Final = "%_"
BYTE_TOKENS: Final = tuple(f"%{byte:02x}" for byte in range(256))
LONGEST_PIECE: Final = 8
"""Longest piece of a word, in code points."""
LONGEST_SEGMENT: Final = 4096
"""Tokens after which a line is cut: KenLM adds up a call's logarithms as one 32-bit float."""

STARTS_LINE: Final = 1
ENDS_LINE: Final = 2

_CHARACTERS = 0x30000
_MOST_BYTES_PER_CHARACTER = 16
_SPACE = np.uint8(CharClass.SPACE)
_UNSPACED = np.uint8(CharClass.UNSPACED)
_WORD = np.uint8(CharClass.WORD)
_IS_WORD = np.uint8(1)
_IS_PIECE = np.uint8(2)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0x9FB21C651E98DF25)
_FOLD_SHIFT = np.uint64(32)
_ONE = np.uint64(1)
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class TokenLines:
    """Token lines of some documents of a batch.

    Attributes:
        text: the tokens joined by spaces, segments joined by LF.
        segment_offsets: int64[documents + 1]; document i owns these segments.
        segment_ends: uint8[segments]; STARTS_LINE and ENDS_LINE flags. A segment is a line, or
            a part of at most `LONGEST_SEGMENT` tokens of a longer line.
        tokens: int64[documents]; tokens, one end mark per line included.
    """

    text: bytes
    segment_offsets: NDArray[np.int64]
    segment_ends: NDArray[np.uint8]
    tokens: NDArray[np.int64]

    def segments(self) -> list[bytes]:
        """The segments in order, each without its LF."""
        return self.text.split(b"\n") if self.segment_ends.size else []


class Vocabulary:
    """The tokens of one language model, ready for look-up. Immutable, so safe to share."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Builds the tables.

        Args:
            tokens: words, pieces with their leading `~`, single characters; each folded as
                `TextBatch.folded` is. `=國国` has the first character read as the second, itself
                a token. Byte and space tokens belong to every vocabulary.
        """
        words: list[str] = []
        pieces: list[str] = []
        variants: list[str] = []
        characters = np.zeros(_CHARACTERS, dtype=np.uint32)
        for token in tokens:
            if len(token) == 3 and token.startswith(VARIANT_MARK):
                variants.append(token)
            elif len(token) > 1 and token.startswith(PIECE_MARK):
                pieces.append(token[1:])
            else:
                words.append(token)
                if len(token) == 1 and ord(token) < _CHARACTERS:
                    characters[ord(token)] = ord(token)
        for entry in variants:
            written, read_as = ord(entry[1]), ord(entry[2])
            if written < _CHARACTERS and read_as < _CHARACTERS:
                characters[written] = characters[read_as]
        size = 1 << max(4, (2 * (len(words) + len(pieces))).bit_length())
        self._keys = np.zeros(size, dtype=np.uint64)
        self._kinds = np.zeros(size, dtype=np.uint8)
        self._characters = characters
        for entries, kind in ((words, _IS_WORD), (pieces, _IS_PIECE)):
            text = np.frombuffer("".join(entries).encode("utf-32-le"), dtype=np.uint32)
            offsets = np.zeros(len(entries) + 1, dtype=np.int64)
            np.cumsum([len(entry) for entry in entries], out=offsets[1:])
            _insert(text, offsets, kind, self._keys, self._kinds)

    def encode(self, batch: TextBatch, documents: NDArray[np.int64]) -> TokenLines:
        """Cuts documents of a batch into token lines.

        Args:
            batch: the batch.
            documents: int64[k], which documents, in rising order.
        """
        starts = batch.folded_offsets[documents]
        ends = batch.folded_offsets[documents + 1]
        size = int((ends - starts).sum())
        out = np.empty(size * _MOST_BYTES_PER_CHARACTER + 1, dtype=np.uint8)
        segment_ends = np.empty(size + 1, dtype=np.uint8)
        segment_offsets = np.empty(documents.size + 1, dtype=np.int64)
        tokens = np.empty(documents.size, dtype=np.int64)
        used = _encode(
            batch.folded, batch.folded_classes, starts, ends, self._keys, self._kinds, self._characters,
            out, segment_ends, segment_offsets, tokens,
        )  # fmt: skip
        return TokenLines(
            text=out[:used].tobytes(),
            segment_offsets=segment_offsets,
            segment_ends=segment_ends[: segment_offsets[-1]],
            tokens=tokens,
        )


@njit(cache=True, nogil=True, inline="always")
def _find(value: np.uint64, keys: NDArray[np.uint64]) -> np.int64:
    """Slot of a hash, or the empty slot where it would go."""
    mask = np.uint64(keys.size - 1)
    slot = (value ^ (value >> _FOLD_SHIFT)) & mask
    while keys[slot] != 0 and keys[slot] != value:
        slot = (slot + _ONE) & mask
    return np.int64(slot)


@njit(cache=True, nogil=True)
def _insert(
    text: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    kind: np.uint8,
    keys: NDArray[np.uint64],
    kinds: NDArray[np.uint8],
) -> None:
    for entry in range(offsets.size - 1):
        value = _SEED
        for position in range(offsets[entry], offsets[entry + 1]):
            value = (value ^ np.uint64(text[position])) * _PRIME
        slot = _find(value, keys)
        keys[slot] = value
        kinds[slot] |= kind


@njit(cache=True, nogil=True, inline="always")
def _put_character(value: np.uint32, out: NDArray[np.uint8], used: np.int64) -> np.int64:
    if value < 0x80:
        out[used] = value
        return used + 1
    if value < 0x800:
        out[used] = 0xC0 | (value >> 6)
        out[used + 1] = 0x80 | (value & 0x3F)
        return used + 2
    if value < 0x10000:
        out[used] = 0xE0 | (value >> 12)
        out[used + 1] = 0x80 | ((value >> 6) & 0x3F)
        out[used + 2] = 0x80 | (value & 0x3F)
        return used + 3
    out[used] = 0xF0 | (value >> 18)
    out[used + 1] = 0x80 | ((value >> 12) & 0x3F)
    out[used + 2] = 0x80 | ((value >> 6) & 0x3F)
    out[used + 3] = 0x80 | (value & 0x3F)
    return used + 4


@njit(cache=True, nogil=True, inline="always")
def _put_characters(
    folded: NDArray[np.uint32], start: np.int64, stop: np.int64, out: NDArray[np.uint8], used: np.int64
) -> np.int64:
    """Writes one token and the space behind it."""
    for at in range(start, stop):
        used = _put_character(folded[at], out, used)
    out[used] = 32
    return used + 1


@njit(cache=True, nogil=True)
def _put_bytes(value: np.uint32, out: NDArray[np.uint8], used: np.int64) -> tuple[np.int64, np.int64]:
    """Writes one token per UTF-8 byte; returns the new end and the number of tokens."""
    scratch = np.empty(4, dtype=np.uint8)
    size = _put_character(value, scratch, np.int64(0))
    for at in range(size):
        out[used] = 37  # %
        out[used + 1] = _HEX[scratch[at] >> 4]
        out[used + 2] = _HEX[scratch[at] & 15]
        out[used + 3] = 32
        used += 4
    return used, size


@njit(cache=True, nogil=True)
def _encode(
    folded: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    keys: NDArray[np.uint64],
    kinds: NDArray[np.uint8],
    characters: NDArray[np.uint32],
    out: NDArray[np.uint8],
    segment_ends: NDArray[np.uint8],
    segment_offsets: NDArray[np.int64],
    tokens: NDArray[np.int64],
) -> np.int64:
    """Writes every token with a space behind it; the last space of a segment becomes its LF.

    Returns the number of bytes used, without the last LF.
    """
    used = np.int64(0)
    segments = np.int64(0)
    for document in range(starts.size):
        segment_offsets[document] = segments
        position = starts[document]
        end = ends[document]
        total = np.int64(0)  # end marks included
        in_line = np.int64(0)
        before_segment = np.int64(0)  # tokens of this line in earlier segments
        spaced = False
        after_unspaced = False
        word_end = starts[document]  # inside an unknown word: its end
        while position <= end:
            if position == end or folded[position] == 10:
                if in_line > 0:
                    out[used - 1] = 10
                    segment_ends[segments] = ENDS_LINE | (STARTS_LINE if before_segment == 0 else 0)
                    segments += 1
                    total += in_line + 1
                in_line = np.int64(0)
                before_segment = np.int64(0)
                spaced = False
                after_unspaced = False
                position += 1
                continue
            character = folded[position]
            kind = classes[position]
            if (kind & _SPACE) != 0 or character < 32:
                spaced = True
                position += 1
                continue
            # Only here, where a token is sure to follow: no segment is empty.
            if in_line - before_segment >= LONGEST_SEGMENT:
                out[used - 1] = 10
                segment_ends[segments] = STARTS_LINE if before_segment == 0 else 0
                segments += 1
                before_segment = in_line
            if position < word_end:
                value = _SEED
                best = position
                for at in range(position, min(word_end, position + LONGEST_PIECE)):
                    value = (value ^ np.uint64(folded[at])) * _PRIME
                    if (kinds[_find(value, keys)] & _IS_PIECE) != 0:
                        best = at + 1
                if best > position:
                    out[used] = 126  # ~
                    used = _put_characters(folded, position, best, out, used + 1)
                    in_line += 1
                    position = best
                else:
                    used, count = _put_bytes(character, out, used)
                    in_line += count
                    position += 1
                continue
            unspaced = (kind & _UNSPACED) != 0
            if spaced and unspaced and after_unspaced:
                out[used] = 37  # %_
                out[used + 1] = 95
                out[used + 2] = 32
                used += 3
                in_line += 1
            spaced = False
            after_unspaced = unspaced
            if (kind & _WORD) != 0 and not unspaced:
                stop = position
                value = _SEED
                while stop < end and (classes[stop] & (_WORD | _UNSPACED)) == _WORD:
                    value = (value ^ np.uint64(folded[stop])) * _PRIME
                    stop += 1
                if (kinds[_find(value, keys)] & _IS_WORD) == 0:
                    word_end = stop
                    continue
                used = _put_characters(folded, position, stop, out, used)
                in_line += 1
                position = stop
            else:
                read_as = characters[character] if character < characters.size else np.uint32(0)
                if read_as != 0:
                    used = _put_character(read_as, out, used)
                    out[used] = 32
                    used += 1
                    in_line += 1
                else:
                    used, count = _put_bytes(character, out, used)
                    in_line += count
                position += 1
        tokens[document] = total
    segment_offsets[starts.size] = segments
    return max(used - 1, np.int64(0))
