"""Streams that break, come back, are taken over, grow old, are read slowly, or are given up by the thousand."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from dqs.server.tenants import new_token
from dqs.v1 import scoring_pb2 as pb
from dqs.v1.scoring_pb2_grpc import ScoringServiceStub
from tests.service.conftest import SMALL_LIMITS
from tests.service.serving import CHINESE, ENGLISH, LocalServer, Redis, SlowServer, raw_channel, status_of, wait_until

NO_INDEX = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)
MIB = 1 << 20


def documents(sequence: int, *texts: bytes) -> list[pb.Document]:
    return [pb.Document(id=f"{sequence}-{i}", text=text) for i, text in enumerate(texts)]


class Connection:
    """One connection of a stream whose messages a test sends one by one."""

    def __init__(
        self,
        channel: grpc.Channel,
        stream_id: str = "",
        options: pb.ScoreOptions = NO_INDEX,
        token: str | None = None,
    ) -> None:
        self._requests: queue.SimpleQueue[pb.ScoreStreamRequest | None] = queue.SimpleQueue()
        self._first: dict[str, Any] = {"stream_id": stream_id, "options": options}
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        stub: Any = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
        self.call = stub.ScoreStream(iter(self._requests.get, None), metadata=metadata)

    def send(self, sequence: int, *texts: bytes, acknowledged: int = 0) -> None:
        request = pb.ScoreStreamRequest(
            sequence=sequence, documents=documents(sequence, *texts), acknowledged=acknowledged, **self._first
        )
        self._first = {}
        self._requests.put(request)

    def acknowledge(self, sequence: int) -> None:
        """Sends a message that only acknowledges."""
        self._requests.put(pb.ScoreStreamRequest(acknowledged=sequence, **self._first))
        self._first = {}

    def end(self) -> None:
        """Sends no more."""
        self._requests.put(None)

    def answer(self) -> pb.ScoreStreamResponse:
        response: pb.ScoreStreamResponse = next(self.call)
        return response

    def rest(self) -> list[int]:
        """Ends and gives the numbers of the answers that still come."""
        self.end()
        return [response.sequence for response in self.call]

    def break_off(self) -> None:
        """As when the network fails; the server may take a moment to see it."""
        self.call.cancel()
        self._requests.put(None)


@pytest.fixture
def channel(local: LocalServer) -> Iterator[grpc.Channel]:
    with raw_channel(local.address) as channel:
        yield channel


@pytest.fixture
def stream_id() -> str:
    return secrets.token_hex(16)


def no_streams(local: LocalServer) -> bool:
    return local.metric("dqs_inflight_streams") == 0


class TestResuming:
    def test_what_was_read_is_scored_once_and_answered_on_the_next_connection(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        local.executor.close_gate()
        first = Connection(channel, stream_id)
        for number in (1, 2, 3):
            first.send(number, b"some text", b"some more")
        wait_until(lambda: local.metric("dqs_pending_docs") == 6)
        first.break_off()
        wait_until(lambda: no_streams(local))
        assert local.metric("dqs_pending_docs") == 6  # scoring goes on

        second = Connection(channel, stream_id)
        second.send(1, b"some text", b"some more")
        local.executor.open_gate()
        wait_until(lambda: local.metric("dqs_pending_docs") == 0)
        for number in (2, 3, 4):
            second.send(number, b"some text", b"some more")
        answers = [second.answer() for _ in range(4)]

        assert sorted(answer.sequence for answer in answers) == [1, 2, 3, 4]
        assert max(answer.acknowledged for answer in answers) == 4
        for answer in answers:
            assert [result.id for result in answer.scored.results] == [f"{answer.sequence}-0", f"{answer.sequence}-1"]
            assert all(result.label for result in answer.scored.results)
        assert second.rest() == []
        assert local.executor.documents == 8
        assert (
            local.metric("dqs_docs_total", tenant="default", decision="keep")
            + local.metric("dqs_docs_total", tenant="default", decision="drop")
            + local.metric("dqs_docs_total", tenant="default", decision="review")
            == 8
        )

    def test_what_was_indexed_before_the_break_is_not_its_own_duplicate(self, redis: Redis, stream_id: str) -> None:
        options = pb.ScoreOptions(policy="score-only", corpus="resumed")
        with LocalServer(redis_url=redis.url, **SMALL_LIMITS) as local, raw_channel(local.address) as channel:
            first = Connection(channel, stream_id, options)
            first.send(1, ENGLISH.encode(), CHINESE.encode())
            before = first.answer()
            keys = redis.key_names()
            first.break_off()
            second = Connection(channel, stream_id, options)
            second.send(1, ENGLISH.encode(), CHINESE.encode())
            second.send(2, ENGLISH.encode())
            after = {answer.sequence: answer for answer in (second.answer(), second.answer())}
            second.end()

            assert after[1].scored == before.scored
            assert not any(result.HasField("duplicate_of") for result in after[1].scored.results)
            assert after[2].scored.results[0].duplicate_of == "1-0"
            # Of the copy nothing but its answer is remembered.
            assert {key for key in redis.key_names() if not key.endswith(":retries")} == set(keys)
            assert local.executor.documents == 3

    def test_answers_are_kept_until_they_are_acknowledged(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        first = Connection(channel, stream_id)
        for number in (1, 2, 3):
            first.send(number, b"text")
            assert first.answer().sequence == number
        first.send(4, b"text", acknowledged=1)
        assert first.answer().sequence == 4
        first.acknowledge(2)  # is not answered
        first.send(5, b"text")
        assert first.answer().sequence == 5
        first.break_off()
        wait_until(lambda: no_streams(local))
        assert local.executor.documents == 5

        second = Connection(channel, stream_id)
        for number in (1, 2, 3, 4, 5):
            second.send(number, b"text")
        assert sorted(second.answer().sequence for _ in range(5)) == [1, 2, 3, 4, 5]
        # Those that it had acknowledged were forgotten, and are scored as if new.
        assert local.executor.documents == 7
        assert second.rest() == []

    def test_a_client_that_never_acknowledges_is_neither_stuck_nor_held_without_bound(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        stream = Connection(channel, stream_id)
        for number in range(1, 41):
            stream.send(number, *[b"word " * 200] * 100)  # 100 kB; the window is 256 kB and 400 documents
            assert stream.answer().sequence == number
        stream.break_off()
        wait_until(lambda: no_streams(local))
        again = Connection(channel, stream_id)
        scored = local.executor.documents
        for number in (40, 41):
            again.send(number, *[b"word " * 200] * 100)
            assert again.answer().sequence == number
        assert local.executor.documents == scored + 100  # the last one was still there
        assert again.rest() == []
        third = Connection(channel, stream_id)
        third.send(1, *[b"word " * 200] * 100)
        assert third.answer().sequence == 1
        assert local.executor.documents == scored + 200  # the first one was not
        third.end()

    def test_kept_answers_give_way_to_work(self, stream_id: str) -> None:
        limits = {**SMALL_LIMITS, "max_pending_documents": 200, "tenant_max_pending_documents": 200}
        with LocalServer(**limits) as local, raw_channel(local.address) as channel:
            stream = Connection(channel, stream_id)
            stream.send(1, *[b"x"] * 150)
            stream.answer()
            other = Connection(channel)
            other.send(1, *[b"x"] * 150)
            assert other.answer().sequence == 1
            assert other.rest() == []
            stream.break_off()
            again = Connection(channel, stream_id)
            again.send(1, *[b"x"] * 150)
            assert again.answer().sequence == 1
            assert local.executor.documents == 450
            assert again.rest() == []

    def test_a_broken_stream_is_forgotten_after_a_while(self, stream_id: str) -> None:
        with LocalServer(stream_resume_s=0.3) as local, raw_channel(local.address) as channel:
            local.executor.close_gate()
            first = Connection(channel, stream_id)
            first.send(1, b"in a thread")
            local.executor.entered.get(timeout=60)
            first.send(2, b"in the queue")
            wait_until(lambda: local.metric("dqs_pending_docs") == 2)
            first.break_off()
            wait_until(lambda: local.metric("dqs_pending_docs") == 0)
            local.executor.open_gate()
            second = Connection(channel, stream_id, NO_INDEX)
            second.send(1, b"in a thread")
            assert second.answer().sequence == 1
            assert local.executor.documents == 2
            assert local.metric("dqs_failures_total", reason="cancelled") == 1
            assert second.rest() == []

    def test_a_failed_message_is_scored_when_it_comes_again(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        local.executor.vanishing = 2
        first = Connection(channel, stream_id)
        first.send(1, b"text")
        code, details = status_of(first.answer)
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in details
        second = Connection(channel, stream_id)
        second.send(1, b"text")
        assert second.answer().sequence == 1
        assert second.rest() == []

    @pytest.mark.parametrize("wrong", ["options", "sequence", "stream_id"])
    def test_what_does_not_fit_the_stream_is_refused(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str, wrong: str
    ) -> None:
        first = Connection(channel, stream_id)
        first.send(1, b"text")
        first.answer()
        first.break_off()
        if wrong == "options":
            second = Connection(
                channel, stream_id, pb.ScoreOptions(policy="score-only", deduplication=pb.DEDUPLICATION_DISABLED)
            )
            second.send(1, b"text")
        elif wrong == "sequence":
            second = Connection(channel, stream_id)
            second.send(1, b"another text")
        else:
            second = Connection(channel, "short")
            second.send(1, b"text")
        code, details = status_of(second.answer)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in details["BadRequest"].field_violations] == [wrong]
        third = Connection(channel, stream_id)
        third.send(1, b"text")
        assert third.answer().sequence == 1
        assert local.executor.documents == 1
        assert third.rest() == []

    def test_another_tenant_does_not_meet_the_stream(self, tmp_path: Path, stream_id: str) -> None:
        tokens = [new_token(tmp_path / "tokens.toml", name) for name in ("one", "two")]
        with LocalServer(tokens=tmp_path / "tokens.toml") as local, raw_channel(local.address) as channel:
            for count, token in enumerate(tokens, 1):
                stream = Connection(channel, stream_id, token=token)
                stream.send(1, b"text")
                assert stream.answer().sequence == 1
                stream.break_off()
                assert local.executor.documents == count

    def test_resuming_while_the_budget_is_full_of_the_stream_itself(self, stream_id: str) -> None:
        limits = {"max_pending_bytes": MIB, "tenant_max_pending_bytes": MIB, "stream_window_bytes": MIB}
        text = b"word " * 20_000
        with LocalServer(**limits) as local, raw_channel(local.address) as channel:
            local.executor.close_gate()
            first = Connection(channel, stream_id)
            for number in range(1, 21):
                first.send(number, text)
            wait_until(lambda: local.pending_bytes > MIB - 2 * len(text))
            first.break_off()
            wait_until(lambda: no_streams(local))
            second = Connection(channel, stream_id)
            for number in range(1, 21):
                second.send(number, text)
            local.executor.open_gate()
            assert sorted(second.answer().sequence for _ in range(20)) == list(range(1, 21))
            assert local.executor.documents == 20
            assert second.rest() == []
            assert local.pending_bytes == 0


class TestTakeOver:
    def test_a_second_connection_takes_the_stream_over(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        local.executor.close_gate()
        first = Connection(channel, stream_id)
        for number in (1, 2, 3):
            first.send(number, b"text")
        wait_until(lambda: local.metric("dqs_pending_docs") == 3)
        second = Connection(channel, stream_id)
        second.send(1, b"text")
        code, details = status_of(first.answer)
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in details
        first.end()
        for number in (2, 3):
            second.send(number, b"text")
        local.executor.open_gate()
        assert sorted(second.answer().sequence for _ in range(3)) == [1, 2, 3]
        assert second.rest() == []
        assert local.executor.documents == 3
        assert local.pending_bytes == 0

    def test_taking_over_again_and_again_loses_and_doubles_nothing(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        open_: set[int] = set(range(1, 61))
        old: list[Connection] = []
        rounds = 0
        while open_:
            rounds += 1
            stream = Connection(channel, stream_id)
            for number in sorted(open_):
                stream.send(number, b"text")
            for _ in range(min(len(open_), 7)):
                number = stream.answer().sequence
                assert number in open_
                open_.remove(number)
            old.append(stream)
        assert rounds == 9
        assert local.executor.documents == 60
        for stream in old:
            stream.break_off()
        wait_until(lambda: no_streams(local))
        assert local.pending_bytes == 0


class TestAge:
    def test_an_old_stream_ends_well_and_goes_on_under_its_name(self, stream_id: str) -> None:
        with LocalServer(stream_max_age_s=1.0) as local, raw_channel(local.address) as channel:
            answered: list[int] = []
            connections = 0
            number = 1
            while connections < 3:
                connections += 1
                stream = Connection(channel, stream_id)
                stop = threading.Event()
                began_s = time.monotonic()

                def send(stream: Connection = stream, stop: threading.Event = stop) -> None:
                    nonlocal number
                    number = max(answered, default=0) + 1
                    while not stop.is_set():
                        stream.send(number, b"text", acknowledged=max(answered, default=0))
                        number += 1
                        stop.wait(0.01)

                sender = threading.Thread(target=send)
                sender.start()
                for response in stream.call:
                    answered.append(response.sequence)
                stop.set()
                sender.join()
                stream.end()
                assert stream.call.code() == grpc.StatusCode.OK
                assert time.monotonic() - began_s > 0.8
            assert len(answered) > 3
            assert answered == list(range(1, len(answered) + 1))
            assert local.executor.documents == len(answered)


class TestSlowReaders:
    def test_others_are_served_beside_one(self, local: LocalServer) -> None:
        text = b"a few words"
        count = 1500

        def requests() -> Iterator[pb.ScoreStreamRequest]:
            for number in range(1, count + 1):
                options = NO_INDEX if number == 1 else None
                yield pb.ScoreStreamRequest(sequence=number, documents=documents(number, *[text] * 20), options=options)

        # Without its probing of the bandwidth gRPC gives a reader that does not read 64 KiB.
        channel_options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
        with (
            grpc.insecure_channel(local.address, options=channel_options) as slow_channel,
            raw_channel(local.address) as channel,
        ):
            slow: Any = ScoringServiceStub(slow_channel).ScoreStream(requests())  # type: ignore[no-untyped-call]
            wait_until(lambda: local.executor.documents > 0)
            before = -1
            while local.executor.documents != before:
                before = local.executor.documents
                time.sleep(1.0)
            assert 0 < before < count * 20
            held = local.pending_bytes
            assert held < local.settings.stream_window_bytes + 20 * 40
            other = Connection(channel)
            for number in range(1, 101):
                other.send(number, text)
                assert other.answer().sequence == number
            assert other.rest() == []
            assert local.pending_bytes == held
            assert sum(len(response.scored.results) for response in slow) == count * 20
        wait_until(lambda: local.pending_bytes == 0)


class TestStorms:
    @pytest.mark.parametrize(
        ("named", "count"),
        [
            (True, 1000),
            pytest.param(True, 5000, marks=pytest.mark.slow),
            pytest.param(False, 5000, marks=pytest.mark.slow),
        ],
    )
    def test_thousands_of_cancelled_streams_leave_nothing(self, tmp_path: Path, count: int, named: bool) -> None:
        with SlowServer(tmp_path, stream_resume_s=0.5) as server, raw_channel(server.address) as channel:
            process = psutil.Process(server.pid)

            def storm(streams: int) -> None:
                for number in range(streams):
                    stream = Connection(channel, secrets.token_hex(16) if named else "")
                    stream.send(1, *[b"word " * 100] * 4)
                    if number % 3 == 0:
                        stream.answer()
                    stream.break_off()

            def is_quiet() -> bool:
                return server.tasks() <= tasks

            tasks = server.tasks()
            storm(500)  # what a first storm needs, a second one finds there
            wait_until(is_quiet)
            before = process.memory_info().rss
            storm(count)
            wait_until(is_quiet)
            time.sleep(1.0)  # kept answers expire
            assert process.memory_info().rss < before * 1.1
            stream = Connection(channel)
            stream.send(1, b"text")
            assert stream.answer().sequence == 1
            assert stream.rest() == []

    def test_streams_cancelled_while_they_wait_are_dropped(self, local: LocalServer, channel: grpc.Channel) -> None:
        local.executor.close_gate()
        running = Connection(channel)
        running.send(1, b"running")
        local.executor.entered.get(timeout=60)
        streams = [Connection(channel) for _ in range(200)]
        for stream in streams:
            stream.send(1, b"text")
        wait_until(lambda: local.metric("dqs_pending_docs") == 201)
        for stream in streams:
            stream.break_off()
        wait_until(lambda: local.metric("dqs_pending_docs") == 1)
        local.executor.open_gate()
        assert running.answer().sequence == 1
        assert running.rest() == []
        assert local.executor.documents == 1
        assert local.metric("dqs_failures_total", reason="cancelled") == 200


class TestDraining:
    def test_a_named_stream_is_answered_and_told_to_come_again(
        self, local: LocalServer, channel: grpc.Channel, stream_id: str
    ) -> None:
        local.executor.close_gate()
        stream = Connection(channel, stream_id)
        stream.send(1, b"in flight")
        local.executor.entered.get(timeout=60)
        stopping = threading.Thread(target=local.stop, args=(60,))
        stopping.start()
        time.sleep(0.2)
        local.executor.open_gate()
        assert stream.answer().sequence == 1
        code, details = status_of(stream.answer)
        stopping.join(60)
        assert not stopping.is_alive()
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in details
        stream.end()
