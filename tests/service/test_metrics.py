"""Metrics, traces and logs of a whole server in a process of its own."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from dqs.client import Client
from dqs.data import Document, Label, Missing
from dqs.errors import DqsError
from dqs.observability import logs
from dqs.observability.snapshot import Page, parse
from dqs.v1 import scoring_pb2
from tests.service.serving import CHINESE, ENGLISH, POISON, READY_PREFIX, ROOT, LocalServer, Redis, wait_until
from tests.unit.otlp import Collector, attributes

SECRET = "a secret that stands in a document"
CODE = (
    "import sys, dqs.settings as s; settings = s.load_settings(**dict(a.split('=', 1) for a in sys.argv[1:]));"
    "from dqs.app import serve; serve(settings)"
)


class Server:
    """A server with metrics in a process of its own, whose standard error is kept."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._log = folder / "log"
        named = {"port": 0, "metrics_port": 0, "data_dir": folder, "log_format": "json", **settings}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, *(f"{name}={value}" for name, value in named.items())],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(READY_PREFIX), f"the server ended with {self.process.wait()}: {self.log}"
        self.address = line.removeprefix(READY_PREFIX).strip()
        (self.metrics,) = re.findall(r"metrics on ([\d.:]+)", self.log)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text("utf-8")

    def scrape(self) -> Page:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as answer:
            return parse(answer.read().decode(), 0.0)

    def stop(self) -> int:
        """Asks it to drain; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def value(page: Page, name: str, **labels: str) -> float:
    return page.samples.get(name, {}).get(frozenset(labels.items()), 0.0)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    """A server that is watched in every way."""
    with Server(tmp_path_factory.mktemp("observed"), trace_endpoint=collector.url, log_level="debug") as server:
        yield server


def test_a_server_counts_what_it_did(observed: Server) -> None:
    before = observed.scrape()
    documents = [Document(str(i), text.encode()) for i, text in enumerate([ENGLISH, CHINESE, ENGLISH, SECRET])]
    with Client(observed.address) as client:
        verdicts = list(client.score([*documents, Document("broken", b"\xff\xfe")], corpus="counted"))
        client.score_batch(documents[:1], corpus="counted")
    assert verdicts[2].duplicate_of == "0"
    wait_until(lambda: value(observed.scrape(), "dqs_requests_total", method="ScoreStream", code="OK") > 0)
    page = observed.scrape()

    def growth(name: str, **labels: str) -> float:
        return value(page, name, **labels) - value(before, name, **labels)

    decided = {name: growth("dqs_docs_total", tenant="default", decision=name) for name in ("keep", "drop", "error")}
    kept = sum(verdict.label == Label.KEEP for verdict in verdicts)
    assert sum(decided.values()) + growth("dqs_docs_total", tenant="default", decision="review") == 6
    assert decided["error"] == 1
    assert decided["keep"] >= kept
    assert growth("dqs_doc_errors_total", code="INVALID_UTF8") == 1
    assert growth("dqs_requests_total", method="ScoreBatch", code="OK") == 1
    assert growth("dqs_request_seconds_count", method="ScoreBatch") == 1
    assert growth("dqs_text_bytes_total") == sum(len(document.text) for document in documents) + 2 + len(ENGLISH)
    batches = growth("dqs_batches_total")
    assert batches >= 2
    for stage in ("score", "index", "policy", "text", "language", "perplexity", "toxicity", "signature"):
        assert growth("dqs_compute_seconds_count", stage=stage) == batches
    assert growth("dqs_queue_seconds_count") >= 2
    assert value(page, "dqs_executor_slots") == 1
    assert value(page, "dqs_replicas", pool="inline", state="ready") == 1
    for gauge in (
        "dqs_pending_docs", "dqs_pending_bytes", "dqs_inflight_calls", "dqs_inflight_streams", "dqs_degraded",
        "dqs_queue_oldest_seconds",
    ):  # fmt: skip
        assert page.value(gauge) == 0, gauge
    assert SECRET not in str(page)


def test_a_refused_request_is_counted_by_its_code(observed: Server) -> None:
    with Client(observed.address) as client, pytest.raises(DqsError):
        client.score_batch([Document("1", b"text")], policy="there is none of this name")
    assert value(observed.scrape(), "dqs_requests_total", method="ScoreBatch", code="INVALID_ARGUMENT") == 1


def test_top_shows_it(observed: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dqs.cli", "top", observed.metrics, "--json", "--once", "--interval", "0.2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    snapshot = json.loads(done.stdout)
    assert snapshot["slots"] == 1
    assert snapshot["pending_documents"] == 0
    assert snapshot["resident_bytes"] > 1e6
    assert [replica["name"] for replica in snapshot["replicas"]] == ["inline"]


def test_a_trace_leads_from_the_caller_to_the_stages(observed: Server, collector: Collector) -> None:
    trace, above = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    request = scoring_pb2.ScoreBatchRequest(documents=[{"id": "traced", "text": SECRET.encode()}])
    with grpc.insecure_channel(observed.address) as channel:
        score = channel.unary_unary(
            "/dqs.v1.ScoringService/ScoreBatch", scoring_pb2.ScoreBatchRequest.SerializeToString
        )
        metadata = (("traceparent", f"00-{trace}-{above}-01"), ("x-request-id", "traced-1"))
        score(request, metadata=metadata, timeout=60)

    def of_the_trace() -> dict[str, Any]:
        return {span.name: span for span in collector.spans if span.trace_id.hex() == trace}

    names = {"ScoreBatch", "batch", "queue", "score", "index", "policy"}
    wait_until(lambda: set(of_the_trace()) == names)
    spans = of_the_trace()
    call = spans["ScoreBatch"]
    assert call.parent_span_id.hex() == above
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.method": "ScoreBatch",
        "rpc.response.status_code": "OK",
        "dqs.tenant": "default",
        "dqs.request_id": "traced-1",
        "dqs.documents": 1,
        "dqs.text_bytes": len(SECRET),
    }
    batch = spans["batch"]
    assert batch.parent_span_id == call.span_id
    assert attributes(batch)["dqs.replica"] == "inline"
    for name in ("queue", "score", "index", "policy"):
        part = spans[name]
        assert part.parent_span_id == batch.span_id
        assert batch.start_time_unix_nano <= part.start_time_unix_nano <= part.end_time_unix_nano
        assert part.end_time_unix_nano <= batch.end_time_unix_nano + 1000
    assert SECRET not in str(collector.spans)


def test_log_lines_are_json_without_text(observed: Server) -> None:
    lines = [json.loads(line) for line in observed.log.splitlines()]
    assert lines
    assert all({"ts", "level", "logger", "message"} <= set(line) for line in lines)
    assert SECRET not in observed.log


def test_degraded_until_redis_is_back(tmp_path: Path, redis: Redis) -> None:
    with Server(tmp_path, redis_url=redis.url, redis_timeout_s=1) as server, Client(server.address) as client:
        client.score_batch([Document("1", ENGLISH.encode())])
        assert server.scrape().value("dqs_degraded") == 0
        redis.kill()
        verdicts = client.score_batch([Document("2", CHINESE.encode())], degrade=True)
        assert verdicts[0].missing["duplicate_similarity"] == Missing.UNAVAILABLE
        page = server.scrape()
        assert page.value("dqs_degraded") == 1
        assert page.value("dqs_degraded_docs_total") == 1
        request = scoring_pb2.ScoreBatchRequest(documents=[{"id": "3", "text": CHINESE.encode()}])
        with grpc.insecure_channel(server.address) as channel:
            score = channel.unary_unary(
                "/dqs.v1.ScoringService/ScoreBatch", scoring_pb2.ScoreBatchRequest.SerializeToString
            )
            with pytest.raises(grpc.RpcError):
                score(request, timeout=60)
        page = server.scrape()
        assert (page.value("dqs_redis_errors_total") or 0) >= 2
        assert value(page, "dqs_failures_total", reason="index_unavailable") >= 1
        redis.start()

        def is_back() -> bool:
            client.score_batch([Document("4", ENGLISH.encode())], degrade=True)
            return server.scrape().value("dqs_degraded") == 0

        wait_until(is_back)


def test_a_broken_scorer_logs_no_text(local: LocalServer) -> None:
    root = logging.getLogger()
    before, stream = list(root.handlers), io.StringIO()
    try:
        logs.setup("json", "debug", stream)
        with Client(local.address) as client:
            verdicts = client.score_batch([Document("1", POISON + SECRET.encode())], corpus=None)
    finally:
        root.handlers[:] = before
        logging.getLogger("dqs").setLevel(logging.NOTSET)
    assert verdicts[0].error is not None
    assert verdicts[0].error[0] == "INTERNAL"
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines() if "incident" in line]
    assert "ValueError" in line["message"]
    assert SECRET not in stream.getvalue()
    assert SECRET not in str(verdicts)
