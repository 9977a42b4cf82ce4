"""Who answers about a run's rows: a pipeline in this process or a service. The same columns from both."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from dqs.client import Client
from dqs.data import Document, Label, Verdict
from dqs.errors import ConfigError, DqsError, IndexUnavailable, PolicyError, RequestError, Unavailable
from dqs.pipeline import Pipeline, Results, Undecided
from dqs.rows.readers import Rows
from dqs.rows.table import Answers

_INDEX_PATIENCE_S = 20.0
_WORKER_PATIENCE_S = 120.0
"""As long as workers may take to start."""
_POLL_S = 0.2
_FORGET_TIMEOUT_S = 10.0
"""Nobody wants to wait longer at the end of a run for a service that is gone."""
_Outcome = TypeVar("_Outcome")


class Engine(Protocol):
    """Answers batches in order.

    Attributes:
        signals: names of all signals.
        policy: `name@version` of the policy that decides.
        identity: what decides the answers (rules, models), as JSON values.
        rebuilds: whether `rebuild` makes the private corpus anew; where it does not, a run
            that is to be continued must leave it standing.
    """

    signals: list[str]
    policy: str
    identity: dict[str, Any]
    rebuilds: bool

    def answer(self, batches: Iterable[Rows]) -> Generator[tuple[Rows, Answers], None, None]:
        """Yields every batch with the answers about those of its rows that have no error."""
        ...

    def rebuild(self, batches: Iterable[tuple[Rows, Sequence[bool]]]) -> None:
        """Brings the run's private corpus to where it stood behind finished rows.

        Args:
            batches: every finished batch; true for rows that the policy let into the index.
        """
        ...

    def forget(self) -> None:
        """Drops the run's private corpus."""
        ...


class LocalEngine:
    """Scores in this process, or in workers that it has started.

    As many batches are scored at once as the executor takes. They are looked up, inserted
    and decided one after the other in the order of the input, so that the answers are the
    same however many workers there are.

    Args:
        pipeline: what scores.
        policy: name of a policy.
        corpus: to compare with and add to; None for no duplication.
        private: whether the corpus is this run's own.
        language: hint for rows without a language.
        classifiers: names of the classifiers that run; None for all.

    Raises:
        PolicyError: there is no such policy.
        RequestError: there is no such classifier.
    """

    rebuilds = True

    def __init__(
        self,
        pipeline: Pipeline,
        policy: str,
        corpus: str | None,
        private: bool,
        language: str,
        classifiers: frozenset[str] | None = None,
    ) -> None:
        chosen = pipeline.policy(policy)
        pipeline.check_classifiers(classifiers)
        self.signals = [signal.name for signal in pipeline.signals]
        self.policy = chosen.label
        self.index_dropped = chosen.index_dropped
        self.identity = {
            "policy": [chosen.label, _digest([_rule(rule) for rule in chosen.rules] + [chosen.index_dropped])],
            "models": [[model.name, model.version, model.digest] for model in pipeline.models],
            "signals": [[signal.name, signal.version] for signal in pipeline.signals],
        }
        self._pipeline = pipeline
        self._name = policy
        self._corpus = corpus
        self._private = private
        self._language = language
        self._classifiers = classifiers
        self._stopped = threading.Event()

    def answer(self, batches: Iterable[Rows]) -> Generator[tuple[Rows, Answers], None, None]:
        """Scores batches ahead of the answers, and decides them in order."""
        executor = self._pipeline.executor
        if executor.max_slots == 1:
            for rows in batches:
                yield rows, self._decide(self._score(rows.documents(self._language)))
            return
        # A run has more to score than workers could be had for, until its last row is read.
        executor.note_waiting(sys.maxsize)
        waiting: deque[tuple[Rows, Future[Undecided]]] = deque()
        with ThreadPoolExecutor(executor.max_slots, thread_name_prefix="dqs-score") as threads:
            try:
                for rows in batches:
                    waiting.append((rows, threads.submit(self._score, rows.documents(self._language))))
                    # One more than there are slots, or one would be idle while the first is decided.
                    while len(waiting) > executor.status().slots + 1:
                        first, scoring = waiting.popleft()
                        yield first, self._decide(scoring.result())
                executor.note_waiting(0)
                while waiting:
                    first, scoring = waiting.popleft()
                    yield first, self._decide(scoring.result())
            finally:
                self._stopped.set()
                for _, scoring in waiting:
                    scoring.cancel()

    def _score(self, documents: Sequence[Document]) -> Undecided:
        """Scores a batch; workers that are being started again get the time they need for that."""

        def score() -> Undecided:
            return self._pipeline.score(documents, corpus=self._corpus, classifiers=self._classifiers)

        return self._repeat(score, Unavailable, _WORKER_PATIENCE_S)

    def _decide(self, scored: Undecided) -> Answers:
        """Decides a batch; a private Redis that is being started again gets the time it needs for that.

        Repeating a batch is safe: the index knows its documents by id and text.
        """

        def decide() -> Results:
            return self._pipeline.decide(scored, policy=self._name, corpus=self._corpus)

        return Answers.from_results(self._repeat(decide, IndexUnavailable, _INDEX_PATIENCE_S))

    def _repeat(self, work: Callable[[], _Outcome], failure: type[DqsError], patience_s: float) -> _Outcome:
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                return work()
            except failure:
                lost = self._pipeline.executor.status().lost is not None
                if lost or time.monotonic() > deadline_s or self._stopped.wait(_POLL_S):
                    raise

    def rebuild(self, batches: Iterable[tuple[Rows, Sequence[bool]]]) -> None:
        """Starts the private corpus anew and remembers what was kept; a named corpus stays as it is."""
        if self._corpus is None or not self._private:
            return
        self._pipeline.drop_corpus(self._corpus)
        for rows, kept in batches:
            kept_documents = [
                Document(id_, text) for id_, text, keep in zip(rows.ids, rows.texts, kept, strict=True) if keep
            ]
            self._pipeline.remember(kept_documents, self._corpus)

    def forget(self) -> None:
        """Drops the private corpus."""
        if self._corpus is not None and self._private:
            self._pipeline.drop_corpus(self._corpus)


def _rule(rule: Any) -> list[Any]:
    values = asdict(rule)
    values["languages"] = sorted(rule.languages)
    values["missing"] = sorted((int(code), int(label)) for code, label in rule.missing.items())
    return sorted(values.items())


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


class RemoteEngine:
    """Scores through a service.

    Args:
        client: connected to the service.
        policy: name of a policy of the service.
        corpus: to compare with and add to; None for no duplication.
        private: whether the corpus is this run's own.
        language: hint for rows without a language.
        classifiers: names of the classifiers that run; None for all.

    Raises:
        PolicyError: there is no such policy.
        RequestError: there is no such classifier.
        Unavailable: the service does not answer.
    """

    rebuilds = False

    def __init__(
        self,
        client: Client,
        policy: str,
        corpus: str | None,
        private: bool,
        language: str,
        classifiers: frozenset[str] | None = None,
    ) -> None:
        info = client.info()
        unknown = sorted((classifiers or frozenset()).difference(info.classifiers))
        if unknown:
            names = ", ".join(info.classifiers) or "none"
            raise RequestError(f"The service has no classifier {unknown[0]!r}; it has: {names}.")
        found = [entry for entry in info.policies if entry.name == policy]
        if not found:
            names = ", ".join(entry.name for entry in info.policies)
            raise PolicyError(f"The service has no policy {policy!r}; it has: {names}.")
        self.signals: list[str] = [signal.name for signal in info.signals]
        self.policy = f"{found[0].name}@{found[0].version}"
        self.identity = {
            "policy": [self.policy, _digest(found[0].SerializeToString(deterministic=True).hex())],
            "models": [[model.name, model.version, model.digest] for model in info.models],
            "signals": [[signal.name, signal.version] for signal in info.signals],
        }
        self._client = client
        self._name = policy
        self.corpus = corpus
        self._private = private
        self._language = language
        self._classifiers = classifiers

    def answer(self, batches: Iterable[Rows]) -> Generator[tuple[Rows, Answers], None, None]:
        """Keeps several batches on their way and hands them back in order."""
        waiting: deque[Rows] = deque()

        def documents() -> Iterator[Document]:
            for rows in batches:
                waiting.append(rows)
                yield from rows.documents(self._language)

        answered: list[Verdict] = []
        for verdict in self._client.score(
            documents(), policy=self._name, corpus=self.corpus, classifiers=self._classifiers
        ):
            while waiting and len(answered) == _scorable(waiting[0]):
                yield waiting.popleft(), Answers.from_verdicts(answered, self.signals)
                answered = []
            answered.append(verdict)
        while waiting:
            rows = waiting.popleft()
            if len(answered) != _scorable(rows):
                raise ConfigError("The service answered other documents than were sent; is its version ours?")
            yield rows, Answers.from_verdicts(answered, self.signals)
            answered = []

    def rebuild(self, batches: Iterable[tuple[Rows, Sequence[bool]]]) -> None:
        """Drops the private corpus where no row is finished; else it stays as it is.

        It has lived on in the service, which knows repeated documents by id and text.
        """
        if next(iter(batches), None) is None:
            self.forget()

    def forget(self) -> None:
        """Drops the private corpus; a service too old for that keeps it.

        Raises:
            DqsError: the service or its index does not answer.
        """
        if self.corpus is None or not self._private:
            return
        # The name is ours and well-formed, so a refusal means that the service does not know the call.
        with contextlib.suppress(RequestError):
            self._client.drop_corpus(self.corpus, timeout_s=_FORGET_TIMEOUT_S)


def _scorable(rows: Rows) -> int:
    return sum(error is None for error in rows.errors)


def was_indexed(label: str | None, duplicate_of: str | None, index_dropped: bool) -> bool:
    """Whether a scored row entered the corpus: a kept one that repeats nothing.

    Args:
        label: of the row; None for an error.
        duplicate_of: the row's column.
        index_dropped: of the policy.
    """
    return label is not None and duplicate_of is None and (index_dropped or label != Label.DROP.name.lower())
