"""What a server did between two scrapes of its metrics: rates, shares, quantiles. Pure; reads and shows nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from dqs.errors import RequestError

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Page:
    """One scrape.

    Attributes:
        at_s: when it was taken, on a clock that never steps back.
        samples: sample name -> labels -> value.
    """

    at_s: float
    samples: Mapping[str, Mapping[Labels, float]]

    def value(self, name: str) -> float | None:
        """The sum of the samples of a name over all labels; None where there are none."""
        found = self.samples.get(name)
        return math.fsum(found.values()) if found else None

    def labelled(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The samples of a name with their labels."""
        return [(dict(labels), value) for labels, value in self.samples.get(name, {}).items()]


def parse(text: str, at_s: float) -> Page:
    """Reads Prometheus's text format.

    Args:
        text: the body of an answer.
        at_s: when it came.

    Raises:
        RequestError: it is something else, or no DQS server wrote it.
    """
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name][frozenset(sample.labels.items())] = float(sample.value)
    except ValueError:
        samples.clear()
    if "dqs_build_info" not in samples:
        raise RequestError("what answers there is not the metrics of a DQS server")
    return Page(at_s, samples)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took.

    Attributes:
        what: "request", "queue" or "stage".
        name: method or stage, "" for the queue.
        per_s: how often it happened.
        p50_s: median in seconds; None where it did not happen.
        p99_s: 99th percentile in seconds.
    """

    what: str
    name: str
    per_s: float
    p50_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class ReplicaLine:
    """One scorer process as the server shows it."""

    name: str
    pool: str
    node: str
    ready: bool
    pending_bytes: int
    restarts: int


@dataclass(frozen=True, slots=True)
class TenantLine:
    """One tenant: documents per second, all and by decision."""

    name: str
    documents_per_s: float
    decisions_per_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server over an interval. Rates are per second; what is None the server does not show.

    Attributes:
        version: of the server.
        interval_s: length of the interval.
        uptime_s: age of the server's process.
        cores: processors' worth of time that the process used.
        resident_bytes: its memory.
        documents_per_s: answered documents.
        text_bytes_per_s: scored text.
        decisions_per_s: answered documents by decision: keep, drop, review, error.
        pending_documents: taken in and not yet answered.
        pending_bytes: text of theirs.
        oldest_s: age of the oldest document that no worker has yet.
        calls: open unary calls.
        streams: open streams.
        calls_per_s: calls that ended, by status code.
        slots: batches that the workers take at once; 0 while nobody can score.
        degraded: whether the duplicate index could not be reached last time.
        models_refused: whether the models that were promoted last do not serve.
        redis_errors_per_s: batches for which it could not be reached.
        failures_per_s: documents given back unscored, by reason.
        latencies: requests by method, the queue, stages.
        replicas: scorer processes.
        tenants: tenants, the busiest first.
    """

    version: str
    interval_s: float
    uptime_s: float | None
    cores: float | None
    resident_bytes: float | None
    documents_per_s: float
    text_bytes_per_s: float
    decisions_per_s: Mapping[str, float]
    pending_documents: float | None
    pending_bytes: float | None
    oldest_s: float | None
    calls: float | None
    streams: float | None
    calls_per_s: Mapping[str, float]
    slots: float | None
    degraded: bool
    models_refused: bool
    redis_errors_per_s: float
    failures_per_s: Mapping[str, float]
    latencies: Sequence[Latency] = field(default_factory=tuple)
    replicas: Sequence[ReplicaLine] = field(default_factory=tuple)
    tenants: Sequence[TenantLine] = field(default_factory=tuple)


def compare(before: Page, after: Page, now_s: float) -> Snapshot:
    """What happened between two scrapes.

    Args:
        before: the earlier one.
        after: the later one.
        now_s: wall-clock time of `after`, as seconds since the epoch, for the server's age.
    """
    interval_s = max(1e-3, after.at_s - before.at_s)
    started_s = after.value("process_start_time_seconds")
    if started_s != before.value("process_start_time_seconds"):
        # Another process: its counters began at 0, and not longer ago than it lives.
        before = Page(before.at_s, {})

    def rate(name: str, label: str | None = None) -> dict[str, float]:
        """Growth of a counter per second, by the value of a label."""
        found: dict[str, float] = defaultdict(float)
        earlier = before.samples.get(name, {})
        for labels, value in after.samples.get(name, {}).items():
            key = dict(labels).get(label, "") if label else ""
            found[key] += max(0.0, value - earlier.get(labels, 0.0)) / interval_s
        return dict(found)

    decisions = rate("dqs_docs_total", "decision")
    return Snapshot(
        version=next((labels.get("version", "") for labels, _ in after.labelled("dqs_build_info")), ""),
        interval_s=interval_s,
        uptime_s=None if started_s is None else max(0.0, now_s - started_s),
        cores=rate("process_cpu_seconds_total").get(""),
        resident_bytes=after.value("process_resident_memory_bytes"),
        documents_per_s=math.fsum(decisions.values()),
        text_bytes_per_s=rate("dqs_text_bytes_total").get("", 0.0),
        decisions_per_s={name: decisions.get(name, 0.0) for name in ("keep", "drop", "review", "error")},
        pending_documents=after.value("dqs_pending_docs"),
        pending_bytes=after.value("dqs_pending_bytes"),
        oldest_s=after.value("dqs_queue_oldest_seconds"),
        calls=after.value("dqs_inflight_calls"),
        streams=after.value("dqs_inflight_streams"),
        calls_per_s=rate("dqs_requests_total", "code"),
        slots=after.value("dqs_executor_slots"),
        degraded=bool(after.value("dqs_degraded")),
        models_refused=bool(after.value("dqs_models_refused")),
        redis_errors_per_s=rate("dqs_redis_errors_total").get("", 0.0),
        failures_per_s=rate("dqs_failures_total", "reason"),
        latencies=[
            *_latencies(before, after, interval_s, "request", "dqs_request_seconds", "method"),
            *_latencies(before, after, interval_s, "queue", "dqs_queue_seconds", None),
            *_latencies(before, after, interval_s, "stage", "dqs_compute_seconds", "stage"),
        ],
        replicas=_replicas(after),
        tenants=_tenants(before, after, interval_s),
    )


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """A quantile from a histogram, interpolated within the bucket that holds it.

    Args:
        bounds: upper bounds of the buckets, ascending; the last may be infinite.
        counts: how many values lie in each bucket, those of lower buckets not counted in.
        share: such as 0.99.

    Returns:
        None without values; the last finite bound where the quantile lies beyond it.
    """
    total = math.fsum(counts)
    if total <= 0:
        return None
    rank = share * total
    below = 0.0
    low = 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count > 0 and below + count >= rank:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / count
        below += count
        low = low if math.isinf(bound) else bound
    return low


def _latencies(before: Page, after: Page, interval_s: float, what: str, name: str, label: str | None) -> list[Latency]:
    buckets: dict[str, dict[float, float]] = defaultdict(dict)
    earlier = before.samples.get(f"{name}_bucket", {})
    for labels, value in after.samples.get(f"{name}_bucket", {}).items():
        named = dict(labels)
        buckets[named.get(label, "") if label else ""][float(named["le"])] = max(0.0, value - earlier.get(labels, 0.0))
    found = []
    for key, cumulative in buckets.items():
        bounds = sorted(cumulative)
        sums = [cumulative[bound] for bound in bounds]
        counts = [max(0.0, high - low) for low, high in zip([0.0, *sums], sums, strict=False)]
        found.append(
            Latency(what, key, sums[-1] / interval_s, quantile(bounds, counts, 0.5), quantile(bounds, counts, 0.99))
        )
    return found


def _replicas(page: Page) -> list[ReplicaLine]:
    def by_replica(name: str) -> dict[str, int]:
        return {labels.get("replica", ""): int(value) for labels, value in page.labelled(name)}

    pending, restarts = by_replica("dqs_replica_pending_bytes"), by_replica("dqs_replica_restarts_total")
    return sorted(
        (
            ReplicaLine(
                name=labels.get("replica", ""),
                pool=labels.get("pool", ""),
                node=labels.get("node", ""),
                ready=bool(ready),
                pending_bytes=pending.get(labels.get("replica", ""), 0),
                restarts=restarts.get(labels.get("replica", ""), 0),
            )
            for labels, ready in page.labelled("dqs_replica_ready")
        ),
        key=lambda replica: (replica.pool, len(replica.name), replica.name),
    )


def _tenants(before: Page, after: Page, interval_s: float) -> list[TenantLine]:
    decisions: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    earlier = before.samples.get("dqs_docs_total", {})
    for labels, value in after.samples.get("dqs_docs_total", {}).items():
        named = dict(labels)
        growth = max(0.0, value - earlier.get(labels, 0.0))
        decisions[named.get("tenant", "")][named.get("decision", "")] += growth / interval_s
    lines = [TenantLine(name, math.fsum(each.values()), dict(each)) for name, each in decisions.items()]
    return sorted(lines, key=lambda line: (-line.documents_per_s, line.name))


__all__ = ["Latency", "Page", "ReplicaLine", "Snapshot", "TenantLine", "compare", "parse", "quantile"]
