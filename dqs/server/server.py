"""The server process: bind, open the pipeline, serve, drain on a signal.

Order of a start: the port is bound first, so that a taken one costs no model
loading; then the pipeline is opened and warmed; only then does the health
service say SERVING and one line with the address appear on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import dqs
from dqs.errors import ConfigError
from dqs.observability.metrics import Metrics
from dqs.server.admission import Admission
from dqs.server.batcher import Batcher
from dqs.server.calls import Gate
from dqs.server.codec import Encoder, Limits, encode_server_info
from dqs.server.corpora import SERVICE_NAME as CORPUS_SERVICE_NAME
from dqs.server.corpora import CorpusServicer
from dqs.server.servicer import SERVICE_NAME, ScoringServicer

if TYPE_CHECKING:
    from dqs.pipeline import Pipeline
    from dqs.settings import Settings

ANY_SERVICE = ""
"""The name under which grpc.health.v1 answers for the whole server."""


class ScoringServer:
    """One gRPC server around one pipeline. Make it on a running event loop.

    Args:
        settings: address and limits.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would share its connections at random.
                ("grpc.so_reuseport", 0),
                # Finds clients that vanished without closing the connection.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            )
        )
        self._health = health.aio.HealthServicer()
        self._servicer: ScoringServicer | None = None
        self._corpora: CorpusServicer | None = None
        self._batcher: Batcher | None = None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        _check_port(settings.host, settings.port)
        try:
            port = self._server.add_insecure_port(f"{host}:{settings.port}")
        except RuntimeError as error:
            raise ConfigError(f"Cannot listen on {host}:{settings.port}: choose another --host or --port.") from error
        self.address = f"{host}:{port}"
        """Host and port that clients connect to."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of text that have been read and not yet answered, over all calls."""
        return 0 if self._servicer is None else self._servicer.pending_bytes

    async def start(self, pipeline: Pipeline) -> None:
        """Serves.

        Args:
            pipeline: what scores; a batch has gone through it already.
        """
        settings = self._settings
        limits = Limits.of(settings)
        metrics = Metrics()
        admission = Admission(limits, metrics)
        self._batcher = Batcher(
            pipeline,
            metrics,
            batch_bytes=settings.batch_bytes,
            batch_documents=settings.batch_documents,
            wait_s=settings.batch_wait_ms / 1000,
        )
        gate = Gate()
        self._servicer = ScoringServicer(
            limits,
            admission,
            self._batcher,
            Encoder(pipeline.signals),
            encode_server_info(pipeline, limits, dqs.__version__),
            gate,
        )
        self._corpora = CorpusServicer(pipeline, self._batcher, admission, gate)
        self._server.add_generic_rpc_handlers((self._servicer.handlers(), self._corpora.handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names: Sequence[str] = (
            SERVICE_NAME,
            CORPUS_SERVICE_NAME,
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._server)
        # What is loaded now stays; looking through it again and again for garbage would be in vain.
        gc.collect()
        gc.freeze()
        await self._server.start()
        for name in (ANY_SERVICE, SERVICE_NAME, CORPUS_SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, answers what has been read, and ends.

        Args:
            grace_s: open calls that take longer are cut off.
        """
        await self._health.enter_graceful_shutdown()
        if self._servicer is not None:
            self._servicer.drain()
        await self._server.stop(grace_s)
        if self._batcher is not None:
            self._batcher.close()
        if self._corpora is not None:
            self._corpora.close()


def serve(settings: Settings, open_pipeline: Callable[[], AbstractContextManager[Pipeline]]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends at once.

    Args:
        settings: address and limits.
        open_pipeline: opens what scores, warmed by a real batch; closed at the end.

    Raises:
        ConfigError: the address cannot be bound, or what `open_pipeline` raises.
    """
    asyncio.run(_serve(settings, open_pipeline))


async def _serve(settings: Settings, open_pipeline: Callable[[], AbstractContextManager[Pipeline]]) -> None:
    server = ScoringServer(settings)
    # Opened in this thread on purpose: a private Redis dies with the thread that started it.
    with open_pipeline() as pipeline:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await server.start(pipeline)
        sys.stdout.write(f"dqs serves on {server.address}\n")
        sys.stdout.flush()
        await stopping.wait()
        draining = asyncio.create_task(server.stop(settings.drain_s))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, draining.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await draining


def _check_port(host: str, port: int) -> None:
    """Finds a taken port before gRPC does, which would print its own account of it.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does; without it a server that has just ended blocks the port for a minute.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror}): choose another --host or --port."
        ) from error
