"""Prometheus metrics of one server: what is counted, and the HTTP server that shows it.

Each server has a registry of its own. Batches and calls are counted on the event
loop, once each and never per document; gauges are read when somebody scrapes, in
the HTTP server's threads. No label ever holds a document's id or text.

This module knows nothing of gRPC or of how a server is built.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
from prometheus_client import CollectorRegistry, Counter, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import dqs
from dqs.data import Label, Missing
from dqs.errors import ConfigError, DocumentError
from dqs.pipeline import ModelInfo, Replica, Results, Swaps

DECISIONS: Mapping[Label, str] = MappingProxyType(
    {Label.UNSPECIFIED: "error", Label.KEEP: "keep", Label.DROP: "drop", Label.REVIEW: "review"}
)
"""Label -> value of the label `decision`."""

WATCHED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "pending_documents": ("dqs_pending_docs", "Documents taken in and not yet answered."),
        "pending_bytes": ("dqs_pending_bytes", "Bytes of text taken in and not yet answered."),
        "oldest_s": ("dqs_queue_oldest_seconds", "How long the oldest document that no worker has yet has waited."),
        "streams": ("dqs_inflight_streams", "Open streams."),
        "calls": ("dqs_inflight_calls", "Open unary calls."),
        "slots": ("dqs_executor_slots", "Batches that the workers take at once now; 0 while nobody can score."),
    }
)
"""Name for `Metrics.watch` -> name of the gauge, and what it means."""

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_CALL_SECONDS = (*_SECONDS[3:], 300, 1800, 7200)
"""Streams live for up to hours."""
_DOCUMENTS = tuple(1 << exponent for exponent in range(13))
_BYTES = tuple(1 << exponent for exponent in range(10, 25))
_CLIENT_TIMEOUT_S = 10
_READS = 5
_PRESENT, _UNAVAILABLE = int(Missing.PRESENT), int(Missing.UNAVAILABLE)


Value = TypeVar("Value")


class Metrics:
    """Counts what one server does.

    `call`, `answered`, `batch` and `dropped` are for the event loop; `watch` and
    `watch_replicas` take functions that any thread may call.
    """

    def __init__(self) -> None:
        self.registry = _Registry()
        """What the HTTP server shows."""
        self._requests = Counter("dqs_requests", "Calls that have ended.", ("method", "code"), registry=self.registry)
        self._request_seconds = self._histogram(
            "dqs_request_seconds", "From a call's start to its end.", _CALL_SECONDS, "method"
        )
        self._docs = Counter(
            "dqs_docs", "Documents that have been answered.", ("tenant", "decision"), registry=self.registry
        )
        self._doc_errors = Counter(
            "dqs_doc_errors", "Documents that have been answered with an error.", ("code",), registry=self.registry
        )
        self._degraded_docs = Counter(
            "dqs_degraded_docs", "Documents answered without knowing whether they are duplicates.",
            registry=self.registry,
        )  # fmt: skip
        self._text_bytes = Counter("dqs_text_bytes", "Bytes of text that have been scored.", registry=self.registry)
        self._batches = Counter("dqs_batches", "Batches that have been scored.", registry=self.registry)
        self._batch_documents = self._histogram("dqs_batch_documents", "Documents per batch.", _DOCUMENTS)
        self._batch_bytes = self._histogram("dqs_batch_bytes", "Bytes of text per batch.", _BYTES)
        self._failures = Counter(
            "dqs_failures", "Documents given back unscored; a request refused unread counts as one.", ("reason",),
            registry=self.registry,
        )  # fmt: skip
        self._queue_seconds = self._histogram(
            "dqs_queue_seconds",
            "From a request's arrival to the start of the batch that took it, or a part of it.",
            _SECONDS,
        )
        self._compute_seconds = self._histogram(
            "dqs_compute_seconds",
            "Per batch: score (all of the stay with a worker), index, policy, and the worker's own stages.",
            _SECONDS,
            "stage",
        )
        self._redis_errors = Counter(
            "dqs_redis_errors", "Batches for which the duplicate index could not be reached.", registry=self.registry
        )
        self._watched = _Watched()
        self.registry.register(self._watched)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        # Children are looked up once; `labels` takes a lock and builds a tuple of strings each time.
        self._request_children: dict[tuple[str, str], Counter] = {}
        self._docs_children: dict[str, tuple[Counter, ...]] = {}

    def call(self, method: str, code: str, seconds: float) -> None:
        """Counts a call that has ended.

        Args:
            method: name of the RPC, one of ours.
            code: name of the gRPC status code.
            seconds: from its start to its end.
        """
        counter = self._request_children.get((method, code))
        if counter is None:
            counter = self._request_children[method, code] = self._requests.labels(method, code)
        counter.inc()
        self._request_seconds.observe(seconds, method)

    def answered(self, tenant: str, outcome: Results | DocumentError, start: int, stop: int) -> None:
        """Counts documents that got their answers.

        Args:
            tenant: name of the tenant.
            outcome: verdicts of a batch, or the one error of all these documents.
            start: first document, as an index into the batch.
            stop: past the last one.
        """
        decisions = self._docs_children.get(tenant)
        if decisions is None:
            decisions = tuple(self._docs.labels(tenant, DECISIONS[label]) for label in Label)
            self._docs_children[tenant] = decisions
        if isinstance(outcome, DocumentError):
            decisions[Label.UNSPECIFIED].inc(stop - start)
            self._doc_errors.labels(outcome.code.value).inc(stop - start)
            return
        labels = outcome.labels[start:stop].tobytes()
        for label, decision in enumerate(decisions):
            count = labels.count(label)
            if count:
                decision.inc(count)
        if int(Label.UNSPECIFIED) in labels:
            for error in outcome.errors[start:stop]:
                if error is not None:
                    self._doc_errors.labels(error.code.value).inc()

    def batch(self, queue_s: Sequence[float], results: Results, text_bytes: int) -> None:
        """Counts a batch that has been scored.

        Args:
            queue_s: seconds that each request in it, or part of one, had waited.
            results: its verdicts.
            text_bytes: its text.
        """
        self._batches.inc()
        self._text_bytes.inc(text_bytes)
        self._batch_documents.observe(len(results))
        self._batch_bytes.observe(text_bytes)
        for seconds in queue_s:
            self._queue_seconds.observe(seconds)
        for stage, seconds in results.seconds.items():
            self._compute_seconds.observe(seconds, stage)
        missing = results.columns.missing.get("duplicate_similarity")
        if missing is None:
            return
        codes = missing.tobytes()  # searching bytes takes a tenth of the time of comparing arrays
        unknown = 0
        if _UNAVAILABLE in codes:
            # A document with an error of its own has no value there either.
            unknown = int(np.count_nonzero((missing == _UNAVAILABLE) & (results.labels != 0)))
        if unknown:
            self._degraded_docs.inc(unknown)
            self.redis_failed()
        elif _PRESENT in codes:
            self._watched.degraded = False

    def dropped(self, reason: str, documents: int) -> None:
        """Counts documents that got no verdict because of something outside them.

        Args:
            reason: one word, such as "deadline", "cancelled", "overloaded".
            documents: how many.
        """
        self._failures.labels(reason).inc(documents)

    def redis_failed(self) -> None:
        """Counts a batch for which the duplicate index could not be reached; `batch` does so itself for its own."""
        self._redis_errors.inc()
        self._watched.degraded = True

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """Shows a gauge.

        Args:
            name: a key of `WATCHED`.
            read: gives its value; called from the HTTP server's threads, so it must be quick and take no lock for long.

        Raises:
            KeyError: there is no such gauge.
        """
        self._watched.gauges[WATCHED[name]] = read

    def watch_replicas(self, read: Callable[[], Sequence[Replica]]) -> None:
        """Shows the scorer processes.

        Args:
            read: gives those that there are now; called from the HTTP server's threads.
        """
        self._watched.replicas = read

    def watch_models(self, models: Callable[[], Sequence[ModelInfo]], swaps: Callable[[], Swaps]) -> None:
        """Shows the models, and what became of those that were promoted.

        Args:
            models: gives those that serve now; called from the HTTP server's threads.
            swaps: gives the counts; called likewise.
        """
        self._watched.models = lambda: (models(), swaps())

    def _histogram(self, name: str, documentation: str, bounds: Sequence[float], label: str = "") -> _Histogram:
        histogram = _Histogram(name, documentation, bounds, label)
        self.registry.register(histogram)
        return histogram


class _Histogram(Collector):
    """A histogram with one writer, so without a lock: a tenth of the cost of prometheus_client's own.

    Args:
        name: of the metric.
        documentation: what it means.
        bounds: upper bounds of its buckets but the last, which has none.
        label: name of its label; "" for none.
    """

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], label: str) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._bounds = tuple(map(float, bounds))
        self._names = (*map(floatToGoString, self._bounds), "+Inf")
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        if not label:
            self._add("")

    def observe(self, value: float, label_value: str = "") -> None:
        """Counts a value; from one thread only."""
        counts = self._counts.get(label_value) or self._add(label_value)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[label_value] += value

    def collect(self) -> Iterable[Metric]:
        """The buckets as they are now; the sum may be one value ahead of or behind them."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=(self._label,) if self._label else None)
        for label_value, counts in list(self._counts.items()):
            buckets = list(zip(self._names, accumulate(list(counts)), strict=True))
            family.add_metric((label_value,) if self._label else (), buckets, self._sums[label_value])
        return (family,)

    def _add(self, label_value: str) -> list[int]:
        self._sums[label_value] = 0.0
        self._counts[label_value] = [0] * len(self._names)
        return self._counts[label_value]


class _Registry(CollectorRegistry):
    """A registry without the `_created` twin of every series, which doubles the page and says nothing new."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Watched(Collector):
    """Gauges that are read when somebody scrapes."""

    def __init__(self) -> None:
        self.gauges: dict[tuple[str, str], Callable[[], float]] = {}
        self.replicas: Callable[[], Sequence[Replica]] | None = None
        self.models: Callable[[], tuple[Sequence[ModelInfo], Swaps]] | None = None
        self.degraded = False

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("dqs_build_info", "The version that runs; always 1.", labels=("version",))
        build.add_metric((dqs.__version__,), 1)
        yield build
        yield GaugeMetricFamily(
            "dqs_degraded",
            "1 if the last batch that asked for duplicates could not reach the index, else 0.",
            value=self.degraded,
        )
        for (name, documentation), read in list(self.gauges.items()):
            value = _read(read)
            if value is not None:
                yield GaugeMetricFamily(name, documentation, value=value)
        replicas = _read(self.replicas) if self.replicas is not None else None
        if replicas is not None:
            yield from _replica_metrics(replicas)
        models = _read(self.models) if self.models is not None else None
        if models is not None:
            yield from _model_metrics(*models)


def _read(read: Callable[[], Value]) -> Value | None:
    """A value that another thread may be changing; None, and so no series, where it never held still."""
    for _ in range(_READS):
        with contextlib.suppress(RuntimeError, LookupError, StopIteration):
            return read()
    return None


def _replica_metrics(replicas: Sequence[Replica]) -> Iterable[Metric]:
    counts = GaugeMetricFamily("dqs_replicas", "Scorer processes.", labels=("pool", "state"))
    ready = GaugeMetricFamily(
        "dqs_replica_ready", "1 once a real batch has passed through it, else 0.", labels=("replica", "pool", "node")
    )
    pending = GaugeMetricFamily("dqs_replica_pending_bytes", "Bytes of text that it holds.", labels=("replica",))
    restarts = CounterMetricFamily("dqs_replica_restarts", "How often it has died.", labels=("replica",))
    states: dict[tuple[str, str], int] = {}
    for replica in replicas:
        # Both states of a pool are always there, so that an alert on 0 finds a series.
        for state, here in (("ready", replica.ready), ("starting", not replica.ready)):
            states[replica.pool, state] = states.get((replica.pool, state), 0) + here
        ready.add_metric((replica.name, replica.pool, replica.node), replica.ready)
        pending.add_metric((replica.name,), replica.pending_bytes)
        restarts.add_metric((replica.name,), replica.restarts)
    for labels, count in states.items():
        counts.add_metric(labels, count)
    return counts, ready, pending, restarts


def _model_metrics(models: Sequence[ModelInfo], swaps: Swaps) -> Iterable[Metric]:
    serving = GaugeMetricFamily("dqs_model_info", "A model that serves; always 1.", labels=("model", "version"))
    for model in models:
        serving.add_metric((model.name, model.version), 1)
    outcomes = CounterMetricFamily("dqs_model_swaps", "Models that were promoted while serving.", labels=("outcome",))
    outcomes.add_metric(("done",), swaps.done)
    outcomes.add_metric(("refused",), swaps.refused)
    refused = GaugeMetricFamily(
        "dqs_models_refused", "1 if the models that were promoted last do not serve, else 0.", value=bool(swaps.refusal)
    )
    return serving, outcomes, refused


class MetricsServer:
    """Answers GET /metrics until it is closed. Made by `serve_metrics`."""

    def __init__(self, server: _HttpServer) -> None:
        self._server = server
        self.address: tuple[str, int] = (str(server.server_address[0]), int(server.server_address[1]))
        """Host and port."""
        self._thread = threading.Thread(target=server.serve_forever, name="dqs-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers no more; returns within a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(metrics: Metrics, host: str, port: int) -> MetricsServer:
    """Serves the metrics over HTTP in threads of their own.

    Args:
        metrics: what to show.
        host: address to bind.
        port: port to bind; 0 picks a free one.

    Returns:
        The server, to be closed at the end.

    Raises:
        ConfigError: the address cannot be bound.
    """
    show = make_wsgi_app(metrics.registry)

    def application(request: dict[str, Any], start_response: Any) -> Any:
        if request["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"The metrics are at /metrics.\n"]
        return show(request, start_response)

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        kind = type("_HttpServer", (_HttpServer,), {"address_family": family})
        return MetricsServer(make_server(host, port, application, kind, handler_class=_Handler))
    except OSError as error:
        raise ConfigError(
            f"Cannot serve metrics on {host}:{port} ({error.strerror}): choose another metrics_host or metrics_port."
        ) from error


class _HttpServer(ThreadingWSGIServer):
    def server_bind(self) -> None:
        # Without the look-up of this machine's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing about a client that went away."""


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is of the base class
        """Says nothing about a scrape."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()


__all__ = ["DECISIONS", "WATCHED", "Metrics", "MetricsServer", "serve_metrics"]
