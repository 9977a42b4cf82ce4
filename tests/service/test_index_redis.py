"""The duplicate index on real Redis servers: its rules, order, races, retries, windows, restarts, refusals."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from dqs.errors import ConfigError, CorpusMismatch, IndexUnavailable, RequestError
from dqs.index.bands import MAX_SAME, MAX_VERIFIED
from dqs.index.corpora import Corpora
from dqs.index.embedded import EmbeddedRedis, binary_version, find_binary, packaged_binary
from dqs.index.layout import FIRST_BUCKETS, FORMAT_VERSION, corpus_base, registry_key
from dqs.index.lines import FIRST_SLOTS
from dqs.index.redis_store import (
    ENTRIES_PER_BUCKET,
    CorpusOptions,
    Duplicates,
    DuplicateStore,
    connect,
    persistence_warnings,
)
from dqs.index.signature import LINES, SignatureParameters, Signatures, sign, similarity
from dqs.text import TextBatch
from tests.service.servers import binaries, each_binary

ENGLISH = (
    "The harbour froze in the second week of January, and the fishermen walked out over the ice to look at their "
    "boats. Nobody had seen such a winter since the old lighthouse keeper was a boy, and he told everyone so. "
    "On the third day the children built a road of ash and straw from the quay to the nearest island."
)
CHINESE = (
    "一月的第二个星期，港口结了冰，渔民们踏着冰面走出去看自己的船。自从老灯塔看守人小时候起，谁也没有见过这样的冬天，"
    "他逢人便这样说。到了第三天，孩子们用灰烬和稻草铺了一条路，从码头一直通到最近的小岛上。"
)
OTHER_ENGLISH = (
    "Bread rises because yeast turns sugar into gas, and the dough keeps that gas in a net of gluten. Knead it for "
    "ten minutes, let it rest in a warm place until it has doubled, and bake it in the hottest oven you have."
)
OTHER_CHINESE = (
    "面包之所以膨胀，是因为酵母把糖变成气体，而面团用面筋织成的网留住了它。揉十分钟，放在温暖处等它变成两倍大。"
)

PARAMETERS = SignatureParameters()


@pytest.fixture(scope="module", params=each_binary())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), binary=request.param) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with closing(connect(server.url)) as connected:
        yield connected


@pytest.fixture
def store(server: EmbeddedRedis) -> Iterator[DuplicateStore]:
    with closing(DuplicateStore(connect(server.url), PARAMETERS)) as opened:
        yield opened


@pytest.fixture
def corpus(request: pytest.FixtureRequest) -> str:
    return f"corpus of {request.node.name}"


def signed(*texts: str, parameters: SignatureParameters = PARAMETERS) -> Signatures:
    return sign(TextBatch.from_bytes([text.encode() for text in texts]), parameters)


def ask(
    store: DuplicateStore,
    corpus: str,
    ids: Sequence[str],
    texts: Sequence[str],
    insert: Sequence[bool] | None = None,
    **options: Any,
) -> Duplicates:
    wanted = np.ones(len(ids), dtype=np.bool_) if insert is None else np.array(insert, dtype=np.bool_)
    return store.check_and_insert(corpus, ids, signed(*texts), wanted, **options)


def random_signatures(n: int, seed: int, parameters: SignatureParameters = PARAMETERS) -> Signatures:
    """Signatures of documents that have nothing in common; no bin of their sketches is empty."""
    random = np.random.default_rng(seed)
    return Signatures(
        parameters,
        np.full(n, 100, dtype=np.int32),
        random.integers(1, 2**63, size=(n, 2)).astype(np.uint64),
        random.integers(0, 2**32, size=(n, parameters.bands), dtype=np.uint32),
        packed_codes(random.integers(1, 4, size=(n, parameters.bins), dtype=np.uint8)),
        random.integers(1, 2**32, size=(n, LINES), dtype=np.uint32),
    )


def packed_codes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A sketch of the codes of its bins."""
    quads = codes.reshape(*codes.shape[:-1], -1, 4).astype(np.uint8)
    sketch: NDArray[np.uint8] = (quads << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)
    return sketch


def other_codes(sketch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A sketch without empty bins with every code changed."""
    codes = np.stack([(sketch >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return packed_codes((codes % 3 + 1).reshape(*sketch.shape[:-1], -1))


def ones(n: int) -> NDArray[np.bool_]:
    return np.ones(n, dtype=np.bool_)


def contents(client: redis.Redis, base: str = "") -> dict[bytes, Any]:
    """What every key that begins so holds."""
    read: dict[Any, Callable[[Any], Any]] = {
        b"hash": client.hgetall, b"set": client.smembers, b"string": client.get,
    }  # fmt: skip
    return {key: read[client.type(key)](key) for key in client.scan_iter(count=1000) if key.startswith(base.encode())}


def tick(client: redis.Redis) -> None:
    """Waits until a second has ended by the server's clock."""
    before = client.time()[0]
    while client.time()[0] == before:
        time.sleep(0.01)


def data_key(client: redis.Redis, corpus: str, name: str) -> str:
    """The name of one of a corpus's keys."""
    base = corpus_base("default", corpus)
    generation: Any = client.hget(base + "header", "generation")
    return f"{base}{generation.decode()}:{name}"


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(("text", "other"), [(ENGLISH, OTHER_ENGLISH), (CHINESE, OTHER_CHINESE)], ids=["en", "zh"])
def test_exact_near_and_other_documents(store: DuplicateStore, corpus: str, text: str, other: str) -> None:
    near = text[:-1] + " Yes!" if text is ENGLISH else text[:-1] + "了。"
    found = ask(store, corpus, ["a", "b", "c", "d"], [text, f"  {text.upper()}\n", near, other])
    assert found.duplicate_of == [None, "a", "a", None]
    assert found.exact.tolist() == [False, True, False, False]
    assert not found.reused_id.any()
    assert found.similarity[[0, 1, 3]].tolist() == [0.0, 1.0, 0.0]
    assert found.similarity[2] == pytest.approx(0.97, abs=0.04)
    assert store.documents(corpus) == 2


def test_documents_are_decided_in_order_and_name_a_kept_one(store: DuplicateStore, corpus: str) -> None:
    # Each text shares most with its neighbours; the chain must not name a document that was not kept.
    words = ENGLISH.split()
    chain = [" ".join(words[start : start + 45]) for start in range(12)]
    ids = [f"chain-{position}" for position in range(12)]
    found = ask(store, corpus, ids, chain)
    kept = {document for document, named in zip(ids, found.duplicate_of, strict=True) if named is None}
    assert found.duplicate_of[:2] == [None, "chain-0"]
    assert 1 < len(kept) < 12
    assert {named for named in found.duplicate_of if named is not None} <= kept


def test_the_most_similar_document_is_named_and_the_earliest_of_equals(store: DuplicateStore, corpus: str) -> None:
    # All in the same bands; sketches that differ from the last one's in bytes of their own.
    signatures = random_signatures(5, seed=5)
    signatures.bands[:] = signatures.bands[0]
    signatures.sketch[:] = signatures.sketch[0]
    for document, (start, width) in enumerate([(0, 40), (40, 20), (60, 20), (80, 21)]):
        part = signatures.sketch[document, start : start + width]
        part[:] = other_codes(part)
    ids = ["far", "first", "second", "third"]
    assert store.check_and_insert(corpus, ids, signatures[:4], ones(4)).duplicate_of == [None] * 4
    found = store.check_and_insert(corpus, ["last"], signatures[4:], ones(1))
    assert found.duplicate_of == ["first"]
    assert found.bands_met.tolist() == [PARAMETERS.bands]
    assert found.similarity[0] == pytest.approx(1 - 1.5 * 20 / 128)


def test_short_texts_are_duplicates_of_the_same_text_only(store: DuplicateStore, corpus: str) -> None:
    texts = ["你好", "您好", "hello", "Hello ", "!", "?", "你好"]
    found = ask(store, corpus, [str(position) for position in range(7)], texts)
    assert found.duplicate_of == [None, None, None, "2", None, None, "0"]
    assert found.exact.tolist() == [False, False, False, True, False, False, True]


def test_empty_texts_are_duplicates_of_nothing(store: DuplicateStore, corpus: str) -> None:
    found = ask(store, corpus, ["a", "b", "c"], ["", " \n", "\u3000"])
    assert found.duplicate_of == [None] * 3
    assert found.similarity.tolist() == [0.0] * 3


def test_no_documents(store: DuplicateStore, corpus: str) -> None:
    found = ask(store, corpus, [], [])
    assert found.duplicate_of == []
    assert found.similarity.shape == (0,)


def test_looked_up_only_documents_are_not_remembered(store: DuplicateStore, corpus: str) -> None:
    assert ask(store, corpus, ["a"], [ENGLISH], [False]).duplicate_of == [None]
    assert store.documents(corpus) == 0
    assert ask(store, corpus, ["b", "c"], [ENGLISH, ENGLISH], [True, False]).duplicate_of == [None, "b"]
    assert store.documents(corpus) == 1


def test_a_repeated_call_gives_the_same_answers(store: DuplicateStore, corpus: str) -> None:
    ids, texts = ["a", "b", "c", "d"], [ENGLISH, CHINESE, ENGLISH, CHINESE + "完"]
    answers = [ask(store, corpus, ids, texts) for _ in range(3)]
    for found in answers:
        assert found.duplicate_of == [None, None, "a", "b"]
        assert np.array_equal(found.similarity, answers[0].similarity)
    assert store.documents(corpus) == 2


def test_a_reused_id_is_an_error_of_that_document_alone(store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    found = ask(store, corpus, ["a", "b", "a"], [CHINESE, CHINESE, ENGLISH])
    assert found.reused_id.tolist() == [True, False, False]
    assert found.duplicate_of == [None, None, None]
    assert np.isnan(found.similarity).tolist() == [True, False, False]
    # The refused text left no trace: "b" was new.
    assert store.documents(corpus) == 2


def test_any_id_is_answered_as_it_was_given(store: DuplicateStore, corpus: str) -> None:
    ids = ["文件.jsonl:7", "a b\x00c\r\n", "{x}:*?[", "\ud800", "é" * 512]
    signatures = random_signatures(len(ids), seed=9)
    assert store.check_and_insert(corpus, ids, signatures, ones(len(ids))).duplicate_of == [None] * len(ids)
    found = store.check_and_insert(corpus, list("12345"), signatures, ones(len(ids)))
    assert found.duplicate_of == ids


@pytest.mark.parametrize(
    ("document", "name"), [("", "c"), ("x" * 1025, "c"), ("x", ""), ("x", "c" * 257), ("x", "\ud800")]
)
def test_impossible_ids_and_names_are_refused(store: DuplicateStore, document: str, name: str) -> None:
    with pytest.raises(RequestError, match="bytes"):
        ask(store, name, [document], [ENGLISH])


def test_corpora_and_tenants_do_not_meet(server: EmbeddedRedis, store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    assert ask(store, corpus + ":2", ["a"], [ENGLISH]).duplicate_of == [None]
    with closing(DuplicateStore(connect(server.url), PARAMETERS, tenant="default:x")) as other:
        assert ask(other, corpus, ["b"], [ENGLISH]).duplicate_of == [None]
        other.drop_corpus(corpus)
    assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == ["a"]


def test_every_document_is_found_again_while_buckets_grow(store: DuplicateStore, corpus: str) -> None:
    n = 6000
    signatures = random_signatures(n, seed=1)
    ids = [f"d{position}" for position in range(n)]
    assert store.check_and_insert(corpus, ids, signatures, ones(n)).duplicate_of == [None] * n
    assert store.documents(corpus) == n > ENTRIES_PER_BUCKET * FIRST_BUCKETS
    lookup = ~ones(n)
    # By text, then by id, then by one band at a time.
    found = store.check_and_insert(corpus, [f"x{document}" for document in ids], signatures, lookup)
    assert found.duplicate_of == ids
    assert found.exact.all()
    others = random_signatures(n, seed=2)
    assert store.check_and_insert(corpus, ids, others, lookup).reused_id.all()
    for band in (0, PARAMETERS.bands - 1):
        others.bands[:, band] = signatures.bands[:, band]
        others.sketch[:] = signatures.sketch
        found = store.check_and_insert(corpus, [f"y{band}{document}" for document in ids], others, lookup)
        assert found.duplicate_of == ids
        assert found.similarity.tolist() == [1.0] * n
        assert not found.exact.any()
        others.bands[:, band] = 0


def test_boilerplate_keeps_buckets_and_work_bounded(client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
    n = 400
    signatures = random_signatures(n, seed=3)
    signatures.bands[:] = signatures.bands[0]
    found = store.check_and_insert(corpus, [f"d{position}" for position in range(n)], signatures, ones(n))
    assert found.duplicate_of == [None] * n
    buckets: Any = client.hgetall(data_key(client, corpus, "buckets"))
    assert max(len(entries) for field, entries in buckets.items() if field[0] >= 2) == 8 * MAX_SAME
    # The documents stay known by text.
    last = store.check_and_insert(corpus, ["copy"], signatures[n - 1 :], ones(1))
    assert last.duplicate_of == [f"d{n - 1}"]
    assert last.exact.tolist() == [True]


@pytest.mark.parametrize("gone", [1, MAX_SAME])
def test_an_exact_copy_is_found_after_boilerplate_has_gone(store: DuplicateStore, corpus: str, gone: int) -> None:
    # The last document came when all of its bands were full; the copy comes when they are not any more, or empty.
    n = MAX_SAME + 1
    signatures = random_signatures(n, seed=3)
    signatures.bands[:] = signatures.bands[0]
    ids = [f"d{position}" for position in range(n)]
    assert store.check_and_insert(corpus, ids, signatures, ones(n)).duplicate_of == [None] * n
    assert store.delete(corpus, ids[:gone]) == gone
    assert store.check_and_insert(corpus, ["copy"], signatures[n - 1 :], ones(1)).duplicate_of == [ids[-1]]


def test_racing_clients_keep_exactly_one(server: EmbeddedRedis, corpus: str) -> None:
    clients, rounds = 6, 40
    variants = [
        [f"{ENGLISH} Round {turn} of the race {turn}. {ENGLISH[:200]} {'ab'[who % 2]}" for turn in range(rounds)]
        for who in range(clients)
    ]
    # Rounds must not be near each other: a word of its own after every word.
    texts = [
        [" ".join(f"{word} r{turn}" for word in variants[who][turn].split()) for turn in range(rounds)]
        for who in range(clients)
    ]
    answers: list[Duplicates | None] = [None] * clients
    barrier = threading.Barrier(clients)

    def race(who: int) -> None:
        with closing(DuplicateStore(connect(server.url), PARAMETERS, group_documents=1 + who)) as own:
            signatures = signed(*texts[who])
            barrier.wait()
            answers[who] = own.check_and_insert(
                corpus, [f"{who}/{turn}" for turn in range(rounds)], signatures, ones(rounds)
            )

    threads = [threading.Thread(target=race, args=(who,)) for who in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn in range(rounds):
        named = [answer.duplicate_of[turn] for answer in answers if answer is not None]
        assert len(named) == clients
        kept = [f"{who}/{turn}" for who in range(clients) if named[who] is None]
        assert len(kept) == 1
        assert {name for name in named if name is not None} == set(kept)


def test_other_parameters_are_refused_by_name(server: EmbeddedRedis, store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    parameters = SignatureParameters(threshold=0.9, seed=7)
    with closing(DuplicateStore(connect(server.url), parameters)) as other:
        with pytest.raises(CorpusMismatch, match=r"threshold 0\.75 \(here 0\.9\), seed 1 \(here 7\)"):
            other.check_and_insert(corpus, ["b"], signed(ENGLISH, parameters=parameters), ones(1))
        # What counts is how the documents were signed.
        assert other.check_and_insert(corpus, ["b"], signed(ENGLISH), ones(1)).duplicate_of == ["a"]
        assert other.parameters(corpus) == PARAMETERS
        assert other.parameters(corpus + " to come") == parameters


def test_a_corpus_remade_elsewhere_is_noticed(server: EmbeddedRedis, store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    with closing(DuplicateStore(connect(server.url), SignatureParameters(seed=2))) as other:
        other.drop_corpus(corpus)
        assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == [None]
        other.drop_corpus(corpus)
        wanted = other.parameters(corpus)
        assert wanted.seed == 2
        other.check_and_insert(corpus, ["c"], signed(ENGLISH, parameters=wanted), ones(1))
    with pytest.raises(CorpusMismatch):
        ask(store, corpus, ["d"], [ENGLISH])


def test_dropping_a_corpus_leaves_nothing_and_touches_nothing_else(
    client: redis.Redis, store: DuplicateStore, corpus: str
) -> None:
    client.set("not ours", "kept")
    ask(store, corpus + " neighbour", ["a"], [ENGLISH])
    before = contents(client)
    signatures = random_signatures(500, 4)
    for turn in range(2):  # the second time everything is a duplicate, and its answer remembered
        store.check_and_insert(corpus, [f"{turn} {position}" for position in range(500)], signatures, ones(500))
    seen = store.see_lines(corpus, signatures.lines)
    assert seen is not None
    store.remember_lines(corpus, seen, ones(500))
    assert len(contents(client)) == len(before) + 5
    store.drop_corpus(corpus)
    store.drop_corpus(corpus)
    assert contents(client) == before
    assert store.documents(corpus) == 0


def test_a_drop_that_was_cut_short_is_finished_by_the_next(
    client: redis.Redis, store: DuplicateStore, corpus: str
) -> None:
    before = set(client.scan_iter())
    ask(store, corpus, ["a"], [ENGLISH])
    header = next(key for key in client.scan_iter(match="*cut_short*:header"))
    base = header.removesuffix(b"header").decode()
    fields: dict[Any, Any] = client.hgetall(header)
    client.sadd(base + "dropped", fields[b"generation"])
    client.delete(header)
    assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == [None]
    store.drop_corpus(corpus)
    assert set(client.scan_iter()) == before


def test_scripts_lost_by_the_server_are_sent_again(client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    client.script_flush()
    assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == ["a"]


def test_all_keys_of_a_corpus_share_a_hash_tag(client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
    before = set(client.scan_iter())
    ask(store, corpus, ["a", "b"], [ENGLISH, ENGLISH])
    keys = {key.decode() for key in set(client.scan_iter()) - before} - {registry_key("default")}
    assert {key.rpartition(":")[2] for key in keys} == {"header", "records", "retries", "buckets"}
    assert len({key[key.index("{") : key.index("}")] for key in keys}) == 1


def test_a_full_server_says_so_and_nothing_is_half_applied(
    client: redis.Redis, store: DuplicateStore, corpus: str
) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    before = contents(client)
    client.config_set("maxmemory", 1)
    try:
        for insert in (True, False):
            with pytest.raises(IndexUnavailable, match=r"full \(maxmemory\)"):
                ask(store, corpus, ["b", "c"], [CHINESE, ENGLISH + " The end."], [insert, insert])
        with pytest.raises(IndexUnavailable, match=r"full \(maxmemory\)"):
            ask(store, corpus, ["a"], [CHINESE], replace=True)
        assert contents(client) == before
    finally:
        client.config_set("maxmemory", 0)
    assert store.documents(corpus) == 1
    assert ask(store, corpus, ["b", "c"], [CHINESE, OTHER_ENGLISH]).duplicate_of == [None, None]


def test_from_a_full_server_a_corpus_can_be_dropped(client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    client.config_set("maxmemory", 1)
    try:
        store.drop_corpus(corpus)
        assert [key for key in client.scan_iter() if corpus.encode() in key] == []
    finally:
        client.config_set("maxmemory", 0)
    assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == [None]


def test_from_a_full_server_documents_can_be_deleted(client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
    texts = [ENGLISH, CHINESE, OTHER_ENGLISH, ENGLISH]
    ids = ["a", "b", "c", "copy"]
    ask(store, corpus, ids, texts)
    client.config_set("maxmemory", 1)
    try:
        assert store.delete(corpus, ["a", "b", "copy"]) == 3
        assert [stored.id for stored in store.find(corpus, ids)] == [b"c"]
        assert Corpora(store).describe(corpus, measure=True).documents == 1
    finally:
        client.config_set("maxmemory", 0)
    assert store.documents(corpus) == 1
    assert ask(store, corpus, ["x", "y", "z"], texts[:3]).duplicate_of == [None, None, "c"]


class TestRetries:
    IDS: list[str] = ["kept", "near", "exact", "dropped"]  # noqa: RUF012
    TEXTS: list[str] = [ENGLISH, ENGLISH[:-1] + " Yes!", ENGLISH.upper(), CHINESE]  # noqa: RUF012
    INSERT: list[bool] = [True, True, True, False]  # noqa: RUF012
    NAMED: list[str | None] = [None, "kept", "kept", None]  # noqa: RUF012

    def ask(self, store: DuplicateStore, corpus: str, texts: Sequence[str] = (), **options: Any) -> Duplicates:
        seen = options.pop("lines_seen", np.array([1, 2, 3, 4], dtype=np.uint8))
        return ask(store, corpus, self.IDS, texts or self.TEXTS, self.INSERT, lines_seen=seen, **options)

    def test_every_answer_is_given_again(self, store: DuplicateStore, corpus: str) -> None:
        first = self.ask(store, corpus)
        assert first.duplicate_of == self.NAMED
        assert first.exact.tolist() == [False, False, True, False]
        # Others arrive in between, one of them more similar than what was named.
        ask(store, corpus, ["other", "nearer"], [OTHER_ENGLISH, ENGLISH[:-1] + " Yes?"])
        again = self.ask(store, corpus, lines_seen=np.full(4, 9, dtype=np.uint8))
        assert again.duplicate_of == first.duplicate_of
        assert again.lines_seen.tolist() == [1, 2, 3, 4]
        for name in ("similarity", "exact", "bands_met", "reused_id"):
            assert np.array_equal(getattr(again, name), getattr(first, name)), name
        assert store.documents(corpus) == 2

    @pytest.mark.parametrize("group", [1, 16])
    def test_every_id_is_taken(self, client: redis.Redis, corpus: str, group: int) -> None:
        store = DuplicateStore(client, PARAMETERS, group_documents=group)
        self.ask(store, corpus)
        before = contents(client, data_key(client, corpus, ""))
        found = self.ask(store, corpus, [OTHER_ENGLISH, OTHER_CHINESE, "short", ""])
        assert found.reused_id.tolist() == [True] * 4
        assert found.duplicate_of == [None] * 4
        assert np.isnan(found.similarity).all()
        assert contents(client, data_key(client, corpus, "")) == before
        assert self.ask(store, corpus).duplicate_of == self.NAMED

    def test_after_their_time_only_kept_documents_are_known(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        store.create(corpus, options=CorpusOptions(retry_s=0.01))
        self.ask(store, corpus)
        tick(client)
        # The answers are still stored: none has been swept since.
        assert client.hlen(data_key(client, corpus, "retries")) == 3
        found = self.ask(
            store, corpus, [OTHER_ENGLISH, OTHER_CHINESE, "short", CHINESE], lines_seen=np.zeros(4, np.uint8)
        )
        assert found.reused_id.tolist() == [True, False, False, False]
        assert found.duplicate_of == [None] * 4
        assert found.lines_seen.tolist() == [0] * 4
        assert store.documents(corpus) == 3

    def test_answers_are_freed_after_their_time(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, options=CorpusOptions(retry_s=0.01))
        # At first there is nothing to be forgotten.
        ask(store, corpus, ["a"], [ENGLISH])
        for turn in range(4):
            ask(store, corpus, [f"copy {turn}/{number}" for number in range(10)], [ENGLISH] * 10)
            tick(client)
        # The work of a call keeps pace with what it adds.
        assert client.hlen(data_key(client, corpus, "retries")) <= 20
        assert store.find(corpus, [f"copy {turn}/{number}" for turn in range(2) for number in range(10)]) == []

    def test_none_is_remembered_if_none_is_wanted(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        store.create(corpus, options=CorpusOptions(retry_s=0))
        assert self.ask(store, corpus).duplicate_of == self.NAMED
        assert client.hlen(data_key(client, corpus, "retries")) == 0
        assert self.ask(store, corpus, [ENGLISH, CHINESE, "short", "other"]).reused_id.tolist() == [False] * 4

    def test_no_more_are_remembered_than_wanted(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, options=CorpusOptions(retry_documents=20))
        ask(store, corpus, ["a"], [ENGLISH])
        for turn in range(10):
            ask(store, corpus, [f"{turn}/{number}" for number in range(16)], [ENGLISH] * 16)
        assert client.hlen(data_key(client, corpus, "retries")) <= 20
        # The latest are.
        assert ask(store, corpus, ["9/15", "0/0"], [CHINESE, CHINESE]).reused_id.tolist() == [True, False]

    def test_what_was_looked_up_may_be_kept_later(self, store: DuplicateStore, corpus: str) -> None:
        assert ask(store, corpus, ["a"], [ENGLISH], [False]).duplicate_of == [None]
        assert ask(store, corpus, ["a"], [ENGLISH], [False]).duplicate_of == [None]
        assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == [None]
        assert ask(store, corpus, ["a"], [ENGLISH], [False]).duplicate_of == [None]
        assert ask(store, corpus, ["a"], [ENGLISH]).duplicate_of == ["b"]

    def test_an_id_that_was_often_decided_anew_still_knows_itself(self, store: DuplicateStore, corpus: str) -> None:
        # Each time it repeats another document, which is deleted then; at last it is kept.
        for turn in range(MAX_SAME + 6):
            ask(store, corpus, [f"named {turn}"], [ENGLISH])
            assert ask(store, corpus, ["x"], [ENGLISH]).duplicate_of == [f"named {turn}"]
            assert store.delete(corpus, [f"named {turn}"]) == 1
        assert ask(store, corpus, ["x"], [ENGLISH]).duplicate_of == [None]
        assert ask(store, corpus, ["x"], [ENGLISH]).duplicate_of == [None]
        assert ask(store, corpus, ["x"], [CHINESE]).reused_id.tolist() == [True]


class TestReplacing:
    def test_the_new_text_takes_the_place_of_the_old_one(self, store: DuplicateStore, corpus: str) -> None:
        ask(store, corpus, ["a", "b"], [ENGLISH, CHINESE])
        found = ask(store, corpus, ["a", "copy"], [OTHER_ENGLISH, ENGLISH], replace=True)
        assert found.duplicate_of == [None, None]
        assert not found.reused_id.any()
        assert store.documents(corpus) == 3
        assert ask(store, corpus, ["x", "y"], [OTHER_ENGLISH, ENGLISH]).duplicate_of == ["a", "copy"]

    def test_twice_in_one_group_the_last_stays(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        found = ask(store, corpus, ["a", "a", "a", "x"], [ENGLISH, CHINESE, OTHER_ENGLISH, ENGLISH], replace=True)
        assert found.duplicate_of == [None] * 4
        assert store.documents(corpus) == 2
        assert client.hlen(data_key(client, corpus, "records")) == 2
        assert ask(store, corpus, ["y", "z"], [CHINESE, OTHER_ENGLISH], [False, False]).duplicate_of == [None, "a"]

    def test_back_and_forth_leaves_one(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        texts = [ENGLISH, CHINESE, "", "short", ENGLISH]
        for turn, text in enumerate(texts * 4):
            assert ask(store, corpus, ["a"], [text], replace=True).duplicate_of == [None], turn
            assert store.documents(corpus) == 1
        buckets: Any = client.hgetall(data_key(client, corpus, "buckets"))
        assert sum(map(len, buckets.values())) == 8 * (1 + PARAMETERS.bands)

    def test_the_same_text_is_a_retry(self, store: DuplicateStore, corpus: str) -> None:
        for _ in range(2):
            assert ask(store, corpus, ["a", "b"], [ENGLISH, ENGLISH], replace=True).duplicate_of == [None, "a"]
        assert store.documents(corpus) == 1

    def test_of_a_duplicate_its_answer_is_replaced(self, store: DuplicateStore, corpus: str) -> None:
        ask(store, corpus, ["a", "b"], [ENGLISH, ENGLISH])
        assert ask(store, corpus, ["b"], [CHINESE], replace=True).duplicate_of == [None]
        assert ask(store, corpus, ["c"], [CHINESE]).duplicate_of == ["b"]
        assert ask(store, corpus, ["b"], [ENGLISH]).reused_id.tolist() == [True]

    def test_a_new_text_that_repeats_another_document_is_a_duplicate(self, store: DuplicateStore, corpus: str) -> None:
        ask(store, corpus, ["a", "b"], [ENGLISH, CHINESE])
        assert ask(store, corpus, ["a"], [CHINESE], replace=True).duplicate_of == ["b"]
        assert store.documents(corpus) == 1
        assert ask(store, corpus, ["c"], [ENGLISH]).duplicate_of == [None]


class TestDeletion:
    def test_nothing_is_named_and_nothing_left(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        texts = [ENGLISH, CHINESE, "short", OTHER_ENGLISH, ENGLISH, "dropped"]
        ids = [f"document to go {number}" for number in range(6)]
        ask(store, corpus, ["stays"], [OTHER_CHINESE])
        ask(store, corpus, ids, texts, [True] * 5 + [False])
        signatures = signed(*texts)
        stored = store.find(corpus, ids)
        assert sorted(found.id.decode() for found in stored) == ids
        assert sum(found.is_kept for found in stored) == 4
        assert store.delete(corpus, [*ids, "never there"]) == 6
        held = contents(client, corpus_base("default", corpus))
        text = repr(held).encode()
        assert b"to go" not in text
        values = [entry for key in held.values() if isinstance(key, dict) for pair in key.items() for entry in pair]
        for row in range(6):
            assert not any(signatures.text_hash[row].tobytes() in value for value in values)
        numbers = {found.number for found in stored}
        buckets = held[data_key(client, corpus, "buckets").encode()]
        entries = [value[at : at + 8] for value in buckets.values() for at in range(0, len(value), 8)]
        assert len(entries) == 1 + PARAMETERS.bands
        assert not {entry[3:] for entry in entries} & numbers
        assert len(held[data_key(client, corpus, "records").encode()]) == 1
        assert data_key(client, corpus, "retries").encode() not in held
        assert store.find(corpus, ids) == []
        assert store.documents(corpus) == 1
        assert store.delete(corpus, ids) == 0
        again = ask(store, corpus, [f"new {number}" for number in range(6)], texts)
        assert again.duplicate_of == [None, None, None, None, "new 0", None]

    def test_the_id_is_free_for_another_text(self, store: DuplicateStore, corpus: str) -> None:
        ask(store, corpus, ["a", "b"], [ENGLISH, ENGLISH])
        store.delete(corpus, ["a", "b"])
        found = ask(store, corpus, ["a", "b"], [CHINESE, ENGLISH])
        assert found.duplicate_of == [None, None]
        assert not found.reused_id.any()

    def test_a_retry_of_its_duplicate_is_decided_anew(self, store: DuplicateStore, corpus: str) -> None:
        ask(store, corpus, ["a", "near", "exact"], [ENGLISH, ENGLISH[:-1] + " Yes!", ENGLISH])
        store.delete(corpus, ["a"])
        assert ask(store, corpus, ["near", "exact"], [ENGLISH[:-1] + " Yes!", ENGLISH]).duplicate_of == [None, "near"]

    def test_many_among_many(self, store: DuplicateStore, corpus: str) -> None:
        n = 3000
        signatures = random_signatures(n, seed=11)
        ids = [f"d{number}" for number in range(n)]
        store.check_and_insert(corpus, ids, signatures, ones(n))
        assert store.delete(corpus, ids[::3]) == 1000
        found = store.check_and_insert(corpus, [f"x{number}" for number in range(n)], signatures, ~ones(n))
        assert found.duplicate_of == [None if number % 3 == 0 else ids[number] for number in range(n)]
        assert store.documents(corpus) == 2000

    def test_in_a_corpus_that_is_not_there(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        before = contents(client)
        assert store.delete(corpus, ["a"]) == 0
        assert store.find(corpus, ["a"]) == []
        assert store.expire(corpus, 10) == 0
        assert contents(client) == before


class TestWindows:
    def test_by_age_nothing_is_named_even_before_it_is_swept(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        store.create(corpus, options=CorpusOptions(window_s=0.01, retry_s=60.0))
        texts = [ENGLISH, "short"]
        tick(client)  # a whole second for what must be of one
        ask(store, corpus, ["a", "b"], texts)
        ask(store, corpus, ["copy"], [ENGLISH])
        tick(client)
        assert client.hlen(data_key(client, corpus, "records")) == 2
        # Neither by text, nor by band, nor by id, nor by the answer to a retry.
        found = ask(store, corpus, ["x", "b", "copy"], [ENGLISH[:-1] + " Yes!", CHINESE, OTHER_ENGLISH])
        assert found.duplicate_of == [None] * 3
        assert found.reused_id.tolist() == [False, False, True]
        assert client.hlen(data_key(client, corpus, "records")) == 2

    def test_nothing_is_named_past_its_age(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, options=CorpusOptions(window_s=1.0))
        tick(client)
        ask(store, corpus, ["a"], [ENGLISH])
        assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == ["a"]
        # Now it may be as young as a moment or as old as a second.
        tick(client)
        assert ask(store, corpus, ["c"], [ENGLISH], [False]).duplicate_of == [None]

    def test_by_age_all_is_freed_though_the_corpus_was_empty_in_between(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        store.create(corpus, options=CorpusOptions(window_s=0.01, retry_s=0.0))
        ask(store, corpus, ["a"], [ENGLISH])
        tick(client)
        ask(store, corpus, ["looked up"], [CHINESE], [False])
        assert store.documents(corpus) == 0
        ask(store, corpus, ["b", "c"], [ENGLISH, CHINESE])
        tick(client)
        ask(store, corpus, ["d"], [OTHER_ENGLISH])
        assert store.documents(corpus) == 1
        assert client.hlen(data_key(client, corpus, "records")) == 1

    def test_by_age_a_later_window_remembers_longer(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        store.create(corpus, options=CorpusOptions(window_s=0.01))
        ask(store, corpus, ["a"], [ENGLISH])
        store.configure(corpus, CorpusOptions(window_s=3600.0))
        tick(client)
        assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == ["a"]
        store.configure(corpus, CorpusOptions())
        assert ask(store, corpus, ["c"], [ENGLISH]).duplicate_of == ["a"]

    def test_by_count_the_latest_stay(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, options=CorpusOptions(window_documents=50))
        n = 640
        signatures = random_signatures(n, seed=21)
        ids = [f"d{number}" for number in range(n)]
        store.check_and_insert(corpus, ids, signatures, ones(n))
        assert store.documents(corpus) == 50
        assert client.hlen(data_key(client, corpus, "records")) == 50
        found = store.check_and_insert(corpus, [f"x{number}" for number in range(n)], signatures, ~ones(n))
        assert found.duplicate_of == [None] * (n - 50) + ids[-50:]
        buckets: Any = client.hgetall(data_key(client, corpus, "buckets"))
        entries = sum(len(entries) // 8 for field, entries in buckets.items() if field[0] >= 2)
        assert entries == 50 * PARAMETERS.bands

    def test_the_work_of_one_call_is_bounded(self, store: DuplicateStore, corpus: str) -> None:
        n = 1000
        store.check_and_insert(corpus, [f"d{number}" for number in range(n)], random_signatures(n, seed=22), ones(n))
        store.configure(corpus, CorpusOptions(window_documents=10))
        left = store.documents(corpus)
        assert left == n
        for turn in range(60):
            store.check_and_insert(corpus, [f"new {turn}"], random_signatures(1, seed=1000 + turn), ones(1))
            before, left = left, store.documents(corpus)
            assert before + 1 - 2 <= left <= before + 1
        assert store.expire(corpus, 100) == 100
        assert store.documents(corpus) == left - 100
        assert store.expire(corpus, 10_000) == left - 110
        assert store.documents(corpus) == 10
        assert store.expire(corpus, 10_000) == 0

    def test_gaps_of_deleted_documents_hold_nothing_up(self, store: DuplicateStore, corpus: str) -> None:
        n = 400
        ids = [f"d{number}" for number in range(n)]
        signatures = random_signatures(n, seed=23)
        store.check_and_insert(corpus, ids, signatures, ones(n))
        store.delete(corpus, ids[50:300])
        store.configure(corpus, CorpusOptions(window_documents=20))
        store.expire(corpus, 1000)
        found = store.check_and_insert(corpus, [f"x{number}" for number in range(n)], signatures, ~ones(n))
        assert found.duplicate_of == [None] * (n - 20) + ids[-20:]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"window_documents": 0}, {"window_documents": 1 << 39}, {"window_s": 0.0}, {"window_s": 1e30},
            {"window_s": -1.0}, {"retry_s": -1.0}, {"retry_s": float("inf")}, {"retry_documents": 0},
            {"retry_documents": 10**20}, {"line_slots": -1}, {"line_slots": 1 << 29},
        ],
    )  # fmt: skip
    def test_impossible_options_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be"):
            CorpusOptions(**wrong)

    def test_options_of_no_corpus_cannot_be_changed(self, store: DuplicateStore, corpus: str) -> None:
        with pytest.raises(CorpusMismatch, match="there is no corpus"):
            store.configure(corpus, CorpusOptions())
        assert store.documents(corpus) == 0


class TestHeaders:
    def test_a_corpus_is_created_once(self, store: DuplicateStore, corpus: str) -> None:
        parameters = SignatureParameters(bands=5, normaliser="lower/1")
        options = CorpusOptions(window_documents=7)
        assert store.create(corpus, parameters, options)
        assert store.parameters(corpus) == parameters
        assert not store.create(corpus, parameters, CorpusOptions())
        layout = store.read_layout(corpus)
        assert layout is not None
        assert layout.options == options

    def test_one_of_other_parameters_is_named_field_by_field(self, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, SignatureParameters(bands=5, bins=256))
        with pytest.raises(CorpusMismatch) as caught:
            store.create(corpus, SignatureParameters(normaliser="lower/1"))
        assert caught.value.message == (
            f"corpus {corpus} exists and was made with bands 5 (here 9), bins 256 (here 512), "
            "normaliser nfkc-lower/1 (here lower/1); name another corpus, or drop this one"
        )
        with pytest.raises(CorpusMismatch, match=r"bands 5 \(here 9\), bins 256 \(here 512\); score with these"):
            ask(store, corpus, ["a"], [ENGLISH])

    @pytest.mark.parametrize(
        ("field", "stored", "said"),
        [
            ("format", 1, rf"format 1, .*\(here {FORMAT_VERSION}, 5\)"),
            ("format", 3, "use the version of dqs that made it, or drop it"),
            ("shingle_tokens", 3, "shingle_tokens 3"),
            ("normaliser", "nfkc-lower/2", "cannot use"),
            ("bits", 4, "cannot use"),
        ],
    )
    def test_another_format_is_refused(
        self, server: EmbeddedRedis, client: redis.Redis, corpus: str, field: str, stored: object, said: str
    ) -> None:
        with closing(DuplicateStore(connect(server.url), PARAMETERS)) as first:
            first.create(corpus)
        key = corpus_base("default", corpus) + "header"
        written: Any = client.hget(key, "parameters")
        client.hset(key, "parameters", json.dumps({**json.loads(written), field: stored}))
        with closing(DuplicateStore(connect(server.url), PARAMETERS)) as second:
            for call in (
                lambda: ask(second, corpus, ["a"], [ENGLISH]),
                lambda: second.parameters(corpus),
                lambda: second.create(corpus),
                lambda: second.delete(corpus, ["a"]),
            ):
                with pytest.raises(CorpusMismatch, match=said):
                    call()
            second.drop_corpus(corpus)
            assert ask(second, corpus, ["a"], [ENGLISH]).duplicate_of == [None]

    @pytest.mark.parametrize("stored", ["", "[]", "{}", '{"threshold": 0.75}', "not JSON"])
    def test_what_is_no_header_is_refused(
        self, client: redis.Redis, store: DuplicateStore, corpus: str, stored: str
    ) -> None:
        client.hset(corpus_base("default", corpus) + "header", mapping={"parameters": stored, "generation": "x"})
        with pytest.raises(CorpusMismatch, match="a header that this version cannot read; drop it"):
            ask(store, corpus, ["a"], [ENGLISH])
        store.drop_corpus(corpus)


class TestLines:
    def remember(
        self, store: DuplicateStore, corpus: str, signatures: Signatures, kept: NDArray[np.bool_]
    ) -> list[int]:
        seen = store.see_lines(corpus, signatures.lines)
        assert seen is not None
        store.remember_lines(corpus, seen, kept)
        counts: list[int] = seen.counts.tolist()
        return counts

    def test_lines_of_kept_documents_are_known(self, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus)
        menu = "Home\nImprint\nContact\n"
        signatures = signed(menu + "First\nstory", menu + "Another\ntale", "", "First\nmenu\nstory")
        assert self.remember(store, corpus, signatures, np.array([True, False, True, False])) == [0, 3, 0, 2]
        assert self.remember(store, corpus, signatures[1:2], ones(1)) == [3]
        assert self.remember(store, corpus, signatures, ones(4)) == [5, 5, 0, 2]

    def test_before_there_is_a_corpus_lines_of_the_call_alone_are_known(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        before = contents(client)
        signatures = signed("One line", "One line\nand another")
        assert self.remember(store, corpus, signatures, ones(2)) == [0, 1]
        assert self.remember(store, corpus, signatures, ones(2)) == [0, 1]
        assert contents(client) == before

    def test_the_table_doubles_and_knows_what_it_knew(
        self, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        store.create(corpus, options=CorpusOptions(line_slots=16 * FIRST_SLOTS))
        n = 2000
        signatures = random_signatures(n, seed=31)
        for start in range(0, n, 50):
            assert not any(self.remember(store, corpus, signatures[start : start + 50], ones(50)))
        slots: Any = client.hget(corpus_base("default", corpus) + "header", "line_slots")
        assert int(slots) == 8 * FIRST_SLOTS
        assert client.strlen(data_key(client, corpus, "lines")) <= 4 * int(slots)
        seen = store.see_lines(corpus, signatures.lines)
        assert seen is not None
        # It forgets some of those that wanted the same slots, and no more of them the older it gets.
        assert seen.counts.sum() > 0.9 * n * LINES

    def test_it_does_not_grow_beyond_its_bound(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, options=CorpusOptions(line_slots=2 * FIRST_SLOTS))
        for turn in range(40):
            signatures = random_signatures(100, seed=400 + turn)
            self.remember(store, corpus, signatures, ones(100))
            latest = store.see_lines(corpus, signatures.lines)
            assert latest is not None
            assert latest.counts.sum() > 0.9 * 100 * LINES
        assert client.strlen(data_key(client, corpus, "lines")) <= 4 * 2 * FIRST_SLOTS

    def test_none_are_kept_if_none_are_wanted(self, client: redis.Redis, store: DuplicateStore, corpus: str) -> None:
        store.create(corpus, options=CorpusOptions(line_slots=0))
        assert store.see_lines(corpus, signed("One line").lines) is None
        assert not client.exists(data_key(client, corpus, "lines"))

    def test_lines_of_a_corpus_dropped_meanwhile_leave_nothing(
        self, server: EmbeddedRedis, client: redis.Redis, store: DuplicateStore, corpus: str
    ) -> None:
        before = contents(client)
        store.create(corpus)
        seen = store.see_lines(corpus, signed("One line\nand another").lines)
        assert seen is not None
        with closing(DuplicateStore(connect(server.url), PARAMETERS)) as other:
            other.drop_corpus(corpus)
        store.remember_lines(corpus, seen, ones(1))
        assert contents(client) == before


def test_two_clients_grow_a_corpus_while_a_third_reads_it(server: EmbeddedRedis, corpus: str) -> None:
    n = 6000
    signatures = random_signatures(n, seed=41)
    ids = [f"d{number}" for number in range(n)]
    first = 200
    with closing(DuplicateStore(connect(server.url), PARAMETERS)) as one:
        one.check_and_insert(corpus, ids[:first], signatures[:first], ones(first))
    done = threading.Event()
    failures: list[str] = []

    def grow(start: int) -> None:
        mine = np.arange(start, n, 2)
        with closing(DuplicateStore(connect(server.url), PARAMETERS)) as own:
            for part in np.array_split(mine, 40):
                found = own.check_and_insert(corpus, [ids[at] for at in part], signatures[part], ones(part.size))
                if found.duplicate_of != [None] * part.size:
                    failures.append(f"new documents from {part[0]} on were called duplicates")

    def read() -> None:
        turn = 0
        with closing(DuplicateStore(connect(server.url), PARAMETERS)) as own:
            while not done.is_set():
                turn += 1
                names = [f"{turn} {document}" for document in ids[:first]]
                found = own.check_and_insert(corpus, names, signatures[:first], ~ones(first))
                if found.duplicate_of != ids[:first]:
                    failures.append(f"known documents were not found in turn {turn}")

    reader = threading.Thread(target=read)
    growers = [threading.Thread(target=grow, args=(first + side,)) for side in (0, 1)]
    for thread in (reader, *growers):
        thread.start()
    for thread in growers:
        thread.join()
    done.set()
    reader.join()
    assert failures == []
    with closing(DuplicateStore(connect(server.url), PARAMETERS)) as one:
        found = one.check_and_insert(corpus, [f"x{number}" for number in range(n)], signatures, ~ones(n))
        assert found.duplicate_of == ids
        layout = one.read_layout(corpus)
        assert layout is not None
        assert layout.buckets * ENTRIES_PER_BUCKET >= n


class PlainIndex:
    """The rules of `check_and_insert.lua` and `remove.lua` in plain Python, without times and windows."""

    def __init__(self, parameters: SignatureParameters) -> None:
        self.parameters = parameters
        self.numbers = itertools.count()
        self.kept: dict[int, dict[str, Any]] = {}
        self.answers: dict[int, dict[str, Any]] = {}
        self.bands: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.texts: dict[bytes, list[int]] = defaultdict(list)

    def entries(self, document: str) -> list[tuple[int, dict[str, Any]]]:
        both = sorted([*self.kept.items(), *self.answers.items()])
        return [(number, entry) for number, entry in both if entry["id"] == document]

    def remove(self, document: str) -> bool:
        found = self.entries(document)
        for number, _ in found:
            self.kept.pop(number, None)
            self.answers.pop(number, None)
            for members in (*self.bands.values(), *self.texts.values()):
                if number in members:
                    members.remove(number)
        return bool(found)

    def known(self, document: str, text: bytes, insert: bool) -> dict[str, Any] | None:
        """The answer to a retry; None if there is none."""
        answer: dict[str, Any] | None = None
        for number, entry in self.entries(document):
            if number in self.kept:
                return entry if entry["text"] == text else REUSED
            if entry["text"] != text:
                answer = REUSED
            elif entry["named"] is None:
                answer = None if insert else entry
            else:
                answer = entry if entry["named"] in self.kept else None
        return answer

    def nearest(self, sketch: NDArray[np.uint8], met: dict[int, int]) -> tuple[int, float] | None:
        candidates = sorted(met, key=lambda number: (-met[number], number))[:MAX_VERIFIED]
        best: tuple[int, float] | None = None
        for number in sorted(candidates):
            near = float(similarity(sketch[np.newaxis], self.kept[number]["sketch"][np.newaxis])[0])
            if near >= self.parameters.least_similarity and (best is None or near > best[1]):
                best = number, near
        return best

    def submit(
        self, document: str, signature: Signatures, insert: bool, seen: int, *, replace: bool, unchecked: bool
    ) -> dict[str, Any]:
        text = signature.text_hash.tobytes()
        empty, has_sketch = not signature.text_hash.any(), bool(signature.shingles[0])
        answer = self.known(document, text, insert)
        if answer is REUSED and replace:
            self.remove(document)
            answer = None
        if answer is not None:
            return answer
        keys = [(band, int(key)) for band, key in enumerate(signature.bands[0])] if has_sketch else []
        full = {key for key in keys if len(self.bands[key]) >= MAX_SAME}
        met: dict[int, int] = defaultdict(int)
        for key in keys:
            for number in self.bands[key][:MAX_SAME]:
                met[number] += 1
        by_text = (full or not has_sketch) and not empty
        entry: dict[str, Any] = {
            "id": document, "text": text, "seen": seen, "named": None, "of": None, "exact": False, "near": 0.0,
            "met": 0, "sketch": signature.sketch[0],
        }  # fmt: skip
        if not unchecked:
            copies = self.texts[text][:1] if by_text else []
            best = (copies[0], 1.0) if copies else self.nearest(signature.sketch[0], met)
            if best is not None:
                named = self.kept[best[0]]
                exact = named["text"] == text
                entry |= {
                    "named": best[0], "of": named["id"], "exact": exact, "near": 1.0 if exact else best[1],
                    "met": met.get(best[0], 0),
                }  # fmt: skip
        number = next(self.numbers)
        if entry["named"] is None and insert:
            self.kept[number] = entry
            for key in keys:
                if key not in full:
                    self.bands[key].append(number)
            if by_text:
                self.texts[text].append(number)
        else:
            self.answers[number] = entry
        return entry


REUSED: dict[str, Any] = {"of": None, "near": float("nan"), "exact": False, "met": 0, "seen": None}

TINY = SignatureParameters(bands=3, rows=2, bins=32, threshold=0.5)


def tiny_signatures(labels: Sequence[tuple[int, int, int, int]]) -> Signatures:
    """Signatures over few keys of bands and few sketches: (text, first band, other bands, sketch) of each document.

    The text is the label, so that equal labels are equal texts; texts of number 0 are empty, 1 and 2 short.
    """
    signatures = Signatures.empty(len(labels), TINY)
    for row, (text, first, others, sketch) in enumerate(labels):
        if text == 0:
            continue
        if text < 3:
            signatures.text_hash[row] = text << 40 | 1, text
            continue
        signatures.shingles[row] = 10
        signatures.text_hash[row] = text << 24 | first << 16 | others << 8 | sketch, 1 << 40
        # Some keys share a bucket, and some share all but their lowest byte.
        signatures.bands[row] = first << 24 | 5, others << 8 | 5, others
        codes = np.tile(np.array([1, 2, 3, 0], dtype=np.uint8), TINY.bins // 4)
        codes[: 3 * sketch] = (codes[: 3 * sketch] + 1) % 4
        signatures.sketch[row] = packed_codes(codes)
    return signatures


def crowded_signatures(n: int, dice: np.random.Generator) -> Signatures:
    """Signatures of which many share bands and are near each other in every degree; some are copies of others."""
    signatures = Signatures.empty(n, TINY)
    signatures.shingles[:] = 10
    signatures.text_hash[:] = dice.integers(1, 2**63, size=(n, 2))
    signatures.bands[:] = dice.integers(0, [2, 3, 4], size=(n, TINY.bands)) << 24
    centres = dice.integers(0, 4, size=(12, TINY.bins), dtype=np.uint8)
    codes = centres[dice.integers(0, 12, size=n)]
    other = dice.random((n, TINY.bins)) < dice.uniform(0, 0.6, size=(n, 1))
    codes[other] = dice.integers(0, 4, size=np.count_nonzero(other), dtype=np.uint8)
    signatures.sketch[:] = packed_codes(codes)
    original = np.where(dice.random(n) < 0.2, dice.integers(0, n, size=n), np.arange(n))
    return signatures[original]


@pytest.mark.parametrize("seed", range(4))
def test_crowded_bands_are_cut_off_as_the_rules_say(client: redis.Redis, corpus: str, seed: int) -> None:
    dice = np.random.default_rng(seed)
    n = 600
    signatures = crowded_signatures(n, dice)
    plain = PlainIndex(TINY)
    store = DuplicateStore(client, TINY)
    full = 0
    for start in range(0, n, 20):
        group = slice(start, start + 20)
        # At first nearly all are kept, so that bands fill up; later ones are looked up among them.
        unchecked = bool(dice.random() < (0.9 if start < 300 else 0.1))
        insert = dice.random(20) < 0.8
        ids = [f"d{row}" for row in range(start, start + 20)]
        found = store.check_and_insert(corpus, ids, signatures[group], insert, unchecked=unchecked)
        for row, document in enumerate(ids):
            signature = signatures[start + row : start + row + 1]
            expected = plain.submit(document, signature, bool(insert[row]), 0, replace=False, unchecked=unchecked)
            answer = (found.duplicate_of[row], bool(found.exact[row]), int(found.bands_met[row]))
            assert answer == (expected["of"], expected["exact"], expected["met"]), document
            assert found.similarity[row] == pytest.approx(expected["near"])
        gone = [f"d{row}" for row in dice.integers(0, start + 20, size=3).tolist()]
        assert store.delete(corpus, gone) == sum(plain.remove(document) for document in dict.fromkeys(gone))
        full += sum(len(members) == MAX_SAME for members in plain.bands.values())
    assert full > 20


labels = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 1), st.integers(0, 4))
submissions = st.lists(st.tuples(st.integers(0, 9), labels, st.booleans(), st.integers(0, 3)), min_size=1, max_size=12)


def test_the_store_answers_as_the_rules_say(client: redis.Redis, corpus: str) -> None:
    turns = itertools.count()

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.corpus = f"{corpus} {next(turns)}"
            self.plain = PlainIndex(TINY)
            self.store = DuplicateStore(client, TINY)

        @rule(
            wanted=submissions, replace=st.booleans(), unchecked=st.sampled_from([False] * 5 + [True]),
            group=st.sampled_from([1, 3, 16]),
        )  # fmt: skip
        def submit(self, wanted: list[Any], replace: bool, unchecked: bool, group: int) -> None:
            self.send([f"d{place}" for place, *_ in wanted], wanted, replace=replace, unchecked=unchecked, group=group)

        @rule(label=labels, count=st.integers(20, 40), batch=st.integers(0, 99))
        def import_boilerplate(self, label: tuple[int, int, int, int], count: int, batch: int) -> None:
            wanted = [(0, (3 + row % 3, *label[1:]), True, 0) for row in range(count)]
            self.send([f"i{batch}/{row}" for row in range(count)], wanted, replace=False, unchecked=True, group=16)

        @rule(places=st.lists(st.integers(0, 9), max_size=4))
        def delete(self, places: list[int]) -> None:
            ids = [f"d{place}" for place in places]
            known = sum(self.plain.remove(document) for document in dict.fromkeys(ids))
            assert self.store.delete(self.corpus, ids) == known

        def send(self, ids: list[str], wanted: list[Any], *, group: int, **how: bool) -> None:
            signatures = tiny_signatures([label for _, label, _, _ in wanted])
            insert = np.array([keep for _, _, keep, _ in wanted], dtype=np.bool_)
            seen = np.array([lines for _, _, _, lines in wanted], dtype=np.uint8)
            store = DuplicateStore(client, TINY, group_documents=group)
            found = store.check_and_insert(self.corpus, ids, signatures, insert, lines_seen=seen, **how)
            for row, document in enumerate(ids):
                signature = signatures[row : row + 1]
                expected = self.plain.submit(document, signature, bool(insert[row]), int(seen[row]), **how)
                answer = (found.duplicate_of[row], bool(found.exact[row]), int(found.bands_met[row]))
                assert answer == (expected["of"], expected["exact"], expected["met"]), (row, document)
                assert found.similarity[row] == pytest.approx(expected["near"], nan_ok=True)
                assert bool(found.reused_id[row]) == (expected is REUSED)
                assert expected is REUSED or found.lines_seen[row] == expected["seen"]

        @invariant()
        def holds_the_same(self) -> None:
            assert self.store.documents(self.corpus) == len(self.plain.kept)
            ids = [f"d{place}" for place in range(10)]
            stored = sorted(
                (found.id.decode(), found.is_kept, found.text_hash) for found in self.store.find(self.corpus, ids)
            )
            both = [(entry, True) for entry in self.plain.kept.values()] + [
                (entry, False) for entry in self.plain.answers.values()
            ]
            assert stored == sorted((entry["id"], kept, entry["text"]) for entry, kept in both if entry["id"] in ids)

        def teardown(self) -> None:
            self.store.drop_corpus(self.corpus)

    run_state_machine_as_test(Machine, settings=settings(max_examples=30, stateful_step_count=20))


def test_an_evicting_server_is_warned_of(client: redis.Redis) -> None:
    assert persistence_warnings(client) == []
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        evicting, forgetting = persistence_warnings(client)
        assert "allkeys-lru" in evicting
        assert "noeviction" in evicting
        assert "appendonly yes" in forgetting
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        # Until the file is written anew, Redis refuses to shut down.
        assert eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])


@pytest.fixture(params=each_binary())
def binary(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_a_killed_server_comes_back_with_everything_acknowledged(binary: Path, tmp_path: Path) -> None:
    batch, acknowledged = 50, []
    with EmbeddedRedis(tmp_path, binary=binary) as server, closing(DuplicateStore(connect(server.url))) as store:
        for turn in range(40):
            ids = [f"{turn}/{position}" for position in range(batch)]
            if turn in (15, 30):
                os.kill(server.pid, signal.SIGKILL)
            try:
                store.check_and_insert("c", ids, random_signatures(batch, seed=turn), ones(batch))
            except IndexUnavailable:
                assert eventually(lambda: not store.is_left_alone and _answers(server.url))
                continue
            acknowledged.append((turn, ids))
        # Each death costs a call or two, more on a busy machine.
        assert len(acknowledged) >= 30
        assert eventually(lambda: _answers(server.url))
        for turn, ids in acknowledged:
            again = [f"again {document}" for document in ids]
            found = store.check_and_insert("c", again, random_signatures(batch, seed=turn), ~ones(batch))
            assert found.duplicate_of == ids
            assert found.exact.all()


def _answers(url: str) -> bool:
    try:
        connect(url, timeout_s=1.0, retries=0).close()
    except IndexUnavailable:
        return False
    return True


def test_data_are_there_after_a_restart(binary: Path, tmp_path: Path) -> None:
    for turn, expected in enumerate([[None, None], ["0 a", "0 b"]]):
        with EmbeddedRedis(tmp_path, binary=binary) as server, closing(DuplicateStore(connect(server.url))) as store:
            assert ask(store, "c", [f"{turn} a", f"{turn} b"], [ENGLISH, CHINESE]).duplicate_of == expected


def test_its_files_are_nobody_elses_business(binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with EmbeddedRedis(folder, binary=binary) as server, closing(DuplicateStore(connect(server.url))) as store:
        ask(store, "c", ["a"], [ENGLISH])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.rglob("appendonly*"):
            assert not path.stat().st_mode & 0o077


def test_a_second_server_on_a_directory_attaches(binary: Path, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, binary=binary) as first:
        with EmbeddedRedis(tmp_path, binary=binary) as second:
            assert (first.owned, second.owned) == (True, False)
            assert second.url == first.url
            assert second.pid == 0
        assert _answers(first.url)
    assert not _answers(first.url)


@pytest.mark.parametrize("folder", ["short", "a" * 150])
def test_an_attached_process_takes_over_when_the_owner_ends(binary: Path, tmp_path: Path, folder: str) -> None:
    first = EmbeddedRedis(tmp_path / folder, binary=binary)
    with (
        EmbeddedRedis(tmp_path / folder, binary=binary) as second,
        closing(DuplicateStore(connect(second.url))) as store,
    ):
        ask(store, "c", ["a"], [ENGLISH])
        first.close()
        deadline = time.monotonic() + 30
        while not _answers(second.url) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert second.owned
        assert ask(store, "c", ["b"], [ENGLISH]).duplicate_of == ["a"]
    assert not _answers(second.url)


def test_a_directory_whose_server_does_not_answer_is_refused(binary: Path, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, binary=binary) as first:
        os.kill(first.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ConfigError, match=rf"process {os.getpid()} holds .* choose another --data-dir"):
                EmbeddedRedis(tmp_path, binary=binary, attach_timeout_s=0.3)
        finally:
            os.kill(first.pid, signal.SIGCONT)


def test_a_paused_server_costs_a_bounded_time(binary: Path, tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path, binary=binary) as server,
        closing(DuplicateStore(connect(server.url, timeout_s=1.0, retries=1))) as store,
    ):
        ask(store, "c", ["a"], [ENGLISH])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(IndexUnavailable, match="did not answer in time"):
                ask(store, "c", ["b"], [CHINESE])
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert eventually(lambda: not store.is_left_alone)
        # The paused server runs what was sent to it; the repeated call is still not its own duplicate.
        assert ask(store, "c", ["b"], [CHINESE]).duplicate_of == [None]
        assert store.documents("c") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_dies_with_its_parent(binary: Path, tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dqs.index.embedded import EmbeddedRedis\n"
        "server = EmbeddedRedis(Path(sys.argv[1]), binary=Path(sys.argv[2]))\n"
        "print(server.url, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(binary)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        with closing(DuplicateStore(connect(url))) as store:
            ask(store, "c", ["a"], [ENGLISH])
        parent.send_signal(how)
        parent.wait()
    assert eventually(lambda: not _answers(url))
    with EmbeddedRedis(tmp_path, binary=binary) as server, closing(DuplicateStore(connect(server.url))) as store:
        assert server.owned
        assert ask(store, "c", ["b"], [ENGLISH]).duplicate_of == ["a"]


def test_a_long_directory_name_and_odd_characters_work(binary: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("数据 %41?#" + "x" * 100) / ("y" * 100)
    with EmbeddedRedis(folder, binary=binary) as server:
        assert _answers(server.url)
    with EmbeddedRedis(tmp_path / "数据 %41?#", binary=binary) as server:
        assert _answers(server.url)


def test_data_of_a_newer_redis_are_refused_and_not_overlooked(tmp_path: Path) -> None:
    old = [binary for binary in binaries() if binary_version(binary) < (7, 0)]
    if not old:
        pytest.skip("needs a redis-server older than 7")
    (tmp_path / "appendonlydir").mkdir()
    with pytest.raises(ConfigError, match="written by Redis 7"):
        EmbeddedRedis(tmp_path, binary=old[0])


def test_a_broken_append_only_file_is_refused_with_the_log_named(binary: Path, tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, binary=binary) as server, closing(DuplicateStore(connect(server.url))) as store:
        ask(store, "c", ["a", "b"], [ENGLISH, CHINESE])
    file = max((path for path in tmp_path.rglob("appendonly*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[100:140] = b"?" * 40
    file.write_bytes(data)
    with pytest.raises(IndexUnavailable, match=r"stopped while starting; .*redis\.log says why"):
        EmbeddedRedis(tmp_path, binary=binary)


def test_without_a_redis_server_the_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packaged = packaged_binary()
    if packaged is not None:
        assert find_binary() == packaged
    wrong = tmp_path / "redis-server"
    wrong.write_text("#!/bin/sh\necho nothing\n")
    wrong.chmod(0o755)
    assert find_binary() == wrong
    with pytest.raises(ConfigError, match="does not run as a redis-server"):
        EmbeddedRedis(tmp_path / "data")


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        EmbeddedRedis(tmp_path / "file" / "data")


def test_an_unreachable_server_is_one_sentence_without_the_password() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(IndexUnavailable, match="cannot be reached") as caught:
        connect(f"redis://user:secret@127.0.0.1:{port}/0", timeout_s=0.5, retries=0)
    assert f"redis://127.0.0.1:{port}/0" in caught.value.message
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_wrong_url_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="not a Redis URL"):
        connect("http://127.0.0.1:6379")


def test_a_wrong_password_is_said(tmp_path: Path, binary: Path) -> None:
    with EmbeddedRedis(tmp_path, binary=binary) as server:
        with closing(redis.Redis.from_url(server.url)) as plain:
            plain.config_set("requirepass", "right")
        with pytest.raises(IndexUnavailable, match="password"):
            connect(server.url)
        connect(f"{server.url}?password=right").close()
