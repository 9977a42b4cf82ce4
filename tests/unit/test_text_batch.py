"""The columns of a TextBatch against plain-Python definitions."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.text import CharClass, TextBatch
from dqs.text.unicode_tables import unicode_tables
from tests.unit.awkward import FIXED, INVALID_BYTES, raw_documents, texts


def decoded(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def plain_lines(text: str) -> list[str]:
    lines = text.split("\n")
    breaks, last = lines[:-1], lines[-1]
    return [line.removesuffix("\r") for line in breaks] + ([last] if last else [])


def plain_words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).lower()
    unspaced = unicode_tables().classes & CharClass.UNSPACED
    words: list[str] = []
    for run in re.findall(r"\w+", folded):
        current = ""
        for character in run:
            if unspaced[ord(character)]:
                words += [current, character]
                current = ""
            else:
                current += character
        words.append(current)
    return [word for word in words if word]


def strings(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> list[str]:
    return ["".join(map(chr, values[start:end])) for start, end in zip(starts, ends, strict=True)]


@given(st.lists(raw_documents, max_size=6))
def test_decoding_agrees_with_python(raws: list[bytes]) -> None:
    batch = TextBatch.from_bytes(raws)

    assert len(batch) == len(raws)
    for i, raw in enumerate(raws):
        text = decoded(raw)
        part = batch.codepoints[batch.codepoint_offsets[i] : batch.codepoint_offsets[i + 1]]
        assert bool(batch.valid[i]) == (text is not None)
        assert "".join(map(chr, part)) == (text or "")
        assert batch.text(i) == (text or "")


@pytest.mark.parametrize("raw", INVALID_BYTES)
def test_one_invalid_document_leaves_its_neighbours_alone(raw: bytes) -> None:
    batch = TextBatch.from_bytes([b"before", raw, "后面".encode()])

    assert batch.valid.tolist() == [True, False, True]
    assert batch.text(0) == "before"
    assert batch.text(2) == "后面"
    assert np.diff(batch.word_offsets).tolist() == [1, 0, 2]


@given(st.lists(texts, max_size=5))
def test_folding_is_nfkc_and_lower_case(documents: list[str]) -> None:
    batch = TextBatch.from_bytes([text.encode() for text in documents])

    for i, text in enumerate(documents):
        part = slice(batch.folded_offsets[i], batch.folded_offsets[i + 1])
        assert "".join(map(chr, batch.folded[part])) == unicodedata.normalize("NFKC", text).lower()
        assert batch.folded_classes[part].tolist() == unicode_tables().classes[batch.folded[part]].tolist()
        origin = batch.folded_origin[part]
        assert np.all(np.diff(origin) >= 0)
        assert origin.size == 0 or (origin[0] >= 0 and origin[-1] < len(text))


def test_every_character_folds_as_python_does() -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    batch = TextBatch.from_bytes([character.encode() for character in characters])

    folded = batch.folded.tobytes().decode("utf-32-le")
    offsets = batch.folded_offsets.tolist()
    wrong = [
        character
        for i, character in enumerate(characters)
        if folded[offsets[i] : offsets[i + 1]] != unicodedata.normalize("NFKC", character).lower()
    ]
    assert wrong == []


def test_origin_names_the_character_before_folding() -> None:
    batch = TextBatch.from_bytes(["ﬁx…Ａ".encode()])

    assert "".join(map(chr, batch.folded)) == "fix...a"
    assert batch.folded_origin.tolist() == [0, 0, 1, 2, 2, 2, 3]


@given(st.lists(texts, max_size=5))
def test_lines_agree_with_python(documents: list[str]) -> None:
    batch = TextBatch.from_bytes([text.encode() for text in documents])

    for i, text in enumerate(documents):
        lines = slice(batch.line_offsets[i], batch.line_offsets[i + 1])
        assert strings(batch.codepoints, batch.line_start[lines], batch.line_end[lines]) == plain_lines(text)


@given(st.lists(texts, max_size=5))
def test_words_agree_with_python(documents: list[str]) -> None:
    batch = TextBatch.from_bytes([text.encode() for text in documents])

    all_words: dict[str, int] = {}
    for i, text in enumerate(documents):
        words = slice(batch.word_offsets[i], batch.word_offsets[i + 1])
        found = strings(batch.folded, batch.word_start[words], batch.word_end[words])
        assert found == plain_words(text)
        for word, value in zip(found, batch.word_hash[words].tolist(), strict=True):
            assert all_words.setdefault(word, value) == value
    assert len(set(all_words.values())) == len(all_words)


@pytest.mark.parametrize("text", FIXED)
def test_classes_agree_with_unicodedata(text: str) -> None:
    batch = TextBatch.from_bytes([text.encode()])

    for character, flags in zip(text, batch.classes.tolist(), strict=True):
        category = unicodedata.category(character)
        assert bool(flags & CharClass.LETTER) == category.startswith("L")
        assert bool(flags & CharClass.DIGIT) == category.startswith("N")
        assert bool(flags & CharClass.PUNCTUATION) == category.startswith("P")
        assert bool(flags & CharClass.SYMBOL) == category.startswith("S")
        assert bool(flags & CharClass.SPACE) == character.isspace()
        assert bool(flags & CharClass.WORD) == (character.isalnum() or character == "_")


def test_scripts_without_spaces() -> None:
    classes = unicode_tables().classes
    for character in "中㐀々〇かカーไກ":
        assert classes[ord(character)] & CharClass.UNSPACED, character
    for character in "aßя한ア"[:4] + "、。・":
        assert not classes[ord(character)] & CharClass.UNSPACED, character
    assert classes[ord("中")] & CharClass.HAN
    assert not classes[ord("か")] & CharClass.HAN


def test_ten_megabytes_in_one_line() -> None:
    text = ("word 词 " * 1_200_000).encode()
    batch = TextBatch.from_bytes([text])

    assert batch.codepoints.size == 1_200_000 * 7
    assert np.diff(batch.line_offsets).tolist() == [1]
    assert np.diff(batch.word_offsets).tolist() == [2_400_000]


def test_a_million_lines_of_one_character() -> None:
    batch = TextBatch.from_bytes([b"x\n" * 1_000_000, b""])

    assert np.diff(batch.line_offsets).tolist() == [1_000_000, 0]
    assert set((batch.line_end - batch.line_start).tolist()) == {1}


def test_no_documents() -> None:
    batch = TextBatch.from_bytes([])

    assert len(batch) == 0
    assert batch.word_offsets.tolist() == [0]
