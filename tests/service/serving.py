"""Servers for tests: a process of its own, or one in this process whose scoring can be held."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import redis
from numpy.typing import NDArray

from dqs.executors.inline import InlineExecutor
from dqs.index.embedded import find_binary
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import SignatureParameters
from dqs.pipeline import Pipeline, Scored
from dqs.policy import load_policies
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
        settings: keyword arguments of `load_settings`.
    """

    def __init__(self, **settings: Any) -> None:
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
    """

    def __init__(self, inner: InlineExecutor) -> None:
        self.signals = inner.signals
        self.models = inner.models
        self.max_slots = inner.max_slots
        self.status = inner.status
        self.subscribe = inner.subscribe
        self.note_waiting = inner.note_waiting
        self._inner = inner
        self._open = threading.Event()
        self._open.set()
        self.entered: queue.SimpleQueue[int] = queue.SimpleQueue()
        """Number of documents of each batch that reached the gate."""
        self.documents = 0

    def close_gate(self) -> None:
        self._open.clear()

    def open_gate(self) -> None:
        self._open.set()

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signatures: bool = True,
    ) -> Scored:
        self.entered.put(len(languages))
        self.documents += len(languages)
        assert self._open.wait(60)
        if POISON in utf8.tobytes():
            raise ValueError(f"cannot score {utf8.tobytes()!r}")
        return self._inner.score(utf8, byte_offsets, languages, signatures=signatures)


class LocalServer:
    """A server in this process, on an event loop in a thread, with a gate before its scoring.

    Args:
        settings: keyword arguments of `load_settings`; without `redis_url` there is no index.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings: Settings = load_settings(port=0, **settings)
        scorers = build_scorers([])
        self._store: DuplicateStore | None = None
        if self.settings.redis_url is not None:
            self._store = DuplicateStore(connect(self.settings.redis_url), SignatureParameters())
        self.executor = GatedExecutor(InlineExecutor(scorers, self._store.parameters if self._store else None))
        policies = load_policies(None, {signal.name for signal in self.executor.signals} | DUPLICATE_NAMES)
        self.pipeline = Pipeline(self.executor, policies, self._store, self.settings.max_document_bytes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(self._start())
        self.address = self._server.address
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.open_gate()
        self.stop(0)
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

    async def _start(self) -> ScoringServer:
        server = ScoringServer(self.settings)
        await server.start(self.pipeline)
        return server

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)


DUPLICATE_NAMES = {"duplicate_similarity", "exact_duplicate"}


@contextlib.contextmanager
def raw_channel(address: str) -> Iterator[grpc.Channel]:
    """A channel without limits of its own."""
    options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    with grpc.insecure_channel(address, options=options) as channel:
        yield channel
