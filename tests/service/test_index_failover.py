"""The index on a primary with a replica: the primary dies or is demoted, the name points to another server."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from dqs.errors import IndexUnavailable
from dqs.index.redis_store import Duplicates, DuplicateStore, connect
from dqs.index.signature import LINES, SignatureParameters, Signatures
from tests.service.proxy import Proxy
from tests.service.servers import each_binary

PARAMETERS = SignatureParameters()


class Node:
    """A redis-server on a port of its own."""

    def __init__(self, folder: Path, binary: Path) -> None:
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._command = [
            str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
            "--appendfsync", "no", "--save", "", "--repl-diskless-sync-delay", "0", "--daemonize", "no",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.admin = redis.Redis(port=self.port, socket_timeout=10.0)

    def start(self, *more: str) -> None:
        self._process = subprocess.Popen([*self._command, *more], stdout=subprocess.DEVNULL)

    def signal(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)
        if what is signal.SIGKILL:
            self._process.wait(30)

    def answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.admin.ping())
        return False

    def follow(self, primary: Node) -> None:
        self.admin.replicaof("127.0.0.1", str(primary.port))
        assert eventually(lambda: self.admin.info("replication").get("master_link_status") == "up")

    def promote(self) -> None:
        self.admin.replicaof("NO", "ONE")

    def has_reached(self, replica: Node) -> None:
        """Waits until a replica has all; WAIT knows only what its own connection has written."""

        def reached() -> bool:
            written = self.admin.info("replication")["master_repl_offset"]
            return bool(replica.admin.info("replication").get("slave_repl_offset", -1) >= written)

        assert eventually(reached)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self.admin.close()


class Name(Proxy):
    """A name that stands for one server or another, as that of a Kubernetes service does."""

    def point_to(self, node: Node) -> None:
        """From now on new connections go there; those that there are stay as they are."""
        self._target = ("127.0.0.1", node.port)


def eventually(condition: Callable[[], object], within_s: float = 30.0) -> bool:
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s:
        if condition():
            return True
        time.sleep(0.02)
    return False


def signatures_of(n: int, seed: int) -> Signatures:
    """Signatures of documents that have nothing in common."""
    dice = np.random.default_rng(seed)
    return Signatures(
        PARAMETERS,
        np.full(n, 100, dtype=np.int32),
        dice.integers(1, 2**63, size=(n, 2)).astype(np.uint64),
        dice.integers(0, 2**32, size=(n, PARAMETERS.bands), dtype=np.uint32),
        dice.integers(0, 256, size=(n, PARAMETERS.sketch_bytes), dtype=np.uint8),
        dice.integers(1, 2**32, size=(n, LINES), dtype=np.uint32),
    )


def submit(store: DuplicateStore, prefix: str, seed: int, n: int = 100, *, corpus: str = "c") -> Duplicates:
    insert: NDArray[np.bool_] = np.ones(n, dtype=np.bool_)
    return store.check_and_insert(corpus, names(prefix, n), signatures_of(n, seed), insert)


def names(prefix: str, n: int = 100) -> list[str]:
    return [f"{prefix}{number}" for number in range(n)]


def submitted_again(store: DuplicateStore, prefix: str, seed: int) -> Duplicates:
    """What the index says as soon as it says anything."""
    found: list[Duplicates] = []

    def answered() -> bool:
        with suppress(IndexUnavailable):
            found.append(submit(store, prefix, seed))
        return bool(found)

    assert eventually(answered)
    return found[0]


def contents(node: Node) -> dict[bytes, Any]:
    return {key: node.admin.dump(key) for key in node.admin.scan_iter(count=1000)}


@pytest.fixture(params=each_binary())
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sequence[Node]]:
    """A primary and its replica."""
    made = [Node(tmp_path / name, request.param) for name in ("first", "second")]
    try:
        for node in made:
            node.start()
        for node in made:
            assert eventually(node.answers)
        made[1].follow(made[0])
        yield made
    finally:
        for node in made:
            node.close()


@pytest.fixture
def name(nodes: Sequence[Node]) -> Iterator[Name]:
    with Name(nodes[0].address) as proxy:
        yield proxy


@pytest.fixture
def store(name: Name) -> Iterator[DuplicateStore]:
    with closing(DuplicateStore(connect(f"redis://{name.address}/0", timeout_s=1.0), PARAMETERS)) as opened:
        yield opened


def test_after_a_failover_what_was_replicated_is_known(
    nodes: Sequence[Node], name: Name, store: DuplicateStore
) -> None:
    first, second = nodes
    assert submit(store, "a", seed=1).duplicate_of == [None] * 100
    assert submit(store, "copy", seed=1).duplicate_of == names("a")
    first.has_reached(second)
    first.signal(signal.SIGKILL)
    with pytest.raises(IndexUnavailable, match=r"cannot be reached|did not answer"):
        submit(store, "b", seed=2)
    second.promote()
    name.point_to(second)
    # The same store, with the connections that it has: duplicates, retries and kept documents are as before.
    assert submitted_again(store, "x", seed=1).duplicate_of == names("a")
    assert submit(store, "copy", seed=1).duplicate_of == names("a")
    assert submit(store, "a", seed=1).duplicate_of == [None] * 100
    assert submit(store, "a", seed=3).reused_id.all()
    # What was asked for in between is kept once.
    assert submit(store, "b", seed=2).duplicate_of == [None] * 100
    assert submit(store, "y", seed=2).duplicate_of == names("b")
    assert store.documents("c") == 200


def test_what_was_not_replicated_is_decided_anew(nodes: Sequence[Node], name: Name, store: DuplicateStore) -> None:
    first, second = nodes
    submit(store, "a", seed=1)
    first.has_reached(second)
    second.signal(signal.SIGSTOP)
    assert submit(store, "lost", seed=2).duplicate_of == [None] * 100
    written = first.admin.info("replication")
    assert written["slave0"]["offset"] < written["master_repl_offset"]
    # Its connection to the replica would else bring the rest along.
    first.admin.config_set("client-output-buffer-limit", "replica 1 1 1")
    first.admin.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]
    first.signal(signal.SIGKILL)
    second.signal(signal.SIGCONT)
    assert eventually(second.answers)
    second.promote()
    name.point_to(second)
    again = submitted_again(store, "again", seed=2)
    # Wholly there or not at all, whatever the replica had got: a document is named by all or by none.
    assert all(named in (None, lost) for named, lost in zip(again.duplicate_of, names("lost"), strict=True))
    assert submit(store, "x", seed=1).duplicate_of == names("a")
    later = submit(store, "later", seed=2).duplicate_of
    kept = [f"again{number}" if named is None else named for number, named in enumerate(again.duplicate_of)]
    assert later == kept
    assert store.documents("c") == 200


def test_a_demoted_primary_says_so_and_the_name_is_looked_up_again(
    nodes: Sequence[Node], name: Name, store: DuplicateStore
) -> None:
    first, second = nodes
    submit(store, "a", seed=1)
    first.has_reached(second)
    before = contents(second)
    second.promote()
    first.follow(second)
    for _ in range(2):
        with pytest.raises(IndexUnavailable, match="is a read-only replica; give the URL of the primary"):
            submit(store, "b", seed=2)
        with pytest.raises(IndexUnavailable, match="read-only replica"):
            store.delete("c", ["a1"])
    assert contents(second) == before
    # No connection breaks: the old primary lives on, and only new ones lead to the new one.
    name.point_to(second)
    with suppress(IndexUnavailable):
        submit(store, "b", seed=2)
    assert submit(store, "b", seed=2).duplicate_of == [None] * 100
    assert submit(store, "x", seed=1).duplicate_of == names("a")
    assert store.delete("c", ["a1"]) == 1
    assert store.documents("c") == 199


def test_back_to_the_first_one_after_it_has_caught_up(nodes: Sequence[Node], name: Name, store: DuplicateStore) -> None:
    """Corpora made, grown and dropped on the other server are noticed."""
    first, second = nodes
    submit(store, "a", seed=1)
    submit(store, "a", seed=1, corpus="gone")
    first.has_reached(second)
    first.signal(signal.SIGKILL)
    second.promote()
    name.point_to(second)
    assert submitted_again(store, "x", seed=1).duplicate_of == names("a")
    with closing(DuplicateStore(connect(f"redis://{second.address}/0"), PARAMETERS)) as other:
        submit(other, "many", seed=4, n=4500)
        other.drop_corpus("gone")
        submit(other, "new", seed=1, corpus="gone")
    first.start()
    assert eventually(first.answers)
    first.follow(second)
    second.has_reached(first)
    second.signal(signal.SIGKILL)
    first.promote()
    name.point_to(first)
    assert submitted_again(store, "y", seed=1).duplicate_of == names("a")
    assert submit(store, "copy", seed=4, n=4500).duplicate_of == names("many", 4500)
    assert submit(store, "copy", seed=1, corpus="gone").duplicate_of == names("new")


def test_too_few_replicas_are_said_and_nothing_is_half_applied(nodes: Sequence[Node], store: DuplicateStore) -> None:
    first, second = nodes
    submit(store, "a", seed=1)
    first.admin.config_set("min-replicas-to-write", 1)
    first.admin.config_set("min-replicas-max-lag", 1)
    second.signal(signal.SIGKILL)
    assert eventually(lambda: first.admin.info("replication")["connected_slaves"] == 0)
    before = contents(first)
    with pytest.raises(IndexUnavailable, match="too few replicas to write"):
        submit(store, "b", seed=2)
    with pytest.raises(IndexUnavailable, match="too few replicas to write"):
        store.delete("c", ["a1"])
    assert contents(first) == before
    first.admin.config_set("min-replicas-to-write", 0)
    assert submit(store, "b", seed=2).duplicate_of == [None] * 100


def test_a_replica_without_its_primary_says_so(nodes: Sequence[Node], name: Name, store: DuplicateStore) -> None:
    first, second = nodes
    submit(store, "a", seed=1)
    second.admin.config_set("replica-serve-stale-data", "no")
    first.signal(signal.SIGKILL)
    assert eventually(lambda: second.admin.info("replication")["master_link_status"] == "down")
    name.point_to(second)
    time.sleep(0.2)
    sentences = set()
    for _ in range(20):
        with pytest.raises(IndexUnavailable) as caught:
            submit(store, "b", seed=2)
        sentences.add(caught.value.message)
        time.sleep(0.05)
    assert any("is a replica that has lost its primary; try again" in sentence for sentence in sentences), sentences
    second.promote()
    assert submitted_again(store, "b", seed=2).duplicate_of == [None] * 100


def test_a_server_that_loads_its_file_says_so(nodes: Sequence[Node], name: Name) -> None:
    first, _ = nodes
    store = DuplicateStore(connect(f"redis://{name.address}/0", timeout_s=1.0, retries=0), PARAMETERS)
    submit(store, "a", seed=1)
    with first.admin.pipeline(transaction=False) as pipeline:
        for number in range(6000):
            pipeline.set("filling", number)
        pipeline.execute()
    first.signal(signal.SIGKILL)
    # So many microseconds for each command of its file; it looks up after every 1,024.
    first.start("--key-load-delay", "400")
    sentences = []

    def answered() -> bool:
        try:
            return submit(store, "x", seed=1).duplicate_of == names("a")
        except IndexUnavailable as error:
            sentences.append(error.message)
            return False

    with closing(store):
        assert eventually(answered, within_s=60.0)
    assert any("still loading its data; try again in a moment" in sentence for sentence in sentences), sentences
