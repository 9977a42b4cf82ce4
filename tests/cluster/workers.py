"""What tests with Ray workers share: batches, the workers' processes, and waiting for conditions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil
from numpy.typing import NDArray

from dqs.executors.ray_actors import RayExecutor
from dqs.index.signature import SignatureParameters
from dqs.pipeline import Executor, Scored

PATIENCE_S = 120.0
"""Two noisy cores start a worker in 3 s, or in 30 s."""


def offsets(texts: Sequence[bytes]) -> NDArray[np.int64]:
    edges = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=edges[1:])
    return edges


def score(executor: Executor, texts: Sequence[bytes], languages: Sequence[str] | None = None) -> Scored:
    codes = languages if languages is not None else [""] * len(texts)
    return executor.score(
        np.frombuffer(b"".join(texts), dtype=np.uint8), offsets(texts), codes, signature=SignatureParameters()
    )


def wait_for(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Waits until the condition holds, and says how long that was."""
    begin_s = time.monotonic()
    while not condition():
        assert time.monotonic() < begin_s + patience_s, what
        time.sleep(0.05)
    print(f"{what}: after {time.monotonic() - begin_s:.1f} s")


def worker_processes(parent: int | None = None) -> list[psutil.Process]:
    """The processes of the scorer actors below a process, the oldest first."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::ScorerReplica"):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return sorted(found, key=lambda process: process.create_time())


def all_ready(executor: RayExecutor, replicas: int = 2) -> Callable[[], bool]:
    """Whether exactly so many replicas are there and every one is ready."""

    def ready() -> bool:
        status = executor.status()
        return len(status.replicas) == replicas and all(replica.ready for replica in status.replicas)

    return ready
