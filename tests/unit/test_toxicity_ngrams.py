"""N-gram kernels against their definition in plain Python."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.text import TextBatch
from dqs.text.ngrams import LONGEST_WORD, ROW_WIDTH, Ngrams, NgramShape, hash_ngrams
from tests.unit.awkward import raw_documents

_MASK = (1 << 64) - 1
_WORD_PRIME = 0x9E3779B97F4A7C15
_CHARACTER_PRIME = 0xC2B2AE3D27D4EB4F

shapes = st.builds(
    NgramShape,
    word_sizes=st.integers(1, 4),
    character_sizes=st.sampled_from([(), (4,), (1, 2), (5, 3)]),
    bits=st.sampled_from([3, 12, 20]),
    block_words=st.integers(1, 9),
)


def mix(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33


def blocks_by_definition(batch: TextBatch, document: int, shape: NgramShape) -> list[list[int]]:
    """Ids of each block of a document."""
    first, last = (int(batch.word_offsets[document + at]) for at in (0, 1))
    words = [batch.folded[batch.word_start[w] : batch.word_end[w]].tolist() for w in range(first, last)]
    hashes = batch.word_hash[first:last].tolist()
    blocks = []
    for start in range(0, len(words), shape.block_words):
        ids = []
        for at in range(start, min(start + shape.block_words, len(words))):
            for size in range(1, min(at + 1, shape.word_sizes) + 1):
                value = 0
                for back in range(size):
                    value = mix((value * _WORD_PRIME + hashes[at - back]) & _MASK)
                ids.append(value % (1 << shape.bits))
            marked = [0x110000, *words[at][:LONGEST_WORD], 0x110001]
            for size in shape.character_sizes:
                if size == len(marked):
                    continue
                for i in range(len(marked) - size + 1):
                    value = 0
                    for character in marked[i : i + size]:
                        value = value * _CHARACTER_PRIME + character
                    ids.append(mix((value + size) & _MASK) % (1 << shape.bits))
        blocks.append(list(dict.fromkeys(ids)))
    return blocks


def blocks_of(ngrams: Ngrams, shape: NgramShape) -> list[list[int]]:
    blocks: list[list[int]] = [[] for _ in ngrams.block_ngrams]
    for row, block in zip(ngrams.ids.tolist(), ngrams.row_block.tolist(), strict=True):
        blocks[block] += row
    for ids, count in zip(blocks, ngrams.block_ngrams.tolist(), strict=True):
        assert set(ids[count:]) <= {shape.padding}
        assert len(ids) - count < ROW_WIDTH
        del ids[count:]
    return blocks


@given(st.lists(raw_documents, max_size=5), shapes, st.data())
def test_ngrams_are_those_of_the_definition(documents: list[bytes], shape: NgramShape, data: st.DataObject) -> None:
    batch = TextBatch.from_bytes(documents)
    chosen = data.draw(st.permutations(range(len(documents))))[: data.draw(st.integers(0, len(documents)))]
    ngrams = hash_ngrams(batch, np.array(chosen, dtype=np.int64), shape)
    expected = [block for document in chosen for block in blocks_by_definition(batch, document, shape)]
    assert blocks_of(ngrams, shape) == expected
    assert np.diff(ngrams.block_offsets).tolist() == [
        len(blocks_by_definition(batch, document, shape)) for document in chosen
    ]


@given(st.lists(raw_documents, max_size=5), shapes)
def test_windows_are_neighbouring_blocks(documents: list[bytes], shape: NgramShape) -> None:
    batch = TextBatch.from_bytes(documents)
    ngrams = hash_ngrams(batch, np.arange(len(documents)), shape)
    none = ngrams.block_ngrams.size
    expected = []
    block = 0
    for document in range(len(documents)):
        first, last = (int(batch.word_offsets[document + at]) for at in (0, 1))
        starts = list(range(first, last, shape.block_words))
        pairs: list[tuple[int, int | None]] = [(at, at + 1) for at in range(len(starts) - 1)]
        pairs = pairs or [(at, None) for at in range(len(starts))]
        for one, two in pairs:
            end = min((one if two is None else two) * shape.block_words + shape.block_words, last - first)
            expected.append(
                (
                    block + one,
                    none if two is None else block + two,
                    int(batch.word_start[starts[one]]),
                    int(batch.word_end[first + end - 1]),
                )
            )
        assert ngrams.window_offsets[document + 1] - ngrams.window_offsets[document] == len(pairs)
        block += len(starts)
    found = zip(
        ngrams.window_first.tolist(),
        ngrams.window_second.tolist(),
        ngrams.window_start.tolist(),
        ngrams.window_end.tolist(),
        strict=True,
    )
    assert list(found) == expected


def test_a_word_has_its_characters_and_its_neighbours() -> None:
    shape = NgramShape(word_sizes=2, character_sizes=(4,), bits=20, block_words=32)
    batch = TextBatch.from_bytes([b"Blue skies, blue sea.", "蓝天蓝海".encode()])
    english, chinese = blocks_of(hash_ngrams(batch, np.arange(2), shape), shape)
    # Each word; each pair; 4-grams of ^blue$, ^skies$, ^sea$. What repeats counts once.
    assert len(set(english)) == len(english) == 3 + 3 + 3 + 4 + 2
    assert len(chinese) == 3 + 3


def test_word_hashes_are_those_of_the_shipped_models() -> None:
    batch = TextBatch.from_bytes(["harbour 港".encode()])
    shape = NgramShape(word_sizes=1, character_sizes=(), bits=20, block_words=32)
    expected = []
    for word in ("harbour", "港"):
        value = 0xCBF29CE484222325
        for character in word:
            value = (value ^ ord(character)) * 0x100000001B3 & _MASK
        expected.append(mix(mix(value)) % (1 << 20))
    assert blocks_of(hash_ngrams(batch, np.arange(1), shape), shape) == [expected]


@pytest.mark.parametrize(
    "change",
    [
        {"word_sizes": 0},
        {"bits": 25},
        {"block_words": 0},
        {"character_sizes": (0,)},
        {"character_sizes": (LONGEST_WORD + 1,)},
        {"character_sizes": (3, 3)},
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object]) -> None:
    values: dict[str, object] = {"word_sizes": 1, "character_sizes": (), "bits": 10, "block_words": 8, **change}
    with pytest.raises(ValueError, match=re.escape("out of range")):
        NgramShape(**values)  # type: ignore[arg-type]
