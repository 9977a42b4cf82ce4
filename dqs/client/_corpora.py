"""What calls about corpora have in common in both clients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from dqs.v1 import corpus_pb2, server_info_pb2

_PART_BYTES = 1 << 18
"""Ids in one message, about; less than the least limit of a server."""
_PART_IDS = 4096


def create_request(
    corpus: str, threshold: float | None, normaliser: str, options: corpus_pb2.CorpusOptions | None
) -> bytes:
    """An encoded CreateCorpusRequest."""
    request = corpus_pb2.CreateCorpusRequest(
        corpus=corpus, threshold=threshold, normaliser=normaliser, options=options or corpus_pb2.CorpusOptions()
    )
    encoded: bytes = request.SerializeToString()
    return encoded


def id_parts(ids: Iterable[str], limits: server_info_pb2.Limits) -> Iterator[list[str]]:
    """Ids in parts that fit a message each; at least one part.

    Args:
        ids: any number, read as they are needed.
        limits: of the server.
    """
    most = min(_PART_IDS, limits.max_batch_documents)
    part: list[str] = []
    part_bytes = 0
    is_first = True
    for document in ids:
        part.append(document)
        part_bytes += 4 * len(document) + 8
        if len(part) == most or part_bytes >= _PART_BYTES:
            yield part
            part, part_bytes, is_first = [], 0, False
    if part or is_first:
        yield part


def first_request(corpus: str, header: corpus_pb2.ExportHeader) -> bytes:
    """The encoded first request of an import."""
    first = corpus_pb2.ImportHeader(corpus=corpus, exported=header)
    encoded: bytes = corpus_pb2.ImportCorpusRequest(header=first).SerializeToString()
    return encoded


def last_request(documents: int) -> bytes:
    """The encoded last request of an import.

    Args:
        documents: how many were sent.
    """
    end = corpus_pb2.ImportEnd(documents=documents)
    encoded: bytes = corpus_pb2.ImportCorpusRequest(end=end).SerializeToString()
    return encoded


class ImportRequests:
    """The encoded requests of an import, as gRPC takes them; keeps what the caller's iteration raises.

    Args:
        corpus: name of the new corpus.
        header: as exported.
        documents: as exported.
    """

    def __init__(
        self, corpus: str, header: corpus_pb2.ExportHeader, documents: Iterable[corpus_pb2.StoredDocuments]
    ) -> None:
        self._corpus = corpus
        self._header = header
        self._documents = documents
        self.failure: BaseException | None = None
        self.call: Future[Any] = Future()
        """The call that takes them; an iteration that fails cancels it."""

    def __iter__(self) -> Iterator[bytes]:
        """The requests, read as fast as the server takes them."""
        yield first_request(self._corpus, self._header)
        sent = 0
        try:
            for piece in self._documents:
                sent += len(piece.ids)
                yield corpus_pb2.ImportCorpusRequest(documents=piece).SerializeToString()
        except GeneratorExit:
            raise
        except BaseException as error:
            # gRPC would log it, and end the call with a status that says nothing of it.
            self.failure = error
            self.call.result().cancel()
        else:
            yield last_request(sent)
