"""What is on its way on a stream; does no input or output itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dqs.client._documents import DocumentLike, Identifier
from dqs.client._failures import parsed
from dqs.client._options import Window
from dqs.errors import InternalError
from dqs.v1 import decision_pb2, scoring_pb2, server_info_pb2

_LINGER_S = 0.2
"""An unfinished message leaves with the first document that comes this much later."""


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
    """

    def __init__(
        self,
        options: scoring_pb2.ScoreOptions,
        language: str,
        ordered: bool,
        window: Window,
        limits: server_info_pb2.Limits,
    ) -> None:
        self._options = options
        self._ordered = ordered
        self._window = window
        self._limits = limits
        self._message_documents = min(window.message_documents, limits.max_batch_documents)
        # Half of what is allowed leaves enough for ids and the frame of each document.
        self._message_bytes = min(window.message_bytes, limits.max_message_bytes // 2)
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
        return self._documents < self._window.documents and self._text_bytes < self._window.text_bytes

    @property
    def is_answered(self) -> bool:
        """Whether all that was added has been handed out."""
        return not self._messages and self._current is None

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
            or now_s - current.begun_s > _LINGER_S
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
        self._to_send.append(sequence)
        self._current = None

    def outgoing(self) -> list[bytes]:
        """Takes the encoded messages that are to be sent."""
        encoded: list[bytes] = []
        while self._to_send:
            request = self._messages[self._to_send.popleft()].request
            if self._begin_stream:
                request.options.CopyFrom(self._options)
                encoded.append(request.SerializeToString())
                request.ClearField("options")
                self._begin_stream = False
            else:
                encoded.append(request.SerializeToString())
        return encoded

    def send_again(self) -> None:
        """Makes everything without an answer outgoing, for a new stream."""
        self._begin_stream = True
        self._to_send = deque(sequence for sequence, message in self._messages.items() if message.answer is None)

    def receive(self, responses: Iterable[bytes]) -> Iterator[scoring_pb2.ScoredDocuments]:
        """Takes encoded answers in and hands out those whose turn has come."""
        for raw in responses:
            response = parsed(scoring_pb2.ScoreStreamResponse, raw)
            message = self._messages.get(response.sequence)
            if message is None or message.answer is not None:
                raise InternalError(f"The server answered message {response.sequence}, which does not wait for one.")
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
    return whole
