"""The clients among several servers, over connections that break, with TLS and tokens; both clients alike."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from dqs import AsyncClient, Client, Document, Verdict
from dqs.client import Timeouts, Tls, Window
from dqs.client._channels import Rota, is_loopback, parse_targets
from dqs.client._exchange import Exchange, Receipts
from dqs.client._options import score_options
from dqs.errors import ConfigError, DqsError, Overloaded, PolicyError, Unauthenticated, Unavailable
from dqs.server.tenants import new_token
from dqs.v1 import scoring_pb2, server_info_pb2
from tests.service.certificates import Authority, key_pem
from tests.service.proxy import Proxy
from tests.service.serving import CHINESE, ENGLISH, ROOT, LocalServer, Redis, ServerProcess, SlowServer, wait_until

SMALL_WINDOW = Window(documents=64, text_bytes=64 << 10, message_documents=8, message_bytes=16 << 10)
BRIEF = Timeouts(connect_s=0.3, answer_s=60, retry_s=0.3)
KINDS = ("sync", "async")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two clients."""
    return str(request.param)


def documents(count: int, prefix: str = "d") -> list[Document]:
    texts = (ENGLISH, CHINESE)
    return [Document(f"{prefix}{i}", f"{texts[i % 2]} {i} {i * i}.".encode()) for i in range(count)]


def score(
    kind: str,
    target: str | list[str],
    given: Iterable[Document],
    *,
    each: Callable[[int], object] = lambda _: None,
    stop_after: int | None = None,
    corpus: str | None = None,
    policy: str = "score-only",
    ordered: bool = True,
    **options: Any,
) -> list[Verdict]:
    """Scores with one of the clients.

    Args:
        kind: of `KINDS`.
        target: of the client.
        given: documents.
        each: called after each verdict with the number of verdicts so far.
        stop_after: the caller leaves after so many verdicts.
        corpus: as for the client.
        policy: as for the client.
        ordered: as for the client.
        **options: of the client.
    """
    options = {"window": SMALL_WINDOW, **options}
    verdicts: list[Verdict] = []

    async def take_all() -> None:
        async with AsyncClient(target, **options) as client:
            answers = client.score(given, corpus=corpus, policy=policy, ordered=ordered)
            async with contextlib.aclosing(answers):  # type: ignore[type-var]
                async for verdict in answers:
                    verdicts.append(verdict)
                    # What a test waits for must not stop the loop that brings it about.
                    await asyncio.to_thread(each, len(verdicts))
                    if len(verdicts) == stop_after:
                        break

    if kind == "async":
        asyncio.run(take_all())
        return verdicts
    with Client(target, **options) as client:
        for verdict in client.score(given, corpus=corpus, policy=policy, ordered=ordered):
            verdicts.append(verdict)
            each(len(verdicts))
            if len(verdicts) == stop_after:
                break
    return verdicts


def score_batch(kind: str, target: str | list[str], given: Iterable[Document], **options: Any) -> list[Verdict]:
    """Scores in one call with one of the clients."""

    async def call() -> list[Verdict]:
        async with AsyncClient(target, **options) as client:
            return await client.score_batch(given, corpus=None)

    if kind == "async":
        return asyncio.run(call())
    with Client(target, **options) as client:
        return client.score_batch(given, corpus=None)


def ids(verdicts: Iterable[Verdict]) -> list[str]:
    return [verdict.id for verdict in verdicts]


@pytest.fixture
def pair() -> Iterator[tuple[LocalServer, LocalServer]]:
    """Two servers in this process."""
    with LocalServer() as first, LocalServer() as second:
        yield first, second


def closed_port() -> str:
    """An address at which nobody is, and nobody will be while the test lasts."""
    return "127.0.0.1:1"


class TestSeveralServers:
    def test_calls_go_round(self, kind: str, pair: tuple[LocalServer, LocalServer]) -> None:
        target = ",".join(server.address for server in pair)

        async def call_all() -> None:
            async with AsyncClient(target) as client:
                for _ in range(4):
                    await client.score_batch(documents(5), corpus=None)
                    assert len([v async for v in client.score(documents(5), corpus=None)]) == 5

        if kind == "async":
            asyncio.run(call_all())
        else:
            with Client(target) as client:
                for _ in range(4):
                    client.score_batch(documents(5), corpus=None)
                    assert len(list(client.score(documents(5), corpus=None))) == 5
        # Eight calls, and one for the limits.
        assert sorted(server.executor.documents for server in pair) in ([20, 20], [15, 25])

    def test_one_that_is_not_there_costs_no_patience(self, kind: str, local: LocalServer) -> None:
        target = [closed_port(), local.address]
        for _ in range(2):
            assert ids(score(kind, target, documents(20), timeouts=BRIEF)) == ids_of(20)
            assert len(score_batch(kind, target, documents(20), timeouts=BRIEF)) == 20

    def test_nobody_there_names_the_last_one(self, kind: str) -> None:
        with pytest.raises(Unavailable, match=closed_port()) as caught:
            score(kind, closed_port(), documents(1), timeouts=BRIEF)
        assert caught.value.request_id

    @pytest.mark.parametrize("ordered", [True, False])
    def test_one_killed_under_load_loses_and_doubles_nothing(
        self, kind: str, ordered: bool, tmp_path: Path, redis: Redis
    ) -> None:
        given = documents(1500)
        with (
            SlowServer(tmp_path / "a", redis_url=redis.url) as first,
            SlowServer(tmp_path / "b", redis_url=redis.url) as second,
        ):

            def each(count: int) -> None:
                # The call for the limits went to the first, so the stream goes to the second.
                if count == 400:
                    os.kill(second.pid, signal.SIGKILL)

            verdicts = score(
                kind, [first.address, second.address], given, each=each, corpus=f"kill {kind}", ordered=ordered
            )

        assert sorted(ids(verdicts)) == sorted(ids_of(1500))
        if ordered:
            assert ids(verdicts) == ids_of(1500)
        assert {verdict.error for verdict in verdicts} == {None}
        assert {verdict.signals["exact_duplicate"] for verdict in verdicts} == {0}

    def test_a_stream_stays_where_it_can(self, kind: str, pair: tuple[LocalServer, LocalServer]) -> None:
        """It is asked first who has kept the answers."""
        with Proxy(pair[0].address) as near, Proxy(pair[1].address) as far:

            def each(count: int) -> None:
                if count in (200, 400):
                    near.cut()
                    far.cut()

            verdicts = score(kind, [near.address, far.address], documents(600), each=each)

        assert ids(verdicts) == ids_of(600)
        # All at one of them, and each once: what was read before is not scored again.
        assert sorted(server.executor.documents for server in pair) == [0, 600]

    def test_a_name_with_several_addresses_is_balanced(self, pair: tuple[LocalServer, LocalServer]) -> None:
        target = "ipv4:" + ",".join(server.address for server in pair)
        with Client(target) as client:

            def both() -> bool:
                client.score_batch(documents(5), corpus=None)
                return all(server.executor.documents for server in pair)

            wait_until(both)


def ids_of(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


class TestResume:
    def test_a_broken_connection_is_resumed_and_nothing_is_scored_twice(self, kind: str, local: LocalServer) -> None:
        with Proxy(local.address) as proxy:

            def each(count: int) -> None:
                if count in (150, 300, 450):
                    proxy.cut()

            verdicts = score(kind, proxy.address, documents(600), each=each)
            assert proxy.connections >= 4

        assert ids(verdicts) == ids_of(600)
        assert local.executor.documents == 600

    def test_answers_that_were_on_their_way_are_kept(self, kind: str, local: LocalServer) -> None:
        """The line breaks while the server scores all that it has read."""
        local.executor.close_gate()
        with Proxy(local.address) as proxy:

            def cut() -> None:
                wait_until(lambda: local.pending_bytes > 5_000)
                proxy.cut()
                local.executor.open_gate()

            thread = threading.Thread(target=cut)
            thread.start()
            verdicts = score(kind, proxy.address, documents(300))
            thread.join(60)

        assert ids(verdicts) == ids_of(300)
        assert local.executor.documents == 300

    def test_a_server_that_keeps_nothing_is_enough(self, kind: str) -> None:
        """It scores again what it had read, and the client has every answer once."""
        with LocalServer(stream_resume_s=0) as server, Proxy(server.address) as proxy:

            def each(count: int) -> None:
                if count in (100, 200):
                    proxy.cut()

            verdicts = score(kind, proxy.address, documents(400), each=each)
            assert server.executor.documents >= 400
        assert ids(verdicts) == ids_of(400)

    def test_an_old_stream_is_opened_anew(
        self, kind: str, caplog: pytest.LogCaptureFixture, pair: tuple[LocalServer, LocalServer]
    ) -> None:
        caplog.set_level(logging.DEBUG, "dqs.client")
        with LocalServer(stream_max_age_s=0.3) as server:

            def each(count: int) -> None:
                if count % 100 == 0:
                    time.sleep(0.2)

            verdicts = score(kind, server.address, documents(1500), each=each)
            streams = server.metric("dqs_requests_total", method="ScoreStream", code="OK")
            assert server.executor.documents == 1500
        assert ids(verdicts) == ids_of(1500)
        # About nine of them at least on any machine, and nothing like a busy loop.
        assert 4 <= streams <= 100
        assert caplog.records == []

    def test_an_idle_stream_that_grows_old_is_opened_without_a_loop(self, kind: str) -> None:
        def slow() -> Iterator[Document]:
            for document in documents(3):
                yield document
                time.sleep(1.0)

        with LocalServer(stream_max_age_s=0.2) as server:
            assert ids(score(kind, server.address, slow())) == ids_of(3)
            assert server.metric("dqs_requests_total", method="ScoreStream", code="OK") <= 20

    def test_a_lost_server_is_said_once(self, kind: str, local: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
        with Proxy(local.address) as proxy:
            score(kind, proxy.address, documents(300), each=lambda count: proxy.cut() if count == 100 else None)
        (record,) = caplog.records
        assert record.name == "dqs.client"
        assert record.levelname == "WARNING"
        assert f"No answer from {proxy.address} (request " in record.getMessage()
        assert "trying again for up to 60 s" in record.getMessage()
        assert "museum" not in record.getMessage()

    def test_an_acknowledged_answer_is_forgotten_by_the_server(self, kind: str, local: LocalServer) -> None:
        """Also while nobody takes the verdicts, and at the end of a call, early or not."""
        with Proxy(local.address) as proxy:
            kept: list[int] = []

            def each(count: int) -> None:
                if count == 1:
                    sessions = local._server._servicer._sessions
                    wait_until(lambda: sum(len(s._kept) for s in sessions._sessions.values()) == 0)
                    kept.append(len(sessions))

            score(kind, proxy.address, documents(40), each=each)
            assert kept == [1]
        wait_until(lambda: len(local._server._servicer._sessions) == 0)


class TestLeaving:
    def test_a_caller_who_leaves_frees_the_call(self, kind: str) -> None:
        """What waits for scoring is given up, though the server would keep it for a broken connection."""
        with LocalServer(batch_documents=8) as server:
            server.executor.bytes_per_s = 3_000  # half a second a message
            pending: list[int] = []
            verdicts = score(
                kind,
                server.address,
                documents(2000),
                each=lambda count: pending.append(server.pending_bytes),
                stop_after=1,
            )
            assert len(verdicts) == 1
            assert pending[0] > 0
            wait_until(lambda: server.pending_bytes == 0)
            # Of eight messages on their way at least the last few were never scored.
            assert server.executor.documents < SMALL_WINDOW.documents

    def test_the_end_of_a_call_does_not_wait_for_a_dead_server(self, kind: str, local: LocalServer) -> None:
        with Proxy(local.address) as proxy:
            begin: list[float] = []

            def each(count: int) -> None:
                proxy.hold()
                begin.append(time.monotonic())

            score(kind, proxy.address, documents(500), each=each, stop_after=1)
            assert time.monotonic() - begin[0] < 20

    def test_many_streams_leave_nothing_behind(self, kind: str, local: LocalServer) -> None:
        before = local.tasks()
        threads = threading.active_count()

        async def leave_all() -> None:
            async with AsyncClient(local.address) as client:
                for _ in range(50):
                    answers = client.score(itertools.cycle(documents(20)), corpus=None)
                    await anext(answers)
                    await answers.aclose()  # type: ignore[attr-defined]

        if kind == "async":
            asyncio.run(leave_all())
        else:
            with Client(local.address) as client:
                for _ in range(50):
                    answers = client.score(itertools.cycle(documents(20)), corpus=None)
                    next(answers)
                    answers.close()  # type: ignore[attr-defined]
        wait_until(lambda: local.tasks() <= before + 1)
        wait_until(lambda: threading.active_count() <= threads + 2)
        assert local.pending_bytes == 0

    def test_a_slow_consumer_gets_every_answer(self, kind: str) -> None:
        with LocalServer(stream_window_documents=40, stream_max_age_s=1.0) as server:
            verdicts = score(
                kind, server.address, documents(400), each=lambda count: time.sleep(0.5) if count % 80 == 0 else None
            )
            assert server.executor.documents == 400
        assert ids(verdicts) == ids_of(400)


MEMORY = """
import asyncio, resource, sys, time
from dqs import AsyncClient, Client, Document
from dqs.client import Window
address, kind, ordered = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
text = b"some words of a text that goes on for a while, so that it weighs something. " * 8
def endless():
    number = 0
    while True:
        number += 1
        yield Document(f"d{number}", text)
def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
window = Window(documents=512, text_bytes=1 << 20)
marks = {}
def take(count):
    if count % 1000 == 0:
        marks[count] = rss()
    if count % 5000 == 0:
        time.sleep(0.2)
    return count == COUNT
COUNT = int(sys.argv[4])
async def main():
    async with AsyncClient(address, window=window) as client:
        count = 0
        verdicts = client.score(endless(), corpus=None, policy="score-only", ordered=ordered)
        async for _ in verdicts:
            count += 1
            if take(count):
                break
        await verdicts.aclose()
if kind == "async":
    asyncio.run(main())
else:
    with Client(address, window=window) as client:
        for count, _ in enumerate(client.score(endless(), corpus=None, policy="score-only", ordered=ordered), 1):
            if take(count):
                break
early = max(size for count, size in marks.items() if count <= COUNT // 4)
late = max(marks.values())
print(late - early)
"""


class TestMemory:
    @pytest.mark.parametrize("ordered", [True, False])
    def test_an_endless_input_needs_no_more_with_time(self, kind: str, ordered: bool, server: ServerProcess) -> None:
        self.check(kind, ordered, server.address, 16_000)

    @pytest.mark.slow
    @pytest.mark.parametrize("ordered", [True, False])
    def test_nor_after_two_hundred_thousand(self, kind: str, ordered: bool, server: ServerProcess) -> None:
        self.check(kind, ordered, server.address, 200_000)

    @staticmethod
    def check(kind: str, ordered: bool, address: str, count: int) -> None:
        command = [sys.executable, "-c", MEMORY, address, kind, str(ordered), str(count)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
        assert run.returncode == 0, run.stderr
        assert int(run.stdout) < 16 << 20


class TestSecurity:
    @pytest.fixture
    def secured(self, tmp_path: Path) -> Iterator[tuple[LocalServer, bytes, str]]:
        """A server with TLS and tokens, its authority, and a token."""
        authority = Authority("ours")
        certificate, key = authority.write(tmp_path)
        token = new_token(tmp_path / "tokens.toml", "acme")
        with LocalServer(tls_cert=certificate, tls_key=key, tokens=tmp_path / "tokens.toml") as server:
            yield server, authority.pem, token

    def test_with_tls_and_a_token(self, kind: str, secured: tuple[LocalServer, bytes, str], tmp_path: Path) -> None:
        server, authority, token = secured
        assert ids(score(kind, server.address, documents(50), tls=Tls(ca=authority), token=token)) == ids_of(50)
        (tmp_path / "ca.pem").write_bytes(authority)
        assert len(score_batch(kind, server.address, documents(5), tls=Tls(ca=tmp_path / "ca.pem"), token=token)) == 5

    def test_without_or_with_another_token(self, kind: str, secured: tuple[LocalServer, bytes, str]) -> None:
        server, authority, token = secured
        for wrong in (None, f"{token}x"):
            for call in (score, score_batch):
                with pytest.raises(Unauthenticated) as caught:
                    call(kind, server.address, documents(5), tls=Tls(ca=authority), token=wrong)
                assert caught.value.request_id
                assert token not in str(caught.value)

    def test_a_token_that_is_rotated_is_asked_for_at_each_call(
        self, kind: str, secured: tuple[LocalServer, bytes, str], tmp_path: Path
    ) -> None:
        server, authority, token = secured
        asked: list[str] = []
        current = [token]

        def ask() -> str:
            asked.append(current[0])
            return current[0]

        def each(count: int) -> None:
            if count == 100:
                proxy.cut()

        with Proxy(server.address) as proxy:
            verdicts = score(kind, proxy.address, documents(300), tls=Tls(ca=authority), token=ask, each=each)
        assert ids(verdicts) == ids_of(300)
        assert len(asked) >= 3  # the limits, the stream, the stream again
        current[0] = "no-such-token"
        with pytest.raises(Unauthenticated):
            score(kind, server.address, documents(1), tls=Tls(ca=authority), token=ask)

    def test_another_authority_is_not_trusted(self, kind: str, secured: tuple[LocalServer, bytes, str]) -> None:
        server, _, token = secured
        with pytest.raises(Unavailable, match="not signed by the authorities"):
            score(kind, server.address, documents(1), tls=Tls(ca=Authority("other").pem), token=token, timeouts=BRIEF)
        with pytest.raises(Unavailable, match="if the server speaks TLS"):
            score(kind, server.address, documents(1), timeouts=BRIEF)

    def test_what_cannot_get_better_is_not_waited_for(
        self, kind: str, secured: tuple[LocalServer, bytes, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server, authority, token = secured
        other = Authority("other").pem
        files: dict[str, Any] = {"tls_cert": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
        patient = Timeouts(connect_s=3600, retry_s=3600)
        with LocalServer() as plain, LocalServer(host="127.0.0.2", **files) as misnamed:
            for target, ca, words in (
                (server.address, other, "give the authorities that signed it"),
                (misnamed.address, authority, "name the server as its certificate does"),
                (plain.address, authority, "does not speak TLS"),
            ):
                for call in (score, score_batch):
                    with pytest.raises(Unavailable, match=words):
                        call(kind, target, documents(1), tls=Tls(ca=ca), timeouts=patient)
            assert caplog.records == []
            with pytest.raises(Unavailable, match=r"TLS|certificate"):
                score(kind, [misnamed.address, plain.address], documents(1), tls=Tls(ca=authority), timeouts=patient)
            caplog.clear()
            # One that works, or may soon, is reason enough to go on.
            good = [misnamed.address, server.address]
            assert ids(score(kind, good, documents(5), tls=Tls(ca=authority), token=token)) == ids_of(5)
            with pytest.raises(Unavailable):
                score(kind, [plain.address, closed_port()], documents(1), tls=Tls(ca=authority), timeouts=BRIEF)
            assert any("No answer from" in record.getMessage() for record in caplog.records)

    def test_a_client_certificate(self, kind: str, tmp_path: Path) -> None:
        ours, clients = Authority("ours"), Authority("clients")
        certificate, key = ours.write(tmp_path)
        (tmp_path / "clients.pem").write_bytes(clients.pem)
        shown, its_key = clients.issue("client")
        with LocalServer(tls_cert=certificate, tls_key=key, tls_client_ca=tmp_path / "clients.pem") as server:
            tls = Tls(ca=ours.pem, cert=shown, key=its_key)
            assert ids(score(kind, server.address, documents(5), tls=tls)) == ids_of(5)
            with pytest.raises(Unavailable):
                score(kind, server.address, documents(5), tls=Tls(ca=ours.pem), timeouts=BRIEF)

    def test_what_cannot_be_meant_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "words.pem").write_text("no certificate")
        secret = "a-secret-token"
        shown, its_key = Authority("ours").issue()
        other, its_passphrase = Authority("ours").issue()[1], key_pem(ec.generate_private_key(ec.SECP256R1()), b"x")
        for target, options, words in (
            ("192.0.2.1:1", {"token": secret}, "in clear"),
            ("localhost:1,example.org:1", {"token": lambda: secret}, "example.org:1 in clear"),
            ("localhost:1", {"token": f"{secret} x"}, "white space"),
            ("localhost:1", {"token": ""}, "empty"),
            ("localhost:1", {"tls": Tls(ca=tmp_path / "none.pem")}, "cannot be read"),
            ("localhost:1", {"tls": Tls(ca=tmp_path / "words.pem")}, "not in PEM format"),
            ("localhost:1", {"tls": Tls(ca=b"words")}, "The TLS authorities are not in PEM format"),
            ("localhost:1", {"tls": Tls(cert=b"-----BEGIN CERTIFICATE-----")}, "give both"),
            ("localhost:1", {"tls": Tls(cert=shown, key=other)}, "does not belong to the certificate"),
            ("localhost:1", {"tls": Tls(cert=shown, key=its_passphrase)}, "has a passphrase"),
            ("localhost:1", {"tls": Tls(cert=shown, key=b"-----BEGIN PRIVATE KEY-----")}, "cannot be used"),
            (" , ", {}, "No server is named"),
            ([], {}, "No server is named"),
        ):
            with pytest.raises(ConfigError, match=words) as caught:
                Client(target, **options)
            assert secret not in str(caught.value)
        Client("localhost:1", tls=Tls(cert=shown, key=its_key)).close()
        Client("192.0.2.1:1", token=secret, allow_insecure_token=True).close()
        Client("192.0.2.1:1", token=secret, tls=Tls()).close()
        assert secret not in repr(Client("localhost:1", token=secret))


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]  # gRPC ships no types
    """A server before another, which cancels some calls as what stands in between may do.

    Args:
        address: of the other.
        cancels: how many calls it cancels, before the first answer or after it.
    """

    def __init__(self, address: str, cancels: int) -> None:
        self._cancels = cancels
        self._there = grpc.insecure_channel(address)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop(0)
        self._there.close()

    def service(self, details: Any) -> Any:
        def relay(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            self._cancels -= 1
            is_cancelled = self._cancels >= 0
            if is_cancelled and self._cancels % 2:
                context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
            for answer in self._there.stream_stream(details.method)(
                requests, metadata=[("x-request-id", context.invocation_metadata()[0].value)]
            ):
                yield answer
                if is_cancelled:
                    context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")

        return grpc.stream_stream_rpc_method_handler(relay)


class TestCancelled:
    def test_what_somebody_in_between_cancels_is_tried_again(self, kind: str, local: LocalServer) -> None:
        with Relay(local.address, cancels=5) as relay:
            assert ids(score(kind, relay.address, documents(100))) == ids_of(100)
            assert relay._cancels < 0
        with Relay(local.address, cancels=4) as relay:
            assert [verdict.id for verdict in score_batch(kind, relay.address, documents(5))] == ids_of(5)
            assert relay._cancels < 0


class TestNotices:
    def test_many_calls_say_one_thing_once(self, local: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
        text = "word " * 18_000

        async def call_all(target: str) -> list[BaseException | None]:
            async with AsyncClient(target, timeouts=BRIEF) as client:
                calls = (client.score_batch([text] * 8, corpus=None) for _ in range(10))
                answers = await asyncio.gather(*calls, return_exceptions=True)
            return [answer if isinstance(answer, BaseException) else None for answer in answers]

        local.executor.close_gate()
        with Client(local.address) as other:
            first = threading.Thread(target=other.score_batch, args=([text] * 8,), kwargs={"corpus": None})
            first.start()
            wait_until(lambda: local.pending_bytes > 0)
            assert {type(error) for error in asyncio.run(call_all(local.address))} == {Overloaded}
            local.executor.open_gate()
            first.join(60)
        assert {type(error) for error in asyncio.run(call_all(closed_port()))} == {Unavailable}

        full, lost = (record.getMessage() for record in caplog.records)
        assert full.startswith(f"Too much to do at {local.address} (request ")
        assert lost.startswith(f"No answer from {closed_port()} (request ")


class TestTurns:
    def test_calls_over_the_streams_of_a_client_wait_with_patience(self, kind: str) -> None:
        """Longer than a server would be asked in vain, and in the order in which they came."""
        begun: list[int] = []

        def source(number: int) -> Iterator[Document]:
            begun.append(number)
            yield from documents(5)

        async def call_all(client: AsyncClient) -> list[int]:
            async def call(number: int) -> int:
                return len([verdict async for verdict in client.score(source(number), corpus=None)])

            calls = [asyncio.create_task(call(number)) for number in range(12)]
            await asyncio.sleep(2.5)
            server.executor.open_gate()
            counts = await asyncio.gather(*calls)
            await client.close()
            return counts

        window, timeouts = Window(streams=2), Timeouts(retry_s=1.0)
        with LocalServer(max_streams=2) as server:
            server.executor.close_gate()
            if kind == "async":

                async def main() -> list[int]:
                    return await call_all(AsyncClient(server.address, window=window, timeouts=timeouts))

                counts = asyncio.run(main())
            else:
                with (
                    Client(server.address, window=window, timeouts=timeouts) as client,
                    ThreadPoolExecutor(12) as threads,
                ):

                    def call(number: int) -> int:
                        return len(list(client.score(source(number), corpus=None)))

                    calls = []
                    for number in range(12):
                        calls.append(threads.submit(call, number))
                        wait_until(lambda n=number: len(begun) + len(client._turns._waiting) == n + 1)  # type: ignore[misc]
                    time.sleep(2.5)
                    server.executor.open_gate()
                    counts = [answer.result(60) for answer in calls]
        assert counts == [5] * 12
        # Two go at a time, so that a call may overtake the one that began with it.
        assert all(abs(number - at) <= 1 for at, number in enumerate(begun))

    def test_who_gives_up_waiting_takes_no_turn(self, local: LocalServer) -> None:
        async def main() -> None:
            async with AsyncClient(local.address, window=Window(streams=1)) as client:
                first, second, third = (client.score(documents(5), corpus=None) for _ in range(3))
                await anext(first)
                waiting = asyncio.ensure_future(anext(second))
                await asyncio.sleep(0.05)
                waiting.cancel()
                assert not [v for v in await asyncio.gather(waiting, return_exceptions=True) if isinstance(v, Verdict)]
                await first.aclose()  # type: ignore[attr-defined]
                assert len([verdict async for verdict in third]) == 5

        asyncio.run(main())


class TestOptions:
    @pytest.mark.parametrize(
        ("kind_of_options", "wrong"),
        [
            (Window, {"documents": 0}),
            (Window, {"text_bytes": -1}),
            (Window, {"message_documents": 0}),
            (Window, {"message_bytes": 0.5}),
            (Window, {"message_wait_s": -0.1}),
            (Window, {"streams": 0}),
            (Timeouts, {"connect_s": -1.0}),
            (Timeouts, {"answer_s": float("nan")}),
            (Timeouts, {"retry_s": float("inf")}),
        ],
    )
    def test_nonsense_is_refused(self, kind_of_options: Callable[..., object], wrong: dict[str, float]) -> None:
        (name,) = wrong
        with pytest.raises(ConfigError, match=f"`{name}` is .*: give "):
            kind_of_options(**wrong)


class TestRequestIds:
    def test_an_error_names_the_call(self, kind: str, local: LocalServer) -> None:
        with pytest.raises(PolicyError) as caught:
            score(kind, local.address, documents(1), policy="nobody's")
        assert len(caught.value.request_id) == 16


class TestTimings:
    def test_they_cover_every_document(self, kind: str) -> None:
        """Those too, in between, that were never sent."""
        given = [Document(f"d{i}", b"x" * 5000 if i % 7 == 3 else b"Some words.") for i in range(100)]

        async def batches(address: str) -> list[scoring_pb2.ScoredDocuments]:
            async with AsyncClient(address) as client:
                return [scored async for scored in client.score_batches(given, corpus=None, timings=True)]

        with LocalServer(max_document_bytes=4096, batch_documents=16) as server:
            if kind == "async":
                answers = asyncio.run(batches(server.address))
            else:
                with Client(server.address) as client:
                    answers = list(client.score_batches(given, corpus=None, timings=True))
                    assert not any(scored.timings for scored in client.score_batches(given, corpus=None))

        assert [result.id for scored in answers for result in scored.results] == ids_of(100)
        for scored in answers:
            runs = [timing for timing in scored.timings for _ in range(timing.documents)]
            assert len(runs) == len(scored.results)
            for timing, result in zip(runs, scored.results, strict=True):
                refused = result.HasField("error")
                assert timing.replica == ("" if refused else "inline")
                assert (timing.score_seconds > 0) == (not refused)


class TestAlike:
    def test_both_clients_give_the_same_through_breaks(self, local: LocalServer) -> None:
        """Random inputs, windows and breaks."""
        chance = random.Random(20261121)
        for _ in range(6):
            given = [
                Document(f"d{i}", b"\xff" if chance.random() < 0.05 else (ENGLISH[: chance.randrange(200)]).encode())
                for i in range(chance.randrange(1, 400))
            ]
            window = Window(
                documents=chance.randrange(1, 100),
                text_bytes=chance.randrange(100, 50_000),
                message_documents=chance.randrange(1, 40),
                message_bytes=chance.randrange(100, 20_000),
            )
            cuts = {chance.randrange(1, len(given) + 1) for _ in range(3)}
            answers = [self._score(kind, local.address, given, window, cuts) for kind in KINDS]
            assert answers[0] == answers[1]
            assert ids(answers[0]) == [document.id for document in given]

    @staticmethod
    def _score(kind: str, address: str, given: list[Document], window: Window, cuts: set[int]) -> list[Verdict]:
        with Proxy(address) as proxy:

            def each(count: int) -> None:
                if count in cuts:
                    proxy.cut()

            return score(kind, proxy.address, given, window=window, each=each)

    def test_an_input_that_is_asynchronous_and_slow(self, local: LocalServer) -> None:
        async def trickle() -> AsyncIterator[Document]:
            for document in documents(5):
                yield document
                await asyncio.sleep(0.3)

        async def main() -> list[str]:
            async with AsyncClient(local.address) as client:
                return [verdict.id async for verdict in client.score(trickle(), corpus=None)]

        assert asyncio.run(main()) == ids_of(5)


class TestRota:
    def test_turns_are_even_and_who_failed_is_left_out(self) -> None:
        rota = Rota(3)
        assert Counter(rota.next() for _ in range(300)) == {0: 100, 1: 100, 2: 100}
        rota.failed(1, 60.0)
        assert {rota.next() for _ in range(10)} == {0, 2}
        assert not rota.is_free(1)
        rota.answered(1)
        assert {rota.next() for _ in range(10)} == {0, 1, 2}

    def test_where_all_have_failed_the_one_that_is_back_first_is_asked(self) -> None:
        rota = Rota(2)
        rota.failed(0, 60.0)
        rota.failed(1, 120.0)
        assert [rota.next() for _ in range(3)] == [0, 0, 0]

    def test_who_fails_again_and_again_is_left_out_for_longer(self) -> None:
        rota = Rota(1)
        absences = []
        for _ in range(9):
            rota.failed(0, 0.0)
            absences.append(rota._absences_s[0])
        assert absences[:4] == [0.5, 1.0, 2.0, 4.0]
        assert absences[-1] == 30.0


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("a:1", ["a:1"]),
            ("a:1, b:2,,a:1", ["a:1", "b:2"]),
            (["a:1", "b:2,c:3"], ["a:1", "b:2", "c:3"]),
            ("ipv4:10.0.0.1:1,10.0.0.2:1", ["ipv4:10.0.0.1:1,10.0.0.2:1"]),
            ("dns:///name:1", ["dns:///name:1"]),
        ],
    )
    def test_they_are_told_apart(self, target: str | list[str], expected: list[str]) -> None:
        assert parse_targets(target) == expected

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("localhost:1", True),
            ("localhost", True),
            ("127.0.0.1:1", True),
            ("127.9.9.9:1", True),
            ("[::1]:1", True),
            ("::1", True),
            ("dns:///localhost:1", True),
            ("dns:localhost:1", True),
            ("unix:/tmp/x", True),
            ("unix-abstract:x", True),
            ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
            ("ipv6:[::1]:1", True),
            ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
            ("10.0.0.1:1", False),
            ("0.0.0.0:1", False),
            ("[2001:db8::1]:1", False),
            ("localhost.example.org:1", False),
            ("example.org:1", False),
            ("dns://localhost/example.org:1", False),
            ("127.0.0.1.example.org:1", False),
        ],
    )
    def test_what_stays_on_this_machine(self, target: str, expected: bool) -> None:
        assert is_loopback(target) == expected


LIMITS = server_info_pb2.Limits(
    max_message_bytes=1 << 20,
    max_batch_documents=100,
    max_document_bytes=10_000,
    stream_window_documents=40,
    stream_window_bytes=4_000,
    stream_resume_seconds=30,
)


class TestExchange:
    @given(st.lists(st.integers(1, 30), unique=True, max_size=30), st.integers(0, 29))
    def test_only_what_has_come_without_a_gap_is_acknowledged(self, received: list[int], told_after: int) -> None:
        receipts = Receipts(LIMITS)
        for sequence in range(1, 31):
            receipts.sent(sequence, 2, 10)
        told = 0
        for at, sequence in enumerate(received):
            receipts.received(sequence)
            receipts.received(sequence)  # once more, as after a new connection
            if at == told_after:
                told = _acknowledged(receipts.take())
        told = max(told, _acknowledged(receipts.take()))

        whole = next(n for n in itertools.count() if n + 1 not in received)
        assert told == whole
        assert (receipts.documents, receipts.text_bytes) == (2 * (30 - whole), 10 * (30 - whole))
        assert not receipts.is_due
        receipts.tell_again()
        assert _acknowledged(receipts.take()) == whole

    @given(st.booleans(), st.integers(0, 1 << 32))
    def test_every_document_is_handed_out_once_whatever_comes_twice_or_breaks(self, ordered: bool, seed: int) -> None:
        chance = random.Random(seed)
        window = Window(documents=20, text_bytes=2_000, message_documents=3, message_bytes=300)
        exchange = Exchange(score_options("", None, degrade=False, replace=False), "", ordered, window, LIMITS)
        given = [f"{i} " + "x" * chance.randrange(200) for i in range(chance.randrange(41))]
        source = iter(enumerate(given))
        exhausted = False
        handed_out: list[str] = []
        at_server: dict[int, scoring_pb2.ScoreStreamRequest] = {}
        while not (exhausted and exchange.is_answered):
            if not exhausted and exchange.has_room and chance.random() < 0.7:
                number, text = next(source, (None, ""))
                if number is None:
                    exhausted = True
                    exchange.flush()
                else:
                    exchange.add((str(number), text))
            for raw in exchange.outgoing():
                request = scoring_pb2.ScoreStreamRequest.FromString(raw)
                assert bool(request.stream_id) == request.HasField("options")
                at_server[request.sequence] = request
            assert sum(len(request.documents) for request in at_server.values()) <= LIMITS.stream_window_documents
            if not at_server:
                continue
            if chance.random() < 0.1:
                exchange.send_again()
                for raw in exchange.outgoing():
                    request = scoring_pb2.ScoreStreamRequest.FromString(raw)
                    assert [d.id for d in request.documents] == [d.id for d in at_server[request.sequence].documents]
                continue
            sequence = chance.choice(sorted(at_server))
            results = [scoring_pb2.Result(id=document.id) for document in at_server[sequence].documents]
            response = scoring_pb2.ScoreStreamResponse(
                sequence=sequence, scored=scoring_pb2.ScoredDocuments(results=results)
            )
            if chance.random() < 0.7:  # an answer may come twice
                del at_server[sequence]
            exchange.receipts.received(sequence)
            handed_out += [result.id for scored in exchange.receive([response]) for result in scored.results]

        expected = [str(number) for number in range(len(given))]
        assert (handed_out if ordered else sorted(handed_out, key=int)) == expected

    def test_an_answer_to_nothing_is_an_error(self) -> None:
        exchange = Exchange(score_options("", None, degrade=False, replace=False), "", True, Window(), LIMITS)
        for sequence in (0, 1, 7):
            with pytest.raises(DqsError, match="never sent"):
                list(exchange.receive([scoring_pb2.ScoreStreamResponse(sequence=sequence)]))


def _acknowledged(encoded: bytes) -> int:
    number: int = scoring_pb2.ScoreStreamRequest.FromString(encoded).acknowledged
    return number
