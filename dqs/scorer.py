"""What a scorer is: text in, columns of signals out. Read this third.

A scorer computes signals and never decides. It sees a whole batch, fills its
columns for every document, and marks each value that it cannot give with NaN
and a reason. It holds its models, is stateless otherwise, and does no I/O
after it has been made. A scorer is one file in `dqs/scorers/`, found by a
scan of that folder.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dqs.data import Missing

if TYPE_CHECKING:
    from dqs.text import TextBatch


class Direction(enum.StrEnum):
    """Which end of a signal's range is suspicious."""

    HIGHER_IS_WORSE = "higher_is_worse"
    LOWER_IS_WORSE = "lower_is_worse"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Signal:
    """One named number per document.

    Attributes:
        name: lower case with underscores; its meaning never changes under this name and version.
        unit: such as "probability", "share of characters", "characters".
        low: smallest possible value.
        high: largest possible value; `inf` where there is none.
        direction: which end is suspicious.
        description: one sentence.
        version: raised when the definition changes.
    """

    name: str
    unit: str
    low: float
    high: float
    direction: Direction
    description: str
    version: int = 1


@dataclass(slots=True)
class ScoreColumns:
    """Scores of a batch as columns of `size` entries; what scorers fill.

    Attributes:
        size: number of documents.
        values: per signal, float32[size]; NaN means no score.
        missing: per signal, uint8[size] of `Missing`; PRESENT exactly where the value is not NaN.
        language: ISO 639-1 code or "und" per document; before the language scorer has
            run, what the caller says, "" where it says nothing.
        toxicity_span: int32[size, 2], first and past-the-last code point of the
            worst window within the document; (-1, -1) where toxicity is missing.
        classifiers: names of the classifiers that the caller asks for, all others cost nothing; None asks
            for every one.
    """

    size: int
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    missing: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    language: list[str] = field(default_factory=list)
    toxicity_span: NDArray[np.int32] | None = None
    classifiers: frozenset[str] | None = None

    def asks_for(self, classifier: str) -> bool:
        """Whether the caller wants a classifier to run."""
        return self.classifiers is None or classifier in self.classifiers

    def put_unasked(self, signals: Sequence[str]) -> None:
        """Stores columns of signals that were not asked for.

        Args:
            signals: signal names.
        """
        for signal in signals:
            self.values[signal] = np.full(self.size, np.nan, dtype=np.float32)
            self.missing[signal] = np.full(self.size, Missing.NOT_ASKED, dtype=np.uint8)

    def put(self, signal: str, values: NDArray[np.floating], missing: NDArray[np.uint8] | None = None) -> None:
        """Stores a column.

        Args:
            signal: signal name.
            values: floating[size].
            missing: uint8[size] of `Missing`; values under anything but PRESENT become NaN.
        """
        column = np.asarray(values, dtype=np.float32)
        if missing is None:
            missing = np.zeros(self.size, dtype=np.uint8)
        elif missing.any():
            column = np.where(missing != Missing.PRESENT.value, np.float32(np.nan), column)
        if column.shape != (self.size,):
            raise ValueError(f"signal {signal}: {column.shape[0]} values for {self.size} documents")
        self.values[signal] = column
        self.missing[signal] = missing

    def put_rows(self, signals: Sequence[str], values: NDArray[np.float32], missing: NDArray[np.uint8]) -> None:
        """Stores many columns at once, without looking at them one by one.

        Args:
            signals: signal names.
            values: float32[signals, size]; NaN exactly where `missing` is not PRESENT.
            missing: uint8[signals, size] of `Missing`.
        """
        self.values.update(zip(signals, values, strict=True))
        self.missing.update(zip(signals, missing, strict=True))


class Scorer(Protocol):
    """Computes signals of a batch. Thread-safe: one instance may score several batches at once.

    One that runs classifiers which callers choose among names them in an attribute `classifiers`, asks
    `columns.asks_for` of each, and calls `columns.put_unasked` for the signals of those not asked for.
    """

    name: ClassVar[str]
    """Name of the scorer, equal to its file's name."""
    needs: ClassVar[tuple[str, ...]]
    """Names of scorers that must have filled their columns before."""
    signals: Sequence[Signal]

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        """Fills `columns` for every document of `batch`.

        Documents with `batch.valid` false are empty; whatever is stored for them is ignored.
        """
        ...
