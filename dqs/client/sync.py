"""The client for threads."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from dqs.client._channels import Route, Servers, Token
from dqs.client._corpora import ImportRequests, create_request, id_parts
from dqs.client._documents import DocumentLike, Identifier, check_several
from dqs.client._exchange import ACKNOWLEDGE_AFTER_S, FAREWELL_S, Exchange, Receipts
from dqs.client._failures import StreamEnded, closed, failure_of, no_answer, parsed
from dqs.client._options import Timeouts, Tls, Window, check_time, score_options
from dqs.client._verdicts import verdicts
from dqs.data import Verdict
from dqs.errors import DqsError
from dqs.v1 import corpus_pb2, scoring_pb2, server_info_pb2


class Client:
    """Scores documents through DQS servers. Thread-safe: each call of a method is on its own.

    Args:
        target: `host:port`, or any target that gRPC resolves; several as a list or parted by
            commas. Calls go to them in turn; one that does not answer is left out for a while.
            They must be of one version and share their index.
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
        self._servers = Servers(grpc, target, tls, token, allow_insecure_token)
        self._limits: server_info_pb2.Limits | None = None
        self._turns = _Turns(self._window.streams)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls that are under way end."""
        self._servers.is_closed = True
        for server in self._servers.all:
            server.channel.close()

    def info(self) -> server_info_pb2.GetServerInfoResponse:
        """What the server computes, with which models and policies, and its limits.

        Raises:
            DqsError: as in the package's table.
        """
        request = server_info_pb2.GetServerInfoRequest()
        raw = self._call("get_server_info", request.SerializeToString(), self._timeouts.connect_s)
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
        replace: bool = False,
        classifiers: Iterable[str] | None = None,
        ordered: bool = True,
    ) -> Iterator[Verdict]:
        """Scores any number of documents over a stream.

        `documents` is read in the caller's thread, ahead of the verdicts by at
        most the window. Verdicts that have come are handed out before the next document is
        asked for; while one is waited for, nothing is handed out, and a message that is not
        full leaves with the next document. So a slow source has its verdicts a document or
        two late, and one that waits for a verdict never gets it: `AsyncClient` does both.
        Close the iterator to give up what is on its way.

        Args:
            documents: may be endless.
            policy: name of the policy that decides.
            corpus: where duplicates are looked for and kept documents remembered;
                None leaves duplication out.
            language: ISO 639-1 code of documents that have none; empty to detect it.
            degrade: while the server's index cannot be reached, score with duplication
                marked as unavailable instead of failing.
            replace: a document whose id the corpus has with another text takes its place;
                otherwise it is answered with ID_REUSED.
            classifiers: names of the classifiers that run (`info().classifiers`); None for all. The
                signals of the others are missing, as not asked for.
            ordered: verdicts in the order of `documents`; otherwise as they come.

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
        with contextlib.closing(batches):
            for scored in batches:
                yield from verdicts(scored)

    def score_batches(
        self,
        documents: Iterable[DocumentLike],
        *,
        policy: str = "default",
        corpus: str | None = "default",
        language: str = "",
        degrade: bool = False,
        replace: bool = False,
        classifiers: Iterable[str] | None = None,
        ordered: bool = True,
        timings: bool = False,
    ) -> Generator[scoring_pb2.ScoredDocuments, None, None]:
        """Like `score`, in the messages of the wire: less work per document.

        Args:
            documents: as for `score`.
            policy: as for `score`.
            corpus: as for `score`.
            language: as for `score`.
            degrade: as for `score`.
            replace: as for `score`.
            classifiers: as for `score`.
            ordered: messages in the order of `documents`; within a message they are always.
            timings: has the server say where the time went and who scored, in `ScoredDocuments.timings`.

        Yields:
            Answers to some hundred documents at a time.

        Raises:
            DqsError: as in the package's table.
        """
        with self._turns:
            yield from self._stream(
                documents,
                score_options(
                    policy, corpus, degrade=degrade, replace=replace, timings=timings, classifiers=classifiers
                ),
                language,
                ordered,
            )

    def _stream(
        self, documents: Iterable[DocumentLike], options: scoring_pb2.ScoreOptions, language: str, ordered: bool
    ) -> Iterator[scoring_pb2.ScoredDocuments]:
        """The answers of `score_batches`, once it is this call's turn."""
        check_several(documents)
        exchange = Exchange(options, language, ordered, self._window, self._known_limits())
        route = Route(self._servers, self._timeouts.retry_s)
        stream = _Stream(route, exchange.receipts)
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
                stream.send(exchange.outgoing())
                if reads_on:
                    continue
                try:
                    responses = stream.wait(self._timeouts.answer_s)
                except grpc.RpcError as error:
                    stream.close()
                    time.sleep(route.pause_s(error))
                    exchange.send_again()
                    stream = _Stream(route, exchange.receipts)
                    continue
                route.answered()
                yield from exchange.receive(responses)
        except DqsError as error:
            error.request_id = error.request_id or route.request_id
            raise
        finally:
            # A call that is dropped without cancelling is never collected by gRPC.
            exchange.receipts.give_up()
            stream.close()

    def score_batch(
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
        """Scores a few documents in one call.

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
        raw = self._call("score_batch", request.SerializeToString(), self._timeouts.retry_s, timeout_s=timeout_s)
        return list(verdicts(parsed(scoring_pb2.ScoreBatchResponse, raw).scored))

    def create_corpus(
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
        raw = self._call("create_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        created: corpus_pb2.CreateCorpusResponse = parsed(corpus_pb2.CreateCorpusResponse, raw)
        return created

    def configure_corpus(
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
        raw = self._call("configure_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        changed: corpus_pb2.ConfigureCorpusResponse = parsed(corpus_pb2.ConfigureCorpusResponse, raw)
        return changed.options

    def list_corpora(self, *, timeout_s: float | None = None) -> list[corpus_pb2.CorpusEntry]:
        """All corpora of the caller, by name.

        Args:
            timeout_s: deadline of the call; None for the client's `answer_s`.

        Raises:
            DqsError: as in the package's table.
        """
        request = corpus_pb2.ListCorporaRequest().SerializeToString()
        raw = self._call("list_corpora", request, self._timeouts.retry_s, timeout_s=timeout_s)
        return list(parsed(corpus_pb2.ListCorporaResponse, raw).corpora)

    def corpus(
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
        raw = self._call("get_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        there: corpus_pb2.GetCorpusResponse = parsed(corpus_pb2.GetCorpusResponse, raw)
        return there

    def drop_corpus(
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
        raw = self._call("drop_corpus", request, self._timeouts.retry_s, timeout_s=timeout_s)
        dropped: corpus_pb2.DropCorpusResponse = parsed(corpus_pb2.DropCorpusResponse, raw)
        return dropped

    def delete_documents(
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
        for part in id_parts(ids, self._known_limits()):
            request = corpus_pb2.DeleteDocumentsRequest(corpus=corpus, ids=part).SerializeToString()
            raw = self._call("delete_documents", request, self._timeouts.retry_s, timeout_s=timeout_s)
            known += parsed(corpus_pb2.DeleteDocumentsResponse, raw).known
        if not rewrite_files:
            return corpus_pb2.DeleteDocumentsResponse(known=known)
        request = corpus_pb2.DeleteDocumentsRequest(corpus=corpus, rewrite_files=True).SerializeToString()
        raw = self._call("delete_documents", request, self._timeouts.retry_s, timeout_s=timeout_s)
        deleted: corpus_pb2.DeleteDocumentsResponse = parsed(corpus_pb2.DeleteDocumentsResponse, raw)
        deleted.known += known
        return deleted

    def find_documents(
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
        for part in id_parts(ids, self._known_limits()):
            request = corpus_pb2.FindDocumentsRequest(corpus=corpus, ids=part).SerializeToString()
            raw = self._call("find_documents", request, self._timeouts.retry_s, timeout_s=timeout_s)
            found += parsed(corpus_pb2.FindDocumentsResponse, raw).documents
        return found

    def export_corpus(self, corpus: str) -> Generator[corpus_pb2.ExportCorpusResponse, None, None]:
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
                for raw in call:
                    route.answered()
                    has_begun = True
                    yield parsed(corpus_pb2.ExportCorpusResponse, raw)
                return
            except grpc.RpcError as error:
                if has_begun:
                    raise failure_of(error, route.server.target, route.request_id).error from None
                time.sleep(route.pause_s(error))
            finally:
                call.cancel()

    def import_corpus(
        self, corpus: str, header: corpus_pb2.ExportHeader, documents: Iterable[corpus_pb2.StoredDocuments]
    ) -> corpus_pb2.ImportCorpusResponse:
        """Makes a corpus of what `export_corpus` has given.

        A call that breaks may be repeated from the beginning of the same export: what is there already
        stays. They count as kept now.

        Args:
            corpus: name of the new corpus.
            header: of the export.
            documents: of the export, as fast as the server takes them; read in a thread of gRPC's.

        Raises:
            CorpusMismatch: there is a corpus of that name with other documents, or this server cannot read them.
            DqsError: as in the package's table.
        """
        self._known_limits()  # so that a server which is not there yet is waited for
        requests = ImportRequests(corpus, header, documents)
        route = Route(self._servers, 0.0)
        call = route.server.import_corpus.future(iter(requests), metadata=route.metadata())
        requests.call.set_result(call)
        try:
            imported: corpus_pb2.ImportCorpusResponse = parsed(corpus_pb2.ImportCorpusResponse, call.result())
            return imported
        except grpc.FutureCancelledError:
            raise requests.failure or closed() from None
        except grpc.RpcError as error:
            raise requests.failure or failure_of(error, route.server.target, route.request_id).error from None
        finally:
            call.cancel()

    def _known_limits(self) -> server_info_pb2.Limits:
        return self._limits or self.info().limits

    def _call(self, method: str, request: bytes, retry_s: float, timeout_s: float | None = None) -> bytes:
        """A unary call, repeated while that is safe and may help."""
        limit_s = timeout_s if timeout_s is not None else self._timeouts.answer_s
        check_time("timeout_s", limit_s)
        route = Route(self._servers, min(retry_s, limit_s))
        deadline_s = time.monotonic() + limit_s
        while True:
            call = getattr(route.server, method)
            try:
                raw: bytes = call(request, timeout=max(0.0, deadline_s - time.monotonic()), metadata=route.metadata())
            except grpc.RpcError as error:
                pause_s = route.pause_s(error)
                time.sleep(max(0.0, min(pause_s, deadline_s - time.monotonic())))
            else:
                route.answered()
                return raw


class _Turns:
    """Lets so many calls in at a time, the others in the order in which they came. Thread-safe.

    Args:
        places: how many.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._places = places
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if self._places:
                self._places -= 1
                return
            turn = threading.Event()
            self._waiting.append(turn)
        try:
            turn.wait()
        except BaseException:  # such as KeyboardInterrupt
            with self._lock:
                is_waiting = turn in self._waiting
                if is_waiting:
                    self._waiting.remove(turn)
            if not is_waiting:
                self._leave()
            raise

    def __exit__(self, *error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._places += 1


class _Stream:
    """A ScoreStream call with a thread that reads it, so that waiting for answers can time out.

    Answers are read and acknowledged as they come, however slowly they are used.

    Args:
        route: where to, with what.
        receipts: notes the answers.
    """

    def __init__(self, route: Route, receipts: Receipts) -> None:
        self._receipts = receipts
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        """Encoded requests; an empty one has what is due told, None ends the requests."""
        self._inbox: queue.SimpleQueue[scoring_pb2.ScoreStreamResponse | Exception] = queue.SimpleQueue()
        self._ended: Exception | None = None
        # gRPC takes requests from the iterator in a thread of its own.
        self._call = route.server.score_stream(self._requests(), metadata=route.metadata())
        self._reader = threading.Thread(target=self._read, name="dqs-client-read", daemon=True)
        self._reader.start()

    def _requests(self) -> Iterator[bytes]:
        has_begun = False
        while True:
            request: bytes | None
            is_late = False
            try:
                request = self._outbox.get(timeout=ACKNOWLEDGE_AFTER_S if self._receipts.is_due else None)
            except queue.Empty:
                request, is_late = b"", True
            has_begun = has_begun or bool(request)
            # The first message names the stream; before it nothing can be acknowledged.
            if has_begun and (request != b"" or is_late or self._receipts.is_urgent):
                encoded = (request or b"") + self._receipts.take()
                if encoded:
                    yield encoded
            if request is None:
                return

    def _read(self) -> None:
        try:
            for raw in self._call:
                response = parsed(scoring_pb2.ScoreStreamResponse, raw)
                # First, because it makes room for what is sent next.
                if self._receipts.received(response.sequence):
                    self._outbox.put(b"")
                self._inbox.put(response)
        except (grpc.RpcError, DqsError) as error:
            self._inbox.put(error)
        else:
            self._inbox.put(StreamEnded())

    @property
    def has_received(self) -> bool:
        """Whether `wait` would return at once."""
        return self._ended is not None or not self._inbox.empty()

    def send(self, requests: Iterable[bytes]) -> None:
        """Has encoded requests sent, as fast as the server takes them."""
        for request in requests:
            self._outbox.put(request)

    def wait(self, timeout_s: float) -> list[scoring_pb2.ScoreStreamResponse]:
        """Everything that has arrived, waiting for the first of it.

        Raises:
            grpc.RpcError: the call has ended, and all that came before has been returned.
            DeadlineExceeded: nothing came in time.
        """
        received: list[scoring_pb2.ScoreStreamResponse] = []
        while self._ended is None and not (received and self._inbox.empty()):
            try:
                response = self._inbox.get(timeout=timeout_s)
            except queue.Empty:
                raise no_answer(timeout_s) from None
            if isinstance(response, Exception):
                self._ended = response
            else:
                received.append(response)
        if self._ended is not None and not received:
            raise self._ended
        return received

    def close(self) -> None:
        """Ends the call, after the last acknowledgement where one is due."""
        is_due = self._receipts.is_due
        self._outbox.put(None)
        if is_due:
            self._reader.join(FAREWELL_S)
        self._call.cancel()
        self._reader.join()
