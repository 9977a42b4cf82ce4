"""Toxicity: the probability that the worst passage of a document is toxic, and where it is.

N-gram ids come from the text kernels; an ONNX graph of our own gathers their
weights, sums them and calibrates (`dqs.training.toxicity` makes it). Documents
longer than two blocks of words are scored window by window. A model may bring a
network (a transformer, convolutions over characters), which looks again at what the
n-grams leave in doubt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.inference.runtime import Runtime
from dqs.inference.sessions import Session
from dqs.inference.symbols import name_symbols
from dqs.inference.transformer import Transformer
from dqs.models import ModelFolder, check_languages
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch
from dqs.text.manner import MANNERS, measure_manner
from dqs.text.ngrams import SOUNDS, Ngrams, NgramShape, hash_ngrams, sound_table, take_windows

GRAPH_ROLE = "graph"
POST_ROLE = "post"
SECOND_ROLE = "second"
SOUNDS_ROLE = "sounds"
SECOND_LABEL = "toxic"
ATTRIBUTES = {
    "insult": "Probability that the worst window is toxic and insults somebody.",
    "obscene": "Probability that the worst window is toxic and obscene.",
    "threat": "Probability that the worst window is toxic and threatens somebody.",
    "identity_attack": "Probability that the worst window is toxic and attacks a group of people for what they are.",
    "sexual": "Probability that the worst window is toxic and sexual.",
}
"""What models may say of toxic text besides; each is a signal `toxicity_<name>`."""
SIGNS = ("toxicity", "post", *MANNERS)
"""What decides whether a window is worth a second look: log-odds of two n-gram models, and how it is written."""
GRAPH_INPUTS = ("ngrams", "row_block", "block_ngrams", "window_first", "window_second")
GRAPH_OUTPUT = "probability"

_CHECK_TEXT = "Every n-gram keeps its number, every one. 每个片段的编号不变，每个都不变。"
_SHOWN_DIGITS = 16
_LEAST_PROBABILITY = 1e-6
_CPU = Runtime()


class ToxicityScorer:
    """Calibrated probability of toxicity per document, by one model per language.

    Fills `toxicity`, the attributes that the models have, and `columns.toxicity_span`. A document without a word has no
    value (TOO_SHORT), nor has one in a language without a model (NO_MODEL). Attributes are known where the model's
    network looked at the worst window (else NOT_LOOKED_AT), in languages whose model has them (else NO_MODEL).

    Args:
        models: the folders of kind `toxicity`, one for each language.
        runtime: how their graphs run.

    Raises:
        ModelError: two models serve one language, or a model does not load.
    """

    name: ClassVar[str] = "toxicity"
    needs: ClassVar[tuple[str, ...]] = ("language",)

    def __init__(self, models: Sequence[ModelFolder], runtime: Runtime = _CPU) -> None:
        self._models = [ToxicityModel(folder, runtime) for folder in models]
        self._attributes = [name for name in ATTRIBUTES if any(name in model.attributes for model in self._models)]
        self.signals: tuple[Signal, ...] = (
            Signal("toxicity", "probability", 0, 1, Direction.HIGHER_IS_WORSE,
                   "Probability that the worst window of the document is toxic."),
            *(Signal(f"toxicity_{name}", "probability", 0, 1, Direction.HIGHER_IS_WORSE, ATTRIBUTES[name])
              for name in self._attributes),
        )  # fmt: skip
        check_languages(models)

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `toxicity` and the spans."""
        n = len(batch)
        toxicity = np.full(n, np.nan, dtype=np.float32)
        span = np.full((n, 2), -1, dtype=np.int32)
        attributes = {name: np.full(n, np.nan, dtype=np.float32) for name in self._attributes}
        without = {name: np.full(n, Missing.NO_MODEL, dtype=np.uint8) for name in self._attributes}
        wordless = np.diff(batch.word_offsets) == 0
        missing = np.where(wordless, np.uint8(Missing.TOO_SHORT), np.uint8(Missing.NO_MODEL))
        for model in self._models:
            served = np.fromiter((code in model.languages for code in columns.language), dtype=np.bool_, count=n)
            documents = np.flatnonzero(served & ~wordless)
            if documents.size:
                found = model.score(batch, documents)
                toxicity[documents], span[documents] = found.probability, found.span
                missing[documents] = Missing.PRESENT
                for at, name in enumerate(model.attributes):
                    attributes[name][documents] = found.attributes[:, at]
                    without[name][documents] = Missing.NOT_LOOKED_AT
        columns.put("toxicity", toxicity, missing)
        for name, values in attributes.items():
            reason = np.where(missing == Missing.PRESENT, without[name], missing)
            columns.put(f"toxicity_{name}", values, np.where(np.isnan(values), reason, np.uint8(Missing.PRESENT)))
        columns.toxicity_span = span


class ToxicityModel:
    """One model folder, loaded.

    Attributes:
        languages: ISO 639-1 codes that it serves.
        shape: the n-grams that its weights belong to.
        threshold: probability from which on the model's card calls a document toxic.
        discount: of a document of n windows, log-odds are lowered by this times the natural logarithm of n: the
            worst of many windows has high log-odds by chance alone.
        attributes: names of what it says of toxic text besides, such as `insult`.
        second: what looks again, or None.

    Raises:
        ModelError: model.toml lacks a key, a graph does not load, or the kernels number
            n-grams in another way than when the model was trained.
    """

    def __init__(self, folder: ModelFolder, runtime: Runtime = _CPU) -> None:
        table = folder.table("toxicity")
        self.languages = frozenset(folder.languages)
        self.shape = read_shape(table, folder.label)
        self.threshold = _number(table, "threshold", folder.label)
        self.discount = _number({"discount": 0.0, **table}, "discount", folder.label)
        self.sounds = _read_sounds(folder) if self.shape.sound_sizes else None
        if table.get("ngram_check") != ngram_check(self.shape, self.sounds):
            raise ModelError(
                f"The model {folder.label} was trained with other n-gram kernels than this version has: "
                "train it again, or install the version of DQS that it came with."
            )
        self._first = _NgramGraph(folder, GRAPH_ROLE, runtime)
        self.second = SecondLook(folder, runtime) if folder.has_file(SECOND_ROLE) else None
        self.attributes = () if self.second is None else self.second.attributes

    def score(self, batch: TextBatch, documents: NDArray[np.int64], *, second_look: bool = True) -> Toxicity:
        """Scores documents that have at least one word, whatever their language.

        Args:
            batch: the texts.
            documents: int64[m]; indices into the batch.
            second_look: false leaves it at what the n-grams say.
        """
        ngrams = hash_ngrams(batch, documents, self.shape, self.sounds)
        probability = self._first.run(ngrams)
        looked = np.zeros(0, dtype=np.int64)
        log_odds = np.zeros((0, 1 + len(self.attributes)))
        if self.second is not None and second_look:
            looked, left_out = self.second.choose(batch, documents, ngrams, probability)
            if looked.size:
                log_odds = self.second.look(batch, documents, ngrams, looked)
                probability[looked] = self.second.mix(probability[looked], log_odds)
                # Likelier windows of the same document were judged in their place.
                probability[left_out] = 0
        best = _worst_windows(probability, ngrams.window_offsets)
        start, end = _places(batch, documents, ngrams.window_start[best], ngrams.window_end[best])
        worst = self._discounted(probability[best], ngrams)
        attributes = np.zeros((documents.size, 0), dtype=np.float32)
        if self.attributes:
            assert self.second is not None
            attributes = self.second.attribute(worst, best, looked, log_odds[:, 1:])
        return Toxicity(worst, np.stack([start, end], axis=1).astype(np.int32), attributes, looked.size)

    def _discounted(self, worst: NDArray[np.float32], ngrams: Ngrams) -> NDArray[np.float32]:
        windows = np.diff(ngrams.window_offsets)
        several = windows > 1
        if self.discount and several.any():
            lowered = log_odds_of(worst[several]) - self.discount * np.log(windows[several])
            worst[several] = _probability(lowered)
        return worst

    def score_windows(self, ngrams: Ngrams) -> NDArray[np.float32]:
        """What the fast graph says of each window: float32[windows] probability, 0 to 1."""
        return self._first.run(ngrams)


@dataclass(frozen=True, slots=True, eq=False)
class Toxicity:
    """What a model says of m documents.

    Attributes:
        probability: float32[m], 0 to 1, of the worst window.
        span: int32[m, 2]; first and past-the-last code point of that window within its document.
        attributes: float32[m, attributes]; probability of each attribute, never above `probability`; NaN where the
            second model did not look.
        looked_at: windows that the second model has looked at.
    """

    probability: NDArray[np.float32]
    span: NDArray[np.int32]
    attributes: NDArray[np.float32]
    looked_at: int


class _NgramGraph:
    """An ONNX graph over n-grams: a probability per window."""

    def __init__(self, folder: ModelFolder, role: str, runtime: Runtime) -> None:
        # The sums of a few weights gain nothing from another device than the one that the n-grams are on.
        self._session = Session(folder, role, replace(runtime, provider="cpu"))
        if set(self._session.inputs) != set(GRAPH_INPUTS) or GRAPH_OUTPUT not in self._session.outputs:
            raise ModelError(
                f"The graph {folder.file(role)} of the model {folder.label} has other inputs or outputs than a "
                "toxicity model: make it with `dqs train toxicity`."
            )

    def run(self, ngrams: Ngrams) -> NDArray[np.float32]:
        """float32[windows]: probability, 0 to 1."""
        block_ngrams = np.zeros(ngrams.block_ngrams.size + 1, dtype=np.float32)
        block_ngrams[:-1] = ngrams.block_ngrams
        inputs = (ngrams.ids, ngrams.row_block, block_ngrams, ngrams.window_first, ngrams.window_second)
        (probability,) = self._session.run([GRAPH_OUTPUT], dict(zip(GRAPH_INPUTS, inputs, strict=True)))
        return np.asarray(probability, dtype=np.float32)


class SecondLook:
    """A network that looks again at the windows of which the n-grams do not know enough.

    A window is looked at if its n-grams' probability reaches `low_short` and it reads like
    what people write to each other rather than like edited prose: a weighted sum of `SIGNS`
    says so, which a second set of n-gram weights contributes to. Windows of documents
    that have more than one meet limits of their own, and at most `most_windows` of a document
    are looked at. The probability is then that of a logistic regression on the n-grams' log-odds and
    the network's, of toxicity and of attributes.
    """

    def __init__(self, folder: ModelFolder, runtime: Runtime) -> None:
        table = folder.table("toxicity").get("second")
        if not isinstance(table, dict):
            raise ModelError(f"The model {folder.label} has no table [toxicity.second]: restore its model.toml.")
        low, limit = (
            [_number(table, f"{name}_{length}", folder.label) for length in ("short", "long")]
            for name in ("low", "limit")
        )
        self._low, self._limit = np.array(low, dtype=np.float32), np.array(limit)
        self._most = int(_number(table, "most_windows", folder.label))
        signs = table.get("signs")
        if not isinstance(signs, dict) or set(signs) != set(SIGNS):
            raise ModelError(
                f"The table [toxicity.second.signs] of the model {folder.label} must have a number for each of "
                f"{', '.join(SIGNS)}: restore its model.toml."
            )
        self._sign_weights = np.array([_number(signs, name, folder.label) for name in SIGNS])
        self._first_scale, self._offset = (_number(table, key, folder.label) for key in ("first_scale", "offset"))
        named = table.get("attributes", {})
        if not isinstance(named, dict) or not set(named) <= set(ATTRIBUTES):
            raise ModelError(
                f"The model {folder.label} has attributes other than {', '.join(ATTRIBUTES)}: restore its model.toml."
            )
        self.attributes = tuple(name for name in ATTRIBUTES if name in named)
        self._attribute_weights = np.array(
            [[_number(named[name], key, folder.label) for key in ("scale", "offset")] for name in named]
        ).reshape(len(named), 2)[[list(named).index(name) for name in self.attributes]]
        labels = (SECOND_LABEL, *self.attributes)
        scales = table.get("scales")
        if not isinstance(scales, dict) or not set(scales) <= set(labels):
            raise ModelError(
                f"The table [toxicity.second.scales] of the model {folder.label} must have numbers for some of "
                f"{', '.join(labels)}: restore its model.toml."
            )
        self._scales = [_number({label: 0.0, **scales}, label, folder.label) for label in labels]
        self._post = _NgramGraph(folder, POST_ROLE, runtime)
        self._network = Transformer(folder, runtime, graph_role=SECOND_ROLE)
        if self._network.labels != labels or self._network.shape.head != "multi_label":
            raise ModelError(
                f"The second graph of the model {folder.label} must be a multi_label one with the labels "
                f"{', '.join(labels)}: restore its model.toml."
            )

    def choose(
        self, batch: TextBatch, documents: NDArray[np.int64], ngrams: Ngrams, probability: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The windows to look at, in ascending order, and those that would be but for `most_windows`: int64 each."""
        windows = np.diff(ngrams.window_offsets)
        document = np.repeat(np.arange(windows.size), windows)
        is_long = np.minimum(windows[document], 2) - 1
        candidates = np.flatnonzero(probability >= self._low[is_long])
        if not candidates.size:
            return candidates, candidates
        signs = self.signs(batch, documents, ngrams, probability, candidates)
        kept = signs @ self._sign_weights >= self._limit[is_long[candidates]]
        candidates = candidates[kept]
        document = document[candidates]
        # By document, the likeliest windows first; equals in the order of the text.
        order = np.lexsort((-probability[candidates], document))
        place = np.arange(order.size) - np.searchsorted(document[order], document[order], side="left")
        return np.sort(candidates[order[place < self._most]]), candidates[order[place >= self._most]]

    def signs(
        self,
        batch: TextBatch,
        documents: NDArray[np.int64],
        ngrams: Ngrams,
        probability: NDArray[np.float32],
        windows: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """float64[k, len(SIGNS)] of k windows."""
        post = self._post.run(take_windows(ngrams, windows))
        manner = measure_manner(batch.codepoints, *_stretches(batch, documents, ngrams, windows))
        return np.column_stack([log_odds_of(probability[windows]), log_odds_of(post), manner])

    def look(
        self, batch: TextBatch, documents: NDArray[np.int64], ngrams: Ngrams, windows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The network's log-odds of k windows: float64[k, 1 + attributes]."""
        places = zip(*(place.tolist() for place in _stretches(batch, documents, ngrams, windows)), strict=True)
        texts = [batch.codepoints[begin:end].tobytes().decode("utf-32-le") for begin, end in places]
        scores, _ = self._network.score_texts([name_symbols(text) for text in texts])
        return log_odds_of(scores)

    def mix(self, first: NDArray[np.float32], second: NDArray[np.float64]) -> NDArray[np.float32]:
        """float32[k]: the probability by the n-grams' probability and the network's log-odds of each label."""
        mixed = self._first_scale * log_odds_of(first) + self._offset
        # One after the other: a product of matrices would round by how many windows there are.
        for column, scale in enumerate(self._scales):
            mixed += scale * second[:, column]
        return _probability(mixed).astype(np.float32)

    def attribute(
        self,
        toxicity: NDArray[np.float32],
        best: NDArray[np.int64],
        looked: NDArray[np.int64],
        log_odds: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """float32[m, attributes] of m documents by their worst windows `best`.

        The probability of toxicity times that of the attribute in toxic text; NaN where the
        window was not looked at.
        """
        scale, offset = self._attribute_weights.T
        given_toxic = np.full((best.size, scale.size), np.nan)
        at = np.searchsorted(looked, best)
        seen = at < looked.size
        seen[seen] = looked[at[seen]] == best[seen]
        given_toxic[seen] = _probability(scale * log_odds[at[seen]] + offset)
        return cast(NDArray[np.float32], (toxicity[:, None] * given_toxic).astype(np.float32))


def log_odds_of(probability: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64: natural log-odds of probabilities, at most those of `_LEAST_PROBABILITY` from 0 and 1."""
    kept = np.clip(probability.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.log(kept) - np.log1p(-kept)


def _probability(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.tanh(0.5 * log_odds)


def _read_sounds(folder: ModelFolder) -> NDArray[np.uint32]:
    sounds = np.frombuffer(folder.file(SOUNDS_ROLE).read_bytes(), dtype="<u2")
    if sounds.size != SOUNDS:
        raise ModelError(f"The file of sounds of the model {folder.label} has a wrong size: restore it.")
    return sound_table(sounds.astype(np.uint16))


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
            sound_sizes=int(table.get("sound_sizes", 0)),
            simplified=bool(table.get("simplified", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The model {label} does not describe its n-grams ({error}): restore its model.toml."
        ) from error


def ngram_check(shape: NgramShape, sounds: NDArray[np.uint32] | None = None) -> str:
    """A digest of the ids of a fixed text: differs as soon as words, hashes or n-grams are made otherwise."""
    batch = TextBatch.from_bytes([_CHECK_TEXT.encode()])
    ids = hash_ngrams(batch, np.zeros(1, dtype=np.int64), shape, sounds).ids
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:_SHOWN_DIGITS]


def _number(table: Mapping[str, Any], key: str, label: str) -> float:
    value = table.get(key)
    if not isinstance(value, int | float):
        raise ModelError(f"The model {label} has no number {key!r} in [toxicity]: restore its model.toml.")
    return float(value)


def _stretches(
    batch: TextBatch, documents: NDArray[np.int64], ngrams: Ngrams, windows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Code points of the batch that k windows stand for, int64[k] each: firsts and past-the-lasts.

    What stands before the first word of a document and after its last belongs to the first and the last window.
    """
    at = np.searchsorted(ngrams.window_offsets, windows, side="right") - 1
    document = documents[at]
    start, end = _places(batch, document, ngrams.window_start[windows], ngrams.window_end[windows])
    begin, past = batch.codepoint_offsets[document], batch.codepoint_offsets[document + 1]
    is_first, is_last = windows == ngrams.window_offsets[at], windows + 1 == ngrams.window_offsets[at + 1]
    return np.where(is_first, begin, begin + start), np.where(is_last, past, begin + end)


def _places(
    batch: TextBatch, documents: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Code points within their documents of k stretches of folded text, int64[k] each: firsts and past-the-lasts."""
    first = batch.folded_origin[start].astype(np.int64)
    # Marks that folding merged into the last character belong to the stretch too.
    last = batch.codepoint_offsets[documents + 1] - batch.codepoint_offsets[documents]
    inside = end < batch.folded_offsets[documents + 1]
    following = batch.folded_origin[end[inside]].astype(np.int64)
    last[inside] = np.maximum(following, batch.folded_origin[end[inside] - 1] + 1)
    return first, last


@njit(cache=True, nogil=True)
def _worst_windows(probability: NDArray[np.float32], window_offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[m]: the window of the greatest probability of each document; of equals the first."""
    best = np.empty(window_offsets.size - 1, dtype=np.int64)
    for i in range(best.size):
        best[i] = window_offsets[i]
        for window in range(best[i] + 1, window_offsets[i + 1]):
            if probability[window] > probability[best[i]]:
                best[i] = window
    return best
