"""ScoringService: takes calls in, hands their documents to the batcher, sends answers out.

Handlers are registered for raw bytes; `codec` parses them, so that a malformed
message is INVALID_ARGUMENT. This module translates nothing and scores nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from functools import partial
from typing import Any

import grpc

from dqs.errors import RequestError, Unavailable
from dqs.server import codec
from dqs.server.admission import FIRST_MESSAGE_BYTES, Account, Admission, Window
from dqs.server.batcher import Batcher
from dqs.server.calls import Call, Gate
from dqs.server.codec import Encoder, Limits, Options, Piece, Request
from dqs.server.status import Context
from dqs.v1 import scoring_pb2

SERVICE_NAME: str = scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"].full_name


class ScoringServicer:
    """Handles the calls of one server.

    Args:
        limits: what requests must keep to.
        admission: says how much may come in.
        batcher: scores what calls bring.
        encoder: writes answers.
        server_info: the encoded answer to GetServerInfo.
        gate: lets calls in.
    """

    def __init__(
        self,
        limits: Limits,
        admission: Admission,
        batcher: Batcher,
        encoder: Encoder,
        server_info: bytes,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._limits = limits
        self._admission = admission
        self._batcher = batcher
        self._encoder = encoder
        self._server_info = server_info
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
            stream = _Stream(context, call, self._limits, self._batcher, self._encoder, account)
            self._streams.add(stream)
            try:
                await stream.run()
            finally:
                self._streams.discard(stream)

    async def _score_batch(self, context: Context, call: Call) -> bytes:
        with self._admission.call(call.tenant) as account:
            self._batcher.check()
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
        return self._server_info


def _deadline_s(context: Context) -> float:
    """When the caller stops waiting, by the clock of the event loop."""
    remaining_s = context.time_remaining()
    return math.inf if remaining_s is None else asyncio.get_running_loop().time() + remaining_s


class _Stream:
    """One ScoreStream call: a task reads, the call's own task writes.

    What has been read and not yet written to the client counts into the window,
    so that neither a fast writer nor a slow reader can fill the memory.
    """

    def __init__(
        self, context: Context, call: Call, limits: Limits, batcher: Batcher, encoder: Encoder, account: Account
    ) -> None:
        self._context = context
        self._call = call
        self._limits = limits
        self._batcher = batcher
        self._encoder = encoder
        self._account = account
        self._window = Window(limits.stream_window_bytes, limits.stream_window_documents)
        self._options: Options | None = None
        self._expected = (min(FIRST_MESSAGE_BYTES, account.budget.max_bytes // 8), 1)
        """Largest message so far, in bytes and documents: what the next one is taken to be."""
        self._sizes: dict[int, tuple[int, int]] = {}
        self._open: dict[int, asyncio.Future[list[Piece]]] = {}
        """Sequence number -> answers to come or not yet written."""
        self._sequences: deque[int] = deque()
        """Sequence numbers in the order read, from the first unanswered one on."""
        self._acknowledged = 0
        self._events: asyncio.Queue[Request | None] = asyncio.Queue()
        """Requests whose answers are there; None once the reader has ended."""
        self._reader: asyncio.Task[None] | None = None
        self._draining = False

    def drain(self) -> None:
        """Reads no further; the stream ends when it has answered what it has read."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    async def run(self) -> None:
        """Answers until the client or the server ends the stream.

        Raises:
            DqsError: the status to end the call with.
        """
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            await self._write()
            if self._draining:
                raise Unavailable(
                    "The server is shutting down: open the stream again, and send what it did not answer."
                )
            self._reader.result()
        finally:
            self._reader.cancel()
            for answers in self._open.values():
                answers.cancel()
            self._account.give_back(self._window.text_bytes, self._window.documents)
            await asyncio.gather(self._reader, return_exceptions=True)

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
            request = codec.parse_stream_request(raw, self._limits, self._call.tenant.name)
            if self._options is None:
                self._options = request.options or Options(tenant=self._call.tenant.name)
            elif request.options is not None:
                raise RequestError("Only the first message of a stream carries options.", field="options")
            if request.only_acknowledges:
                continue
            if request.sequence <= last:
                raise RequestError(
                    f"Sequence number {request.sequence} follows {last}: number the messages upwards from 1.",
                    field="sequence",
                )
            last = request.sequence
            self._submit(self._options, request, len(raw))

    def _submit(self, options: Options, request: Request, message_bytes: int) -> None:
        # An empty message holds a place too; else a flood of them would be unbounded.
        size = self._sizes[request.sequence] = (message_bytes, max(1, len(request.documents)))
        self._expected = (max(self._expected[0], size[0]), max(self._expected[1], size[1]))
        self._window.take(*size)
        self._account.take(*size)
        answers = self._batcher.submit(options, request.documents)
        self._open[request.sequence] = answers
        self._sequences.append(request.sequence)
        answers.add_done_callback(partial(self._answered, request))

    def _answered(self, request: Request, answers: asyncio.Future[list[Piece]]) -> None:
        if not answers.cancelled():
            answers.exception()  # read here, since a stream that has ended reads it nowhere else
        self._events.put_nowait(request)

    async def _write(self) -> None:
        reading = True
        while reading or self._open:
            request = await self._events.get()
            if request is None:
                reading = False
                continue
            answers = self._open[request.sequence]
            if answers.cancelled():
                raise Unavailable("The server stopped while it was scoring: send the documents again.")
            pieces = answers.result()
            assert self._options is not None
            response = self._encoder.stream_response(
                request, pieces, self._acknowledge(request.sequence), timings=self._options.timings
            )
            await self._context.write(response)
            del self._open[request.sequence]
            size = self._sizes.pop(request.sequence)
            self._window.give_back(*size)
            self._account.give_back(*size)

    def _acknowledge(self, sequence: int) -> int:
        """Counts a message as answered; returns the highest number up to which all are."""
        while self._sequences and (self._sequences[0] == sequence or self._sequences[0] not in self._open):
            self._acknowledged = self._sequences.popleft()
        return self._acknowledged
