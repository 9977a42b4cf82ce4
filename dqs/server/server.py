"""The server process: bind, open the pipeline, serve, drain on a signal.

Order of a start: what can be wrong without loading anything is found first
(certificates, tokens, ports). Then the gRPC server answers health checks with
NOT_SERVING and all other calls with UNAVAILABLE, while the pipeline is opened and
warmed. Only then does the health service say SERVING and one line with the address
appear on standard output.

The event loop runs in a thread of its own. The main thread opens the pipeline, so
that a stop signal can break off a long start, and waits for the end: it alone still
answers signals when the loop hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

import dqs
from dqs.errors import ConfigError
from dqs.observability import logs
from dqs.observability.metrics import Metrics, MetricsServer, serve_metrics
from dqs.observability.tracing import Tracer
from dqs.pipeline import ExecutorStatus
from dqs.server import health
from dqs.server.admission import Admission
from dqs.server.batcher import Batcher
from dqs.server.calls import DRAINING, Gate
from dqs.server.codec import Encoder, Limits, encode_server_info
from dqs.server.corpora import SERVICE_NAME as CORPUS_SERVICE_NAME
from dqs.server.corpora import CorpusServicer
from dqs.server.health import Health
from dqs.server.security import Certificates, Reloader, Tokens, check_exposure
from dqs.server.servicer import SERVICE_NAME, ScoringServicer
from dqs.server.status import incident
from dqs.server.tenants import ANYBODY

if TYPE_CHECKING:
    from dqs.pipeline import Pipeline
    from dqs.settings import Settings

CUT_OFF_STATUS = 1
"""Exit status where the end took too long and was cut off."""
LOST_STATUS = 3
"""Exit status where what scores is lost for good: whoever started the process should start it again."""
CLOSE_S = 10.0
"""Longest time from the end of draining to the end of the process."""
MAX_UNSEEN_CALLS = 10_000
"""Calls that may wait until the event loop sees them."""
LOOKAHEAD_BYTES = 256 << 10
"""What gRPC may hold of each stream beyond what has been read."""
LOST_DRAIN_S = 5.0
"""Longest time that open calls have to end where nothing is scored any more."""
LOOK_S = 0.5
"""How often the executor and the tokens of open calls are looked at."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FLUSH_S = 1.0
"""Longest time for what has been answered to reach the network."""

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class ScoringServer:
    """One gRPC server around one pipeline. Make it on a running event loop.

    Args:
        settings: address, limits, certificates and tokens.

    Raises:
        ConfigError: the address cannot be bound, or the settings do not fit.
    """

    def __init__(self, settings: Settings) -> None:
        check_exposure(settings)
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._reloader = Reloader()
        self._certificates = _open_certificates(settings, self._reloader)
        self._tokens = tokens = _open_tokens(settings, self._reloader)
        self._tracer = Tracer(settings.trace_endpoint)
        self.metrics = Metrics()
        """What is counted and shown to Prometheus."""
        self._gate = Gate(tokens, self.metrics, self._tracer)
        self._health = Health((SERVICE_NAME, CORPUS_SERVICE_NAME))
        self._servicer: ScoringServicer | None = None
        self._corpora: CorpusServicer | None = None
        self._batcher: Batcher | None = None
        self._pipeline: Pipeline | None = None
        self._watch: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._cut_off = asyncio.Event()
        self._stopped = asyncio.Event()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done with the reason once the server will never score again."""
        self._server = self._make(settings.max_message_bytes)
        self._server.add_generic_rpc_handlers((self._health.handlers(), self._gate))
        self.address = _bind(self._server, settings.host, settings.port, "--port", self._certificates)
        """Host and port that clients connect to."""
        self._health_server: grpc.aio.Server | None = None
        self.health_address: str | None = None
        """Host and port for health checks alone, without TLS and tokens."""
        if settings.health_port is not None:
            self._health_server = self._make(1 << 16)
            self._health_server.add_generic_rpc_handlers((self._health.handlers(),))
            self.health_address = _bind(self._health_server, settings.host, settings.health_port, "--health-port")
        self._metrics_server: MetricsServer | None = None
        self.metrics_address: str | None = None
        """Host and port of the metrics over HTTP."""
        if settings.metrics_port is not None:
            self._metrics_server = serve_metrics(self.metrics, settings.metrics_host, settings.metrics_port)
            self.metrics_address = _address(*self._metrics_server.address)

    @property
    def pending_bytes(self) -> int:
        """Bytes of text that have been read and not yet answered, over all calls."""
        return 0 if self._servicer is None else self._servicer.pending_bytes

    async def listen(self) -> None:
        """Answers health checks with NOT_SERVING and all other calls with UNAVAILABLE."""
        self._reloader.start()
        await self._server.start()
        if self._health_server is not None:
            await self._health_server.start()
        self._watch = self._loop.create_task(self._look_on())

    async def start(self, pipeline: Pipeline) -> None:
        """Serves; listens first where it does not yet.

        Args:
            pipeline: what scores; a batch has gone through it already.
        """
        if self._watch is None:
            await self.listen()
        settings, version = self._settings, dqs.__version__
        limits = Limits.of(settings)
        admission = Admission(limits, self.metrics)
        self._batcher = Batcher(
            pipeline,
            self.metrics,
            batch_bytes=settings.batch_bytes,
            batch_documents=settings.batch_documents,
            wait_s=settings.batch_wait_ms / 1000,
            tracer=self._tracer,
        )
        self._servicer = ScoringServicer(
            limits,
            admission,
            self._batcher,
            Encoder(pipeline.signals),
            lambda: encode_server_info(pipeline, limits, version),
            self._gate,
        )
        self._corpora = CorpusServicer(pipeline, self._batcher, admission, self._gate, limits, self._tenants)
        self._corpora.start()
        self._pipeline = pipeline
        executor = pipeline.executor
        self.metrics.watch("slots", lambda: executor.status().slots)
        self.metrics.watch_replicas(lambda: executor.status().replicas)
        self.metrics.watch_models(lambda: pipeline.models, lambda: pipeline.swaps)
        # What is loaded now stays; looking through it again and again for garbage would be in vain.
        gc.collect()
        gc.freeze()
        handlers = [self._servicer.handlers(), self._corpora.handlers()]
        if settings.reflection:
            handlers.append(_reflection_handlers())
        self._gate.open(*handlers)
        executor.subscribe(self._executor_changed)
        self._look()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, answers what has been read, and ends.

        A second call cuts open calls off, whatever its `grace_s`, and waits for the first.

        Args:
            grace_s: open calls that take longer are cut off.
        """
        if self._is_stopping:
            self._cut_off.set()
            await self._stopped.wait()
            return
        self._is_stopping = True
        self._gate.close(DRAINING)
        self._health.set_ready(False)
        if self._servicer is not None:
            self._servicer.drain()
        flush_s = _FLUSH_S if await self._drained(grace_s) else 0.0
        self._health.end()
        await self._server.stop(flush_s)
        if self._health_server is not None:
            await self._health_server.stop(flush_s)
        if self._watch is not None:
            self._watch.cancel()
        if self._batcher is not None:
            self._batcher.close()
        if self._corpora is not None:
            self._corpora.close()
        self._reloader.close()
        self._tracer.close()
        if self._metrics_server is not None:
            self._metrics_server.close()
        self._stopped.set()

    async def _drained(self, grace_s: float) -> bool:
        """Waits until no call is open; false if some still are after `grace_s` or a cut."""
        ends = [self._loop.create_task(wait) for wait in (self._gate.idle(), self._cut_off.wait())]
        await asyncio.wait(ends, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        is_idle = ends[0].done()
        for end in ends:
            end.cancel()
        return is_idle

    def _tenants(self) -> list[str]:
        """Names of all who may call."""
        return [ANYBODY.name] if self._tokens is None else list(self._tokens.table.tenants)

    def describe(self) -> str:
        """One line that says what is served, and how."""
        settings = self._settings
        if self._certificates is None:
            tls = "no TLS"
        else:
            tls = f"TLS with a certificate until {self._certificates.expires}"
            tls += ", clients must show certificates" if settings.tls_client_ca is not None else ""
        parts = [self.address, tls, "no tokens" if settings.tokens is None else f"tokens of {settings.tokens}"]
        if settings.ray_address is not None:
            parts.append(f"workers on Ray at {settings.ray_address}")
        elif settings.workers or settings.gpu_workers:
            parts.append(f"{settings.workers} CPU and {settings.gpu_workers} GPU workers here")
        else:
            parts.append("scoring in this process")
        # A URL may hold a password.
        index = f"a private Redis in {settings.data_dir}" if settings.redis_url is None else "the Redis of redis_url"
        parts.append(f"index in {index}")
        parts += [f"health on {self.health_address}"] if self.health_address is not None else []
        parts += [f"metrics on {self.metrics_address}"] if self.metrics_address is not None else []
        return "; ".join(parts)

    def _make(self, max_message_bytes: int) -> grpc.aio.Server:
        return grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # What gRPC reads of a stream before we ask for it. Left to its estimate of the line it
                # takes 8 MiB of each stream that is held back; a message we ask for comes at full speed anyway.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
                # Calls that came and have not reached us yet. From 1,000 on gRPC would answer some of them
                # CANCELLED by itself, without details and uncounted; we refuse with the time to come back.
                ("grpc.server.max_pending_requests", MAX_UNSEEN_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_UNSEEN_CALLS),
                # Two servers on one port would share its connections at random.
                ("grpc.so_reuseport", 0),
                # Finds clients that vanished without closing the connection.
                ("grpc.keepalive_time_ms", int(self._settings.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", int(self._settings.keepalive_timeout_s * 1000)),
                # The timeout that counts: without it gRPC waits a minute for each answer to a ping.
                ("grpc.http2.ping_timeout_ms", int(self._settings.keepalive_timeout_s * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            )
        )

    async def _look_on(self) -> None:
        """Looks at what nobody tells the event loop of: time that passes, and files that were read again."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._gate.end_revoked()
            self._look()

    def _look(self) -> None:
        """Takes over how the executor is."""
        if self._pipeline is None or self._is_stopping:
            return
        try:
            status = self._pipeline.executor.status()
        except Exception as error:  # its own task must not end of it, nor must readiness stay as it was
            if self._health.is_ready:
                incident(error)
            status = ExecutorStatus(0, ())
        is_ready = status.slots > 0 and status.lost is None
        if is_ready != self._health.is_ready:
            self._health.set_ready(is_ready)
            if not is_ready:
                _log.warning("not ready: there is nobody to score")
            else:
                _log.info("ready")
        if status.lost is not None and not self.lost.done():
            self.lost.set_result(status.lost)

    def _executor_changed(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._look)


def serve(settings: Settings, open_pipeline: Callable[[], AbstractContextManager[Pipeline]]) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts off what is open. For the main thread.

    Args:
        settings: address and limits.
        open_pipeline: opens what scores, warmed by a real batch; closed at the end.

    Raises:
        ConfigError: the address cannot be bound, or what `open_pipeline` raises.
        SystemExit: with `LOST_STATUS`, because what scores is lost for good.
    """
    logs.setup(settings.log_format, settings.log_level)
    ending = _Ending()
    try:
        with _EventLoop() as loop:
            listening = loop.submit(_listen(settings))
            try:
                server = listening.result()
                with open_pipeline() as pipeline:
                    # Last, because Ray sets handlers of its own.
                    ending.take_signals()
                    loop.run(server.start(pipeline))
                    loop.call(server.lost.add_done_callback, lambda lost: ending.lose(lost.result()))
                    _log.info("serving on %s", server.describe())
                    sys.stdout.write(f"dqs serves on {server.address}\n")
                    sys.stdout.flush()
                    drain_s = ending.wait(settings.drain_s)
                    draining = loop.submit(server.stop(drain_s))
                    ending.wait_for(draining, lambda: loop.submit(server.stop(0)))
            finally:
                # Waits for a server that a signal has not let us wait for.
                if listening.exception() is None:
                    loop.run(listening.result().stop(0))
    except BaseException:
        # A library that is being loaded may make another exception of the one that came in the middle.
        if not ending.is_broken_off:
            raise
        _log.info("stopped before it served")
    finally:
        ending.close()
    if ending.status:
        raise SystemExit(ending.status)


async def _listen(settings: Settings) -> ScoringServer:
    server = ScoringServer(settings)
    await server.listen()
    return server


class _EventLoop:
    """An event loop in a thread of its own, as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dqs-loop", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.call(self._loop.stop)
        self._thread.join()

    def submit(self, work: Coroutine[Any, Any, Answer]) -> Future[Answer]:
        """Runs a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Runs a coroutine and waits for what it returns."""
        return self.submit(work).result()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Calls a function on the loop, soon."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()


class _BrokenOff(BaseException):
    """A stop signal that came while the pipeline was being opened.

    No KeyboardInterrupt: Python would end of SIGINT after one that came in the middle of an `exec`, caught or not.
    """


class _Ending:
    """Why and how the process ends: a signal or a loss, then a watchdog that nothing can hold up."""

    def __init__(self) -> None:
        self.status = 0
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._watchdog: threading.Timer | None = None
        self.is_broken_off = False
        """Whether a stop signal came while the pipeline was being opened."""
        # While a pipeline is being opened a stop signal breaks that off, and what is open is closed.
        self._former = {number: signal.signal(number, self._break_off) for number in _STOP_SIGNALS}
        self._former_hook = sys.unraisablehook
        sys.unraisablehook = self._swallowed

    def take_signals(self) -> None:
        """From now on a stop signal no longer raises; `wait` tells of it.

        Raises:
            _BrokenOff: one came before, and what it was raised in has swallowed it.
        """
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda number, _: self._events.put(signal.Signals(number).name))
        if self.is_broken_off:
            raise _BrokenOff

    def _break_off(self, *_: object) -> None:
        # Noted as well, because Python drops what is raised in a finaliser or a callback of C.
        self.is_broken_off = True
        raise _BrokenOff

    def _swallowed(self, what: Any) -> None:
        """Does not write a traceback of what Python drops."""
        if not isinstance(what.exc_value, _BrokenOff):
            self._former_hook(what)

    def lose(self, reason: str) -> None:
        """Tells `wait` that nothing will be scored any more. From any thread.

        Args:
            reason: why.
        """
        self.status = LOST_STATUS
        self._events.put(reason)

    def wait(self, drain_s: float) -> float:
        """Waits for the first signal or loss, and starts the watchdog.

        Args:
            drain_s: time that open calls have after a signal.

        Returns:
            Seconds that open calls have now.
        """
        event = self._events.get()
        if self.status:
            drain_s = min(drain_s, LOST_DRAIN_S)
            _log.error("ending, because nothing can be scored any more: %s", event)
        else:
            _log.info("%s: open calls have %g s to finish; a second signal cuts them off", event, drain_s)
        self._guard(drain_s + CLOSE_S)
        return drain_s

    def wait_for(self, draining: Future[None], cut_off: Callable[[], object]) -> None:
        """Waits for the drain; a signal cuts it short.

        Args:
            draining: the drain.
            cut_off: ends it early.
        """
        drained = ""
        draining.add_done_callback(lambda _: self._events.put(drained))
        while self._events.get() != drained:
            self._guard(CLOSE_S)
            cut_off()
        draining.result()

    def close(self) -> None:
        """Gives the signals back and calls the watchdog off."""
        sys.unraisablehook = self._former_hook
        for number, handler in self._former.items():
            signal.signal(number, handler)
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _guard(self, seconds: float) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = threading.Timer(seconds, self._cut_off, (seconds,))
        self._watchdog.daemon = True
        self._watchdog.start()

    def _cut_off(self, seconds: float) -> None:
        _log.error("the end took longer than %g s and is cut off", seconds)
        logging.shutdown()
        os._exit(self.status or CUT_OFF_STATUS)


def _open_certificates(settings: Settings, reloader: Reloader) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    paths = [path.expanduser() for path in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if path]
    reloader.watch("certificates", paths, lambda: certificates.reload())
    certificates = Certificates(*paths)
    return certificates


def _open_tokens(settings: Settings, reloader: Reloader) -> Tokens | None:
    if settings.tokens is None:
        return None
    path = settings.tokens.expanduser()
    reloader.watch("tokens", [path], lambda: tokens.reload())
    tokens = Tokens(path)
    return tokens


def _reflection_handlers() -> grpc.GenericRpcHandler:
    names = (SERVICE_NAME, CORPUS_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names)
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME,
        {
            "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                servicer.ServerReflectionInfo,
                request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
        },
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(server: grpc.aio.Server, host: str, port: int, option: str, certificates: Certificates | None = None) -> str:
    """Binds a port of a gRPC server.

    Returns:
        Host and port.

    Raises:
        ConfigError: it cannot be bound.
    """
    _check_port(host, port, option)
    try:
        if certificates is None:
            bound = server.add_insecure_port(_address(host, port))
        else:
            bound = server.add_secure_port(_address(host, port), certificates.credentials())
    except RuntimeError as error:
        raise ConfigError(f"Cannot listen on {host}:{port}: choose another --host or {option}.") from error
    return _address(host, bound)


def _check_port(host: str, port: int, option: str) -> None:
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
            f"Cannot listen on {host}:{port} ({error.strerror}): choose another --host or {option}."
        ) from error
