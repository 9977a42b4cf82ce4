"""Scoring in the calling thread: decode, run every scorer, sign."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dqs.errors import DqsError, ModelError
from dqs.executors.loading import check_signals, classifiers_of, describe, slow_models, warm_up
from dqs.index.signature import SignatureParameters, sign
from dqs.pipeline import ExecutorStatus, ModelInfo, ModelSet, Replica, Scored
from dqs.scorer import ScoreColumns, Scorer, Signal
from dqs.text import TextBatch

if TYPE_CHECKING:
    from dqs.executors.loading import LoadScorers


class InlineExecutor:
    """Runs scorers one after the other. Thread-safe, since scorers are.

    Args:
        scorers: in an order that respects `needs`.
        models: what the scorers answer with.
        threads: how many batches are scored at once.
        load: loads other versions of the models, for `swap`; None where they never change.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        models: Sequence[ModelInfo] = (),
        threads: int = 1,
        load: LoadScorers | None = None,
    ) -> None:
        self.max_slots = threads
        self.signals: list[Signal] = [signal for scorer in scorers for signal in scorer.signals]
        self._load = load
        # One reference, so that a batch takes both from one generation without a lock.
        self._serving: tuple[tuple[Scorer, ...], ModelSet] = (tuple(scorers), ModelSet.of(models))

    @property
    def models(self) -> list[ModelInfo]:
        """What the scorers answer with now."""
        return list(self._serving[1].models)

    @property
    def model_set(self) -> ModelSet:
        """The same, as results name it."""
        return self._serving[1]

    @property
    def classifiers(self) -> list[str]:
        """Names of the classifiers that a caller may choose among."""
        return classifiers_of(self._serving[0])

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signature: SignatureParameters | None = None,
        classifiers: frozenset[str] | None = None,
    ) -> Scored:
        """Scores documents that lie end to end in one buffer; see `dqs.pipeline.Executor`."""
        scorers, models = self._serving
        seconds: dict[str, float] = {}
        begin = time.perf_counter()
        batch = TextBatch.from_buffer(utf8, byte_offsets)
        now = time.perf_counter()
        seconds["text"] = now - begin
        columns = ScoreColumns(size=len(batch), language=list(languages), classifiers=classifiers)
        for scorer in scorers:
            begin = now
            scorer.score(batch, columns)
            now = time.perf_counter()
            seconds[scorer.name] = now - begin
        signed = None
        if signature is not None:
            signed = sign(batch, signature)
            seconds["signature"] = time.perf_counter() - now
        return Scored(columns=columns, valid=batch.valid, signatures=signed, seconds=seconds, models=models)

    def swap(self, versions: Mapping[str, str], timeout_s: float) -> None:
        """Serves with other models, built and tried beside the old ones; see `dqs.pipeline.Executor`."""
        if self._load is None:
            raise ModelError("The models of this process never change: start it again to serve others.")
        try:
            new = start_loading(self._load, versions).result(timeout_s)
        except TimeoutError:
            raise slow_models(timeout_s) from None
        check_signals(self.signals, new.signals)
        self._serving = new._serving
        # Circles in what runs networks hold the old ones for long, until Python looks for them.
        gc.collect()

    def status(self) -> ExecutorStatus:
        """Always ready."""
        here = Replica("inline", "inline", "this process", ready=True, pending_bytes=0, restarts=0)
        return ExecutorStatus(slots=self.max_slots, replicas=(here,))

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Nothing ever changes."""

    def note_waiting(self, text_bytes: int) -> None:
        """There are no replicas to choose the number of."""


def open_inline(load: LoadScorers, versions: Mapping[str, str] | None = None) -> InlineExecutor:
    """Loads models, builds the scorers and has a batch pass through them.

    Args:
        load: loads them.
        versions: model name -> version, of exactly the models to load; None for those that serve.

    Raises:
        DqsError: a model is missing, damaged, or does not fit.
    """
    models, scorers = load(versions=versions)
    executor = InlineExecutor(scorers, describe(models))
    warm_up(executor)
    return executor


def start_loading(load: LoadScorers, versions: Mapping[str, str]) -> Future[InlineExecutor]:
    """`open_inline` in a thread of its own, for what does not come to an end cannot be ended.

    Args:
        load: loads models.
        versions: model name -> version, of exactly the models to load.

    Returns:
        A future of the executor; it raises a `DqsError`, whatever went wrong.
    """
    loaded: Future[InlineExecutor] = Future()

    def work() -> None:
        try:
            loaded.set_result(open_inline(load, versions))
        except DqsError as error:
            loaded.set_exception(error)
        except BaseException as error:  # what loads and runs networks raises classes of its own
            loaded.set_exception(
                ModelError(f"The models do not load or do not score ({type(error).__name__}): export them again.")
            )

    threading.Thread(target=work, name="dqs-load", daemon=True).start()
    return loaded
