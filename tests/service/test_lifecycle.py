"""The life of a server: before it is ready, while workers come and go, and how it ends. Faults 3, 4, 21 and 22."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dqs.errors import ConfigError
from dqs.server import server as server_module
from dqs.server.server import LOST_STATUS, ScoringServer
from dqs.server.servicer import SERVICE_NAME
from dqs.server.tenants import new_token
from dqs.settings import load_settings
from dqs.v1 import scoring_pb2 as pb
from dqs.v1 import server_info_pb2
from dqs.v1.scoring_pb2_grpc import ScoringServiceStub
from tests.service.certificates import Authority
from tests.service.controlled_server import LOST, OPEN, OPENED, SLOTS, ControlledServer, free_port
from tests.service.serving import ENGLISH, ROOT, LocalServer, status_of, wait_until

NO_INDEX = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Code = grpc.StatusCode
PATIENCE_S = 90.0


def batch(*texts: bytes) -> pb.ScoreBatchRequest:
    documents = [pb.Document(id=str(i), text=text) for i, text in enumerate(texts)]
    return pb.ScoreBatchRequest(options=NO_INDEX, documents=documents)


def message(sequence: int, count: int = 1) -> pb.ScoreStreamRequest:
    documents = [pb.Document(id=f"{sequence}-{i}", text=ENGLISH.encode()) for i in range(count)]
    return pb.ScoreStreamRequest(sequence=sequence, options=NO_INDEX if sequence == 1 else None, documents=documents)


@contextlib.contextmanager
def stubs(address: str) -> Iterator[tuple[Any, Any]]:
    """A stub for scoring and one for health, on a connection of their own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with grpc.insecure_channel(address, options=options) as channel:
        yield ScoringServiceStub(channel), health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process does something of its own at a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def health_of(stub: Any, service: str = "") -> int:
    status: int = stub.Check(
        health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S, wait_for_ready=True
    ).status
    return status


class TestReadiness:
    def test_before_it_is_ready_it_says_so_at_once(self, tmp_path: Path) -> None:
        with (
            ControlledServer(opens=False, data_dir=tmp_path) as process,
            stubs(process.address) as (scoring, health),
        ):
            assert health_of(health) == NOT_SERVING
            assert health_of(health, SERVICE_NAME) == NOT_SERVING
            assert health_of(health, "live") == SERVING
            for call in (
                lambda: scoring.ScoreBatch(batch(b"a"), timeout=PATIENCE_S),
                lambda: list(scoring.ScoreStream(iter([message(1)]), timeout=PATIENCE_S)),
            ):
                code, details = status_of(call)
                assert code == Code.UNAVAILABLE
                assert "RetryInfo" in details
            process.tell(OPENED)
            process.wait_until_ready()
            assert health_of(health) == SERVING
            assert scoring.ScoreBatch(batch(b"a"), timeout=PATIENCE_S).scored.results

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_start_can_be_broken_off(self, tmp_path: Path, number: signal.Signals) -> None:
        with (
            ControlledServer(opens=False, data_dir=tmp_path) as process,
            stubs(process.address) as (_, health),
        ):
            assert health_of(health, "live") == SERVING
            process.signal(number)
            assert process.status() == 0
            assert "stopped before it served" in process.log()

    def test_it_follows_the_workers_and_stays_alive(self) -> None:
        with LocalServer() as server, stubs(server.address) as (_, health):
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=PATIENCE_S)
            assert next(watch).status == SERVING
            server.executor.set_slots(0)
            assert next(watch).status == NOT_SERVING
            assert health_of(health) == health_of(health, SERVICE_NAME) == NOT_SERVING
            assert health_of(health, "live") == SERVING
            server.executor.set_slots(1)
            assert next(watch).status == SERVING
            unknown = health.Watch(health_pb2.HealthCheckRequest(service="none such"), timeout=PATIENCE_S)
            assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            code, _ = status_of(lambda: health_of(health, "none such"))
            assert code == Code.NOT_FOUND

    def test_watches_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dqs.server.health.MAX_WATCHES", 2)
        with LocalServer() as server, stubs(server.address) as (_, health):
            watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S) for _ in range(2)]
            assert [next(watch).status for watch in watches] == [SERVING, SERVING]
            more = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert status_of(lambda: next(more))[0] == Code.RESOURCE_EXHAUSTED
            for watch in watches:
                watch.cancel()

            def is_free_again() -> bool:
                again = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
                try:
                    return bool(next(again).status == SERVING)
                except grpc.RpcError:
                    return False
                finally:
                    again.cancel()

            wait_until(is_free_again)

    def test_a_port_for_health_alone_needs_neither_tls_nor_tokens(self, tmp_path: Path) -> None:
        certificate, key = Authority("ours").write(tmp_path)
        tokens = tmp_path / "tokens.toml"
        new_token(tokens, "alpha")
        port = free_port()
        with (
            LocalServer(tls_cert=certificate, tls_key=key, tokens=tokens, health_port=port) as server,
            stubs(f"127.0.0.1:{port}") as (scoring, health),
        ):
            assert health_of(health) == health_of(health, "live") == SERVING
            server.executor.set_slots(0)
            wait_until(lambda: health_of(health) == NOT_SERVING)
            code, _ = status_of(lambda: scoring.GetServerInfo(server_info_pb2.GetServerInfoRequest()))
            assert code == Code.UNIMPLEMENTED

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 0.5, 1.0])
    def test_a_start_that_still_loads_modules_can_be_broken_off(
        self, tmp_path: Path, number: signal.Signals, seconds: float
    ) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "dqs.cli", "serve", "--port", "0", "--data-dir", tmp_path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            wait_until(lambda: catches(process.pid, signal.SIGTERM))
            time.sleep(seconds)
            process.send_signal(number)
            _, said = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert "Exception ignored" not in said

    @pytest.mark.parametrize("where", ["in_a_finaliser", "in_exec", "in_a_library"])
    def test_a_stop_signal_is_not_lost_wherever_it_comes(self, tmp_path: Path, where: str) -> None:
        code = (
            "import contextlib, signal, sys\n"
            "from dqs.server.server import serve\n"
            "from dqs.settings import load_settings\n"
            "def stop(): signal.raise_signal(signal.SIGTERM)\n"
            "class Finalised:\n"
            "    def __del__(self): stop()\n"
            "def in_a_finaliser(): Finalised()\n"
            "def in_exec(): exec('stop()')\n"
            "def in_a_library():\n"
            "    try: stop()\n"
            "    except BaseException: raise ImportError('initialisation failed')\n"
            "@contextlib.contextmanager\n"
            "def open_pipeline():\n"
            "    globals()[sys.argv[1]]()\n"
            "    yield None\n"
            "serve(load_settings(port=0), open_pipeline)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, where], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "stopped before it served" in done.stderr
        assert "Traceback" not in done.stderr


class TestTheEnd:
    def test_under_load_every_document_is_answered_or_refused(self, tmp_path: Path) -> None:
        drain_s = 60
        with ControlledServer(data_dir=tmp_path, drain_s=drain_s) as process:
            stop = threading.Event()
            answered, refused = [0], [0]
            problems: list[str] = []
            lock = threading.Lock()

            def unary() -> None:
                with stubs(process.address) as (scoring, _):
                    while not stop.is_set():
                        try:
                            results = scoring.ScoreBatch(batch(*[ENGLISH.encode()] * 20), timeout=PATIENCE_S)
                        except grpc.RpcError as error:
                            with lock:
                                refused[0] += 1
                                # gRPC itself cancels what it had not handed over yet when its server ended.
                                if error.code() not in (Code.UNAVAILABLE, Code.CANCELLED):
                                    problems.append(str(error))
                            time.sleep(0.05)
                        else:
                            with lock:
                                answered[0] += 1
                                if len(results.scored.results) != 20:
                                    problems.append("an answer is not whole")

            def stream() -> None:
                with stubs(process.address) as (scoring, _):
                    sent: list[int] = []

                    def requests() -> Iterator[pb.ScoreStreamRequest]:
                        while not stop.is_set():
                            sent.append(len(sent) + 1)
                            yield message(sent[-1], count=20)

                    received: list[int] = []
                    acknowledged = 0
                    code = Code.OK
                    try:
                        for answer in scoring.ScoreStream(requests(), timeout=PATIENCE_S):
                            received.append(answer.sequence)
                            acknowledged = answer.acknowledged
                            if len(answer.scored.results) != 20:
                                problems.append("an answer of a stream is not whole")
                    except grpc.RpcError as error:
                        code = error.code()
                    with lock:
                        # What is not answered follows what is: the client knows what to send elsewhere.
                        if code != Code.UNAVAILABLE or sorted(received) != list(range(1, len(received) + 1)):
                            problems.append(f"{code} after {sorted(received)[-1:]} of {len(sent)}")
                        if acknowledged != len(received):
                            problems.append(f"{acknowledged} acknowledged and {len(received)} received")

            threads = [threading.Thread(target=work) for work in (unary, unary, stream, stream)]
            for thread in threads:
                thread.start()
            wait_until(lambda: answered[0] > 20)
            process.signal()
            assert process.status(drain_s + PATIENCE_S) == 0
            wait_until(lambda: refused[0] > 0)
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert problems == []

    def test_while_it_drains_it_refuses_and_finishes(self, tmp_path: Path) -> None:
        with (
            ControlledServer(data_dir=tmp_path, drain_s=60) as process,
            stubs(process.address) as (scoring, health),
        ):
            watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert next(watch).status == SERVING
            process.close_gate()
            open_call = scoring.ScoreBatch.future(batch(b"a"), timeout=PATIENCE_S)
            requests: queue.SimpleQueue[pb.ScoreStreamRequest] = queue.SimpleQueue()
            open_stream = scoring.ScoreStream(iter(requests.get, None), timeout=PATIENCE_S)
            requests.put(message(1))
            process.wait_until_held()
            # Its answer tells that the calls before it on this connection are in.
            scoring.GetServerInfo(server_info_pb2.GetServerInfoRequest(), timeout=PATIENCE_S)
            process.signal()

            assert next(watch).status == NOT_SERVING
            assert health_of(health, "live") == SERVING
            code, details = status_of(lambda: scoring.ScoreBatch(batch(b"b"), timeout=PATIENCE_S))
            assert code == Code.UNAVAILABLE
            assert "RetryInfo" in details
            process.tell(OPEN)
            assert len(open_call.result().scored.results) == 1
            assert next(open_stream).sequence == 1
            assert status_of(lambda: next(open_stream))[0] == Code.UNAVAILABLE
            # A watch holds up nothing.
            assert status_of(lambda: next(watch))[0] in (Code.UNAVAILABLE, Code.CANCELLED)
            assert process.status() == 0

    def test_a_second_signal_cuts_off_what_is_open(self, tmp_path: Path) -> None:
        with (
            ControlledServer(data_dir=tmp_path, drain_s=600) as process,
            stubs(process.address) as (scoring, health),
        ):
            process.close_gate()
            open_call = scoring.ScoreBatch.future(batch(b"a"), timeout=PATIENCE_S)
            process.wait_until_held()
            process.signal()
            wait_until(lambda: health_of(health) == NOT_SERVING)
            process.signal(signal.SIGINT)
            assert open_call.code() in (Code.UNAVAILABLE, Code.CANCELLED)
            process.tell(OPEN)
            assert process.status() == 0

    def test_what_hangs_is_cut_off(self, tmp_path: Path) -> None:
        with ControlledServer(data_dir=tmp_path, drain_s=1) as process, stubs(process.address) as (scoring, _):
            process.close_gate()
            open_call = scoring.ScoreBatch.future(batch(b"a"), timeout=PATIENCE_S)
            process.wait_until_held()
            process.signal()
            assert open_call.code() in (Code.UNAVAILABLE, Code.CANCELLED)
            assert process.status(server_module.CLOSE_S + PATIENCE_S) == server_module.CUT_OFF_STATUS
            assert "is cut off" in process.log()

    @pytest.mark.parametrize("hangs", [False, True])
    def test_when_the_workers_are_lost_for_good_it_ends_with_a_status_of_its_own(
        self, tmp_path: Path, hangs: bool
    ) -> None:
        with (
            ControlledServer(data_dir=tmp_path, drain_s=600) as process,
            stubs(process.address) as (scoring, _),
        ):
            if hangs:
                process.close_gate()
                # Kept: a call that nobody holds is cancelled.
                open_call = scoring.ScoreBatch.future(batch(b"a"), timeout=PATIENCE_S)
                process.wait_until_held()
            process.tell(LOST, "the head of the cluster is gone")
            assert process.status(server_module.LOST_DRAIN_S + server_module.CLOSE_S + PATIENCE_S) == LOST_STATUS
            said = [line for line in process.log().splitlines() if "the head of the cluster is gone" in line]
            assert len(said) == 1
            if hangs:
                assert open_call.code() in (Code.UNAVAILABLE, Code.CANCELLED)

    def test_workers_that_come_back_end_nothing(self, tmp_path: Path) -> None:
        with ControlledServer(data_dir=tmp_path) as process, stubs(process.address) as (scoring, health):
            process.tell(SLOTS, 0)
            wait_until(lambda: health_of(health) == NOT_SERVING)
            process.tell(SLOTS, 1)
            wait_until(lambda: health_of(health) == SERVING)
            assert scoring.ScoreBatch(batch(b"a"), timeout=PATIENCE_S).scored.results
            process.signal()
            assert process.status() == 0


class TestPorts:
    @pytest.mark.parametrize("name", ["port", "health_port", "metrics_port"])
    def test_a_taken_one_is_one_sentence(self, tmp_path: Path, name: str) -> None:
        async def start(**settings: Any) -> None:
            ScoringServer(load_settings(data_dir=tmp_path, **{"port": 0, **settings}))

        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = int(taken.getsockname()[1])
            with pytest.raises(ConfigError) as caught:
                asyncio.run(start(**{name: port}))
        assert f"127.0.0.1:{port}" in caught.value.message
        assert "choose another" in caught.value.message
        assert len(caught.value.message.splitlines()) == 1


class TestVanishedClients:
    def test_a_client_that_stands_still_is_let_go(self) -> None:
        """A stopped process still has its kernel acknowledge what arrives: only gRPC's own pings find it."""
        client = (
            "import queue, sys, grpc\n"
            "from dqs.v1 import scoring_pb2 as pb\n"
            "from dqs.v1.scoring_pb2_grpc import ScoringServiceStub\n"
            "options = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)\n"
            "requests = queue.SimpleQueue()\n"
            "requests.put(pb.ScoreStreamRequest(sequence=1, options=options,"
            " documents=[pb.Document(id='1', text=b'text')]))\n"
            "answers = ScoringServiceStub(grpc.insecure_channel(sys.argv[1])).ScoreStream(iter(requests.get, None))\n"
            "print(next(answers).sequence, flush=True)\n"
            "next(answers)\n"
        )
        with LocalServer(keepalive_s=1, keepalive_timeout_s=1) as server:
            process = subprocess.Popen(
                [sys.executable, "-c", client, server.address],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "1\n"
                assert server.metric("dqs_inflight_streams") == 1
                process.send_signal(signal.SIGSTOP)
                wait_until(lambda: server.metric("dqs_inflight_streams") == 0, PATIENCE_S)
            finally:
                process.kill()
                process.wait(60)
                if process.stdout is not None:
                    process.stdout.close()
            with stubs(server.address) as (scoring, _):
                assert scoring.ScoreBatch(batch(b"a"), timeout=PATIENCE_S).scored.results
