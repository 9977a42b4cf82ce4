"""Mixed load for a long time: does memory grow, does anything get lost?

    python -m tests.bench.soak [--minutes 60] [--workers 0] [--kill-s 0] [--seed 1]

Starts a service and lets several clients at it at once: streams of good and
bad documents in both languages, unary calls, calls given up half-way, slow
readers, and broken requests; with `--kill-s` a worker dies as often. The texts
are made from words, so no data is needed. Every document must be answered
once. It prints a line a minute, then the growth of the server's memory, file
descriptors and threads over the second half, and exits with 1 where a document
was lost or doubled, a call ended in a way that it must not, or memory grew by
more than `--max-growth-mb`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from dqs import Client, Document
from dqs.errors import DqsError, Overloaded, Unavailable
from dqs.v1 import scoring_pb2
from tests.bench.report import emit, show
from tests.bench.service import workers_of
from tests.service.serving import ServerProcess

ENGLISH = (
    "the river", "runs past old mills", "and narrow gardens", "where people grow", "beans", "onions", "roses",
    "while trains carry letters", "between quiet towns", "every morning", "before school begins", "and shops open",
    "their wooden doors",
)  # fmt: skip
CHINESE = tuple("河水流过老磨坊和窄窄的花园人们在那里种豆子洋葱和玫瑰火车每天早晨在开学以前把信送到安静的小镇")
BROKEN = (b"", b"\xff\xfe\x00", b"\x00" * 100, b"a", b" " * 5000, "\N{ZERO WIDTH JOINER}".encode() * 300)


def text(chance: random.Random) -> bytes:
    """A made-up text, now and then a bad one."""
    if chance.random() < 0.03:
        return chance.choice(BROKEN)
    length = int(chance.lognormvariate(5, 1)) + 1
    if chance.random() < 0.5:
        return " ".join(chance.choices(ENGLISH, k=length // 3 + 1)).encode()
    return "".join(chance.choices(CHINESE, k=length)).encode()


@dataclass
class Ledger:
    """What was sent and what came back. Shared by the clients."""

    sent: int = 0
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self, name: str, sent: list[str], answered: list[str]) -> None:
        """Compares the ids of one call."""
        with self.lock:
            self.sent += len(sent)
            self.answered += len(answered)
            if sorted(sent) != sorted(answered):
                lost, more = len(set(sent) - set(answered)), len(answered) - len(set(answered))
                self.wrong.append(f"{name}: {lost} documents without an answer, {more} answers too many")

    def end(self, how: str) -> None:
        """Counts how a call ended."""
        with self.lock:
            self.ended[how] += 1

    def complain(self, what: str) -> None:
        """Notes what must not happen."""
        with self.lock:
            self.wrong.append(what)


class Load:
    """Clients of one server, each a thread that goes on until told to stop."""

    def __init__(self, address: str, seed: int, rest: float) -> None:
        self.ledger = Ledger()
        self._address = address
        self._rest = rest
        self._stop = threading.Event()
        self._names = itertools.count()
        kinds: list[Callable[[random.Random], None]] = [
            self._stream, self._stream, self._unary, self._give_up, self._slow_reader, self._break,
        ]  # fmt: skip
        self._threads = [
            threading.Thread(target=self._go_on, args=(kind, random.Random(seed * 100 + number)), daemon=True)
            for number, kind in enumerate(kinds)
        ]

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets every client finish what it is at."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            if thread.is_alive():
                self.ledger.complain("a client hangs")

    def _go_on(self, kind: Callable[[random.Random], None], chance: random.Random) -> None:
        name = kind.__name__.strip("_")
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                kind(chance)
            except (Overloaded, Unavailable) as error:
                self.ledger.end(f"{name}: {error.reason}")
                self._stop.wait(0.2)
            except DqsError as error:
                self.ledger.complain(f"{name}: {error.reason}: {error.message}")
                self._stop.wait(1)
            else:
                self.ledger.end(f"{name}: OK")
            self._stop.wait(self._rest * (time.monotonic() - began_s))

    def _documents(self, chance: random.Random, count: int) -> list[Document]:
        call = next(self._names)
        return [Document(f"{call}-{i}", text(chance)) for i in range(count)]

    def _stream(self, chance: random.Random) -> None:
        documents = self._documents(chance, chance.randrange(1, 3000))
        with Client(self._address) as client:
            corpus = chance.choice(("soak", None))
            ids = [verdict.id for verdict in client.score(documents, corpus=corpus, ordered=chance.random() < 0.5)]
        self.ledger.settle("stream", [document.id for document in documents], ids)

    def _unary(self, chance: random.Random) -> None:
        with Client(self._address) as client:
            for _ in range(20):
                documents = self._documents(chance, chance.randrange(1, 8))
                verdicts = client.score_batch(documents, corpus="soak")
                self.ledger.settle(
                    "unary", [document.id for document in documents], [verdict.id for verdict in verdicts]
                )

    def _give_up(self, chance: random.Random) -> None:
        with Client(self._address) as client:
            for _ in range(5):
                answers = client.score(iter(self._documents(chance, 1000)), corpus=None)
                for _ in range(chance.randrange(3)):
                    next(answers, None)
                answers.close()  # type: ignore[attr-defined]

    def _slow_reader(self, chance: random.Random) -> None:
        documents = self._documents(chance, 400)
        answered = []
        with Client(self._address) as client:
            for verdict in client.score(iter(documents), corpus=None):
                answered.append(verdict.id)
                if len(answered) % 40 == 0:
                    self._stop.wait(0.1)
        self.ledger.settle("slow reader", [document.id for document in documents], answered)

    def _break(self, chance: random.Random) -> None:
        valid = scoring_pb2.ScoreBatchRequest(
            documents=[scoring_pb2.Document(id=one.id, text=one.text) for one in self._documents(chance, 3)]
        ).SerializeToString()
        with grpc.insecure_channel(self._address) as channel:
            method = channel.unary_unary("/dqs.v1.ScoringService/ScoreBatch")
            for _ in range(10):
                broken = bytearray(valid)
                for _ in range(chance.randrange(1, 6)):
                    broken[chance.randrange(len(broken))] = chance.randrange(256)
                try:
                    method(bytes(broken), timeout=60)
                except grpc.RpcError as error:
                    allowed = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
                    if error.code().name not in allowed:
                        self.ledger.complain(f"a broken request ended with {error.code().name}")
                self._stop.wait(0.05)


@dataclass(frozen=True)
class Reading:
    """What the server holds at a time; its children apart."""

    at_s: float
    resident_mb: float
    files: int
    threads: int
    children_mb: float


def read(server: psutil.Process, begin_s: float) -> Reading:
    """What the server holds now."""
    children = 0.0
    for child in server.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            children += child.memory_info().rss / 1e6
    return Reading(
        time.monotonic() - begin_s, server.memory_info().rss / 1e6, server.num_fds(), server.num_threads(), children
    )


def slope_per_hour(points: list[tuple[float, float]]) -> float:
    """Least-squares slope of values over seconds, by the hour."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope * 3600


def soak(
    seconds: float,
    *,
    least: int = 0,
    workers: int = 0,
    kill_s: float = 0,
    seed: int = 1,
    rest: float = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Runs the load; what was answered, what was wrong, and how the server's memory went.

    Args:
        seconds: how long.
        least: goes on until so many documents are answered, for ten times as long at most.
        workers: Ray actors of the service; 0 scores in its process.
        kill_s: a worker is killed that often; 0 for never.
        seed: of texts and choices.
        rest: every client pauses that many times as long as it was at work.
        say: takes a line of progress.
    """
    settings: dict[str, Any] = {"port": 0, "stream_max_age_s": 20, "workers": workers}
    with tempfile.TemporaryDirectory() as folder, ServerProcess(data_dir=Path(folder), **settings) as process:
        server = psutil.Process(process.pid)
        load = Load(process.address, seed, rest)
        load.start()
        begin_s = time.monotonic()
        readings: list[Reading] = []
        pause_s = min(5.0, seconds / 40)
        next_kill_s = kill_s or float("inf")
        next_line_s = 60.0
        kills = 0
        for _ in _ticks(seconds, pause_s, lambda: load.ledger.answered >= least):
            readings.append(read(server, begin_s))
            now_s = readings[-1].at_s
            if now_s >= next_kill_s:
                next_kill_s += kill_s
                for victim in workers_of(server)[:1]:
                    with contextlib.suppress(psutil.Error):
                        victim.send_signal(signal.SIGKILL)
                        kills += 1
            if now_s >= next_line_s:
                next_line_s += 60
                say(
                    f"{now_s / 60:.0f} min: {load.ledger.answered} documents, {readings[-1].resident_mb:.0f} MB, "
                    f"{readings[-1].files} files, {len(load.ledger.wrong)} wrong"
                )
        load.stop()
        with Client(process.address) as client:  # the next clean request succeeds
            (verdict,) = client.score_batch(["A clean request after all that."], corpus=None)
        later = readings[len(readings) // 2 :]
        return {
            "minutes": seconds / 60,
            "workers": workers,
            "kills": kills,
            "documents": load.ledger.answered,
            "wrong": load.ledger.wrong,
            "calls": dict(sorted(load.ledger.ended.items())),
            "clean_request": verdict.error is None,
            "resident_mb_first": later[0].resident_mb,
            "resident_mb_last": statistics.median(one.resident_mb for one in later[-5:]),
            "growth_mb_per_hour": slope_per_hour([(one.at_s, one.resident_mb) for one in later]),
            "files_first": later[0].files,
            "files_last": later[-1].files,
            "threads_first": later[0].threads,
            "threads_last": later[-1].threads,
            "children_mb_last": later[-1].children_mb,
        }


def _ticks(seconds: float, pause_s: float, is_enough: Callable[[], bool]) -> Iterator[None]:
    begin_s = time.monotonic()
    while (now_s := time.monotonic()) < begin_s + seconds or (not is_enough() and now_s < begin_s + 10 * seconds):
        time.sleep(pause_s)
        yield


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--kill-s", type=float, default=0, help="a worker is killed that often; 0 for never")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-growth-mb", type=float, default=100, help="over the second half")
    arguments = parser.parse_args()
    figures = soak(
        60 * arguments.minutes,
        workers=arguments.workers,
        kill_s=arguments.kill_s,
        seed=arguments.seed,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    show("Soak", ("", "value"), list(figures.items()))
    emit("soak", figures)
    grew = figures["resident_mb_last"] - figures["resident_mb_first"]
    if figures["wrong"] or not figures["clean_request"] or grew > arguments.max_growth_mb:
        sys.exit(1)


if __name__ == "__main__":
    main()
