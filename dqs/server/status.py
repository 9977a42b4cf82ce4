"""Errors to gRPC statuses with google.rpc details: the only place that knows both.

Every failed call carries an ErrorInfo (domain `dqs`, reason and metadata), a
RetryInfo where the same call may succeed later, and a BadRequest where a field
is wrong. What nobody foresaw becomes INTERNAL with a fixed text and an incident
id; the cause goes to the log, without the words of the exception, because
those may quote a document.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from dqs.errors import DqsError, IndexUnavailable, InternalError, Overloaded, RequestError, Unavailable

DOMAIN = "dqs"
DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata in which gRPC carries a google.rpc.Status."""
REQUEST_ID_KEY = "x-request-id"
"""Metadata key under which a client may name its call; answers carry it too, in the trailing metadata."""
REQUEST_ID_NAME = "request_id"
"""Its name in the metadata of an ErrorInfo."""
RETRY_DELAY_MS: Mapping[type[DqsError], int] = MappingProxyType(
    {Overloaded: 250, IndexUnavailable: 1000, Unavailable: 1000}
)
"""How long a caller should wait before it tries again; errors not named here are final."""
_MAX_MESSAGE_CHARACTERS = 1000
"""Trailing metadata has a budget of 8 KiB by default."""

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_log = logging.getLogger(__name__)


def incident(error: BaseException) -> InternalError:
    """Logs an error that nobody foresaw and gives what the caller may know of it.

    Args:
        error: the cause; the log gets its type and its traceback, not its message.

    Returns:
        The error for the caller, with the incident id that the log has too.
    """
    number = secrets.token_hex(6)
    _log.error(
        "incident %s: %s\n%s",
        number,
        type(error).__qualname__,
        "".join(traceback.format_tb(error.__traceback__)),
    )
    return InternalError(f"The service failed: see incident {number} in its log.")


def rpc_status(error: DqsError, request_id: str = "") -> status_pb2.Status:
    """The google.rpc.Status of an error.

    Args:
        error: any error of ours.
        request_id: of the call that it ends, "" where there is none.

    Returns:
        Code, message and details.
    """
    code = grpc.StatusCode[error.grpc_status]
    status = status_pb2.Status(code=code.value[0], message=error.message[:_MAX_MESSAGE_CHARACTERS])
    metadata = {REQUEST_ID_NAME: request_id} if request_id else {}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    for kind in type(error).__mro__:
        if kind in RETRY_DELAY_MS:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(RETRY_DELAY_MS[kind])
            details.append(retry)
            break
    if isinstance(error, RequestError) and error.field:
        bad_request = error_details_pb2.BadRequest()
        bad_request.field_violations.add(field=error.field, description=status.message)
        details.append(bad_request)
    for detail in details:
        status.details.add().Pack(detail)
    return status


async def abort(context: Context, error: DqsError, request_id: str) -> NoReturn:
    """Ends a call with the status of `error`; never returns normally.

    Args:
        context: of the call.
        error: why it ends.
        request_id: of the call.

    Raises:
        grpc.aio.AbortError: always; it is how grpc.aio ends a call.
    """
    status = rpc_status(error, request_id)
    await context.abort(
        grpc.StatusCode[error.grpc_status],
        status.message,
        trailing_metadata=((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id)),
    )
    raise AssertionError("grpc.aio returned from abort")
