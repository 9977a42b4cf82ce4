"""Who comes in, who waits, who is refused; which batch leaves next; what happens without workers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from dqs.data import Document
from dqs.errors import DeadlineExceeded, Overloaded, Unavailable
from dqs.executors.inline import InlineExecutor
from dqs.observability.metrics import Metrics
from dqs.pipeline import Pipeline
from dqs.policy import load_policies
from dqs.scorers import build_scorers
from dqs.server.admission import Account, Admission
from dqs.server.batcher import CONTENDED_PARTS, Batcher
from dqs.server.codec import Limits, Options
from dqs.server.tenants import Tenant, new_token
from dqs.settings import load_settings
from dqs.v1 import scoring_pb2 as pb
from dqs.v1.scoring_pb2_grpc import ScoringServiceStub
from tests.service.serving import (
    DUPLICATE_NAMES,
    GatedExecutor,
    LocalServer,
    SlowServer,
    raw_channel,
    status_of,
    wait_until,
)

NO_INDEX = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)
MIB = 1 << 20


def batch(*texts: bytes) -> pb.ScoreBatchRequest:
    documents = [pb.Document(id=str(i), text=text) for i, text in enumerate(texts)]
    return pb.ScoreBatchRequest(options=NO_INDEX, documents=documents)


def message(sequence: int, *texts: bytes) -> pb.ScoreStreamRequest:
    documents = [pb.Document(id=f"{sequence}-{i}", text=text) for i, text in enumerate(texts)]
    return pb.ScoreStreamRequest(sequence=sequence, options=NO_INDEX if sequence == 1 else None, documents=documents)


class Caller:
    """A stub that calls as a tenant."""

    def __init__(self, channel: grpc.Channel, token: str | None = None) -> None:
        stub: Any = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def score(self, request: pb.ScoreBatchRequest, timeout: float = 60) -> pb.ScoreBatchResponse:
        response: pb.ScoreBatchResponse = self._stub.ScoreBatch(request, timeout=timeout, metadata=self._metadata)
        return response

    def begin(self, request: pb.ScoreBatchRequest, timeout: float = 60) -> Any:
        return self._stub.ScoreBatch.future(request, timeout=timeout, metadata=self._metadata)

    def stream(self, requests: Iterator[pb.ScoreStreamRequest]) -> Any:
        return self._stub.ScoreStream(requests, metadata=self._metadata)


@pytest.fixture
def caller(local: LocalServer) -> Iterator[Caller]:
    with raw_channel(local.address) as channel:
        yield Caller(channel)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """Tokens of two tenants, in a file for the server."""
    return {name: new_token(tmp_path / "tokens.toml", name) for name in ("flood", "light")}


def answers_of(call: Any) -> int:
    """Reads a stream to its end; returns how many answers came."""
    count = 0
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            count += 1
    return count


class TestBudgets:
    def test_documents_are_bounded_as_bytes_are(self) -> None:
        with LocalServer(max_pending_documents=10) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            local.executor.close_gate()
            admitted = caller.begin(batch(*[b"x"] * 8))
            local.executor.entered.get(timeout=60)

            code, details = status_of(lambda: caller.score(batch(*[b"x"] * 8)))
            fits = caller.begin(batch(b"x", b"x"))
            wait_until(lambda: local.metric("dqs_pending_docs") == 10)
            local.executor.open_gate()

            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
            assert len(admitted.result().scored.results) == 8
            assert len(fits.result().scored.results) == 2
            assert local.executor.documents == 10
            assert local.metric("dqs_failures_total", reason="overloaded") == 1
            assert local.metric("dqs_pending_docs") == 0

    def test_a_tenant_over_its_budget_is_refused_and_others_are_not(
        self, tokens: dict[str, str], tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {
            "tenant_max_pending_bytes": MIB,
            "max_pending_bytes": 4 * MIB,
            "tokens": tmp_path / "tokens.toml",
        }
        with LocalServer(**settings) as local, raw_channel(local.address) as channel:
            flood, light = Caller(channel, tokens["flood"]), Caller(channel, tokens["light"])
            local.executor.close_gate()
            held = [flood.begin(batch(b"word " * 160_000))]
            local.executor.entered.get(timeout=60)

            code, details = status_of(lambda: flood.score(batch(b"word " * 160_000)))
            held.append(light.begin(batch(b"word " * 160_000)))
            wait_until(lambda: local.pending_bytes > 1_500_000)
            local.executor.open_gate()

            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
            assert all(len(call.result().scored.results) == 1 for call in held)

    def test_a_budget_in_the_file_of_tokens_wins(self, tokens: dict[str, str], tmp_path: Path) -> None:
        path = tmp_path / "tokens.toml"
        header = '[tenants."flood"]\n'
        assert header in path.read_text()
        path.write_text(path.read_text().replace(header, f"{header}max_pending_documents = 2\nmax_streams = 1\n"))
        with LocalServer(tokens=path) as local, raw_channel(local.address) as channel:
            flood, light = Caller(channel, tokens["flood"]), Caller(channel, tokens["light"])
            local.executor.close_gate()
            held = [flood.begin(batch(b"x", b"x"))]
            local.executor.entered.get(timeout=60)

            code, _ = status_of(lambda: flood.score(batch(b"x")))
            held_stream = flood.stream(iter([message(1, b"x")]))
            wait_until(lambda: local.metric("dqs_inflight_streams") == 1)
            stream_code, _ = status_of(lambda: next(flood.stream(iter([message(1, b"x")]))))
            held.append(light.begin(batch(*[b"x"] * 5)))
            local.executor.open_gate()

            assert code == stream_code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert [len(call.result().scored.results) for call in held] == [2, 5]
            assert len(list(held_stream)) == 1

    def test_streams_that_wait_do_not_rush_into_the_room_of_one(self) -> None:
        # 24 streams offer 240 messages of 100 kB at once; without turns each would overshoot by one.
        limits = {"max_pending_bytes": MIB, "tenant_max_pending_bytes": MIB}
        with LocalServer(**limits) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            local.executor.close_gate()
            text = b"word " * 20_000
            calls = [caller.stream(iter([message(number, text) for number in range(1, 11)])) for _ in range(24)]
            wait_until(lambda: local.pending_bytes > MIB - 2 * len(text))
            answered: queue.SimpleQueue[int] = queue.SimpleQueue()
            for call in calls:
                threading.Thread(target=lambda call=call: answered.put(answers_of(call)), daemon=True).start()
            highest = 0
            local.executor.open_gate()
            done = 0
            while done < 24:
                highest = max(highest, local.pending_bytes)
                try:
                    assert answered.get(timeout=0.001) == 10
                    done += 1
                except queue.Empty:
                    pass
            # A message that takes longer than its reservation may come on top.
            assert MIB - 2 * len(text) < highest <= MIB + 4 * len(text)
            assert local.executor.documents == 240
            assert local.pending_bytes == 0

    def test_a_stream_that_waits_for_its_client_takes_no_room_from_others(self) -> None:
        limits = {"max_pending_bytes": MIB, "tenant_max_pending_bytes": MIB}
        with LocalServer(**limits) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            ends = [queue.SimpleQueue[Any]() for _ in range(64)]
            idle = [caller.stream(iter(end.get, None)) for end in ends]
            wait_until(lambda: local.metric("dqs_inflight_streams") == 64)
            # Each reserved 128 KiB for what it did not send.
            assert len(list(caller.stream(iter([message(1, b"word " * 100_000)])))) == 1
            assert len(caller.score(batch(b"word " * 100_000)).scored.results) == 1
            for end in ends:
                end.put(None)
            assert all(not list(call) for call in idle)

    def test_a_message_that_is_larger_than_the_budget_goes_alone(self) -> None:
        limits = {"max_pending_bytes": MIB, "tenant_max_pending_bytes": MIB}
        with LocalServer(**limits) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            text = b"word " * 300_000
            assert len(list(caller.stream(iter([message(1, text), message(2, text), message(3, text)])))) == 3
            assert len(caller.score(batch(text)).scored.results) == 1

    async def test_tenants_that_send_all_they_may_leave_room_for_others(self) -> None:
        limits = Limits.of(load_settings(max_pending_bytes=8 * MIB, tenant_max_pending_bytes=4 * MIB))
        admission = Admission(limits, Metrics())
        many, more, light = (admission.account(Tenant(name)) for name in ("many", "more", "light"))
        for account in (many, more):
            with contextlib.suppress(Overloaded):
                while True:
                    account.check(100_000, 10)
                    account.take(100_000, 10)
        assert many.budget.text_bytes + more.budget.text_bytes > 6 * MIB
        light.check(800_000, 10)
        with pytest.raises(Overloaded, match="of all tenants"):
            more.check(100_000, 10)

    async def test_waiting_streams_read_in_the_order_of_tenants(self) -> None:
        limits = Limits.of(load_settings(max_pending_bytes=MIB, tenant_max_pending_bytes=MIB))
        admission = Admission(limits, Metrics())
        many, few = (admission.account(Tenant(name)) for name in ("many", "few"))
        many.take(MIB, 1)
        order: list[str] = []

        async def read(account: Account) -> None:
            room = await account.reserve(MIB, 1)
            order.append(account.tenant.name)
            room.release()

        readers = [asyncio.create_task(read(many)) for _ in range(4)]
        await asyncio.sleep(0)
        readers.append(asyncio.create_task(read(few)))
        await asyncio.sleep(0)
        given_up = readers.pop(1)
        given_up.cancel()
        many.give_back(MIB, 1)
        await asyncio.wait_for(asyncio.gather(*readers), 60)
        assert order == ["many", "few", "many", "many"]
        assert admission.budget.reserved_bytes == many.budget.reserved_bytes == few.budget.reserved_bytes == 0


class TestCounts:
    def test_too_many_calls_are_refused_early_and_room_comes_back(self) -> None:
        with LocalServer(max_calls=4) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            local.executor.close_gate()
            held = [caller.begin(batch(b"x")) for _ in range(4)]
            wait_until(lambda: local.metric("dqs_inflight_calls") == 4)

            for _ in range(20):
                code, details = status_of(lambda: caller.score(batch(b"x")))
                assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert details["ErrorInfo"].reason == "OVERLOADED"
            local.executor.open_gate()

            assert all(len(call.result().scored.results) == 1 for call in held)
            assert len(caller.score(batch(b"x")).scored.results) == 1
            assert local.executor.documents == 5

    def test_thousands_of_calls_at_once_are_answered_or_refused_with_details(self) -> None:
        calls = 2000
        with LocalServer() as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            begun = [caller.begin(batch(b"x")) for _ in range(calls)]
            codes = Counter(call.code() for call in begun)

        assert codes.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes.total() == calls

    @pytest.mark.parametrize("setting", ["max_streams", "tenant_max_streams"])
    def test_too_many_streams_are_refused_early_and_room_comes_back(self, setting: str) -> None:
        with LocalServer(**{setting: 3}) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            ends = [queue.SimpleQueue[Any]() for _ in range(3)]
            held = [caller.stream(iter(end.get, None)) for end in ends]
            wait_until(lambda: local.metric("dqs_inflight_streams") == 3)

            for _ in range(20):
                code, details = status_of(lambda: next(caller.stream(iter([message(1, b"x")]))))
                assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
            for end in ends:
                end.put(message(1, b"x"))
                end.put(None)

            assert [len(list(call)) for call in held] == [1, 1, 1]
            wait_until(lambda: local.metric("dqs_inflight_streams") == 0)
            assert len(list(caller.stream(iter([message(1, b"x")])))) == 1


class TestMemory:
    @pytest.mark.parametrize("streams", [pytest.param(1, marks=pytest.mark.slow), 8])
    def test_a_fast_writer_before_slow_workers_fills_no_memory(self, tmp_path: Path, streams: int) -> None:
        window, offered = 16 * MIB, 2 << 30
        with SlowServer(tmp_path, bytes_per_s=2 * MIB, stream_window_bytes=window) as server:
            process = psutil.Process(server.pid)
            with raw_channel(server.address) as channel:
                caller = Caller(channel)
                caller.score(batch(b"x" * 1000))
                before = process.memory_info().rss
                sent = [0] * streams

                def requests(stream: int) -> Iterator[pb.ScoreStreamRequest]:
                    for number in range(1, offered // streams // (1 << 19)):
                        sent[stream] = number
                        yield message(number, *[b"word " * 800] * 128)  # 512 kB

                calls = [caller.stream(requests(stream)) for stream in range(streams)]
                highest = 0
                end_s = time.monotonic() + 8
                while time.monotonic() < end_s:
                    highest = max(highest, process.memory_info().rss - before)
                    time.sleep(0.05)
                for call in calls:
                    call.cancel()
                assert len(caller.score(batch(b"x" * 1000)).scored.results) == 1
            assert sum(sent) * (1 << 19) < offered / 2  # flow control held the writer
            assert highest < streams * window + 100 * MIB


class TestDeadlines:
    @pytest.mark.parametrize("options", [{}, {"slots": 2}])
    def test_what_nobody_waits_for_any_more_never_leaves_and_is_counted(self, options: dict[str, Any]) -> None:
        with LocalServer(**options) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            local.executor.close_gate()
            running = []
            for _ in range(local.executor.max_slots):
                running.append(caller.begin(batch(b"running")))
                local.executor.entered.get(timeout=60)
            gone = caller.begin(batch(b"gone"))
            wait_until(lambda: local.metric("dqs_pending_docs") == len(running) + 1)
            gone.cancel()
            wait_until(lambda: local.metric("dqs_failures_total", reason="cancelled") == 1)
            late = caller.begin(batch(b"late", b"late"), timeout=4)
            wait_until(lambda: local.metric("dqs_pending_docs") == len(running) + 2)
            assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            wait_until(lambda: local.metric("dqs_failures_total", reason="deadline") == 2)
            local.executor.open_gate()

            assert all(len(call.result().scored.results) == 1 for call in running)
            assert len(caller.score(batch(b"after")).scored.results) == 1
            assert local.executor.documents == len(running) + 1

    def test_a_deadline_of_a_millisecond_is_exceeded_and_the_next_call_succeeds(
        self, local: LocalServer, caller: Caller
    ) -> None:
        local.executor.close_gate()
        for _ in range(50):
            code, _ = status_of(lambda: caller.score(batch(b"hasty"), timeout=0.001))
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: local.metric("dqs_inflight_calls") == 0)
        local.executor.open_gate()
        assert len(caller.score(batch(b"patient")).scored.results) == 1
        assert local.executor.documents <= 2  # the slot was free for the first
        assert local.pending_bytes == 0


def batcher_of(executor: GatedExecutor, metrics: Metrics, **changes: Any) -> Batcher:
    policies = load_policies(None, {signal.name for signal in executor.signals} | DUPLICATE_NAMES)
    pipeline = Pipeline(executor, policies, None, 1 << 20)
    settings = {"batch_bytes": 4000, "batch_documents": 1000, "wait_s": 0.0}
    return Batcher(pipeline, metrics, **{**settings, **changes})


@pytest.fixture(scope="module")
def inner() -> InlineExecutor:
    return InlineExecutor(build_scorers([]))


def options(tenant: str = "default") -> Options:
    return Options(corpus=None, tenant=tenant)


def documents(count: int, size: int = 100) -> list[Document]:
    return [Document(str(i), b"x" * size) for i in range(count)]


class TestBatching:
    def test_one_document_on_an_idle_service_does_not_wait_for_others(self) -> None:
        with LocalServer(batch_wait_ms=20_000) as local, raw_channel(local.address) as channel:
            caller = Caller(channel)
            began_s = time.monotonic()
            for _ in range(5):
                caller.score(batch(b"alone"))
            assert time.monotonic() - began_s < 15

    def test_callers_of_single_documents_share_batches(self, local: LocalServer, caller: Caller) -> None:
        local.executor.close_gate()
        calls = [caller.begin(batch(b"one of many")) for _ in range(64)]
        wait_until(lambda: local.metric("dqs_pending_docs") == 64)
        local.executor.open_gate()
        assert all(len(call.result().scored.results) == 1 for call in calls)
        assert local.metric("dqs_batches_total") <= 3

    async def test_with_a_free_slot_beside_a_busy_one_documents_wait_for_others(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner, slots=2)
        batcher = batcher_of(executor, Metrics(), wait_s=0.5)
        executor.close_gate()
        answers = [batcher.submit(options(), documents(1))]
        await asyncio.to_thread(executor.entered.get, timeout=60)
        answers.append(batcher.submit(options(), documents(2)))
        await asyncio.sleep(0)
        answers.append(batcher.submit(options(), documents(3)))
        assert await asyncio.to_thread(executor.entered.get, timeout=60) == 5
        executor.open_gate()
        await asyncio.gather(*answers)
        batcher.close()

    async def test_tenants_are_served_in_turn_and_in_smaller_batches(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        batcher = batcher_of(executor, Metrics())
        executor.close_gate()
        order: list[str] = []
        pending = []

        def submit(tenant: str, count: int) -> None:
            answers = batcher.submit(options(tenant), documents(count))
            answers.add_done_callback(lambda _: order.append(tenant))
            pending.append(answers)

        submit("flood", 1)
        assert await asyncio.to_thread(executor.entered.get, timeout=60) == 1
        for _ in range(20):
            submit("flood", 10)  # 1000 bytes
        await asyncio.sleep(0.01)
        submit("light", 1)
        submit("light", 1)
        executor.open_gate()
        await asyncio.gather(*pending)

        sizes = [await asyncio.to_thread(executor.entered.get, timeout=60) for _ in range(executor.entered.qsize())]
        # Next after the batch under way, although 20 were there before.
        assert [order.index("light"), order[order.index("light") + 1]] == [1, "light"]
        assert max(sizes) <= 40 // CONTENDED_PARTS
        batcher.close()

    async def test_one_tenant_alone_has_full_batches(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        batcher = batcher_of(executor, Metrics())
        executor.close_gate()
        pending = [batcher.submit(options(), documents(10)) for _ in range(20)]
        executor.open_gate()
        await asyncio.gather(*pending)
        sizes = [executor.entered.get() for _ in range(executor.entered.qsize())]
        assert sizes == [40] * 5
        assert executor.waiting_bytes[0] > 0
        assert executor.waiting_bytes[-1] == 0
        batcher.close()

    async def test_tenants_share_by_text_not_by_number_of_calls(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        batcher = batcher_of(executor, Metrics())
        executor.close_gate()
        served: list[str] = []
        pending = []

        def serve(documents: list[str], _: object) -> None:
            served.extend(documents)

        for tenant, calls, count in (("many", 60, 1), ("few", 6, 10)):
            for _ in range(calls):
                answers = batcher.submit(options(tenant), documents(count))
                answers.add_done_callback(partial(serve, [tenant] * count))
                pending.append(answers)
        executor.open_gate()
        await asyncio.gather(*pending)
        # At every point both have had about the same; a batch is 10 documents.
        for at in range(20, 120, 20):
            assert abs(served[:at].count("many") - at / 2) <= 20
        batcher.close()

    async def test_what_is_past_its_deadline_in_the_queue_is_not_dispatched(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        metrics = Metrics()
        batcher = batcher_of(executor, metrics)
        executor.close_gate()
        running = batcher.submit(options(), documents(1))
        await asyncio.to_thread(executor.entered.get, timeout=60)
        late = batcher.submit(options(), documents(3), deadline_s=asyncio.get_running_loop().time() + 0.05)
        kept = batcher.submit(options(), documents(2))
        await asyncio.sleep(0.1)
        executor.open_gate()
        await asyncio.gather(running, kept)
        with pytest.raises(DeadlineExceeded):
            await late
        assert executor.documents == 3
        assert metrics.registry.get_sample_value("dqs_failures_total", {"reason": "deadline"}) == 3
        batcher.close()


class TestWorkers:
    def test_without_workers_calls_are_refused_at_once_and_served_again_with_them(
        self, local: LocalServer, caller: Caller
    ) -> None:
        local.executor.set_slots(0)
        wait_until(lambda: local.metric("dqs_executor_slots") == 0)
        for _ in range(5):
            code, details = status_of(lambda: caller.score(batch(b"x")))
            assert code == grpc.StatusCode.UNAVAILABLE
            assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        held = caller.stream(iter([message(1, b"x")]))
        wait_until(lambda: local.metric("dqs_pending_docs") == 1)
        local.executor.set_slots(1)
        assert len(list(held)) == 1
        assert len(caller.score(batch(b"x")).scored.results) == 1

    async def test_what_waits_without_workers_fails_after_a_while(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        metrics = Metrics()
        batcher = batcher_of(executor, metrics, slotless_s=0.2)
        executor.close_gate()
        running = batcher.submit(options(), documents(1))
        await asyncio.to_thread(executor.entered.get, timeout=60)
        waiting = batcher.submit(options(), documents(2))
        executor.set_slots(0)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 30)
        with pytest.raises(Unavailable):
            batcher.check()
        executor.open_gate()
        await running
        executor.set_slots(1)
        await batcher.submit(options(), documents(1))
        assert executor.documents == 2
        assert metrics.registry.get_sample_value("dqs_failures_total", {"reason": "unavailable"}) == 2
        batcher.close()

    async def test_when_the_workers_are_lost_nothing_waits(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        batcher = batcher_of(executor, Metrics(), slotless_s=600)
        executor.close_gate()
        running = batcher.submit(options(), documents(1))
        await asyncio.to_thread(executor.entered.get, timeout=60)
        waiting = batcher.submit(options(), documents(1))
        executor.set_slots(0, lost="the head has gone")
        with pytest.raises(Unavailable, match="the head has gone"):
            await asyncio.wait_for(waiting, 30)
        executor.open_gate()
        await running
        batcher.close()

    def test_a_batch_whose_worker_vanished_goes_to_another_once(self, local: LocalServer, caller: Caller) -> None:
        local.executor.vanishing = 1
        assert len(caller.score(batch(b"x", b"y")).scored.results) == 2
        assert local.executor.documents == 4
        local.executor.vanishing = 2
        code, details = status_of(lambda: caller.score(batch(b"x")))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "RetryInfo" in details
        assert len(caller.score(batch(b"x")).scored.results) == 1

    async def test_more_slots_take_more_batches_at_once(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner, slots=4)
        executor.set_slots(1)
        batcher = batcher_of(executor, Metrics())
        executor.close_gate()
        pending = [batcher.submit(options(), documents(40)) for _ in range(6)]
        assert await asyncio.to_thread(executor.entered.get, timeout=60) == 40
        await asyncio.sleep(0.1)
        assert executor.entered.empty()
        executor.set_slots(3)
        for _ in range(2):
            await asyncio.to_thread(executor.entered.get, timeout=60)
        await asyncio.sleep(0.1)
        assert executor.entered.empty()
        executor.open_gate()
        await asyncio.gather(*pending)
        batcher.close()

    async def test_closing_completes_everything(self, inner: InlineExecutor) -> None:
        executor = GatedExecutor(inner)
        batcher = batcher_of(executor, Metrics())
        executor.close_gate()
        running = batcher.submit(options(), documents(1))
        await asyncio.to_thread(executor.entered.get, timeout=60)
        waiting = [batcher.submit(options(), documents(1)) for _ in range(5)]
        executor.open_gate()
        batcher.close()
        for answers in (*waiting, batcher.submit(options(), documents(1))):
            with pytest.raises(Unavailable):
                await answers
        assert len(await running) == 1


class TestTenants:
    def test_a_flood_does_not_multiply_anothers_latency(self, tokens: dict[str, str], tmp_path: Path) -> None:
        # Workers that sleep: what is compared is waiting, not two cores shared by everything on the machine.
        with (
            SlowServer(tmp_path, bytes_per_s=2 * MIB, tokens=tmp_path / "tokens.toml") as server,
            raw_channel(server.address) as flooding,
            raw_channel(server.address) as channel,
        ):
            flood, light = Caller(flooding, tokens["flood"]), Caller(channel, tokens["light"])
            request = batch(b"word " * 8000)  # 20 ms
            light.score(request)

            def p90_s(count: int) -> float:
                taken = []
                for _ in range(count):
                    time.sleep(0.04)  # it asks for less than its half
                    began_s = time.monotonic()
                    light.score(request)
                    taken.append(time.monotonic() - began_s)
                return statistics.quantiles(taken, n=10)[-1]

            alone_s = p90_s(30)
            following = message(2, *[b"word " * 400] * 256)

            def requests() -> Iterator[pb.ScoreStreamRequest]:
                yield message(1, b"x")
                for number in range(2, 10_000):
                    following.sequence = number
                    yield following

            streams = [flood.stream(requests()) for _ in range(4)]
            drains = [threading.Thread(target=answers_of, args=(call,)) for call in streams]
            for drain in drains:
                drain.start()
            # 4 streams fill their windows: half a minute of work lies before whoever comes now.
            process = psutil.Process(server.pid)
            before = process.memory_info().rss
            wait_until(lambda: process.memory_info().rss > before + 48 * MIB)
            beside_s = p90_s(30)
            for call in streams:
                call.cancel()
            for drain in drains:
                drain.join(60)
            # A second for a machine that is busy otherwise.
            assert beside_s < 3 * alone_s + 1.0
