"""What is on its way on a stream; does no input or output itself."""

from __future__ import annotations

import itertools
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dqs.client._documents import DocumentLike, Identifier
from dqs.client._options import Window
from dqs.errors import InternalError
from dqs.v1 import decision_pb2, scoring_pb2, server_info_pb2

ACKNOWLEDGE_AFTER_S = 0.2
"""The server is told what has come this much later at the latest."""
FAREWELL_S = 0.5
"""How long the end of a call may wait for the server to learn that nothing is owed any more."""


class Receipts:
    """Which answers have come, and how far the server knows of it. Thread-safe.

    What reads a stream notes the answers, what writes it takes along the number up to
    which all have come; the server keeps every other answer for a new connection.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: server_info_pb2.Limits) -> None:
        self.is_wanted = limits.stream_resume_seconds > 0
        """Whether the server keeps answers, and takes acknowledgements."""
        self._urgent_documents = limits.stream_window_documents // 2
        self._urgent_bytes = limits.stream_window_bytes // 2
        self._lock = threading.Lock()
        self._sent: dict[int, tuple[int, int]] = {}
        """Documents and bytes of text of each message behind the highest number up to which all are answered."""
        self._early: set[int] = set()
        """Which of them are answered."""
        self._answered = self._told = 0
        self._untold_documents = self._untold_bytes = 0
        self.documents = self.text_bytes = 0
        """What the server holds for this call: all that is sent and cannot be acknowledged yet."""

    def sent(self, sequence: int, documents: int, text_bytes: int) -> None:
        """Takes down that a message leaves, for the first time."""
        if not self.is_wanted:
            return
        with self._lock:
            self._sent[sequence] = (documents, text_bytes)
            self.documents += documents
            self.text_bytes += text_bytes

    def received(self, sequence: int) -> bool:
        """Takes down that an answer has come.

        Returns:
            Whether something has become due, or urgent.
        """
        with self._lock:
            if sequence not in self._sent:
                return False
            before = self.is_due + self.is_urgent
            self._early.add(sequence)
            while self._sent and (first := next(iter(self._sent))) in self._early:
                self._early.remove(first)
                self._settle(first)
            return self.is_due + self.is_urgent > before

    def give_up(self) -> None:
        """Claims every answer, so that the server keeps none for a client that will not come back."""
        with self._lock:
            self._early.clear()
            while self._sent:
                self._settle(next(iter(self._sent)))

    def _settle(self, sequence: int) -> None:
        documents, text_bytes = self._sent.pop(sequence)
        self._answered = sequence
        self.documents -= documents
        self.text_bytes -= text_bytes
        self._untold_documents += documents
        self._untold_bytes += text_bytes

    @property
    def is_due(self) -> bool:
        """Whether there is something to tell."""
        return self.is_wanted and self._answered > self._told

    @property
    def is_urgent(self) -> bool:
        """Whether it should be told at once, because the server holds much in vain."""
        return self.is_due and (
            self._untold_documents >= self._urgent_documents or self._untold_bytes >= self._urgent_bytes
        )

    def take(self) -> bytes:
        """What to append to the next encoded message, or to send alone: empty where there is nothing new."""
        with self._lock:
            if not self.is_due:
                return b""
            self._told = self._answered
            self._untold_documents = self._untold_bytes = 0
            # Encoded fields may be appended to an encoded message.
            encoded: bytes = scoring_pb2.ScoreStreamRequest(acknowledged=self._told).SerializeToString()
            return encoded

    def tell_again(self) -> None:
        """A new connection begins, which does not know what the old one was told."""
        with self._lock:
            self._told = 0


@dataclass(slots=True)
class _Message:
    """A message of the stream, from its first document until its answer has been handed out."""

    request: scoring_pb2.ScoreStreamRequest
    documents: int = 0
    text_bytes: int = 0
    begun_s: float = 0.0
    too_large: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Position -> id and length of documents that are not sent because the server would refuse them."""
    answer: scoring_pb2.ScoredDocuments | None = None


class Exchange:
    """What is on its way on a stream; does no input or output itself.

    Both clients drive it: they add documents while there is room, send what is
    outgoing, and hand in what they receive.

    Args:
        options: how to score.
        language: of documents that have none.
        ordered: whether answers are handed out in the order of the documents.
        window: how much may be on its way.
        limits: of the server.
    """

    def __init__(
        self,
        options: scoring_pb2.ScoreOptions,
        language: str,
        ordered: bool,
        window: Window,
        limits: server_info_pb2.Limits,
    ) -> None:
        self.receipts = Receipts(limits)
        self._stream_id = secrets.token_hex(16) if self.receipts.is_wanted else ""
        self._options = options
        self._ordered = ordered
        self._window = window
        self._limits = limits
        self._message_documents = min(window.message_documents, limits.max_batch_documents)
        # Half of what is allowed leaves enough for ids and the frame of each document.
        self._message_bytes = min(window.message_bytes, limits.max_message_bytes // 2)
        self._held_documents = self._held_bytes = sys.maxsize
        if self.receipts.is_wanted:
            # The server stops reading when what it holds fills its window, and then reads no
            # acknowledgement either: the last message must end within. Several messages must
            # fit, or there would be nothing to score while one is answered.
            self._message_documents = min(self._message_documents, limits.stream_window_documents // 4 or 1)
            self._message_bytes = min(self._message_bytes, limits.stream_window_bytes // 4)
            self._held_documents = max(1, limits.stream_window_documents - self._message_documents)
            self._held_bytes = limits.stream_window_bytes - self._message_bytes
        self._identifier = Identifier(language)
        self._next_sequence = 1
        self._current: _Message | None = None
        self._messages: dict[int, _Message] = {}
        """Flushed and not handed out, by sequence number, in their order."""
        self._to_send: deque[int] = deque()
        self._begin_stream = True
        self._documents = 0
        self._text_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether another document may be added."""
        return (
            self._documents < self._window.documents
            and self._text_bytes < self._window.text_bytes
            and self.receipts.documents < self._held_documents
            and self.receipts.text_bytes < self._held_bytes
        )

    @property
    def is_gathering(self) -> bool:
        """Whether there is a message that is not closed yet."""
        return self._current is not None

    @property
    def is_owed(self) -> bool:
        """Whether there is a closed message whose answer has not been handed out."""
        return bool(self._messages)

    @property
    def is_answered(self) -> bool:
        """Whether all that was added has been handed out."""
        return not self.is_owed and not self.is_gathering

    def add(self, document: DocumentLike) -> None:
        """Puts a document into the current message; closes the message when it is full or old."""
        now_s = time.monotonic()
        if self._current is None:
            self._current = _Message(scoring_pb2.ScoreStreamRequest(), begun_s=now_s)
        current = self._current
        size = self._identifier.append(current.request.documents, document)
        if size > self._limits.max_document_bytes:
            refused = current.request.documents.pop()
            current.too_large[current.documents] = (refused.id, size)
            size = 0
        current.documents += 1
        current.text_bytes += size
        self._documents += 1
        self._text_bytes += size
        if (
            current.documents >= self._message_documents
            or current.text_bytes >= self._message_bytes
            or now_s - current.begun_s > self._window.message_wait_s
            or not self.has_room
        ):
            self.flush()

    def flush(self) -> None:
        """Closes the current message, however small."""
        if self._current is None:
            return
        sequence = self._next_sequence
        self._next_sequence += 1
        self._current.request.sequence = sequence
        self._messages[sequence] = self._current
        self.receipts.sent(sequence, self._current.documents, self._current.text_bytes)
        self._to_send.append(sequence)
        self._current = None

    def outgoing(self) -> list[bytes]:
        """Takes the encoded messages that are to be sent."""
        encoded: list[bytes] = []
        while self._to_send:
            request = self._messages[self._to_send.popleft()].request
            if self._begin_stream:
                request.options.CopyFrom(self._options)
                request.stream_id = self._stream_id
                encoded.append(request.SerializeToString())
                request.ClearField("options")
                request.ClearField("stream_id")
                self._begin_stream = False
            else:
                encoded.append(request.SerializeToString())
        return encoded

    def send_again(self) -> None:
        """Makes everything without an answer outgoing, for a new stream."""
        self._begin_stream = True
        self.receipts.tell_again()
        self._to_send = deque(sequence for sequence, message in self._messages.items() if message.answer is None)

    def receive(self, responses: Iterable[scoring_pb2.ScoreStreamResponse]) -> Iterator[scoring_pb2.ScoredDocuments]:
        """Takes answers in and hands out those whose turn has come; one that came before is passed over.

        Raises:
            InternalError: an answer is to nothing that was sent.
        """
        for response in responses:
            message = self._messages.get(response.sequence)
            if message is None and not 1 <= response.sequence < self._next_sequence:
                raise InternalError(f"The server answered message {response.sequence}, which was never sent.")
            if message is None or message.answer is not None:
                continue
            answer = response.scored
            if len(answer.results) != len(message.request.documents):
                raise InternalError(
                    f"The server gave {len(answer.results)} answers to {len(message.request.documents)} documents."
                )
            if message.too_large:
                answer = _with_too_large(answer, message.too_large, self._limits.max_document_bytes)
            message.answer = answer
            message.request.Clear()  # the text is not needed any more
            if not self._ordered:
                yield self._hand_out(response.sequence, answer)
                continue
            while self._messages:
                first, head = next(iter(self._messages.items()))
                if head.answer is None:
                    break
                yield self._hand_out(first, head.answer)

    def _hand_out(self, sequence: int, answer: scoring_pb2.ScoredDocuments) -> scoring_pb2.ScoredDocuments:
        message = self._messages.pop(sequence)
        self._documents -= message.documents
        self._text_bytes -= message.text_bytes
        return answer


def _with_too_large(
    answer: scoring_pb2.ScoredDocuments, too_large: Mapping[int, tuple[str, int]], limit: int
) -> scoring_pb2.ScoredDocuments:
    """Puts errors for documents that were never sent among the answers to those that were."""
    whole = scoring_pb2.ScoredDocuments(
        signals=answer.signals, signal_versions=answer.signal_versions, policy=answer.policy
    )
    width = len(answer.signals)
    answered = 0
    for position in range(len(answer.results) + len(too_large)):
        refused = too_large.get(position)
        if refused is None:
            cells = slice(answered * width, (answered + 1) * width)
            whole.results.append(answer.results[answered])
            whole.values.extend(answer.values[cells])
            whole.missing.extend(answer.missing[cells] or [decision_pb2.MISSING_REASON_UNSPECIFIED] * width)
            answered += 1
        else:
            result = whole.results.add(id=refused[0])
            result.error.code = scoring_pb2.DOCUMENT_ERROR_CODE_TOO_LARGE
            result.error.message = (
                f"The text has {refused[1]} bytes, more than the server's limit of {limit}; split it."
            )
            whole.values.extend([float("nan")] * width)
            whole.missing.extend([decision_pb2.MISSING_REASON_UNSPECIFIED] * width)
    for runs, spread in ((answer.timings, whole.timings), (answer.model_runs, whole.model_runs)):
        if runs:
            _spread(runs, too_large, spread)
    return whole


def _spread(runs: Any, too_large: Iterable[int], to: Any) -> None:
    """Parts runs of documents where others come between, which have an empty run of their own.

    Args:
        runs: messages that say in `documents` how many they are about.
        too_large: where the others are, in ascending order.
        to: repeated field that the runs are added to.
    """
    numbers: list[int | None] = [number for number, run in enumerate(runs) for _ in range(run.documents)]
    for position in too_large:
        numbers.insert(position, None)
    for number, documents in itertools.groupby(numbers):
        run = to.add()
        if number is not None:
            run.CopyFrom(runs[number])
        run.documents = len(list(documents))
