"""Dropping corpora: on the wire, through the clients, beside scoring."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from dqs import AsyncClient, Client
from dqs.client import Timeouts
from dqs.errors import DeadlineExceeded, IndexUnavailable, RequestError
from dqs.server.corpora import SERVICE_NAME
from dqs.v1 import corpus_pb2
from dqs.v1.corpus_pb2_grpc import CorpusServiceStub
from tests.service.conftest import SMALL_LIMITS
from tests.service.serving import CHINESE, ENGLISH, LocalServer, Redis, raw_channel

pytestmark = pytest.mark.xdist_group("service")

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


def status_of(address: str, raw: bytes) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """Code of a DropCorpus call with these bytes, which fails, and its details by type name."""
    with raw_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE_NAME}/DropCorpus")(raw, timeout=30)
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
        assert all("stays" in key for key in redis.key_names())
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
                leaving.score_batch(GIVEN, policy="score-only", corpus="busy", timeout_s=0.5)
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
