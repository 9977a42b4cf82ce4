"""Traces: a span for each call and for each batch, sent to an OpenTelemetry collector over OTLP.

A batch serves documents of several calls. Its span is a child of the call whose
document had waited longest, and links to the other calls. Ended spans go into a
bounded queue that a thread empties; when the collector is slow or away, spans are
lost and scoring does not wait.

Without an endpoint nothing is imported and nothing done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar, Token
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dqs
from dqs.errors import ConfigError

if TYPE_CHECKING:
    from dqs.pipeline import Results

ATTRIBUTES = MappingProxyType(
    {
        "method": "rpc.method",
        "service": "rpc.service",
        "code": "rpc.response.status_code",
        "tenant": "dqs.tenant",
        "request_id": "dqs.request_id",
        "documents": "dqs.documents",
        "text_bytes": "dqs.text_bytes",
        "replica": "dqs.replica",
        "policy": "dqs.policy",
        "requests": "dqs.requests",
    }
)
"""Keyword of `Tracer.span` and `Span.set` -> name of the attribute."""

_QUEUE_SPANS = 4096
_EXPORT_SPANS = 512
_EXPORT_EVERY_S = 1.0
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
_MAX_LINKS = 32
_TRACE_KEYS = frozenset({"traceparent", "tracestate"})
_TRACES_PATH = "/v1/traces"

_current: ContextVar[Span | None] = ContextVar("span", default=None)


class Span:
    """A span that is open, as a context manager. This one does nothing: what callers get where nothing is traced."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends it."""

    def set(self, **attributes: str | int) -> None:
        """Sets attributes.

        Args:
            **attributes: keys are those of `ATTRIBUTES`.
        """

    def count(self, documents: int, text_bytes: int) -> None:
        """Adds to the attributes `documents` and `text_bytes`."""


_NO_SPAN = Span()


class _OpenSpan(Span):
    """A span of OpenTelemetry's that is the current one of the task while it is open."""

    def __init__(self, span: Any) -> None:
        self.span = span
        self._documents = 0
        self._text_bytes = 0
        self._code = ""
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> Span:
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        from opentelemetry.trace import StatusCode

        if self._token is not None:
            _current.reset(self._token)
        if self._documents:
            self.set(documents=self._documents, text_bytes=self._text_bytes)
        # The type alone: the words of an exception may quote a document.
        failure = "" if self._code == "OK" else self._code or (kind.__qualname__ if kind is not None else "")
        if failure:
            self.span.set_status(StatusCode.ERROR, failure)
        self.span.end()

    def set(self, **attributes: str | int) -> None:
        """Sets attributes."""
        self._code = str(attributes.get("code", self._code))
        self.span.set_attributes({ATTRIBUTES[name]: value for name, value in attributes.items()})

    def count(self, documents: int, text_bytes: int) -> None:
        """Adds to what the span's end will tell."""
        self._documents += documents
        self._text_bytes += text_bytes


def current() -> Span | None:
    """The innermost open span of this task, or None where nothing is traced."""
    return _current.get()


class Tracer:
    """Makes spans.

    Args:
        endpoint: URL of an OTLP collector over HTTP, such as http://localhost:4318; None traces nothing.

    Raises:
        ConfigError: the endpoint is not a URL, or the extra `otel` is not installed.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._provider: Any = None if endpoint is None else _open(endpoint)
        self._tracer: Any = None if self._provider is None else self._provider.get_tracer("dqs", dqs.__version__)

    def span(self, name: str, *, metadata: Iterable[tuple[str, str | bytes]] = (), **attributes: str | int) -> Span:
        """Starts the span of a call; to be used in a `with` statement.

        A span that is told no `code` is marked as failed where an exception ends it, by the exception's type alone.

        Args:
            name: of the span, such as "dqs.v1.ScoringService/ScoreBatch".
            metadata: of the call; a `traceparent` in it makes the span part of the caller's trace.
            **attributes: keys are those of `ATTRIBUTES`.
        """
        if self._tracer is None:
            return _NO_SPAN
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {key: value for key, value in metadata if key in _TRACE_KEYS and isinstance(value, str)}
        above = TraceContextTextMapPropagator().extract(carrier)
        span = _OpenSpan(
            self._tracer.start_span(name, context=above, kind=SpanKind.SERVER, attributes={"rpc.system": "grpc"})
        )
        span.set(**attributes)
        return span

    def batch(
        self,
        calls: Sequence[Span | None],
        results: Results,
        *,
        queued_s: float,
        started_s: float,
        ended_s: float,
        text_bytes: int,
    ) -> None:
        """Records a batch that has been scored: its span, and the parts queue, score, index and policy.

        Args:
            calls: the call's span, from `current`, of each request in it; the first waited longest.
            results: its verdicts.
            queued_s: when its oldest request came, by `time.monotonic`, as the event loop tells time.
            started_s: when its scoring began.
            ended_s: when its scoring ended.
            text_bytes: its text.
        """
        if self._tracer is None:
            return
        from opentelemetry.trace import Link, set_span_in_context

        offset_s = time.time() - time.monotonic()

        def at(monotonic_s: float) -> int:
            return int((monotonic_s + offset_s) * 1e9)

        above = [call.span for call in dict.fromkeys(calls) if isinstance(call, _OpenSpan)]
        span = self._tracer.start_span(
            "batch",
            context=set_span_in_context(above[0]) if above else None,
            links=[Link(call.get_span_context()) for call in above[1 : 1 + _MAX_LINKS]],
            attributes={
                ATTRIBUTES["documents"]: len(results),
                ATTRIBUTES["text_bytes"]: text_bytes,
                ATTRIBUTES["requests"]: len(above),
                ATTRIBUTES["replica"]: results.replica,
                ATTRIBUTES["policy"]: results.policy,
            },
            start_time=at(queued_s),
        )
        # Scored batches may wait for their turn to be decided; index and policy are the last that is done.
        score_s, index_s, policy_s = (results.seconds.get(stage, 0.0) for stage in ("score", "index", "policy"))
        decided_s = ended_s - policy_s
        parts = (
            ("queue", queued_s, started_s),
            ("score", started_s, started_s + score_s),
            ("index", decided_s - index_s, decided_s),
            ("policy", decided_s, ended_s),
        )
        inside = set_span_in_context(span)
        for name, begin_s, end_s in parts:
            self._tracer.start_span(name, context=inside, start_time=at(begin_s)).end(at(end_s))
        span.end(at(ended_s))

    def close(self) -> None:
        """Sends what is queued, for at most 5 seconds; what is left then is lost."""
        if self._provider is None:
            return
        # A collector that hangs must not hold up the end of the server, and the library waits for half a minute.
        sending = threading.Thread(target=self._provider.shutdown, name="dqs-trace-close", daemon=True)
        sending.start()
        sending.join(_CLOSE_TIMEOUT_S)


def _open(endpoint: str) -> Any:
    """OpenTelemetry's provider of tracers.

    Raises:
        ConfigError: see `Tracer`.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"trace_endpoint is {endpoint!r}: give the URL of an OTLP collector over HTTP, such as http://localhost:4318."
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "A trace_endpoint needs OpenTelemetry: run pip install 'dqs[otel]', or unset trace_endpoint."
        ) from error
    if parts.path in ("", "/"):
        endpoint = parts._replace(path=_TRACES_PATH).geturl()
    provider = TracerProvider(
        resource=Resource.create({"service.name": "dqs", "service.version": dqs.__version__}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S),
            max_queue_size=_QUEUE_SPANS,
            max_export_batch_size=_EXPORT_SPANS,
            schedule_delay_millis=_EXPORT_EVERY_S * 1000,
        )
    )
    return provider


__all__ = ["ATTRIBUTES", "Span", "Tracer", "current"]
