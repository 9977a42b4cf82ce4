"""ScoringService: takes calls in, hands their documents to the batcher, sends answers out.

Handlers are registered for raw bytes; `codec` parses them, so that a malformed
message is INVALID_ARGUMENT. This module translates nothing and scores nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from dqs.errors import DqsError, RequestError, Unavailable
from dqs.server import codec
from dqs.server.admission import FIRST_MESSAGE_BYTES, Account, Admission, Window
from dqs.server.batcher import Batcher
from dqs.server.calls import Call, Gate
from dqs.server.codec import Encoder, Limits, Options, Request
from dqs.server.sessions import Message, Session, Sessions
from dqs.server.status import Context
from dqs.v1 import scoring_pb2

SERVICE_NAME: str = scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"].full_name
AGE_JITTER = 0.1
"""Streams retire this part of `stream_max_age_s` earlier, at most."""


class ScoringServicer:
    """Handles the calls of one server.

    Args:
        limits: what requests must keep to.
        admission: says how much may come in.
        batcher: scores what calls bring.
        encoder: writes answers.
        server_info: encodes the answer to GetServerInfo.
        gate: lets calls in.
    """

    def __init__(
        self,
        limits: Limits,
        admission: Admission,
        batcher: Batcher,
        encoder: Encoder,
        server_info: Callable[[], bytes],
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._limits = limits
        self._admission = admission
        self._batcher = batcher
        self._encoder = encoder
        self._server_info = server_info
        self._sessions = Sessions(limits, batcher, encoder)
        self._streams: set[_Stream] = set()

    @property
    def pending_bytes(self) -> int:
        """Bytes of messages that have been read and not yet answered, over all calls."""
        return self._admission.budget.text_bytes

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers of every method, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                # To the client it is unary. Registered so, its message is read when the call has been let in,
                # and stays on the client's side of the wire where it is not.
                "ScoreBatch": grpc.stream_unary_rpc_method_handler(self.score_batch),
                "ScoreStream": grpc.stream_stream_rpc_method_handler(self.score_stream),
                "GetServerInfo": grpc.unary_unary_rpc_method_handler(self.get_server_info),
            },
        )

    async def score_batch(self, _requests: Any, context: Context) -> bytes:
        """Answers a ScoreBatchRequest."""
        return await self._gate.answer(context, "ScoreBatch", partial(self._score_batch, context))

    async def score_stream(self, _requests: Any, context: Context) -> None:
        """Answers ScoreStreamRequests for as long as they come."""
        await self._gate.answer(context, "ScoreStream", partial(self._score_stream, context))

    async def get_server_info(self, raw: bytes, context: Context) -> bytes:
        """Answers a GetServerInfoRequest."""
        return await self._gate.answer(context, "GetServerInfo", partial(self._get_server_info, raw))

    def drain(self) -> None:
        """Lets every stream answer what it has read, and end."""
        for stream in self._streams:
            stream.drain()

    async def _score_stream(self, context: Context, call: Call) -> None:
        with self._admission.stream(call.tenant) as account:
            stream = _Stream(context, call, self._limits, self._sessions, account)
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)

    async def _score_batch(self, context: Context, call: Call) -> bytes:
        with self._admission.call(call.tenant) as account:
            self._batcher.check()
            with self._admission.counting_refusals():
                account.check(1, 1)
            raw = await context.read()
            if raw is grpc.aio.EOF:
                raise RequestError("The call carries no message: send one ScoreBatchRequest.")
            with self._admission.counting_refusals():
                account.check(len(raw), 1)
                request = codec.parse_batch_request(raw, self._limits, call.tenant.name)
                size = (len(raw), max(1, len(request.documents)))
                account.check(*size)
            assert request.options is not None
            account.take(*size)
            answers = self._batcher.submit(request.options, request.documents, deadline_s=_deadline_s(context))
            try:
                return self._encoder.batch_response(request, await answers)
            finally:
                answers.cancel()
                account.give_back(*size)

    async def _get_server_info(self, raw: bytes, call: Call) -> bytes:
        codec.parse_server_info_request(raw)
        return self._server_info()


def _deadline_s(context: Context) -> float:
    """When the caller stops waiting, by the clock of the event loop."""
    now_s = asyncio.get_running_loop().time()
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else now_s + remaining_s


class _Stream:
    """A connection that carries a stream: a task reads, the call's own task writes.

    What has been read and not yet written to the client counts into the window,
    so that neither a fast writer nor a slow reader can fill the memory.
    """

    def __init__(self, context: Context, call: Call, limits: Limits, sessions: Sessions, account: Account) -> None:
        self._context = context
        self._tenant = call.tenant.name
        self._limits = limits
        self._sessions = sessions
        self._account = account
        self._session: Session | None = None
        self._stream_id = ""
        self._window = Window(limits.stream_window_bytes, limits.stream_window_documents)
        self._expected = (min(FIRST_MESSAGE_BYTES, account.budget.max_bytes // 8), 1)
        """Bytes and documents that the next message is taken to have."""
        self._open: dict[int, tuple[int, int]] = {}
        """Sequence numbers of what has been read and not been written -> bytes and documents in the window."""
        self._sequences: deque[int] = deque()
        """Sequence numbers in the order read, from the first unanswered one on."""
        self._acknowledged = 0
        self._events: asyncio.Queue[Message | None] = asyncio.Queue()
        """Messages whose answers are there; None once the reader has ended, or to have `_end` looked at."""
        self._reader: asyncio.Task[None] | None = None
        self._end: DqsError | None = None
        """Why the server ends the stream once everything that it has read is answered, if it is not a retirement."""
        self._taken_over = False
        self._retired = False

    def drain(self) -> None:
        """Reads no further; the stream ends when it has answered what it has read."""
        self._end = Unavailable("The server is shutting down: open the stream again, and send what it did not answer.")
        self._read_no_further()

    def give_way(self) -> None:
        """Ends without another answer, because another connection carries the stream now."""
        self._taken_over = True
        self._read_no_further()
        self._events.put_nowait(None)

    async def run(self) -> None:
        """Answers until the client or the server ends the stream.

        Raises:
            DqsError: the status to end the call with.
        """
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._events.put_nowait(None))
        retirement: asyncio.TimerHandle | None = None
        if self._limits.stream_max_age_s:
            # Not all at once, where many were opened at once.
            age_s = self._limits.stream_max_age_s * random.uniform(1 - AGE_JITTER, 1)
            retirement = asyncio.get_running_loop().call_later(age_s, self._retire)
        try:
            await self._write()
            if self._end is not None:
                raise self._end
            if not self._retired:
                self._reader.result()
        finally:
            if retirement is not None:
                retirement.cancel()
            self._reader.cancel()
            if self._session is not None:
                self._sessions.leave(self, self._session)
            await asyncio.gather(self._reader, return_exceptions=True)

    def _retire(self) -> None:
        """Reads no further and ends well, so that the client opens the stream anew, perhaps elsewhere."""
        self._retired = True
        self._read_no_further()

    def _read_no_further(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        last = 0
        while True:
            await self._window.free()
            room = await self._account.reserve(*self._expected)
            try:
                raw = await self._context.read()
            finally:
                room.release()
            if raw is grpc.aio.EOF:
                return
            request = codec.parse_stream_request(raw, self._limits, self._tenant)
            session = self._join(request)
            session.acknowledge(request.acknowledged)
            if request.only_acknowledges:
                continue
            if request.sequence <= last:
                raise RequestError(
                    f"Sequence number {request.sequence} follows {last}: number the messages upwards from 1.",
                    field="sequence",
                )
            last = request.sequence
            self._ask(session, request, len(raw))

    def _join(self, request: Request) -> Session:
        """The session that a request belongs to; the first one of a connection names it."""
        if self._session is None:
            options = request.options or Options(tenant=self._tenant)
            self._stream_id = request.stream_id
            self._session = self._sessions.open(
                self, self._account, request.stream_id, options, deadline_s=_deadline_s(self._context)
            )
        elif request.options is not None:
            raise RequestError("Only the first message of a stream carries options.", field="options")
        elif request.stream_id not in ("", self._stream_id):
            raise RequestError("Only the first message of a connection names the stream.", field="stream_id")
        return self._session

    def _ask(self, session: Session, request: Request, message_bytes: int) -> None:
        message = session.ask(request, message_bytes)
        size = self._open[request.sequence] = (message.text_bytes, message.documents)
        # The largest one lately: it fades, or one large message would make room scarce for good.
        expected_bytes, expected_documents = self._expected
        self._expected = (
            max(message_bytes, expected_bytes * 7 // 8),
            max(message.documents, expected_documents * 7 // 8),
        )
        self._window.take(*size)
        self._sequences.append(request.sequence)
        message.answers.add_done_callback(lambda _: self._events.put_nowait(message))

    async def _write(self) -> None:
        reading = True
        while reading or self._open:
            message = await self._events.get()
            if self._taken_over:
                raise Unavailable("Another connection carries this stream now: go on there.")
            if message is None:
                reading = False
                continue
            encoded = message.session.answer(message, self._acknowledge(message.sequence))
            await self._context.write(encoded)
            self._window.give_back(*self._open.pop(message.sequence))
            message.session.written(self, message, encoded)

    def _acknowledge(self, sequence: int) -> int:
        """Counts a message as answered; returns the highest number up to which all are."""
        while self._sequences and (self._sequences[0] == sequence or self._sequences[0] not in self._open):
            self._acknowledged = self._sequences.popleft()
        return self._acknowledged
