"""Scoring in the calling thread: decode, run every scorer, sign."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dqs.index.signature import SignatureParameters, sign
from dqs.pipeline import ExecutorStatus, ModelInfo, Replica, Scored
from dqs.scorer import ScoreColumns, Scorer, Signal
from dqs.text import TextBatch


class InlineExecutor:
    """Runs scorers one after the other. Thread-safe, since scorers are.

    Args:
        scorers: in an order that respects `needs`.
        models: what the scorers answer with.
        threads: how many batches are scored at once.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        models: Sequence[ModelInfo] = (),
        threads: int = 1,
    ) -> None:
        self._scorers = tuple(scorers)
        self.models = list(models)
        self.max_slots = threads
        self.signals: list[Signal] = [signal for scorer in scorers for signal in scorer.signals]

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signature: SignatureParameters | None = None,
    ) -> Scored:
        """Scores documents that lie end to end in one buffer; see `dqs.pipeline.Executor`."""
        seconds: dict[str, float] = {}
        begin = time.perf_counter()
        batch = TextBatch.from_buffer(utf8, byte_offsets)
        now = time.perf_counter()
        seconds["text"] = now - begin
        columns = ScoreColumns(size=len(batch), language=list(languages))
        for scorer in self._scorers:
            begin = now
            scorer.score(batch, columns)
            now = time.perf_counter()
            seconds[scorer.name] = now - begin
        signed = None
        if signature is not None:
            signed = sign(batch, signature)
            seconds["signature"] = time.perf_counter() - now
        return Scored(columns=columns, valid=batch.valid, signatures=signed, seconds=seconds)

    def status(self) -> ExecutorStatus:
        """Always ready."""
        here = Replica("inline", "inline", "this process", ready=True, pending_bytes=0, restarts=0)
        return ExecutorStatus(slots=self.max_slots, replicas=(here,))

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Nothing ever changes."""

    def note_waiting(self, text_bytes: int) -> None:
        """There are no replicas to choose the number of."""
