"""Small real pipelines, one of them with a scorer that fails as a broken one would, quoting the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dqs.executors.inline import InlineExecutor
from dqs.pipeline import DUPLICATE_SIGNALS, Pipeline
from dqs.policy import load_policies
from dqs.scorer import ScoreColumns, Scorer, Signal
from dqs.scorers import build_scorers
from dqs.text import TextBatch


class BreakingScorer:
    """Cannot score anything, and says what."""

    name: ClassVar[str] = "breaking"
    needs: ClassVar[tuple[str, ...]] = ()
    signals: Sequence[Signal] = ()

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        raise ValueError(f"cannot score {batch.utf8.tobytes()!r}")


def plain_pipeline(*more: Scorer) -> Pipeline:
    """Every scorer that needs no model; no duplicate index."""
    executor = InlineExecutor([*build_scorers([]), *more])
    names = {signal.name for signal in (*executor.signals, *DUPLICATE_SIGNALS)}
    return Pipeline(executor, load_policies(None, names), None, 1 << 20)


def breaking_pipeline() -> Pipeline:
    """The same with the broken scorer."""
    return plain_pipeline(BreakingScorer())
