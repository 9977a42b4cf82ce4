"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from dqs.client._channels import CHANNEL_OPTIONS, CORPUS_SERVICE, SERVICE
from dqs.client._documents import DocumentLike, Identifier
from dqs.client._exchange import Exchange
from dqs.client._failures import Patience, StreamEnded, failure_of, no_answer, parsed
from dqs.client._options import Timeouts, Window, score_options
from dqs.client._verdicts import verdicts
from dqs.data import Verdict
from dqs.v1 import corpus_pb2, scoring_pb2, server_info_pb2


class AsyncClient:
    """Like `Client`, for asyncio. Make and use it on one running event loop.

    Args:
        target: `host:port`, or any target that gRPC resolves.
        timeouts: how long to wait.
        window: how much is on its way at a time.
    """

    def __init__(self, target: str, *, timeouts: Timeouts | None = None, window: Window | None = None) -> None:
        self._target = target
        self._timeouts = timeouts or Timeouts()
        self._window = window or Window()
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._score_stream = self._channel.stream_stream(f"{SERVICE}/ScoreStream")
        self._score_batch = self._channel.unary_unary(f"{SERVICE}/ScoreBatch")
        self._get_server_info = self._channel.unary_unary(f"{SERVICE}/GetServerInfo")
        self._drop_corpus = self._channel.unary_unary(f"{CORPUS_SERVICE}/DropCorpus")
        self._limits: server_info_pb2.Limits | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are under way end."""
        await self._channel.close()

    async def info(self) -> server_info_pb2.GetServerInfoResponse:
        """What the server computes, with which models and policies, and its limits.

        Raises:
            DqsError: as in the package's table.
        """
        request = server_info_pb2.GetServerInfoRequest()
        raw = await self._call(self._get_server_info, request.SerializeToString(), self._timeouts.connect_s)
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
    ) -> AsyncGenerator[scoring_pb2.ScoredDocuments, None]:
        """Like `score`, in the messages of the wire; see `Client.score_batches`.

        Args:
            documents: as for `score`.
            policy: as for `score`.
            corpus: as for `score`.
            language: as for `score`.
            degrade: as for `score`.
            ordered: messages in the order of `documents`.

        Yields:
            Answers to some hundred documents at a time.

        Raises:
            DqsError: as in the package's table.
        """
        options = score_options(policy, corpus, degrade)
        limits = self._limits or (await self.info()).limits
        exchange = Exchange(options, language, ordered, self._window, limits)
        patience = Patience(self._timeouts.retry_s)
        stream = _Stream(self._score_stream)
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
                responses: list[bytes] = []
                try:
                    await stream.send(exchange.outgoing())
                    if not reads_on:
                        responses = await stream.wait(self._timeouts.answer_s)
                        patience.reset()
                except grpc.RpcError as error:
                    pause_s = patience.pause_s(failure_of(error, self._target))
                    await stream.close()
                    await asyncio.sleep(pause_s)
                    stream = _Stream(self._score_stream)
                    exchange.send_again()
                for scored in exchange.receive(responses):
                    yield scored
        finally:
            # A call that is dropped without cancelling is never collected by gRPC.
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
        raw = await self._call(
            self._score_batch, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s
        )
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
        raw = await self._call(
            self._drop_corpus, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s
        )
        parsed(corpus_pb2.DropCorpusResponse, raw)

    async def _call(
        self, method: Callable[..., Any], request: bytes, retry_s: float, timeout_s: float | None = None
    ) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        patience = Patience(retry_s)
        deadline_s = time.monotonic() + (timeout_s if timeout_s is not None else self._timeouts.answer_s)
        while True:
            try:
                raw: bytes = await method(request, timeout=max(0.0, deadline_s - time.monotonic()))
            except grpc.RpcError as error:
                pause_s = patience.pause_s(failure_of(error, self._target))
                await asyncio.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))
            else:
                return raw


class _Stream:
    """A ScoreStream call with a task that reads it, so that a full window cannot block both ends."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._call = method()
        self._responses: asyncio.Queue[bytes | grpc.RpcError] = asyncio.Queue()
        self._ended: grpc.RpcError | None = None
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                response = await self._call.read()
                if response is grpc.aio.EOF:
                    break
                self._responses.put_nowait(response)
        except grpc.RpcError as error:
            self._responses.put_nowait(error)
        else:
            self._responses.put_nowait(StreamEnded())

    @property
    def has_received(self) -> bool:
        """Whether `wait` would return at once."""
        return self._ended is not None or not self._responses.empty()

    async def send(self, requests: Iterable[bytes]) -> None:
        for request in requests:
            try:
                await self._call.write(request)
            except asyncio.InvalidStateError:
                return  # the call has ended; `wait` says why

    async def wait(self, timeout_s: float) -> list[bytes]:
        """As for the stream of `dqs.client.sync`."""
        received: list[bytes] = []
        while self._ended is None and not (received and self._responses.empty()):
            try:
                response = await asyncio.wait_for(self._responses.get(), timeout_s)
            except TimeoutError:
                raise no_answer(timeout_s) from None
            if isinstance(response, grpc.RpcError):
                self._ended = response
            else:
                received.append(response)
        if self._ended is not None and not received:
            raise self._ended
        return received

    async def close(self) -> None:
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


async def _each(documents: Iterable[DocumentLike]) -> AsyncIterator[DocumentLike]:
    """A plain iterable as an asynchronous one."""
    for document in documents:
        yield document
