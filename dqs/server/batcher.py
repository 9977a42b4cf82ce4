"""Merges the documents of concurrent calls into batches and scores them in threads.

Documents with equal options share a batch. A batch leaves when it is full (by
bytes or by documents) or when its oldest document has waited long enough, as
soon as a scoring thread is free; while all are busy, batches grow. What the
caller has given up is dropped before it leaves. Everything here but the scoring
itself runs on the event loop, so that nothing needs a lock.

This module knows nothing of gRPC or of messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dqs.data import Document
from dqs.errors import DocumentError, DocumentErrorCode, DqsError
from dqs.server.codec import Options, Piece
from dqs.server.status import incident

if TYPE_CHECKING:
    from dqs.pipeline import Pipeline


@dataclass(eq=False, slots=True)
class _Entry:
    """What one call or stream message submitted; its answers gather in `pieces`."""

    documents: Sequence[Document]
    future: asyncio.Future[list[Piece]]
    pieces: list[list[Piece]] = field(default_factory=list)
    unanswered: int = 0
    """Number of slices without an answer."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """Consecutive documents of an entry that are scored together."""

    entry: _Entry
    index: int
    start: int
    stop: int
    text_bytes: int
    submitted_s: float


@dataclass(slots=True)
class _Group:
    """Slices with equal options that wait for a batch."""

    slices: deque[_Slice] = field(default_factory=deque)
    text_bytes: int = 0
    documents: int = 0


class Batcher:
    """Scores what concurrent calls submit, in shared batches.

    Args:
        pipeline: what scores.
        threads: how many batches are scored at once; with one, batches leave and are
            decided in the order in which documents came.
        batch_bytes: a batch of this many bytes of text is full; only a single longer document exceeds it.
        batch_documents: a batch of this many documents is full.
        wait_s: how long a document waits for others while a thread is free.
    """

    def __init__(
        self, pipeline: Pipeline, *, threads: int, batch_bytes: int, batch_documents: int, wait_s: float
    ) -> None:
        self._pipeline = pipeline
        self._batch_bytes = batch_bytes
        self._batch_documents = batch_documents
        self._wait_s = wait_s
        self._idle = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="dqs-score")
        self._groups: dict[Options, _Group] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._scoring: dict[asyncio.Future[list[Piece]], str | None] = {}
        """Batches in threads, and the corpus of each."""

    def submit(self, options: Options, documents: Sequence[Document]) -> asyncio.Future[list[Piece]]:
        """Queues documents; cancel the future to give them up.

        Args:
            options: how to score them.
            documents: the documents of one request.

        Returns:
            A future of the answers to all of them, in their order. It raises the
            `DqsError` that concerns the whole call, such as `PolicyError`.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(documents, loop.create_future())
        if not documents:
            entry.future.set_result([])
            return entry.future
        group = self._groups.setdefault(options, _Group())
        for start, stop, text_bytes in self._cut(documents):
            group.slices.append(_Slice(entry, entry.unanswered, start, stop, text_bytes, loop.time()))
            group.text_bytes += text_bytes
            group.documents += stop - start
            entry.unanswered += 1
        entry.pieces = [[] for _ in range(entry.unanswered)]
        self._dispatch()
        return entry.future

    async def settle(self, corpus: str) -> None:
        """Waits until all that was submitted for a corpus is decided or given up; not for what comes meanwhile.

        Args:
            corpus: name of the corpus.
        """
        waiting = {
            part.entry.future
            for options, group in self._groups.items()
            if options.corpus == corpus
            for part in group.slices
        }
        if waiting:
            await asyncio.wait(waiting)
        # Last, because documents that were given up in a thread are decided all the same.
        scoring = [batch for batch, of in self._scoring.items() if of == corpus]
        if scoring:
            await asyncio.wait(scoring)

    def close(self) -> None:
        """Ends the scoring threads after what they are scoring; nothing may be submitted any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _cut(self, documents: Sequence[Document]) -> list[tuple[int, int, int]]:
        """Cuts documents into runs that fit a batch: start, stop, bytes of text of each."""
        runs: list[tuple[int, int, int]] = []
        start = total = 0
        for i, document in enumerate(documents):
            size = len(document.text)
            if i > start and (total + size > self._batch_bytes or i - start == self._batch_documents):
                runs.append((start, i, total))
                start, total = i, 0
            total += size
        runs.append((start, len(documents), total))
        return runs

    def _dispatch(self) -> None:
        """Starts every batch that can leave now, and sets the timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._idle:
            self._drop_given_up()
            now_s = loop.time()
            due_s, options = min(
                ((self._due_s(group), options) for options, group in self._groups.items()),
                key=lambda due: due[0],
                default=(now_s, None),
            )
            if options is None:
                return
            if due_s > now_s:
                self._timer = loop.call_at(due_s, self._dispatch)
                return
            self._start(options, self._take(options))

    def _drop_given_up(self) -> None:
        """Drops what waits at the head of each group for nobody, and groups left empty."""
        for options, group in list(self._groups.items()):
            while group.slices and group.slices[0].entry.future.done():
                self._pop(group)
            if not group.slices:
                del self._groups[options]

    def _due_s(self, group: _Group) -> float:
        """When a group's next batch may leave; a full one could since its oldest slice came."""
        full = group.text_bytes >= self._batch_bytes or group.documents >= self._batch_documents
        return group.slices[0].submitted_s + (0.0 if full else self._wait_s)

    def _take(self, options: Options) -> list[_Slice]:
        group = self._groups[options]
        taken: list[_Slice] = []
        text_bytes = documents = 0
        while group.slices:
            head = group.slices[0]
            if not head.entry.future.done():
                count = head.stop - head.start
                if taken and (
                    text_bytes + head.text_bytes > self._batch_bytes or documents + count > self._batch_documents
                ):
                    break
                taken.append(head)
                text_bytes += head.text_bytes
                documents += count
            self._pop(group)
        if not group.slices:
            del self._groups[options]
        return taken

    @staticmethod
    def _pop(group: _Group) -> None:
        gone = group.slices.popleft()
        group.text_bytes -= gone.text_bytes
        group.documents -= gone.stop - gone.start

    def _start(self, options: Options, batch: list[_Slice]) -> None:
        documents = [document for part in batch for document in part.entry.documents[part.start : part.stop]]
        self._idle -= 1
        scoring = asyncio.get_running_loop().run_in_executor(self._executor, self._score, options, documents)
        self._scoring[scoring] = options.corpus
        scoring.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: list[_Slice], scoring: asyncio.Future[list[Piece]]) -> None:
        self._idle += 1
        del self._scoring[scoring]
        if scoring.cancelled():  # the service is closing
            for part in batch:
                part.entry.future.cancel()
            return
        failure = scoring.exception()
        if failure is None:
            _deliver(batch, scoring.result())
        else:
            for part in batch:
                if not part.entry.future.done():
                    part.entry.future.set_exception(failure)
        self._dispatch()

    def _score(self, options: Options, documents: list[Document]) -> list[Piece]:
        """Scores a batch in a thread; a document that breaks the scoring is answered by itself.

        Raises:
            DqsError: what concerns every document, such as an unknown policy.
        """
        try:
            results = self._pipeline.run(
                documents, policy=options.policy, corpus=options.corpus, degrade=options.degrade
            )
        except DqsError:
            raise
        except Exception as error:
            if len(documents) == 1:
                return [Piece(0, 1, DocumentError(DocumentErrorCode.INTERNAL, incident(error).message))]
            # Somebody else's document may be to blame: each half by itself. Running
            # a document twice is safe, the index knows it by its id and hash.
            half = len(documents) // 2
            return self._score(options, documents[:half]) + self._score(options, documents[half:])
        return [Piece(0, len(documents), results)]


def _deliver(batch: list[_Slice], pieces: list[Piece]) -> None:
    """Hands every slice of a batch its part of the pieces that cover the batch."""
    remaining = deque(pieces)
    for part in batch:
        wanted = part.stop - part.start
        answers = part.entry.pieces[part.index]
        while wanted:
            head = remaining.popleft()
            count = min(wanted, head.stop - head.start)
            answers.append(Piece(head.start, head.start + count, head.outcome))
            if head.start + count < head.stop:
                remaining.appendleft(Piece(head.start + count, head.stop, head.outcome))
            wanted -= count
        part.entry.unanswered -= 1
        if not part.entry.unanswered and not part.entry.future.done():
            part.entry.future.set_result([piece for answer in part.entry.pieces for piece in answer])
