"""How fast and how large datasketch's MinHashLSH on Redis is; runs in an environment of its own, without dqs.

    PYTHON -m tests.bench.datasketch_redis --redis URL [--documents N]

The counterpart of `tests.bench.index_store`: made-up documents of random tokens, a tenth of them near-duplicates of
the one before, ids of 19 bytes, 128 permutations, bands by datasketch's own choice for the threshold. Signatures are
made before the clock starts. Two ways of use, each under a key prefix of its own that is deleted at the end:

    query_then_insert   one document a call: query, then insert unless something was found
    insertion_session   everything inserted through its buffered session, nothing asked

datasketch keeps no signatures in Redis: its query answers with candidates that nothing verifies.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import redis
from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found]
from redis.connection import parse_url

PERMUTATIONS = 128
TOKENS = 200
CHANGED_TOKENS = 10
"""Of a near-duplicate; 190 of 210 tokens in common are a similarity of 0.90."""


def made_up(documents: int) -> list[Any]:
    """Signatures of random sets of tokens; every tenth is nearly the one before."""
    random = np.random.default_rng(1)
    signatures = []
    tokens = np.empty(0, dtype=np.uint64)
    for number in range(documents):
        if number % 1000 == 0:
            print(f"\r  signatures: {number} of {documents}", end="", file=sys.stderr, flush=True)
        changed = CHANGED_TOKENS if number % 10 == 9 else TOKENS
        tokens = np.concatenate([random.integers(0, 2**63, size=changed, dtype=np.uint64), tokens[changed:]])
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([token.tobytes() for token in tokens])
        signatures.append(signature)
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return signatures


def storage(url: str, prefix: bytes) -> dict[str, Any]:
    """datasketch's storage configuration for a Redis URL."""
    options = dict(parse_url(url))  # type: ignore[no-untyped-call]
    options.pop("connection_class", None)
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    return {"type": "redis", "basename": prefix, "redis": options}


def query_then_insert(index: Any, keys: list[str], signatures: list[Any]) -> int:
    """One document a call; how many were found."""
    found = 0
    for key, signature in zip(keys, signatures, strict=True):
        if index.query(signature):
            found += 1
        else:
            index.insert(key, signature)
    return found


def insertion_session(index: Any, keys: list[str], signatures: list[Any]) -> int:
    """Everything inserted; nothing is found."""
    with index.insertion_session() as session:
        for key, signature in zip(keys, signatures, strict=True):
            session.insert(key, signature)
    return 0


def redis_cpu_s(info: dict[str, Any]) -> float:
    """Processor time of Redis's main thread."""
    return float(info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"])


def measure(
    url: str, threshold: float, signatures: list[Any], work: Callable[[Any, list[str], list[Any]], int]
) -> dict[str, Any]:
    """Puts the signatures into a fresh index and returns the figures."""
    prefix = f"datasketch-bench-{time.time_ns()}".encode()
    keys = [f"document-{number:010d}" for number in range(len(signatures))]
    with redis.Redis.from_url(url) as client:
        index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, storage_config=storage(url, prefix))
        try:
            before: dict[str, Any] = client.info()
            begin, begin_cpu = time.perf_counter(), time.process_time()
            found = work(index, keys, signatures)
            wall_s, client_cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
            after: dict[str, Any] = client.info()
        finally:
            names = list(client.scan_iter(match=prefix + b"*", count=1000))
            for start in range(0, len(names), 1000):
                client.unlink(*names[start : start + 1000])
    kept = len(signatures) - found
    return {
        "found": found,
        "kept": kept,
        "documents_per_s_wall": len(signatures) / wall_s,
        "documents_per_s_redis_core": len(signatures) / (redis_cpu_s(after) - redis_cpu_s(before)),
        "client_cpu_us_per_document": 1e6 * client_cpu_s / len(signatures),
        "bytes_per_document": (after["used_memory"] - before["used_memory"]) / kept,
        "redis_keys_per_document": len(names) / kept,
        "bands": index.b,
        "rows": index.r,
        "redis": after["redis_version"],
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", required=True, help="URL of a Redis server that nothing else uses meanwhile")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--threshold", type=float, default=0.75)
    options = parser.parse_args()
    signatures = made_up(options.documents)
    figures = {
        work.__name__: measure(options.redis, options.threshold, signatures, work)
        for work in (query_then_insert, insertion_session)
    }
    print(json.dumps({"documents": options.documents, "threshold": options.threshold, **figures}, indent=1))


if __name__ == "__main__":
    main()
