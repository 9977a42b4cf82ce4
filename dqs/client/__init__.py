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
    UNAUTHENTICATED      any                 Unauthenticated    no
    PERMISSION_DENIED    any                 PermissionDenied   no
    UNAVAILABLE          INDEX_UNAVAILABLE   IndexUnavailable   yes
    UNAVAILABLE          UNAVAILABLE, none   Unavailable        yes
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
