"""How fast and how large the duplicate index is, on made-up signatures.

    python -m tests.bench.index_store --documents 100000

One client, one private redis-server with its append-only file on. A tenth of the
documents are near-duplicates of the one before them. Verification and records
are included. Time is given as seen by the client and as processor time of Redis;
the second says what one Redis core carries when clients do not share it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import SignatureParameters, Signatures
from tests.bench.report import emit, show

_BATCH_DOCUMENTS = 1000


def made_up(parameters: SignatureParameters, documents: int, seed: int) -> Iterator[Signatures]:
    """Batches of signatures; every tenth document shares half its bands and 90 % of its sketch with the one before."""
    random = np.random.default_rng(seed)
    for start in range(0, documents, _BATCH_DOCUMENTS):
        n = min(_BATCH_DOCUMENTS, documents - start)
        bands = random.integers(0, 2**32, size=(n, parameters.bands), dtype=np.uint32)
        sketch = random.integers(0, 256, size=(n, parameters.sketch_bytes), dtype=np.uint8)
        text_hash = random.integers(1, 2**63, size=(n, 2)).astype(np.uint64)
        copies = np.arange(9, n, 10)
        bands[copies, ::2] = bands[copies - 1, ::2]
        sketch[copies, parameters.sketch_bytes // 10 :] = sketch[copies - 1, parameters.sketch_bytes // 10 :]
        yield Signatures(parameters, np.full(n, 500, dtype=np.int32), text_hash, bands, sketch)


def measure(documents: int) -> dict[str, Any]:
    """Inserts made-up documents and returns the figures."""
    parameters = SignatureParameters()
    with (
        tempfile.TemporaryDirectory(prefix="dqs-bench-") as folder,
        EmbeddedRedis(Path(folder)) as server,
        closing(connect(server.url)) as client,
        closing(DuplicateStore(client, parameters)) as store,
    ):
        client.config_set("latency-tracking", "yes")
        before: dict[str, Any] = client.info()
        hits, done, wall_s, client_cpu_s = 0, 0, 0.0, 0.0
        for signatures in made_up(parameters, documents, seed=1):
            ids = [f"document-{number:010d}" for number in range(done, done + len(signatures))]
            begin, begin_cpu = time.perf_counter(), time.process_time()
            found = store.check_and_insert("bench", ids, signatures, np.ones(len(ids), dtype=np.bool_))
            wall_s += time.perf_counter() - begin
            client_cpu_s += time.process_time() - begin_cpu
            hits += sum(name is not None for name in found.duplicate_of)
            done += len(ids)
        after: dict[str, Any] = client.info()
        kept = store.documents("bench")
        redis_cpu_s = sum(
            after[name] - before[name] for name in ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
        )
        raw = client.execute_command("LATENCY", "HISTOGRAM", "evalsha")  # type: ignore[no-untyped-call]
        records = next(key for key in client.scan_iter(match="*:records"))
        records_bytes = client.memory_usage(records, samples=1000)
        aof_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*.aof"))
        version = re.sub(r"[^0-9.]", "", str(after["redis_version"]))
    calls, edges = _histogram(raw)
    total_bytes = (after["used_memory"] - before["used_memory"]) / kept
    record_bytes = (records_bytes or 0) / kept
    return {
        "redis": version,
        "documents": done,
        "duplicates_found": hits,
        "kept": kept,
        "documents_per_s_wall": done / wall_s,
        "documents_per_s_redis_core": done / redis_cpu_s,
        "client_cpu_us_per_document": 1e6 * client_cpu_s / done,
        "script_calls": calls,
        "script_call_ms_p50": _percentile_ms(calls, edges, 0.5),
        "script_call_ms_p99": _percentile_ms(calls, edges, 0.99),
        "bytes_per_document": total_bytes,
        "bytes_per_document_record_and_id": record_bytes,
        "bytes_per_document_and_band": (total_bytes - record_bytes) / (parameters.bands + 2),
        "append_only_bytes_per_document": aof_bytes / kept,
    }


def _histogram(reply: Any) -> tuple[int, list[tuple[int, int]]]:
    """Calls, and how many of them took at most so many microseconds; replies differ by protocol version."""
    entry = _as_dict(_as_dict(reply)[b"evalsha"])
    return int(entry[b"calls"]), sorted((int(k), int(v)) for k, v in _as_dict(entry[b"histogram_usec"]).items())


def _as_dict(reply: Any) -> dict[Any, Any]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _percentile_ms(calls: int, edges: list[tuple[int, int]], share: float) -> float:
    return next((upper_us / 1000 for upper_us, count in edges if count >= share * calls), float("nan"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed and size of the duplicate index on made-up signatures.")
    parser.add_argument("--documents", type=int, default=100_000)
    figures = measure(parser.parse_args().documents)
    show("Duplicate index", ["", "value"], list(figures.items()))
    emit("index_store", figures)


if __name__ == "__main__":
    main()
