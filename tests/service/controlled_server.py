"""A whole server process whose scoring a test holds and breaks through standard input; see `main`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from dqs.app import warm
from dqs.executors.inline import InlineExecutor
from dqs.pipeline import Pipeline
from dqs.policy import load_policies
from dqs.scorers import build_scorers
from dqs.server.server import serve
from dqs.settings import Settings, load_settings
from tests.service.serving import DUPLICATE_NAMES, READY_PREFIX, ROOT, GatedExecutor

OPENED, SLOTS, LOST, CLOSE, HOLD, OPEN = "opened", "slots", "lost", "close", "hold", "open"
ANSWER_S = 60.0
CLOSED, HELD = "closed", "held"
"""Answers to `CLOSE` and `HOLD`, lines on standard output."""


class ControlledServer:
    """`dqs.server.server.serve` in a process of its own, around a `GatedExecutor`.

    Args:
        opens: false keeps it opening its pipeline until it is told `OPENED`.
        **settings: keyword arguments of `load_settings`.
    """

    def __init__(self, *, opens: bool = True, **settings: Any) -> None:
        self._opens = opens
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._settings = {name: str(value) for name, value in {"port": self.port, **settings}.items()}

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.service.controlled_server"]
            + [f"{name}={value}" for name, value in self._settings.items()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        if self._opens:
            self.tell(OPENED)
            self.wait_until_ready()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait(60)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()

    def wait_until_ready(self) -> None:
        """Waits for its line on standard output."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith(READY_PREFIX), self.log()

    def tell(self, *words: object) -> None:
        """Sends a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def close_gate(self) -> None:
        """Holds back every batch that comes from now on."""
        self.tell(CLOSE)
        self._answer(CLOSED)

    def wait_until_held(self) -> None:
        """Waits until a batch stands at the gate, which was closed before."""
        self.tell(HOLD)
        self._answer(HELD)

    def _answer(self, wanted: str) -> None:
        assert self._process.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda stream: lines.append(stream.readline()), args=(self._process.stdout,))
        reader.daemon = True
        reader.start()
        reader.join(ANSWER_S)
        assert lines == [f"{wanted}\n"], self.log()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def status(self, timeout_s: float = 60) -> int:
        """Waits for its end and gives its exit status."""
        return self._process.wait(timeout_s)

    def log(self) -> str:
        """What it has written on standard error."""
        self._errors.seek(0)
        return self._errors.read()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(settings: Settings) -> None:
    """Serves; lines of standard input are commands: opened, slots N, lost REASON, close, hold, open."""
    executor = GatedExecutor(InlineExecutor(build_scorers([])))
    policies = load_policies(None, {signal.name for signal in executor.signals} | DUPLICATE_NAMES)
    opened = threading.Event()

    def obey() -> None:
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            match command:
                case "opened":
                    opened.set()
                case "slots":
                    executor.set_slots(int(argument))
                case "lost":
                    executor.set_slots(0, argument)
                case "close":
                    executor.close_gate()
                    while not executor.entered.empty():
                        executor.entered.get()
                    print(CLOSED, flush=True)
                case "hold":
                    executor.entered.get()
                    print(HELD, flush=True)
                case "open":
                    executor.open_gate()

    @contextlib.contextmanager
    def open_pipeline() -> Iterator[Pipeline]:
        opened.wait()
        pipeline = Pipeline(executor, policies, None, settings.max_document_bytes)
        warm(pipeline)
        yield pipeline

    threading.Thread(target=obey, daemon=True).start()
    serve(settings, open_pipeline)


if __name__ == "__main__":
    main(load_settings(Path(os.devnull), **dict(argument.split("=", 1) for argument in sys.argv[1:])))
