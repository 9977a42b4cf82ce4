from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Label(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LABEL_UNSPECIFIED: _ClassVar[Label]
    LABEL_KEEP: _ClassVar[Label]
    LABEL_DROP: _ClassVar[Label]
    LABEL_REVIEW: _ClassVar[Label]

class MissingReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISSING_REASON_UNSPECIFIED: _ClassVar[MissingReason]
    MISSING_REASON_TOO_SHORT: _ClassVar[MissingReason]
    MISSING_REASON_NO_MODEL: _ClassVar[MissingReason]
    MISSING_REASON_NOT_ASKED: _ClassVar[MissingReason]
    MISSING_REASON_UNAVAILABLE: _ClassVar[MissingReason]
    MISSING_REASON_NOT_LOOKED_AT: _ClassVar[MissingReason]

class Operator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATOR_UNSPECIFIED: _ClassVar[Operator]
    OPERATOR_LESS: _ClassVar[Operator]
    OPERATOR_LESS_OR_EQUAL: _ClassVar[Operator]
    OPERATOR_GREATER: _ClassVar[Operator]
    OPERATOR_GREATER_OR_EQUAL: _ClassVar[Operator]
LABEL_UNSPECIFIED: Label
LABEL_KEEP: Label
LABEL_DROP: Label
LABEL_REVIEW: Label
MISSING_REASON_UNSPECIFIED: MissingReason
MISSING_REASON_TOO_SHORT: MissingReason
MISSING_REASON_NO_MODEL: MissingReason
MISSING_REASON_NOT_ASKED: MissingReason
MISSING_REASON_UNAVAILABLE: MissingReason
MISSING_REASON_NOT_LOOKED_AT: MissingReason
OPERATOR_UNSPECIFIED: Operator
OPERATOR_LESS: Operator
OPERATOR_LESS_OR_EQUAL: Operator
OPERATOR_GREATER: Operator
OPERATOR_GREATER_OR_EQUAL: Operator

class Reason(_message.Message):
    __slots__ = ("rule", "signal", "value", "operator", "threshold", "missing")
    RULE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    rule: str
    signal: str
    value: float
    operator: Operator
    threshold: float
    missing: MissingReason
    def __init__(self, rule: _Optional[str] = ..., signal: _Optional[str] = ..., value: _Optional[float] = ..., operator: _Optional[_Union[Operator, str]] = ..., threshold: _Optional[float] = ..., missing: _Optional[_Union[MissingReason, str]] = ...) -> None: ...
