"""How fast and how large the duplicate index is, on made-up signatures.

    python -m tests.bench.index_store --documents 5000000 --peers .venv-peers/bin/python

One client, one private redis-server with its append-only file on. A tenth of the
documents are near-duplicates of the one before them. Verification, records and
answers for retries are included. At every mark: documents a second over the last
of them, as seen by the client and of Redis's processor time (what one core carries
when clients do not share it), script calls, memory by part. After 100,000 documents
also with one document a call; after 1,000,000 a tenth of them is deleted.
With `--peers` datasketch's Redis storage does the same, one document a call.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import redis

from dqs.index.embedded import EmbeddedRedis
from dqs.index.layout import encoded_id
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import LINES, SignatureParameters, Signatures
from tests.bench.report import emit, show

MARKS = (100_000, 1_000_000, 5_000_000)
"""Documents after which figures are taken."""

SINGLE_AT, SINGLE_DOCUMENTS = 100_000, 5_000
DELETE_AT, DELETE_DOCUMENTS = 1_000_000, 100_000
_WINDOW_DOCUMENTS = 50_000
_BATCH_DOCUMENTS = 1000
_SAMPLES = 20_000
_CORPUS = "bench"


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
        lines = np.zeros((n, LINES), dtype=np.uint32)
        yield Signatures(parameters, np.full(n, 500, dtype=np.int32), text_hash, bands, sketch, lines)


def ids_from(start: int, n: int) -> list[str]:
    """Ids of 19 characters."""
    return [f"document-{number:010d}" for number in range(start, start + n)]


class Timed:
    """Time spent by client and Redis since it was made or `restart`ed."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.restart()

    def restart(self) -> None:
        """Begins anew."""
        self.documents, self.wall_s, self.client_cpu_s = 0, 0.0, 0.0
        self._client.config_resetstat()
        self._redis_cpu_s = self._cpu_s()

    def call(self, store: DuplicateStore, ids: list[str], signatures: Signatures) -> int:
        """One call of the store; returns how many duplicates it named."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        found = store.check_and_insert(_CORPUS, ids, signatures, np.ones(len(ids), dtype=np.bool_))
        self.wall_s += time.perf_counter() - begin
        self.client_cpu_s += time.process_time() - begin_cpu
        self.documents += len(ids)
        return sum(name is not None for name in found.duplicate_of)

    def figures(self) -> dict[str, Any]:
        """What was measured."""
        redis_cpu_s = self._cpu_s() - self._redis_cpu_s
        calls = self._client.info("commandstats")["cmdstat_evalsha"]
        percentiles = self._percentiles()
        return {
            "documents_per_s_wall": self.documents / self.wall_s,
            "documents_per_s_redis_core": self.documents / redis_cpu_s,
            "client_cpu_us_per_document": 1e6 * self.client_cpu_s / self.documents,
            "script_us_per_document": calls["usec"] / self.documents,
            "script_call_ms_mean": calls["usec_per_call"] / 1000,
            **percentiles,
        }

    def _cpu_s(self) -> float:
        used: dict[str, Any] = self._client.info("cpu")
        return float(used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"])

    def _percentiles(self) -> dict[str, float]:
        stats: dict[str, Any] = self._client.info("latencystats")
        found = stats.get("latency_percentiles_usec_evalsha")
        if found is None:  # Redis 6.2 keeps none
            return {}
        return {f"script_call_ms_{name}": float(found[name]) / 1000 for name in ("p50", "p99")}


def sizes(client: redis.Redis, store: DuplicateStore) -> dict[str, float]:
    """Bytes per kept document by part, estimated by Redis from a sample."""
    header: dict[Any, Any] = client.hgetall(f"dqs:{{default:{_CORPUS}}}:header")
    base = f"dqs:{{default:{_CORPUS}}}:{header[b'generation'].decode()}:"

    def used(name: str) -> int:
        return int(client.memory_usage(base + name, samples=_SAMPLES) or 0)

    kept = int(header[b"documents"])
    retries = int(header[b"retries_next"]) - int(header[b"retries_oldest"])
    bands = store.parameters(_CORPUS).bands
    entry = used("buckets") / (kept * (bands + 1) + retries)
    ids = int(header[b"id_bytes"]) / kept
    record = used("records") / kept
    return {
        "lsh_bytes_per_document_and_band": entry,
        "lsh_bytes_per_document": entry * bands,
        "sketch_bytes": store.parameters(_CORPUS).sketch_bytes,
        "record_bytes_per_document_without_sketch_and_id": record - store.parameters(_CORPUS).sketch_bytes - ids,
        "id_bytes_per_document": ids + entry,
        "bytes_per_document": entry * (bands + 1) + record,
        "bytes_per_remembered_answer": used("retries") / max(retries, 1) + entry,
    }


def measure(documents: int, folder: Path) -> dict[str, Any]:
    """Inserts made-up documents and returns the figures."""
    parameters = SignatureParameters()
    results: dict[str, Any] = {}
    with (
        EmbeddedRedis(folder) as server,
        closing(connect(server.url, timeout_s=60)) as client,
        closing(DuplicateStore(client, parameters)) as store,
    ):
        results["redis"] = re.sub(r"[^0-9.]", "", str(client.info("server")["redis_version"]))
        timed = Timed(client)
        done = hits = 0
        wanted = [mark for mark in MARKS if mark <= documents] or [documents]
        begin = time.perf_counter()
        for signatures in made_up(parameters, documents, seed=1):
            if any(done == mark - min(_WINDOW_DOCUMENTS, mark) for mark in wanted):
                timed.restart()
            hits += timed.call(store, ids_from(done, len(signatures)), signatures)
            done += len(signatures)
            if done % 20_000 == 0:
                rate = done / (time.perf_counter() - begin)
                print(f"\r  {done:,} of {documents:,} documents, {rate:,.0f}/s", end="", file=sys.stderr, flush=True)
            if done in wanted:
                results[f"{done:,}"] = {**timed.figures(), **sizes(client, store)}
                if done == SINGLE_AT:
                    results["one_document_a_call"] = one_by_one(client, store)
                if done == DELETE_AT:
                    results["delete"] = delete(store)
        print(file=sys.stderr)
        results["duplicates_named"] = hits
    return results


def one_by_one(client: redis.Redis, store: DuplicateStore) -> dict[str, Any]:
    """One document a call."""
    timed = Timed(client)
    done = 0
    for signatures in made_up(store.default_parameters, SINGLE_DOCUMENTS, seed=2):
        for position in range(len(signatures)):
            timed.call(store, [f"single-{done}"], signatures[position : position + 1])
            done += 1
    return timed.figures()


def delete(store: DuplicateStore) -> dict[str, Any]:
    """Deletes random documents by id."""
    chosen = np.random.default_rng(3).choice(DELETE_AT, DELETE_DOCUMENTS, replace=False)
    ids = [f"document-{number:010d}" for number in chosen.tolist()]
    begin = time.perf_counter()
    known = store.delete(_CORPUS, ids)
    spent_s = time.perf_counter() - begin
    left = store.find(_CORPUS, ids[:10_000])
    names = {encoded_id(document) for document in ids}
    return {"ids": len(ids), "known": known, "seconds": spent_s, "found_after": sum(one.id in names for one in left)}


def datasketch(python: str, documents: int) -> dict[str, Any]:
    """The peer's figures on a redis-server of its own."""
    with tempfile.TemporaryDirectory(prefix="dqs-bench-") as folder, EmbeddedRedis(Path(folder)) as server:
        command = [python, "tests/bench/datasketch_redis.py", "--redis", server.url, "--documents", str(documents)]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(finished.stdout)
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed and size of the duplicate index on made-up signatures.")
    parser.add_argument("--data", type=Path, help="not used; every benchmark takes it")
    parser.add_argument("--documents", type=int, default=1_000_000, help="figures at 1e5, 1e6 and 5e6 of them")
    parser.add_argument("--peers", help="python with datasketch, to compare with its Redis storage")
    parser.add_argument("--peer-documents", type=int, default=6_000)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    if arguments.peers:
        figures["datasketch"] = datasketch(arguments.peers, arguments.peer_documents)
    with tempfile.TemporaryDirectory(prefix="dqs-bench-") as folder:
        figures |= measure(arguments.documents, Path(folder))
    tables = [name for name in figures if isinstance(figures[name], dict) and name != "datasketch"]
    rows = list(dict.fromkeys(row for name in tables for row in figures[name]))
    show(
        "Duplicate index",
        ["", *tables],
        [[row, *(figures[name].get(row, "") for name in tables)] for row in rows],
    )
    if arguments.peers:
        show("datasketch on Redis", ["", "value"], list(figures["datasketch"].items()))
    emit("index_store", figures)


if __name__ == "__main__":
    main()
