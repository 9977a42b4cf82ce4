"""Tokens of texts, cut into windows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.errors import ModelError
from dqs.inference.tokens import Tokenizer
from dqs.models import ModelFolder, write_model
from tests.unit.networks import SPECIALS, WORDS, write_tokenizer


def write(root: Path, content: bytes | None = None) -> ModelFolder:
    folder = root / "tiny" / "1"
    folder.mkdir(parents=True)
    write_tokenizer(folder / "tokenizer.json")
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    return write_model(
        root, name="tiny", version="1", kind="classifier", languages=["en"], files={"tokenizer": "tokenizer.json"}
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write(tmp_path_factory.mktemp("tokens")))


def number(word: str) -> int:
    return [*SPECIALS, *WORDS].index(word)


def test_special_tokens_are_found_and_truncation_is_off(tokenizer: Tokenizer) -> None:
    assert tokenizer.prefix.tolist() == [number("[CLS]")]
    assert tokenizer.suffix.tolist() == [number("[SEP]")]
    assert tokenizer.special_tokens == 2
    assert tokenizer.last_id == len(SPECIALS) + len(WORDS) - 1

    windows = tokenizer.windows(["good bad " * 10], capacity=30, overlap=0)

    assert windows.ids.tolist() == [number("good"), number("bad")] * 10
    assert windows.length.tolist() == [20]


def test_windows_overlap_and_the_last_one_is_full(tokenizer: Tokenizer) -> None:
    text = "good fine plain word bad vile good fine plain"

    windows = tokenizer.windows(["", text, "word"], capacity=4, overlap=1)

    assert windows.window_offsets.tolist() == [0, 1, 4, 5]
    assert windows.first.tolist() == [0, 0, 3, 5, 9]
    assert windows.length.tolist() == [0, 4, 4, 4, 1]
    assert [text[start:end] for start, end in windows.span[1:4].tolist()] == [
        "good fine plain word",
        "word bad vile good",
        "vile good fine plain",
    ]
    assert windows.span[[0, 4]].tolist() == [[0, 0], [0, 4]]


def test_spans_count_code_points(tokenizer: Tokenizer) -> None:
    text = "  好 坏 🙂 bad good fine  "

    windows = tokenizer.windows([text], capacity=3, overlap=0)

    assert [text[start:end] for start, end in windows.span.tolist()] == ["  好 坏 🙂", "bad good fine  "]


def test_too_many_windows_are_spread_over_the_text(tokenizer: Tokenizer) -> None:
    windows = tokenizer.windows(["word " * 100], capacity=10, overlap=0, most=4)

    assert windows.first.tolist() == [0, 30, 60, 90]
    assert tokenizer.windows(["word " * 100], capacity=10, overlap=0, most=1).first.tolist() == [0]


def test_without_spans(tokenizer: Tokenizer) -> None:
    texts = ["word " * 9, "bad"]

    with_spans = tokenizer.windows(texts, capacity=4, overlap=2)
    without = tokenizer.windows(texts, capacity=4, overlap=2, spans=False)

    np.testing.assert_array_equal(with_spans.ids, without.ids)
    np.testing.assert_array_equal(with_spans.first, without.first)
    assert (without.span == -1).all()
    assert len(tokenizer.windows([], capacity=4, overlap=2)) == 0


@given(
    counts=st.lists(st.integers(0, 40), max_size=6),
    capacity=st.integers(2, 12),
    overlap=st.integers(0, 11),
)
def test_every_token_is_in_a_window_in_order(
    tokenizer: Tokenizer, counts: list[int], capacity: int, overlap: int
) -> None:
    overlap = min(overlap, capacity - 1)
    texts = [" ".join(WORDS[at % 6] for at in range(count)) for count in counts]

    windows = tokenizer.windows(texts, capacity, overlap)

    begin = np.cumsum([0, *counts])
    for i, count in enumerate(counts):
        own = range(windows.window_offsets[i], windows.window_offsets[i + 1])
        seen = [set(range(windows.first[w], windows.first[w] + windows.length[w])) for w in own]
        assert set().union(*seen) == set(range(begin[i], begin[i + 1]))
        assert all(len(tokens) == min(count, capacity) for tokens in seen)
        assert all(len(a & b) >= overlap for a, b in itertools.pairwise(seen))
        assert windows.span[own[0], 0] == 0
        assert windows.span[own[-1], 1] == len(texts[i])


@pytest.mark.parametrize("content", [b"{}", b"no json", b""])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json of the model tiny@1 is no tokenizer"):
        Tokenizer(write(tmp_path, content))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    folder.file("tokenizer").unlink()

    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(folder)
