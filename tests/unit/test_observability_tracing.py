"""Spans as a collector gets them over OTLP."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dqs.data import Document
from dqs.errors import ConfigError
from dqs.observability import tracing
from dqs.observability.tracing import Tracer
from dqs.pipeline import Results
from tests.unit.otlp import Collector, attributes
from tests.unit.pipelines import plain_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def results(documents: int, **seconds: float) -> Results:
    """What a real pipeline answers, with other times and another worker."""
    answers = plain_pipeline().run([Document(str(i), b"a text") for i in range(documents)], corpus=None)
    return dataclasses.replace(answers, seconds=seconds, replica="cpu-1")


def test_a_call_continues_the_trace_of_its_client(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    trace, above = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    metadata: list[tuple[str, str | bytes]] = [
        ("traceparent", f"00-{trace}-{above}-01"),
        ("authorization", "Bearer secret"),
        ("x-bin", b"\xff"),
    ]
    with tracer.span("ScoreBatch", metadata=metadata, method="ScoreBatch", tenant="news") as span:
        assert tracing.current() is span
        span.count(3, 100)
        span.count(2, 50)
        span.set(code="OK")
    assert tracing.current() is None
    tracer.close()
    sent = collector.named("ScoreBatch")
    assert sent.trace_id.hex() == trace
    assert sent.parent_span_id.hex() == above
    assert attributes(sent) == {
        "rpc.system": "grpc",
        "rpc.method": "ScoreBatch",
        "rpc.response.status_code": "OK",
        "dqs.tenant": "news",
        "dqs.documents": 5,
        "dqs.text_bytes": 150,
    }
    assert sent.status.code == 0
    assert collector.paths == {"/v1/traces"}
    assert collector.resource["service.name"] == "dqs"


def test_a_failed_call_names_no_words_of_the_exception(collector: Collector) -> None:
    tracer = Tracer(collector.url + "/v1/traces")
    with pytest.raises(ValueError, match="secret text"), tracer.span("unforeseen"):
        raise ValueError("secret text")
    with tracer.span("refused") as span:
        span.set(code="RESOURCE_EXHAUSTED")
    tracer.close()
    unforeseen, refused = collector.named("unforeseen"), collector.named("refused")
    assert (unforeseen.status.code, unforeseen.status.message) == (2, "ValueError")
    assert (refused.status.code, refused.status.message) == (2, "RESOURCE_EXHAUSTED")
    assert "secret" not in str(collector.spans)
    assert collector.paths == {"/v1/traces"}


def test_a_batch_has_its_parts_with_their_times(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    batch_results = results(7, score=0.5, index=0.25, policy=0.125, text=0.3)
    end_s = time.monotonic()
    before_ns = time.time_ns()
    with tracer.span("first") as first, tracer.span("second") as second:
        tracer.batch(
            [first, None, second, first],
            batch_results,
            queued_s=end_s - 2,
            started_s=end_s - 1,
            ended_s=end_s,
            text_bytes=700,
        )
    tracer.close()
    batch = collector.named("batch")
    assert batch.parent_span_id == collector.named("first").span_id
    assert [link.span_id for link in batch.links] == [collector.named("second").span_id]
    assert attributes(batch) == {
        "dqs.documents": 7,
        "dqs.text_bytes": 700,
        "dqs.requests": 2,
        "dqs.replica": "cpu-1",
        "dqs.policy": batch_results.policy,
    }
    parts = [collector.named(name) for name in ("queue", "score", "index", "policy")]
    assert all(part.parent_span_id == batch.span_id for part in parts)
    lengths_s = [(part.end_time_unix_nano - part.start_time_unix_nano) / 1e9 for part in parts]
    assert lengths_s == pytest.approx([1, 0.5, 0.25, 0.125], abs=1e-5)
    assert parts[0].start_time_unix_nano == batch.start_time_unix_nano
    assert parts[-1].end_time_unix_nano == pytest.approx(batch.end_time_unix_nano, abs=1000)
    assert abs(batch.end_time_unix_nano - before_ns) < 60e9
    queue, score, index, policy = parts
    assert score.start_time_unix_nano == pytest.approx(queue.end_time_unix_nano, abs=1000)
    # Between score and index it waited for its turn to be decided.
    assert index.start_time_unix_nano - score.end_time_unix_nano == pytest.approx(125e6, abs=1e4)
    assert policy.start_time_unix_nano == pytest.approx(index.end_time_unix_nano, abs=1000)


def test_tasks_have_their_own_current_span(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    seen: dict[str, bool] = {}

    async def call(name: str) -> None:
        with tracer.span(name) as span:
            await asyncio.sleep(0.01)
            # What a stream reads in a task of its own belongs to the stream's call.
            seen[name] = await asyncio.create_task(asyncio.to_thread(tracing.current)) is span

    async def calls() -> None:
        await asyncio.gather(*(call(f"call {i}") for i in range(5)))

    asyncio.run(calls())
    tracer.close()
    assert seen == {f"call {i}": True for i in range(5)}
    assert len(collector.spans) == 5


def test_nothing_is_imported_without_an_endpoint() -> None:
    code = (
        "import sys; from dqs.observability.tracing import Tracer, current; tracer = Tracer(None)\n"
        "with tracer.span('a', metadata=[('traceparent', 'x')], tenant='t') as span: span.count(1, 1)\n"
        "assert current() is None; tracer.close()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_without_the_extra_the_endpoint_is_refused() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from dqs.errors import ConfigError; from dqs.observability.tracing import Tracer\n"
        "try: Tracer('http://localhost:4318')\n"
        "except ConfigError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, capture_output=True, text=True
    )
    assert (
        done.stdout == "A trace_endpoint needs OpenTelemetry: run pip install 'dqs[otel]', or unset trace_endpoint.\n"
    )


@pytest.mark.parametrize("endpoint", ["localhost:4318", "", "grpc://localhost:4317"])
def test_an_endpoint_must_be_a_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="such as http://localhost:4318"):
        Tracer(endpoint)


def test_a_collector_that_hangs_holds_up_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = Tracer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin_s = time.monotonic()
        for _ in range(6000):  # more than the queue holds
            with tracer.span("call"):
                pass
        spent_s = time.monotonic() - begin_s
        begin_s = time.monotonic()
        tracer.close()
        closing_s = time.monotonic() - begin_s
    assert spent_s < 20
    assert closing_s < 20
