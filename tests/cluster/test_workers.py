"""Faults of Ray workers on this machine: each ends with every document answered once, and all workers back."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from dqs.errors import ConfigError, Unavailable
from dqs.executors.ray_actors import RayExecutor
from dqs.settings import load_settings
from tests.cluster.killing import KILLS, SLEEPS
from tests.cluster.workers import PATIENCE_S, all_ready, score, wait_for, worker_processes

GOOD = b"A good document about nothing much, of which there are many, and each has a number: "


@pytest.fixture(autouse=True)
def _all_back(workers: RayExecutor) -> Iterator[None]:
    """Every test begins and ends with two ready workers, which score."""
    wait_for(all_ready(workers), "two ready workers before the test")
    yield
    workers.note_waiting(0)
    wait_for(all_ready(workers), "two ready workers after the test")
    assert score(workers, [GOOD]).failed is None
    status = workers.status()
    assert (status.slots, status.lost) == (4, None)
    assert all(replica.pending_bytes == 0 for replica in status.replicas)


class Load:
    """Threads that score numbered batches until told to stop."""

    def __init__(self, executor: RayExecutor, threads: int = 4, documents: int = 8, mark: bytes = SLEEPS) -> None:
        self._executor = executor
        self._documents = documents
        self._mark = mark
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]
        self.answered: list[list[int]] = []
        """Characters of each document of each answered batch; which says whose answers they are."""
        self.expected: list[list[int]] = []
        self.replicas: set[str] = set()
        self.unavailable = 0
        self.errors: list[BaseException] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, thread: int) -> None:
        batch = 0
        while not self._stop.is_set():
            batch += 1
            # Sizes are unlike those of every other batch, so that answers cannot be taken for another's.
            texts = [
                b"%s%d %s" % (self._mark if i == 0 else b"", batch, b"x" * (thread * 1000 + batch * 8 + i))
                for i in range(self._documents)
            ]
            try:
                scored = score(self._executor, texts)
            except Unavailable:
                with self._lock:
                    self.unavailable += 1
                time.sleep(0.05)
                continue
            except BaseException as error:
                with self._lock:
                    self.errors.append(error)
                return
            with self._lock:
                assert scored.failed is None
                self.answered.append(scored.columns.values["characters"].astype(int).tolist())
                self.expected.append([len(text) for text in texts])
                self.replicas.add(scored.replica)

    def count(self) -> int:
        return len(self.answered)


def test_a_killed_worker_under_load_loses_nothing(workers: RayExecutor) -> None:
    restarts = sum(replica.restarts for replica in workers.status().replicas)
    with Load(workers) as load:
        wait_for(lambda: load.count() > 20, "load")
        worker_processes()[0].kill()
        wait_for(
            lambda: sum(replica.restarts for replica in workers.status().replicas) > restarts, "the death is noticed"
        )
        wait_for(all_ready(workers), "it is back")
        behind = load.count() + 20
        wait_for(lambda: load.count() > behind, "load goes on")

    assert load.errors == []
    assert load.unavailable == 0, "the other worker was there all the time"
    assert load.answered == load.expected
    assert len(load.replicas) >= 2


def test_with_all_workers_dead_it_says_so_at_once_and_comes_back(workers: RayExecutor) -> None:
    changes: list[int] = []
    workers.subscribe(lambda: changes.append(workers.status().slots))
    for process in worker_processes():
        process.kill()
    wait_for(lambda: workers.status().slots == 0, "the deaths are noticed, though nothing is scored")

    with pytest.raises(Unavailable, match="No worker can score now"):
        score(workers, [GOOD])

    wait_for(all_ready(workers), "both are back")
    wait_for(lambda: changes[-1] == 4, "subscribers are told")
    assert 0 in changes


def test_a_batch_outlives_the_death_of_all_workers(workers: RayExecutor) -> None:
    """It waits for one to come back, since its documents may be what killed them."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(score(workers, [SLEEPS * 40, GOOD]).columns.size))
    thread.start()
    wait_for(lambda: any(replica.pending_bytes for replica in workers.status().replicas), "it is being scored")
    for process in worker_processes():
        process.kill()
    thread.join()

    assert answers == [2]


@pytest.mark.parametrize(
    "place", [9, pytest.param(0, marks=pytest.mark.slow), pytest.param(13, marks=pytest.mark.slow)]
)
def test_a_document_that_kills_is_left_out_and_all_others_are_scored(workers: RayExecutor, place: int) -> None:
    texts = [GOOD + b"%d" % number for number in range(14)]
    texts[place] = KILLS + b"%d" % place
    with Load(workers, threads=2, documents=2) as load:
        wait_for(lambda: load.count() > 5, "load")
        scored = score(workers, texts)

    assert scored.failed is not None
    assert np.flatnonzero(scored.failed).tolist() == [place]
    characters = scored.columns.values["characters"].tolist()
    assert [count for i, count in enumerate(characters) if i != place] == [
        len(text) for i, text in enumerate(texts) if i != place
    ]
    assert load.errors == []
    assert load.answered == load.expected, "what was scored beside it is untouched"


def test_a_document_that_has_killed_kills_no_more(workers: RayExecutor) -> None:
    poison = KILLS + b"once and never again"
    first = score(workers, [GOOD, poison])
    wait_for(all_ready(workers), "both are back")
    restarts = sum(replica.restarts for replica in workers.status().replicas)

    again = score(workers, [poison, GOOD])

    assert first.failed is not None
    assert again.failed is not None
    assert (first.failed.tolist(), again.failed.tolist()) == ([False, True], [True, False])
    assert sum(replica.restarts for replica in workers.status().replicas) == restarts


@pytest.mark.slow
def test_a_worker_that_hangs_is_started_again(workers: RayExecutor) -> None:
    """As for a batch: `worker_batch_timeout_s` is 20 s here."""
    stopped = worker_processes()[0]
    stopped.suspend()
    try:
        with Load(workers, threads=2, mark=b"") as load:
            wait_for(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE, "it is ended")
            wait_for(all_ready(workers), "another took its place")
    finally:
        if stopped.is_running():
            stopped.kill()

    assert load.errors == []
    assert load.answered == load.expected


def test_workers_become_more_under_load_and_fewer_without(workers: RayExecutor) -> None:
    with Load(workers, threads=6) as load:
        workers.note_waiting(100 << 20)
        wait_for(all_ready(workers, 3), "a third worker")
        assert workers.status().slots == 6
        wait_for(lambda: "cpu-2" in load.replicas or len(load.replicas) >= 3, "the third one scores")
        workers.note_waiting(0)
    wait_for(all_ready(workers, 2), "the third is stopped")

    assert load.errors == []
    assert load.answered == load.expected
    assert workers.status().slots == 4


def test_one_process_holds_one_connection_to_ray(workers: RayExecutor) -> None:
    with pytest.raises(ConfigError, match="uses Ray already"):
        RayExecutor(load_settings(workers=1))

    assert score(workers, [GOOD]).failed is None, "and the first one goes on"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("workers=1, ray_address='127.0.0.1:1'", "There is no Ray cluster at 127.0.0.1:1 (Connection refused)."),
        ("workers=1, ray_address='head'", "The address of a Ray cluster is HOST:PORT of its head; 'head' is not."),
        ("workers=2, max_workers=1", "At most 1 cpu workers cannot be at least 2: raise the one or lower the other."),
        ("max_workers=3", "Ray workers need a number to begin with: add --workers or --gpu-workers."),
        ("ray_address='a:1'", "Ray workers need a number to begin with: add --workers or --gpu-workers."),
    ],
)
def test_what_cannot_start_says_why(arguments: str, sentence: str) -> None:
    assert refusal(arguments) == sentence


def test_without_ray_one_sentence_says_what_to_install() -> None:
    assert refusal("workers=1", "import sys; sys.modules['ray'] = None\n") == (
        "Workers need Ray, which is not installed: pip install 'dqs[ray]', or leave --workers at 0."
    )


def refusal(arguments: str, before: str = "") -> str:
    """What a process of its own says that cannot open a pipeline with these settings."""
    code = (
        before + "from dqs.settings import load_settings; from dqs.app import build_pipeline\n"
        "from dqs.errors import ConfigError\n"
        f"try:\n    build_pipeline(load_settings({arguments}), dedup=False).__enter__()\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return done.stdout.strip()
