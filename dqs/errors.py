"""One error tree. Every failure that a person or a client can meet has a class here.

    DqsError
    ├── ConfigError            settings, files or models are wrong: nothing was started
    │   ├── ModelError         a model folder is missing, damaged or does not fit
    │   └── PolicyError        a policy is unknown or malformed
    ├── DocumentError          one document cannot be scored; its neighbours can
    ├── RequestError           a whole request is malformed or over a limit
    ├── IndexUnavailable       the duplicate index cannot be reached or is full
    ├── CorpusMismatch         a corpus was made with other parameters
    ├── CorpusNotFound         there is no such corpus
    ├── Unavailable            the service cannot answer now; a retry may help
    │   └── Overloaded         it has too much to do already
    ├── Unauthenticated        no valid token came with the call
    ├── PermissionDenied       the caller may not do this
    ├── DeadlineExceeded       no answer came in the time that the caller gave
    └── InternalError          the service failed; its log has the cause

This module knows nothing of gRPC but the names of its status codes.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class DqsError(Exception):
    """Base of every error that DQS raises on purpose.

    `message` is one sentence for a person that says what to do.
    It never holds document text. `request_id` names the failed call in the
    service's log; it is empty where there was no call.
    """

    grpc_status: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = ""


class ConfigError(DqsError):
    """Settings, files or the environment are wrong; nothing was started."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "CONFIG"


class ModelError(ConfigError):
    """A model folder is missing, damaged, or does not fit its use."""

    reason = "MODEL"


class PolicyError(ConfigError):
    """A policy is unknown or malformed."""

    grpc_status = "INVALID_ARGUMENT"
    reason = "POLICY"


class DocumentErrorCode(enum.StrEnum):
    """Why one document has no verdict. The values are part of the wire contract."""

    INVALID_UTF8 = "INVALID_UTF8"
    TOO_LARGE = "TOO_LARGE"
    ID_REUSED = "ID_REUSED"
    INVALID_ID = "INVALID_ID"
    MALFORMED_ROW = "MALFORMED_ROW"
    INDEX_UNAVAILABLE = "INDEX_UNAVAILABLE"
    INTERNAL = "INTERNAL"
    INVALID_LANGUAGE = "INVALID_LANGUAGE"


class DocumentError(DqsError):
    """One document cannot be scored. It is answered with this error, its neighbours with verdicts."""

    grpc_status = "INVALID_ARGUMENT"
    reason = "DOCUMENT"

    def __init__(self, code: DocumentErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class RequestError(DqsError):
    """A whole request is malformed or breaks a limit.

    `field` is the path of the wrong field, such as `documents`; empty where none is to blame.
    """

    grpc_status = "INVALID_ARGUMENT"
    reason = "REQUEST"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class IndexUnavailable(DqsError):
    """The duplicate index cannot be reached, is loading, or is full."""

    grpc_status = "UNAVAILABLE"
    reason = "INDEX_UNAVAILABLE"


class CorpusMismatch(DqsError):
    """A corpus exists with parameters other than the ones asked for."""

    grpc_status = "FAILED_PRECONDITION"
    reason = "CORPUS_MISMATCH"


class CorpusNotFound(DqsError):
    """There is no corpus of that name, or it was dropped meanwhile."""

    grpc_status = "NOT_FOUND"
    reason = "CORPUS_NOT_FOUND"


class Unavailable(DqsError):
    """The service cannot answer now; the same call may succeed later."""

    grpc_status = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class Overloaded(Unavailable):
    """The service has too much to do already and refuses before any work; a later call may succeed."""

    grpc_status = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"


class Unauthenticated(DqsError):
    """No token came with the call, or one that is not valid."""

    grpc_status = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class PermissionDenied(DqsError):
    """The caller is known and may not do this."""

    grpc_status = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class DeadlineExceeded(DqsError):
    """No answer came in the time that the caller gave."""

    grpc_status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class InternalError(DqsError):
    """The service failed in a way that nobody foresaw; its log has the cause under the incident id."""
