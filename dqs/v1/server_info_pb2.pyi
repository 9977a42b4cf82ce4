from dqs.v1 import decision_pb2 as _decision_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTION_UNSPECIFIED: _ClassVar[Direction]
    DIRECTION_HIGHER_IS_WORSE: _ClassVar[Direction]
    DIRECTION_LOWER_IS_WORSE: _ClassVar[Direction]
    DIRECTION_NEUTRAL: _ClassVar[Direction]
DIRECTION_UNSPECIFIED: Direction
DIRECTION_HIGHER_IS_WORSE: Direction
DIRECTION_LOWER_IS_WORSE: Direction
DIRECTION_NEUTRAL: Direction

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "signals", "models", "policies", "limits", "classifiers", "model_refusal")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    version: str
    signals: _containers.RepeatedCompositeFieldContainer[Signal]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    limits: Limits
    classifiers: _containers.RepeatedScalarFieldContainer[str]
    model_refusal: str
    def __init__(self, version: _Optional[str] = ..., signals: _Optional[_Iterable[_Union[Signal, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., classifiers: _Optional[_Iterable[str]] = ..., model_refusal: _Optional[str] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("name", "unit", "low", "high", "direction", "description", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    low: float
    high: float
    direction: Direction
    description: str
    version: int
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., direction: _Optional[_Union[Direction, str]] = ..., description: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "kind", "languages", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    kind: str
    languages: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., kind: _Optional[str] = ..., languages: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "version", "description", "rules")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    description: str
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., description: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("id", "signal", "operator", "threshold", "languages", "label", "missing", "min_characters")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    MIN_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    signal: str
    operator: _decision_pb2.Operator
    threshold: float
    languages: _containers.RepeatedScalarFieldContainer[str]
    label: _decision_pb2.Label
    missing: _containers.RepeatedCompositeFieldContainer[MissingOutcome]
    min_characters: int
    def __init__(self, id: _Optional[str] = ..., signal: _Optional[str] = ..., operator: _Optional[_Union[_decision_pb2.Operator, str]] = ..., threshold: _Optional[float] = ..., languages: _Optional[_Iterable[str]] = ..., label: _Optional[_Union[_decision_pb2.Label, str]] = ..., missing: _Optional[_Iterable[_Union[MissingOutcome, _Mapping]]] = ..., min_characters: _Optional[int] = ...) -> None: ...

class MissingOutcome(_message.Message):
    __slots__ = ("reason", "label")
    REASON_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    reason: _decision_pb2.MissingReason
    label: _decision_pb2.Label
    def __init__(self, reason: _Optional[_Union[_decision_pb2.MissingReason, str]] = ..., label: _Optional[_Union[_decision_pb2.Label, str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_batch_documents", "max_document_bytes", "stream_window_documents", "stream_window_bytes", "max_pending_bytes", "max_pending_documents", "tenant_max_pending_bytes", "tenant_max_pending_documents", "max_streams", "tenant_max_streams", "max_calls", "stream_max_age_seconds", "stream_resume_seconds", "batch_bytes", "batch_documents", "batch_wait_milliseconds")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_DOCUMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PENDING_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    TENANT_MAX_PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    TENANT_MAX_PENDING_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    TENANT_MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    STREAM_MAX_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STREAM_RESUME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    BATCH_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_WAIT_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
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
    stream_max_age_seconds: float
    stream_resume_seconds: float
    batch_bytes: int
    batch_documents: int
    batch_wait_milliseconds: float
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_batch_documents: _Optional[int] = ..., max_document_bytes: _Optional[int] = ..., stream_window_documents: _Optional[int] = ..., stream_window_bytes: _Optional[int] = ..., max_pending_bytes: _Optional[int] = ..., max_pending_documents: _Optional[int] = ..., tenant_max_pending_bytes: _Optional[int] = ..., tenant_max_pending_documents: _Optional[int] = ..., max_streams: _Optional[int] = ..., tenant_max_streams: _Optional[int] = ..., max_calls: _Optional[int] = ..., stream_max_age_seconds: _Optional[float] = ..., stream_resume_seconds: _Optional[float] = ..., batch_bytes: _Optional[int] = ..., batch_documents: _Optional[int] = ..., batch_wait_milliseconds: _Optional[float] = ...) -> None: ...
