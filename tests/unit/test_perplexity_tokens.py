"""Tokens of the normaliser `dqs` against a plain-Python definition, on awkward text."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.text import CharClass, TextBatch
from dqs.text.unicode_tables import unicode_tables
from dqs.text.vocabulary import ENDS_LINE, LONGEST_PIECE, LONGEST_SEGMENT, STARTS_LINE, Vocabulary
from tests.unit.awkward import texts

TOKENS = [
    "the", "cat", "mat", "tidb", "line", "=國国", "=龍龙", "国",
    "~ca", "~t", "~s", "~at", "~snake", "~_", "~1", "~a", "~b", "~école", "~é", "~σ",
    ".", ",", "。", ":", "中", "文", "一", "二", "字", "～", "%", "~", "🙂",
]  # fmt: skip


def plain_lines(text: str, tokens: list[str]) -> list[list[str]]:
    """What the module's docstring says, one step at a time."""
    classes = unicode_tables().classes
    words = {token for token in tokens if len(token) == 1 or token[0] not in "~="}
    read_as = {token[1]: token[2] for token in tokens if len(token) == 3 and token[0] == "="}
    pieces = {token[1:] for token in tokens if len(token) > 1 and token.startswith("~")}

    def kind(character: str) -> int:
        return int(classes[ord(character)])

    def as_bytes(character: str) -> list[str]:
        return [f"%{byte:02x}" for byte in character.encode()]

    lines = []
    for line in unicodedata.normalize("NFKC", text).lower().split("\n"):
        found: list[str] = []
        before = ""
        at = 0
        while at < len(line):
            character = line[at]
            if kind(character) & CharClass.SPACE or character < " ":
                at += 1
                continue
            unspaced = bool(kind(character) & CharClass.UNSPACED)
            gap = at > 0 and before != "" and (kind(line[at - 1]) & CharClass.SPACE or line[at - 1] < " ")
            if gap and unspaced and kind(before) & CharClass.UNSPACED:
                found.append("%_")
            if kind(character) & CharClass.WORD and not unspaced:
                end = at
                while end < len(line) and kind(line[end]) & CharClass.WORD and not kind(line[end]) & CharClass.UNSPACED:
                    end += 1
                word = line[at:end]
                if word in words:
                    found.append(word)
                else:
                    while word:
                        sizes = [
                            size for size in range(1, LONGEST_PIECE + 1) if word[:size] in pieces and size <= len(word)
                        ]
                        found += ["~" + word[: max(sizes)]] if sizes else as_bytes(word[0])
                        word = word[max(sizes, default=1) :]
                at = end
            else:
                character = read_as.get(character, character)
                found += [character] if character in words else as_bytes(line[at])
                at += 1
            before = line[at - 1]
        if found:
            lines.append(found)
    return lines


@given(st.lists(texts, max_size=4))
def test_kernel_and_definition_agree(documents: list[str]) -> None:
    vocabulary = Vocabulary(TOKENS)
    batch = TextBatch.from_bytes([text.encode() for text in documents])
    lines = vocabulary.encode(batch, np.arange(len(batch)))
    segments = lines.segments()
    assert len(segments) == lines.segment_ends.size == lines.segment_offsets[-1]
    for at, text in enumerate(documents):
        expected = plain_lines(text, TOKENS)
        own = segments[lines.segment_offsets[at] : lines.segment_offsets[at + 1]]
        assert [segment.decode().split(" ") for segment in own] == expected
        assert lines.tokens[at] == sum(len(line) + 1 for line in expected)
    assert (lines.segment_ends == STARTS_LINE | ENDS_LINE).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat.", ["the cat ."]),
        ("Cats at TiDB\r\n\n  \nthe", ["~ca ~t ~s ~at tidb", "the"]),
        ("中國 龍", ["中 国 %_ %e9 %be %8d"]),
        ("中 文", ["中 %_ 文"]),
        ("中 the 文", ["中 the 文"]),
        ("x中", ["%78 中"]),
        ("é", ["~é"]),
        ("ü。", ["%c3 %bc 。"]),
        ("♞", ["%e2 %99 %9e"]),
        ("12", ["~1 %32"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_tokens_by_hand(text: str, expected: list[str]) -> None:
    batch = TextBatch.from_bytes([text.encode()])
    assert [line.decode() for line in Vocabulary(TOKENS).encode(batch, np.arange(1)).segments()] == expected


def test_invalid_documents_have_no_tokens() -> None:
    batch = TextBatch.from_bytes([b"the cat", b"\xff the cat", b"mat"])
    lines = Vocabulary(TOKENS).encode(batch, np.arange(3))
    assert lines.tokens.tolist() == [3, 0, 2]
    assert lines.segments() == [b"the cat", b"mat"]
    assert Vocabulary(TOKENS).encode(batch, np.array([2])).segments() == [b"mat"]
    assert Vocabulary(TOKENS).encode(batch, np.array([1])).segments() == []
    assert Vocabulary([]).encode(batch, np.arange(0)).segments() == []


@pytest.mark.parametrize("text", ["the " * (2 * LONGEST_SEGMENT + 5), "t" * (2 * LONGEST_SEGMENT + 5), "中" * 9000])
def test_long_lines_are_cut_and_no_token_is_lost(text: str) -> None:
    batch = TextBatch.from_bytes([f"{text}\nthe".encode()])
    lines = Vocabulary(TOKENS).encode(batch, np.arange(1))
    segments = lines.segments()
    assert [len(segment.split()) for segment in segments[:2]] == [LONGEST_SEGMENT, LONGEST_SEGMENT]
    assert lines.segment_ends.tolist() == [STARTS_LINE, 0, ENDS_LINE, STARTS_LINE | ENDS_LINE]
    assert sum(len(segment.split()) for segment in segments) + 2 == lines.tokens[0]


def test_a_line_that_ends_at_the_cut_is_whole() -> None:
    batch = TextBatch.from_bytes([b"the " * LONGEST_SEGMENT + b"  \nthe"])
    lines = Vocabulary(TOKENS).encode(batch, np.arange(1))
    assert lines.segment_ends.tolist() == [STARTS_LINE | ENDS_LINE] * 2
    assert [len(segment.split()) for segment in lines.segments()] == [LONGEST_SEGMENT, 1]


def test_one_character_lines() -> None:
    batch = TextBatch.from_bytes([b"a\n" * 100_000])
    lines = Vocabulary(["a"]).encode(batch, np.arange(1))
    assert len(lines.segments()) == 100_000
    assert lines.tokens[0] == 200_000
