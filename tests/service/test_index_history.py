"""Clients race on a real Redis that meets faults; the checker of `tests/simulation/history.py` judges what they saw."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from dqs.errors import IndexUnavailable
from dqs.index.embedded import find_binary
from dqs.index.layout import FIRST_BUCKETS, CorpusOptions, Stored, corpus_base
from dqs.index.redis_store import ENTRIES_PER_BUCKET, Duplicates, DuplicateStore, connect
from dqs.index.signature import LINES, SignatureParameters, Signatures
from tests.service.proxy import Proxy
from tests.service.servers import each_binary
from tests.simulation.history import Action, Event, Invariant, Kind, Outcome, Recorder, Violation, check

pytestmark = pytest.mark.xdist_group("index-history")

PARAMETERS = SignatureParameters(bands=4, rows=4, bins=64)
CORPUS = "raced for"
THREADS = 6
FILLING = FIRST_BUCKETS * ENTRIES_PER_BUCKET - 50
"""Documents that are there before, so that buckets are split during the race."""
FAMILIES_PER_S = 12.0
"""Families of near-duplicate texts that come and go; a few are in play at a time."""
IDS = 8
"""Ids of a family, each with a text of its own."""


class Server:
    """A redis-server on a port of its own, run as the embedded one is, to be killed and started again."""

    def __init__(self, folder: Path, binary: Path, *, appendonly: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [
            str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder),
            "--appendonly", "yes" if appendonly else "no", "--appendfsync", "no", "--save", "", "--daemonize", "no",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.admin = redis.Redis(port=self.port, socket_timeout=10.0)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        give_up_s = time.monotonic() + 60
        while True:
            with suppress(redis.ConnectionError):
                if self.admin.ping():
                    return
            assert time.monotonic() < give_up_s
            time.sleep(0.01)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def close(self) -> None:
        self.kill()
        self.admin.close()


@contextmanager
def running(folder: Path, binary: Path, *, appendonly: bool = True) -> Iterator[tuple[Server, Proxy]]:
    folder.mkdir(exist_ok=True)
    server = Server(folder, binary, appendonly=appendonly)
    server.start()
    try:
        with Proxy(f"127.0.0.1:{server.port}") as proxy:
            fill(proxy.address)
            yield server, proxy
    finally:
        server.close()


def family(text: str) -> str:
    return text.partition(".")[0]


def near(a: str, b: str) -> bool:
    return family(a) == family(b)


def text_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@functools.lru_cache(maxsize=10_000)
def signature(text: str) -> Signatures:
    """Of a text "family.variant": near those of its family, unlike all others."""
    common = np.random.default_rng(int.from_bytes(text_hash(family(text))[:8], "big"))
    bands = common.integers(0, 2**32, size=(1, PARAMETERS.bands), dtype=np.uint32)
    sketch = common.integers(0, 256, size=(1, PARAMETERS.sketch_bytes), dtype=np.uint8) | np.uint8(0x55)
    sketch[0, 0] = 0x55 + int(text.partition(".")[2]) % 4
    return Signatures(
        PARAMETERS,
        np.full(1, 50, dtype=np.int32),
        np.frombuffer(text_hash(text), dtype="<u8").reshape(1, 2).astype(np.uint64),
        bands,
        sketch,
        np.zeros((1, LINES), dtype=np.uint32),
    )


StoreMaker = Callable[[redis.Redis, int], DuplicateStore]


def honest(client: redis.Redis, group: int) -> DuplicateStore:
    return DuplicateStore(client, PARAMETERS, group_documents=group)


class LooksFirst(DuplicateStore):
    """A broken index: looks up and inserts in two calls, between which another client may do the same."""

    def check_and_insert(
        self, corpus: str, ids: Sequence[str], signatures: Signatures, insert: NDArray[np.bool_], **options: Any
    ) -> Duplicates:
        found = super().check_and_insert(corpus, ids, signatures, ~insert)
        new = np.array([named is None for named in found.duplicate_of]) & ~found.reused_id
        fresh = np.flatnonzero(new)
        super().check_and_insert(
            corpus,
            [ids[row] for row in fresh.tolist()],
            signatures[fresh],
            np.ones(fresh.size, dtype=np.bool_),
            unchecked=True,
        )
        return found


class DeletesLater(DuplicateStore):
    """A broken index: says that documents are deleted and does it a moment later."""

    def delete(self, corpus: str, ids: Any) -> int:
        time.sleep(0.001)
        threading.Timer(0.05, lambda: suppressed(lambda: super(DeletesLater, self).delete(corpus, ids))).start()
        return len(ids)


def suppressed(work: Callable[[], object]) -> None:
    with suppress(Exception):
        work()


def looks_first(client: redis.Redis, group: int) -> DuplicateStore:
    return LooksFirst(client, PARAMETERS, group_documents=group)


def deletes_later(client: redis.Redis, group: int) -> DuplicateStore:
    return DeletesLater(client, PARAMETERS, group_documents=group)


def forgets_answers(client: redis.Redis, group: int) -> DuplicateStore:
    store = honest(client, group)
    store.configure(CORPUS, CorpusOptions(retry_s=0.0))
    return store


def fill(address: str) -> None:
    random_numbers = np.random.default_rng(1)
    signatures = replace(
        Signatures.empty(FILLING, PARAMETERS),
        shingles=np.full(FILLING, 50, dtype=np.int32),
        text_hash=random_numbers.integers(1, 2**63, size=(FILLING, 2)).astype(np.uint64),
        bands=random_numbers.integers(0, 2**32, size=(FILLING, PARAMETERS.bands), dtype=np.uint32),
    )
    with closing(honest(connect(f"redis://{address}/0"), 64)) as store:
        ids = [f"filling.{number}" for number in range(FILLING)]
        store.check_and_insert(CORPUS, ids, signatures, np.ones(FILLING, dtype=np.bool_), unchecked=True)


def connected(address: str, make: StoreMaker, dice: random.Random) -> DuplicateStore:
    while True:
        with suppress(IndexUnavailable):
            client = connect(f"redis://{address}/0", timeout_s=1.0, retries=dice.randrange(2))
            return make(client, dice.choice([1, 2, 5, 16]))
        time.sleep(0.02)


def use(address: str, name: str, make: StoreMaker, begin_s: float, stop_s: float, recorder: Recorder) -> None:
    """One client: submits groups of documents and deletes some until the time is over; asks on after failures."""
    dice = random.Random(name)
    with closing(connected(address, make, dice)) as store:
        while (now_s := time.monotonic()) < stop_s:
            oldest = int(FAMILIES_PER_S * (now_s - begin_s))
            group: dict[str, str] = {}
            for _ in range(dice.choice([1, 1, 2, 4, 9])):
                kin, place = oldest + dice.randrange(4), dice.randrange(IDS)
                other = dice.random() < 0.05
                group[f"{kin}.{place}"] = f"{kin + other}.{place}"
            if dice.random() < 0.1:
                document = next(iter(group))
                call = recorder.invoke(name, Action.DELETE, document)
                try:
                    store.delete(CORPUS, [document])
                except IndexUnavailable:
                    recorder.fail(call)
                else:
                    recorder.answer(call, Outcome.DELETED)
                continue
            calls = [recorder.invoke(name, Action.SUBMIT, document, text) for document, text in group.items()]
            try:
                found = store.check_and_insert(
                    CORPUS,
                    list(group),
                    Signatures.join([signature(text) for text in group.values()]),
                    np.ones(len(group), dtype=np.bool_),
                )
            except IndexUnavailable:
                for call in calls:
                    recorder.fail(call)
                time.sleep(0.02)
                continue
            for call, named, is_reused in zip(calls, found.duplicate_of, found.reused_id.tolist(), strict=True):
                outcome = Outcome.ID_REUSED if is_reused else Outcome.KEPT if named is None else Outcome.DUPLICATE
                recorder.answer(call, outcome, named)


def use_in_threads(
    address: str, name: str, make: StoreMaker, begin_s: float, stop_s: float, threads: int = THREADS
) -> list[Event]:
    """Several clients in this process; what they saw, by the machine's clock."""
    recorder = Recorder(time.monotonic)
    with ThreadPoolExecutor(threads) as pool:
        work = [
            pool.submit(use, address, f"{name}{thread}", make, begin_s, stop_s, recorder) for thread in range(threads)
        ]
        for one in work:
            one.result()
    return recorder.events


def full_for_a_moment(server: Server, proxy: Proxy) -> None:
    server.admin.config_set("maxmemory", 1)
    time.sleep(0.05)
    server.admin.config_set("maxmemory", 0)


def killed(server: Server, proxy: Proxy) -> None:
    server.kill()
    time.sleep(0.05)
    server.start()


FAULTS: dict[str, Callable[[Server, Proxy], object]] = {
    "clients killed": lambda server, proxy: server.admin.execute_command(  # type: ignore[no-untyped-call]
        "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
    ),
    "cable cut": lambda server, proxy: proxy.cut(),
    "scripts flushed": lambda server, proxy: server.admin.script_flush(),
    "full": full_for_a_moment,
    "killed": killed,
}


def break_now_and_then(
    server: Server, proxy: Proxy, stop_s: float, kinds: Sequence[str], pause_s: float
) -> Counter[str]:
    """Meets the server with one fault after the other; how often each."""
    dice = random.Random("faults")
    met: Counter[str] = Counter()
    while time.monotonic() + pause_s < stop_s and kinds:
        time.sleep(dice.uniform(0.2, 1.0) * pause_s)
        # All of them in turn, so that a short run has each.
        kind = kinds[met.total() % len(kinds)]
        FAULTS[kind](server, proxy)
        met[kind] += 1
    return met


def final_state(server: Server) -> dict[str, str]:
    """The text of every document that the index holds, by its id."""
    base = corpus_base("default", CORPUS)
    generation: Any = server.admin.hget(base + "header", "generation")
    records: Any = server.admin.hgetall(f"{base}{generation.decode()}:records")
    documents: Any = server.admin.hget(base + "header", "documents")
    assert int(documents) == len(records) >= FILLING
    held = {}
    for number, value in records.items():
        stored = Stored.of(number, value, PARAMETERS)
        kin, _, place = stored.id.decode().partition(".")
        if kin == "filling":
            continue
        texts = {text_hash(f"{int(kin) + other}.{place}"): f"{int(kin) + other}.{place}" for other in (0, 1)}
        assert stored.id.decode() not in held, "two documents of one id"
        held[stored.id.decode()] = texts[stored.text_hash]
    return held


def buckets(server: Server) -> int:
    stored: Any = server.admin.hget(corpus_base("default", CORPUS) + "header", "buckets")
    return int(stored)


def merged(histories: Sequence[Sequence[Event]]) -> list[Event]:
    """The histories of several processes as one, by the clock they share."""
    events: list[Event] = []
    first = 0
    for history in histories:
        events += [replace(event, call=first + event.call) for event in history]
        first += len(history)
    return sorted(events, key=lambda event: event.time)


def judged(events: Sequence[Event], server: Server) -> list[Violation]:
    return check(events, final_state(server), near=near, group=family)


def outcomes(events: Sequence[Event]) -> Counter[str]:
    """How often calls ended in which way."""
    seen: Counter[str] = Counter()
    for event in events:
        if event.kind is not Kind.INVOKE:
            seen["unknown" if event.outcome is None else event.outcome.value] += 1
    return seen


def race(server: Server, proxy: Proxy, seconds: float, faults: Sequence[str], make: StoreMaker = honest) -> list[Event]:
    """Clients in threads and faults for some time; the history."""
    begin_s = time.monotonic()
    stop_s = begin_s + seconds
    with ThreadPoolExecutor(1) as pool:
        breaking = pool.submit(break_now_and_then, server, proxy, stop_s, faults, 0.6)
        events = use_in_threads(proxy.address, "client", make, begin_s, stop_s)
        met = breaking.result()
    print(f"{dict(outcomes(events))}, {dict(met)}")
    assert set(met) == set(faults)
    return events


def test_no_promise_is_broken_with_faults_all_the_time(tmp_path: Path) -> None:
    with running(tmp_path, find_binary()) as (server, proxy):
        events = race(server, proxy, 5.0, list(FAULTS))
        violations = judged(events, server)
        assert buckets(server) > FIRST_BUCKETS
    assert violations == []
    seen = outcomes(events)
    assert seen.total() > 2000
    assert min(seen[outcome.value] for outcome in Outcome) > 20
    assert seen["unknown"] > 20


def test_no_promise_is_broken_between_two_processes(tmp_path: Path) -> None:
    with running(tmp_path, find_binary()) as (server, proxy):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            # The processes are ready before the clock starts.
            list(pool.map(family, ["ready", "ready"], chunksize=1))
            begin_s = time.monotonic() + 0.2
            stop_s = begin_s + 2.5
            work = [
                pool.submit(use_in_threads, proxy.address, f"process {process} client ", honest, begin_s, stop_s, 3)
                for process in range(2)
            ]
            break_now_and_then(server, proxy, stop_s, ["cable cut", "scripts flushed", "killed"], 0.8)
            events = merged([one.result() for one in work])
        violations = judged(events, server)
    assert violations == []
    assert outcomes(events).total() > 500


@pytest.mark.parametrize(
    ("make", "faults", "broken"),
    [
        (looks_first, [], Invariant.ONE_KEPT),
        (forgets_answers, [], Invariant.ID_REUSED),
        (deletes_later, [], Invariant.DELETED_IS_GONE),
    ],
)
def test_a_broken_index_is_caught(tmp_path: Path, make: StoreMaker, faults: Sequence[str], broken: Invariant) -> None:
    with running(tmp_path, find_binary()) as (server, proxy):
        violations = judged(race(server, proxy, 1.5, faults, make), server)
    assert broken in {violation.invariant for violation in violations}


def test_a_server_that_forgets_is_caught(tmp_path: Path) -> None:
    with running(tmp_path, find_binary(), appendonly=False) as (server, proxy):
        events = race(server, proxy, 2.0, ["killed"])
        fill(proxy.address)
        violations = judged(events, server)
    assert Invariant.NOTHING_LOST in {violation.invariant for violation in violations}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("binary", each_binary())
def test_no_promise_is_broken_in_minutes(tmp_path: Path, binary: Path) -> None:
    for turn in range(8):
        with running(tmp_path / str(turn), binary) as (server, proxy):
            violations = judged(race(server, proxy, 15.0, list(FAULTS)), server)
        assert violations == [], turn
