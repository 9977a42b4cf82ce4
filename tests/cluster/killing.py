"""The scorers that ship, and one that kills its process: what a document that breaks native code does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from dqs.models import ModelFolder
from dqs.scorer import Direction, ScoreColumns, Scorer, Signal
from dqs.scorers import build_scorers
from dqs.text import TextBatch

KILLS = b"\x07kills\x07"
"""A text that holds this ends the process that scores it, as kill -9 would."""
RAISES = b"\x07raises\x07"
"""A text that holds this makes the scorer raise `BrokenScorer`."""
SLEEPS = b"\x07sleeps\x07"
"""Every one of these in a batch takes `SLEEP_S`."""
SLEEP_S = 0.05


class BrokenScorer(Exception):
    """Raised for `RAISES`."""


class KillingScorer:
    """Reads the marks above."""

    name: ClassVar[str] = "killing"
    needs: ClassVar[tuple[str, ...]] = ()
    signals: Sequence[Signal] = (Signal("survived", "1", 1, 1, Direction.NEUTRAL, "1 where the process still lives."),)

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        text = batch.utf8.tobytes()
        time.sleep(SLEEP_S * text.count(SLEEPS))
        if RAISES in text:
            raise BrokenScorer("as asked")
        if KILLS in text:
            os.kill(os.getpid(), signal.SIGKILL)
        columns.put("survived", np.ones(len(batch)))


class ChoosingScorer:
    """Two classifiers that callers choose among; counts how often each has run in this process."""

    name: ClassVar[str] = "choosing"
    needs: ClassVar[tuple[str, ...]] = ()
    signals: Sequence[Signal] = (
        Signal("short", "probability", 0, 1, Direction.NEUTRAL, "1 where the text is short."),
        Signal("long", "probability", 0, 1, Direction.NEUTRAL, "1 where the text is long."),
        Signal("longer", "probability", 0, 1, Direction.NEUTRAL, "1 where it is longer."),
    )
    classifiers: ClassVar[tuple[str, ...]] = ("brief", "wordy")

    def __init__(self) -> None:
        self.runs: list[frozenset[str]] = []

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        families = {"brief": ("short",), "wordy": ("long", "longer")}
        lengths = np.diff(batch.byte_offsets)
        self.runs.append(frozenset(name for name in families if columns.asks_for(name)))
        for name, signals in families.items():
            if not columns.asks_for(name):
                columns.put_unasked(signals)
                continue
            for each in signals:
                columns.put(each, {"short": lengths < 20, "long": lengths >= 20, "longer": lengths > 200}[each] * 1.0)


def build(models: Sequence[ModelFolder]) -> list[Scorer]:
    """What the workers of the tests score with."""
    return [*build_scorers(models), KillingScorer(), ChoosingScorer()]


def build_small(models: Sequence[ModelFolder]) -> list[Scorer]:
    """The same without models: starts faster."""
    return [*build_scorers([]), KillingScorer()]


class OtherScorer(KillingScorer):
    """A scorer that only some workers have."""

    name: ClassVar[str] = "other"
    signals: Sequence[Signal] = (Signal("other", "1", 1, 1, Direction.NEUTRAL, "1."),)


def build_differing(folder: Path, models: Sequence[ModelFolder]) -> list[Scorer]:
    """The first worker has one scorer, every other one another; who is first, the folder tells."""
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return [OtherScorer()]
    return [KillingScorer()]
