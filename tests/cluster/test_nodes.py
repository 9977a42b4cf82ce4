"""Gateways on a cluster of several nodes: nodes that come and go, a head that hangs or is lost, two gateways.

Everything runs on this machine: a head and a gateway's node without processors,
and nodes with some. The gateways are whole servers in processes of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dqs import Client, Document, Verdict
from dqs.errors import DqsError
from tests.cluster.nodes import AUTHENTICATION, GATEWAY_IP, RayCluster
from tests.cluster.workers import PATIENCE_S, wait_for, worker_processes
from tests.service.serving import CHINESE, ENGLISH, ROOT, Redis, ServerProcess

pytestmark = pytest.mark.timeout(600)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LOST_STATUS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """The last test of this file ends it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AUTHENTICATION.items():
            patch.setenv(name, value)
        with RayCluster(one=1, two=1) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def redis_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.kill()


def gateway(cluster: RayCluster, redis: Redis, folder: Path, **settings: Any) -> ServerProcess:
    defaults = {"workers": 2, "worker_cpus": 0.4, "worker_start_timeout_s": 2 * PATIENCE_S}
    return ServerProcess(
        port=0, data_dir=folder, redis_url=redis.url, ray_address=cluster.address, ray_node_ip=GATEWAY_IP,
        **(defaults | settings),
    )  # fmt: skip


@contextlib.contextmanager
def health_of(server: ServerProcess) -> Iterator[Callable[..., int]]:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def check(service: str = "") -> int:
            status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status
            return status

        yield check


def text_of(number: int) -> str:
    """Texts that have little in common, in both languages."""
    words = (ENGLISH if number % 2 else CHINESE).split()
    body = " ".join(words[number % len(words) :] + words[: number % len(words)])
    return f"Number {number}, {number * 7919}, {number * 104729}. {body} {number * 15485863}"


class Load:
    """A client that streams documents until told to stop, and what it was answered."""

    def __init__(self, server: ServerProcess) -> None:
        self.sent: list[str] = []
        self.verdicts: list[Verdict] = []
        self._stop = threading.Event()
        self._address = server.address
        self._thread = threading.Thread(target=self._work)
        self.error: DqsError | None = None

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _documents(self) -> Iterator[Document]:
        for number in itertools.count():
            if self._stop.is_set():
                return
            self.sent.append(f"d{number}")
            yield Document(self.sent[-1], text_of(number).encode())

    def _work(self) -> None:
        try:
            with Client(self._address) as client:
                for verdict in client.score(self._documents(), corpus=None, policy="score-only"):
                    self.verdicts.append(verdict)
        except DqsError as error:
            self.error = error

    def goes_on(self) -> None:
        """Waits for five hundred more verdicts."""
        enough = len(self.verdicts) + 500
        wait_for(lambda: self.error is not None or len(self.verdicts) >= enough, "scoring goes on")
        assert self.error is None

    def check(self) -> None:
        """Every document was answered once, in order, and none with an error."""
        assert self.error is None
        assert [verdict.id for verdict in self.verdicts] == self.sent
        assert {verdict.error for verdict in self.verdicts} == {None}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_gateways_agree_and_keep_one_of_two_racing_near_duplicates(
    request: pytest.FixtureRequest, redis_of_all: Redis, tmp_path: Path, workers: int
) -> None:
    """With workers of their own on one cluster, or scoring themselves: they share the index alone."""

    def one_of_two(folder: Path) -> ServerProcess:
        if workers:
            return gateway(request.getfixturevalue("cluster"), redis_of_all, folder, workers=workers)
        return ServerProcess(port=0, data_dir=folder, redis_url=redis_of_all.url)

    documents = [Document(f"d{number}", text_of(number).encode()) for number in range(200)]
    with (
        one_of_two(tmp_path / "a") as first,
        one_of_two(tmp_path / "b") as second,
        Client(first.address) as one,
        Client(second.address) as other,
    ):
        assert [(m.name, m.digest) for m in one.info().models] == [(m.name, m.digest) for m in other.info().models]
        mine = one.score_batch(documents, corpus=None)
        theirs = other.score_batch(documents, corpus=None)
        assert mine == theirs

        races = 40
        barrier = threading.Barrier(2)

        def race(client: Client, side: str) -> list[Verdict]:
            verdicts = []
            for number in range(races):
                text = f"{ENGLISH} The case has the number {number * 7919} {number * 104729} {number}. " * 3 + side
                barrier.wait(60)
                verdicts += client.score_batch(
                    [Document(f"{side}{number}", text.encode())], corpus=f"race {number}", policy="score-only"
                )
            return verdicts

        with ThreadPoolExecutor(2) as threads:
            racing = [threads.submit(race, client, side) for client, side in ((one, "left"), (other, "right"))]
            left, right = (side.result() for side in racing)

    assert all(verdict.error is None for verdict in left + right)
    winners = []
    for one_side, other_side in zip(left, right, strict=True):
        assert (one_side.duplicate_of, other_side.duplicate_of) in ((None, one_side.id), (other_side.id, None))
        winners.append(one_side.duplicate_of is None)
    assert len(winners) == races


def outcome(cluster: RayCluster, folder: Path, builder: str, **settings: Any) -> dict[str, Any]:
    """What becomes of a `RayExecutor` in a process of its own, which waits until its status stands still."""
    values = {
        "data_dir": str(folder), "ray_address": cluster.address, "ray_node_ip": GATEWAY_IP, "worker_cpus": 0.4,
        **settings,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.starting", builder, json.dumps(values)],
        capture_output=True, text=True, timeout=4 * PATIENCE_S, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    answer["log"] = done.stderr
    return answer


@pytest.mark.slow
def test_gpu_workers_go_where_gpus_are(cluster: RayCluster, tmp_path: Path) -> None:
    wanted = {"workers": 1, "gpu_workers": 1}
    without = outcome(cluster, tmp_path, "build_small", **wanted, worker_start_timeout_s=10)
    cluster.do("add gpu 1 1")
    with_gpu = outcome(cluster, tmp_path, "build_small", **wanted, worker_start_timeout_s=PATIENCE_S)
    cluster.do("kill gpu")

    assert without["ready"] == ["cpu-0"]
    assert "The worker gpu-0 did not start within 10 s: check that Ray has the processors and GPUs" in without["log"]
    assert with_gpu["ready"] == ["cpu-0", "gpu-0"]


@pytest.mark.slow
def test_a_cluster_without_room_is_one_clear_sentence(cluster: RayCluster, tmp_path: Path) -> None:
    refused = outcome(cluster, tmp_path, "build_small", workers=1, worker_cpus=64, worker_start_timeout_s=5)

    assert refused["error"].startswith("The worker cpu-0 did not start within 5 s")


def test_a_worker_that_differs_from_the_first_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    answer = outcome(cluster, tmp_path, "build_differing", workers=2, worker_start_timeout_s=PATIENCE_S)

    assert len(answer["ready"]) == 1
    assert "has other signals than the first one: install the same version and models on every node." in answer["log"]


def test_a_worker_without_its_models_says_which(cluster: RayCluster, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "toxicity-en", tmp_path / "models" / "toxicity-en")
    (tmp_path / "models" / "toxicity-en" / "2" / "model.onnx").write_bytes(b"damaged")

    refused = outcome(
        cluster, tmp_path, "", workers=1, models=str(tmp_path / "models"), worker_start_timeout_s=PATIENCE_S
    )

    assert "model.onnx is not the file that model.toml names" in refused["error"]


def test_scoring_goes_on_when_a_node_is_killed_and_when_one_is_added(
    cluster: RayCluster, redis_of_all: Redis, tmp_path: Path
) -> None:
    def two_workers() -> bool:
        return len(worker_processes(cluster.pid)) == 2

    with gateway(cluster, redis_of_all, tmp_path) as server, health_of(server) as health, Load(server) as load:
        wait_for(two_workers, "a worker on each node")
        load.goes_on()
        cluster.do("kill one")
        load.goes_on()
        wait_for(two_workers, "the lost worker runs on the other node")
        cluster.do("add three 1")
        # Only the node that was added is left now.
        cluster.do("kill two")
        load.goes_on()
        wait_for(two_workers, "both workers run on the node that was added")
        wait_for(lambda: health() == SERVING, "it serves")
        cluster.do("add four 1")
    load.check()


def test_a_head_that_hangs_or_is_lost(cluster: RayCluster, redis_of_all: Redis, tmp_path: Path) -> None:
    """The last test of this file, because it ends the cluster."""
    with (
        gateway(cluster, redis_of_all, tmp_path, workers=1, ray_head_timeout_s=30) as server,
        health_of(server) as health,
        Client(server.address) as client,
    ):
        documents = [Document("d", ENGLISH.encode())]
        assert len(client.score_batch(documents, corpus=None)) == 1

        begin_s = time.monotonic()
        cluster.do("stop-head")
        wait_for(lambda: health() == NOT_SERVING, "not ready", 30)
        print(f"not ready {time.monotonic() - begin_s:.1f} s after the head hung")
        assert health("live") == SERVING
        cluster.do("continue-head")
        wait_for(lambda: health() == SERVING, "ready again")
        assert len(client.score_batch(documents, corpus=None)) == 1

        cluster.do("kill-head")
        wait_for(lambda: health() == NOT_SERVING, "not ready", 30)
        begin_s = time.monotonic()
        assert server.wait() == LOST_STATUS
        print(f"ended {time.monotonic() - begin_s:.1f} s after it was not ready")
