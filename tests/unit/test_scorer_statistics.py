"""Statistics against plain-Python definitions."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.data import Missing
from dqs.scorer import ScoreColumns
from dqs.scorers.statistics import MIN_SHAPED_LINES, StatisticsScorer
from dqs.text import CharClass, TextBatch
from dqs.text.prose import CLOSERS, TERMINATORS
from dqs.text.unicode_tables import unicode_tables
from tests.unit.awkward import texts
from tests.unit.test_text_batch import plain_lines, plain_words


def score(documents: list[str]) -> ScoreColumns:
    batch = TextBatch.from_bytes([text.encode() for text in documents])
    columns = ScoreColumns(len(batch))
    StatisticsScorer().score(batch, columns)
    return columns


def share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def plain_top(words: list[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    best = max((sum(map(len, gram)) * count for gram, count in counts.items() if count > 1), default=0)
    return min(1.0, share(best, sum(map(len, words))))


def plain_duplicate(words: list[str], n: int) -> float:
    seen = set()
    covered: set[int] = set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return share(sum(len(words[i]) for i in covered), sum(map(len, words)))


def columns_wide(line: str) -> int:
    classes = unicode_tables().classes
    return sum(2 if int(classes[ord(character)]) & CharClass.UNSPACED else 1 for character in line)


def before_closers(line: str) -> str:
    return line[0] + line[1:].rstrip(CLOSERS)


def plain_statistics(text: str) -> dict[str, float]:
    words = plain_words(text)
    stripped = [line.strip() for line in plain_lines(text)]
    lines = [line for line in stripped if line]
    repeated = [line for i, line in enumerate(lines) if line in lines[:i]]
    categories = Counter(unicodedata.category(character)[0] for character in text)
    size = len(text)
    expected = {
        "characters": size,
        "words": len(words),
        "lines": len(plain_lines(text)),
        "mean_word_length": share(sum(map(len, words)), len(words)),
        "letter_share": share(categories["L"], size),
        "digit_share": share(categories["N"], size),
        "punctuation_share": share(categories["P"], size),
        "symbol_share": share(categories["S"], size),
        "whitespace_share": share(sum(character.isspace() for character in text), size),
        "duplicate_line_share": share(len(repeated), len(lines)),
        "duplicate_line_character_share": share(sum(map(len, repeated)), sum(map(len, lines))),
    }
    ends = [before_closers(line) for line in lines]
    ellipses = [end.endswith(("...", "…")) for end in ends]
    terminated = [end[-1] in TERMINATORS and not dots for end, dots in zip(ends, ellipses, strict=True)]
    enough = len(lines) >= MIN_SHAPED_LINES
    expected |= {
        "short_line_share": share(sum(columns_wide(line) < 30 for line in lines), len(lines) * enough),
        "terminated_line_share": share(sum(terminated), len(lines) * enough),
        "ellipsis_line_share": share(sum(ellipses), len(lines) * enough),
    }
    for n in (2, 3, 4):
        expected[f"top_{n}gram_share"] = plain_top(words, n) if words else math.nan
    for n in range(5, 11):
        expected[f"duplicate_{n}gram_share"] = plain_duplicate(words, n)
    return expected


@given(st.lists(texts, min_size=1, max_size=5))
def test_statistics_agree_with_python(documents: list[str]) -> None:
    columns = score(documents)

    for i, text in enumerate(documents):
        for name, expected in plain_statistics(text).items():
            found = float(columns.values[name][i])
            assert np.isclose(found, expected, rtol=1e-5, equal_nan=True), (name, found, expected)
            assert (columns.missing[name][i] == Missing.TOO_SHORT) == math.isnan(expected)


@pytest.mark.parametrize(
    ("line", "terminated", "ellipsis"),
    [
        ("It ended.", 1, 0),
        ("“Did it end?”", 1, 0),
        ("他问：“结束了吗？”", 1, 0),
        ("结束了。）", 1, 0),
        ("It goes on ...", 0, 1),
        ("还没有说完……", 0, 1),
        ("Home", 0, 0),
        ("首页", 0, 0),
        ("...", 0, 1),
        ('"', 0, 0),
    ],
)
def test_ends_of_lines(line: str, terminated: float, ellipsis: float) -> None:
    columns = score([f"{line}\n" * 5])

    assert columns.values["terminated_line_share"][0] == terminated
    assert columns.values["ellipsis_line_share"][0] == ellipsis


def test_a_text_of_few_lines_has_no_shape() -> None:
    columns = score(["One.\nTwo.\n\nThree.\nFour.\n", "一。\n二。\n三。\n四。\n五。"])

    for name in ("short_line_share", "terminated_line_share", "ellipsis_line_share"):
        assert columns.missing[name].tolist() == [Missing.TOO_SHORT, Missing.PRESENT]


def test_every_signal_is_filled_for_every_document() -> None:
    columns = score(["", "a", "文"])

    assert set(columns.values) == {signal.name for signal in StatisticsScorer.signals}
    assert all(values.shape == (3,) and values.dtype == np.float32 for values in columns.values.values())


def test_repetition_is_seen_in_both_languages() -> None:
    columns = score(["buy one now and save more " * 20, "现在购买立即享受优惠。" * 20])

    for name in ("duplicate_5gram_share", "duplicate_10gram_share"):
        assert (columns.values[name] > 0.9).all()


def test_han_share_counts_han_only() -> None:
    assert score(["漢字かな"]).values["han_share"][0] == np.float32(0.5)
