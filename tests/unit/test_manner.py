"""How passages are written, beside a plain count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dqs.text import TextBatch
from dqs.text.manner import MANNERS, measure_manner


def measured(*texts: str) -> list[dict[str, float]]:
    batch = TextBatch.from_bytes([text.encode() for text in texts])
    offsets = batch.codepoint_offsets.astype(np.int64)
    found = measure_manner(batch.codepoints, offsets[:-1], offsets[1:])
    return [dict(zip(MANNERS, row, strict=True)) for row in found.tolist()]


def test_a_sentence_and_a_post() -> None:
    sentence, post = measured("The cat, a Tom, sat.", " omg @you LOOK!! 🙂🙂 ?")
    assert sentence == pytest.approx(
        {
            "starts_upper": 1, "starts_lower": 0, "upper_share": 2 / 20, "titles": 1 / 4, "marks": 0,
            "commas": math.log1p(2), "handles": 0, "emoji": 0,
        }
    )  # fmt: skip
    assert post == pytest.approx(
        {
            "starts_upper": 0, "starts_lower": 1, "upper_share": 4 / 21, "titles": 1 / 4, "marks": math.log1p(3),
            "commas": 0, "handles": math.log1p(1), "emoji": math.log1p(2),
        }
    )  # fmt: skip


def test_nothing_and_other_scripts() -> None:
    nothing, spaces, chinese = measured("", " \n\t", "你好！是吗？")
    assert set(nothing.values()) == set(spaces.values()) == {0.0}
    assert chinese["marks"] == pytest.approx(math.log1p(2))
    assert chinese["starts_upper"] == chinese["starts_lower"] == 0


def test_only_the_passage_is_measured() -> None:
    batch = TextBatch.from_bytes([b"Xx! but this one, Here# it is"])
    (row,) = measure_manner(batch.codepoints, np.array([4]), np.array([17])).tolist()
    found = dict(zip(MANNERS, row, strict=True))
    assert found["starts_lower"] == 1
    assert found["commas"] == pytest.approx(math.log1p(1))
    assert found["marks"] == found["handles"] == found["upper_share"] == 0
