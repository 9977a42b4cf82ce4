"""The bulk client: iterables of documents in, verdicts out. Needs grpcio and protobuf only.

    from dqs import Client

    with Client("localhost:50051") as client:
        for verdict in client.score(open("texts.txt")):
            print(verdict.id, verdict.label.name, verdict.signals["perplexity"])

Documents travel on a stream in messages of some hundred kilobytes, several of
them on their way at a time. Memory is bounded by the window, so the input may
be endless. Several servers (`Client("a:50051,b:50051")`) are taken in turn, call
by call; one that does not answer is left out for a while. When a stream breaks,
it is opened again, at the same server first, and what was not answered is sent
again. A server that is reached again keeps what it had read and scores nothing
twice; any other may, which is safe, because the service knows a document by its
corpus, id and text. The first failure in a row is logged as a warning under
`dqs.client`, once in 10 s for all calls of a client.

A document that cannot be scored is a verdict with `error`; what concerns the
call raises one of these, all of them `DqsError`, with the call's `request_id`
by which the server's log can be searched:

    status               reason              raises             retried before
    INVALID_ARGUMENT     POLICY              PolicyError        no
    INVALID_ARGUMENT     REQUEST, none       RequestError       no
    FAILED_PRECONDITION  CORPUS_MISMATCH     CorpusMismatch     no
    NOT_FOUND            CORPUS_NOT_FOUND    CorpusNotFound     no
    FAILED_PRECONDITION  CONFIG, MODEL, none ConfigError        no
    RESOURCE_EXHAUSTED   OVERLOADED          Overloaded         yes
    RESOURCE_EXHAUSTED   none                RequestError       no (a message over the limit)
    UNAUTHENTICATED      any                 Unauthenticated    no
    PERMISSION_DENIED    any                 PermissionDenied   no
    UNAVAILABLE          INDEX_UNAVAILABLE   IndexUnavailable   yes
    UNAVAILABLE          UNAVAILABLE, none   Unavailable        yes (not where TLS can never succeed)
    CANCELLED            none                Unavailable        yes
    DEADLINE_EXCEEDED    any                 DeadlineExceeded   no
    UNIMPLEMENTED        none                RequestError       no
    any other            any                 InternalError      no

This package knows nothing of scoring, files or settings.
"""

from __future__ import annotations

from dqs.client._documents import DocumentLike
from dqs.client._options import Timeouts, Tls, Window
from dqs.client._verdicts import verdicts
from dqs.client.aio import AsyncClient
from dqs.client.sync import Client

__all__ = ["AsyncClient", "Client", "DocumentLike", "Timeouts", "Tls", "Window", "verdicts"]
