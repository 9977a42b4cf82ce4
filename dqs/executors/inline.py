"""Scoring in the calling thread: decode, run every scorer, sign."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dqs.index.signature import SignatureParameters, sign
from dqs.pipeline import Scored
from dqs.scorer import ScoreColumns, Scorer, Signal
from dqs.text import TextBatch


class InlineExecutor:
    """Runs scorers one after the other. Thread-safe, since scorers are.

    Args:
        scorers: in an order that respects `needs`.
        signature: parameters of the duplicate index; None leaves signatures out.
    """

    def __init__(self, scorers: Sequence[Scorer], signature: SignatureParameters | None) -> None:
        self._scorers = tuple(scorers)
        self._signature = signature
        self.signals: list[Signal] = [signal for scorer in scorers for signal in scorer.signals]

    def score(self, utf8: NDArray[np.uint8], byte_offsets: NDArray[np.int64], languages: Sequence[str]) -> Scored:
        """Scores documents that lie end to end in one buffer.

        Args:
            utf8: uint8[bytes].
            byte_offsets: int64[n + 1].
            languages: the caller's language per document, "" where unknown.
        """
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
        signatures = None
        if self._signature is not None:
            signatures = sign(batch, self._signature)
            seconds["signature"] = time.perf_counter() - now
        return Scored(columns=columns, valid=batch.valid, signatures=signatures, seconds=seconds)
