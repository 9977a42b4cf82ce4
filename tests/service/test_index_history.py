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
from typing import Any, Self

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

PARAMETERS = SignatureParameters(bands=4, rows=4, bins=64)
CORPUS = "raced for"
THREADS = 6
LIMIT_S = 120.0
"""A race goes on until enough has happened; no machine is slower than this."""
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
        time.sleep(0.005)
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
    """A broken index: says that documents are deleted and does it later, when other answers have been given."""

    def delete(self, corpus: str, ids: Any) -> int:
        threading.Timer(1.0, lambda: suppressed(lambda: super(DeletesLater, self).delete(corpus, ids))).start()
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


def use(
    address: str, name: str, make: StoreMaker, begin_s: float, is_over: threading.Event, recorder: Recorder
) -> None:
    """One client: submits groups of documents and deletes some until told to stop; asks on after failures."""
    dice = random.Random(name)
    there: str | None = None
    """A document that was there at the last answer."""
    gone: str | None = None
    """A document that was deleted by the last call."""
    with closing(connected(address, make, dice)) as store:
        while not is_over.is_set():
            oldest = int(FAMILIES_PER_S * (time.monotonic() - begin_s))
            group: dict[str, str] = {}
            for _ in range(dice.choice([1, 1, 2, 4, 9])):
                kin, place = oldest + dice.randrange(4), dice.randrange(IDS)
                other = dice.random() < 0.05
                group[f"{kin}.{place}"] = f"{kin + other}.{place}"
            if dice.random() < 0.1:
                # Half of them of what is surely there, whose kin is asked for next.
                document = there if there is not None and dice.random() < 0.5 else next(iter(group))
                call = recorder.invoke(name, Action.DELETE, document)
                try:
                    store.delete(CORPUS, [document])
                except IndexUnavailable:
                    recorder.fail(call)
                else:
                    recorder.answer(call, Outcome.DELETED)
                    gone = document
                continue
            if gone is not None:
                near_it = f"{family(gone)}.{(int(gone.partition('.')[2]) + 1) % IDS}"
                group.setdefault(near_it, near_it)
                gone = None
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
            for call, document, named, is_reused in zip(
                calls, group, found.duplicate_of, found.reused_id.tolist(), strict=True
            ):
                outcome = Outcome.ID_REUSED if is_reused else Outcome.KEPT if named is None else Outcome.DUPLICATE
                recorder.answer(call, outcome, named)
                if not is_reused:
                    there = named or document


Enough = Callable[[Sequence[Event]], bool]
"""Whether a history shows all that it is to show."""


def use_in_threads(
    address: str, name: str, make: StoreMaker, begin_s: float, enough: Enough, threads: int = THREADS
) -> list[Event]:
    """Several clients in this process; what they saw, by the machine's clock."""
    recorder = Recorder(time.monotonic)
    is_over = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        work = [
            pool.submit(use, address, f"{name}{thread}", make, begin_s, is_over, recorder) for thread in range(threads)
        ]
        try:
            while not enough(recorder.events.copy()) and time.monotonic() < begin_s + LIMIT_S:
                time.sleep(0.1)
        finally:
            is_over.set()
        for one in work:
            one.result()
    return recorder.events


def use_until_told(address: str, name: str, begin_s: float, told: Path) -> list[Event]:
    """Three clients in a process of its own, until a file appears and enough has been answered."""
    return use_in_threads(
        address, name, honest, begin_s, lambda events: told.exists() and outcomes(events).total() > 250, 3
    )


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


class Breaking:
    """Meets the server with one fault after the other, until left.

    Args:
        server: to be broken.
        proxy: before it.
        kinds: which of `FAULTS`, in turn.
        pause_s: between two, at most.
    """

    def __init__(self, server: Server, proxy: Proxy, kinds: Sequence[str], pause_s: float = 0.6) -> None:
        self.met: Counter[str] = Counter()
        """How often each."""
        self._server, self._proxy, self._kinds, self._pause_s = server, proxy, kinds, pause_s
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._work = self._pool.submit(self._go_on)
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._pool.shutdown()
        self._work.result()

    def has_met_all(self, times: int) -> bool:
        """Whether each kind has come so many times."""
        return all(self.met[kind] >= times for kind in self._kinds) or self._work.done()

    def _go_on(self) -> None:
        dice = random.Random("faults")
        while self._kinds and not self._is_over.wait(dice.uniform(0.2, 1.0) * self._pause_s):
            kind = self._kinds[self.met.total() % len(self._kinds)]
            FAULTS[kind](self._server, self._proxy)
            self.met[kind] += 1


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


def race(server: Server, proxy: Proxy, enough: Enough, faults: Sequence[str], make: StoreMaker = honest) -> list[Event]:
    """Clients in threads, until enough has happened and every fault has come twice; the history."""
    begin_s = time.monotonic()
    with Breaking(server, proxy, faults) as breaking:
        events = use_in_threads(
            proxy.address, "client", make, begin_s, lambda events: breaking.has_met_all(2) and enough(events)
        )
    print(f"{time.monotonic() - begin_s:.1f} s: {dict(outcomes(events))}, {dict(breaking.met)}")
    assert set(breaking.met) == set(faults)
    return events


def lasts(seconds: float) -> Enough:
    """A history of so many seconds."""
    return lambda events: bool(events) and events[-1].time - events[0].time > seconds


def shows(broken: Invariant) -> Enough:
    """A history that breaks a promise, whatever the final state is."""
    return lambda events: broken in {violation.invariant for violation in check(events, near=near, group=family)}


def has_split(server: Server) -> bool:
    """Whether the index has more buckets than at first; not while the server is away."""
    with suppress(redis.RedisError):
        return buckets(server) > FIRST_BUCKETS
    return False


def of_every_outcome(events: Sequence[Event]) -> bool:
    seen = outcomes(events)
    return seen.total() > 2000 and min(seen[name] for name in ("unknown", *(one.value for one in Outcome))) > 20


def test_no_promise_is_broken_with_faults_all_the_time(tmp_path: Path) -> None:
    with running(tmp_path, find_binary()) as (server, proxy):
        events = race(server, proxy, lambda events: of_every_outcome(events) and has_split(server), list(FAULTS))
        violations = judged(events, server)
        assert buckets(server) > FIRST_BUCKETS
    assert violations == []
    assert of_every_outcome(events), outcomes(events)


def test_no_promise_is_broken_between_two_processes(tmp_path: Path) -> None:
    told = tmp_path / "told"
    faults = ["cable cut", "scripts flushed", "killed"]
    with running(tmp_path / "server", find_binary()) as (server, proxy):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            # The processes are ready before the clock starts.
            list(pool.map(family, ["ready", "ready"], chunksize=1))
            begin_s = time.monotonic()
            with Breaking(server, proxy, faults) as breaking:
                work = [
                    pool.submit(use_until_told, proxy.address, f"process {process} client ", begin_s, told)
                    for process in range(2)
                ]
                while not breaking.has_met_all(1) and time.monotonic() < begin_s + LIMIT_S:
                    time.sleep(0.1)
                told.touch()
                events = merged([one.result() for one in work])
        violations = judged(events, server)
    assert violations == []
    assert set(breaking.met) == set(faults)
    assert outcomes(events).total() > 500


@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (looks_first, Invariant.ONE_KEPT),
        (forgets_answers, Invariant.ID_REUSED),
        (deletes_later, Invariant.DELETED_IS_GONE),
    ],
)
def test_a_broken_index_is_caught(tmp_path: Path, make: StoreMaker, broken: Invariant) -> None:
    with running(tmp_path, find_binary()) as (server, proxy):
        violations = judged(race(server, proxy, shows(broken), [], make), server)
    assert broken in {violation.invariant for violation in violations}


def test_a_server_that_forgets_is_caught(tmp_path: Path) -> None:
    def kept(events: Sequence[Event]) -> bool:
        return outcomes(events)[Outcome.KEPT.value] > 20

    with running(tmp_path, find_binary(), appendonly=False) as (server, proxy):
        # What is kept before the server dies is not there after.
        events = race(server, proxy, kept, [])
        killed(server, proxy)
        fill(proxy.address)
        violations = judged(events, server)
    assert Invariant.NOTHING_LOST in {violation.invariant for violation in violations}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("binary", each_binary())
def test_no_promise_is_broken_in_minutes(tmp_path: Path, binary: Path) -> None:
    for turn in range(8):
        with running(tmp_path / str(turn), binary) as (server, proxy):
            violations = judged(race(server, proxy, lasts(15.0), list(FAULTS)), server)
        assert violations == [], turn
