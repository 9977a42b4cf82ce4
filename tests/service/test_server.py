"""The server on the wire: raw messages in, statuses and raw messages out."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dqs.errors import ConfigError
from dqs.server.codec import Limits
from dqs.server.server import ScoringServer
from dqs.server.servicer import SERVICE_NAME
from dqs.settings import load_settings
from dqs.v1 import scoring_pb2 as pb
from dqs.v1 import server_info_pb2
from dqs.v1.scoring_pb2_grpc import ScoringServiceStub
from tests.service.serving import (
    CHINESE,
    ENGLISH,
    POISON,
    LocalServer,
    ServerProcess,
    raw_channel,
    status_of,
    wait_until,
)

NO_INDEX = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)
CODEC_LIMITS = Limits.of(load_settings(max_batch_documents=300, max_document_bytes=100_000))


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[ScoringServiceStub]:
    with raw_channel(server.address) as channel:
        yield ScoringServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture
def local_stub(local: LocalServer) -> Iterator[ScoringServiceStub]:
    with raw_channel(local.address) as channel:
        yield ScoringServiceStub(channel)  # type: ignore[no-untyped-call]


def batch(*texts: bytes, options: pb.ScoreOptions = NO_INDEX) -> pb.ScoreBatchRequest:
    documents = [pb.Document(id=str(i), text=text) for i, text in enumerate(texts)]
    return pb.ScoreBatchRequest(options=options, documents=documents)


def message(sequence: int, *texts: bytes, options: pb.ScoreOptions | None = None) -> pb.ScoreStreamRequest:
    documents = [pb.Document(id=f"{sequence}-{i}", text=text) for i, text in enumerate(texts)]
    return pb.ScoreStreamRequest(sequence=sequence, options=options, documents=documents)


class TestScoreBatch:
    def test_every_document_has_one_answer_in_order(self, stub: ScoringServiceStub) -> None:
        request = batch(ENGLISH.encode(), b"caf\xe9", CHINESE.encode(), b"x" * 100_001, b"", b"\x00\x01")
        request.documents[4].id = ""

        scored = stub.ScoreBatch(request).scored

        assert [result.id for result in scored.results] == [document.id for document in request.documents]
        codes = [pb.DocumentErrorCode.Name(result.error.code) for result in scored.results]
        assert codes == [
            "DOCUMENT_ERROR_CODE_UNSPECIFIED",
            "DOCUMENT_ERROR_CODE_INVALID_UTF8",
            "DOCUMENT_ERROR_CODE_UNSPECIFIED",
            "DOCUMENT_ERROR_CODE_TOO_LARGE",
            "DOCUMENT_ERROR_CODE_INVALID_ID",
            "DOCUMENT_ERROR_CODE_UNSPECIFIED",
        ]
        for result in scored.results:
            assert (result.label == 0) == result.HasField("error")

    def test_the_matrix_has_a_row_for_each_document_and_nan_where_missing(self, stub: ScoringServiceStub) -> None:
        scored = stub.ScoreBatch(batch(ENGLISH.encode(), b"\xff", CHINESE.encode())).scored

        width = len(scored.signals)
        assert len(scored.signal_versions) == width
        assert len(scored.values) == 3 * width
        assert len(scored.missing) == 3 * width
        rows = [list(scored.values[row * width : (row + 1) * width]) for row in range(3)]
        why = [list(scored.missing[row * width : (row + 1) * width]) for row in range(3)]
        assert all(math.isnan(value) for value in rows[1])
        assert not any(why[1])
        for row in (0, 2):
            assert [math.isnan(value) for value in rows[row]] == [code != 0 for code in why[row]]
            assert rows[row][list(scored.signals).index("characters")] == len((ENGLISH, "", CHINESE)[row])

    def test_an_empty_request_has_an_empty_answer(self, stub: ScoringServiceStub) -> None:
        assert len(stub.ScoreBatch(pb.ScoreBatchRequest()).scored.results) == 0

    def test_a_repeated_call_is_not_its_own_duplicate(self, stub: ScoringServiceStub) -> None:
        request = batch(ENGLISH.encode(), options=pb.ScoreOptions(policy="score-only", corpus="repeated"))
        first, second = (stub.ScoreBatch(request).scored.results[0] for _ in range(2))
        request.documents[0].id = "another"
        third = stub.ScoreBatch(request).scored.results[0]

        assert not first.HasField("duplicate_of")
        assert first == second
        assert third.duplicate_of == "0"

    def test_an_unknown_policy_is_named(self, stub: ScoringServiceStub) -> None:
        request = batch(b"text", options=pb.ScoreOptions(policy="nobody's"))
        code, details = status_of(lambda: stub.ScoreBatch(request))

        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("POLICY", "dqs")
        assert "RetryInfo" not in details

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (batch(*[b"x"] * 301), "documents"),
            (batch(b"x", options=pb.ScoreOptions(deduplication=9)), "options.deduplication"),  # type: ignore[arg-type]
            (batch(b"x", options=pb.ScoreOptions(index_failure=9)), "options.index_failure"),  # type: ignore[arg-type]
        ],
    )
    def test_a_wrong_field_is_named(self, stub: ScoringServiceStub, request_: pb.ScoreBatchRequest, field: str) -> None:
        code, details = status_of(lambda: stub.ScoreBatch(request_))

        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details["ErrorInfo"].reason == "REQUEST"
        assert [violation.field for violation in details["BadRequest"].field_violations] == [field]

    def test_a_message_over_the_limit_leaves_the_connection_usable(self, stub: ScoringServiceStub) -> None:
        code, _ = status_of(lambda: stub.ScoreBatch(batch(b"x" * (3 << 20))))

        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(stub.ScoreBatch(batch(b"x")).scored.results) == 1

    def test_work_over_the_budget_is_refused_before_it_is_begun(
        self, local: LocalServer, local_stub: ScoringServiceStub
    ) -> None:
        local.executor.close_gate()
        text = b"word " * 18_000
        admitted = local_stub.ScoreBatch.future(batch(*[text] * 8))
        local.executor.entered.get(timeout=30)

        code, details = status_of(lambda: local_stub.ScoreBatch(batch(*[text] * 8)))
        local.executor.open_gate()

        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details["ErrorInfo"].reason == "OVERLOADED"
        assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        assert len(admitted.result(60).scored.results) == 8
        assert local.executor.documents == 8
        assert local.pending_bytes == 0

    @pytest.mark.parametrize("give_up", ["deadline", "cancel"])
    def test_what_the_caller_gave_up_while_it_waited_is_never_scored(
        self, local: LocalServer, local_stub: ScoringServiceStub, give_up: str
    ) -> None:
        local.executor.close_gate()
        running = local_stub.ScoreBatch.future(batch(b"running"))
        local.executor.entered.get(timeout=30)
        waiting = local_stub.ScoreBatch.future(batch(b"x" * 5000), timeout=0.3 if give_up == "deadline" else 60)
        wait_until(lambda: local.pending_bytes > 5000)

        if give_up == "cancel":
            waiting.cancel()
        else:
            assert waiting.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: local.pending_bytes < 5000)
        local.executor.open_gate()

        assert len(running.result(60).scored.results) == 1
        assert len(local_stub.ScoreBatch(batch(b"afterwards")).scored.results) == 1
        assert local.executor.documents == 2

    def test_a_document_that_breaks_scoring_fails_alone_and_unquoted(
        self, local: LocalServer, local_stub: ScoringServiceStub, caplog: pytest.LogCaptureFixture
    ) -> None:
        texts = [b"fine"] * 20
        texts[13] = b"secret " + POISON
        with caplog.at_level(logging.ERROR):
            scored = local_stub.ScoreBatch(batch(*texts)).scored

        broken = [i for i, result in enumerate(scored.results) if result.HasField("error")]
        assert broken == [13]
        assert scored.results[13].error.code == pb.DOCUMENT_ERROR_CODE_INTERNAL
        incident = scored.results[13].error.message.split()[-4]
        assert incident in caplog.text
        assert "secret" not in caplog.text + scored.results[13].error.message
        width = len(scored.signals)
        assert [
            math.isnan(scored.values[row * width + list(scored.signals).index("characters")]) for row in range(20)
        ] == [row == 13 for row in range(20)]


class TestScoreStream:
    def test_each_message_is_answered_once_and_acknowledged(self, stub: ScoringServiceStub) -> None:
        # Gaps are allowed: what a reopened stream sends again need not be contiguous.
        sequences = [2, 3, 7, 8, 20]
        requests = [message(number, ENGLISH.encode(), CHINESE.encode()) for number in sequences]
        requests[0].options.CopyFrom(NO_INDEX)

        responses = list(stub.ScoreStream(iter(requests)))

        assert sorted(response.sequence for response in responses) == sequences
        assert [len(response.scored.results) for response in responses] == [2] * 5
        answered: set[int] = set()
        for response in responses:
            answered.add(response.sequence)
            first_open = min(set(sequences) - answered, default=21)
            assert response.acknowledged == max((n for n in answered if n < first_open), default=0)
        assert responses[-1].acknowledged == 20

    @pytest.mark.parametrize(
        ("second", "field"),
        [
            (message(1, b"again"), "sequence"),
            (message(0, b"zero"), "sequence"),
            (message(2, b"x", options=NO_INDEX), "options"),
            (message(2, *[b"x"] * 301), "documents"),
        ],
    )
    def test_a_wrong_message_ends_the_stream_after_what_came_before_is_answered(
        self, stub: ScoringServiceStub, second: pb.ScoreStreamRequest, field: str
    ) -> None:
        call = stub.ScoreStream(iter([message(1, b"x", options=NO_INDEX), second]))

        assert next(call).sequence == 1
        code, details = status_of(lambda: next(call))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in details["BadRequest"].field_violations] == [field]

    def test_a_fast_writer_is_held_at_the_window(self, local: LocalServer, local_stub: ScoringServiceStub) -> None:
        local.executor.close_gate()
        size, count = 50_000, 200
        text = b"word " * (size // 5)
        call = local_stub.ScoreStream(
            message(number, text, options=NO_INDEX if number == 1 else None) for number in range(1, count + 1)
        )
        window = local.settings.stream_window_bytes
        wait_until(lambda: local.pending_bytes >= window)
        highest = 0
        for _ in range(50):
            highest = max(highest, local.pending_bytes)
            time.sleep(0.01)
        local.executor.open_gate()
        answered = [response.sequence for response in call]

        # One message more than the window: its size is not known before it is read.
        assert window <= highest < window + size
        assert sorted(answered) == list(range(1, count + 1))
        assert local.pending_bytes == 0

    def test_a_slow_reader_is_held_at_the_window(self, local: LocalServer) -> None:
        count = 3000
        sent = threading.Semaphore(0)

        def requests() -> Iterator[pb.ScoreStreamRequest]:
            for number in range(1, count + 1):
                yield message(number, *[b"a few words"] * 10, options=NO_INDEX if number == 1 else None)
                sent.release()

        # Without its probing of the bandwidth gRPC gives a reader that does not read 64 KiB.
        options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
        with grpc.insecure_channel(local.address, options=options) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.ScoreStream(requests())
            wait_until(lambda: local.executor.documents > 0)
            scored_before = -1
            while local.executor.documents != scored_before:
                scored_before = local.executor.documents
                time.sleep(1.0)
            assert 0 < scored_before < count * 10
            answered = sum(len(response.scored.results) for response in call)
        assert answered == count * 10

    def test_a_cancelled_stream_gives_back_what_it_held(
        self, local: LocalServer, local_stub: ScoringServiceStub
    ) -> None:
        local.executor.close_gate()
        requests: queue.SimpleQueue[pb.ScoreStreamRequest] = queue.SimpleQueue()
        call = local_stub.ScoreStream(iter(requests.get, None))
        for number in range(1, 4):
            requests.put(message(number, b"x" * 1000, options=NO_INDEX if number == 1 else None))
        wait_until(lambda: local.pending_bytes >= 3000)
        call.cancel()
        wait_until(lambda: local.pending_bytes == 0)
        local.executor.open_gate()

        assert len(local_stub.ScoreBatch(batch(b"afterwards")).scored.results) == 1

    def test_draining_answers_what_was_read_and_says_to_come_again(
        self, local: LocalServer, local_stub: ScoringServiceStub
    ) -> None:
        local.executor.close_gate()
        requests: queue.SimpleQueue[pb.ScoreStreamRequest] = queue.SimpleQueue()
        call = local_stub.ScoreStream(iter(requests.get, None))
        requests.put(message(1, b"in flight", options=NO_INDEX))
        local.executor.entered.get(timeout=30)
        stopping = threading.Thread(target=local.stop, args=(30,))
        stopping.start()
        time.sleep(0.2)
        assert stopping.is_alive()
        local.executor.open_gate()

        assert next(call).sequence == 1
        code, details = status_of(lambda: next(call))
        stopping.join(30)
        assert not stopping.is_alive()
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in details


class TestBadBytes:
    """What a client can send besides the mutations of `test_fuzz`."""

    def test_a_malformed_message_is_not_quoted(self, server: ServerProcess) -> None:
        with raw_channel(server.address) as channel:
            unary = channel.unary_unary(f"/{SERVICE_NAME}/ScoreBatch")
            raw = batch(b"secret").SerializeToString() + b"\xff secret"
            with pytest.raises(grpc.RpcError) as caught:
                unary(raw)
            error: Any = caught.value
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "secret" not in error.details()


class TestTheRest:
    def test_server_info_says_what_is_computed_and_accepted(self, stub: ScoringServiceStub) -> None:
        info = stub.GetServerInfo(server_info_pb2.GetServerInfoRequest())
        scored = stub.ScoreBatch(batch(b"text")).scored

        assert [signal.name for signal in info.signals] == list(scored.signals)
        assert [signal.version for signal in info.signals] == list(scored.signal_versions)
        assert all(signal.unit and signal.description and signal.low <= signal.high for signal in info.signals)
        assert {policy.name for policy in info.policies} >= {"default", "score-only"}
        rules = {policy.name: policy.rules for policy in info.policies}
        assert len(rules["default"]) > 0
        assert len(rules["score-only"]) == 0
        assert all(rule.operator and rule.label for rule in rules["default"])
        assert info.limits.max_message_bytes == 2 << 20
        assert info.limits.max_batch_documents == 300
        assert all(model.version and len(model.digest) == 64 for model in info.models)

    def test_health_and_reflection_know_the_service(self, server: ServerProcess) -> None:
        with raw_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", SERVICE_NAME):
                answer = health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            listed = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            names = {service.name for answer in listed for service in answer.list_services_response.service}
        assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names

    async def test_a_taken_port_is_one_sentence(self, server: ServerProcess, tmp_path: Path) -> None:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"Cannot listen on 127.0.0.1:{port}"):
            ScoringServer(load_settings(port=port, data_dir=tmp_path))

    def test_sigterm_ends_the_process_in_good_order(self, tmp_path: Path) -> None:
        with ServerProcess(port=0, data_dir=tmp_path) as process:
            assert process.terminate() == 0
