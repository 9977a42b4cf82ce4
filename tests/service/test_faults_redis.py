"""Redis killed, restarted, paused, full, out of disk, cut off: all is answered once, nothing called unique in vain."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis as redis_client

from dqs import Client, Document, Label, Missing, Verdict
from dqs.client import Timeouts
from dqs.errors import IndexUnavailable
from tests.service.serving import Redis, ServerProcess

MAX_GROWTH_BYTES = 100 << 20
"""Resident memory of a server that has met a fault, over that of one that has just started."""

WORDS = (
    "river", "mill", "garden", "bean", "onion", "rose", "train", "letter", "town", "morning", "school", "shop", "door",
    "winter", "coal", "bread", "stone", "bridge", "lantern", "harbour", "sail", "rope", "barrel", "copper", "anchor",
)  # fmt: skip


def text(number: int) -> bytes:
    """A text that is near no other one."""
    return " ".join(random.Random(number).choices(WORDS, k=60)).encode()


def near(number: int) -> bytes:
    """A text that is nearly `text(number)`."""
    return text(number) + b" epilogue"


def documents(start: int, stop: int, prefix: str = "d") -> list[Document]:
    return [Document(f"{prefix}{number}", text(number)) for number in range(start, stop)]


def slowly(wanted: Sequence[Document], pause_s: float) -> Iterator[Document]:
    for document in wanted:
        time.sleep(pause_s)
        yield document


def eventually(happened: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Waits for what must come true, and says how long that was."""
    begin_s = time.monotonic()
    while time.monotonic() < begin_s + within_s:
        if happened():
            print(f"recovered in {time.monotonic() - begin_s:.1f} s")
            return True
        time.sleep(0.1)
    return False


def nothing_is_called_unique_in_vain(verdicts: Sequence[Verdict]) -> None:
    """Each verdict either knows of duplication or says that it does not."""
    for verdict in verdicts:
        assert verdict.error is None
        known = verdict.signals["duplicate_similarity"] is not None
        assert known == ("duplicate_similarity" not in verdict.missing)
        assert known or verdict.missing["duplicate_similarity"] == Missing.UNAVAILABLE


@pytest.fixture
def service(redis: Redis, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(port=0, data_dir=tmp_path, redis_url=redis.url, redis_timeout_s=0.5) as process:
        memory = psutil.Process(process.pid).memory_info
        before_bytes = memory().rss
        yield process
        assert memory().rss < before_bytes + MAX_GROWTH_BYTES


def finds_duplicates(client: Client, tag: str) -> bool:
    """Whether the index answers again."""
    (verdict,) = client.score_batch([(f"probe-{tag}-{time.monotonic_ns()}", "A probe.")], degrade=True)
    return "duplicate_similarity" not in verdict.missing


def test_redis_killed_in_the_middle_of_a_stream_is_gone_without(redis: Redis, service: ServerProcess) -> None:
    wanted = documents(0, 400)
    with Client(service.address) as client:
        list(client.score(documents(1000, 1050), policy="score-only"))
        killer = threading.Timer(0.5, redis.kill)
        killer.start()
        verdicts = list(client.score(slowly(wanted, 0.005), policy="score-only", degrade=True))
        killer.join()
        redis.start()
        assert eventually(lambda: finds_duplicates(client, "killed"))
        copies = client.score_batch(documents(1000, 1050, "copy"), policy="score-only")

    assert [verdict.id for verdict in verdicts] == [document.id for document in wanted]
    nothing_is_called_unique_in_vain(verdicts)
    assert any("duplicate_similarity" in verdict.missing for verdict in verdicts)
    assert [copy.duplicate_of for copy in copies] == [f"d{number}" for number in range(1000, 1050)]


def test_a_restart_loses_nothing_that_was_acknowledged(redis: Redis, service: ServerProcess) -> None:
    wanted = documents(0, 600)

    def restart() -> None:
        redis.kill()
        time.sleep(0.5)
        redis.start()

    with Client(service.address) as client:
        restarter = threading.Timer(0.5, restart)
        restarter.start()
        verdicts = list(client.score(slowly(wanted, 0.004), policy="score-only"))
        restarter.join()
        copies = list(client.score(documents(0, 600, "copy"), policy="score-only"))

    assert [verdict.id for verdict in verdicts] == [document.id for document in wanted]
    assert [verdict.duplicate_of for verdict in verdicts] == [None] * 600
    assert [copy.duplicate_of for copy in copies] == [document.id for document in wanted]


def test_a_paused_redis_costs_its_budget_once_and_is_used_again_after(redis: Redis, service: ServerProcess) -> None:
    wanted = documents(0, 300)
    with Client(service.address) as client:
        list(client.score(documents(1000, 1010), policy="score-only"))
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            begin_s = time.monotonic()
            verdicts = [
                verdict
                for document in wanted
                for verdict in client.score_batch([document], policy="score-only", degrade=True)
            ]
            took_s = time.monotonic() - begin_s
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        assert eventually(lambda: finds_duplicates(client, "paused"))
        copies = client.score_batch(documents(1000, 1010, "copy"), policy="score-only")

    assert [verdict.id for verdict in verdicts] == [document.id for document in wanted]
    nothing_is_called_unique_in_vain(verdicts)
    assert all("duplicate_similarity" in verdict.missing for verdict in verdicts)
    # Each try waits three times half a second; without the circuit 300 of them would.
    assert took_s < 100
    assert [copy.duplicate_of for copy in copies] == [f"d{number}" for number in range(1000, 1010)]


def test_a_full_redis_is_said_and_nothing_is_half_inserted(redis: Redis, service: ServerProcess) -> None:
    with (
        redis_client.Redis.from_url(redis.url) as connection,
        Client(service.address, timeouts=Timeouts(retry_s=0.5)) as client,
    ):
        client.score_batch(documents(1000, 1010), policy="score-only")
        connection.config_set("maxmemory", 100_000)
        before = {key: connection.dump(key) for key in connection.scan_iter(count=1000)}
        with pytest.raises(IndexUnavailable, match="full"):
            client.score_batch(documents(0, 50), policy="score-only")
        degraded = client.score_batch(documents(0, 50), policy="score-only", degrade=True)
        after = {key: connection.dump(key) for key in connection.scan_iter(count=1000)}
        connection.config_set("maxmemory", 0)
        assert eventually(lambda: finds_duplicates(client, "full"))
        later = client.score_batch(documents(0, 50, "later"), policy="score-only")

    assert [verdict.id for verdict in degraded] == [f"d{number}" for number in range(50)]
    nothing_is_called_unique_in_vain(degraded)
    assert all("duplicate_similarity" in verdict.missing for verdict in degraded)
    assert before == after
    assert [verdict.duplicate_of for verdict in later] == [None] * 50


class ShortOfDisk(Redis):
    """A redis-server whose files may not grow: the substitute for a full disk, which takes rights to make."""

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        super().__init__(folder)
        self._command[self._command.index("always")] = "everysec"
        # Python ignores SIGXFSZ, and so does what it starts: a write beyond the limit fails as on a full disk.
        self._limit = max_file_bytes

    def start(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, before[1]))
        try:
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, restore_signals=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert eventually(self._socket.exists)

    def widen(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_under_redis_is_said_and_scoring_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    server = ShortOfDisk(folder, 300_000)
    server.start()
    try:
        with (
            ServerProcess(port=0, data_dir=tmp_path, redis_url=server.url) as process,
            Client(process.address) as client,
        ):
            verdicts: list[Verdict] = []
            number = 0
            while not any("duplicate_similarity" in verdict.missing for verdict in verdicts):
                verdicts += client.score_batch(documents(number, number + 100), policy="score-only", degrade=True)
                number += 100
                assert number < 20_000
            assert [verdict.id for verdict in verdicts] == [f"d{i}" for i in range(number)]
            nothing_is_called_unique_in_vain(verdicts)
            server.widen()
            assert eventually(lambda: finds_duplicates(client, "disk"))
            copies = client.score_batch(documents(0, 50, "copy"), policy="score-only")
        assert [copy.duplicate_of for copy in copies] == [f"d{i}" for i in range(50)]
    finally:
        server.kill()


class Forgetful:
    """A proxy before Redis that can lose an answer: the request goes through, the connection breaks."""

    def __init__(self, target: str, path: Path) -> None:
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self.url = f"unix://{quote(str(path))}"
        self.lose = 0
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if is_answer and self.lose:
                    self.lose -= 1
                    self.lost += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        sink.close()

    def close(self) -> None:
        self._listener.close()


def test_an_answer_lost_after_the_insert_changes_no_verdict(redis: Redis, tmp_path: Path) -> None:
    proxy = Forgetful(redis.url.removeprefix("unix://"), tmp_path / "p.sock")
    try:
        with (
            ServerProcess(port=0, data_dir=tmp_path, redis_url=proxy.url) as process,
            Client(process.address) as client,
        ):
            client.score_batch(documents(1000, 1001), policy="score-only")
            verdicts = []
            for start in range(0, 200, 20):
                proxy.lose = 1
                verdicts += client.score_batch(documents(start, start + 20), policy="score-only")
            copies = client.score_batch(documents(0, 200, "copy"), policy="score-only")
    finally:
        proxy.close()

    assert proxy.lost >= 5
    assert [verdict.duplicate_of for verdict in verdicts] == [None] * 200
    assert {verdict.label for verdict in verdicts} == {Label.KEEP}
    assert [copy.duplicate_of for copy in copies] == [f"d{number}" for number in range(200)]


def test_of_racing_near_duplicates_exactly_one_is_kept(service: ServerProcess) -> None:
    pairs = 1000

    def send(who: str, make: Callable[[int], bytes], order: list[int]) -> list[Verdict]:
        with Client(service.address) as client:
            made = (Document(f"{who}{number}", make(number)) for number in order)
            return list(client.score(made, policy="score-only", corpus="race"))

    orders = [list(range(pairs)), list(range(pairs))]
    random.Random(7).shuffle(orders[1])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, "a", text, orders[0])
        second = pool.submit(send, "b", near, orders[1])
        answers = {verdict.id: verdict for verdict in (*first.result(), *second.result())}

    assert len(answers) == 2 * pairs
    for number in range(pairs):
        one, two = answers[f"a{number}"], answers[f"b{number}"]
        assert {one.duplicate_of, two.duplicate_of} in ({None, one.id}, {None, two.id})
