"""Hashed n-grams of a batch, cut into blocks of words and windows of two blocks.

The n-grams of a block are summed once however many windows hold the block.
This module knows nothing of weights and of what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.text.batch import TextBatch
from dqs.text.kernels import mix64
from dqs.text.simplified import simplified_table

ROW_WIDTH = 16
"""N-grams in one row of `Ngrams.ids`."""
LONGEST_WORD = 32
"""Characters of a word that give character n-grams; the tail of longer ones is left out."""

FIRST_SOUND = 0x4E00
"""Code point of the first entry of a table of sounds."""
SOUNDS = 0xA000 - FIRST_SOUND
"""Entries of a table of sounds."""

_WORD_PRIME = np.uint64(0x9E3779B97F4A7C15)
_CHARACTER_PRIME = np.uint64(0xC2B2AE3D27D4EB4F)
# Stand before and after a word; above every code point.
_WORD_FRONT = np.uint64(0x110000)
_WORD_BACK = np.uint64(0x110001)
# A sound is read like a code point from here on.
_SOUND_FRONT = 0x120000


@dataclass(frozen=True, slots=True)
class NgramShape:
    """Which n-grams a text has, and how they are numbered.

    Attributes:
        word_sizes: n-grams of 1 to this many neighbouring words; in scripts without spaces a
            word is one character.
        character_sizes: sizes of the character n-grams inside words. A word counts with one
            mark before and one after it; an n-gram never is a whole marked word.
        bits: an n-gram's id is this many low bits of its 64-bit hash.
        block_words: words in a block; the last block of a document may have fewer.
        sound_sizes: n-grams of 1 to this many neighbouring words as they sound; 0 for none. Sounds are
            classes of Chinese characters that a model brings along (see `sound_table`), and
            find words that are written with other characters of the same sound.
        simplified: whether traditional Chinese characters are read as simplified ones.
    """

    word_sizes: int
    character_sizes: tuple[int, ...]
    bits: int
    block_words: int
    sound_sizes: int = 0
    simplified: bool = False

    def __post_init__(self) -> None:
        sizes = self.character_sizes
        if not (
            1 <= self.word_sizes <= 8
            and 0 <= self.sound_sizes <= 8
            and 1 <= self.bits <= 24
            and self.block_words >= 1
            and all(1 <= size <= LONGEST_WORD for size in sizes)
            and len(set(sizes)) == len(sizes)
        ):
            raise ValueError(f"{self} is out of range")

    @property
    def padding(self) -> int:
        """The id that fills up the last row of a block: the first that no n-gram has."""
        return 1 << self.bits


@dataclass(frozen=True, slots=True, eq=False)
class Ngrams:
    """The n-grams of some documents of a batch.

    A document with w words has ceil(w / block_words) blocks. A document of one block
    is one window; otherwise each two neighbouring blocks are a window. An n-gram of words
    belongs to the block in which it ends. A block holds each id once: what repeats within
    a few words says nothing more, and would outweigh everything else.

    Attributes:
        ids: int32[rows, ROW_WIDTH]; n-gram ids in the order of the text. A block starts a new row and fills its last
            one up with `NgramShape.padding`.
        row_block: int64[rows]; the block of each row, never decreasing.
        block_ngrams: int64[blocks]; different ids of each block.
        block_offsets: int64[m + 1]; the i-th document asked for owns the blocks from
            `block_offsets[i]` up to and without `block_offsets[i + 1]`; none if it has no word.
        window_first: int64[windows]; first block of each window.
        window_second: int64[windows]; its second block; `blocks` (one past the last) where it has none.
        window_start: int64[windows]; first code point of the window in `TextBatch.folded`.
        window_end: int64[windows]; past its last one.
        window_offsets: int64[m + 1]; likewise for windows.
    """

    ids: NDArray[np.int32]
    row_block: NDArray[np.int64]
    block_ngrams: NDArray[np.int64]
    block_offsets: NDArray[np.int64]
    window_first: NDArray[np.int64]
    window_second: NDArray[np.int64]
    window_start: NDArray[np.int64]
    window_end: NDArray[np.int64]
    window_offsets: NDArray[np.int64]


def hash_ngrams(
    batch: TextBatch, documents: NDArray[np.int64], shape: NgramShape, sounds: NDArray[np.uint32] | None = None
) -> Ngrams:
    """Numbers the n-grams of some documents.

    Args:
        batch: the texts.
        documents: int64[m]; indices into the batch, in any order.
        shape: which n-grams.
        sounds: uint32[0x110000], of `sound_table`; needed where the shape has sounds.

    Raises:
        ValueError: the shape has sounds and there is no table of them.
    """
    sizes = np.array(shape.character_sizes, dtype=np.int64)
    words = batch.word_offsets[documents + 1] - batch.word_offsets[documents]
    blocks = -(-words // shape.block_words)
    windows = np.where(blocks > 1, blocks - 1, blocks)
    block_offsets = np.zeros(documents.size + 1, dtype=np.int64)
    np.cumsum(blocks, out=block_offsets[1:])
    window_offsets = np.zeros(documents.size + 1, dtype=np.int64)
    np.cumsum(windows, out=window_offsets[1:])
    word_hash, sound_hash = batch.word_hash, batch.word_hash
    if shape.simplified:
        word_hash = _read_words(batch, documents, simplified_table())
    if shape.sound_sizes:
        if sounds is None:
            raise ValueError("n-grams of sounds need a table of sounds")
        sound_hash = _read_words(batch, documents, sounds)
    most_rows, most_ngrams = _count(
        batch.word_start, batch.word_end, batch.word_offsets, documents, shape.word_sizes, shape.sound_sizes, sizes,
        shape.block_words,
    )  # fmt: skip
    # Pages of rows that repeats leave over are never touched, so they cost no memory.
    ids = np.empty((int(most_rows), ROW_WIDTH), dtype=np.int32)
    block_ngrams = np.empty(int(block_offsets[-1]), dtype=np.int64)
    window_first = np.empty(int(window_offsets[-1]), dtype=np.int64)
    window_second = np.empty_like(window_first)
    window_start = np.empty_like(window_first)
    window_end = np.empty_like(window_first)
    _hash(
        batch.folded, batch.word_start, batch.word_end, word_hash, sound_hash, batch.word_offsets, documents,
        shape.word_sizes, shape.sound_sizes, sizes, shape.bits, shape.block_words, int(most_ngrams),
        ids.reshape(-1), block_ngrams, window_first, window_second, window_start, window_end,
    )  # fmt: skip
    rows = -(-block_ngrams // ROW_WIDTH)
    return Ngrams(
        ids=ids[: int(rows.sum())],
        row_block=np.repeat(np.arange(block_ngrams.size, dtype=np.int64), rows),
        block_ngrams=block_ngrams,
        block_offsets=block_offsets,
        window_first=window_first,
        window_second=window_second,
        window_start=window_start,
        window_end=window_end,
        window_offsets=window_offsets,
    )


def take_windows(ngrams: Ngrams, windows: NDArray[np.int64]) -> Ngrams:
    """The n-grams of some windows alone, each a document of its own.

    Args:
        ngrams: of any documents.
        windows: int64[k]; indices of windows.
    """
    blocks = ngrams.block_ngrams.size
    first, second = ngrams.window_first[windows], ngrams.window_second[windows]
    chosen = np.unique(np.concatenate((first, second[second < blocks])))
    row_offsets = np.searchsorted(ngrams.row_block, np.arange(blocks + 1))
    rows = row_offsets[chosen + 1] - row_offsets[chosen]
    place = np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows)
    new_second = np.searchsorted(chosen, second)
    new_second[second == blocks] = chosen.size
    offsets = np.arange(windows.size + 1, dtype=np.int64)
    return Ngrams(
        ids=ngrams.ids[np.repeat(row_offsets[chosen], rows) + place],
        row_block=np.repeat(np.arange(chosen.size, dtype=np.int64), rows),
        block_ngrams=ngrams.block_ngrams[chosen],
        # Neighbours share blocks, so that these say nothing of which document a block is of.
        block_offsets=np.full(windows.size + 1, 0, dtype=np.int64),
        window_first=np.searchsorted(chosen, first),
        window_second=new_second,
        window_start=ngrams.window_start[windows],
        window_end=ngrams.window_end[windows],
        window_offsets=offsets,
    )


def sound_table(sounds: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """uint32[0x110000]: what each code point is read as where texts are compared by sound.

    Args:
        sounds: uint16[SOUNDS]; class of the characters from `FIRST_SOUND` on, 0 where a character
            sounds like no other.
    """
    simplified = simplified_table()
    classes = np.zeros(simplified.size, dtype=np.uint32)
    classes[FIRST_SOUND : FIRST_SOUND + SOUNDS] = sounds
    # A traditional character without a class has that of its simplified form.
    classes = np.where(classes != 0, classes, classes[simplified])
    return np.where(classes != 0, _SOUND_FRONT + classes, simplified).astype(np.uint32)


def _read_words(batch: TextBatch, documents: NDArray[np.int64], table: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """uint64[words]: hash of each word of the documents, its code points read by uint32[0x110000] `table`."""
    hashes = np.empty(batch.word_hash.size, dtype=np.uint64)
    _hash_words(batch.folded, batch.word_start, batch.word_end, batch.word_offsets, documents, table, hashes)
    return hashes


@njit(cache=True, nogil=True)
def _hash_words(
    folded: NDArray[np.uint32],
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    table: NDArray[np.uint32],
    hashes: NDArray[np.uint64],
) -> None:
    for document in documents:
        for word in range(word_offsets[document], word_offsets[document + 1]):
            value = np.uint64(0)
            for i in range(word_start[word], word_end[word]):
                value = value * _CHARACTER_PRIME + np.uint64(table[folded[i]])
            hashes[word] = mix64(value)


@njit(cache=True, nogil=True)
def _count(
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    word_sizes: int,
    sound_sizes: int,
    character_sizes: NDArray[np.int64],
    block_words: int,
) -> tuple[np.int64, np.int64]:
    """Rows of all blocks, and n-grams of the largest one, repeats included."""
    rows = np.int64(0)
    most = np.int64(0)
    for document in documents:
        first = word_offsets[document]
        last = word_offsets[document + 1]
        for start in range(first, last, block_words):
            ngrams = np.int64(0)
            for word in range(start, min(start + block_words, last)):
                ngrams += min(word - first + 1, word_sizes) + min(word - first + 1, sound_sizes)
                marked = min(word_end[word] - word_start[word], LONGEST_WORD) + 2
                for size in character_sizes:
                    if size < marked:
                        ngrams += marked - size + 1
            rows += (ngrams + ROW_WIDTH - 1) // ROW_WIDTH
            most = max(most, ngrams)
    return rows, most


@njit(cache=True, nogil=True)
def _hash(
    folded: NDArray[np.uint32],
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_hash: NDArray[np.uint64],
    sound_hash: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    word_sizes: int,
    sound_sizes: int,
    character_sizes: NDArray[np.int64],
    bits: int,
    block_words: int,
    most_ngrams: int,
    ids: NDArray[np.int32],
    block_ngrams: NDArray[np.int64],
    window_first: NDArray[np.int64],
    window_second: NDArray[np.int64],
    window_start: NDArray[np.int64],
    window_end: NDArray[np.int64],
) -> None:
    mask = np.uint64((1 << bits) - 1)
    padding = np.int32(1 << bits)
    total_blocks = np.int64(0)
    for document in documents:
        total_blocks += (word_offsets[document + 1] - word_offsets[document] + block_words - 1) // block_words
    # Horner hash of each prefix of a marked word; the difference of two is an n-gram's hash.
    prefix = np.zeros(LONGEST_WORD + 3, dtype=np.uint64)
    power = np.ones(LONGEST_WORD + 3, dtype=np.uint64)
    for i in range(1, power.size):
        power[i] = power[i - 1] * _CHARACTER_PRIME
    # Ids of the current block, in open addressing; a slot is free unless it bears the block's number.
    slots = np.int64(16)
    while slots < 2 * most_ngrams:
        slots *= 2
    slot_id = np.empty(slots, dtype=np.int32)
    slot_block = np.full(slots, -1, dtype=np.int64)
    out = 0
    block = 0
    window = 0
    for document in documents:
        first = word_offsets[document]
        last = word_offsets[document + 1]
        for start in range(first, last, block_words):
            begin = out
            stop = min(start + block_words, last)
            for word in range(start, stop):
                value = np.uint64(0)
                for back in range(min(word - first + 1, word_sizes)):
                    value = mix64(value * _WORD_PRIME + word_hash[word - back])
                    out = _add(np.int32(value & mask), block, slot_id, slot_block, ids, out)
                value = np.uint64(0)
                for back in range(min(word - first + 1, sound_sizes)):
                    value = mix64(value * _WORD_PRIME + sound_hash[word - back])
                    out = _add(np.int32(value & mask), block, slot_id, slot_block, ids, out)
                characters = min(word_end[word] - word_start[word], LONGEST_WORD)
                marked = characters + 2
                prefix[1] = _WORD_FRONT
                for i in range(characters):
                    prefix[i + 2] = prefix[i + 1] * _CHARACTER_PRIME + np.uint64(folded[word_start[word] + i])
                prefix[marked] = prefix[marked - 1] * _CHARACTER_PRIME + _WORD_BACK
                for size in character_sizes:
                    if size < marked:
                        for i in range(marked - size + 1):
                            value = prefix[i + size] - prefix[i] * power[size] + np.uint64(size)
                            out = _add(np.int32(mix64(value) & mask), block, slot_id, slot_block, ids, out)
            block_ngrams[block] = out - begin
            while out % ROW_WIDTH != 0:
                ids[out] = padding
                out += 1
            if start == first:
                window_first[window] = block
                window_second[window] = total_blocks
                window_start[window] = word_start[start]
            else:
                if start > first + block_words:
                    window += 1
                    window_first[window] = block - 1
                    window_start[window] = word_start[start - block_words]
                window_second[window] = block
            window_end[window] = word_end[stop - 1]
            block += 1
        if last > first:
            window += 1


@njit(cache=True, nogil=True, inline="always")
def _add(
    value: np.int32,
    block: int,
    slot_id: NDArray[np.int32],
    slot_block: NDArray[np.int64],
    ids: NDArray[np.int32],
    out: int,
) -> int:
    """Writes an id that the block does not hold yet; returns where the next one goes."""
    last = slot_id.size - 1
    # Ids are low bits of a hash already.
    slot = value & last
    while slot_block[slot] == block:
        if slot_id[slot] == value:
            return out
        slot = (slot + 1) & last
    slot_block[slot] = block
    slot_id[slot] = value
    ids[out] = value
    return out + 1
