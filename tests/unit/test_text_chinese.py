from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dqs.text import TextBatch
from dqs.text.chinese import dictionary_words
from tests.unit.awkward import texts


def test_words_are_those_of_the_dictionary() -> None:
    batch = TextBatch.from_bytes([b"skip me", "我们在图书馆学习，很安静。".encode()])

    words = dictionary_words(batch, [1])
    assert words.length.tolist() == [2, 1, 3, 2, 1, 1, 2, 1]
    assert words.is_word.tolist() == [True, True, True, True, False, True, True, False]


@given(st.lists(texts, max_size=4))
def test_words_cover_the_text(documents: list[str]) -> None:
    batch = TextBatch.from_bytes([text.encode() for text in documents])

    words = dictionary_words(batch, range(len(batch)))
    covered = [int(words.length[a:b].sum()) for a, b in zip(words.offsets[:-1], words.offsets[1:], strict=True)]
    assert covered == list(map(len, documents))
    assert (np.diff(words.offsets) >= 0).all()
