"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from dqs.client._channels import Route, Servers, Token
from dqs.client._corpora import create_request, first_request, id_parts, last_request
from dqs.client._documents import DocumentLike, Identifier, check_several
from dqs.client._exchange import ACKNOWLEDGE_AFTER_S, FAREWELL_S, Exchange, Receipts
from dqs.client._failures import StreamEnded, closed, failure_of, no_answer, parsed
from dqs.client._options import Timeouts, Tls, Window, check_time, score_options
from dqs.client._verdicts import verdicts
from dqs.data import Verdict
from dqs.errors import DqsError
from dqs.v1 import corpus_pb2, scoring_pb2, server_info_pb2

_Item = TypeVar("_Item")

_TURNS_TO_SEND = 4
"""Turns of the event loop after which a message has reached gRPC."""


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
        self._turns = asyncio.Semaphore(self._window.streams)  # fair, as asyncio promises

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls that are under way end."""
        self._servers.is_closed = True
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
        replace: bool = False,
        classifiers: Iterable[str] | None = None,
        ordered: bool = True,
    ) -> AsyncIterator[Verdict]:
        """Scores any number of documents over a stream; see `Client.score`.

        `documents` is read in a task of its own while verdicts are waited for and used, ahead of
        them by at most the window; so a source that waits for a verdict before it goes on gets it.
        The end of this iteration cancels that task, and closes a source that is a generator.

        Args:
            documents: may be endless, and asynchronous.
            policy: name of the policy that decides.
            corpus: where duplicates are looked for; None leaves duplication out.
            language: ISO 639-1 code of documents that have none.
            degrade: score without duplication while the index cannot be reached.
            replace: a document whose id the corpus has with another text takes its place.
            classifiers: names of the classifiers that run; None for all.
            ordered: verdicts in the order of `documents`.

        Yields:
            One verdict for each document.

        Raises:
            DqsError: as in the package's table.
        """
        batches = self.score_batches(
            documents,
            policy=policy,
            corpus=corpus,
            language=language,
            degrade=degrade,
            replace=replace,
            classifiers=classifiers,
            ordered=ordered,
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
        replace: bool = False,
        classifiers: Iterable[str] | None = None,
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
            replace: as for `score`.
            classifiers: as for `score`.
            ordered: messages in the order of `documents`.
            timings: has the server say where the time went.

        Yields:
            Answers to some hundred documents at a time.

        Raises:
            DqsError: as in the package's table.
        """
        check_several(documents)
        async with self._turns:
            limits = await self._known_limits()
            options = score_options(
                policy, corpus, degrade=degrade, replace=replace, timings=timings, classifiers=classifiers
            )
            exchange = Exchange(options, language, ordered, self._window, limits)
            route = Route(self._servers, self._timeouts.retry_s)
            news = asyncio.Event()
            source = _Source(documents, exchange, self._window.message_wait_s, news)
            stream: _Stream | None = None
            owed_since_s: float | None = None
            try:
                while True:
                    news.clear()
                    if source.has_ended() and exchange.is_answered:
                        break
                    # A stream that ends while nothing is owed is missed by nobody.
                    if stream is None and exchange.is_owed:
                        stream = source.stream = _Stream(route, exchange.receipts, news)
                        exchange.send_again()
                        stream.send(exchange.outgoing())
                    try:
                        responses = stream.received() if stream is not None else []
                    except grpc.RpcError as error:
                        broken, stream, source.stream, owed_since_s = stream, None, None, None
                        assert broken is not None
                        await broken.close()
                        if exchange.is_owed:
                            await asyncio.sleep(route.pause_s(error))
                        continue
                    if responses:
                        route.answered()
                        owed_since_s = None
                        for scored in exchange.receive(responses):
                            source.look_for_room()
                            yield scored
                        source.look_for_room()
                        continue
                    owed_since_s = (owed_since_s or time.monotonic()) if exchange.is_owed else None
                    await self._wait_for(news, owed_since_s)
            except DqsError as error:
                error.request_id = error.request_id or route.request_id
                raise
            finally:
                # A call that is dropped without cancelling is never collected by gRPC.
                exchange.receipts.give_up()
                try:
                    await source.close()
                finally:
                    if stream is not None:
                        await stream.close()

    async def _wait_for(self, news: asyncio.Event, owed_since_s: float | None) -> None:
        """Waits for news: of the source for as long as it likes, of an answer that is owed for `answer_s`."""
        if owed_since_s is None:
            await news.wait()
            return
        try:
            await asyncio.wait_for(news.wait(), owed_since_s + self._timeouts.answer_s - time.monotonic())
        except TimeoutError:
            raise no_answer(self._timeouts.answer_s) from None

    async def score_batch(
        self,
        documents: Iterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        replace: bool = False,
        classifiers: Iterable[str] | None = None,
        timeout_s: float | None = None,
    ) -> list[Verdict]:
        """Scores a few documents in one call; see `Client.score_batch`.

        Args:
            documents: no more than the server's limits allow.
            policy: as for `score`.
            corpus: as for `score`.
            language: as for `score`.
            degrade: as for `score`.
            replace: as for `score`.
            classifiers: as for `score`.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Returns:
            One verdict for each document, in order.

        Raises:
            DqsError: as in the package's table.
        """
        options = score_options(policy, corpus, degrade=degrade, replace=replace, classifiers=classifiers)
        request = scoring_pb2.ScoreBatchRequest(options=options)
        check_several(documents)
        identify = Identifier(language)
        for document in documents:
            identify.append(request.documents, document)
        raw = await self._call("score_batch", request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        return list(verdicts(parsed(scoring_pb2.ScoreBatchResponse, raw).scored))

    async def create_corpus(
        self,
        corpus: str,
        *,
        threshold: float | None = None,
        normaliser: str = "",
        options: corpus_pb2.CorpusOptions | None = None,
        timeout_s: float | None = None,
    ) -> corpus_pb2.CreateCorpusResponse:
        """Makes a corpus; one with these parameters and options is left as it is.

        Args:
            corpus: its name; not empty.
            threshold: estimated Jaccard similarity from which documents are near-duplicates; None for the default.
            normaliser: what is done to a text before it is cut into tokens; empty for the default.
            options: what may be changed later; fields that are not set have their defaults.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            RequestError: a name or value is not allowed.
            CorpusMismatch: there is one with others; the message names the difference.
            DqsError: as in the package's table.
        """
        request = create_request(corpus, threshold, normaliser, options)
        raw = await self._call("create_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        created: corpus_pb2.CreateCorpusResponse = parsed(corpus_pb2.CreateCorpusResponse, raw)
        return created

    async def configure_corpus(
        self, corpus: str, options: corpus_pb2.CorpusOptions, *, timeout_s: float | None = None
    ) -> corpus_pb2.CorpusOptions:
        """Changes options of a corpus.

        Args:
            corpus: its name.
            options: fields that are not set stay as they are.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Returns:
            All options as they are now.

        Raises:
            RequestError: a value is not allowed.
            CorpusNotFound: there is no such corpus.
            DqsError: as in the package's table.
        """
        request = corpus_pb2.ConfigureCorpusRequest(corpus=corpus, options=options).SerializeToString()
        raw = await self._call("configure_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        changed: corpus_pb2.ConfigureCorpusResponse = parsed(corpus_pb2.ConfigureCorpusResponse, raw)
        return changed.options

    async def list_corpora(self, *, timeout_s: float | None = None) -> list[corpus_pb2.CorpusEntry]:
        """All corpora of the caller, by name.

        Args:
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            DqsError: as in the package's table.
        """
        request = corpus_pb2.ListCorporaRequest().SerializeToString()
        raw = await self._call("list_corpora", request, self._timeouts.retry_s, timeout_s=timeout_s)
        return list(parsed(corpus_pb2.ListCorporaResponse, raw).corpora)

    async def corpus(
        self, corpus: str, *, measure: bool = True, timeout_s: float | None = None
    ) -> corpus_pb2.GetCorpusResponse:
        """Describes a corpus.

        Args:
            corpus: its name.
            measure: has the server estimate where its memory goes, from a sample.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            CorpusNotFound: there is no such corpus.
            DqsError: as in the package's table.
        """
        request = corpus_pb2.GetCorpusRequest(corpus=corpus, measure=measure).SerializeToString()
        raw = await self._call("get_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        there: corpus_pb2.GetCorpusResponse = parsed(corpus_pb2.GetCorpusResponse, raw)
        return there

    async def drop_corpus(
        self, corpus: str, *, rewrite_files: bool = False, timeout_s: float | None = None
    ) -> corpus_pb2.DropCorpusResponse:
        """Makes the server forget every document of a corpus; this cannot be undone.

        Does nothing where there is no such corpus. What this server is scoring for the
        corpus is decided or given up first, and forgotten too.

        Args:
            corpus: name of the corpus; not empty.
            rewrite_files: has the index write its files anew, so that its disk forgets as well.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Returns:
            What became of the files.

        Raises:
            RequestError: the name is empty or too long, or the server is too old to drop corpora.
            DqsError: as in the package's table.
        """
        request = corpus_pb2.DropCorpusRequest(corpus=corpus, rewrite_files=rewrite_files).SerializeToString()
        raw = await self._call("drop_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        dropped: corpus_pb2.DropCorpusResponse = parsed(corpus_pb2.DropCorpusResponse, raw)
        return dropped

    async def delete_documents(
        self, corpus: str, ids: Iterable[str], *, rewrite_files: bool = False, timeout_s: float | None = None
    ) -> corpus_pb2.DeleteDocumentsResponse:
        """Makes the server forget some documents of a corpus; this cannot be undone.

        Ids that the corpus does not know are passed over. Of several servers, the ones that are not
        asked may give answers that name the documents for a moment; stop sending a document before deleting it.

        Args:
            corpus: name of the corpus; not empty.
            ids: any number; sent in several calls, so that a failure may leave the first ones deleted.
            rewrite_files: has the index write its files anew afterwards, so that its disk forgets as well.
            timeout_s: deadline of each call; None for the client's `answer_s`.

        Returns:
            How many ids were known, over all calls, and what became of the files.

        Raises:
            RequestError: the name or an id is empty or too long.
            CorpusNotFound: there is no such corpus.
            DqsError: as in the package's table.
        """
        check_several(ids)
        known = 0
        for part in id_parts(ids, await self._known_limits()):
            request = corpus_pb2.DeleteDocumentsRequest(corpus=corpus, ids=part).SerializeToString()
            raw = await self._call("delete_documents", request, self._timeouts.retry_s, timeout_s=timeout_s)
            known += parsed(corpus_pb2.DeleteDocumentsResponse, raw).known
        if not rewrite_files:
            return corpus_pb2.DeleteDocumentsResponse(known=known)
        request = corpus_pb2.DeleteDocumentsRequest(corpus=corpus, rewrite_files=True).SerializeToString()
        raw = await self._call("delete_documents", request, self._timeouts.retry_s, timeout_s=timeout_s)
        deleted: corpus_pb2.DeleteDocumentsResponse = parsed(corpus_pb2.DeleteDocumentsResponse, raw)
        deleted.known += known
        return deleted

    async def find_documents(
        self, corpus: str, ids: Iterable[str], *, timeout_s: float | None = None
    ) -> list[corpus_pb2.FoundDocument]:
        """What a corpus holds under some ids, in their order.

        Args:
            corpus: name of the corpus.
            ids: any number; sent in several calls.
            timeout_s: deadline of each call; None for the client's `answer_s`.

        Raises:
            RequestError: the name or an id is empty or too long.
            CorpusNotFound: there is no such corpus.
            DqsError: as in the package's table.
        """
        check_several(ids)
        found: list[corpus_pb2.FoundDocument] = []
        for part in id_parts(ids, await self._known_limits()):
            request = corpus_pb2.FindDocumentsRequest(corpus=corpus, ids=part).SerializeToString()
            raw = await self._call("find_documents", request, self._timeouts.retry_s, timeout_s=timeout_s)
            found += parsed(corpus_pb2.FindDocumentsResponse, raw).documents
        return found

    async def export_corpus(self, corpus: str) -> AsyncGenerator[corpus_pb2.ExportCorpusResponse, None]:
        """What a corpus holds of its documents: first a header, then pieces of some hundred documents.

        Documents that stay during the call are all there; those that come or go meanwhile may or may
        not be. A call that breaks in the middle is not repeated: begin anew. Close the iterator to give up.

        Args:
            corpus: name of the corpus.

        Yields:
            As much as the caller takes; the server waits meanwhile.

        Raises:
            CorpusNotFound: there is no such corpus, or it was dropped meanwhile.
            DqsError: as in the package's table.
        """
        request = corpus_pb2.ExportCorpusRequest(corpus=corpus).SerializeToString()
        route = Route(self._servers, self._timeouts.retry_s)
        has_begun = False
        while True:
            call = route.server.export_corpus(request, metadata=route.metadata())
            try:
                async for raw in call:
                    route.answered()
                    has_begun = True
                    yield parsed(corpus_pb2.ExportCorpusResponse, raw)
                return
            except grpc.RpcError as error:
                if has_begun:
                    raise failure_of(error, route.server.target, route.request_id).error from None
                await asyncio.sleep(route.pause_s(error))
            finally:
                call.cancel()

    async def import_corpus(
        self,
        corpus: str,
        header: corpus_pb2.ExportHeader,
        documents: Iterable[corpus_pb2.StoredDocuments] | AsyncIterable[corpus_pb2.StoredDocuments],
    ) -> corpus_pb2.ImportCorpusResponse:
        """Makes a corpus of what `export_corpus` has given.

        A call that breaks may be repeated from the beginning of the same export: what is there already
        stays. They count as kept now.

        Args:
            corpus: name of the new corpus.
            header: of the export.
            documents: of the export, as fast as the server takes them; may be asynchronous.

        Raises:
            CorpusMismatch: there is a corpus of that name with other documents, or this server cannot read them.
            DqsError: as in the package's table.
        """
        await self._known_limits()  # so that a server which is not there yet is waited for
        route = Route(self._servers, 0.0)
        call = route.server.import_corpus(metadata=route.metadata())
        source = aiter(documents) if isinstance(documents, AsyncIterable) else _each(documents)
        try:
            try:
                await call.write(first_request(corpus, header))
                sent = 0
                async for piece in source:
                    sent += len(piece.ids)
                    await call.write(corpus_pb2.ImportCorpusRequest(documents=piece).SerializeToString())
                await call.write(last_request(sent))
                await call.done_writing()
            except (grpc.RpcError, asyncio.InvalidStateError):
                if not call.done():
                    raise
            imported: corpus_pb2.ImportCorpusResponse = parsed(corpus_pb2.ImportCorpusResponse, await call)
            return imported
        except grpc.RpcError as error:
            raise failure_of(error, route.server.target, route.request_id).error from None
        finally:
            call.cancel()

    async def _known_limits(self) -> server_info_pb2.Limits:
        return self._limits or (await self.info()).limits

    async def _call(self, method: str, request: bytes, retry_s: float, timeout_s: float | None = None) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        limit_s = timeout_s if timeout_s is not None else self._timeouts.answer_s
        check_time("timeout_s", limit_s)
        route = Route(self._servers, min(retry_s, limit_s))
        deadline_s = time.monotonic() + limit_s
        while True:
            call = getattr(route.server, method)
            try:
                raw: bytes = await call(
                    request, timeout=max(0.0, deadline_s - time.monotonic()), metadata=route.metadata()
                )
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._servers.is_closed and task is not None and not task.cancelling():
                    raise closed() from None
                raise
            except grpc.RpcError as error:
                pause_s = route.pause_s(error)
                await asyncio.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))
            else:
                route.answered()
                return raw


class _Source:
    """Reads the documents of a call in a task of its own, so that verdicts can come while the next one is waited for.

    It is never ahead of the verdicts by more than the window.

    Args:
        documents: as the caller gives them.
        exchange: takes them in.
        message_wait_s: how long a message that is not full waits for the next document.
        news: set when a message has been closed, and at the end.
    """

    def __init__(
        self,
        documents: Iterable[DocumentLike] | AsyncIterable[DocumentLike],
        exchange: Exchange,
        message_wait_s: float,
        news: asyncio.Event,
    ) -> None:
        self.stream: _Stream | None = None
        """What sends the messages; while there is none they stay in the exchange."""
        self._exchange = exchange
        self._message_wait_s = message_wait_s
        self._news = news
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._read(documents))
        self._task.add_done_callback(lambda _: news.set())

    def has_ended(self) -> bool:
        """Whether all documents have been read; raises what the caller's iteration has raised."""
        if self._task.done():
            self._task.result()
            return True
        return False

    def look_for_room(self) -> None:
        """Lets it read on if there is room again."""
        if self._exchange.has_room:
            self._room.set()

    async def close(self) -> None:
        """Ends the caller's iteration, wherever it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, documents: Iterable[DocumentLike] | AsyncIterable[DocumentLike]) -> None:
        source = aiter(documents) if isinstance(documents, AsyncIterable) else _each(documents)
        try:
            async for document in source:
                self._exchange.add(document)
                if not self._exchange.is_gathering:
                    self._send()
                    # An input that never waits would let nobody else run, gRPC included.
                    for _ in range(_TURNS_TO_SEND):
                        await asyncio.sleep(0)
                elif self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(self._message_wait_s, self._send)
                while not self._exchange.has_room:
                    self._room.clear()
                    await self._room.wait()
            self._send()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    def _send(self) -> None:
        """Closes the message at hand, full or not, and sends all that are closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._exchange.flush()
        if self.stream is not None:
            self.stream.send(self._exchange.outgoing())
        self._news.set()


class _Stream:
    """A ScoreStream call with a task that writes and one that reads, so that a full window cannot block both ends.

    Answers are read and acknowledged as they come, however slowly they are used.

    Args:
        route: where to, with what.
        receipts: notes the answers.
        news: set when an answer has come, and at the end.
    """

    def __init__(self, route: Route, receipts: Receipts, news: asyncio.Event) -> None:
        self._receipts = receipts
        self._news = news
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        """Encoded requests; an empty one has what is due told, None ends the requests."""
        self._inbox: list[scoring_pb2.ScoreStreamResponse] = []
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
            await self._call.done_writing()

    async def _read(self) -> None:
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                response = parsed(scoring_pb2.ScoreStreamResponse, raw)
                # First, because it makes room for what is sent next.
                if self._receipts.received(response.sequence):
                    self._outbox.put_nowait(b"")
                self._inbox.append(response)
                self._news.set()
        except (grpc.RpcError, DqsError) as error:
            self._ended = StreamEnded(is_certain=False) if _hides_status(error) else error
        except asyncio.CancelledError:
            self._ended = closed()
            raise
        else:
            self._ended = StreamEnded()
        finally:
            self._news.set()

    def send(self, requests: Iterable[bytes]) -> None:
        """Has encoded requests sent, as fast as the server takes them."""
        for request in requests:
            self._outbox.put_nowait(request)

    def received(self) -> list[scoring_pb2.ScoreStreamResponse]:
        """Everything that has arrived since the last time.

        Raises:
            grpc.RpcError: the call has ended, and all that came before has been returned.
            DqsError: what came is no answer, or the client was closed.
        """
        received, self._inbox = self._inbox, []
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


async def _each(documents: Iterable[_Item]) -> AsyncIterator[_Item]:
    """A plain iterable as an asynchronous one."""
    for document in documents:
        yield document
