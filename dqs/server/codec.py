"""Wire messages to documents, results to wire messages.

Requests arrive as raw bytes and are parsed here, so that a malformed one is an
error of the caller's (`RequestError`) and not the UNKNOWN status that gRPC
gives when its own deserializer fails. Scores leave as one matrix per response,
copied in bulk: no Python object is made per document and signal.

This module knows nothing of gRPC and never looks into a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from dqs.data import Documents, Missing
from dqs.errors import DocumentError, RequestError
from dqs.pipeline import DEFAULT_TENANT
from dqs.scorer import Direction, Signal
from dqs.server import wire
from dqs.v1 import corpus_pb2, decision_pb2, scoring_pb2, server_info_pb2

if TYPE_CHECKING:
    from dqs.pipeline import ModelSet, Pipeline, Results
    from dqs.policy import Policy
    from dqs.settings import Settings

_DIRECTIONS: Mapping[Direction, server_info_pb2.Direction] = MappingProxyType(
    {
        Direction.HIGHER_IS_WORSE: server_info_pb2.DIRECTION_HIGHER_IS_WORSE,
        Direction.LOWER_IS_WORSE: server_info_pb2.DIRECTION_LOWER_IS_WORSE,
        Direction.NEUTRAL: server_info_pb2.DIRECTION_NEUTRAL,
    }
)
_STREAM_ID = re.compile(r"[!-~]{16,64}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests must keep to.

    Attributes:
        max_message_bytes: largest encoded message.
        max_batch_documents: most documents in one message.
        max_document_bytes: longest text of one document.
        stream_window_documents: most unanswered documents of one stream before it is read no further.
        stream_window_bytes: most unanswered bytes of text of one stream before it is read no further.
        max_pending_bytes: most bytes of text without an answer over all calls.
        max_pending_documents: most documents without an answer over all calls.
        tenant_max_pending_bytes: most bytes of text without an answer over the calls of one tenant.
        tenant_max_pending_documents: most documents without an answer over the calls of one tenant.
        max_streams: most open streams.
        tenant_max_streams: most open streams of one tenant.
        max_calls: most open unary calls.
        stream_max_age_s: after this time a stream is asked to reopen, in seconds; 0 for never.
        stream_resume_s: so long a broken stream's answers are kept, in seconds.
        batch_bytes: bytes of text that are scored together.
        batch_documents: most documents that are scored together.
        batch_wait_ms: how long a document waits for others, in milliseconds.
    """

    max_message_bytes: int
    max_batch_documents: int
    max_document_bytes: int
    stream_window_documents: int
    stream_window_bytes: int
    max_pending_bytes: int
    max_pending_documents: int
    tenant_max_pending_bytes: int
    tenant_max_pending_documents: int
    max_streams: int
    tenant_max_streams: int
    max_calls: int
    stream_max_age_s: float
    stream_resume_s: float
    batch_bytes: int
    batch_documents: int
    batch_wait_ms: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that settings ask for, under the same names."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Options:
    """How documents of a call are scored; calls with equal options share batches.

    Attributes:
        policy: name of the policy.
        corpus: where duplicates are looked for; None where they are not.
        degrade: score without duplication while the index cannot be reached, instead of failing.
        timings: say where the time went, and who scored.
        replace: documents take the place of others with their id.
        tenant: whose call it is.
        classifiers: names of the classifiers that run; None for all.
    """

    policy: str = "default"
    corpus: str | None = "default"
    degrade: bool = False
    timings: bool = False
    replace: bool = False
    tenant: str = DEFAULT_TENANT
    classifiers: frozenset[str] | None = None


DEFAULT_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed request.

    Attributes:
        options: None where the message has none.
        sequence: sequence number of a stream's message, 0 in a unary request.
        documents: what it asks about.
        text_bytes: length of all texts together.
        stream_id: names the stream beyond its connection; "" where the message does not.
        acknowledged: the client has every answer up to this sequence number.
    """

    options: Options | None
    sequence: int
    documents: Documents
    text_bytes: int
    stream_id: str = ""
    acknowledged: int = 0

    @property
    def only_acknowledges(self) -> bool:
        """Whether it asks nothing and is not to be answered."""
        return self.acknowledged > 0 and not self.sequence and not self.documents


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive answers, a part of those to a request.

    Attributes:
        start: first of them in `results`.
        stop: past the last of them.
        outcome: where they are, or why scoring failed.
        queue_s: how long the documents waited for their batch to leave, in seconds.
    """

    start: int
    stop: int
    outcome: Results | DocumentError
    queue_s: float = 0.0


def parse_batch_request(raw: bytes, limits: Limits, tenant: str = DEFAULT_TENANT) -> Request:
    """Parses a ScoreBatchRequest.

    Args:
        raw: the encoded message.
        limits: what it must keep to.
        tenant: whose call it is.

    Returns:
        The request, with options.

    Raises:
        RequestError: it is malformed or breaks a limit of the call.
    """
    message = scoring_pb2.ScoreBatchRequest()
    _parse(message, raw)
    documents = _documents(message.documents, limits)
    return Request(_options(message.options, tenant), 0, documents, documents.text_bytes)


def parse_stream_request(raw: bytes, limits: Limits, tenant: str = DEFAULT_TENANT) -> Request:
    """Parses a ScoreStreamRequest.

    Args:
        raw: the encoded message.
        limits: what it must keep to.
        tenant: whose call it is.

    Returns:
        The request; its options are None where the message has none.

    Raises:
        RequestError: it is malformed or breaks a limit of the call.
    """
    message = scoring_pb2.ScoreStreamRequest()
    _parse(message, raw)
    options = _options(message.options, tenant) if message.HasField("options") else None
    stream_id = message.stream_id
    if stream_id and not _STREAM_ID.fullmatch(stream_id):
        raise RequestError(
            "The stream's id is not 16 to 64 printable ASCII characters: send random ones, or none.", field="stream_id"
        )
    documents = _documents(message.documents, limits)
    return Request(options, message.sequence, documents, documents.text_bytes, stream_id, message.acknowledged)


def parse_server_info_request(raw: bytes) -> None:
    """Checks a GetServerInfoRequest, which has no fields.

    Raises:
        RequestError: it is malformed.
    """
    _parse(server_info_pb2.GetServerInfoRequest(), raw)


def parse_drop_corpus_request(raw: bytes) -> str:
    """Parses a DropCorpusRequest.

    Args:
        raw: the encoded message.

    Returns:
        Name of the corpus.

    Raises:
        RequestError: it is malformed or names no corpus.
    """
    message = corpus_pb2.DropCorpusRequest()
    _parse(message, raw)
    if not message.corpus:
        raise RequestError("The request names no corpus: name the one to drop.", field="corpus")
    return message.corpus


def _parse(
    message: (
        scoring_pb2.ScoreBatchRequest
        | scoring_pb2.ScoreStreamRequest
        | server_info_pb2.GetServerInfoRequest
        | corpus_pb2.DropCorpusRequest
    ),
    raw: bytes,
) -> None:
    try:
        message.ParseFromString(raw)
    except DecodeError:
        # The parser's own words may quote the message.
        raise RequestError(
            f"The message is not a valid dqs.v1.{type(message).__name__}: encode it with the stubs"
            " of dqs.v1, and send text that may not be UTF-8 in the field `text` only."
        ) from None


def _options(message: scoring_pb2.ScoreOptions, tenant: str) -> Options:
    for field, enum in (
        ("deduplication", scoring_pb2.Deduplication),
        ("index_failure", scoring_pb2.IndexFailure),
    ):
        value = getattr(message, field)
        if value not in enum.values():
            raise RequestError(
                f"Options carry the unknown number {value} in {field}: use one of {', '.join(enum.keys())}.",
                field=f"options.{field}",
            )
    return Options(
        policy=message.policy or "default",
        corpus=None if message.deduplication == scoring_pb2.DEDUPLICATION_DISABLED else message.corpus or "default",
        degrade=message.index_failure == scoring_pb2.INDEX_FAILURE_DEGRADE,
        timings=message.timings,
        replace=message.replace,
        tenant=tenant,
        classifiers=frozenset(message.classifiers.names) if message.HasField("classifiers") else None,
    )


def _documents(messages: Sequence[scoring_pb2.Document], limits: Limits) -> Documents:
    if len(messages) > limits.max_batch_documents:
        raise RequestError(
            f"The message has {len(messages)} documents and at most {limits.max_batch_documents}"
            " are allowed: send them in several.",
            field="documents",
        )
    held = list(messages)  # each look into `messages` makes its Python objects anew
    return Documents([m.id for m in held], [m.text for m in held], [m.language for m in held])


class Encoder:
    """Writes answers into responses, with the columns of one pipeline.

    Args:
        signals: the signals that responses carry, in the order of their columns.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        self._names = tuple(signal.name for signal in signals)
        self._signals: bytes = scoring_pb2.ScoredDocuments(
            signals=self._names, signal_versions=[signal.version for signal in signals]
        ).SerializeToString()
        self._writer = wire.ResultWriter()
        self._named: tuple[ModelSet, bytes] | None = None
        """The models named last, and how they are written."""

    def batch_response(self, request: Request, pieces: Sequence[Piece]) -> bytes:
        """Encodes a ScoreBatchResponse.

        Args:
            request: what is answered.
            pieces: answers to `request.documents`, all of them, in their order.

        Returns:
            The encoded message.
        """
        timings = request.options is not None and request.options.timings
        return wire.delimited(
            scoring_pb2.ScoreBatchResponse.SCORED_FIELD_NUMBER, *self._scored(request, pieces, timings)
        )

    def stream_response(
        self, request: Request, pieces: Sequence[Piece], acknowledged: int, *, timings: bool = False
    ) -> bytes:
        """Encodes a ScoreStreamResponse.

        Args:
            request: what is answered.
            pieces: answers to `request.documents`, all of them, in their order.
            acknowledged: highest sequence number up to which everything has been answered.
            timings: whether the stream's options ask for timings; those of `request` are
                None but in the first message.

        Returns:
            The encoded message.
        """
        numbers: bytes = scoring_pb2.ScoreStreamResponse(
            sequence=request.sequence, acknowledged=acknowledged
        ).SerializeToString()
        return numbers + wire.delimited(
            scoring_pb2.ScoreStreamResponse.SCORED_FIELD_NUMBER, *self._scored(request, pieces, timings)
        )

    def _scored(self, request: Request, pieces: Sequence[Piece], timings: bool) -> list[bytes]:
        """The encoded fields of a ScoredDocuments."""
        results: list[bytes] = []
        values: list[bytes] = []
        missing: list[bytes] = []
        policy = ""
        for piece in pieces:
            outcome = piece.outcome
            if isinstance(outcome, DocumentError):
                failed = request.documents.ids[len(results) : len(results) + piece.stop - piece.start]
                results += [wire.error_result(name, outcome) for name in failed]
                shape = (len(failed), len(self._names))
                values.append(np.full(shape, np.nan, dtype="<f4").tobytes())
                missing.append(bytes(len(failed) * len(self._names)))
            else:
                policy = outcome.policy
                results += self._writer.results(outcome, piece.start, piece.stop)
                all_values, all_missing = outcome.rows(self._names)
                values.append(all_values[piece.start : piece.stop].astype("<f4", copy=False).tobytes())
                missing.append(all_missing[piece.start : piece.stop].tobytes())
        fields = [
            self._signals,
            *results,
            wire.delimited(scoring_pb2.ScoredDocuments.VALUES_FIELD_NUMBER, *values),
            scoring_pb2.ScoredDocuments(policy=policy).SerializeToString(),
        ]
        if any(len(part) != part.count(0) for part in missing):
            # Codes are below 128, so that each is its own varint.
            fields.append(wire.delimited(scoring_pb2.ScoredDocuments.MISSING_FIELD_NUMBER, *missing))
        if timings:
            fields += map(_timing, pieces)
        fields += self._model_runs(pieces)
        return fields

    def _model_runs(self, pieces: Sequence[Piece]) -> list[bytes]:
        """Fields `model_runs`: pieces that the same models answered are one run."""
        runs: list[tuple[ModelSet | None, int]] = []
        for piece in pieces:
            models = None if isinstance(piece.outcome, DocumentError) else piece.outcome.models
            count = piece.stop - piece.start
            if runs and runs[-1][0] == models:
                count += runs.pop()[1]
            runs.append((models, count))
        encoded: list[bytes] = []
        for models, count in runs:
            head = scoring_pb2.ModelRun(documents=count).SerializeToString()
            encoded.append(
                wire.delimited(scoring_pb2.ScoredDocuments.MODEL_RUNS_FIELD_NUMBER, head, self._models_of(models))
            )
        return encoded

    def _models_of(self, models: ModelSet | None) -> bytes:
        """Fields `models` and `digest` of a ModelRun."""
        if models is None:
            return b""
        if self._named is None or self._named[0] != models:
            names = [model.label for model in models.models]
            self._named = (models, scoring_pb2.ModelRun(models=names, digest=models.digest).SerializeToString())
        return self._named[1]


def _timing(piece: Piece) -> bytes:
    count, outcome = piece.stop - piece.start, piece.outcome
    if isinstance(outcome, DocumentError):
        return wire.timing(count, piece.queue_s, {}, "")
    return wire.timing(count, piece.queue_s, outcome.seconds, outcome.replica)


def encode_server_info(pipeline: Pipeline, limits: Limits, version: str) -> bytes:
    """Encodes a GetServerInfoResponse.

    Args:
        pipeline: what scores.
        limits: what requests must keep to.
        version: of the dqs distribution.

    Returns:
        The encoded message.
    """
    response = server_info_pb2.GetServerInfoResponse(
        version=version,
        limits=server_info_pb2.Limits(
            max_message_bytes=limits.max_message_bytes,
            max_batch_documents=limits.max_batch_documents,
            max_document_bytes=limits.max_document_bytes,
            stream_window_documents=limits.stream_window_documents,
            stream_window_bytes=limits.stream_window_bytes,
            max_pending_bytes=limits.max_pending_bytes,
            max_pending_documents=limits.max_pending_documents,
            tenant_max_pending_bytes=limits.tenant_max_pending_bytes,
            tenant_max_pending_documents=limits.tenant_max_pending_documents,
            max_streams=limits.max_streams,
            tenant_max_streams=limits.tenant_max_streams,
            max_calls=limits.max_calls,
            stream_max_age_seconds=limits.stream_max_age_s,
            stream_resume_seconds=limits.stream_resume_s,
            batch_bytes=limits.batch_bytes,
            batch_documents=limits.batch_documents,
            batch_wait_milliseconds=limits.batch_wait_ms,
        ),
    )
    response.classifiers.extend(pipeline.executor.classifiers)
    response.model_refusal = pipeline.swaps.refusal
    for signal in pipeline.signals:
        response.signals.add(
            name=signal.name,
            unit=signal.unit,
            low=signal.low,
            high=signal.high,
            direction=_DIRECTIONS[signal.direction],
            description=signal.description,
            version=signal.version,
        )
    for model in pipeline.models:
        response.models.add(
            name=model.name,
            version=model.version,
            kind=model.kind,
            languages=model.languages,
            digest=model.digest,
        )
    for policy in pipeline.policies.values():
        _add_policy(response, policy)
    encoded: bytes = response.SerializeToString()
    return encoded


def _add_policy(response: server_info_pb2.GetServerInfoResponse, policy: Policy) -> None:
    added = response.policies.add(name=policy.name, version=policy.version, description=policy.description)
    for rule in policy.rules:
        added_rule = added.rules.add(
            id=rule.id,
            signal=rule.signal,
            operator=wire.OPERATORS[rule.operator],
            threshold=rule.threshold,
            languages=sorted(rule.languages),
            min_characters=rule.min_characters,
            label=decision_pb2.Label.ValueType(rule.label),
        )
        for missing, label in sorted(rule.missing.items()):
            if missing != Missing.PRESENT:
                added_rule.missing.add(
                    reason=decision_pb2.MissingReason.ValueType(missing),
                    label=decision_pb2.Label.ValueType(label),
                )
