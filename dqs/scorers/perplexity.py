"""Perplexity under a KenLM n-gram model of the document's language, and its percentile in clean text.

Perplexity = 10^(-log10 P / tokens), with one end mark per line among the tokens.
The percentile compares with clean reference text of the same language and
length, so that one threshold means the same everywhere: reference quantiles are
kept for some lengths and interpolated between them, without steps.

This is the only file that imports kenlm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import kenlm
import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.models import ModelFolder
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch
from dqs.text.ccnet import NORMALISERS
from dqs.text.vocabulary import ENDS_LINE, STARTS_LINE, TokenLines, Vocabulary

KIND: Final = "perplexity"
LANGUAGE_MODEL: Final = "language_model"
VOCABULARY: Final = "vocabulary"
SENTENCEPIECE: Final = "sentencepiece"
MINIMUM_TOKENS: Final = 8
"""Default for texts too short to score: fewer tokens, end marks included."""

_WHOLE_LINE = STARTS_LINE | ENDS_LINE


class PerplexityScorer:
    """Perplexity and its percentile per document, for the languages that have a model.

    A document of another language has no score (NO_MODEL), nor has one with fewer
    tokens than the model's `minimum_tokens` (TOO_SHORT). A model without reference
    quantiles gives perplexities, and percentiles that are missing (NO_MODEL).

    Args:
        models: folders of kind `perplexity`; of several for one language the first serves.

    Raises:
        ModelError: a file does not load, or model.toml does not fit.
    """

    name: ClassVar[str] = "perplexity"
    needs: ClassVar[tuple[str, ...]] = ("language",)
    signals = (
        Signal("perplexity", "perplexity", 1, math.inf, Direction.HIGHER_IS_WORSE,
               "10^(-log10 P / tokens) under the n-gram model of the language, one end mark per line."),
        Signal("perplexity_percentile", "percent of clean text", 0, 100, Direction.HIGHER_IS_WORSE,
               "Share of clean reference text of this language and length that has a lower perplexity."),
    )  # fmt: skip

    def __init__(self, models: Sequence[ModelFolder]) -> None:
        self._models: dict[str, PerplexityModel] = {}
        for folder in models:
            loaded: PerplexityModel | None = None
            for language in folder.languages:
                if language not in self._models:
                    loaded = loaded or PerplexityModel(folder)
                    self._models[language] = loaded

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `perplexity` and `perplexity_percentile`."""
        n = len(batch)
        perplexity = np.full(n, np.nan)
        percentile = np.full(n, np.nan)
        missing = np.full(n, Missing.NO_MODEL, dtype=np.uint8)
        percentile_missing = missing.copy()
        languages = np.array(columns.language, dtype=object)
        for language, model in self._models.items():
            documents = np.flatnonzero(languages == language)
            if documents.size == 0:
                continue
            log10, tokens = model.log10_probability(batch, documents)
            enough = tokens >= model.minimum_tokens
            missing[documents] = np.where(enough, Missing.PRESENT, Missing.TOO_SHORT)
            percentile_missing[documents] = missing[documents]
            documents, log10, tokens = documents[enough], log10[enough], tokens[enough]
            log10_perplexity = np.maximum(-log10 / tokens, 0.0)
            # A float32 column holds no more.
            perplexity[documents] = np.minimum(10.0 ** np.minimum(log10_perplexity, 38.0), np.finfo(np.float32).max)
            if model.reference is None:
                percentile_missing[documents] = Missing.NO_MODEL
            else:
                percentile[documents] = model.reference.percentile(log10_perplexity, tokens)
        columns.put("perplexity", perplexity, missing)
        columns.put("perplexity_percentile", percentile, percentile_missing)


class _Encoder(Protocol):
    """Text in, log10 probability and tokens out; one implementation per family of normalisers."""

    def log10_probability(
        self, batch: TextBatch, documents: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]: ...


class PerplexityModel:
    """One loaded model folder. Immutable and safe to use from several threads.

    Attributes:
        minimum_tokens: documents with fewer tokens, end marks included, have no score.
        reference: quantiles in clean text, or None where model.toml holds none.

    Args:
        folder: kind `perplexity`. Normaliser `dqs` needs files with the roles `language_model` and
            `vocabulary`; `ccnet`, `edugp` and `raw` need `language_model` and `sentencepiece`.

    Raises:
        ModelError: a file does not load, or model.toml does not fit.
    """

    def __init__(self, folder: ModelFolder) -> None:
        table = folder.table(KIND)
        minimum = table.get("minimum_tokens", MINIMUM_TOKENS)
        if not isinstance(minimum, int) or minimum < 1:
            raise ModelError(f"model {folder.label}: minimum_tokens must be a number from 1 on")
        self.minimum_tokens: int = minimum
        self.reference = Reference.from_table(table["reference"], folder.label) if "reference" in table else None
        model = _load_kenlm(folder.file(LANGUAGE_MODEL))
        self._encoder: _Encoder
        if folder.normaliser == "dqs":
            self._encoder = _VocabularyModel(model, load_vocabulary(folder.file(VOCABULARY)))
        elif folder.normaliser in NORMALISERS:
            self._encoder = _SentencePieceModel(model, folder.file(SENTENCEPIECE), folder.normaliser)
        else:
            known = ", ".join(("dqs", *NORMALISERS))
            raise ModelError(f"model {folder.label}: unknown normaliser {folder.normaliser!r}: use one of {known}")

    def log10_probability(
        self, batch: TextBatch, documents: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores documents of a batch.

        Returns:
            log10 P, float64[k], and tokens with one end mark per line, int64[k]; 0 and 0 for a
            document without a token.
        """
        return self._encoder.log10_probability(batch, documents)


class Reference:
    """Quantiles of log10 perplexity in clean text at some lengths.

    Attributes:
        tokens: float64[lengths]; text lengths in tokens, rising.
        percents: float64[quantiles]; 0 < p < 100, rising.
        quantiles: float64[lengths, quantiles]; log10 perplexity, strictly rising along a row.
    """

    def __init__(
        self, tokens: NDArray[np.float64], percents: NDArray[np.float64], quantiles: NDArray[np.float64]
    ) -> None:
        """Takes the arrays as they are.

        Raises:
            ModelError: shapes do not fit or values do not rise.
        """
        fits = quantiles.shape == (tokens.size, percents.size) and tokens.size >= 1 and percents.size >= 2
        if not fits or tokens[0] <= 0 or percents[0] <= 0 or percents[-1] >= 100:
            raise ModelError("reference quantiles: tokens, percents and log10_perplexity do not fit each other")
        if not (np.all(np.diff(tokens) > 0) and np.all(np.diff(percents) > 0) and np.all(np.diff(quantiles) > 0)):
            raise ModelError("reference quantiles: tokens, percents and each row of log10_perplexity must rise")
        self.tokens = tokens
        self.percents = percents
        self.quantiles = quantiles

    @classmethod
    def from_table(cls, table: Mapping[str, Any], label: str) -> Reference:
        """Reads `[perplexity.reference]` of a model.toml.

        Raises:
            ModelError: the table does not fit; `label` names the model in the message.
        """
        try:
            return cls(
                np.array(table["tokens"], dtype=np.float64),
                np.array(table["percents"], dtype=np.float64),
                np.array(table["log10_perplexity"], dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {label}: [perplexity.reference] needs tokens, percents and log10_perplexity as numbers"
            ) from error
        except ModelError as error:
            raise ModelError(f"model {label}: {error.message}") from error

    def percentile(self, log10_perplexity: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Percentile of each document among clean text of its length.

        Quantiles between two lengths are interpolated in the logarithm of the length; beyond the
        outer quantiles the percentile goes on exponentially, so that it never stops rising.

        Args:
            log10_perplexity: float64[k].
            tokens: int64[k].

        Returns:
            float64[k], 0 to 100, rising with `log10_perplexity` at equal `tokens`.
        """
        out = np.empty(log10_perplexity.size, dtype=np.float64)
        _percentile(log10_perplexity, np.log(tokens.astype(np.float64)), np.log(self.tokens), self.percents,
                    self.quantiles, out)  # fmt: skip
        return out


class _VocabularyModel:
    """Normaliser `dqs`: tokens from kernels over the shared folded text, KenLM once per line."""

    def __init__(self, model: kenlm.Model, vocabulary: Vocabulary) -> None:
        self._score = model.score
        self._vocabulary = vocabulary

    def log10_probability(
        self, batch: TextBatch, documents: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        lines = self._vocabulary.encode(batch, documents)
        scores = self._score_segments(lines)
        log10 = np.empty(documents.size, dtype=np.float64)
        _sum_segments(scores, lines.segment_offsets, log10)
        return log10, lines.tokens

    def _score_segments(self, lines: TokenLines) -> NDArray[np.float64]:
        segments = lines.segments()
        scores = np.fromiter(map(self._score, segments), dtype=np.float64, count=len(segments))
        # Parts of a very long line: no begin or end mark where there is none.
        for part in np.flatnonzero(lines.segment_ends != _WHOLE_LINE).tolist():
            ends = int(lines.segment_ends[part])
            scores[part] = self._score(segments[part], bool(ends & STARTS_LINE), bool(ends & ENDS_LINE))
        return scores


class _SentencePieceModel:
    """Normalisers `ccnet`, `edugp`, `raw`: SentencePiece pieces joined by spaces, as their models were trained."""

    def __init__(self, model: kenlm.Model, path: Path, normaliser: str) -> None:
        import sentencepiece

        self._score = model.score
        self._normalise, self._split = NORMALISERS[normaliser]
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{path} is no SentencePiece model that loads: restore it") from error

    def log10_probability(
        self, batch: TextBatch, documents: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        log10 = np.zeros(documents.size, dtype=np.float64)
        tokens = np.zeros(documents.size, dtype=np.int64)
        for at, document in enumerate(documents.tolist()):
            text = self._normalise(batch.text(document))
            if not text:
                continue
            for line in self._split(" ".join(self._pieces.encode(text, out_type=str))):
                log10[at] += self._score(line)
                tokens[at] += len(line.split()) + 1
        return log10, tokens


def load_vocabulary(path: Path) -> Vocabulary:
    """Reads a vocabulary file: UTF-8, one token per line.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        # Only LF ends an entry: some tokens are line ends to `str.splitlines`.
        return Vocabulary(token for token in path.read_bytes().decode("utf-8").split("\n") if token)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no vocabulary in UTF-8 that can be read: restore it") from error


def _load_kenlm(path: Path) -> kenlm.Model:
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(path), config)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path} is no KenLM model that loads: restore it or train it again") from error


@njit(cache=True, nogil=True)
def _sum_segments(scores: NDArray[np.float64], offsets: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
    """Adds up in order, so that a document's sum does not depend on its neighbours."""
    for document in range(sums.size):
        total = 0.0
        for segment in range(offsets[document], offsets[document + 1]):
            total += scores[segment]
        sums[document] = total


@njit(cache=True, nogil=True)
def _percentile(
    values: NDArray[np.float64],
    lengths: NDArray[np.float64],
    knots: NDArray[np.float64],
    percents: NDArray[np.float64],
    quantiles: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    row = np.empty(percents.size, dtype=np.float64)
    last = percents.size - 1
    for at in range(values.size):
        length = min(max(lengths[at], knots[0]), knots[knots.size - 1])
        upper = min(max(np.searchsorted(knots, length), 1), max(knots.size - 1, 1))
        if knots.size == 1:
            row[:] = quantiles[0]
        else:
            weight = (length - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
            for q in range(percents.size):
                row[q] = (1.0 - weight) * quantiles[upper - 1, q] + weight * quantiles[upper, q]
        value = values[at]
        if value <= row[0]:
            # The slope of the first step goes on: both sides of the knot meet without a kink.
            scale = percents[0] * (row[1] - row[0]) / (percents[1] - percents[0])
            out[at] = percents[0] * math.exp((value - row[0]) / scale)
        elif value >= row[last]:
            rest = 100.0 - percents[last]
            scale = rest * (row[last] - row[last - 1]) / (percents[last] - percents[last - 1])
            out[at] = 100.0 - rest * math.exp((row[last] - value) / scale)
        else:
            q = np.searchsorted(row, value)
            part = (value - row[q - 1]) / (row[q] - row[q - 1])
            out[at] = percents[q - 1] + part * (percents[q] - percents[q - 1])
