"""Quality: the probability that a document is text worth training on, from measures that are there already.

The model sees no words: shares of characters and repetitions of the statistics scorer,
the percentile of the perplexity scorer, and the signs of prose of `dqs.text.prose`.
Boosted trees in an ONNX graph of our own (`dqs.training.quality` makes it) turn them
into one calibrated probability.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.inference.sessions import Runtime, Session
from dqs.models import ModelFolder, check_languages
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.scorers.statistics import StatisticsScorer
from dqs.text import TextBatch
from dqs.text.prose import FEATURES, prose_features

KIND: Final = "quality"
GRAPH_ROLE: Final = "graph"
GRAPH_INPUT: Final = "features"
GRAPH_OUTPUT: Final = "probability"

STATISTICS: Final = (
    "mean_word_length", "letter_share", "digit_share", "punctuation_share", "symbol_share", "whitespace_share",
    "han_share", "duplicate_line_share", "duplicate_line_character_share", "top_2gram_share", "top_3gram_share",
    "top_4gram_share", "duplicate_5gram_share", "duplicate_6gram_share", "duplicate_7gram_share",
    "duplicate_8gram_share", "duplicate_9gram_share", "duplicate_10gram_share",
)  # fmt: skip
"""Signals of the statistics scorer that the model reads. None counts anything: length must not decide."""
FEATURE_NAMES: Final = (*STATISTICS, *FEATURES, "percentile_log_odds", "no_percentile", "chinese")
"""Columns of the graph's input, in order."""

_OUTER_PERCENTILE = 0.1
_CHECK_TEXTS = (
    'The measures of this text keep their values, every one of them.\nMenu\nLog in\n<a href="x">More...</a>\n',
    "这段文字的每个度量都保持不变。\n首页\n登录 注册 3D 打印，Ã©Â",
)
_SHOWN_DIGITS = 16
_CPU = Runtime()


class QualityScorer:
    """Calibrated probability that a document is worth training on, by one model per language.

    A document with fewer words than the model's `minimum_words` has no value (TOO_SHORT),
    nor has one in a language without a model (NO_MODEL). A document without a perplexity
    percentile is judged by the other measures.

    Args:
        models: folders of kind `quality`, one for each language.
        runtime: how their graphs run.

    Raises:
        ModelError: two models serve one language, or a model does not load.
    """

    name: ClassVar[str] = "quality"
    needs: ClassVar[tuple[str, ...]] = ("language", "perplexity", "statistics")
    signals = (
        Signal("quality", "probability", 0, 1, Direction.LOWER_IS_WORSE,
               "Probability that the document is edited running text rather than menus, spam, damage or machine data."),
    )  # fmt: skip

    def __init__(self, models: Sequence[ModelFolder], runtime: Runtime = _CPU) -> None:
        self._models = [QualityModel(folder, runtime) for folder in models]
        check_languages(models)

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `quality`."""
        n = len(batch)
        quality = np.full(n, np.nan, dtype=np.float32)
        words = np.diff(batch.word_offsets)
        missing = np.where(words == 0, np.uint8(Missing.TOO_SHORT), np.uint8(Missing.NO_MODEL))
        features: NDArray[np.float32] | None = None
        for model in self._models:
            served = np.fromiter((code in model.languages for code in columns.language), dtype=np.bool_, count=n)
            missing[served] = np.uint8(Missing.TOO_SHORT)
            documents = np.flatnonzero(served & (words >= model.minimum_words))
            if documents.size:
                features = quality_features(batch, columns) if features is None else features
                quality[documents] = model.score(features[documents])
                missing[documents] = np.uint8(Missing.PRESENT)
        columns.put("quality", quality, missing)


class QualityModel:
    """One model folder, loaded.

    Attributes:
        languages: ISO 639-1 codes that it serves.
        minimum_words: documents with fewer words have no score.

    Raises:
        ModelError: model.toml lacks a key, the graph does not load, or this version measures
            text in another way than the one that trained the model.
    """

    def __init__(self, folder: ModelFolder, runtime: Runtime = _CPU) -> None:
        table = folder.table(KIND)
        self.languages = frozenset(folder.languages)
        minimum = table.get("minimum_words")
        if not isinstance(minimum, int) or minimum < 1:
            raise ModelError(
                f"The model {folder.label} has no number 'minimum_words' from 1 on: restore its model.toml."
            )
        self.minimum_words: int = minimum
        if table.get("feature_check") != feature_check():
            raise ModelError(
                f"The model {folder.label} was trained on other measures than this version takes: "
                "train it again, or install the version of DQS that it came with."
            )
        self._session = Session(folder, GRAPH_ROLE, runtime)
        if self._session.inputs != (GRAPH_INPUT,) or GRAPH_OUTPUT not in self._session.outputs:
            raise ModelError(
                f"The graph {folder.file(GRAPH_ROLE)} of the model {folder.label} has other inputs or outputs than a "
                "quality model: make it with `dqs train quality`."
            )

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Runs the graph.

        Args:
            features: float32[m, features], columns as in `FEATURE_NAMES`, without NaN.

        Returns:
            float32[m], probability, 0 to 1.
        """
        (probability,) = self._session.run([GRAPH_OUTPUT], {GRAPH_INPUT: features})
        return np.asarray(probability, dtype=np.float32).reshape(-1)


def quality_features(batch: TextBatch, columns: ScoreColumns) -> NDArray[np.float32]:
    """What the model sees of each document.

    Args:
        batch: the texts.
        columns: with `language` and the columns of the statistics scorer; without perplexity
            percentiles, or where they are missing, `no_percentile` is 1.

    Returns:
        float32[n, features], columns as in `FEATURE_NAMES`; a missing statistic is 0.
    """
    n = len(batch)
    features = np.empty((n, len(FEATURE_NAMES)), dtype=np.float32)
    for at, name in enumerate(STATISTICS):
        features[:, at] = columns.values[name]
    features[:, len(STATISTICS) : -3] = prose_features(batch)
    percentile = columns.values.get("perplexity_percentile", np.full(n, np.nan, dtype=np.float32))
    share = np.clip(percentile, _OUTER_PERCENTILE, 100 - _OUTER_PERCENTILE) / 100
    features[:, -3] = np.log(share / (1 - share))
    features[:, -2] = np.isnan(percentile)
    features[:, -1] = np.fromiter((code == "zh" for code in columns.language), dtype=np.float32, count=n)
    return np.nan_to_num(features, copy=False, nan=0.0)


def feature_check() -> str:
    """A digest of the measures of fixed texts: differs as soon as one is named or taken otherwise."""
    batch = TextBatch.from_bytes([text.encode() for text in _CHECK_TEXTS])
    columns = ScoreColumns(len(batch), language=["en", "zh"])
    StatisticsScorer().score(batch, columns)
    # Three digits: a machine's last bit must not count.
    values = np.round(quality_features(batch, columns).astype(np.float64), 3) + 0.0
    shown = ",".join(FEATURE_NAMES) + ";" + ",".join(f"{value:.3f}" for value in values.reshape(-1).tolist())
    return hashlib.sha256(shown.encode()).hexdigest()[:_SHOWN_DIGITS]
