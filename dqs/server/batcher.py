"""Merges the documents of concurrent calls into batches and scores them in threads.

Documents with equal options share a batch. A batch leaves when the executor has
a slot for it and it is full (by bytes or by documents), or nothing else is being
scored, or its oldest document has waited long enough; while all slots are busy,
batches grow. Tenants are served in turn by the amount of their text (start-time
fair queueing), and where there are several, batches are smaller, so that the one
whose turn it is need not wait long for the slot. What the caller has given up,
or can no longer use, is dropped before it leaves.

Everything here but the scoring itself runs on the event loop, so that nothing
needs a lock. This module knows nothing of gRPC or of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dqs.data import Document, Documents
from dqs.errors import DeadlineExceeded, DocumentError, DocumentErrorCode, DqsError, IndexUnavailable, Unavailable
from dqs.observability.tracing import Span, Tracer, current
from dqs.server.codec import Options, Piece
from dqs.server.status import incident

if TYPE_CHECKING:
    from dqs.observability.metrics import Metrics
    from dqs.pipeline import Pipeline

SLOTLESS_S = 10.0
"""How long queued documents wait for a worker while there is none."""
CONTENDED_S = 10.0
"""A tenant that sent documents this short a time ago may send more at any moment."""
CONTENDED_PARTS = 4
"""Where several tenants send, a batch has this part of its full size at most."""
CONTENDED_BATCH_S = 0.01
"""Where a tenant sends little beside others, batches are cut to take about this long, for it waits for one of them."""
_MIN_BATCH_BYTES = 32 << 10
"""Smaller batches cost more by themselves than they save others."""
_MIN_TIMED_BYTES = 8 << 10
"""Smaller batches say little about how long a larger one takes."""
_DEADLINE_SLACK_S = 0.02
"""gRPC tells of a passed deadline by its own clock, perhaps a little before ours comes to it."""
_DOCUMENT_COST_BYTES = 256
"""What a document costs besides its text, when tenants are served in turn."""


@dataclass(eq=False, slots=True)
class _Entry:
    """What one call or stream message submitted; its answers gather in `pieces`."""

    documents: Documents
    future: asyncio.Future[list[Piece]]
    deadline_s: float
    parts: list[_Slice] = field(default_factory=list)
    unanswered: int = 0
    """Number of parts without an answer."""
    span: Span | None = None
    """Of the call that it belongs to, where calls are traced."""


@dataclass(eq=False, slots=True)
class _Slice:
    """Consecutive documents of an entry that are scored together."""

    entry: _Entry
    start: int
    stop: int
    text_bytes: int
    submitted_s: float
    group: _Group | None = None
    """Where it waits; None where it does not."""
    retried: bool = False
    queue_s: float = 0.0
    pieces: list[Piece] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Group:
    """Slices with equal options that wait for a batch."""

    options: Options
    slices: OrderedDict[_Slice, None] = field(default_factory=OrderedDict)
    text_bytes: int = 0
    documents: int = 0


@dataclass(eq=False, slots=True)
class _Flow:
    """What waits of one tenant."""

    start_tag: float = 0.0
    """Cost at which its next batch begins, on the common clock of all tenants."""
    groups: dict[Options, _Group] = field(default_factory=dict)
    submitted_s: float = -math.inf
    """When it last submitted something."""

    @property
    def text_bytes(self) -> int:
        """Text that waits."""
        return sum(group.text_bytes for group in self.groups.values())


class Batcher:
    """Scores what concurrent calls submit, in shared batches. Make it on a running event loop.

    Args:
        pipeline: what scores. Its executor says how many batches are scored at once; with
            one, batches leave and are decided in the order in which a tenant's documents came.
        metrics: counts batches and answers.
        batch_bytes: a batch of this many bytes of text is full; only a single longer document exceeds it.
        batch_documents: a batch of this many documents is full.
        wait_s: how long a document waits for others while a slot is free and another is not.
        slotless_s: how long documents wait while there is nobody to score them.
        tracer: records batches; None records none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        batch_bytes: int,
        batch_documents: int,
        wait_s: float,
        slotless_s: float = SLOTLESS_S,
        tracer: Tracer | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._tracer = tracer or Tracer(None)
        self._batch_bytes = batch_bytes
        self._batch_documents = batch_documents
        self._wait_s = wait_s
        self._slotless_s = slotless_s
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(pipeline.executor.max_slots, thread_name_prefix="dqs-score")
        self._flows: dict[str, _Flow] = {}
        self._clock = 0.0
        """Start tag of the batch that left last."""
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._closed = False
        self._scoring: dict[asyncio.Future[list[Piece]], Options] = {}
        """Batches in threads, and the options of each."""
        self._byte_s = 0.0
        """How long a batch lately took per byte of text; 0 before the first one."""
        self._queued_bytes = 0
        self._noted_bytes = 0
        self._slots = 0
        self._scorers = 0
        """Slots that are worked at; batches in the others wait for these."""
        self._slotless_since_s = -math.inf
        self._lost: str | None = None
        self._read_status()
        pipeline.executor.subscribe(self._changed)
        metrics.watch("slots", lambda: self._slots)
        metrics.watch("oldest_s", self._oldest_s)

    def check(self) -> None:
        """Refuses work while there is nobody to do it.

        Raises:
            Unavailable: no worker is there.
        """
        if not self._slots:
            raise _nobody(self._lost)

    def submit(
        self, options: Options, documents: Sequence[Document], *, deadline_s: float = math.inf
    ) -> asyncio.Future[list[Piece]]:
        """Queues documents; cancel the future to give them up.

        Args:
            options: how to score them.
            documents: the documents of one request.
            deadline_s: when nobody needs the answers any more, by the clock of the event loop.

        Returns:
            A future of the answers to all of them, in their order. It raises the
            `DqsError` that concerns the whole call, such as `PolicyError`.
        """
        now_s = self._loop.time()
        entry = _Entry(Documents.of(documents), self._loop.create_future(), deadline_s)
        if not documents:
            entry.future.set_result([])
            return entry.future
        if self._closed:
            entry.future.set_exception(Unavailable("The server is shutting down: send the documents again."))
            return entry.future
        flow = self._flows.setdefault(options.tenant, _Flow())
        flow.submitted_s = now_s
        if not flow.groups:
            flow.start_tag = max(flow.start_tag, self._clock)
        group = flow.groups.setdefault(options, _Group(options))
        entry.parts = [_Slice(entry, *run, now_s) for run in self._cut(entry.documents)]
        entry.unanswered = len(entry.parts)
        entry.span = current()
        if entry.span is not None:
            entry.span.count(len(documents), sum(part.text_bytes for part in entry.parts))
        for part in entry.parts:
            self._enqueue(group, part)
        entry.future.add_done_callback(lambda _: self._leave(entry))
        self._schedule()
        return entry.future

    async def settle(self, tenant: str, corpus: str) -> None:
        """Waits until all that was submitted for a corpus is decided or given up; not for what comes meanwhile.

        Args:
            tenant: whose corpus it is.
            corpus: name of the corpus.
        """
        flow = self._flows.get(tenant, _Flow())
        waiting = {
            part.entry.future
            for options, group in flow.groups.items()
            if options.corpus == corpus
            for part in group.slices
        }
        if waiting:
            await asyncio.wait(waiting)
        # Last, because documents that were given up in a thread are decided all the same.
        scoring = [batch for batch, of in self._scoring.items() if (of.tenant, of.corpus) == (tenant, corpus)]
        if scoring:
            await asyncio.wait(scoring)

    def close(self) -> None:
        """Ends the scoring threads after what they are scoring; nothing may be submitted any more."""
        self._closed = True
        self._fail(self._waiting(), Unavailable("The server is shutting down: send the documents again."))
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)

    # --- what waits

    def _cut(self, documents: Documents) -> list[tuple[int, int, int]]:
        """Cuts documents into runs that fit a full batch: start, stop, bytes of text of each."""
        runs: list[tuple[int, int, int]] = []
        start = total = 0
        for i, size in enumerate(map(len, documents.texts)):
            if i > start and (total + size > self._batch_bytes or i - start == self._batch_documents):
                runs.append((start, i, total))
                start, total = i, 0
            total += size
        runs.append((start, len(documents), total))
        return runs

    def _full(self, tenant: str, now_s: float) -> tuple[int, int]:
        """Bytes and documents of a full batch of a tenant."""
        if not self._others(tenant, now_s):
            return self._batch_bytes, self._batch_documents
        full_bytes = max(1, self._batch_bytes // CONTENDED_PARTS)
        full_documents = max(1, self._batch_documents // CONTENDED_PARTS)
        if self._byte_s and self._is_beside_little(tenant, now_s):
            quick_bytes = max(_MIN_BATCH_BYTES, int(CONTENDED_BATCH_S / self._byte_s))
            return min(full_bytes, quick_bytes), full_documents
        return full_bytes, full_documents

    def _others(self, tenant: str, now_s: float) -> list[_Flow]:
        """What the other tenants have in the queue, of those that send now or did so a moment ago."""
        return [
            flow
            for name, flow in self._flows.items()
            if name != tenant and (flow.groups or now_s - flow.submitted_s < CONTENDED_S)
        ]

    def _split(self, part: _Slice, full: tuple[int, int]) -> None:
        """Cuts what does not fit off a part at the head of its group; it is the next part there."""
        texts = part.entry.documents.texts
        size = len(texts[part.start])
        stop = part.start + 1
        while stop < part.stop and stop - part.start < full[1] and size + len(texts[stop]) <= full[0]:
            size += len(texts[stop])
            stop += 1
        if stop == part.stop:
            return
        group, entry = part.group, part.entry
        assert group is not None
        rest = _Slice(entry, stop, part.stop, part.text_bytes - size, part.submitted_s, retried=part.retried)
        self._dequeue(part)
        part.stop, part.text_bytes = stop, size
        entry.parts.insert(entry.parts.index(part) + 1, rest)
        entry.unanswered += 1
        group = self._flows[group.options.tenant].groups.setdefault(group.options, group)
        self._enqueue(group, rest, first=True)
        self._enqueue(group, part, first=True)

    def _enqueue(self, group: _Group, part: _Slice, *, first: bool = False) -> None:
        part.group = group
        group.slices[part] = None
        if first:
            group.slices.move_to_end(part, last=False)
        group.text_bytes += part.text_bytes
        group.documents += part.stop - part.start
        self._queued_bytes += part.text_bytes

    def _dequeue(self, part: _Slice) -> None:
        group = part.group
        assert group is not None
        part.group = None
        del group.slices[part]
        group.text_bytes -= part.text_bytes
        group.documents -= part.stop - part.start
        self._queued_bytes -= part.text_bytes
        if not group.slices:
            del self._flows[group.options.tenant].groups[group.options]

    def _leave(self, entry: _Entry) -> None:
        """Takes what still waits of an entry that is answered, given up or broken out of the queue."""
        self._discard([part for part in entry.parts if part.group is not None])
        self._note_waiting()

    def _discard(self, parts: Iterable[_Slice]) -> None:
        """Takes parts that nobody needs any more out of the queue."""
        for part in parts:
            self._dequeue(part)
            late = self._loop.time() >= part.entry.deadline_s - _DEADLINE_SLACK_S
            if late or part.entry.future.cancelled():
                self._metrics.dropped("deadline" if late else "cancelled", part.stop - part.start)

    def _waiting(self) -> list[_Slice]:
        """Everything that waits."""
        return [part for flow in self._flows.values() for group in flow.groups.values() for part in group.slices]

    def _fail(self, parts: Iterable[_Slice], error: DqsError) -> None:
        """Answers the entries of parts with an error."""
        failed = [part for part in parts if not part.entry.future.done()]
        if failed:
            self._metrics.dropped(error.reason.lower(), _documents(failed))
        for part in failed:
            if part.group is not None:
                self._dequeue(part)
            if not part.entry.future.done():
                part.entry.future.set_exception(error)

    def _oldest_s(self) -> float:
        """How long the oldest document in the queue has waited; for any thread."""
        heads = [
            next(iter(group.slices), None)
            for flow in list(self._flows.values())
            for group in list(flow.groups.values())
        ]
        oldest_s = min((head.submitted_s for head in heads if head is not None), default=None)
        return 0.0 if oldest_s is None else self._loop.time() - oldest_s

    def _note_waiting(self) -> None:
        """Tells the executor how much waits, where that has changed by a batch or to or from nothing."""
        if abs(self._queued_bytes - self._noted_bytes) >= self._batch_bytes or (
            (self._queued_bytes == 0) != (self._noted_bytes == 0)
        ):
            self._noted_bytes = self._queued_bytes
            self._pipeline.executor.note_waiting(self._queued_bytes)

    # --- slots

    def _changed(self) -> None:
        """Called by the executor, from any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._on_change)

    def _on_change(self) -> None:
        if not self._closed:
            self._read_status()
            self._dispatch()

    def _read_status(self) -> None:
        status = self._pipeline.executor.status()
        if self._slots and not status.slots:
            self._slotless_since_s = self._loop.time()
        self._slots = 0 if status.lost else status.slots
        self._scorers = -(-self._slots // status.slots_per_scorer)
        self._lost = status.lost

    def _give_up_waiting(self, now_s: float) -> None:
        """While there is nobody to score: fails what has waited long enough, and sets the timer for the rest."""
        limits = {part: max(part.submitted_s, self._slotless_since_s) + self._slotless_s for part in self._waiting()}
        self._fail([part for part, limit_s in limits.items() if self._lost or limit_s <= now_s], _nobody(self._lost))
        left = [limit_s for part, limit_s in limits.items() if part.group is not None]
        if left:
            self._timer = self._loop.call_at(min(left), self._dispatch)

    # --- batches

    def _schedule(self) -> None:
        """Has batches leave once everything that arrived together is queued."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Starts every batch that can leave now, and sets the timer for the next one."""
        self._scheduled = False
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self._loop.time()
        if not self._slots:
            self._give_up_waiting(now_s)
        while len(self._scoring) < self._slots:
            due_s, group, full = self._next(now_s)
            if group is None:
                break
            if len(self._scoring) >= self._scorers and self._is_beside_little(group.options.tenant, now_s):
                break  # what the others send is next at a scorer, and not next but one
            if due_s > now_s:
                self._timer = self._loop.call_at(due_s, self._dispatch)
                break
            batch = self._take(group, full, now_s)
            if batch:
                self._start(group.options, batch, now_s)
        self._note_waiting()

    def _is_beside_little(self, tenant: str, now_s: float) -> bool:
        """Whether others send too, and some of them so little that a batch of theirs would hardly fill."""
        return any(flow.text_bytes < self._batch_bytes // CONTENDED_PARTS for flow in self._others(tenant, now_s))

    def _next(self, now_s: float) -> tuple[float, _Group | None, tuple[int, int]]:
        """The group whose batch leaves next, when it is due, and the bytes and documents of a full batch of it.

        Of those due it is that of the tenant whose turn it is.
        """
        best: tuple[float, float, float] = (math.inf, math.inf, math.inf)
        chosen: _Group | None = None
        chosen_full = (0, 0)
        for tenant, flow in self._flows.items():
            if not flow.groups:
                continue
            full = self._full(tenant, now_s)
            for group in flow.groups.values():
                submitted_s = next(iter(group.slices)).submitted_s
                is_ready = not self._scoring or group.text_bytes >= full[0] or group.documents >= full[1]
                due_s = max(now_s, submitted_s + (0.0 if is_ready else self._wait_s))
                order = (due_s, flow.start_tag, submitted_s)
                if order < best:
                    best, chosen, chosen_full = order, group, full
        return best[0], chosen, chosen_full

    def _take(self, group: _Group, full: tuple[int, int], now_s: float) -> list[_Slice]:
        taken: list[_Slice] = []
        text_bytes = documents = 0
        while group.slices:
            head = next(iter(group.slices))
            if head.entry.future.done():  # a moment ago
                self._discard([head])
                continue
            if head.entry.deadline_s <= now_s:
                self._discard([head])
                head.entry.future.set_exception(
                    DeadlineExceeded("The deadline passed before the documents were scored: allow more time.")
                )
                continue
            if not taken:
                self._split(head, full)
            count = head.stop - head.start
            if taken and (text_bytes + head.text_bytes > full[0] or documents + count > full[1]):
                break
            self._dequeue(head)
            taken.append(head)
            text_bytes += head.text_bytes
            documents += count
        return taken

    def _start(self, options: Options, batch: list[_Slice], now_s: float) -> None:
        text_bytes = 0
        for part in batch:
            part.queue_s = now_s - part.submitted_s
            text_bytes += part.text_bytes
        documents = Documents.join(part.entry.documents[part.start : part.stop] for part in batch)
        flow = self._flows[options.tenant]
        self._clock = flow.start_tag
        flow.start_tag += text_bytes + _DOCUMENT_COST_BYTES * len(documents)
        scoring = self._loop.run_in_executor(self._threads, self._score, options, documents)
        self._scoring[scoring] = options
        scoring.add_done_callback(lambda done: self._finish(options, batch, text_bytes, now_s, done))

    def _finish(
        self,
        options: Options,
        batch: list[_Slice],
        text_bytes: int,
        started_s: float,
        scoring: asyncio.Future[list[Piece]],
    ) -> None:
        del self._scoring[scoring]
        if text_bytes >= _MIN_TIMED_BYTES:
            byte_s = (self._loop.time() - started_s) / text_bytes
            self._byte_s += (byte_s - self._byte_s) * (0.2 if self._byte_s else 1.0)
        if scoring.cancelled():  # the service is closing
            for part in batch:
                part.entry.future.cancel()
            return
        failure = scoring.exception()
        if failure is None:
            self._deliver(options, batch, text_bytes, scoring.result())
        elif isinstance(failure, DqsError):
            self._failed(options, batch, failure)
        else:
            self._failed(options, batch, incident(failure))
        self._dispatch()

    def _failed(self, options: Options, batch: list[_Slice], error: DqsError) -> None:
        """Answers a batch with an error, or queues it once more where its worker has gone."""
        again: list[_Slice] = []
        if isinstance(error, Unavailable) and not self._closed:
            again = [part for part in batch if not part.retried and not part.entry.future.done()]
        elif isinstance(error, IndexUnavailable):
            self._metrics.redis_failed()
        self._fail([part for part in batch if part not in again], error)
        for part in reversed(again):
            part.retried = True
            flow = self._flows[options.tenant]
            self._enqueue(flow.groups.setdefault(options, _Group(options)), part, first=True)

    def _score(self, options: Options, documents: Documents) -> list[Piece]:
        """Scores a batch in a thread; a document that breaks the scoring is answered by itself.

        Raises:
            DqsError: what concerns every document, such as an unknown policy.
        """
        try:
            results = self._pipeline.run(
                documents,
                policy=options.policy,
                corpus=options.corpus,
                degrade=options.degrade,
                replace=options.replace,
                tenant=options.tenant,
                classifiers=options.classifiers,
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

    def _deliver(self, options: Options, batch: list[_Slice], text_bytes: int, pieces: list[Piece]) -> None:
        """Hands every part of a batch its part of the pieces that cover the batch."""
        for piece in pieces:
            if not isinstance(piece.outcome, DocumentError):
                share = text_bytes * len(piece.outcome) // sum(part.stop - part.start for part in batch)
                self._metrics.batch([part.queue_s for part in batch], piece.outcome, share)
                self._tracer.batch(
                    [part.entry.span for part in batch],
                    piece.outcome,
                    queued_s=batch[0].submitted_s,
                    started_s=batch[0].submitted_s + batch[0].queue_s,
                    ended_s=self._loop.time(),
                    text_bytes=share,
                )
        remaining = deque(pieces)
        for part in batch:
            wanted = part.stop - part.start
            while wanted:
                head = remaining.popleft()
                count = min(wanted, head.stop - head.start)
                part.pieces.append(Piece(head.start, head.start + count, head.outcome, part.queue_s))
                if head.start + count < head.stop:
                    remaining.appendleft(Piece(head.start + count, head.stop, head.outcome))
                wanted -= count
            entry = part.entry
            if entry.future.done():
                continue
            for piece in part.pieces:
                self._metrics.answered(options.tenant, piece.outcome, piece.start, piece.stop)
            entry.unanswered -= 1
            if not entry.unanswered:
                entry.future.set_result(_joined(piece for answered in entry.parts for piece in answered.pieces))


def _documents(parts: Iterable[_Slice]) -> int:
    return sum(part.stop - part.start for part in parts)


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces, with those joined that follow each other in one batch."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and last.outcome is piece.outcome and last.stop == piece.start:
            joined[-1] = Piece(last.start, piece.stop, last.outcome, last.queue_s)
        else:
            joined.append(piece)
    return joined


def _nobody(lost: str | None) -> Unavailable:
    if lost:
        return Unavailable(f"The workers are lost ({lost}): try again at another server, or once this one is back.")
    return Unavailable("No worker is there to score: try again in a moment.")
