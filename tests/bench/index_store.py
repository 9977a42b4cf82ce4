"""How fast and how large the duplicate index is, on made-up signatures.

    python -m tests.bench.index_store --documents 100000 1000000 5000000 --peers .venv-peers/bin/python

A tenth of the documents are near-duplicates of the one before them. Verification, records and answers for
retries are included. Every size is a corpus on a private redis-server of its own, append-only file on, filled
first. Then they take turns with 10,000 more documents each, because the machine's speed changes from minute to
minute and only turns can be compared: documents a second as one client saw it, as two threads of one client did,
of Redis's processor time, script calls; and one document a call, in turns with a script that does nothing and with
datasketch's Redis storage if `--peers` names a Python that has it. In the same turns a script reads and writes back
as many buckets of the corpus as these documents need and adds a record each, and nothing else: what Redis itself
costs, and how that grows with the corpus. At the end a tenth of a million documents is deleted from the corpus of a
million. Memory by part, as Redis estimates it from a sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import redis

from dqs.index.embedded import EmbeddedRedis
from dqs.index.layout import FIXED_STRUCTURES, encoded_id
from dqs.index.redis_store import GROUP_DOCUMENTS, DuplicateStore, connect
from dqs.index.signature import LINES, SignatureParameters, Signatures
from tests.bench.report import emit, show

TURN_DOCUMENTS = 10_000
SINGLE_DOCUMENTS = 1_000
"""One a call, per turn."""
DELETE_AT, DELETE_DOCUMENTS = 1_000_000, 100_000
_BATCH_DOCUMENTS = 1000
_SAMPLES = 20_000
_RECORD_BYTES = 211
"""Of these documents: flags, time, hashes, keys of nine bands, sketch, id."""
_CORPUS = "bench"

_BARE = """
local found = redis.call('HMGET', KEYS[1], unpack(ARGV, 3))
local set = {}
for place = 1, #found do
  if found[place] then
    set[#set + 1] = ARGV[place + 2]
    set[#set + 1] = found[place]
  end
end
redis.call('HSET', KEYS[1], unpack(set))
local records, first = {}, redis.call('HLEN', KEYS[2])
for document = 1, tonumber(ARGV[1]) do
  records[2 * document - 1] = struct.pack('>I5', first + document)
  records[2 * document] = ARGV[2]
end
redis.call('HSET', KEYS[2], unpack(records))
"""
"""Of a group of documents only what Redis must do: read their buckets, write them, add records."""


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


class Subject:
    """A corpus of some size on a server of its own."""

    def __init__(self, documents: int, folder: Path) -> None:
        self.size = documents
        self._server = EmbeddedRedis(folder)
        self.client = connect(self._server.url, timeout_s=60)
        self.store = DuplicateStore(self.client, SignatureParameters())
        self.done = 0
        self._numbering = threading.Lock()
        self.turns: list[dict[str, float]] = []
        self.single: list[dict[str, float]] = []
        self.bare: list[dict[str, float]] = []
        self.empty: list[dict[str, float]] = []
        begin_s = time.perf_counter()
        batches = made_up(self.store.default_parameters, documents, seed=1)
        with ThreadPoolExecutor(2) as threads:
            while some := list(islice(batches, 20)):
                list(threads.map(self._call, some))
                rate = self.done / (time.perf_counter() - begin_s)
                text = f"\r  filling: {self.done:,} of {documents:,} documents, {rate:,.0f}/s "
                print(text, end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        # A rewrite of the append-only file in one turn and not in another would be all there is to see.
        self.client.config_set("auto-aof-rewrite-percentage", 0)
        while self.client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.2)

    def _call(self, signatures: Signatures) -> None:
        with self._numbering:
            ids = ids_from(self.done, len(signatures))
            self.done += len(ids)
        self.store.check_and_insert(_CORPUS, ids, signatures, np.ones(len(ids), dtype=np.bool_))

    def turn(self, number: int) -> None:
        """Some more documents, by one thread and by two."""
        parameters = self.store.default_parameters
        batches = list(made_up(parameters, 2 * TURN_DOCUMENTS, seed=100 + number))
        half = len(batches) // 2
        with self._timed(self.turns, TURN_DOCUMENTS) as figures:
            for signatures in batches[:half]:
                self._call(signatures)
        with ThreadPoolExecutor(2) as threads:
            begin_s = time.perf_counter()
            list(threads.map(self._call, batches[half:]))
            figures["documents_per_s_two_threads"] = TURN_DOCUMENTS / (time.perf_counter() - begin_s)

    def single_turn(self, number: int) -> None:
        """Some more documents, one a call; and as many calls that do nothing, over a connection of their own."""
        batches = made_up(self.store.default_parameters, SINGLE_DOCUMENTS, seed=900 + number)
        signatures = [batch[place : place + 1] for batch in batches for place in range(len(batch))]
        with self._timed(self.single, SINGLE_DOCUMENTS):
            for one in signatures:
                self._call(one)
        with self.client.client() as own:  # type: ignore[no-untyped-call]
            sha = own.script_load("return 1")
            with self._timed(self.empty, SINGLE_DOCUMENTS):
                for _ in range(SINGLE_DOCUMENTS):
                    own.evalsha(sha, 0)

    def bare_turn(self, number: int) -> None:
        """Reads and writes back the buckets of made-up documents, and adds their records to a key of its own."""
        corpus = f"dqs:{{default:{_CORPUS}}}:"
        layout = self.store.read_layout(_CORPUS)
        assert layout is not None
        random = np.random.default_rng(700 + number)
        structures = [0, *range(FIXED_STRUCTURES, FIXED_STRUCTURES + self.store.default_parameters.bands)]
        record = bytes(random.integers(0, 256, size=_RECORD_BYTES, dtype=np.uint8))
        script = self.client.register_script(_BARE)
        groups: list[list[Any]] = []
        for start in range(0, TURN_DOCUMENTS, GROUP_DOCUMENTS):
            n = min(GROUP_DOCUMENTS, TURN_DOCUMENTS - start)
            chosen = random.integers(0, layout.buckets, size=(n, len(structures)))
            fields = (chosen + (np.array(structures) << 24)).astype(">u4").tobytes()
            groups.append([n, record, *(fields[at : at + 4] for at in range(0, len(fields), 4))])
        keys = [f"{corpus}{layout.generation}:buckets", f"{corpus}bare"]
        with self._timed(self.bare, TURN_DOCUMENTS):
            for arguments in groups:
                script(keys=keys, args=arguments)
        self.client.delete(keys[1])

    @contextmanager
    def _timed(self, into: list[dict[str, float]], documents: int) -> Iterator[dict[str, float]]:
        self.client.config_resetstat()
        before_s, begin_s, begin_cpu_s = self._cpu_s(), time.perf_counter(), time.process_time()
        figures: dict[str, float] = {}
        yield figures
        wall_s, client_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
        calls: dict[str, Any] = self.client.info("commandstats")["cmdstat_evalsha"]
        figures["documents_per_s"] = documents / wall_s
        figures["documents_per_s_redis_core"] = documents / (self._cpu_s() - before_s)
        figures["client_cpu_us_per_document"] = 1e6 * client_s / documents
        figures["script_call_ms_mean"] = float(calls["usec_per_call"]) / 1000
        latencies: dict[str, Any] = self.client.info("latencystats")
        found = latencies.get("latency_percentiles_usec_evalsha")
        if found is not None:  # Redis 6.2 keeps none
            figures["script_call_ms_p99"] = float(found["p99"]) / 1000
        into.append(figures)

    def _cpu_s(self) -> float:
        used: dict[str, Any] = self.client.info("cpu")
        return float(used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"])

    def close(self) -> None:
        """Stops the server."""
        self.store.close()
        self._server.close()


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


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """The median of every figure over turns."""
    return {name: float(np.median([turn[name] for turn in turns if name in turn])) for name in turns[-1]}


def measure(documents: list[int], rounds: int, peers: str | None, peer_documents: int, folder: Path) -> dict[str, Any]:
    """All figures, one column per size of corpus and a few more."""
    subjects = []
    peer_turns = []
    try:
        for size in documents:
            subjects.append(Subject(size, folder / str(size)))
        for number in range(rounds):
            print(f"\r  turn {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
            for subject in subjects:
                subject.turn(number)
                subject.bare_turn(number)
            subjects[0].single_turn(number)
            if peers:
                peer_turns.append(datasketch(peers, peer_documents))
        print(file=sys.stderr)
        results: dict[str, Any] = {"redis": str(subjects[0].client.info("server")["redis_version"])}
        for subject in subjects:
            results[f"{subject.size:,}"] = {
                **medians(subject.turns),
                "bare_commands_documents_per_s_redis_core": medians(subject.bare)["documents_per_s_redis_core"],
                **sizes(subject.client, subject.store),
            }
        results["one document a call"] = medians(subjects[0].single)
        results["an empty script a call"] = medians(subjects[0].empty)
        results["turns"] = {
            **{f"{subject.size:,}": subject.turns for subject in subjects},
            **{f"{subject.size:,}, bare commands": subject.bare for subject in subjects},
            "one document a call": subjects[0].single,
            "an empty script a call": subjects[0].empty,
            "datasketch": peer_turns,
        }
        if peer_turns:
            results["datasketch, one document a call"] = medians([turn["query_then_insert"] for turn in peer_turns])
            results["datasketch, insertion session"] = medians([turn["insertion_session"] for turn in peer_turns])
        results["delete"] = [delete(subject.store) for subject in subjects if subject.size == DELETE_AT]
    finally:
        for subject in subjects:
            subject.close()
    return results


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
    return {
        name: {
            "documents_per_s": figures[name]["documents_per_s_wall"],
            "documents_per_s_redis_core": figures[name]["documents_per_s_redis_core"],
            "client_cpu_us_per_document": figures[name]["client_cpu_us_per_document"],
            "bytes_per_document": figures[name]["bytes_per_document"],
        }
        for name in ("query_then_insert", "insertion_session")
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed and size of the duplicate index on made-up signatures.")
    parser.add_argument("--data", type=Path, help="not used; every benchmark takes it")
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes of corpora")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each corpus")
    parser.add_argument("--peers", help="python with datasketch, to compare with its Redis storage")
    parser.add_argument("--peer-documents", type=int, default=1_000, help="per turn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dqs-bench-") as folder:
        figures = measure(
            arguments.documents, arguments.rounds, arguments.peers, arguments.peer_documents, Path(folder)
        )
    columns = [name for name in figures if name not in ("redis", "turns", "delete")]
    rows = list(dict.fromkeys(row for name in columns for row in figures[name]))
    show(
        f"Duplicate index, medians of {arguments.rounds} turns",
        ["", *columns],
        [[row, *(figures[name].get(row, "") for name in columns)] for row in rows],
    )
    for deleted in figures["delete"]:
        show(f"{DELETE_DOCUMENTS:,} ids deleted", ["", "value"], list(deleted.items()))
    emit("index_store", figures)


if __name__ == "__main__":
    main()
