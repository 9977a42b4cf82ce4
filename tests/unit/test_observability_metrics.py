"""The metrics of one server: what is counted, over HTTP, and that the README lists all of it."""

from __future__ import annotations

import dataclasses
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest

import dqs.observability
from dqs.data import Document, Label, Missing
from dqs.errors import ConfigError, DocumentError, DocumentErrorCode
from dqs.observability.metrics import WATCHED, Metrics, serve_metrics
from dqs.observability.snapshot import Page, parse
from dqs.pipeline import ModelInfo, Replica, Results, Swaps
from tests.unit.pipelines import plain_pipeline

README = Path(dqs.observability.__file__).with_name("README.md")
DOCUMENTS = [
    Document("secret id", b"Secret words that no metric may hold, in a text that is long enough."),
    Document("broken", b"\xff\xfe"),
    Document("", b"no id"),
]


@pytest.fixture(scope="module")
def results() -> Results:
    return plain_pipeline().run(DOCUMENTS, corpus=None)


def everything(results: Results) -> Metrics:
    """Metrics in which every series is there."""
    metrics = Metrics()
    metrics.call("ScoreBatch", "OK", 0.1)
    metrics.answered("news", results, 0, 3)
    metrics.batch([0.1], results, 100)
    metrics.dropped("deadline", 3)
    for name in WATCHED:
        metrics.watch(name, lambda: 1.0)
    metrics.watch_replicas(lambda: [Replica("cpu-0", "cpu", "here", True, 0, 0)])
    metrics.watch_models(lambda: [ModelInfo("toxicity-en", "2", "toxicity", ("en",), "")], lambda: Swaps(done=1))
    return metrics


def scrape(metrics: Metrics) -> Page:
    return parse(generate_latest(metrics.registry).decode(), 0.0)


def value(page: Page, name: str, **labels: str) -> float:
    return page.samples[name].get(frozenset(labels.items()), 0.0)


def test_answers_are_counted_by_decision_and_error(results: Results) -> None:
    metrics = everything(results)
    metrics.answered("books", results, 1, 2)
    metrics.answered("books", DocumentError(DocumentErrorCode.INTERNAL, "It broke."), 0, 5)
    page = scrape(metrics)
    kept = int((results.labels == Label.KEEP).sum())
    assert value(page, "dqs_docs_total", tenant="news", decision="keep") == kept
    assert value(page, "dqs_docs_total", tenant="news", decision="error") == 2
    assert value(page, "dqs_docs_total", tenant="books", decision="error") == 6
    assert value(page, "dqs_doc_errors_total", code="INVALID_UTF8") == 2
    assert value(page, "dqs_doc_errors_total", code="INVALID_ID") == 1
    assert value(page, "dqs_doc_errors_total", code="INTERNAL") == 5
    assert page.value("dqs_docs_total") == 9


def test_degraded_while_the_index_is_away(results: Results) -> None:
    def answers(missing: list[Missing]) -> Results:
        columns = dataclasses.replace(results.columns, missing=dict(results.columns.missing))
        columns.missing["duplicate_similarity"] = np.array(missing, dtype=np.uint8)
        return dataclasses.replace(results, columns=columns)

    metrics = Metrics()
    away = answers([Missing.UNAVAILABLE] * 3)
    there = answers([Missing.PRESENT, Missing.UNAVAILABLE, Missing.UNAVAILABLE])  # two have errors of their own
    not_asked = answers([Missing.NOT_ASKED] * 3)
    states = []
    for each in (there, away, not_asked, there):
        metrics.batch([], each, 1)
        states.append(scrape(metrics).value("dqs_degraded"))
    assert states == [0, 1, 1, 0]
    page = scrape(metrics)
    assert page.value("dqs_degraded_docs_total") == 1
    assert page.value("dqs_redis_errors_total") == 1
    metrics.redis_failed()
    assert scrape(metrics).value("dqs_degraded") == 1


def test_no_label_holds_an_id_or_text(results: Results) -> None:
    text = generate_latest(everything(results).registry).decode()
    assert "ecret" not in text
    labels = {name for line in text.splitlines() for name in re.findall(r"(\w+)=\"", line)}
    allowed = {"method", "code", "tenant", "decision", "reason", "stage", "pool", "state", "replica", "node", "model"}
    assert labels <= allowed | {"version", "le", "generation", "outcome"}


def test_every_metric_stands_in_the_readme(results: Results) -> None:
    rows: dict[str, tuple[str, set[str], str]] = {}
    for line in README.read_text("utf-8").splitlines():
        if line.startswith("| `dqs_"):
            name, kind, named, _, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", named)), meaning)
    there: dict[str, tuple[str, set[str], str]] = {}
    for family in everything(results).registry.collect():
        if family.name.startswith("dqs_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            there[name] = (family.type, labels, family.documentation)
    assert rows == there


def test_every_metric_has_its_help_and_no_twin_for_its_creation(results: Results) -> None:
    lines = generate_latest(everything(results).registry).decode().splitlines()
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert {"dqs_requests_total", "process_resident_memory_bytes", "python_gc_collections_total"} <= helped
    assert not [line for line in lines if "_created" in line]


def test_gauges_that_change_while_they_are_read() -> None:
    metrics = Metrics()
    attempts = 0

    def unsteady() -> float:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return 7.0

    def never() -> float:
        raise RuntimeError("dictionary changed size during iteration")

    metrics.watch("streams", unsteady)
    metrics.watch("calls", never)
    page = scrape(metrics)
    assert page.value("dqs_inflight_streams") == 7
    assert page.value("dqs_inflight_calls") is None
    with pytest.raises(KeyError):
        metrics.watch("unheard of", never)


def test_over_http(results: Results) -> None:
    metrics = everything(results)
    server = serve_metrics(metrics, "127.0.0.1", 0)
    host, port = server.address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert value(parse(answer.read().decode(), 0.0), "dqs_executor_slots") == 1
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{host}:{port}/other", timeout=30)
        assert caught.value.code == 404
        caught.value.close()
        with pytest.raises(ConfigError, match=r"choose another metrics_host or metrics_port\.$"):
            serve_metrics(metrics, host, port)
    finally:
        server.close()
    serve_metrics(metrics, host, port).close()  # the port is free again
    assert not [thread for thread in threading.enumerate() if thread.name == "dqs-metrics"]


def test_an_address_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"Cannot serve metrics on 203\.0\.113\.1:0"):
        serve_metrics(Metrics(), "203.0.113.1", 0)


def test_scrapes_while_counting(results: Results) -> None:
    metrics = Metrics()
    stopping = threading.Event()
    broken: list[Exception] = []

    def read() -> None:
        while not stopping.is_set():
            try:
                page = scrape(metrics)
                counts = [count for labels, count in sorted(page.labelled("dqs_batch_bytes_bucket"), key=_bound)]
                assert counts == sorted(counts)
            except Exception as error:
                broken.append(error)

    def _bound(sample: tuple[dict[str, str], float]) -> float:
        return float(sample[0]["le"])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(500):
        metrics.batch([0.1], dataclasses.replace(results, seconds={f"stage {number % 40}": 0.1}), number)
        metrics.answered(f"tenant {number % 40}", results, 0, 3)
        metrics.call(f"method {number % 40}", "OK", 0.1)
    stopping.set()
    for reader in readers:
        reader.join()
    assert broken == []
    assert scrape(metrics).value("dqs_batches_total") == 500
