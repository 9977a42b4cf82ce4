"""Chinese words by dictionary, for rules that count words as a reader of Chinese would.

The shared segmentation makes every Han character a word of its own. This one
joins them by jieba's dictionary; it costs about as much as a language model,
so it is made only for the documents that a rule asks about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dqs.text.batch import TextBatch


@dataclass(frozen=True, slots=True, eq=False)
class DictionaryWords:
    """Dictionary words of some documents of a batch.

    Attributes:
        offsets: int64[documents + 1]; the k-th document asked for owns words `offsets[k]` to `offsets[k + 1]`.
        length: int32[words]; length of each word in code points. The words of a document lie
            end to end and cover it: white space and punctuation are words as well.
        is_word: bool[words]; whether the word starts with a word character.
    """

    offsets: NDArray[np.int64]
    length: NDArray[np.int32]
    is_word: NDArray[np.bool_]


def dictionary_words(batch: TextBatch, documents: Iterable[int]) -> DictionaryWords:
    """Segments documents with jieba's dictionary and no guessing of new words.

    Source: jieba's dictionary and maximum-probability path, as implemented by `rjieba`.
    """
    import rjieba

    offsets = [0]
    lengths: list[int] = []
    is_word: list[bool] = []
    for document in documents:
        for word in rjieba.cut(batch.text(document), False):
            lengths.append(len(word))
            is_word.append(word[0].isalnum() or word[0] == "_")
        offsets.append(len(lengths))
    return DictionaryWords(
        np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.int32), np.array(is_word, dtype=np.bool_)
    )
