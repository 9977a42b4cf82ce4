from dqs.v1 import decision_pb2 as _decision_pb2
from dqs.v1 import server_info_pb2 as _server_info_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Deduplication(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEDUPLICATION_UNSPECIFIED: _ClassVar[Deduplication]
    DEDUPLICATION_ENABLED: _ClassVar[Deduplication]
    DEDUPLICATION_DISABLED: _ClassVar[Deduplication]

class IndexFailure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_FAILURE_UNSPECIFIED: _ClassVar[IndexFailure]
    INDEX_FAILURE_FAIL: _ClassVar[IndexFailure]
    INDEX_FAILURE_DEGRADE: _ClassVar[IndexFailure]

class DocumentErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOCUMENT_ERROR_CODE_UNSPECIFIED: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_INVALID_UTF8: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_TOO_LARGE: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_ID_REUSED: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_INVALID_ID: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_MALFORMED_ROW: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_INDEX_UNAVAILABLE: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_INTERNAL: _ClassVar[DocumentErrorCode]
    DOCUMENT_ERROR_CODE_INVALID_LANGUAGE: _ClassVar[DocumentErrorCode]
DEDUPLICATION_UNSPECIFIED: Deduplication
DEDUPLICATION_ENABLED: Deduplication
DEDUPLICATION_DISABLED: Deduplication
INDEX_FAILURE_UNSPECIFIED: IndexFailure
INDEX_FAILURE_FAIL: IndexFailure
INDEX_FAILURE_DEGRADE: IndexFailure
DOCUMENT_ERROR_CODE_UNSPECIFIED: DocumentErrorCode
DOCUMENT_ERROR_CODE_INVALID_UTF8: DocumentErrorCode
DOCUMENT_ERROR_CODE_TOO_LARGE: DocumentErrorCode
DOCUMENT_ERROR_CODE_ID_REUSED: DocumentErrorCode
DOCUMENT_ERROR_CODE_INVALID_ID: DocumentErrorCode
DOCUMENT_ERROR_CODE_MALFORMED_ROW: DocumentErrorCode
DOCUMENT_ERROR_CODE_INDEX_UNAVAILABLE: DocumentErrorCode
DOCUMENT_ERROR_CODE_INTERNAL: DocumentErrorCode
DOCUMENT_ERROR_CODE_INVALID_LANGUAGE: DocumentErrorCode

class Document(_message.Message):
    __slots__ = ("id", "text", "language", "source")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: bytes
    language: str
    source: str
    def __init__(self, id: _Optional[str] = ..., text: _Optional[bytes] = ..., language: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class ScoreOptions(_message.Message):
    __slots__ = ("policy", "corpus", "deduplication", "index_failure", "timings", "replace", "classifiers")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FAILURE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIERS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    corpus: str
    deduplication: Deduplication
    index_failure: IndexFailure
    timings: bool
    replace: bool
    classifiers: ClassifierChoice
    def __init__(self, policy: _Optional[str] = ..., corpus: _Optional[str] = ..., deduplication: _Optional[_Union[Deduplication, str]] = ..., index_failure: _Optional[_Union[IndexFailure, str]] = ..., timings: bool = ..., replace: bool = ..., classifiers: _Optional[_Union[ClassifierChoice, _Mapping]] = ...) -> None: ...

class ClassifierChoice(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class DocumentError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: DocumentErrorCode
    message: str
    def __init__(self, code: _Optional[_Union[DocumentErrorCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("id", "label", "language", "reasons", "duplicate_of", "toxicity_span_start", "toxicity_span_end", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_OF_FIELD_NUMBER: _ClassVar[int]
    TOXICITY_SPAN_START_FIELD_NUMBER: _ClassVar[int]
    TOXICITY_SPAN_END_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    label: _decision_pb2.Label
    language: str
    reasons: _containers.RepeatedCompositeFieldContainer[_decision_pb2.Reason]
    duplicate_of: str
    toxicity_span_start: int
    toxicity_span_end: int
    error: DocumentError
    def __init__(self, id: _Optional[str] = ..., label: _Optional[_Union[_decision_pb2.Label, str]] = ..., language: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[_decision_pb2.Reason, _Mapping]]] = ..., duplicate_of: _Optional[str] = ..., toxicity_span_start: _Optional[int] = ..., toxicity_span_end: _Optional[int] = ..., error: _Optional[_Union[DocumentError, _Mapping]] = ...) -> None: ...

class ScoredDocuments(_message.Message):
    __slots__ = ("results", "signals", "signal_versions", "values", "missing", "policy", "timings", "model_runs")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_RUNS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Result]
    signals: _containers.RepeatedScalarFieldContainer[str]
    signal_versions: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    missing: _containers.RepeatedScalarFieldContainer[_decision_pb2.MissingReason]
    policy: str
    timings: _containers.RepeatedCompositeFieldContainer[Timing]
    model_runs: _containers.RepeatedCompositeFieldContainer[ModelRun]
    def __init__(self, results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., signals: _Optional[_Iterable[str]] = ..., signal_versions: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., missing: _Optional[_Iterable[_Union[_decision_pb2.MissingReason, str]]] = ..., policy: _Optional[str] = ..., timings: _Optional[_Iterable[_Union[Timing, _Mapping]]] = ..., model_runs: _Optional[_Iterable[_Union[ModelRun, _Mapping]]] = ...) -> None: ...

class ModelRun(_message.Message):
    __slots__ = ("documents", "models", "digest")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    documents: int
    models: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    def __init__(self, documents: _Optional[int] = ..., models: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("documents", "queue_seconds", "score_seconds", "index_seconds", "policy_seconds", "replica")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INDEX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    documents: int
    queue_seconds: float
    score_seconds: float
    index_seconds: float
    policy_seconds: float
    replica: str
    def __init__(self, documents: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., score_seconds: _Optional[float] = ..., index_seconds: _Optional[float] = ..., policy_seconds: _Optional[float] = ..., replica: _Optional[str] = ...) -> None: ...

class ScoreBatchRequest(_message.Message):
    __slots__ = ("options", "documents")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    options: ScoreOptions
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    def __init__(self, options: _Optional[_Union[ScoreOptions, _Mapping]] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ...) -> None: ...

class ScoreBatchResponse(_message.Message):
    __slots__ = ("scored",)
    SCORED_FIELD_NUMBER: _ClassVar[int]
    scored: ScoredDocuments
    def __init__(self, scored: _Optional[_Union[ScoredDocuments, _Mapping]] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("options", "sequence", "documents", "stream_id", "acknowledged")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    options: ScoreOptions
    sequence: int
    documents: _containers.RepeatedCompositeFieldContainer[Document]
    stream_id: str
    acknowledged: int
    def __init__(self, options: _Optional[_Union[ScoreOptions, _Mapping]] = ..., sequence: _Optional[int] = ..., documents: _Optional[_Iterable[_Union[Document, _Mapping]]] = ..., stream_id: _Optional[str] = ..., acknowledged: _Optional[int] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("sequence", "acknowledged", "scored")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    acknowledged: int
    scored: ScoredDocuments
    def __init__(self, sequence: _Optional[int] = ..., acknowledged: _Optional[int] = ..., scored: _Optional[_Union[ScoredDocuments, _Mapping]] = ...) -> None: ...
