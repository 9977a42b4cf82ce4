"""Rates and quantiles from two scrapes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from dqs.data import Document
from dqs.errors import DocumentError, DocumentErrorCode, RequestError
from dqs.observability.metrics import Metrics
from dqs.observability.snapshot import Page, compare, parse, quantile
from dqs.pipeline import Replica, Swaps
from tests.unit.pipelines import plain_pipeline

TEXTS = [b"A text that is long enough to be looked at, in two lines.\nThis is the second of them.", b"", b"\xff\xfe"]


def scrape(metrics: Metrics, at_s: float) -> Page:
    return parse(generate_latest(metrics.registry).decode(), at_s)


def test_rates_of_an_interval() -> None:
    metrics = Metrics()
    metrics.watch("pending_bytes", lambda: 12.0)
    results = plain_pipeline().run([Document(str(i), text) for i, text in enumerate(TEXTS)], corpus=None)
    metrics.answered("books", results, 0, 3)
    metrics.batch([9.0], results, 1000)
    before = scrape(metrics, 100.0)
    metrics.answered("books", results, 0, 1)
    metrics.answered("news", results, 2, 3)
    metrics.answered("news", DocumentError(DocumentErrorCode.INTERNAL, "It broke."), 0, 2)
    metrics.batch([0.003, 0.004], results, 500)
    metrics.call("ScoreBatch", "OK", 0.03)
    metrics.call("ScoreBatch", "OK", 0.04)
    metrics.dropped("deadline", 4)
    snapshot = compare(before, scrape(metrics, 102.0), now_s=0.0)
    assert snapshot.interval_s == 2.0
    assert snapshot.documents_per_s == 2.0
    assert snapshot.text_bytes_per_s == 250.0
    assert snapshot.decisions_per_s["error"] == 1.5
    assert math.fsum(snapshot.decisions_per_s.values()) == 2.0
    assert [(tenant.name, tenant.documents_per_s) for tenant in snapshot.tenants] == [("news", 1.5), ("books", 0.5)]
    assert snapshot.calls_per_s == {"OK": 1.0}
    assert snapshot.failures_per_s == {"deadline": 2.0}
    assert snapshot.pending_bytes == 12.0
    assert snapshot.pending_documents is None
    latencies = {(each.what, each.name): each for each in snapshot.latencies}
    queue = latencies["queue", ""]
    assert queue.per_s == 1.0
    # Both are in the bucket from 2 to 5 ms; the 9 s of the batch before do not count.
    assert queue.p50_s == pytest.approx(0.0035)
    assert latencies["request", "ScoreBatch"].p50_s == pytest.approx(0.035)
    assert {"score", "index", "policy", "text", "language"} <= {name for what, name in latencies if what == "stage"}


def test_a_server_that_started_again_counts_from_zero() -> None:
    first, second = Metrics(), Metrics()
    for _ in range(5):
        first.call("ScoreBatch", "OK", 0.1)
    second.call("ScoreBatch", "OK", 0.1)
    before, after = scrape(first, 0.0), scrape(second, 1.0)
    assert compare(before, after, 0.0).calls_per_s == {"OK": 0.0}
    started = {frozenset[tuple[str, str]](): -1.0}
    before = Page(0.0, {**before.samples, "process_start_time_seconds": started})
    assert compare(before, after, 0.0).calls_per_s == {"OK": 1.0}


def test_replicas_come_with_all_they_show() -> None:
    metrics = Metrics()
    replicas = [
        Replica("cpu-10", "cpu", "node a", True, 7, 0),
        Replica("cpu-9", "cpu", 'a "quoted"\\ node', False, 0, 3),
    ]
    metrics.watch_replicas(lambda: replicas)
    page = scrape(metrics, 0.0)
    lines = compare(page, page, 0.0).replicas
    assert [(line.name, line.ready, line.pending_bytes, line.restarts) for line in lines] == [
        ("cpu-9", False, 0, 3),
        ("cpu-10", True, 7, 0),
    ]
    assert lines[0].node == 'a "quoted"\\ node'
    assert dict(page.samples["dqs_replicas"]) == {
        frozenset({("pool", "cpu"), ("state", "ready")}): 1.0,
        frozenset({("pool", "cpu"), ("state", "starting")}): 1.0,
    }


def test_refused_models_are_seen() -> None:
    metrics, swaps = Metrics(), Swaps()
    metrics.watch_models(list, lambda: swaps)
    before = scrape(metrics, 0.0)
    swaps.refusal = "It does not load."
    after = scrape(metrics, 1.0)
    assert (compare(before, before, 0.0).models_refused, compare(before, after, 0.0).models_refused) == (False, True)


@pytest.mark.parametrize("text", ["", "<html>", "up 1\n", "{{{", "a b c d\n"])
def test_another_page_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not the metrics of a DQS server"):
        parse(text, 0.0)


def test_quantiles_where_they_are_known() -> None:
    bounds = [1.0, 2.0, 4.0, math.inf]
    assert quantile(bounds, [0, 0, 0, 0], 0.5) is None
    assert quantile(bounds, [4, 0, 0, 0], 0.5) == 0.5
    assert quantile(bounds, [1, 1, 2, 0], 0.99) == pytest.approx(4 - 2 * 0.02)
    assert quantile(bounds, [0, 0, 0, 3], 0.5) == 4.0


@given(st.lists(st.floats(0.0001, 50), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    bounds = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    counts = [sum(low < value <= high for value in values) for low, high in zip([0.0, *bounds], bounds, strict=False)]
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    found = quantile(bounds, counts, share)
    assert found is not None
    at = next(i for i, bound in enumerate(bounds) if true <= bound)
    assert (bounds[at - 1] if at else 0.0) <= found <= bounds[at]


def test_histograms_are_those_of_prometheus_client() -> None:
    from prometheus_client import CollectorRegistry, Histogram

    random.seed(1)
    metrics = Metrics()
    values = [random.expovariate(10) for _ in range(500)]
    for value in [*values, 0.5, 1.0, 0.0, 1e6]:
        metrics.call("ScoreBatch", "OK", value)
    ours = {
        dict(labels)["le"]: count
        for labels, count in scrape(metrics, 0.0).samples["dqs_request_seconds_bucket"].items()
    }
    theirs = Histogram(
        "a", "b", buckets=[float(bound) for bound in ours if bound != "+Inf"], registry=CollectorRegistry()
    )
    for value in [*values, 0.5, 1.0, 0.0, 1e6]:
        theirs.observe(value)
    expected = {
        sample.labels["le"]: sample.value
        for family in theirs.collect()
        for sample in family.samples
        if sample.name == "a_bucket"
    }
    assert ours == expected
