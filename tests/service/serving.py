"""Servers for tests: a process of its own, or one in this process whose scoring can be held."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
import redis
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from dqs.errors import Unavailable
from dqs.executors.inline import InlineExecutor
from dqs.index.embedded import find_binary
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import SignatureParameters
from dqs.pipeline import ExecutorStatus, ModelInfo, Pipeline, Scored
from dqs.policy import load_policies
from dqs.scorer import Scorer
from dqs.scorers import build_scorers
from dqs.server.server import ScoringServer
from dqs.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
READY_PREFIX = "dqs serves on "
START_TIMEOUT_S = 120.0
POISON = b"\x07poison\x07"
"""A document that holds these bytes breaks the scoring of a `GatedExecutor`."""

ENGLISH = (
    "The museum keeps its oldest maps in a cool, dark room on the second floor. Visitors may look at them on "
    "request, and a guide explains how surveyors drew the coast before there were accurate clocks."
)
CHINESE = "博物馆把最古老的地图存放在二楼一间阴凉的房间里。参观者可以提出申请后观看，讲解员会说明测量员怎样画出海岸线。"


class Redis:
    """A redis-server on a port of its own, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server") or str(find_binary())
        self._socket = folder / "r.sock"
        self._command = [
            binary, "--port", "0", "--unixsocket", str(self._socket), "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--daemonize", "no",
        ]  # fmt: skip
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        give_up_s = time.monotonic() + 30
        while not self._socket.exists():
            assert time.monotonic() < give_up_s
            time.sleep(0.02)

    def fails_to_start(self) -> bool:
        """Starts it with what it cannot read: whether it ends by itself, with a status that says so."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        return self._process.wait(30) != 0

    def slow_loading(self, command_us: int) -> None:
        """From its next start on it reads its file slowly.

        Args:
            command_us: microseconds for each command of the file.
        """
        self._command += ["--key-load-delay", str(command_us)]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def key_names(self) -> list[str]:
        """Every key, in order."""
        with redis.Redis.from_url(self.url, decode_responses=True) as connection:
            return sorted(connection.scan_iter(count=1000))


class ServerProcess:
    """`dqs.app.serve` in a process of its own.

    Args:
        before: Python that runs there first.
        settings: keyword arguments of `load_settings`.
    """

    def __init__(self, *, before: str = "", **settings: Any) -> None:
        self._before = before
        self._settings = {name: str(value) for name, value in settings.items()}
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts and waits until it is ready."""
        code = (
            "import sys, dqs.settings as s; settings = s.load_settings(**dict(a.split('=', 1) for a in sys.argv[1:]));"
            "from dqs.app import serve; serve(settings)"
        )
        code = f"{self._before}\n{code}"
        arguments = [f"{name}={value}" for name, value in self._settings.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(READY_PREFIX), f"the server ended with {self._process.wait()}"
        self.address = line.removeprefix(READY_PREFIX).strip()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """kill -9, and start again."""
        self.kill()
        self.start()

    def terminate(self) -> int:
        """Asks it to drain; returns its exit status."""
        return self._end(signal.SIGTERM)

    def wait(self, timeout_s: float = 120.0) -> int:
        """Waits until it ends by itself; returns its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        status = self._process.wait(60)
        self._process.stdout.close()
        return status


class GatedExecutor:
    """The inline executor, with a gate before it and a count of what went through.

    Raises for a batch with `POISON`, as a broken scorer would.

    Args:
        inner: what scores.
        slots: how many batches it takes at once, until `set_slots`, and the most that can be set.
    """

    def __init__(self, inner: InlineExecutor, slots: int = 1) -> None:
        self.signals = inner.signals
        self.max_slots = slots
        self._inner = inner
        self._slots = slots
        self._lost: str | None = None
        self._changed: list[Callable[[], None]] = []
        self._open = threading.Event()
        self._open.set()
        self.entered: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Number of documents of each batch that reached the gate."""
        self.documents = 0
        self.waiting_bytes: list[int] = []
        """What the batcher said that waits."""
        self.bytes_per_s = math.inf
        """How fast it is; it sleeps, so that its load is nobody's."""
        self.vanishing = 0
        """So many batches meet a worker that has gone."""

    @property
    def models(self) -> list[ModelInfo]:
        return self._inner.models

    @property
    def classifiers(self) -> list[str]:
        return self._inner.classifiers

    def swap(self, versions: Mapping[str, str], timeout_s: float) -> None:
        self._inner.swap(versions, timeout_s)

    def close_gate(self) -> None:
        self._open.clear()

    def open_gate(self) -> None:
        self._open.set()

    def set_slots(self, slots: int, lost: str | None = None) -> None:
        """Workers come and go."""
        self._slots, self._lost = slots, lost
        for changed in self._changed:
            changed()

    def status(self) -> ExecutorStatus:
        return ExecutorStatus(self._slots, self._inner.status().replicas, self._lost)

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def note_waiting(self, text_bytes: int) -> None:
        self.waiting_bytes.append(text_bytes)

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signature: SignatureParameters | None = None,
        classifiers: frozenset[str] | None = None,
    ) -> Scored:
        self.entered.put(len(languages))
        self.documents += len(languages)
        assert self._open.wait(60)
        if self.vanishing:
            self.vanishing -= 1
            raise Unavailable("The worker has gone: try again.")
        if self.bytes_per_s < math.inf:
            time.sleep(utf8.size / self.bytes_per_s)
        if POISON in utf8.tobytes():
            raise ValueError(f"cannot score {utf8.tobytes()!r}")
        return self._inner.score(utf8, byte_offsets, languages, signature=signature, classifiers=classifiers)


class LocalServer:
    """A server in this process, on an event loop in a thread, with a gate before its scoring.

    Args:
        more: scorers beside those that need no model.
        slots: how many batches its executor takes at once.
        **settings: keyword arguments of `load_settings`; without `redis_url` there is no index.
    """

    def __init__(self, more: Sequence[Scorer] = (), /, *, slots: int = 1, **settings: Any) -> None:
        self.settings: Settings = load_settings(port=0, **settings)
        scorers = [*build_scorers([]), *more]
        self._store: DuplicateStore | None = None
        if self.settings.redis_url is not None:
            self._store = DuplicateStore(connect(self.settings.redis_url), SignatureParameters())
        inner = InlineExecutor(scorers, threads=slots)
        self.executor = GatedExecutor(inner, slots)
        policies = load_policies(None, {signal.name for signal in self.executor.signals} | DUPLICATE_NAMES)
        self.pipeline = Pipeline(self.executor, policies, self._store, self.settings.max_document_bytes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._server = self._run(self._start())
        except BaseException:
            self._end()
            raise
        self.address = self._server.address
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.open_gate()
        self.stop(0)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._store is not None:
            self._store.close()

    @property
    def pending_bytes(self) -> int:
        pending: int = self._server.pending_bytes
        return pending

    def stop(self, grace_s: float) -> None:
        self._run(self._server.stop(grace_s))

    def metric(self, name: str, **labels: str) -> float:
        """What a scrape would show; 0 for what has not been counted yet."""
        value: float | None = self._server.metrics.registry.get_sample_value(name, labels)
        return value or 0.0

    def tasks(self) -> int:
        """How many asyncio tasks there are on its loop."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        tasks: int = self._run(count())
        return tasks

    async def _start(self) -> ScoringServer:
        server = ScoringServer(self.settings)
        await server.start(self.pipeline)
        return server

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)


class SlowServer:
    """A `LocalServer` in a process of its own, so that its memory can be measured; it scores no faster than told.

    Args:
        folder: for what it writes.
        bytes_per_s: how fast it scores.
        **settings: keyword arguments of `load_settings`.
    """

    def __init__(self, folder: Path, *, bytes_per_s: float = math.inf, **settings: Any) -> None:
        code = (
            "import sys; from tests.service.serving import LocalServer\n"
            "with LocalServer(**dict(a.split('=', 1) for a in sys.argv[2:])) as server:\n"
            "    server.executor.bytes_per_s = float(sys.argv[1])\n"
            "    print(server.address, flush=True)\n"
            "    for _ in sys.stdin: print(server.tasks(), flush=True)\n"
        )
        settings = {"data_dir": folder, **settings}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(bytes_per_s), *(f"{name}={value}" for name, value in settings.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.address = self._line()
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tasks(self) -> int:
        """How many asyncio tasks there are on its loop."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the server ended"
        return line


DUPLICATE_NAMES = {"duplicate_similarity", "exact_duplicate"}


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits for something that must come true."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "the condition never came true"
        time.sleep(0.01)


def status_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """Code of a failing call, and its details by type name."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    details: dict[str, Any] = {}
    status = rpc_status.from_call(error)
    for packed in status.details if status is not None else ():
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        details[type(detail).__name__] = detail
    return error.code(), details


@contextlib.contextmanager
def raw_channel(address: str) -> Iterator[grpc.Channel]:
    """A channel without limits of its own."""
    options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    with grpc.insecure_channel(address, options=options) as channel:
        yield channel
