"""`dqs top` as a person runs it, against the metrics of a real pipeline."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dqs.commands.top import metrics_url
from dqs.data import Document
from dqs.errors import RequestError
from dqs.observability.metrics import Metrics, MetricsServer, serve_metrics
from dqs.pipeline import Replica
from tests.service.serving import CHINESE, ENGLISH, ROOT, LocalServer
from tests.unit.pipelines import plain_pipeline

TIMEOUT_S = 120


class Feed:
    """Metrics of two workers that score without end, served over HTTP."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.server: MetricsServer = serve_metrics(self.metrics, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self.server.address)
        self.metrics.watch("pending_documents", lambda: 12.0)
        self.metrics.watch("pending_bytes", lambda: 3_400_000.0)
        self.metrics.watch("slots", lambda: 2.0)
        replicas = [
            Replica("cpu-0", "cpu", "node-a", True, 5_000, 0),
            Replica("cpu-1", "cpu", "[red]node\x1b-b", False, 0, 3),
        ]
        self.metrics.watch_replicas(lambda: replicas)
        texts = [text.encode() for text in (ENGLISH, CHINESE, "")]
        documents = [Document(str(i), text) for i, text in enumerate([*texts, b"\xff\xfe"])]
        self._results = plain_pipeline().run(documents, corpus=None)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.01):
            self.metrics.batch([0.001, 0.002], self._results, 1_000)
            self.metrics.answered("books", self._results, 0, 4)
            self.metrics.call("ScoreBatch", "OK", 0.003)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.server.close()


@pytest.fixture(scope="module")
def feed() -> Iterator[Feed]:
    feed = Feed()
    yield feed
    feed.stop()


def run_top(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dqs.cli", "top", *arguments],
        cwd=ROOT, env={**os.environ, "COLUMNS": str(columns)}, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_one_snapshot_is_plain_text(feed: Feed, columns: int) -> None:
    done = run_top(feed.address, "--interval", "1", columns=columns)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert max(map(len, lines)) <= columns
    assert not any(line.endswith(" ") for line in lines)
    assert re.search(r"documents +[\d,]+/s", done.stdout)
    assert re.search(r"decisions +keep \d+\.\d%  drop \d+\.\d%  review \d+\.\d%  error \d+\.\d%", done.stdout)
    assert "12 documents, 3.4 MB" in done.stdout
    assert "workers: 1 of 2 ready" in done.stdout
    assert re.search(r"cpu-1 +starting +3 +cpu +\[red\]node\?-b", done.stdout)
    assert re.search(r"books +[\d,.]+ +", done.stdout)
    times = [line for line in lines if line.startswith(("call ScoreBatch", "queue", "batch score", "batch policy"))]
    assert len(times) == 4
    assert all(re.search(r"\d m?s +[\d.]+ m?s", line) for line in times)


def test_json_lines(feed: Feed) -> None:
    done = run_top(f"http://{feed.address}/metrics", "--json", "--once", "--interval", "1")
    (line,) = done.stdout.splitlines()
    snapshot = json.loads(line)
    assert snapshot["documents_per_s"] > 0
    # One in four; a scrape may fall between the counting of two decisions.
    slack = 4 / snapshot["interval_s"]
    assert snapshot["decisions_per_s"]["error"] == pytest.approx(snapshot["documents_per_s"] / 4, abs=slack)
    assert snapshot["replicas"][1] == {
        "name": "cpu-1", "pool": "cpu", "node": "[red]node\x1b-b", "ready": False, "pending_bytes": 0, "restarts": 3,
    }  # fmt: skip
    assert snapshot["tenants"][0]["name"] == "books"
    assert {latency["what"] for latency in snapshot["latencies"]} == {"request", "queue", "stage"}
    assert snapshot["degraded"] is False
    assert snapshot["oldest_s"] is None


def test_a_reader_that_has_enough_ends_it(feed: Feed) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dqs.cli", "top", feed.address, "--json", "--interval", "0.1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["documents_per_s"] > 0
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(TIMEOUT_S) == 0


def test_a_terminal_is_redrawn_until_ctrl_c(feed: Feed) -> None:
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "dqs.cli", "top", feed.address, "--interval", "0.1"],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    asked = False
    give_up_s = time.monotonic() + TIMEOUT_S
    with contextlib.suppress(OSError):  # the terminal ends with its last process
        while time.monotonic() < give_up_s:
            shown += os.read(control, 65536)
            if not asked and shown.count(b"decisions") >= 3:
                process.send_signal(signal.SIGINT)
                asked = True
    os.close(control)
    assert process.wait(TIMEOUT_S) == 0
    assert asked
    assert b"\x1b[?1049h" in shown  # another screen, and back to the former one
    assert b"\x1b[?1049l" in shown
    assert b"Traceback" not in shown
    assert "▁".encode() in shown or "█".encode() in shown


@contextlib.contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    """Something that is no DQS server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>hello</html>", "is not the metrics of a DQS server"),
        (200, b"up 1\n", "is not the metrics of a DQS server"),
        (200, b"\xff\xfe\x00", "is not the metrics of a DQS server"),
        (404, b"", "it answers with status 404"),
    ],
)
def test_what_is_no_server_of_ours_is_one_sentence(status: int, body: bytes, words: str) -> None:
    with web_server(status, body) as address:
        done = run_top(address, "--once")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dqs: Cannot read http://127.0.0.1:")
    assert words in line


def test_the_port_of_the_service_is_told_from_that_of_the_metrics(local: LocalServer) -> None:
    done = run_top(local.address, "--once")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "what answers there is no metrics page" in line


def test_no_server_is_one_sentence() -> None:
    done = run_top("127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr == (
        "dqs: Cannot read http://127.0.0.1:1/metrics (Connection refused): start the server with --metrics-port,"
        " and give the address here.\n"
    )


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:9999", "http://127.0.0.1:9999/metrics"),
        ("gateway.example", "http://gateway.example:9464/metrics"),
        ("[::1]:9999", "http://[::1]:9999/metrics"),
        ("[::1]", "http://[::1]:9464/metrics"),
        ("http://gateway:80", "http://gateway:80/metrics"),
        ("https://gateway/a/metrics", "https://gateway/a/metrics"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert metrics_url(address) == url


@pytest.mark.parametrize("address", ["", "ftp://a:1", "file:///etc/passwd", "a:b", "[::1", "http://", ":9464"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(RequestError, match="is no address of metrics"):
        metrics_url(address)
