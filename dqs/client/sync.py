"""The client for threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from dqs.client._channels import CHANNEL_OPTIONS, CORPUS_SERVICE, SERVICE
from dqs.client._documents import DocumentLike, Identifier
from dqs.client._exchange import Exchange
from dqs.client._failures import Patience, StreamEnded, failure_of, no_answer, parsed
from dqs.client._options import Timeouts, Window, score_options
from dqs.client._verdicts import verdicts
from dqs.data import Verdict
from dqs.v1 import corpus_pb2, scoring_pb2, server_info_pb2


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
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._score_stream = self._channel.stream_stream(f"{SERVICE}/ScoreStream")
        self._score_batch = self._channel.unary_unary(f"{SERVICE}/ScoreBatch")
        self._get_server_info = self._channel.unary_unary(f"{SERVICE}/GetServerInfo")
        self._drop_corpus = self._channel.unary_unary(f"{CORPUS_SERVICE}/DropCorpus")
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
            DqsError: as in the package's table.
        """
        request = server_info_pb2.GetServerInfoRequest()
        raw = self._call(self._get_server_info, request.SerializeToString(), self._timeouts.connect_s)
        info: server_info_pb2.GetServerInfoResponse = parsed(server_info_pb2.GetServerInfoResponse, raw)
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
            DqsError: as in the package's table.
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
            DqsError: as in the package's table.
        """
        options = score_options(policy, corpus, degrade)
        exchange = Exchange(options, language, ordered, self._window, self._known_limits())
        patience = Patience(self._timeouts.retry_s)
        stream = _Stream(self._score_stream)
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
                    pause_s = patience.pause_s(failure_of(error, self._target))
                    stream.close()
                    time.sleep(pause_s)
                    stream = _Stream(self._score_stream)
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
            DqsError: as in the package's table.
        """
        request = scoring_pb2.ScoreBatchRequest(options=score_options(policy, corpus, degrade))
        identify = Identifier(language)
        for document in documents:
            identify.append(request.documents, document)
        raw = self._call(self._score_batch, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        return list(verdicts(parsed(scoring_pb2.ScoreBatchResponse, raw).scored))

    def drop_corpus(self, corpus: str, *, timeout_s: float | None = None) -> None:
        """Makes the server forget every document of a corpus; this cannot be undone.

        Does nothing where there is no such corpus. What this server is scoring for the
        corpus is decided or given up first, and forgotten too.

        Args:
            corpus: name of the corpus; not empty.
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            RequestError: the name is empty or too long, or the server is too old to drop corpora.
            DqsError: as in the package's table.
        """
        request = corpus_pb2.DropCorpusRequest(corpus=corpus)
        raw = self._call(self._drop_corpus, request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        parsed(corpus_pb2.DropCorpusResponse, raw)

    def _known_limits(self) -> server_info_pb2.Limits:
        return self._limits or self.info().limits

    def _call(
        self, method: Callable[..., bytes], request: bytes, retry_s: float, timeout_s: float | None = None
    ) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        patience = Patience(retry_s)
        deadline_s = time.monotonic() + (timeout_s if timeout_s is not None else self._timeouts.answer_s)
        while True:
            try:
                return method(request, timeout=max(0.0, deadline_s - time.monotonic()))
            except grpc.RpcError as error:
                pause_s = patience.pause_s(failure_of(error, self._target))
                time.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))


class _Stream:
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
            self._responses.put(StreamEnded())

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
                raise no_answer(timeout_s) from None
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
