"""Streams that outlive their connections: what was read is scored once, and answered when it is asked for again.

A session belongs to a tenant and to the name that the client gave its stream. It
holds the messages that have been read and whose answers the client has not
acknowledged. When the connection breaks, scoring goes on; the client comes back
under the same name, sends again what it has no answer to, and each message meets
the answer that is there or on its way. A stream without a name has a session
that ends with its connection.

Three bounds hold what is kept: the stream's window, the budgets of the tenant
and of everybody (`admission`), and `stream_resume_s`. Beyond them the oldest
answers are forgotten, and a message that comes again is scored again; its
verdict is the same, because the index knows a document by its id and hash.

Lives on the event loop. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dqs.errors import RequestError, Unavailable
from dqs.server.admission import Account
from dqs.server.codec import Options, Piece, Request

if TYPE_CHECKING:
    from dqs.data import Documents
    from dqs.server.batcher import Batcher
    from dqs.server.codec import Encoder, Limits

_LANES = 61
"""A prime, so that blocks of text that change places change the lanes."""
_ACKNOWLEDGED_TAG = 2 << 3
"""Of `ScoreStreamResponse.acknowledged`, a varint."""


class Connection(Protocol):
    """What carries a stream for a while."""

    def give_way(self) -> None:
        """Called when another connection has taken the stream over."""
        ...


@dataclass(eq=False, slots=True)
class Message:
    """A message of a stream, from when it is read until its answer is acknowledged or forgotten.

    Attributes:
        session: whose it is.
        request: what it asks; None once it is answered.
        answers: answers to come.
        fingerprint: tells another message under the same number from the same one.
        sequence: its number.
        text_bytes: what is counted for it: the encoded message, later the encoded answer.
        documents: how many it has; 1 where it has none.
        is_asked: whether its connection waits for the answer.
        encoded: the answer, once written or kept.
    """

    session: Session
    request: Request | None
    answers: asyncio.Future[list[Piece]]
    fingerprint: int
    sequence: int
    text_bytes: int
    documents: int
    is_asked: bool = True
    encoded: bytes | None = None

    def forget(self) -> None:
        """Called by the budget when the room of a kept answer is needed."""
        self.session.forget(self)


class Session:
    """One stream. Made by `Sessions`.

    Args:
        sessions: where it belongs.
        key: tenant and name of the stream; None for a stream that ends with its connection.
        account: the tenant's budget.
        options: how its documents are scored.
        deadline_s: when nobody needs the answers any more, by the clock of the event loop.
    """

    def __init__(
        self, sessions: Sessions, key: tuple[str, str] | None, account: Account, options: Options, deadline_s: float
    ) -> None:
        self._sessions = sessions
        self._account = account
        self._deadline_s = deadline_s
        self._messages: dict[int, Message] = {}
        self._kept: OrderedDict[Message, None] = OrderedDict()
        """Answers that no connection waits for, the oldest first."""
        self._kept_bytes = 0
        self._kept_documents = 0
        self.key = key
        self.options = options
        self.connection: Connection | None = None
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing."""
        return not self._messages

    def ask(self, request: Request, message_bytes: int) -> Message:
        """Takes a message that has been read; one that was read before is not scored again.

        Args:
            request: the message.
            message_bytes: its encoded length.

        Returns:
            The message, whose answer is to be written.

        Raises:
            RequestError: another message had the same number.
        """
        documents = request.documents
        fingerprint = 0 if self.key is None else _fingerprint(documents)
        known = self._messages.get(request.sequence)
        if known is not None:
            if known.fingerprint != fingerprint:
                raise RequestError(
                    f"Message {request.sequence} held other documents before: send the same again, or number on.",
                    field="sequence",
                )
            if known in self._kept:
                self._unkeep(known)
                self._account.take(known.text_bytes, known.documents)
            known.is_asked = True
            return known
        count = max(1, len(documents))  # else a flood of empty messages would be unbounded
        self._account.take(message_bytes, count)
        answers = self._sessions.batcher.submit(self.options, documents, deadline_s=self._deadline_s)
        message = Message(self, request, answers, fingerprint, request.sequence, message_bytes, count)
        self._messages[request.sequence] = message
        answers.add_done_callback(partial(self._scored, message))
        return message

    def answer(self, message: Message, acknowledged: int) -> bytes:
        """The encoded answer of a message that is scored.

        Args:
            message: one that `ask` returned.
            acknowledged: highest number up to which the stream has been answered.

        Raises:
            DqsError: why there is none.
        """
        if message.encoded is not None:
            # Of a field that comes twice the last value counts.
            return message.encoded + _varint(_ACKNOWLEDGED_TAG) + _varint(acknowledged)
        if message.answers.cancelled():
            raise Unavailable("The server stopped while it was scoring: send the documents again.")
        assert message.request is not None
        return self._sessions.encoder.stream_response(
            message.request, message.answers.result(), acknowledged, timings=self.options.timings
        )

    def written(self, connection: Connection, message: Message, encoded: bytes) -> None:
        """Keeps the answer of a message that has been written until it is acknowledged; without a name, nothing.

        Args:
            connection: what it has been written to.
            message: one that `ask` returned.
            encoded: its answer.
        """
        if self.connection is not connection:
            return  # another one has taken over, and may have asked for it again
        message.is_asked = False
        self._account.give_back(message.text_bytes, message.documents)
        if self.key is None:
            del self._messages[message.sequence]
        else:
            self._keep(message, encoded)

    def acknowledge(self, sequence: int) -> None:
        """Forgets the answers that the client has, and gives up those that it therefore does not wait for.

        Args:
            sequence: it has those up to this number.
        """
        if not sequence:
            return
        for message in [message for message in self._messages.values() if message.sequence <= sequence]:
            if message in self._kept:
                self.forget(message)
            else:
                message.answers.cancel()  # of no effect on an answer that is being written

    def forget(self, message: Message) -> None:
        """Forgets a kept answer."""
        self._unkeep(message)
        del self._messages[message.sequence]
        self._sessions.drop_if_over(self)

    def detach(self) -> None:
        """Goes on without a connection: nobody waits for the answers now."""
        self.connection = None
        for message in list(self._messages.values()):
            if message.is_asked:
                message.is_asked = False
                if _is_answered(message.answers):
                    self._account.give_back(message.text_bytes, message.documents)
                    self._keep(message, message.encoded or self.answer(message, 0))

    def close(self) -> None:
        """Gives up what is not scored yet and forgets the rest."""
        self.connection = None
        for message in list(self._messages.values()):
            if message in self._kept:
                self._unkeep(message)
            else:
                self._account.give_back(message.text_bytes, message.documents)
            message.answers.cancel()
        self._messages.clear()

    def _scored(self, message: Message, answers: asyncio.Future[list[Piece]]) -> None:
        answered = _is_answered(answers)
        if self._messages.get(message.sequence) is not message:
            return
        if not answered:
            # The next connection may ask again.
            del self._messages[message.sequence]
            self._account.give_back(message.text_bytes, message.documents)
            self._sessions.drop_if_over(self)
        elif not message.is_asked and message.encoded is None:
            self._account.give_back(message.text_bytes, message.documents)
            self._keep(message, self.answer(message, 0))

    def _keep(self, message: Message, encoded: bytes) -> None:
        message.encoded = encoded
        message.request = None
        message.text_bytes = len(encoded)
        self._kept[message] = None
        self._kept_bytes += message.text_bytes
        self._kept_documents += message.documents
        limits = self._sessions.limits
        while (
            self._kept_bytes > limits.stream_window_bytes or self._kept_documents > limits.stream_window_documents
        ) and len(self._kept) > 1:
            self.forget(next(iter(self._kept)))
        self._account.keep(message)

    def _unkeep(self, message: Message) -> None:
        del self._kept[message]
        self._kept_bytes -= message.text_bytes
        self._kept_documents -= message.documents
        self._account.drop(message)


class Sessions:
    """The streams of a server.

    Args:
        limits: what they may hold, and how long.
        batcher: scores what they bring.
        encoder: writes answers.
    """

    def __init__(self, limits: Limits, batcher: Batcher, encoder: Encoder) -> None:
        self.limits = limits
        self.batcher = batcher
        self.encoder = encoder
        self._sessions: dict[tuple[str, str], Session] = {}

    def __len__(self) -> int:
        """How many named streams there are, with a connection or without."""
        return len(self._sessions)

    def open(
        self,
        connection: Connection,
        account: Account,
        stream_id: str,
        options: Options,
        *,
        deadline_s: float = math.inf,
    ) -> Session:
        """The session of a stream that a connection begins to carry; the one that did so before must give way.

        Args:
            connection: what carries it.
            account: the tenant's budget.
            stream_id: name of the stream; "" for one that ends with its connection.
            options: how its documents are scored.
            deadline_s: when the connection ends, by the clock of the event loop.

        Raises:
            RequestError: the stream had other options before.
        """
        if not stream_id or not self.limits.stream_resume_s:
            unnamed = Session(self, None, account, options, deadline_s)
            unnamed.connection = connection
            return unnamed
        key = (account.tenant.name, stream_id)
        session = self._sessions.get(key)
        if session is None:
            # What it has read is scored even if this connection's deadline passes: the next may ask for it.
            session = self._sessions[key] = Session(self, key, account, options, math.inf)
        elif session.options != options:
            raise RequestError(
                "The stream had other options before: send the same, or choose another stream_id.", field="options"
            )
        if session.connection is not None:
            session.connection.give_way()
            session.detach()
        if session.expiry is not None:
            session.expiry.cancel()
            session.expiry = None
        session.connection = connection
        self._sessions[key] = session
        return session

    def leave(self, connection: Connection, session: Session) -> None:
        """A connection carries a stream no more; unless another one does, it may come back for a while.

        Args:
            connection: what carried it.
            session: the stream.
        """
        if session.key is None:
            session.close()
        elif session.connection is connection:
            session.detach()
            if not self.drop_if_over(session):
                loop = asyncio.get_running_loop()
                session.expiry = loop.call_later(self.limits.stream_resume_s, self._expire, session)

    def drop_if_over(self, session: Session) -> bool:
        """Forgets a stream that has no connection and holds nothing; returns whether it did."""
        if session.key is None or session.connection is not None or not session.is_empty:
            return False
        if session.expiry is not None:
            session.expiry.cancel()
            session.expiry = None
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        return True

    def _expire(self, session: Session) -> None:
        session.expiry = None
        session.close()
        self.drop_if_over(session)


def _fingerprint(documents: Documents) -> int:
    """Tells the documents of a message from others under its number.

    Texts are folded into lanes, which costs less than a hash over all of them. It finds
    mistakes; who makes up another text with the same lanes deceives himself only.
    """
    padding = bytes(-documents.text_bytes % (8 * _LANES))
    text = np.frombuffer(b"".join((*documents.texts, padding)), dtype=np.uint64).reshape(-1, _LANES)
    lanes = np.bitwise_xor.reduce(text, axis=0).tobytes()
    return hash((tuple(documents.ids), tuple(documents.languages), tuple(map(len, documents.texts)), lanes))


def _is_answered(answers: asyncio.Future[list[Piece]]) -> bool:
    """Whether answers are there, and neither on their way nor failed."""
    return answers.done() and not answers.cancelled() and answers.exception() is None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
