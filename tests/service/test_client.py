"""The clients against real servers: kinds of input, order, memory, faults, typed errors."""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dqs
from dqs import AsyncClient, Client, Document, Label, Missing, Verdict
from dqs.client import DocumentLike, Timeouts, Window
from dqs.errors import (
    ConfigError,
    DeadlineExceeded,
    IndexUnavailable,
    Overloaded,
    PolicyError,
    RequestError,
    Unavailable,
)
from tests.service.proxy import Proxy
from tests.service.serving import CHINESE, ENGLISH, POISON, ROOT, LocalServer, ServerProcess

SMALL_WINDOW = Window(documents=64, text_bytes=64 << 10, message_documents=8, message_bytes=16 << 10)
BRIEF = Timeouts(connect_s=0.3, answer_s=30, retry_s=0.3)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture
def local_client(local: LocalServer) -> Iterator[Client]:
    with Client(local.address, window=SMALL_WINDOW) as client:
        yield client


def documents(count: int, prefix: str = "d") -> list[Document]:
    """Texts in both languages, each unlike the others."""
    texts = (ENGLISH, CHINESE)
    return [Document(f"{prefix}{i}", f"{texts[i % 2]} {i} {i * i}.".encode()) for i in range(count)]


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "the condition never came true"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class TestInput:
    def test_texts_pairs_mappings_and_documents(self, client: Client) -> None:
        given: list[DocumentLike] = [
            ENGLISH,
            ("pair", CHINESE),
            ("bytes", CHINESE.encode()),
            {"text": ENGLISH, "id": "mapping", "language": "en", "other": "ignored"},
            {"text": CHINESE},
            Document("document", ENGLISH.encode(), language="en"),
            "lone surrogate \udc80",
            "",
        ]
        verdicts = list(client.score(given, corpus=None))

        ids = [verdict.id for verdict in verdicts]
        assert ids[1:4] == ["pair", "bytes", "mapping"]
        assert ids[5] == "document"
        assert len(set(ids)) == len(given)
        assert [verdict.language for verdict in verdicts[:6]] == ["en", "zh", "zh", "en", "zh", "en"]
        assert [verdict.error[0] if verdict.error else None for verdict in verdicts] == [None] * 6 + [
            "INVALID_UTF8",
            None,
        ]

    def test_a_mapping_without_text_is_refused(self, client: Client) -> None:
        with pytest.raises(RequestError, match="no `text`"):
            list(client.score([{"id": "x"}]))

    def test_the_language_of_the_call_is_for_documents_without_one(self, client: Client) -> None:
        given: list[DocumentLike] = [("a", CHINESE), {"id": "b", "text": CHINESE, "language": "zh"}]
        assert [v.language for v in client.score(given, corpus=None, language="en")] == ["en", "zh"]

    def test_nothing_in_nothing_out(self, client: Client) -> None:
        assert list(client.score([])) == []
        assert client.score_batch([]) == []

    def test_what_is_too_long_to_send_is_answered_in_its_place(self, client: Client) -> None:
        given = [
            Document("first", ENGLISH.encode()),
            Document("over the message", b"x" * (3 << 20)),
            Document("middle", CHINESE.encode()),
            Document("over the document", b"x" * 100_001),
        ]
        verdicts = list(client.score(given, corpus=None))

        assert [verdict.id for verdict in verdicts] == [document.id for document in given]
        assert [verdict.error[0] if verdict.error else None for verdict in verdicts] == [None, "TOO_LARGE"] * 2
        assert verdicts[2].signals == next(client.score([given[2]], corpus=None)).signals

    def test_an_error_of_the_input_reaches_the_caller(self, client: Client) -> None:
        def broken() -> Iterator[str]:
            yield ENGLISH
            raise OSError("the disk has gone")

        with pytest.raises(OSError, match="the disk has gone"):
            list(client.score(broken(), corpus=None))


class TestVerdicts:
    def test_they_are_those_of_the_pipeline(self, local: LocalServer, local_client: Client) -> None:
        given = [*documents(40), Document("bad", b"\xff"), Document("", b"x"), Document("short", b"x")]
        results = local.pipeline.run(given, corpus=None)
        expected = [results.verdict(i) for i in range(len(given))]

        # An error says all there is to say; the wire carries no more of the document.
        assert list(local_client.score(given, corpus=None)) == expected
        assert local_client.score_batch(given, corpus=None) == expected

    def test_missing_signals_are_none_and_say_why(self, local_client: Client) -> None:
        verdict = next(local_client.score([ENGLISH], corpus=None))

        assert verdict.signals["perplexity"] is None
        assert verdict.missing["perplexity"] == Missing.NO_MODEL
        assert verdict.missing["exact_duplicate"] == Missing.NOT_ASKED
        assert verdict.signals["characters"] == len(ENGLISH)
        assert {name for name, value in verdict.signals.items() if value is None} == set(verdict.missing)
        with pytest.raises(KeyError):
            verdict.signals["no such signal"]

    def test_the_span_of_the_most_toxic_window_comes_along(self, client: Client) -> None:
        for text in (ENGLISH, CHINESE):
            verdict = next(client.score([text], corpus=None))
            assert verdict.toxicity_span is not None
            start, end = verdict.toxicity_span
            assert 0 <= start < end <= len(text)
            assert 0 <= (verdict.signals["toxicity"] or 0) <= 1
            assert "toxicity" not in verdict.missing

    def test_they_can_be_pickled(self, client: Client) -> None:
        verdict = next(client.score([ENGLISH], corpus=None))
        assert pickle.loads(pickle.dumps(verdict)) == verdict

    def test_a_duplicate_names_the_first(self, client: Client) -> None:
        given = [("one", ENGLISH), ("two", CHINESE), ("three", ENGLISH), ("four", CHINESE)]
        verdicts = list(client.score(given, policy="score-only", corpus="names the first"))

        assert [verdict.duplicate_of for verdict in verdicts] == [None, None, "one", "two"]
        assert [verdict.signals["exact_duplicate"] for verdict in verdicts] == [0, 0, 1, 1]


class TestStreaming:
    def test_answers_keep_the_order_of_the_input(self, client: Client) -> None:
        given = documents(700)
        ordered = [verdict.id for verdict in client.score(iter(given), corpus=None)]
        unordered = [verdict.id for verdict in client.score(iter(given), corpus=None, ordered=False)]

        assert ordered == [document.id for document in given]
        assert sorted(unordered) == sorted(ordered)

    def test_an_endless_input_is_read_no_further_ahead_than_the_window(
        self, local: LocalServer, local_client: Client
    ) -> None:
        read = itertools.count()
        endless = (Document(f"d{next(read)}", b"some words of text") for _ in itertools.repeat(None))
        verdicts = local_client.score(endless, corpus=None)

        for taken in range(1, 1001):
            next(verdicts)
            ahead = next(read) - (taken - 1) * 2
            assert ahead <= SMALL_WINDOW.documents + SMALL_WINDOW.message_documents + taken
        verdicts.close()  # type: ignore[attr-defined]
        wait_until(lambda: local.pending_bytes == 0)

    def test_a_caller_who_leaves_cancels_the_call(self, local: LocalServer, local_client: Client) -> None:
        verdicts = local_client.score(documents(1000), corpus=None)
        next(verdicts)
        local.executor.close_gate()
        verdicts.close()  # type: ignore[attr-defined]
        wait_until(lambda: local.pending_bytes == 0)

    def test_slow_input_is_answered_before_a_message_is_full(self, local_client: Client) -> None:
        gone_on = threading.Event()

        def trickle() -> Iterator[str]:
            for _ in range(3):
                yield ENGLISH
                time.sleep(0.3)
            assert gone_on.wait(30), "no answer came before the input ended"

        for _ in local_client.score(itertools.chain(trickle(), trickle()), corpus=None):
            gone_on.set()
        assert gone_on.is_set()

    def test_two_calls_of_one_client_do_not_mix(self, client: Client) -> None:
        answers: dict[str, list[str]] = {}

        def score(prefix: str) -> None:
            answers[prefix] = [verdict.id for verdict in client.score(documents(300, prefix), corpus=None)]

        threads = [threading.Thread(target=score, args=(prefix,)) for prefix in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == {prefix: [document.id for document in documents(300, prefix)] for prefix in "ab"}


class TestFaults:
    def test_a_killed_server_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        given = documents(3000)
        with ServerProcess(port=free_port(), data_dir=tmp_path, batch_bytes=64 << 10) as process:
            thread = threading.Thread(target=process.restart)
            verdicts: list[Verdict] = []
            with Client(process.address, window=SMALL_WINDOW) as client:
                for verdict in client.score(given, policy="score-only", corpus="killed"):
                    verdicts.append(verdict)
                    if len(verdicts) == 500:
                        thread.start()
            thread.join(60)

        assert [verdict.id for verdict in verdicts] == [document.id for document in given]
        assert all(verdict.error is None for verdict in verdicts)
        # What was scored twice is not a duplicate of itself.
        assert [verdict.id for verdict in verdicts if verdict.signals["exact_duplicate"] != 0] == []

    def test_a_draining_server_hands_its_streams_over(self, tmp_path: Path) -> None:
        given = documents(2000)
        port = free_port()
        with (
            ServerProcess(port=port, data_dir=tmp_path) as process,
            Client(process.address, window=SMALL_WINDOW) as client,
        ):
            statuses: list[int] = []

            def roll() -> None:
                statuses.append(process.terminate())
                process.start()

            thread = threading.Thread(target=roll)
            ids: list[str] = []
            for verdict in client.score(given, corpus=None):
                ids.append(verdict.id)
                if len(ids) == 300:
                    thread.start()
            thread.join(60)

        assert statuses == [0]
        assert ids == [document.id for document in given]

    def test_nobody_there_is_said_soon(self) -> None:
        target = f"127.0.0.1:{free_port()}"
        with Client(target, timeouts=BRIEF) as client:
            with pytest.raises(Unavailable, match=target):
                list(client.score([ENGLISH]))
            with pytest.raises(Unavailable, match=target):
                client.score_batch([ENGLISH])

    def test_patience_ends(self, local: LocalServer) -> None:
        local.executor.close_gate()
        with Client(local.address, timeouts=BRIEF) as client:
            verdicts = client.score([ENGLISH], corpus=None)
            stop = threading.Thread(target=local.stop, args=(0,))
            threading.Timer(0.3, stop.start).start()
            with pytest.raises(Unavailable):
                next(verdicts)
            local.executor.open_gate()
            stop.join(30)

    def test_a_client_that_is_closed_ends_its_calls(self, local: LocalServer) -> None:
        local.executor.close_gate()
        client = Client(local.address)
        with ThreadPoolExecutor(2) as threads:
            calls = [
                threads.submit(lambda: list(client.score([ENGLISH], corpus=None))),
                threads.submit(lambda: client.score_batch([ENGLISH], corpus=None)),
            ]
            wait_until(lambda: local.pending_bytes >= 2 * len(ENGLISH))
            client.close()
            for call in calls:
                with pytest.raises(Unavailable, match="closed"):
                    call.result(60)

    def test_no_answer_in_time(self, local: LocalServer) -> None:
        local.executor.close_gate()
        with Client(local.address, timeouts=replace(BRIEF, answer_s=0.3)) as client:
            with pytest.raises(DeadlineExceeded):
                list(client.score([ENGLISH], corpus=None))
            with pytest.raises(DeadlineExceeded):
                client.score_batch([ENGLISH], corpus=None)
        wait_until(lambda: local.pending_bytes == 0)

    def test_typed_errors(self, client: Client, local_client: Client) -> None:
        with pytest.raises(PolicyError, match="no policy"):
            list(client.score([ENGLISH], policy="nobody's"))
        with pytest.raises(PolicyError):
            client.score_batch([ENGLISH], policy="nobody's")
        with pytest.raises(RequestError, match="301 documents"):
            client.score_batch(["x"] * 301)
        with pytest.raises(RequestError, match="RESOURCE_EXHAUSTED"):
            client.score_batch(["x" * (3 << 20)])

    def test_what_may_succeed_later_is_tried_again(self, local: LocalServer) -> None:
        local.executor.close_gate()
        text = "word " * 18_000
        with Client(local.address, timeouts=BRIEF) as client:
            first = threading.Thread(target=client.score_batch, args=([text] * 8,), kwargs={"corpus": None})
            first.start()
            wait_until(lambda: local.pending_bytes > 0)
            with pytest.raises(Overloaded):
                client.score_batch([text] * 8, corpus=None)
            threading.Timer(0.5, local.executor.open_gate).start()
            with Client(local.address) as patient:
                assert len(patient.score_batch([text] * 8, corpus=None)) == 8
            first.join(30)

    def test_without_an_index_only_calls_without_duplication_are_served(self, local: LocalServer) -> None:
        with Client(local.address, timeouts=BRIEF) as client, pytest.raises(IndexUnavailable):
            list(client.score([ENGLISH]))

    def test_a_document_that_breaks_scoring_is_a_verdict_with_an_error(self, local_client: Client) -> None:
        verdicts = list(local_client.score([ENGLISH, ("poison", POISON), CHINESE], corpus=None))

        assert [verdict.error[0] if verdict.error else None for verdict in verdicts] == [None, "INTERNAL", None]
        assert verdicts[1].label == Label.UNSPECIFIED


class TestAsync:
    async def test_the_same_verdicts_as_the_other_client(self, server: ServerProcess, client: Client) -> None:
        given = documents(300)

        async def trickle() -> AsyncIterator[Document]:
            for document in given:
                yield document

        expected = list(client.score(given, corpus=None))
        async with AsyncClient(server.address, window=SMALL_WINDOW) as asynchronous:
            assert [v async for v in asynchronous.score(given, corpus=None)] == expected
            assert [v async for v in asynchronous.score(trickle(), corpus=None)] == expected
            unordered = [v.id async for v in asynchronous.score(given, corpus=None, ordered=False)]
            assert sorted(unordered) == sorted(v.id for v in expected)
            assert await asynchronous.score_batch(given, corpus=None) == expected
            assert (await asynchronous.info()) == client.info()

    async def test_a_source_that_waits_for_the_verdict_gets_it(self, server: ServerProcess) -> None:
        """One document on its way at a time, as where somebody asks and is answered."""
        asked: asyncio.Queue[str | None] = asyncio.Queue()

        async def questions() -> AsyncIterator[str]:
            while (question := await asked.get()) is not None:
                yield question

        answered = 0
        async with AsyncClient(server.address) as client, asyncio.timeout(60):
            asked.put_nowait(ENGLISH)
            async for verdict in client.score(questions(), corpus=None):
                assert verdict.error is None
                answered += 1
                asked.put_nowait(ENGLISH if answered < 20 else None)
        assert answered == 20

    async def test_the_source_goes_on_while_a_verdict_is_used(self, server: ServerProcess) -> None:
        gone_on = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            yield ENGLISH
            yield CHINESE
            gone_on.set()
            yield ENGLISH

        async with AsyncClient(server.address, window=replace(SMALL_WINDOW, message_documents=1)) as client:
            verdicts = client.score(source(), corpus=None)
            await anext(verdicts)
            await asyncio.wait_for(gone_on.wait(), 60)
            assert len([verdict async for verdict in verdicts]) == 2

    async def test_an_asynchronous_input_is_read_no_further_ahead_than_the_window(self, local: LocalServer) -> None:
        read = 0

        async def endless() -> AsyncIterator[str]:
            nonlocal read
            while True:
                read += 1
                yield "some words of text"

        async with AsyncClient(local.address, window=SMALL_WINDOW) as client:
            taken = 0
            verdicts = client.score(endless(), corpus=None)
            async for _ in verdicts:
                taken += 1
                assert read - taken <= SMALL_WINDOW.documents + SMALL_WINDOW.message_documents
                if taken == 500:
                    break
            await verdicts.aclose()  # type: ignore[attr-defined]

    async def test_the_end_of_the_call_ends_the_source(self, local: LocalServer) -> None:
        ends: list[str] = []

        async def source() -> AsyncIterator[str]:
            try:
                yield ENGLISH
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ends.append("source")

        tasks = asyncio.all_tasks()
        async with AsyncClient(local.address) as client:
            verdicts = client.score(source(), corpus=None)
            await anext(verdicts)
            await verdicts.aclose()  # type: ignore[attr-defined]
            assert ends == ["source"]
            assert asyncio.all_tasks() <= tasks

            async def take() -> None:
                async for _ in client.score(source(), corpus=None):
                    ends.append("verdict")

            taking = asyncio.create_task(take())
            while "verdict" not in ends:
                await asyncio.sleep(0.01)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            assert ends == ["source", "verdict", "source"]

    async def test_an_error_of_the_input_reaches_the_caller(self, server: ServerProcess) -> None:
        async def broken() -> AsyncIterator[str]:
            yield ENGLISH
            await asyncio.sleep(0)
            raise OSError("the disk has gone")

        async with AsyncClient(server.address) as client:
            with pytest.raises(OSError, match="the disk has gone"):
                [verdict async for verdict in client.score(broken(), corpus=None)]
            with pytest.raises(RequestError, match="no `text`"):
                [verdict async for verdict in client.score([{"id": "x"}], corpus=None)]

    async def test_a_silent_source_is_no_silent_server(self, local: LocalServer) -> None:
        """Neither is the time of an answer counted while nothing is owed, nor a lost server missed."""
        asked: asyncio.Queue[str | None] = asyncio.Queue()

        async def questions() -> AsyncIterator[str]:
            while (question := await asked.get()) is not None:
                yield question

        with Proxy(local.address) as proxy:
            timeouts = replace(BRIEF, connect_s=30, answer_s=2.0)
            async with AsyncClient(proxy.address, timeouts=timeouts) as client:
                await client.info()
                verdicts = client.score(questions(), corpus=None)
                for _ in range(2):
                    asked.put_nowait(ENGLISH)
                    await anext(verdicts)
                    proxy.cut()
                    following = asyncio.ensure_future(anext(verdicts))
                    await asyncio.sleep(timeouts.answer_s + 0.5)
                    assert not following.done()
                    asked.put_nowait(ENGLISH)
                    await following
                asked.put_nowait(ENGLISH)
                await anext(verdicts)
                local.executor.close_gate()
                asked.put_nowait(ENGLISH)
                with pytest.raises(DeadlineExceeded):
                    await anext(verdicts)
                local.executor.open_gate()

    async def test_a_client_that_is_closed_ends_its_calls(self, local: LocalServer) -> None:
        local.executor.close_gate()
        client = AsyncClient(local.address)
        calls = [
            asyncio.ensure_future(anext(client.score([ENGLISH], corpus=None))),
            asyncio.ensure_future(client.score_batch([ENGLISH], corpus=None)),
        ]
        while local.pending_bytes < 2 * len(ENGLISH):
            await asyncio.sleep(0.01)
        await client.close()
        for call in calls:
            with pytest.raises(Unavailable, match="closed"):
                await call

    async def test_typed_errors(self, server: ServerProcess) -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(PolicyError):
                [v async for v in client.score([ENGLISH], policy="nobody's")]
            with pytest.raises(PolicyError):
                await client.score_batch([ENGLISH], policy="nobody's")
        async with AsyncClient(f"127.0.0.1:{free_port()}", timeouts=BRIEF) as client:
            with pytest.raises(Unavailable):
                await client.info()

    async def test_a_caller_who_leaves_cancels_the_call(self, local: LocalServer) -> None:
        async with AsyncClient(local.address, window=SMALL_WINDOW) as client:
            verdicts = client.score(documents(1000), corpus=None)
            await anext(verdicts)
            local.executor.close_gate()
            await verdicts.aclose()  # type: ignore[attr-defined]
            wait_until(lambda: local.pending_bytes == 0)

    async def test_a_killed_server_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        given = documents(1000)
        with ServerProcess(port=free_port(), data_dir=tmp_path) as process:
            thread = threading.Thread(target=process.restart)
            ids: list[str] = []
            async with AsyncClient(process.address, window=SMALL_WINDOW) as client:
                async for verdict in client.score(given, corpus=None):
                    ids.append(verdict.id)
                    if len(ids) == 100:
                        thread.start()
            thread.join(60)
        assert ids == [document.id for document in given]


class TestImport:
    """`pip install dqs` is the client: grpcio and protobuf, nothing else."""

    @staticmethod
    def modules_after(code: str) -> set[str]:
        script = f"import sys; {code}; print(*sorted(sys.modules))"
        run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
        return set(run.stdout.split())

    def test_the_package_alone_loads_the_nouns_only(self) -> None:
        loaded = self.modules_after("import dqs; dqs.Document")
        assert {name for name in loaded if name.split(".")[0] == "dqs"} == {"dqs", "dqs.data"}
        assert not loaded & {"grpc", "google.protobuf", "numpy", "pydantic"}

    def test_the_client_loads_grpc_and_protobuf_only(self) -> None:
        loaded = self.modules_after("from dqs import AsyncClient, Client")
        # grpc itself looks for the last four and loads those that are there.
        expected = {"dqs", "grpc", "google", "typing_extensions", "cython_runtime", "grpc_health", "grpc_reflection",
                    "grpc_status", "grpc_tools"}  # fmt: skip
        roots = {name.split(".")[0] for name in loaded if not name.startswith("_")} - sys.stdlib_module_names
        assert roots - {"sitecustomize", "usercustomize"} <= expected
        assert not any(name.startswith("google.rpc") for name in loaded)

    def test_every_public_name_is_there(self) -> None:
        assert dqs.__all__ == sorted(dqs.__all__)
        assert all(hasattr(dqs, name) for name in dqs.__all__)
        with pytest.raises(AttributeError):
            _ = dqs.nothing

    @pytest.mark.slow
    @pytest.mark.parametrize("major", [5, 6, 7])
    def test_it_runs_with_every_protobuf(self, server: ServerProcess, major: int) -> None:
        python = ROOT / ".cache" / f"protobuf-{major}" / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
            command = [str(python), "-m", "pip", "install", "-q", "grpcio", f"protobuf=={major}.*"]
            subprocess.run(command, check=True, timeout=280)
        code = (
            "import sys, google.protobuf, dqs; assert google.protobuf.__version__.startswith(sys.argv[2]);"
            "client = dqs.Client(sys.argv[1]); client.__enter__();"
            "given = ['An English text.', '一段中文。', ('broken', b'\\xff')];"
            "verdicts = list(client.score(given, corpus=None)); assert verdicts[0].signals['characters'] == 16;"
            "assert len(client.score_batch(given, corpus=None)) == 3; client.info();"
            "print(*(verdict.language for verdict in verdicts), verdicts[2].error[0])\n"
            "try: list(client.score(given, policy='nobody'))\n"
            "except dqs.errors.PolicyError: print('typed')"
        )
        run = subprocess.run(
            [python, "-c", "import dqs.errors\n" + code, server.address, f"{major}."],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == ["en", "zh", "und", "INVALID_UTF8", "typed"]


class TestWhatIsNoDocument:
    @pytest.mark.parametrize(
        "document",
        [b"bytes", None, 7, ("id", "text", "more"), Document(1, b"x"), Document("\udc80", b"x"), ("id", 7)],  # type: ignore[arg-type]
        ids=["bytes", "none", "number", "triple", "numbered", "surrogate", "numeric-text"],
    )
    def test_it_is_refused_in_a_sentence(self, server: ServerProcess, document: Any) -> None:
        with Client(server.address) as client:
            with pytest.raises(RequestError, match="document"):
                client.score_batch([document], corpus=None)
            with pytest.raises(RequestError, match="document"):
                list(client.score([document], corpus=None))

    def test_a_corpus_has_a_name(self, server: ServerProcess) -> None:
        with Client(server.address) as client, pytest.raises(RequestError, match="name"):
            client.score_batch(["A text."], corpus="")


class TestWrongArguments:
    def test_one_document_where_several_are_asked_for_is_refused(self, server: ServerProcess) -> None:
        with Client(server.address) as client:
            for one in ("hello", b"hello", {"text": "hello"}, Document("a", b"hello")):
                with pytest.raises(RequestError, match="put it into a list"):
                    list(client.score(one))  # type: ignore[arg-type]
                with pytest.raises(RequestError, match="put it into a list"):
                    client.score_batch(one)  # type: ignore[arg-type]

    async def test_the_asynchronous_client_refuses_it_too(self, server: ServerProcess) -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(RequestError, match="put it into a list"):
                _ = [verdict async for verdict in client.score("hello")]
            with pytest.raises(RequestError, match="put it into a list"):
                await client.score_batch("hello")

    def test_a_deadline_that_is_no_time_is_refused_and_a_closed_client_says_so(self, server: ServerProcess) -> None:
        client = Client(server.address)
        for timeout_s in (math.inf, math.nan, -1.0, 1e12):
            with pytest.raises(ConfigError, match="timeout_s"):
                client.score_batch(["x"], timeout_s=timeout_s)
        client.close()
        with pytest.raises(Unavailable, match="The client is closed"):
            client.score_batch(["x"])
        with pytest.raises(Unavailable, match="The client is closed"):
            list(client.score(["x"]))
