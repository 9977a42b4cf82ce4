"""The door of every call: who calls, under which id, and how it ends.

gRPC asks the `Gate` for a handler before it reads a call's message, so whoever has
no token, or comes while nobody can be served, is sent away before the first byte of
a document is taken in. A handler then passes through `Gate.answer`, which knows the
tenant, gives the call an id that logs carry, runs the handler's work, turns its
errors into statuses and counts the call. It knows nothing of documents.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from dqs.errors import DqsError, Unauthenticated, Unavailable
from dqs.observability import logs
from dqs.observability.tracing import Span, Tracer
from dqs.server.status import REQUEST_ID_KEY, Context, abort, incident
from dqs.server.tenants import ANYBODY, Tenant, Token
from dqs.v1 import corpus_pb2, scoring_pb2

if TYPE_CHECKING:
    from dqs.observability.metrics import Metrics
    from dqs.server.security import Tokens

STARTING = Unavailable("The server is still starting: try again in a moment.")
DRAINING = Unavailable("The server is shutting down: go to another one, or try again later.")

Answer = TypeVar("Answer")
Metadata = Iterable[tuple[str, str | bytes]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,64}\Z")
_METHODS = {
    f"/{service.full_name}/{method.name}": method.name
    for module in (scoring_pb2, corpus_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Path -> name of our methods; what else strangers call is not counted, lest they invent names without end."""
_AUTHORIZATION_KEY = "authorization"
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client.

    Attributes:
        method: name of the RPC, such as "ScoreBatch".
        tenant: who calls.
        request_id: names the call in logs and traces.
    """

    method: str
    tenant: Tenant
    request_id: str


@dataclass(slots=True, eq=False)
class _Open:
    """A call whose handler is at work."""

    task: asyncio.Task[Any]
    token: Token | None
    failure: DqsError | None = None
    """Why we end it, where we do."""


_admitted: ContextVar[Token | None] = ContextVar("admitted")
"""The token that the call of this task came with; set before its message is read."""


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC ships no types
    """Lets calls in. Closed at first. Lives on the event loop.

    Args:
        tokens: those in force; None lets everybody in as one tenant.
        metrics: counts calls.
        tracer: makes a span of each.
    """

    def __init__(
        self, tokens: Tokens | None = None, metrics: Metrics | None = None, tracer: Tracer | None = None
    ) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._tracer = tracer or Tracer(None)
        self._refusal: DqsError | None = STARTING
        self._handlers: tuple[grpc.GenericRpcHandler, ...] = ()
        self._calls: set[_Open] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, *handlers: grpc.GenericRpcHandler) -> None:
        """Lets calls in from now on.

        Args:
            *handlers: of the services behind the gate.
        """
        self._handlers = handlers
        self._refusal = None

    def close(self, refusal: DqsError) -> None:
        """Refuses new calls from now on; open ones go on.

        Args:
            refusal: what they are told.
        """
        self._refusal = refusal

    async def idle(self) -> None:
        """Waits until no call is open."""
        await self._idle.wait()

    def end_revoked(self) -> None:
        """Ends every open call whose token is no longer valid."""
        if self._tokens is None:
            return
        for opened in self._calls:
            if opened.token is not None and opened.failure is None and not self._tokens.table.still_valid(opened.token):
                opened.failure = Unauthenticated("The token of this call has expired or was revoked: get a new one.")
                opened.task.cancel()

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """The handler of a method, or one that refuses the call; see `grpc.GenericRpcHandler`."""
        failure: DqsError
        try:
            _admitted.set(self._admit(handler_call_details.invocation_metadata))
            if self._refusal is None:
                for handlers in self._handlers:
                    found = handlers.service(handler_call_details)
                    if found is not None:
                        return found
                return None
            failure = self._refusal
        except DqsError as error:
            failure = error
        return self._refusing(handler_call_details.method, failure)

    async def answer(self, context: Context, method: str, work: Callable[[Call], Awaitable[Answer]]) -> Answer:
        """Runs a handler's work for a call; a `DqsError` that it raises becomes the call's status.

        Args:
            context: of the call.
            method: name of the RPC.
            work: the handler.
        """
        token = _admitted.get(None)
        tenant = ANYBODY if token is None else token.tenant
        metadata = context.invocation_metadata() or ()
        call = Call(method, tenant, _request_id(metadata))
        logs.request_id.set(call.request_id)
        logs.tenant.set(tenant.name)
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        with self._tracer.span(
            method, metadata=metadata, method=method, tenant=tenant.name, request_id=call.request_id
        ) as span:
            return await self._answer(context, call, token, work, span)

    async def _answer(
        self,
        context: Context,
        call: Call,
        token: Token | None,
        work: Callable[[Call], Awaitable[Answer]],
        span: Span,
    ) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        began_s = time.monotonic()
        opened = _Open(task, token)
        self._calls.add(opened)
        self._idle.clear()
        failure: DqsError | None = None
        code = "CANCELLED"
        try:
            answer = await work(call)
            code = "OK"
            return answer
        except DqsError as error:
            failure = error
        except asyncio.CancelledError:
            if opened.failure is None:
                remaining_s = context.time_remaining()
                if remaining_s is not None and remaining_s <= 0:
                    code = "DEADLINE_EXCEEDED"
                raise
            task.uncancel()
            failure = opened.failure
        except Exception as error:
            if context.cancelled():  # the client has gone, and writing to it failed
                raise asyncio.CancelledError from error
            failure = incident(error)
        finally:
            self._calls.discard(opened)
            if not self._calls:
                self._idle.set()
            if failure is not None:
                code = failure.grpc_status
            span.set(code=code)
            self._count(call.method, code, time.monotonic() - began_s)
        return await abort(context, failure, call.request_id)

    def _admit(self, metadata: Metadata | None) -> Token | None:
        """The token that a call came with; None where none is asked for.

        Raises:
            Unauthenticated: there is none, or it is not valid.
        """
        if self._tokens is None:
            return None
        sent = [value for key, value in metadata or () if key == _AUTHORIZATION_KEY]
        if len(sent) != 1 or not isinstance(sent[0], str) or sent[0][: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("This server asks for a token: send one as `authorization: Bearer TOKEN`.")
        token = self._tokens.table.find(sent[0][len(_SCHEME) :].strip())
        if token is None:
            # The same words for all, so that nobody learns that a token was valid once.
            raise Unauthenticated("The token is wrong, has expired or was revoked: get a new one.")
        return token

    def _refusing(self, path: str, failure: DqsError) -> grpc.RpcMethodHandler:
        async def refuse(_requests: Any, context: Context) -> None:
            request_id = _request_id(context.invocation_metadata() or ())
            if path in _METHODS:
                self._count(_METHODS[path], failure.grpc_status, 0.0)
            await abort(context, failure, request_id)

        # One for messages in both directions fits every method, because it reads and writes none.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _count(self, method: str, code: str, seconds: float) -> None:
        if self._metrics is not None:
            self._metrics.call(method, code, seconds)


def _request_id(metadata: Metadata) -> str:
    """The client's id of a call where it is one, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.match(value):
            return value
    return secrets.token_hex(8)
