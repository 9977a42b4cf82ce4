"""grpc.health.v1: whether the server lives, and whether it can score.

The names "" and those of our services tell whether it can score now. The name
`live` tells that the process works at all; it stays SERVING while workers or Redis
are away and while the server drains, so that nobody restarts what will recover.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from dqs.server.status import Context

SERVICE_NAME: str = health.SERVICE_NAME
ANY_SERVICE = ""
"""The name under which grpc.health.v1 answers for the whole server."""
LIVE = "live"
MAX_WATCHES = 1000
"""Streams that wait for changes; anybody may open them, so their number is bounded."""

_Status = health_pb2.HealthCheckResponse


class Health:
    """Answers health checks, on any number of gRPC servers of one event loop. Not ready at first.

    Args:
        services: names of the services that it speaks for.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._names = frozenset((ANY_SERVICE, *services))
        self._ready = False
        self._ended = False
        self._changed = asyncio.Event()
        self._watches = 0

    @property
    def is_ready(self) -> bool:
        """What the names but `live` are told."""
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Tells whether the server can score now."""
        if ready != self._ready:
            self._ready = ready
            self._wake()

    def end(self) -> None:
        """Ends every watch; a server stops only once its calls have ended."""
        self._ended = True
        self._wake()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers of every method, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            },
        )

    async def check(self, raw: bytes, context: Context) -> bytes:
        """Answers a HealthCheckRequest."""
        status = self._status(await _service(raw, context))
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
        return _encode(status)

    async def watch(self, raw: bytes, context: Context) -> None:
        """Answers a HealthCheckRequest whenever the answer changes."""
        service = await _service(raw, context)
        if self._watches >= MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watch this server: use Check.")
        self._watches += 1
        try:
            shown: int | None = None
            while not self._ended:
                changed = self._changed
                status = self._status(service)
                if status != shown:
                    await context.write(_encode(status))
                    shown = status
                await changed.wait()
        finally:
            self._watches -= 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is shutting down.")

    def _status(self, service: str) -> int:
        status: int
        if service == LIVE or (service in self._names and self._ready):
            status = _Status.SERVING
        else:
            status = _Status.NOT_SERVING if service in self._names else _Status.SERVICE_UNKNOWN
        return status

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _service(raw: bytes, context: Context) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(raw).service)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The request is no HealthCheckRequest.")
        raise AssertionError("grpc.aio returned from abort") from None


def _encode(status: int) -> bytes:
    raw: bytes = _Status(status=status).SerializeToString()
    return raw
