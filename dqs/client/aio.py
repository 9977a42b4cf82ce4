"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from dqs.client._channels import Route, Servers, Token
from dqs.client._documents import DocumentLike, Identifier
from dqs.client._exchange import ACKNOWLEDGE_AFTER_S, FAREWELL_S, Exchange, Receipts
from dqs.client._failures import StreamEnded, no_answer, parsed
from dqs.client._options import Timeouts, Tls, Window, score_options
from dqs.client._verdicts import verdicts
from dqs.data import Verdict
from dqs.errors import DqsError
from dqs.v1 import corpus_pb2, scoring_pb2, server_info_pb2


class AsyncClient:
    """Like `Client`, for asyncio. Make and use it on one running event loop.

    Args:
        target: `host:port`, or any target that gRPC resolves; several as a list or parted by commas.
        timeouts: how long to wait.
        window: how much is on its way at a time.
        tls: encrypts the connection; None sends in clear.
        token: says who calls: a bearer token, or a function that is asked for one before each call.
        allow_insecure_token: sends the token in clear to other machines too.

    Raises:
        ConfigError: no server is named, a TLS file cannot be read, or a token would travel in clear.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeouts: Timeouts | None = None,
        window: Window | None = None,
        tls: Tls | None = None,
        token: Token | None = None,
        allow_insecure_token: bool = False,
    ) -> None:
        self._timeouts = timeouts or Timeouts()
        self._window = window or Window()
        self._servers = Servers(grpc.aio, target, tls, token, allow_insecure_token)
        self._limits: server_info_pb2.Limits | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls that are under way end."""
        for server in self._servers.all:
            await server.channel.close()

    async def info(self) -> server_info_pb2.GetServerInfoResponse:
        """What the server computes, with which models and policies, and its limits.

        Raises:
            DqsError: as in the package's table.
        """
        request = server_info_pb2.GetServerInfoRequest()
        raw = await self._call("get_server_info", request.SerializeToString(), self._timeouts.connect_s)
        info: server_info_pb2.GetServerInfoResponse = parsed(server_info_pb2.GetServerInfoResponse, raw)
        self._limits = info.limits
        return info

    async def score(
        self,
        documents: Iterable[DocumentLike] | AsyncIterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        ordered: bool = True,
    ) -> AsyncIterator[Verdict]:
        """Scores any number of documents over a stream; see `Client.score`.

        Args:
            documents: may be endless, and asynchronous.
            policy: name of the policy that decides.
            corpus: where duplicates are looked for; None leaves duplication out.
            language: ISO 639-1 code of documents that have none.
            degrade: score without duplication while the index cannot be reached.
            ordered: verdicts in the order of `documents`.

        Yields:
            One verdict for each document.

        Raises:
            DqsError: as in the package's table.
        """
        batches = self.score_batches(
            documents, policy=policy, corpus=corpus, language=language, degrade=degrade, ordered=ordered
        )
        try:
            async for scored in batches:
                for verdict in verdicts(scored):
                    yield verdict
        finally:
            await batches.aclose()

    async def score_batches(
        self,
        documents: Iterable[DocumentLike] | AsyncIterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        ordered: bool = True,
        timings: bool = False,
    ) -> AsyncGenerator[scoring_pb2.ScoredDocuments, None]:
        """Like `score`, in the messages of the wire; see `Client.score_batches`.

        Args:
            documents: as for `score`.
            policy: as for `score`.
            corpus: as for `score`.
            language: as for `score`.
            degrade: as for `score`.
            ordered: messages in the order of `documents`.
            timings: has the server say where the time went.

        Yields:
            Answers to some hundred documents at a time.

        Raises:
            DqsError: as in the package's table.
        """
        limits = self._limits or (await self.info()).limits
        exchange = Exchange(score_options(policy, corpus, degrade, timings), language, ordered, self._window, limits)
        route = Route(self._servers, self._timeouts.retry_s)
        stream = _Stream(route, exchange.receipts)
        source = aiter(documents) if isinstance(documents, AsyncIterable) else _each(documents)
        exhausted = False
        try:
            while not (exhausted and exchange.is_answered):
                reads_on = not exhausted and exchange.has_room and not stream.has_received
                if reads_on:
                    try:
                        exchange.add(await anext(source))
                    except StopAsyncIteration:
                        exhausted = True
                        exchange.flush()
                await stream.send(exchange.outgoing())
                if reads_on:
                    continue
                try:
                    responses = await stream.wait(self._timeouts.answer_s)
                except grpc.RpcError as error:
                    await stream.close()
                    await asyncio.sleep(route.pause_s(error))
                    exchange.send_again()
                    stream = _Stream(route, exchange.receipts)
                    continue
                route.answered()
                for scored in exchange.receive(responses):
                    yield scored
        except DqsError as error:
            error.request_id = error.request_id or route.request_id
            raise
        finally:
            # A call that is dropped without cancelling is never collected by gRPC.
            exchange.receipts.give_up()
            await stream.close()

    async def score_batch(
        self,
        documents: Iterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        timeout_s: float | None = None,
    ) -> list[Verdict]:
        """Scores a few documents in one call; see `Client.score_batch`.

        Args:
            documents: no more than the server's limits allow.
            policy: as for `score`.
            corpus: as for `score`.
            language: as for `score`.
            degrade: as for `score`.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Returns:
            One verdict for each document, in order.

        Raises:
            DqsError: as in the package's table.
        """
        request = scoring_pb2.ScoreBatchRequest(options=score_options(policy, corpus, degrade))
        identify = Identifier(language)
        for document in documents:
            identify.append(request.documents, document)
        raw = await self._call("score_batch", request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        return list(verdicts(parsed(scoring_pb2.ScoreBatchResponse, raw).scored))

    async def drop_corpus(self, corpus: str, *, timeout_s: float | None = None) -> None:
        """Makes the server forget every document of a corpus; see `Client.drop_corpus`.

        Args:
            corpus: name of the corpus; not empty.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            RequestError: the name is empty or too long, or the server is too old to drop corpora.
            DqsError: as in the package's table.
        """
        request = corpus_pb2.DropCorpusRequest(corpus=corpus)
        raw = await self._call("drop_corpus", request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        parsed(corpus_pb2.DropCorpusResponse, raw)

    async def _call(self, method: str, request: bytes, retry_s: float, timeout_s: float | None = None) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        limit_s = timeout_s if timeout_s is not None else self._timeouts.answer_s
        route = Route(self._servers, min(retry_s, limit_s))
        deadline_s = time.monotonic() + limit_s
        while True:
            call = getattr(route.server, method)
            try:
                raw: bytes = await call(
                    request, timeout=max(0.0, deadline_s - time.monotonic()), metadata=route.metadata()
                )
            except grpc.RpcError as error:
                pause_s = route.pause_s(error)
                await asyncio.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))
            else:
                route.answered()
                return raw


class _Stream:
    """A ScoreStream call with a task that writes and one that reads, so that a full window cannot block both ends.

    Answers are read and acknowledged as they come, however slowly they are used.

    Args:
        route: where to, with what.
        receipts: notes the answers.
    """

    def __init__(self, route: Route, receipts: Receipts) -> None:
        self._receipts = receipts
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        """Encoded requests; an empty one has what is due told, None ends the requests."""
        self._unsent = 0
        self._inbox: asyncio.Queue[scoring_pb2.ScoreStreamResponse | Exception] = asyncio.Queue()
        self._ended: Exception | None = None
        self._call = route.server.score_stream(metadata=route.metadata())
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    async def _write(self) -> None:
        has_begun = False
        request: bytes | None = b""
        # The call may end at any time; `wait` says why.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError):
            while request is not None:
                is_late = False
                try:
                    request = await asyncio.wait_for(
                        self._outbox.get(), ACKNOWLEDGE_AFTER_S if self._receipts.is_due else None
                    )
                except TimeoutError:
                    request, is_late = b"", True
                has_begun = has_begun or bool(request)
                # The first message names the stream; before it nothing can be acknowledged.
                if has_begun and (request != b"" or is_late or self._receipts.is_urgent):
                    encoded = (request or b"") + self._receipts.take()
                    if encoded:
                        await self._call.write(encoded)
                    if request:
                        self._unsent -= 1
            await self._call.done_writing()

    async def _read(self) -> None:
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                response = parsed(scoring_pb2.ScoreStreamResponse, raw)
                # First, because it makes room for what is sent next.
                if self._receipts.received(response.sequence):
                    self._outbox.put_nowait(b"")
                self._inbox.put_nowait(response)
        except (grpc.RpcError, DqsError) as error:
            self._inbox.put_nowait(StreamEnded() if _hides_status(error) else error)
        else:
            self._inbox.put_nowait(StreamEnded())

    @property
    def has_received(self) -> bool:
        """Whether `wait` would return at once."""
        return self._ended is not None or not self._inbox.empty()

    async def send(self, requests: Iterable[bytes]) -> None:
        """Has encoded requests sent, as fast as the server takes them."""
        for request in requests:
            self._outbox.put_nowait(request)
            self._unsent += 1
        if self._unsent:
            # An input that is not asynchronous would let nobody else run, the writer included.
            await asyncio.sleep(0)

    async def wait(self, timeout_s: float) -> list[scoring_pb2.ScoreStreamResponse]:
        """As for the stream of `dqs.client.sync`."""
        received: list[scoring_pb2.ScoreStreamResponse] = []
        while self._ended is None and not (received and self._inbox.empty()):
            try:
                response = await asyncio.wait_for(self._inbox.get(), timeout_s)
            except TimeoutError:
                raise no_answer(timeout_s) from None
            if isinstance(response, Exception):
                self._ended = response
            else:
                received.append(response)
        if self._ended is not None and not received:
            raise self._ended
        return received

    async def close(self) -> None:
        """Ends the call, after the last acknowledgement where one is due."""
        try:
            if self._receipts.is_due:
                self._outbox.put_nowait(None)
                await asyncio.wait([self._reader], timeout=FAREWELL_S)
        finally:
            self._call.cancel()
            self._writer.cancel()
            self._reader.cancel()
            await asyncio.gather(self._writer, self._reader, return_exceptions=True)


def _hides_status(error: Exception) -> bool:
    """Whether gRPC has put the failure of a write in the place of the status with which the call ended.

    A write that meets the end of its call does that; why it ended is not to be had any more.
    """
    return (
        isinstance(error, grpc.RpcError)
        and error.code() == grpc.StatusCode.INTERNAL
        and error.details() == "Internal error from Core"
    )


async def _each(documents: Iterable[DocumentLike]) -> AsyncIterator[DocumentLike]:
    """A plain iterable as an asynchronous one."""
    for document in documents:
        yield document
