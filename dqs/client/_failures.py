"""What a failed call means, and whether to try it again."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from dqs.errors import (
    ConfigError,
    CorpusMismatch,
    CorpusNotFound,
    DeadlineExceeded,
    DqsError,
    IndexUnavailable,
    InternalError,
    ModelError,
    Overloaded,
    PermissionDenied,
    PolicyError,
    RequestError,
    Unauthenticated,
    Unavailable,
)
from dqs.v1 import failure_pb2

_log = logging.getLogger("dqs.client")

REQUEST_ID_KEY = "x-request-id"
"""Metadata under which a call and its answer carry the id that the server's log has."""
_DETAILS_KEY = "grpc-status-details-bin"
_ERRORS_BY_REASON: Mapping[str, type[DqsError]] = MappingProxyType(
    {
        error.reason: error
        for error in (
            PolicyError,
            RequestError,
            CorpusMismatch,
            CorpusNotFound,
            ConfigError,
            ModelError,
            Overloaded,
            IndexUnavailable,
            Unavailable,
            Unauthenticated,
            PermissionDenied,
            DeadlineExceeded,
            InternalError,
        )
    }
)
_ERRORS_BY_STATUS: Mapping[grpc.StatusCode, type[DqsError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: RequestError,
        grpc.StatusCode.FAILED_PRECONDITION: ConfigError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: RequestError,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.CANCELLED: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
        grpc.StatusCode.UNIMPLEMENTED: RequestError,
    }
)
FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_NOTICE_INTERVAL_S = 10.0
"""The same is logged again after this time at the earliest."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed call means.

    Attributes:
        error: what to raise.
        may_retry: whether the same call may succeed later, and repeating it is safe.
        retry_after_s: how long the server asks to wait.
        is_hopeless: whether this server will fail in the same way until somebody changes something.
    """

    error: DqsError
    may_retry: bool
    retry_after_s: float
    is_hopeless: bool


class Notices:
    """Keeps the calls of a client, which may be many, from saying all the same at once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said_s: dict[str, float] = {}

    def is_due(self, what: str) -> bool:
        """Whether something has not been said of late; counts it as said."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._said_s.get(what, -math.inf) < _NOTICE_INTERVAL_S:
                return False
            self._said_s[what] = now_s
            return True


class Patience:
    """Decides whether and when to try again: with growing pauses, until no answer came for too long.

    Args:
        retry_s: how long that is.
        request_id: of the call.
        targets: who is tried.
        notices: of the client.
    """

    def __init__(self, retry_s: float, request_id: str, targets: Sequence[str], notices: Notices) -> None:
        self._retry_s = retry_s
        self._request_id = request_id
        self._targets = targets
        self._notices = notices
        self._backoff_s = FIRST_BACKOFF_S
        self._since_s: float | None = None
        """When the first failure after the last answer was."""

    def reset(self) -> None:
        """Counts an answer."""
        self._since_s = None
        self._backoff_s = FIRST_BACKOFF_S

    def pause_s(self, failure: Failure, target: str, *, at_once: bool) -> float:
        """How long to wait before the next try; the first one after an answer is logged.

        Not if another call of the client has just said the same.

        Args:
            failure: of the last try, one that may be repeated.
            target: who failed.
            at_once: whether somebody else can be asked, who need not be waited for.

        Raises:
            DqsError: patience has ended.
        """
        now_s = time.monotonic()
        if self._since_s is not None and now_s - self._since_s >= self._retry_s:
            raise failure.error
        if self._since_s is None:
            self._since_s = now_s
            if self._retry_s <= 0:
                raise failure.error
            # The servers share what they have to do, so that one says it for all.
            is_full = isinstance(failure.error, Overloaded)
            if self._notices.is_due("full" if is_full else target):
                _log.warning(
                    "%s %s (request %s), trying %s for up to %g s: %s",
                    "Too much to do at" if is_full else "No answer from",
                    target,
                    self._request_id,
                    "again" if len(self._targets) == 1 else " and ".join(self._targets),
                    self._retry_s,
                    failure.error.message,
                )
        if at_once:
            return 0.0
        pause_s = max(self._backoff_s, failure.retry_after_s) * random.uniform(1.0, 1.5)
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return pause_s


def failure_of(error: grpc.RpcError, target: str, request_id: str = "") -> Failure:
    """Translates a failed call by the package's table.

    Args:
        error: how it failed.
        target: who was asked.
        request_id: under which the call was sent; the server's answer may name another.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    reason = ""
    retry_after_s: float | None = None
    for key, value in error.trailing_metadata() or ():
        if key == REQUEST_ID_KEY:
            request_id = value
        if key != _DETAILS_KEY:
            continue
        for detail in parsed(failure_pb2.Failure, value).details:
            kind = detail.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                reason = parsed(failure_pb2.FailureInfo, detail.value).reason
            elif kind == "google.rpc.RetryInfo":
                delay = parsed(failure_pb2.RetryAfter, detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    kind_of_error = _ERRORS_BY_REASON.get(reason) or _ERRORS_BY_STATUS.get(code, InternalError)
    # What gRPC itself or somebody in between has cancelled, since the client does not look at what it cancels.
    is_lost = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and not reason
    is_hopeless = False
    if not reason:  # from gRPC itself, which names no server
        hint, is_hopeless = _hint(message) if is_lost else ("", False)
        message = f"The call to {target} failed ({code.name}): {message}{hint}"
    meant = kind_of_error(message)
    meant.request_id = request_id
    return Failure(
        meant,
        may_retry=is_lost or code == grpc.StatusCode.UNAVAILABLE or retry_after_s is not None,
        retry_after_s=retry_after_s or 0.0,
        is_hopeless=is_hopeless,
    )


def _hint(message: str) -> tuple[str, bool]:
    """What to do about a failed connection, where gRPC's words say only what happened; and whether it is hopeless."""
    if "CERTIFICATE_VERIFY_FAILED" in message or "Hostname Verification" in message or "peer certificate" in message:
        return (
            "; the server's certificate is for another name, or not signed by the authorities that were given: "
            "name the server as its certificate does, and give the authorities that signed it",
            True,
        )
    if "WRONG_VERSION_NUMBER" in message:
        return "; the server does not speak TLS: leave TLS out, or ask at a port that speaks it", True
    if "Socket closed" in message:
        return "; if the server speaks TLS, give the authorities that signed its certificate", False
    return "", False


class StreamEnded(grpc.RpcError):  # type: ignore[misc]  # gRPC ships no types
    """The server ended a stream in good order while answers were owed.

    Args:
        is_certain: False where gRPC hides how the stream ended, so that the connection may have broken as well.
    """

    def __init__(self, *, is_certain: bool = True) -> None:
        super().__init__()
        self.is_certain = is_certain

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the server ended the stream"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def closed() -> Unavailable:
    """The error of a call whose client is closed."""
    return Unavailable("The client was closed while answers were owed.")


def no_answer(timeout_s: float) -> DeadlineExceeded:
    """The error of a stream that stays silent."""
    return DeadlineExceeded(f"No answer came for {timeout_s:g} s: look at the server, or allow more with `answer_s`.")


def parsed(kind: Any, raw: bytes) -> Any:
    """A message of the wire.

    Raises:
        InternalError: the server sent something else.
    """
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise InternalError(
            f"The server sent what is no {kind.DESCRIPTOR.full_name}: is a DQS server of this version there?"
        ) from None
