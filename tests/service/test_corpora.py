"""The life of corpora: in Redis, on the wire, through the clients, beside scoring."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import redis as redis_py
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import dqs.server.corpora
from dqs import AsyncClient, Client
from dqs.client import Timeouts
from dqs.errors import CorpusMismatch, CorpusNotFound, DeadlineExceeded, IndexUnavailable, RequestError
from dqs.index.corpora import Corpora, FileRewrite, Rewriting, State, wait_for_files
from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import sign
from dqs.server.corpora import SERVICE_NAME
from dqs.server.tenants import new_token
from dqs.text import TextBatch
from dqs.v1 import corpus_pb2
from dqs.v1.corpus_pb2_grpc import CorpusServiceStub
from tests.service.conftest import SMALL_LIMITS
from tests.service.servers import each_binary
from tests.service.serving import CHINESE, ENGLISH, LocalServer, Redis, raw_channel, wait_until

GIVEN = [("en", ENGLISH), ("zh", CHINESE)]
COPIES = [("en copy", ENGLISH), ("zh copy", CHINESE)]


@pytest.fixture
def indexed(redis: Redis) -> Iterator[LocalServer]:
    """A server in this process whose scoring can be held, with an index of its own."""
    with LocalServer(redis_url=redis.url, redis_timeout_s=1, **SMALL_LIMITS) as server:
        yield server


@pytest.fixture
def client(indexed: LocalServer) -> Iterator[Client]:
    with Client(indexed.address, timeouts=Timeouts(retry_s=0.5)) as client:
        yield client


def originals(client: Client, corpus: str) -> list[str | None]:
    """What the corpus says that copies of `GIVEN` repeat; nothing is put into one that knows them."""
    verdicts = client.score_batch(COPIES, policy="score-only", corpus=corpus)
    return [verdict.duplicate_of for verdict in verdicts]


def connecting(redis: Redis) -> redis_py.Redis:
    """A client of its own, as a context manager."""
    return redis_py.Redis.from_url(redis.url)


def is_rewriting(redis: Redis) -> bool:
    """Whether it writes its append-only file anew."""
    with connecting(redis) as connection:
        info = connection.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def held_by(redis: Redis) -> bytes:
    """All that its files hold."""
    folder = Path(redis.url.removeprefix("unix://")).parent
    held = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a file that it removes meanwhile, or its socket
            held.append(path.read_bytes())
    return b"".join(held)


def text_of(i: int) -> str:
    """A text that is like no other one; every tenth is too short for a sketch."""
    words = random.Random(i).choices([f"word{n}" for n in range(5000)], k=60)
    return f"short {i}" if i % 10 == 9 else " ".join(words)


def keep(store: DuplicateStore, corpus: str, documents: int) -> None:
    """Keeps texts in a corpus, all with a sketch."""
    texts = [f"{text_of(10 * i)} {text_of(10 * i + 1)}".encode() for i in range(documents)]
    signatures = sign(TextBatch.from_bytes(texts), store.parameters(corpus))
    store.check_and_insert(corpus, [f"id {i}" for i in range(documents)], signatures, np.ones(documents, np.bool_))


def status_of(address: str, raw: bytes, method: str = "DropCorpus") -> tuple[grpc.StatusCode, dict[str, Any]]:
    """Code of a call with these bytes, which fails, and its details by type name."""
    with raw_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        # To the wire, one answer is a stream of one.
        list(channel.unary_stream(f"/{SERVICE_NAME}/{method}")(raw, timeout=30))
    error: Any = caught.value
    details: dict[str, Any] = {}
    for packed in rpc_status.from_call(error).details:
        detail = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])()
        packed.Unpack(detail)
        details[type(detail).__name__] = detail
    return error.code(), details


class TestDropping:
    def test_it_forgets_every_document_of_this_corpus_only(self, client: Client, redis: Redis) -> None:
        for corpus in ("gone", "stays", "gone too"):
            client.score_batch(GIVEN, policy="score-only", corpus=corpus)
        client.drop_corpus("gone")
        left = redis.key_names()
        client.drop_corpus("gone too")

        assert any("gone too" in key for key in left)
        assert not any("gone}" in key for key in left)
        assert all("stays" in key or key.endswith("}:corpora") for key in redis.key_names())
        assert originals(client, "stays") == ["en", "zh"]
        assert originals(client, "gone") == [None, None]

    def test_it_may_be_repeated(self, client: Client, redis: Redis) -> None:
        client.drop_corpus("never was")
        for _ in range(2):
            client.score_batch(GIVEN, policy="score-only", corpus="again")
            client.drop_corpus("again")
            client.drop_corpus("again")
            assert redis.key_names() == []

    async def test_the_asynchronous_client_drops_too(self, indexed: LocalServer, redis: Redis) -> None:
        async with AsyncClient(indexed.address) as client:
            await client.score_batch(GIVEN, policy="score-only", corpus="asynchronous")
            assert redis.key_names() != []
            await client.drop_corpus("asynchronous")
            assert redis.key_names() == []
            with pytest.raises(RequestError, match="names no corpus"):
                await client.drop_corpus("")

    def test_what_is_being_scored_for_the_corpus_does_not_bring_it_back(
        self, indexed: LocalServer, redis: Redis
    ) -> None:
        indexed.executor.close_gate()
        with Client(indexed.address) as leaving, Client(indexed.address) as client, ThreadPoolExecutor(2) as pool:
            with pytest.raises(DeadlineExceeded):
                leaving.score_batch(GIVEN, policy="score-only", corpus="busy", timeout_s=2.0)
            assert indexed.executor.entered.get(timeout=30) == 2
            staying = pool.submit(client.score_batch, COPIES, policy="score-only", corpus="busy")
            # Another corpus has nothing to wait for.
            client.drop_corpus("idle", timeout_s=30)
            with pytest.raises(DeadlineExceeded):
                client.drop_corpus("busy", timeout_s=0.5)
            dropping = pool.submit(client.drop_corpus, "busy")
            threading.Timer(0.3, indexed.executor.open_gate).start()
            dropping.result(30)
            assert len(staying.result(30)) == 2
        assert redis.key_names() == []


class TestErrors:
    @pytest.mark.parametrize("name", ["", "x" * 257])
    def test_a_wrong_name_is_refused(self, indexed: LocalServer, client: Client, name: str) -> None:
        raw = corpus_pb2.DropCorpusRequest(corpus=name).SerializeToString()
        code, details = status_of(indexed.address, raw)

        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("REQUEST", "dqs")
        assert "RetryInfo" not in details
        with pytest.raises(RequestError):
            client.drop_corpus(name)

    def test_the_empty_field_is_named(self, indexed: LocalServer) -> None:
        _, details = status_of(indexed.address, b"")
        assert [violation.field for violation in details["BadRequest"].field_violations] == ["corpus"]

    @pytest.mark.parametrize("raw", [b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\xff"])
    def test_malformed_bytes_are_refused(self, indexed: LocalServer, raw: bytes) -> None:
        code, details = status_of(indexed.address, raw)
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST")

    def test_without_redis_a_later_call_may_succeed(self, indexed: LocalServer, client: Client, redis: Redis) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="down")
        redis.kill()
        request = corpus_pb2.DropCorpusRequest(corpus="down")
        code, details = status_of(indexed.address, request.SerializeToString())
        with pytest.raises(IndexUnavailable):
            client.drop_corpus("down")
        with Client(indexed.address) as patient:
            threading.Timer(0.5, redis.start).start()
            patient.drop_corpus("down")

        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "INDEX_UNAVAILABLE")
        assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        assert redis.key_names() == []

    def test_a_service_without_an_index_says_so(self, local: LocalServer) -> None:
        code, details = status_of(local.address, corpus_pb2.DropCorpusRequest(corpus="none").SerializeToString())
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "INDEX_UNAVAILABLE")

    def test_a_server_without_the_service_is_named(self) -> None:
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with Client(f"127.0.0.1:{port}") as client, pytest.raises(RequestError, match="UNIMPLEMENTED"):
                client.drop_corpus("any")
        finally:
            server.stop(0)


class TestMaking:
    def test_it_may_be_repeated_and_names_what_differs(self, client: Client) -> None:
        options = corpus_pb2.CorpusOptions(window_documents=7, window_seconds=3600)
        first = client.create_corpus("语料", threshold=0.8, normaliser="nfkc-lower-simplified/1", options=options)
        again = client.create_corpus("语料", threshold=0.8, normaliser="nfkc-lower-simplified/1", options=options)

        assert (first.created, again.created) == (True, False)
        assert (again.parameters.threshold, again.parameters.normaliser) == (0.8, "nfkc-lower-simplified/1")
        assert (again.options.window_documents, again.options.window_seconds) == (7, 3600)
        with pytest.raises(CorpusMismatch, match=r"threshold 0.8 \(here 0.9\)"):
            client.create_corpus("语料", threshold=0.9, normaliser="nfkc-lower-simplified/1", options=options)
        with pytest.raises(CorpusMismatch, match=r"window_documents 7 \(here none\).*configure"):
            client.create_corpus("语料", threshold=0.8, normaliser="nfkc-lower-simplified/1")

    @pytest.mark.parametrize(
        "wanted",
        [
            {"threshold": 1.5},
            {"threshold": 0.0},
            {"normaliser": "none"},
            {"options": corpus_pb2.CorpusOptions(line_slots=1 << 30)},
        ],
    )
    def test_what_no_corpus_can_have_is_refused(self, client: Client, wanted: dict[str, Any]) -> None:
        with pytest.raises(RequestError, match="No corpus can have that"):
            client.create_corpus("wrong", **wanted)
        assert client.list_corpora() == []

    def test_options_change_one_by_one(self, client: Client) -> None:
        client.create_corpus("options", options=corpus_pb2.CorpusOptions(window_documents=7, retry_seconds=5))
        changed = client.configure_corpus("options", corpus_pb2.CorpusOptions(window_documents=0, line_slots=0))

        assert (changed.window_documents, changed.retry_seconds, changed.line_slots) == (0, 5, 0)
        assert client.corpus("options").options == changed

    def test_a_corpus_is_scored_with_its_own_threshold(self, client: Client) -> None:
        client.create_corpus("strict", threshold=0.99)
        near = ENGLISH.replace("guide", "warden")
        verdicts = client.score_batch([("a", ENGLISH), ("b", near)], policy="score-only", corpus="strict")
        lax = client.score_batch([("a", ENGLISH), ("b", near)], policy="score-only", corpus="lax")

        assert [verdict.duplicate_of for verdict in verdicts] == [None, None]
        assert [verdict.duplicate_of for verdict in lax] == [None, "a"]


class TestLooking:
    def test_corpora_are_listed_by_name_and_gone_when_dropped(self, client: Client, redis: Redis) -> None:
        assert client.list_corpora() == []
        for corpus in ("b", "甲", "a"):
            client.score_batch(GIVEN, policy="score-only", corpus=corpus)
        client.drop_corpus("b")
        # A drop that was cut short has left the name, and one that was begun the name and nothing else.
        with connecting(redis) as connection:
            connection.sadd("dqs:{default}:corpora", "half")
        listed = client.list_corpora()

        assert [entry.corpus for entry in listed] == ["a", "甲"]
        assert all(entry.documents == 2 for entry in listed)
        assert all(entry.bytes > 100 for entry in listed)
        assert all(abs(entry.created_seconds - time.time()) < 60 for entry in listed)

    def test_counters_and_hit_rate(self, client: Client) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="counted")
        assert client.corpus("counted").counters.hit_rate == 0
        client.score_batch([*COPIES, *GIVEN], policy="score-only", corpus="counted")
        client.score_batch([("en", CHINESE)], policy="score-only", corpus="counted")
        there = client.corpus("counted")
        counters = there.counters

        assert (counters.asked, counters.exact, counters.retried, counters.reused) == (7, 2, 2, 1)
        assert counters.hit_rate == 2 / 4
        assert (there.documents, there.sketched, there.retries) == (2, 2, 2)

    def test_one_that_was_never_asked_has_no_hit_rate(self, client: Client) -> None:
        client.create_corpus("fresh")
        there = client.corpus("fresh")
        assert not there.counters.HasField("hit_rate")
        assert there.bytes.total == there.bytes.lsh_per_document_and_band == 0

    def test_documents_are_found(self, client: Client) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="found")
        client.score_batch(COPIES, policy="score-only", corpus="found")
        found = client.find_documents("found", ["zh copy", "never", "en", "en"])

        assert [one.id for one in found] == ["zh copy", "never", "en", "en"]
        assert [one.state for one in found] == [
            corpus_pb2.DOCUMENT_STATE_EXACT_DUPLICATE, corpus_pb2.DOCUMENT_STATE_UNKNOWN,
            corpus_pb2.DOCUMENT_STATE_KEPT, corpus_pb2.DOCUMENT_STATE_KEPT,
        ]  # fmt: skip
        assert [one.duplicate_of for one in found] == ["zh", "", "", ""]
        assert abs(found[0].seconds - time.time()) < 60
        assert found[1].seconds == 0
        many = client.find_documents("found", [f"other {i}" for i in range(1000)])
        assert len(many) == 1000
        assert {one.state for one in many} == {corpus_pb2.DOCUMENT_STATE_UNKNOWN}

    def test_what_repeats_a_deleted_document_names_nobody(self, client: Client) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="named")
        client.score_batch(COPIES, policy="score-only", corpus="named")
        client.delete_documents("named", ["en"])
        found = client.find_documents("named", ["en", "en copy", "zh copy"])
        assert [one.duplicate_of for one in found] == ["", "", "zh"]


class TestDeleting:
    def test_deleted_documents_are_named_no_more_and_leave_the_disk(self, client: Client, redis: Redis) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="pruned")
        many = [f"unknown {i}" for i in range(700)]
        answer = client.delete_documents("pruned", iter([*many, "en"]), rewrite_files=True)

        assert (answer.known, answer.file_rewrite) == (1, corpus_pb2.FILE_REWRITE_STARTED)
        assert originals(client, "pruned") == [None, "zh"]
        client.drop_corpus("pruned")
        wait_until(lambda: not is_rewriting(redis))
        assert client.drop_corpus("pruned", rewrite_files=True).file_rewrite == corpus_pb2.FILE_REWRITE_STARTED
        wait_until(lambda: not is_rewriting(redis))
        held = held_by(redis)
        assert b"en copy" not in held
        assert b"zh" not in held

    def test_what_was_sent_before_is_deleted_too(self, indexed: LocalServer) -> None:
        indexed.executor.close_gate()
        with Client(indexed.address) as client, ThreadPoolExecutor(2) as pool:
            scoring = pool.submit(client.score_batch, GIVEN, policy="score-only", corpus="busy")
            assert indexed.executor.entered.get(timeout=30) == 2
            with pytest.raises(DeadlineExceeded):
                client.delete_documents("busy", ["en", "zh"], timeout_s=0.5)
            deleting = pool.submit(client.delete_documents, "busy", ["en"])
            threading.Timer(0.3, indexed.executor.open_gate).start()
            assert deleting.result(30).known == 1
            assert len(scoring.result(30)) == 2
            assert originals(client, "busy") == [None, "zh"]

    def test_too_many_ids_in_one_call_are_refused(self, indexed: LocalServer) -> None:
        request = corpus_pb2.DeleteDocumentsRequest(corpus="any", ids=map(str, range(301)))
        code, details = status_of(indexed.address, request.SerializeToString(), "DeleteDocuments")
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in details["BadRequest"].field_violations] == ["ids"]

    def test_without_an_append_only_file_the_answer_says_so(self, client: Client, redis: Redis) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="memory")
        with connecting(redis) as connection:
            connection.config_set("appendonly", "no")
        answer = client.delete_documents("memory", ["en"], rewrite_files=True)
        assert (answer.known, answer.file_rewrite) == (1, corpus_pb2.FILE_REWRITE_NO_FILE)

    def test_files_that_are_being_rewritten_are_rewritten_again(
        self, monkeypatch: pytest.MonkeyPatch, redis: Redis
    ) -> None:
        monkeypatch.setattr(dqs.server.corpora, "EXPIRE_EVERY_S", 0.1)
        with connecting(redis) as connection:
            # Redis sleeps so many microseconds before it writes each key.
            connection.config_set("rdb-key-save-delay", 300_000)
        with LocalServer(redis_url=redis.url, **SMALL_LIMITS) as server, Client(server.address) as client:
            client.score_batch(GIVEN, policy="score-only", corpus="twice")
            first = client.delete_documents("twice", ["en"], rewrite_files=True)
            wait_until(lambda: is_rewriting(redis))
            second = client.delete_documents("twice", ["zh"], rewrite_files=True)
            with connecting(redis) as connection:
                connection.config_set("rdb-key-save-delay", 0)
            wait_until(lambda: b"zh" not in held_by(redis))
        assert first.file_rewrite == corpus_pb2.FILE_REWRITE_STARTED
        assert second.file_rewrite == corpus_pb2.FILE_REWRITE_LATER

    def test_a_server_that_refuses_to_rewrite_is_named(self, client: Client, redis: Redis) -> None:
        client.score_batch(GIVEN, policy="score-only", corpus="refused")
        with connecting(redis) as connection:
            connection.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
        answer = client.drop_corpus("refused", rewrite_files=True)
        assert answer.file_rewrite == corpus_pb2.FILE_REWRITE_REFUSED
        assert "BGREWRITEAOF" in answer.file_rewrite_message


class TestMoving:
    def fill(self, client: Client, corpus: str, documents: int) -> list[tuple[str, str]]:
        """Keeps many documents, short ones without a sketch among them."""
        given = [(f"文{i}", text_of(i)) for i in range(documents)]
        assert not [verdict for verdict in client.score(given, policy="score-only", corpus=corpus) if verdict.error]
        return given

    def test_a_copy_gives_the_same_answers(self, client: Client) -> None:
        given = self.fill(client, "from", 700)
        header, *pieces = client.export_corpus("from")
        done = client.import_corpus("to", header.header, (piece.documents for piece in pieces))

        kept = client.corpus("from").documents
        assert header.header.documents == sum(len(piece.documents.ids) for piece in pieces) == kept
        assert (done.imported, done.known, done.conflicts) == (kept, 0, 0)
        copies = [(f"{document} again", text) for document, text in given]
        answers = [
            [
                (verdict.duplicate_of, verdict.signals["exact_duplicate"])
                for verdict in client.score(copies, policy="score-only", corpus=corpus)
            ]
            for corpus in ("from", "to")
        ]
        assert answers[0] == answers[1]
        assert answers[0][0] == ("文0", 1.0)
        there = client.corpus("to")
        assert (there.documents, there.counters.imported) == (kept, kept)
        assert there.counters.hit_rate == 1.0

    def test_a_broken_import_goes_on_and_a_whole_one_does_not(self, client: Client) -> None:
        self.fill(client, "from", 700)
        header, *pieces = client.export_corpus("from")
        kept = header.header.documents

        def breaks_off() -> Iterator[corpus_pb2.StoredDocuments]:
            yield pieces[0].documents
            # Until it is there; then the caller's iteration fails.
            wait_until(lambda: client.corpus("to", measure=False).documents == len(pieces[0].documents.ids))
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            client.import_corpus("to", header.header, breaks_off())
        other = corpus_pb2.ExportHeader()
        other.CopyFrom(header.header)
        other.export_id = "another"
        with pytest.raises(CorpusMismatch, match="has documents"):
            client.import_corpus("to", other, [])
        done = client.import_corpus("to", header.header, (piece.documents for piece in pieces))
        assert (done.known, done.imported) == (len(pieces[0].documents.ids), kept - len(pieces[0].documents.ids))
        assert client.corpus("to").counters.imported == kept
        with pytest.raises(CorpusMismatch, match="has documents"):
            client.import_corpus("to", header.header, [])

    def test_a_reader_that_leaves_is_forgotten(self, indexed: LocalServer, client: Client) -> None:
        self.fill(client, "from", 700)
        before = indexed.tasks()
        pieces = client.export_corpus("from")
        assert next(pieces).WhichOneof("piece") == "header"
        pieces.close()
        wait_until(lambda: indexed.tasks() <= before)

    def test_a_corpus_dropped_meanwhile_ends_the_export(self, redis: Redis) -> None:
        with contextlib.closing(DuplicateStore(connect(redis.url))) as store:
            corpora = Corpora(store)
            keep(store, "from", 600)
            export = corpora.export("from")
            assert export.read() is not None
            corpora.drop("from")
            keep(store, "from", 1)
            with pytest.raises(CorpusNotFound, match="while it was being exported"):
                export.read()

    @pytest.mark.parametrize("spoil", ["text_hashes", "lines_seen", "has_sketch", "bands", "sketches", "ids", "header"])
    def test_a_spoilt_import_is_refused(self, client: Client, spoil: str) -> None:
        self.fill(client, "from", 20)
        header, piece = client.export_corpus("from")
        if spoil == "header":
            header.header.parameters.format += 1
            with pytest.raises(CorpusMismatch, match="format"):
                client.import_corpus("to", header.header, [piece.documents])
            return
        if spoil == "ids":
            piece.documents.ids[3] = b"\xff"
        else:
            setattr(piece.documents, spoil, getattr(piece.documents, spoil)[:-1])
        with pytest.raises(RequestError):
            client.import_corpus("to", header.header, [piece.documents])
        assert client.corpus("to").documents == 0

    def test_an_import_without_its_end_is_broken(self, indexed: LocalServer, client: Client) -> None:
        self.fill(client, "from", 20)
        header, piece = client.export_corpus("from")
        first = corpus_pb2.ImportHeader(corpus="to", exported=header.header)
        requests = [
            corpus_pb2.ImportCorpusRequest(header=first),
            corpus_pb2.ImportCorpusRequest(documents=piece.documents),
        ]
        with raw_channel(indexed.address) as channel:
            stub = CorpusServiceStub(channel)  # type: ignore[no-untyped-call]
            for rest in ([], [corpus_pb2.ImportCorpusRequest(end=corpus_pb2.ImportEnd(documents=21))]):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ImportCorpus(iter([*requests, *rest]))
                error: Any = caught.value
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert client.import_corpus("to", header.header, [piece.documents]).known == 20

    async def test_the_asynchronous_client_does_it_all(self, indexed: LocalServer) -> None:
        async with AsyncClient(indexed.address) as client:
            assert (await client.create_corpus("一")).created
            await client.score_batch(GIVEN, policy="score-only", corpus="一")
            options = await client.configure_corpus("一", corpus_pb2.CorpusOptions(window_documents=9))
            assert options.window_documents == 9
            pieces = [piece async for piece in client.export_corpus("一")]

            async def documents() -> AsyncIterator[corpus_pb2.StoredDocuments]:
                for piece in pieces[1:]:
                    yield piece.documents

            assert (await client.import_corpus("二", pieces[0].header, documents())).imported == 2
            with pytest.raises(CorpusMismatch):
                await client.import_corpus("二", pieces[0].header, documents())
            assert [entry.corpus for entry in await client.list_corpora()] == ["一", "二"]
            assert [one.id for one in await client.find_documents("二", ["en", "zh"])] == ["en", "zh"]
            assert (await client.delete_documents("二", ["en"])).known == 1
            assert (await client.corpus("二")).documents == 1
            with pytest.raises(CorpusNotFound):
                [piece async for piece in client.export_corpus("三")]

            async def fails() -> AsyncIterator[corpus_pb2.StoredDocuments]:
                yield pieces[1].documents
                raise KeyError("mine")

            with pytest.raises(KeyError, match="mine"):
                await client.import_corpus("三", pieces[0].header, fails())
            wait = await client.import_corpus("三", pieces[0].header, documents())
            assert wait.imported + wait.known == 2


class TestAgeing:
    def test_a_corpus_that_nobody_uses_forgets(self, monkeypatch: pytest.MonkeyPatch, redis: Redis) -> None:
        monkeypatch.setattr(dqs.server.corpora, "EXPIRE_EVERY_S", 0.1)
        with LocalServer(redis_url=redis.url, **SMALL_LIMITS) as server, Client(server.address) as client:
            client.create_corpus("short", options=corpus_pb2.CorpusOptions(window_seconds=1, retry_seconds=1))
            client.create_corpus("long", options=corpus_pb2.CorpusOptions(window_seconds=1000))
            for corpus in ("short", "long"):
                client.score_batch(GIVEN, policy="score-only", corpus=corpus)
                client.score_batch(COPIES, policy="score-only", corpus=corpus)
            wait_until(lambda: (there := client.corpus("short", measure=False)).documents == there.retries == 0, 30)
            short, long = client.corpus("short"), client.corpus("long")
            # Another process changes the window; nobody uses the corpus.
            with contextlib.closing(DuplicateStore(connect(redis.url))) as store:
                Corpora(store).configure("long", {"window_documents": 1})
            wait_until(lambda: client.corpus("long", measure=False).documents == 1, 30)

        assert short.counters.expired == 2
        assert (long.documents, long.retries, long.counters.expired) == (2, 2, 0)

    def test_what_has_left_the_window_is_not_found_and_not_exported(self, redis: Redis) -> None:
        with contextlib.closing(DuplicateStore(connect(redis.url))) as store:
            corpora = Corpora(store)
            corpora.create("short")
            keep(store, "short", 2)
            texts = sign(TextBatch.from_bytes([b"looked up only"]), store.parameters("short"))
            store.check_and_insert("short", ["asked"], texts, np.zeros(1, np.bool_))
            before = corpora.find("short", ["id 0", "id 1", "asked"])
            exported = [len(piece) for piece in corpora.export("short")]
            corpora.configure("short", {"window_s": 1, "retry_s": 1})
            time.sleep(2.5)
            # Nothing has removed them yet.
            assert corpora.describe("short").documents == 2
            after = corpora.find("short", ["id 0", "id 1", "asked"])
            assert [len(piece) for piece in corpora.export("short")] == []

        assert [one.state for one in before] == [State.KEPT, State.KEPT, State.NOT_KEPT]
        assert exported == [2]
        assert {one.state for one in after} == {State.UNKNOWN}


def test_tenants_never_meet(redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    tokens = [new_token(path, tenant) for tenant in ("alpha", "beta")]
    with LocalServer(redis_url=redis.url, tokens=path, **SMALL_LIMITS) as server:
        alpha, beta = (Client(server.address, token=token) for token in tokens)
        with alpha, beta:
            alpha.score_batch(GIVEN, policy="score-only", corpus="shared")
            assert beta.list_corpora() == []
            for call in (
                lambda: beta.corpus("shared"),
                lambda: beta.find_documents("shared", ["en"]),
                lambda: beta.delete_documents("shared", ["en"]),
                lambda: list(beta.export_corpus("shared")),
                lambda: beta.configure_corpus("shared", corpus_pb2.CorpusOptions(line_slots=0)),
            ):
                with pytest.raises(CorpusNotFound, match="there is no corpus shared"):
                    call()
            beta.drop_corpus("shared")
            assert alpha.corpus("shared").documents == 2


@pytest.mark.parametrize("binary", each_binary())
def test_where_memory_goes_adds_up(binary: Path, tmp_path: Path) -> None:
    with (
        EmbeddedRedis(tmp_path / "r", binary=binary) as server,
        contextlib.closing(DuplicateStore(connect(server.url))) as store,
    ):
        corpora = Corpora(store)
        keep(store, "warm", 10)
        before = store.client.info("memory")["used_memory"]
        keep(store, "measured", 3000)
        grown = store.client.info("memory")["used_memory"] - before
        there, entries = corpora.describe("measured"), corpora.list()
        assert corpora.rewrite_files() == Rewriting(FileRewrite.STARTED)
        assert wait_for_files(store.client, 30)
    memory = there.memory
    assert memory is not None
    assert there.documents == there.sketched == 3000
    # What Redis itself says it has taken up.
    assert memory.total == pytest.approx(grown, rel=0.25)
    assert entries[0].bytes == pytest.approx(memory.total, rel=0.1)
    # 8 bytes of an entry, and its share of the field around it; a record is a sketch of 128 bytes and 9 bands.
    assert 8 <= there.lsh_bytes_per_document_and_band < 20
    assert memory.record / 3000 == pytest.approx(240, rel=0.3)
    assert (memory.retries, memory.lines) == (0, 0)
    assert memory.sampled_fields == 2000


@pytest.mark.parametrize(
    "method", ["CreateCorpus", "ConfigureCorpus", "GetCorpus", "FindDocuments", "DeleteDocuments", "ExportCorpus"]
)
def test_every_call_names_a_corpus(indexed: LocalServer, method: str) -> None:
    code, details = status_of(indexed.address, b"", method)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in details["BadRequest"].field_violations] == ["corpus"]
    code, details = status_of(indexed.address, b"\xff", method)
    assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST")
    # Ids are looked for in a corpus; where there are none, there is nothing to miss.
    if method not in ("CreateCorpus", "DeleteDocuments"):
        raw = corpus_pb2.GetCorpusRequest(corpus="nobody").SerializeToString()
        code, details = status_of(indexed.address, raw, method)
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.NOT_FOUND, "CORPUS_NOT_FOUND")


def test_stub_health_and_reflection_know_the_service(indexed: LocalServer) -> None:
    with raw_channel(indexed.address) as channel:
        stub = CorpusServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.DropCorpus(corpus_pb2.DropCorpusRequest(corpus="any"))
        assert answer == corpus_pb2.DropCorpusResponse()
        health = health_pb2_grpc.HealthStub(channel)
        status = health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME)).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = list(reflection.ServerReflectionInfo(iter([asked])))
        assert SERVICE_NAME in {service.name for service in listed[0].list_services_response.service}
