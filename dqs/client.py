"""The bulk client: iterables of documents in, verdicts out. Needs grpcio and protobuf only.

    from dqs import Client

    with Client("localhost:50051") as client:
        for verdict in client.score(open("texts.txt")):
            print(verdict.id, verdict.label.name, verdict.signals["perplexity"])

Documents travel on a stream in messages of some hundred kilobytes, several of
them on their way at a time. Memory is bounded by the window, so the input may
be endless. When the stream breaks, a new one is opened and what was not
answered is sent again; that is safe, because the service knows a document by
its corpus, id and text. A document that cannot be scored is a verdict with
`error`; what concerns the call raises one of these, all of them `DqsError`:

    status               reason              raises             retried before
    INVALID_ARGUMENT     POLICY              PolicyError        no
    INVALID_ARGUMENT     REQUEST, none       RequestError       no
    FAILED_PRECONDITION  CORPUS_MISMATCH     CorpusMismatch     no
    FAILED_PRECONDITION  CONFIG, MODEL, none ConfigError        no
    RESOURCE_EXHAUSTED   OVERLOADED          Overloaded         yes
    RESOURCE_EXHAUSTED   none                RequestError       no (a message over the limit)
    UNAVAILABLE          INDEX_UNAVAILABLE   IndexUnavailable   yes
    UNAVAILABLE          UNAVAILABLE, none   Unavailable        yes
    DEADLINE_EXCEEDED    any                 DeadlineExceeded   no
    UNIMPLEMENTED        none                RequestError       no
    any other            any                 InternalError      no

This module knows nothing of scoring, files or settings.
"""

from __future__ import annotations

import asyncio
import queue
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from dqs.data import Document, Label, Missing, Reason, Verdict
from dqs.errors import (
    ConfigError,
    CorpusMismatch,
    DeadlineExceeded,
    DqsError,
    IndexUnavailable,
    InternalError,
    ModelError,
    Overloaded,
    PolicyError,
    RequestError,
    Unavailable,
)
from dqs.v1 import corpus_pb2, decision_pb2, failure_pb2, scoring_pb2, server_info_pb2

DocumentLike: TypeAlias = "Document | str | tuple[str, str | bytes] | Mapping[str, str | bytes]"
"""A document, a text, a pair of id and text, or a mapping with `text` and perhaps `id`, `language`, `source`.

A text without an id gets one that no other text has.
"""

_SERVICE = "/dqs.v1.ScoringService"
_CORPUS_SERVICE = "/dqs.v1.CorpusService"
_DETAILS_KEY = "grpc-status-details-bin"
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Finds a server that vanished without closing the connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_ERRORS_BY_REASON: Mapping[str, type[DqsError]] = MappingProxyType(
    {
        error.reason: error
        for error in (
            PolicyError,
            RequestError,
            CorpusMismatch,
            ConfigError,
            ModelError,
            Overloaded,
            IndexUnavailable,
            Unavailable,
            DeadlineExceeded,
            InternalError,
        )
    }
)
_ERRORS_BY_STATUS: Mapping[grpc.StatusCode, type[DqsError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: RequestError,
        grpc.StatusCode.FAILED_PRECONDITION: ConfigError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: RequestError,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNIMPLEMENTED: RequestError,
    }
)
_OPERATORS: Mapping[int, str] = MappingProxyType(
    {
        decision_pb2.OPERATOR_LESS: "<",
        decision_pb2.OPERATOR_LESS_OR_EQUAL: "<=",
        decision_pb2.OPERATOR_GREATER: ">",
        decision_pb2.OPERATOR_GREATER_OR_EQUAL: ">=",
    }
)
_LABELS: Mapping[int, Label] = MappingProxyType({int(label): label for label in Label})
_MISSING: Mapping[int, Missing] = MappingProxyType({int(missing): missing for missing in Missing})
_ERROR_CODE_PREFIX = "DOCUMENT_ERROR_CODE_"
_MIB = 1 << 20
_LINGER_S = 0.2
"""An unfinished message leaves with the first document that comes this much later."""
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits.

    Attributes:
        connect_s: for the first contact with the server.
        answer_s: for the next answer while documents are on their way, and for a whole unary call.
        retry_s: for a lost server to come back.
    """

    connect_s: float = 10.0
    answer_s: float = 300.0
    retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """How much is on its way at a time; memory is bounded by a small multiple of it.

    Attributes:
        documents: most documents sent and not yet handed to the caller.
        text_bytes: most bytes of text sent and not yet handed to the caller, but for one longer document.
        message_documents: most documents in one message.
        message_bytes: bytes of text at which a message is full.
    """

    documents: int = 4096
    text_bytes: int = 8 * _MIB
    message_documents: int = 256
    message_bytes: int = _MIB // 2


class Client:
    """Scores documents through a DQS server. Thread-safe: each call of a method is on its own.

    Args:
        target: `host:port`, or any target that gRPC resolves.
        timeouts: how long to wait.
        window: how much is on its way at a time.
    """

    def __init__(self, target: str, *, timeouts: Timeouts | None = None, window: Window | None = None) -> None:
        self._target = target
        self._timeouts = timeouts or Timeouts()
        self._window = window or Window()
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._score_stream = self._channel.stream_stream(f"{_SERVICE}/ScoreStream")
        self._score_batch = self._channel.unary_unary(f"{_SERVICE}/ScoreBatch")
        self._get_server_info = self._channel.unary_unary(f"{_SERVICE}/GetServerInfo")
        self._drop_corpus = self._channel.unary_unary(f"{_CORPUS_SERVICE}/DropCorpus")
        self._limits: server_info_pb2.Limits | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way end."""
        self._channel.close()

    def info(self) -> server_info_pb2.GetServerInfoResponse:
        """What the server computes, with which models and policies, and its limits.

        Raises:
            DqsError: as in the module's table.
        """
        request = server_info_pb2.GetServerInfoRequest()
        raw = self._call(self._get_server_info, request.SerializeToString(), self._timeouts.connect_s)
        info: server_info_pb2.GetServerInfoResponse = _parsed(server_info_pb2.GetServerInfoResponse, raw)
        self._limits = info.limits
        return info

    def score(
        self,
        documents: Iterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        ordered: bool = True,
    ) -> Iterator[Verdict]:
        """Scores any number of documents over a stream.

        `documents` is read in the caller's thread, ahead of the verdicts by at
        most the window. Close the iterator to give up what is on its way.

        Args:
            documents: may be endless.
            policy: name of the policy that decides.
            corpus: where duplicates are looked for and kept documents remembered;
                None leaves duplication out.
            language: ISO 639-1 code of documents that have none; empty to detect it.
            degrade: while the server's index cannot be reached, score with duplication
                marked as unavailable instead of failing.
            ordered: verdicts in the order of `documents`; otherwise as they come.

        Yields:
            One verdict for each document.

        Raises:
            DqsError: as in the module's table.
        """
        for scored in self.score_batches(
            documents, policy=policy, corpus=corpus, language=language, degrade=degrade, ordered=ordered
        ):
            yield from verdicts(scored)

    def score_batches(
        self,
        documents: Iterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        ordered: bool = True,
    ) -> Iterator[scoring_pb2.ScoredDocuments]:
        """Like `score`, in the messages of the wire: less work per document.

        Args:
            documents: as for `score`.
            policy: as for `score`.
            corpus: as for `score`.
            language: as for `score`.
            degrade: as for `score`.
            ordered: messages in the order of `documents`; within a message they are always.

        Yields:
            Answers to some hundred documents at a time.

        Raises:
            DqsError: as in the module's table.
        """
        options = _options(policy, corpus, degrade)
        exchange = _Exchange(options, language, ordered, self._window, self._known_limits())
        patience = _Patience(self._timeouts.retry_s)
        stream = _SyncStream(self._score_stream)
        source = iter(documents)
        exhausted = False
        try:
            while not (exhausted and exchange.is_answered):
                reads_on = not exhausted and exchange.has_room and not stream.has_received
                if reads_on:
                    try:
                        exchange.add(next(source))
                    except StopIteration:
                        exhausted = True
                        exchange.flush()
                responses: list[bytes] = []
                try:
                    stream.send(exchange.outgoing())
                    if not reads_on:
                        responses = stream.wait(self._timeouts.answer_s)
                        patience.reset()
                except grpc.RpcError as error:
                    pause_s = patience.pause_s(_failure(error, self._target))
                    stream.close()
                    time.sleep(pause_s)
                    stream = _SyncStream(self._score_stream)
                    exchange.send_again()
                yield from exchange.receive(responses)
        finally:
            # A call that is dropped without cancelling is never collected by gRPC.
            stream.close()

    def score_batch(
        self,
        documents: Iterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        timeout_s: float | None = None,
    ) -> list[Verdict]:
        """Scores a few documents in one call.

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
            DqsError: as in the module's table.
        """
        request = scoring_pb2.ScoreBatchRequest(options=_options(policy, corpus, degrade))
        identify = _Identifier(language)
        for document in documents:
            identify.append(request.documents, document)
        raw = self._call(self._score_batch, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        return list(verdicts(_parsed(scoring_pb2.ScoreBatchResponse, raw).scored))

    def drop_corpus(self, corpus: str, *, timeout_s: float | None = None) -> None:
        """Makes the server forget every document of a corpus; this cannot be undone.

        Does nothing where there is no such corpus. What this server is scoring for the
        corpus is decided or given up first, and forgotten too.

        Args:
            corpus: name of the corpus; not empty.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            RequestError: the name is empty or too long, or the server is too old to drop corpora.
            DqsError: as in the module's table.
        """
        request = corpus_pb2.DropCorpusRequest(corpus=corpus)
        raw = self._call(self._drop_corpus, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        _parsed(corpus_pb2.DropCorpusResponse, raw)

    def _known_limits(self) -> server_info_pb2.Limits:
        return self._limits or self.info().limits

    def _call(
        self, method: Callable[..., bytes], request: bytes, retry_s: float, timeout_s: float | None = None
    ) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        patience = _Patience(retry_s)
        deadline_s = time.monotonic() + (timeout_s if timeout_s is not None else self._timeouts.answer_s)
        while True:
            try:
                return method(request, timeout=max(0.0, deadline_s - time.monotonic()))
            except grpc.RpcError as error:
                pause_s = patience.pause_s(_failure(error, self._target))
                time.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))


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
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._score_stream = self._channel.stream_stream(f"{_SERVICE}/ScoreStream")
        self._score_batch = self._channel.unary_unary(f"{_SERVICE}/ScoreBatch")
        self._get_server_info = self._channel.unary_unary(f"{_SERVICE}/GetServerInfo")
        self._drop_corpus = self._channel.unary_unary(f"{_CORPUS_SERVICE}/DropCorpus")
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
            DqsError: as in the module's table.
        """
        request = server_info_pb2.GetServerInfoRequest()
        raw = await self._call(self._get_server_info, request.SerializeToString(), self._timeouts.connect_s)
        info: server_info_pb2.GetServerInfoResponse = _parsed(server_info_pb2.GetServerInfoResponse, raw)
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
            DqsError: as in the module's table.
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
            DqsError: as in the module's table.
        """
        options = _options(policy, corpus, degrade)
        limits = self._limits or (await self.info()).limits
        exchange = _Exchange(options, language, ordered, self._window, limits)
        patience = _Patience(self._timeouts.retry_s)
        stream = _AsyncStream(self._score_stream)
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
                    pause_s = patience.pause_s(_failure(error, self._target))
                    await stream.close()
                    await asyncio.sleep(pause_s)
                    stream = _AsyncStream(self._score_stream)
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
            DqsError: as in the module's table.
        """
        request = scoring_pb2.ScoreBatchRequest(options=_options(policy, corpus, degrade))
        identify = _Identifier(language)
        for document in documents:
            identify.append(request.documents, document)
        raw = await self._call(
            self._score_batch, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s
        )
        return list(verdicts(_parsed(scoring_pb2.ScoreBatchResponse, raw).scored))

    async def drop_corpus(self, corpus: str, *, timeout_s: float | None = None) -> None:
        """Makes the server forget every document of a corpus; see `Client.drop_corpus`.

        Args:
            corpus: name of the corpus; not empty.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            RequestError: the name is empty or too long, or the server is too old to drop corpora.
            DqsError: as in the module's table.
        """
        request = corpus_pb2.DropCorpusRequest(corpus=corpus)
        raw = await self._call(
            self._drop_corpus, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s
        )
        _parsed(corpus_pb2.DropCorpusResponse, raw)

    async def _call(
        self, method: Callable[..., Any], request: bytes, retry_s: float, timeout_s: float | None = None
    ) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        patience = _Patience(retry_s)
        deadline_s = time.monotonic() + (timeout_s if timeout_s is not None else self._timeouts.answer_s)
        while True:
            try:
                raw: bytes = await method(request, timeout=max(0.0, deadline_s - time.monotonic()))
            except grpc.RpcError as error:
                pause_s = patience.pause_s(_failure(error, self._target))
                await asyncio.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))
            else:
                return raw


def verdicts(scored: scoring_pb2.ScoredDocuments) -> Iterator[Verdict]:
    """The verdicts in a message of the wire.

    Args:
        scored: answers to some documents.

    Yields:
        One verdict for each, in their order.
    """
    names = list(scored.signals)
    width = len(names)
    positions = {name: position for position, name in enumerate(names)}
    values = list(scored.values)
    missing = bytes(scored.missing)
    present: dict[str, Missing] = {}
    # Most documents lack the same few signals: one mapping for all that do.
    patterns: dict[bytes, dict[str, Missing]] = {b"": present, bytes(width): present}
    policy = scored.policy
    for row, result in enumerate(scored.results):
        if result.HasField("error"):
            yield Verdict(
                result.id,
                Label.UNSPECIFIED,
                policy=policy,
                error=(_error_code(result.error.code), result.error.message),
            )
            continue
        cells = slice(row * width, (row + 1) * width)
        pattern = missing[cells]
        why = patterns.get(pattern)
        if why is None:
            why = {name: _missing(code) for name, code in zip(names, pattern, strict=True) if code}
            patterns[pattern] = why
        yield Verdict(
            id=result.id,
            # A label that this version does not know needs a person's look.
            label=_LABELS.get(result.label, Label.REVIEW),
            reasons=tuple(map(_reason, result.reasons)),
            language=result.language,
            signals=_Signals(positions, values[cells], why),
            missing=why,
            duplicate_of=result.duplicate_of if result.HasField("duplicate_of") else None,
            toxicity_span=(result.toxicity_span_start, result.toxicity_span_end) if result.toxicity_span_end else None,
            policy=policy,
        )


class _Signals(Mapping[str, float | None]):
    """The signals of one document, looked up in its row: a dictionary for each would cost more than the rest."""

    __slots__ = ("_missing", "_positions", "_values")

    def __init__(self, positions: Mapping[str, int], values: Sequence[float], missing: Mapping[str, Missing]) -> None:
        self._positions = positions
        self._values = values
        self._missing = missing

    def __getitem__(self, name: str) -> float | None:
        return None if name in self._missing else self._values[self._positions[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, float | None]], tuple[dict[str, float | None]]]:
        return dict, (dict(self),)


def _reason(reason: decision_pb2.Reason) -> Reason:
    return Reason(
        rule=reason.rule,
        signal=reason.signal,
        value=reason.value if reason.HasField("value") else None,
        operator=_OPERATORS.get(reason.operator, "?"),
        threshold=reason.threshold,
        missing=_missing(reason.missing),
    )


def _missing(code: int) -> Missing:
    return _MISSING.get(code, Missing.UNAVAILABLE)


def _error_code(code: int) -> str:
    value = scoring_pb2.DocumentErrorCode.DESCRIPTOR.values_by_number.get(code)
    return "INTERNAL" if value is None else value.name.removeprefix(_ERROR_CODE_PREFIX)


def _options(policy: str, corpus: str | None, degrade: bool) -> scoring_pb2.ScoreOptions:
    return scoring_pb2.ScoreOptions(
        policy=policy,
        corpus=corpus or "",
        deduplication=scoring_pb2.DEDUPLICATION_DISABLED if corpus is None else scoring_pb2.DEDUPLICATION_ENABLED,
        index_failure=scoring_pb2.INDEX_FAILURE_DEGRADE if degrade else scoring_pb2.INDEX_FAILURE_FAIL,
    )


class _Identifier:
    """Turns what callers give into documents of the wire; numbers those without an id.

    The number follows a prefix of this call's own, because the same id for
    another text would be an error in a corpus that outlives the call, and the
    same id for the same text would not count as a duplicate.
    """

    def __init__(self, language: str) -> None:
        self._language = language
        self._prefix = secrets.token_hex(6)
        self._number = 0

    def append(self, to: Any, document: DocumentLike) -> int:
        """Appends a document to a repeated field of them; returns the length of its text in bytes."""
        source = ""
        identity: str | bytes = ""
        language: str | bytes = ""
        text: str | bytes
        if isinstance(document, Document):
            identity, text, language, source = document.id, document.text, document.language, document.source
        elif isinstance(document, str):
            text = document
        elif isinstance(document, tuple):
            identity, text = document
        else:
            try:
                text = document["text"]
            except KeyError:
                raise RequestError("A document given as a mapping has no `text`; give it one.") from None
            identity, language = document.get("id", ""), document.get("language", "")
            source = str(document.get("source", ""))
        if not identity and not isinstance(document, Document):
            identity = f"{self._prefix}-{self._number}"
        self._number += 1
        if isinstance(text, str):
            # A lone surrogate becomes bytes that are not UTF-8: an error of this document alone.
            text = text.encode("utf-8", "surrogatepass")
        to.add(id=identity, text=text, language=language or self._language, source=source)
        return len(text)


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


class _Exchange:
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
        self._identifier = _Identifier(language)
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
            response = _parsed(scoring_pb2.ScoreStreamResponse, raw)
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


class _StreamEnded(grpc.RpcError):  # type: ignore[misc]  # gRPC ships no types
    """The server ended a stream in good order while answers were owed."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the server ended the stream"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class _SyncStream:
    """A ScoreStream call with a thread that reads it, so that waiting for answers can time out."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[bytes | grpc.RpcError] = queue.SimpleQueue()
        self._ended: grpc.RpcError | None = None
        # gRPC takes requests from the iterator in a thread of its own.
        self._call = method(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, name="dqs-client-read", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._responses.put(response)
        except grpc.RpcError as error:
            self._responses.put(error)
        else:
            self._responses.put(_StreamEnded())

    @property
    def has_received(self) -> bool:
        """Whether `wait` would return at once."""
        return self._ended is not None or not self._responses.empty()

    def send(self, requests: Iterable[bytes]) -> None:
        for request in requests:
            self._requests.put(request)

    def wait(self, timeout_s: float) -> list[bytes]:
        """Everything that has arrived, waiting for the first of it.

        Raises:
            grpc.RpcError: the call has ended, and all that came before has been returned.
            DeadlineExceeded: nothing came in time.
        """
        received: list[bytes] = []
        while self._ended is None and not (received and self._responses.empty()):
            try:
                response = self._responses.get(timeout=timeout_s)
            except queue.Empty:
                raise _no_answer(timeout_s) from None
            if isinstance(response, grpc.RpcError):
                self._ended = response
            else:
                received.append(response)
        if self._ended is not None and not received:
            raise self._ended
        return received

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._reader.join()


class _AsyncStream:
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
            self._responses.put_nowait(_StreamEnded())

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
        """As for `_SyncStream`."""
        received: list[bytes] = []
        while self._ended is None and not (received and self._responses.empty()):
            try:
                response = await asyncio.wait_for(self._responses.get(), timeout_s)
            except TimeoutError:
                raise _no_answer(timeout_s) from None
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


def _no_answer(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"No answer came for {timeout_s:g} s: look at the server, or allow more with `answer_s`.")


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a failed call means.

    Attributes:
        error: what to raise.
        may_retry: whether the same call may succeed later, and repeating it is safe.
        retry_after_s: how long the server asks to wait.
    """

    error: DqsError
    may_retry: bool
    retry_after_s: float


class _Patience:
    """Decides whether and when to try again: with growing pauses, until no answer came for too long."""

    def __init__(self, retry_s: float) -> None:
        self._retry_s = retry_s
        self._backoff_s = _FIRST_BACKOFF_S
        self._since_s: float | None = None
        """When the first failure after the last answer was."""

    def reset(self) -> None:
        """Counts an answer."""
        self._since_s = None
        self._backoff_s = _FIRST_BACKOFF_S

    def pause_s(self, failure: _Failure) -> float:
        """How long to wait before the next try.

        Raises:
            DqsError: there is no use in one, or patience has ended.
        """
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = now_s
        if not failure.may_retry or now_s - self._since_s >= self._retry_s:
            raise failure.error
        pause_s = max(self._backoff_s, failure.retry_after_s) * random.uniform(1.0, 1.5)
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return pause_s


def _failure(error: grpc.RpcError, target: str) -> _Failure:
    """Translates a failed call by the module's table."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason = ""
    retry_after_s: float | None = None
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS_KEY:
            continue
        for detail in _parsed(failure_pb2.Failure, value).details:
            kind = detail.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                reason = _parsed(failure_pb2.FailureInfo, detail.value).reason
            elif kind == "google.rpc.RetryInfo":
                delay = _parsed(failure_pb2.RetryAfter, detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    kind_of_error = _ERRORS_BY_REASON.get(reason) or _ERRORS_BY_STATUS.get(code, InternalError)
    if not reason:  # from gRPC itself, which names no server
        message = f"The call to {target} failed ({code.name}): {message}"
    return _Failure(
        kind_of_error(message),
        may_retry=code == grpc.StatusCode.UNAVAILABLE or retry_after_s is not None,
        retry_after_s=retry_after_s or 0.0,
    )


def _parsed(kind: Any, raw: bytes) -> Any:
    """A message of the wire.

    Raises:
        InternalError: the server sent something else.
    """
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise InternalError(
            f"The server sent what is no {kind.DESCRIPTOR.full_name}: is a DQS server of this version there?"
        ) from None


async def _each(documents: Iterable[DocumentLike]) -> AsyncIterator[DocumentLike]:
    """A plain iterable as an asynchronous one."""
    for document in documents:
        yield document
