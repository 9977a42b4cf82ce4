"""Toxicity: the probability that the worst passage of a document is toxic, and where it is.

N-gram ids come from the text kernels; an ONNX graph of our own gathers their
weights, sums them and calibrates (`dqs.training.toxicity` makes it). Documents
longer than two blocks of words are scored window by window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.inference.sessions import Runtime, Session
from dqs.models import ModelFolder
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch
from dqs.text.ngrams import Ngrams, NgramShape, hash_ngrams

GRAPH_ROLE = "graph"
GRAPH_INPUTS = ("ngrams", "row_block", "block_ngrams", "window_first", "window_second")
GRAPH_OUTPUT = "probability"

_CHECK_TEXT = "Every n-gram keeps its number, every one. 每个片段的编号不变，每个都不变。"
_SHOWN_DIGITS = 16
_CPU = Runtime()


class ToxicityScorer:
    """Calibrated probability of toxicity per document, by one model per language.

    Fills `toxicity` and `columns.toxicity_span`. A document without a word has no
    value (TOO_SHORT), nor has one in a language without a model (NO_MODEL).

    Args:
        models: the folders of kind `toxicity`, one for each language.
        runtime: how their graphs run.

    Raises:
        ModelError: two models serve one language, or a model does not load.
    """

    name: ClassVar[str] = "toxicity"
    needs: ClassVar[tuple[str, ...]] = ("language",)
    signals = (
        Signal("toxicity", "probability", 0, 1, Direction.HIGHER_IS_WORSE,
               "Probability that the worst window of the document is toxic."),
    )  # fmt: skip

    def __init__(self, models: Sequence[ModelFolder], runtime: Runtime = _CPU) -> None:
        self._models = [ToxicityModel(folder, runtime) for folder in models]
        served: dict[str, str] = {}
        for folder in models:
            for language in folder.languages:
                if language in served:
                    raise ModelError(
                        f"The models {served[language]} and {folder.label} both score toxicity for {language!r}: "
                        "take the language out of one, or give both the same name to let the first folder win."
                    )
                served[language] = folder.label

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `toxicity` and the spans."""
        n = len(batch)
        toxicity = np.full(n, np.nan, dtype=np.float32)
        span = np.full((n, 2), -1, dtype=np.int32)
        wordless = np.diff(batch.word_offsets) == 0
        missing = np.where(wordless, np.uint8(Missing.TOO_SHORT), np.uint8(Missing.NO_MODEL))
        for model in self._models:
            served = np.fromiter((code in model.languages for code in columns.language), dtype=np.bool_, count=n)
            documents = np.flatnonzero(served & ~wordless)
            if documents.size:
                toxicity[documents], span[documents] = model.score(batch, documents)
                missing[documents] = Missing.PRESENT
        columns.put("toxicity", toxicity, missing)
        columns.toxicity_span = span


class ToxicityModel:
    """One model folder, loaded.

    Attributes:
        languages: ISO 639-1 codes that it serves.
        shape: the n-grams that its weights belong to.
        threshold: probability from which on the model's card calls a document toxic.

    Raises:
        ModelError: model.toml lacks a key, the graph does not load, or the kernels number
            n-grams in another way than when the model was trained.
    """

    def __init__(self, folder: ModelFolder, runtime: Runtime = _CPU) -> None:
        table = folder.table("toxicity")
        self.languages = frozenset(folder.languages)
        self.shape = read_shape(table, folder.label)
        self.threshold = _number(table, "threshold", folder.label)
        if table.get("ngram_check") != ngram_check(self.shape):
            raise ModelError(
                f"The model {folder.label} was trained with other n-gram kernels than this version has: "
                "train it again, or install the version of DQS that it came with."
            )
        self._session = _open_graph(folder, runtime)

    def score(self, batch: TextBatch, documents: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scores documents that have at least one word, whatever their language.

        Args:
            batch: the texts.
            documents: int64[m]; indices into the batch.

        Returns:
            float32[m] probability, 0 to 1; int32[m, 2] first and past-the-last code point
            of the worst window within its document.
        """
        ngrams = hash_ngrams(batch, documents, self.shape)
        probability = self.score_windows(ngrams)
        worst = np.empty(documents.size, dtype=np.float32)
        span = np.empty((documents.size, 2), dtype=np.int32)
        _worst_windows(
            probability, ngrams.window_offsets, ngrams.window_start, ngrams.window_end, documents,
            batch.folded_origin, batch.folded_offsets, batch.codepoint_offsets, worst, span,
        )  # fmt: skip
        return worst, span

    def score_windows(self, ngrams: Ngrams) -> NDArray[np.float32]:
        """Runs the graph: float32[windows] probability, 0 to 1."""
        block_ngrams = np.zeros(ngrams.block_ngrams.size + 1, dtype=np.float32)
        block_ngrams[:-1] = ngrams.block_ngrams
        inputs = (ngrams.ids, ngrams.row_block, block_ngrams, ngrams.window_first, ngrams.window_second)
        (probability,) = self._session.run([GRAPH_OUTPUT], dict(zip(GRAPH_INPUTS, inputs, strict=True)))
        return np.asarray(probability, dtype=np.float32)


def read_shape(table: Mapping[str, Any], label: str) -> NgramShape:
    """Reads the n-gram shape of a model.

    Args:
        table: the table `[toxicity]` of model.toml.
        label: names the model in the error.

    Raises:
        ModelError: a key is missing or out of range.
    """
    try:
        return NgramShape(
            word_sizes=int(table["word_sizes"]),
            character_sizes=tuple(int(size) for size in table["character_sizes"]),
            bits=int(table["bits"]),
            block_words=int(table["block_words"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The model {label} does not describe its n-grams ({error}): restore its model.toml."
        ) from error


def ngram_check(shape: NgramShape) -> str:
    """A digest of the ids of a fixed text: differs as soon as words, hashes or n-grams are made otherwise."""
    batch = TextBatch.from_bytes([_CHECK_TEXT.encode()])
    ids = hash_ngrams(batch, np.zeros(1, dtype=np.int64), shape).ids
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:_SHOWN_DIGITS]


def _number(table: Mapping[str, Any], key: str, label: str) -> float:
    value = table.get(key)
    if not isinstance(value, int | float):
        raise ModelError(f"The model {label} has no number {key!r} in [toxicity]: restore its model.toml.")
    return float(value)


def _open_graph(folder: ModelFolder, runtime: Runtime) -> Session:
    session = Session(folder, GRAPH_ROLE, runtime)
    if set(session.inputs) != set(GRAPH_INPUTS) or GRAPH_OUTPUT not in session.outputs:
        raise ModelError(
            f"The graph {folder.file(GRAPH_ROLE)} of the model {folder.label} has other inputs or outputs than a "
            "toxicity model: make it with `dqs train toxicity`."
        )
    return session


@njit(cache=True, nogil=True)
def _worst_windows(
    probability: NDArray[np.float32],
    window_offsets: NDArray[np.int64],
    window_start: NDArray[np.int64],
    window_end: NDArray[np.int64],
    documents: NDArray[np.int64],
    folded_origin: NDArray[np.int32],
    folded_offsets: NDArray[np.int64],
    codepoint_offsets: NDArray[np.int64],
    worst: NDArray[np.float32],
    span: NDArray[np.int32],
) -> None:
    for i in range(documents.size):
        best = window_offsets[i]
        for window in range(best + 1, window_offsets[i + 1]):
            if probability[window] > probability[best]:
                best = window
        worst[i] = probability[best]
        document = documents[i]
        end = window_end[best]
        span[i, 0] = folded_origin[window_start[best]]
        # Marks that folding merged into the last character belong to the window too.
        if end < folded_offsets[document + 1]:
            span[i, 1] = max(folded_origin[end], folded_origin[end - 1] + 1)
        else:
            span[i, 1] = codepoint_offsets[document + 1] - codepoint_offsets[document]
