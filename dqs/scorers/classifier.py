"""Classifiers that users bring: each a network of its own, each a family of signals.

`dqs models import` makes their folders. A model bound to the task `toxicity`
or `quality` gives `<model>_toxicity` or `<model>_quality` from its main label;
all other labels are `<model>_<label>`. The signals `toxicity` and `quality`
themselves stay those of the models that ship.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.inference.sessions import Runtime
from dqs.inference.transformer import Shape, Transformer, read_shape
from dqs.models import ModelFolder
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.text import TextBatch

_CPU = Runtime()
_OTHER = re.compile(r"[^a-z0-9]+")


class ClassifierScorer:
    """Probabilities, or values of a regression, per label of every model.

    A document without a word has no value (TOO_SHORT), nor has one in a language that the
    model does not serve (NO_MODEL); a model that names no language serves all. Where a
    network's answer is no number, as half precision may give, it is UNAVAILABLE.

    Attributes:
        classifiers: names of the models, by which callers choose.

    Args:
        models: the folders of kind `classifier`.
        runtime: how their graphs run.

    Raises:
        ModelError: a model does not load, or two labels make the same signal.
    """

    name: ClassVar[str] = "classifier"
    needs: ClassVar[tuple[str, ...]] = ("language",)

    def __init__(self, models: Sequence[ModelFolder], runtime: Runtime = _CPU) -> None:
        self._families = [(Transformer(folder, runtime), model_signals(folder)) for folder in models]
        self.signals: tuple[Signal, ...] = tuple(signal for _, signals in self._families for signal in signals)
        self.classifiers = tuple(folder.name for folder in models)
        owners: dict[str, str] = {}
        for folder, (_, signals) in zip(models, self._families, strict=True):
            for signal in signals:
                if signal.name in owners:
                    raise ModelError(
                        f"The models {owners[signal.name]} and {folder.label} both give the signal {signal.name}: "
                        "import one under another name, or leave it out of the setting classifiers."
                    )
                owners[signal.name] = folder.label

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills the signals of every model."""
        n = len(batch)
        wordless = np.diff(batch.word_offsets) == 0
        for name, (model, signals) in zip(self.classifiers, self._families, strict=True):
            if not columns.asks_for(name):
                columns.put_unasked([signal.name for signal in signals])
                continue
            served = np.ones(n, dtype=np.bool_)
            if model.languages:
                served = np.fromiter((code in model.languages for code in columns.language), dtype=np.bool_, count=n)
            documents = np.flatnonzero(served & ~wordless)
            values = np.full((n, len(signals)), np.nan, dtype=np.float32)
            if documents.size:
                values[documents], _ = model.score_documents(batch, documents)
            absent = np.where(wordless, np.uint8(Missing.TOO_SHORT), np.uint8(Missing.NO_MODEL))
            absent[documents] = Missing.UNAVAILABLE
            for column, signal in enumerate(signals):
                missing = np.where(np.isfinite(values[:, column]), np.uint8(Missing.PRESENT), absent)
                columns.put(signal.name, values[:, column], missing)


def model_signals(folder: ModelFolder) -> tuple[Signal, ...]:
    """The signals of a model, in the order of its labels.

    Raises:
        ModelError: model.toml is malformed, or two labels make the same signal.
    """
    shape = read_shape(folder)
    signals = tuple(_signal(folder, shape, label) for label in range(len(shape.labels)))
    names = [signal.name for signal in signals]
    for label, name in enumerate(names):
        first = names.index(name)
        if first != label:
            raise ModelError(
                f"The labels {shape.labels[first]!r} and {shape.labels[label]!r} of the model {folder.label} both give "
                f"the signal {name}: rename one in its model.toml."
            )
    return signals


def _signal(folder: ModelFolder, shape: Shape, label: int) -> Signal:
    main = label == shape.main and shape.task != "custom"
    name = f"{_plain(folder.name)}_{shape.task if main else _plain(shape.labels[label]) or f'label_{label}'}"
    if not name[0].isalpha():
        name = f"model_{name}"
    over = "the greatest" if shape.aggregation == "max" else "the mean"
    direction = Direction.NEUTRAL
    if shape.task == "toxicity" and (main or shape.head == "multi_label"):
        direction = Direction.HIGHER_IS_WORSE
    elif main:
        direction = Direction.LOWER_IS_WORSE
    if shape.head == "regression":
        low, high = shape.range
        return Signal(
            name, "value", low, high, direction,
            f"Value {shape.labels[label]!r} by the model {folder.name}, {over} over windows.",
        )  # fmt: skip
    return Signal(
        name, "probability", 0, 1, direction,
        f"Probability of {shape.labels[label]!r} by the model {folder.name}, {over} over windows.",
    )  # fmt: skip


def _plain(text: str) -> str:
    return _OTHER.sub("_", text.lower()).strip("_")
