"""The duplicate index on real Redis servers: order, races, retries, restarts, refusals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from dqs.errors import ConfigError, CorpusMismatch, IndexUnavailable, RequestError
from dqs.index import redis_store
from dqs.index.embedded import EmbeddedRedis, binary_version, find_binary, packaged_binary
from dqs.index.redis_store import Duplicates, DuplicateStore, connect, persistence_warnings
from dqs.index.signature import SignatureParameters, Signatures, sign
from dqs.text import TextBatch

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


def binaries() -> list[Path]:
    found = shutil.which("redis-server")
    return [path for path in (Path(found) if found else None, packaged_binary()) if path is not None]


def version_of(binary: Path) -> str:
    return "redis-" + ".".join(map(str, binary_version(binary)))


@pytest.fixture(scope="module", params=binaries(), ids=version_of)
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
    store: DuplicateStore, corpus: str, ids: Sequence[str], texts: Sequence[str], insert: Sequence[bool] | None = None
) -> Duplicates:
    wanted = np.ones(len(ids), dtype=np.bool_) if insert is None else np.array(insert, dtype=np.bool_)
    return store.check_and_insert(corpus, ids, signed(*texts), wanted)


def random_signatures(n: int, seed: int, parameters: SignatureParameters = PARAMETERS) -> Signatures:
    """Signatures of documents that have nothing in common."""
    random = np.random.default_rng(seed)
    return Signatures(
        parameters,
        np.full(n, 100, dtype=np.int32),
        random.integers(1, 2**63, size=(n, 2)).astype(np.uint64),
        random.integers(0, 2**32, size=(n, parameters.bands), dtype=np.uint32),
        random.integers(0, 256, size=(n, parameters.sketch_bytes), dtype=np.uint8),
    )


def ones(n: int) -> NDArray[np.bool_]:
    return np.ones(n, dtype=np.bool_)


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
    # All in the same bands; sketches that differ in 40, 20, 20 and 30 of 128 bytes from the last one's.
    signatures = random_signatures(5, seed=5)
    signatures.bands[:] = signatures.bands[0]
    signatures.sketch[:] = signatures.sketch[0]
    for document, (start, width) in enumerate([(0, 40), (40, 20), (60, 20), (80, 30)]):
        signatures.sketch[document, start : start + width] ^= 0xFF
    ids = ["far", "first", "second", "third"]
    assert store.check_and_insert(corpus, ids, signatures[:4], ones(4)).duplicate_of == [None] * 4
    found = store.check_and_insert(corpus, ["last"], signatures[4:], ones(1))
    assert found.duplicate_of == ["first"]
    assert found.similarity[0] == pytest.approx(((1 - 20 / 128) - 1 / 16) / (1 - 1 / 16))


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
    assert store.documents(corpus) == n > redis_store.ENTRIES_PER_BUCKET * redis_store.FIRST_BUCKETS
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
        found = store.check_and_insert(corpus, [f"x{document}" for document in ids], others, lookup)
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
    lengths = [client.strlen(key) for key in client.scan_iter(match="*boilerplate*") if client.type(key) == b"string"]
    assert max(lengths) == 8 * 24
    # The documents stay known by text.
    last = store.check_and_insert(corpus, ["copy"], signatures[n - 1 :], ones(1))
    assert last.duplicate_of == [f"d{n - 1}"]


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
        with pytest.raises(CorpusMismatch, match=r"seed 1 \(here 7\), threshold 0\.75 \(here 0\.9\)"):
            other.check_and_insert(corpus, ["b"], signed(ENGLISH, parameters=parameters), ones(1))
        with pytest.raises(ValueError, match="other parameters"):
            other.check_and_insert(corpus, ["b"], signed(ENGLISH), ones(1))


def test_a_corpus_remade_elsewhere_is_noticed(server: EmbeddedRedis, store: DuplicateStore, corpus: str) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    with closing(DuplicateStore(connect(server.url), SignatureParameters(seed=2))) as other:
        other.drop_corpus(corpus)
        assert ask(store, corpus, ["b"], [ENGLISH]).duplicate_of == [None]
        other.drop_corpus(corpus)
        other.check_and_insert(corpus, ["c"], signed(ENGLISH, parameters=other.parameters), ones(1))
    with pytest.raises(CorpusMismatch):
        ask(store, corpus, ["d"], [ENGLISH])


def test_dropping_a_corpus_leaves_nothing_and_touches_nothing_else(
    client: redis.Redis, store: DuplicateStore, corpus: str
) -> None:
    client.set("not ours", "kept")
    ask(store, corpus + " neighbour", ["a"], [ENGLISH])
    before = set(client.scan_iter())
    store.check_and_insert(corpus, [str(position) for position in range(5000)], random_signatures(5000, 4), ones(5000))
    assert len(set(client.scan_iter())) > len(before) + 1000
    store.drop_corpus(corpus)
    store.drop_corpus(corpus)
    assert set(client.scan_iter()) == before
    assert store.documents(corpus) == 0


def test_a_drop_that_was_cut_short_is_finished_by_the_next(
    client: redis.Redis, store: DuplicateStore, corpus: str
) -> None:
    before = set(client.scan_iter())
    ask(store, corpus, ["a"], [ENGLISH])
    header = next(key for key in client.scan_iter(match="*cut_short*:header"))
    base = header.removesuffix(b"header").decode()
    fields: dict[Any, Any] = client.hgetall(header)
    client.sadd(base + "dropped", f"{fields[b'generation'].decode()} {PARAMETERS.bands + 2} {int(fields[b'buckets'])}")
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
    ask(store, corpus, ["a"], [ENGLISH])
    keys = [key.decode() for key in set(client.scan_iter()) - before]
    assert len(keys) == PARAMETERS.bands + 4
    assert len({key[key.index("{") : key.index("}")] for key in keys}) == 1


def test_a_full_server_inserts_nothing_and_still_answers(
    client: redis.Redis, store: DuplicateStore, corpus: str
) -> None:
    ask(store, corpus, ["a"], [ENGLISH])
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(IndexUnavailable, match=r"full \(maxmemory\)"):
            ask(store, corpus, ["b", "c"], [CHINESE, OTHER_ENGLISH])
        found = ask(store, corpus, ["b"], [ENGLISH + " The end."], [False])
        assert found.duplicate_of == ["a"]
    finally:
        client.config_set("maxmemory", 0)
    assert store.documents(corpus) == 1
    assert ask(store, corpus, ["b", "c"], [CHINESE, OTHER_ENGLISH]).duplicate_of == [None, None]


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


@pytest.fixture(params=binaries(), ids=version_of)
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
        closing(DuplicateStore(connect(server.url, timeout_s=0.2, retries=1))) as store,
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
