"""Messages of CorpusService to values of `dqs.index.corpora`, and back. Knows nothing of gRPC.

The service uses it on one end and the commands on the other.
"""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from dqs.errors import RequestError
from dqs.index.corpora import (
    Counters,
    Description,
    Entry,
    ExportHeader,
    FileRewrite,
    Found,
    Memory,
    Rewriting,
    State,
    StoredDocuments,
    parameters_as_stored,
    read_stored_parameters,
)
from dqs.index.layout import CorpusOptions, decoded_id
from dqs.index.signature import SignatureParameters
from dqs.v1 import corpus_pb2

_Kind = TypeVar("_Kind")

_OPTION_FIELDS = MappingProxyType(
    {
        "window_documents": "window_documents",
        "window_s": "window_seconds",
        "retry_s": "retry_seconds",
        "retry_documents": "retry_documents",
        "line_slots": "line_slots",
    }
)
"""Names of options here -> names on the wire."""

_REWRITES = MappingProxyType(
    {
        FileRewrite.STARTED: corpus_pb2.FILE_REWRITE_STARTED,
        FileRewrite.BUSY: corpus_pb2.FILE_REWRITE_LATER,
        FileRewrite.NO_FILE: corpus_pb2.FILE_REWRITE_NO_FILE,
        FileRewrite.REFUSED: corpus_pb2.FILE_REWRITE_REFUSED,
    }
)
_STATES = MappingProxyType(
    {
        State.UNKNOWN: corpus_pb2.DOCUMENT_STATE_UNKNOWN,
        State.KEPT: corpus_pb2.DOCUMENT_STATE_KEPT,
        State.EXACT_DUPLICATE: corpus_pb2.DOCUMENT_STATE_EXACT_DUPLICATE,
        State.NEAR_DUPLICATE: corpus_pb2.DOCUMENT_STATE_NEAR_DUPLICATE,
        State.NOT_KEPT: corpus_pb2.DOCUMENT_STATE_NOT_KEPT,
    }
)


def parse(kind: type[_Kind], raw: bytes) -> _Kind:
    """A request.

    Raises:
        RequestError: it is malformed.
    """
    message: Any = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        raise RequestError(
            f"The message is not a valid dqs.v1.{kind.__name__}: encode it with the stubs of dqs.v1."
        ) from None
    parsed: _Kind = message
    return parsed


def corpus_name(message: Any) -> str:
    """The name of the corpus in a request.

    Raises:
        RequestError: there is none.
    """
    name: str = message.corpus
    if not name:
        raise RequestError("The request names no corpus: name one.", field="corpus")
    return name


def encode_parameters(parameters: SignatureParameters) -> corpus_pb2.CorpusParameters:
    """Parameters on the wire."""
    return corpus_pb2.CorpusParameters(**parameters_as_stored(parameters))


def decode_parameters(what: str, message: corpus_pb2.CorpusParameters) -> SignatureParameters:
    """Parameters from the wire.

    Args:
        what: whose they are, for the error.
        message: on the wire.

    Raises:
        CorpusMismatch: this version cannot use them.
    """
    return read_stored_parameters(what, {one.name: getattr(message, one.name) for one in message.DESCRIPTOR.fields})


def encode_options(options: CorpusOptions) -> corpus_pb2.CorpusOptions:
    """All options on the wire."""
    return corpus_pb2.CorpusOptions(**{wire: getattr(options, name) or 0 for name, wire in _OPTION_FIELDS.items()})


def encode_changes(changes: dict[str, Any]) -> corpus_pb2.CorpusOptions:
    """Some options on the wire, by their names here."""
    return corpus_pb2.CorpusOptions(**{_OPTION_FIELDS[name]: value for name, value in changes.items()})


def decode_changes(message: corpus_pb2.CorpusOptions) -> dict[str, Any]:
    """The options that a message names, by their names here."""
    return {name: getattr(message, wire) for name, wire in _OPTION_FIELDS.items() if message.HasField(wire)}


def decode_options(message: corpus_pb2.CorpusOptions) -> CorpusOptions:
    """All options from the wire.

    Raises:
        RequestError: a value is not allowed.
    """
    values = decode_changes(message)
    for name in ("window_documents", "window_s"):
        values[name] = values.get(name) or None
    try:
        return CorpusOptions(**values)
    except ValueError as error:
        raise RequestError(f"No corpus can have that: {error}.") from None


def encode_entry(entry: Entry) -> corpus_pb2.CorpusEntry:
    """An entry of a list on the wire."""
    return corpus_pb2.CorpusEntry(
        corpus=entry.corpus, documents=entry.documents, bytes=entry.bytes, created_seconds=entry.created_s
    )


def decode_entry(message: corpus_pb2.CorpusEntry) -> Entry:
    """An entry of a list from the wire."""
    return Entry(message.corpus, message.documents, message.bytes, message.created_seconds)


def encode_description(corpus: Description) -> corpus_pb2.GetCorpusResponse:
    """A corpus on the wire."""
    counters = corpus.counters
    response = corpus_pb2.GetCorpusResponse(
        corpus=corpus.corpus,
        parameters=encode_parameters(corpus.parameters),
        options=encode_options(corpus.options),
        created_seconds=corpus.created_s,
        documents=corpus.documents,
        sketched=corpus.sketched,
        retries=corpus.retries,
        buckets=corpus.buckets,
        lines=corpus.lines,
        line_slots=corpus.line_slots,
        counters=corpus_pb2.CorpusCounters(
            **{one.name: getattr(counters, one.name) for one in fields(Counters)}, hit_rate=counters.hit_rate
        ),
    )
    memory = corpus.memory
    if memory is not None:
        response.bytes.CopyFrom(
            corpus_pb2.CorpusBytes(
                **{one.name: getattr(memory, one.name) for one in fields(Memory)},
                total=memory.total,
                lsh_per_document_and_band=corpus.lsh_bytes_per_document_and_band,
            )
        )
    return response


def decode_description(message: corpus_pb2.GetCorpusResponse) -> Description:
    """A corpus from the wire.

    Raises:
        CorpusMismatch: this version cannot use its parameters.
    """
    return Description(
        message.corpus,
        decode_parameters(message.corpus, message.parameters),
        decode_options(message.options),
        message.created_seconds,
        message.documents,
        message.sketched,
        message.retries,
        message.buckets,
        message.lines,
        message.line_slots,
        Counters(**{one.name: getattr(message.counters, one.name) for one in fields(Counters)}),
        Memory(**{one.name: getattr(message.bytes, one.name) for one in fields(Memory)})
        if message.HasField("bytes")
        else None,
    )


def encode_rewriting(rewriting: Rewriting | None) -> dict[str, Any]:
    """The fields of a response that say what became of the files; None where nobody asked."""
    if rewriting is None:
        return {}
    return {"file_rewrite": _REWRITES[rewriting.outcome], "file_rewrite_message": rewriting.message}


def decode_rewriting(message: corpus_pb2.DropCorpusResponse | corpus_pb2.DeleteDocumentsResponse) -> Rewriting | None:
    """What became of the files, from the wire."""
    found = [outcome for outcome, wire in _REWRITES.items() if wire == message.file_rewrite]
    return Rewriting(found[0], message.file_rewrite_message) if found else None


def encode_found(found: Found) -> corpus_pb2.FoundDocument:
    """What is known of a document on the wire."""
    message = corpus_pb2.FoundDocument(id=found.id, state=_STATES[found.state], seconds=found.seconds)
    if found.duplicate_of is not None:
        # An id that came from a file may hold lone surrogates, which no string on the wire can.
        message.duplicate_of = found.duplicate_of.encode("utf-8", "replace").decode()
    return message


def decode_found(message: corpus_pb2.FoundDocument) -> Found:
    """What is known of a document, from the wire."""
    found = [state for state, wire in _STATES.items() if wire == message.state]
    return Found(message.id, found[0] if found else State.UNKNOWN, message.seconds, message.duplicate_of or None)


def encode_header(header: ExportHeader, version: str) -> corpus_pb2.ExportHeader:
    """The header of an export on the wire.

    Args:
        header: the header.
        version: of dqs.
    """
    return corpus_pb2.ExportHeader(
        parameters=encode_parameters(header.parameters),
        options=encode_options(header.options),
        export_id=header.export_id,
        dqs_version=version,
        documents=header.documents,
    )


def decode_header(what: str, message: corpus_pb2.ExportHeader) -> ExportHeader:
    """The header of an export from the wire.

    Args:
        what: whose it is, for the error.
        message: on the wire.

    Raises:
        RequestError: an option is not allowed, or the export has no id.
        CorpusMismatch: this version cannot use its parameters.
    """
    if not message.export_id or len(message.export_id) > 64:
        raise RequestError("The export has no id of 1 to 64 characters: export the corpus again.", field="export_id")
    return ExportHeader(
        decode_parameters(what, message.parameters),
        decode_options(message.options),
        message.export_id,
        message.documents,
    )


def encode_documents(documents: StoredDocuments) -> corpus_pb2.StoredDocuments:
    """Documents on the wire."""
    return corpus_pb2.StoredDocuments(
        ids=documents.ids,
        seconds=documents.seconds.tolist(),
        text_hashes=documents.text_hash.tobytes(),
        lines_seen=documents.lines_seen.tobytes(),
        has_sketch=documents.has_sketch.tobytes(),
        bands=documents.bands.tobytes(),
        sketches=documents.sketch.tobytes(),
    )


def decode_documents(message: corpus_pb2.StoredDocuments, parameters: SignatureParameters) -> StoredDocuments:
    """Documents from the wire.

    Raises:
        RequestError: columns do not fit together, or an id is not UTF-8.
    """
    n = len(message.ids)

    def matrix(data: bytes, width: int) -> Any:
        if len(data) != n * width:
            raise RequestError("The documents have columns of unlike length: send them as they were exported.")
        return np.frombuffer(data, dtype=np.uint8).reshape(n, width)

    documents = StoredDocuments(
        list(message.ids),
        np.array(message.seconds, dtype=np.uint32),
        matrix(message.text_hashes, 16),
        matrix(message.lines_seen, 1)[:, 0],
        matrix(message.has_sketch, 1)[:, 0] != 0,
        matrix(message.bands, 4 * parameters.bands),
        matrix(message.sketches, parameters.sketch_bytes),
    )
    try:
        for document in documents.ids:
            decoded_id(document)
    except UnicodeDecodeError:
        raise RequestError("The documents have an id that is not UTF-8: send them as they were exported.") from None
    documents.check(parameters)
    return documents
