"""Who gets in, what they may see, and what nobody gets to see. Faults 26, 27 and 29."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import queue
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dqs.errors import ConfigError
from dqs.server.security import Certificates, Reloader, is_loopback
from dqs.server.server import ScoringServer
from dqs.server.tenants import Tenant, Token, load_tokens, new_token, revoke_token
from dqs.settings import load_settings
from dqs.v1 import corpus_pb2, server_info_pb2
from dqs.v1 import scoring_pb2 as pb
from dqs.v1.corpus_pb2_grpc import CorpusServiceStub
from dqs.v1.scoring_pb2_grpc import ScoringServiceStub
from tests.service.certificates import Authority, key_pem
from tests.service.serving import ENGLISH, POISON, ROOT, LocalServer, Redis, status_of, wait_until
from tests.service.test_cli_commands import dqs_here

NO_INDEX = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)
INFO = server_info_pb2.GetServerInfoRequest()
Code = grpc.StatusCode


def batch(*texts: bytes, options: pb.ScoreOptions = NO_INDEX) -> pb.ScoreBatchRequest:
    documents = [pb.Document(id=hashlib.sha256(text).hexdigest()[:8], text=text) for text in texts]
    return pb.ScoreBatchRequest(options=options, documents=documents)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@contextlib.contextmanager
def tls_channel(address: str, roots: bytes, pair: tuple[bytes, bytes] | None = None) -> Iterator[grpc.Channel]:
    """A channel on a connection of its own."""
    certificate, key = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(roots, key, certificate)
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield channel


def tls_code(address: str, roots: bytes, pair: tuple[bytes, bytes] | None = None) -> grpc.StatusCode:
    """How a call over a new connection ends."""
    with tls_channel(address, roots, pair) as channel:
        call = ScoringServiceStub(channel).GetServerInfo.future(INFO, timeout=20)  # type: ignore[no-untyped-call]
        return call.code()


def start_failure(**settings: Any) -> str:
    """The sentence with which a start is refused; a `ScoringServer` needs a running event loop."""

    async def start() -> None:
        ScoringServer(load_settings(port=0, **settings))

    with pytest.raises(ConfigError) as caught:
        asyncio.run(start())
    message = caught.value.message
    assert len(message.splitlines()) == 1
    assert message.endswith(".")
    return message


class TestTransport:
    def test_only_who_trusts_the_authority_connects_and_nothing_is_in_clear(self, tmp_path: Path) -> None:
        ours, other = Authority("ours"), Authority("other")
        certificate, key = ours.write(tmp_path)
        with LocalServer(tls_cert=certificate, tls_key=key) as server:
            assert tls_code(server.address, ours.pem) == Code.OK
            assert tls_code(server.address, other.pem) == Code.UNAVAILABLE
            with grpc.insecure_channel(server.address) as channel:
                stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
                assert status_of(lambda: stub.GetServerInfo(INFO, timeout=20))[0] == Code.UNAVAILABLE
            host, port = server.address.split(":")
            with socket.create_connection((host, int(port)), timeout=20) as plain:
                plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                answer = b""
                with contextlib.suppress(ConnectionError):
                    while received := plain.recv(4096):
                        answer += received
            # At most a TLS alert (0x15); an HTTP/2 server would begin with a SETTINGS frame.
            assert answer == b"" or answer[0] == 0x15
            assert tls_code(server.address, ours.pem) == Code.OK

    def test_clients_show_certificates_of_the_right_authority(self, tmp_path: Path) -> None:
        ours, clients, other = Authority("ours"), Authority("clients"), Authority("other")
        certificate, key = ours.write(tmp_path)
        authorities = tmp_path / "clients.pem"
        authorities.write_bytes(clients.pem)
        with LocalServer(tls_cert=certificate, tls_key=key, tls_client_ca=authorities) as server:
            assert tls_code(server.address, ours.pem, clients.issue("client")) == Code.OK
            assert tls_code(server.address, ours.pem) == Code.UNAVAILABLE
            assert tls_code(server.address, ours.pem, other.issue("client")) == Code.UNAVAILABLE
            assert tls_code(server.address, ours.pem, clients.issue("client", ends_days=-0.5)) == Code.UNAVAILABLE

    def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = Authority("first"), Authority("second")
        certificate, key = first.write(tmp_path)
        with (
            LocalServer(tls_cert=certificate, tls_key=key) as server,
            tls_channel(server.address, first.pem) as channel,
        ):
            open_before = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            open_before.GetServerInfo(INFO, timeout=20)

            key.write_bytes(second.issue()[1])
            wait_until(lambda: "the certificates stay as they were" in caplog.text)
            assert tls_code(server.address, first.pem) == Code.OK

            second.write(tmp_path)
            wait_until(lambda: tls_code(server.address, second.pem) == Code.OK)
            assert tls_code(server.address, first.pem) == Code.UNAVAILABLE
            # Connections that are open stay so.
            open_before.GetServerInfo(INFO, timeout=20)
        complaints = [record for record in caplog.records if "stay as they were" in record.getMessage()]
        assert len(complaints) == 1
        assert "does not belong to the certificate" in complaints[0].getMessage()

    def test_a_renewal_of_one_file_after_the_other_is_no_fault(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        certificate, key = Authority("first").write(tmp_path)
        certificates = Certificates(certificate, key)
        reloader = Reloader()
        reloader.watch("certificates", (certificate, key), certificates.reload)
        caplog.set_level(logging.INFO)
        new_certificate, new_key = Authority("second").issue()

        certificate.write_bytes(new_certificate)
        reloader.look()
        key.write_bytes(new_key)
        reloader.look()
        assert caplog.text == ""
        reloader.look()
        assert "the certificates have been read again" in caplog.text
        caplog.clear()
        reloader.look()
        assert caplog.text == ""

    def test_a_start_with_what_cannot_work_is_refused_in_one_sentence(self, tmp_path: Path) -> None:
        authority = Authority("ours")
        certificate, key = authority.write(tmp_path)
        files = {"tls_cert": certificate, "tls_key": key}
        good_certificate, good_key = certificate.read_bytes(), key.read_bytes()
        garbage = tmp_path / "garbage"
        garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n")
        old_authority = tmp_path / "old.pem"
        old_authority.write_bytes(Authority("old", ends_days=-1).pem)
        locked = tmp_path / "locked.key"
        locked.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))

        authority.write(tmp_path, begins_days=-3, ends_days=-1)
        assert "has expired" in start_failure(**files)
        authority.write(tmp_path, begins_days=1)
        assert "is not valid yet" in start_failure(**files)
        certificate.write_bytes(good_certificate)
        assert "does not belong to the certificate" in start_failure(**files)
        key.write_bytes(good_key)
        assert "Cannot read" in start_failure(**files | {"tls_key": tmp_path / "none.key"})
        assert "Cannot read" in start_failure(**files | {"tls_cert": tmp_path})
        assert "holds no certificate" in start_failure(**files | {"tls_cert": garbage})
        assert "holds no certificate" in start_failure(**files | {"tls_cert": key})
        assert "cannot be used" in start_failure(**files | {"tls_key": garbage})
        assert "passphrase" in start_failure(**files | {"tls_key": locked})
        assert "holds no certificates" in start_failure(**files, tls_client_ca=key)
        assert "Cannot read" in start_failure(**files, tls_client_ca=tmp_path / "none.pem")
        assert "have expired" in start_failure(**files, tls_client_ca=old_authority)
        assert "give --tls-key too" in start_failure(tls_cert=certificate)
        assert "give --tls-cert too" in start_failure(tls_key=key)
        assert "give --tls-cert and --tls-key too" in start_failure(tls_client_ca=old_authority)

    def test_the_command_says_it_and_ends_with_status_2(self, tmp_path: Path) -> None:
        Authority("ours").write(tmp_path, begins_days=-3, ends_days=-1)
        done = subprocess.run(
            [sys.executable, "-m", "dqs.cli", "serve", "--port", "0", "--data-dir", tmp_path, "--tls-cert", "tls.crt",
             "--tls-key", "tls.key"],
            cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == (
            "dqs: The certificate in tls.crt has expired: give --tls-cert another one."
        )


class TestExposure:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
    def test_this_machine_alone(self, host: str) -> None:
        assert is_loopback(host)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "no-such-host.invalid"])
    def test_others_too(self, host: str) -> None:
        assert not is_loopback(host)

    def test_a_public_address_needs_tls_and_a_proof_of_who_calls(self, tmp_path: Path) -> None:
        certificate, key = Authority("ours").write(tmp_path)
        tokens = tmp_path / "tokens.toml"
        new_token(tokens, "alpha")
        tls = {"tls_cert": certificate, "tls_key": key}

        assert "there is no TLS" in start_failure(host="0.0.0.0")
        # Tokens would cross the network in clear.
        assert "there is no TLS" in start_failure(host="0.0.0.0", tokens=tokens)
        assert "anybody may call" in start_failure(host="0.0.0.0", **tls)
        for enough in ({**tls, "tokens": tokens}, {**tls, "tls_client_ca": certificate}, {"insecure": True}):
            with LocalServer(host="0.0.0.0", **enough):
                pass


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


class TestTokens:
    def test_every_call_but_health_needs_a_valid_token(self, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
        good = new_token(tokens, "alpha")
        expired = new_token(tokens, "alpha", datetime.now(UTC) - timedelta(seconds=1))
        caplog.set_level(logging.DEBUG)
        wrong: list[tuple[tuple[str, str], ...]] = [
            (),
            bearer(expired),
            bearer(good[:-1]),
            bearer(good + "x"),
            bearer(""),
            (("authorization", good),),
            (("authorization", f"Basic {good}"),),
            (*bearer(good), *bearer(good)),
        ]
        with LocalServer(tokens=tokens) as server, grpc.insecure_channel(server.address) as channel:
            scoring, corpora = ScoringServiceStub(channel), CorpusServiceStub(channel)  # type: ignore[no-untyped-call]
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            unknown = channel.unary_unary("/dqs.v1.ScoringService/NoSuchMethod")
            listing = reflection_pb2.ServerReflectionRequest(list_services="")
            calls: list[Callable[[Any], Any]] = [
                lambda metadata: scoring.ScoreBatch(batch(b"a"), metadata=metadata),
                lambda metadata: list(scoring.ScoreStream(iter(()), metadata=metadata)),
                lambda metadata: scoring.GetServerInfo(INFO, metadata=metadata),
                lambda metadata: corpora.DropCorpus(corpus_pb2.DropCorpusRequest(corpus="c"), metadata=metadata),
                lambda metadata: list(reflection.ServerReflectionInfo(iter([listing]), metadata=metadata)),
                lambda metadata: unknown(b"", metadata=metadata),
            ]
            for metadata in wrong:
                for call in calls:
                    code, details = status_of(lambda call=call, metadata=metadata: call(metadata))  # type: ignore[misc]
                    assert code == Code.UNAUTHENTICATED
                    assert details["ErrorInfo"].reason == "UNAUTHENTICATED"
            assert scoring.ScoreBatch(batch(b"a"), metadata=bearer(good)).scored.results
            assert scoring.GetServerInfo(INFO, metadata=(("authorization", f"bearer {good}"),)).signals
            assert list(scoring.ScoreStream(iter(()), metadata=bearer(good))) == []
            assert list(reflection.ServerReflectionInfo(iter([listing]), metadata=bearer(good)))
            assert status_of(lambda: unknown(b"", metadata=bearer(good)))[0] == Code.UNIMPLEMENTED
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
            assert server.metric("dqs_requests_total", method="ScoreBatch", code="UNAUTHENTICATED") == len(wrong)
        for secret in (good, expired):
            assert secret not in caplog.text

    def test_tokens_change_over_and_a_revoked_one_ends_its_streams(self, tokens: Path) -> None:
        old = new_token(tokens, "alpha")
        with LocalServer(tokens=tokens) as server, grpc.insecure_channel(server.address) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            new = new_token(tokens, "alpha")
            wait_until(lambda: code_of(stub, new) == Code.OK)
            assert code_of(stub, old) == Code.OK
            with pytest.raises(ConfigError, match="has 2 valid tokens already"):
                new_token(tokens, "alpha")

            streams = {}
            for token in (old, new):
                requests: queue.SimpleQueue[pb.ScoreStreamRequest] = queue.SimpleQueue()
                streams[token] = (requests, stub.ScoreStream(iter(requests.get, None), metadata=bearer(token)))
                requests.put(message(1))
                assert next(streams[token][1]).sequence == 1
            revoke_token(tokens, hashlib.sha256(old.encode()).hexdigest()[:12])

            code, details = status_of(lambda: next(streams[old][1]))
            assert code == Code.UNAUTHENTICATED
            assert details["ErrorInfo"].metadata["request_id"]
            assert code_of(stub, old) == Code.UNAUTHENTICATED
            requests, answers = streams[new]
            requests.put(message(2))
            assert next(answers).sequence == 2
            answers.cancel()

    def test_a_token_that_expires_ends_its_streams(self, tokens: Path) -> None:
        token = new_token(tokens, "alpha", datetime.now(UTC) + timedelta(seconds=3))
        with LocalServer(tokens=tokens) as server, grpc.insecure_channel(server.address) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            requests: queue.SimpleQueue[pb.ScoreStreamRequest] = queue.SimpleQueue()
            answers = stub.ScoreStream(iter(requests.get, None), metadata=bearer(token))
            assert status_of(lambda: list(answers))[0] == Code.UNAUTHENTICATED
            assert code_of(stub, token) == Code.UNAUTHENTICATED

    def test_a_broken_file_changes_nothing(self, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
        token = new_token(tokens, "alpha")
        whole = tokens.read_text()
        with LocalServer(tokens=tokens) as server, grpc.insecure_channel(server.address) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            tokens.write_text(whole + "\n[oops")
            wait_until(lambda: "the tokens stay as they were" in caplog.text)
            assert code_of(stub, token) == Code.OK
            tokens.unlink()
            wait_until(lambda: caplog.text.count("the tokens stay as they were") == 2)
            assert code_of(stub, token) == Code.OK
            tokens.write_text("")
            wait_until(lambda: code_of(stub, token) == Code.UNAUTHENTICATED)

    def test_a_file_that_others_may_write_is_warned_of(self, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
        new_token(tokens, "alpha")
        assert tokens.stat().st_mode & 0o777 == 0o600
        with LocalServer(tokens=tokens):
            pass
        assert "others may" not in caplog.text
        tokens.chmod(0o666)
        with LocalServer(tokens=tokens):
            pass
        assert f"others may read and write {tokens}" in caplog.text

    def test_a_file_without_a_token_is_refused_and_one_without_a_valid_token_warned_of(
        self, tokens: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for content in ("", "[tenants.alpha]\nmax_streams = 2\n"):
            tokens.write_text(content)
            assert f"`dqs tokens new TENANT --file {tokens}`" in start_failure(tokens=tokens)
        new_token(tokens, "alpha", datetime.now(UTC) - timedelta(seconds=1))
        with LocalServer(tokens=tokens):
            pass
        assert f"every token in {tokens} has expired" in caplog.text
        new_token(tokens, "beta")
        caplog.clear()
        with LocalServer(tokens=tokens):
            pass
        assert "has expired" not in caplog.text

    def test_the_file_is_written_and_read_as_it_was_meant(self, tokens: Path) -> None:
        first = new_token(tokens, "alpha", datetime(2999, 1, 1, tzinfo=UTC))
        new_token(tokens, "beta.2_x-y")
        content = tomllib.loads(tokens.read_text())
        assert first not in tokens.read_text()
        assert content["tenants"]["alpha"]["tokens"][0]["sha256"] == hashlib.sha256(first.encode()).hexdigest()

        tokens.write_text(tokens.read_text().replace('[tenants."alpha"]', '[tenants."alpha"]\nmax_streams = 3'))
        new_token(tokens, "alpha")
        table = load_tokens(tokens)
        assert table.tenants == {"alpha": Tenant("alpha", max_streams=3), "beta.2_x-y": Tenant("beta.2_x-y")}
        found = table.find(first)
        assert isinstance(found, Token)
        assert (found.tenant.name, found.expires) == ("alpha", datetime(2999, 1, 1, tzinfo=UTC))
        assert first not in repr(found)
        assert table.find("") is table.find("dqs_") is None

        assert revoke_token(tokens, found.id).tenant.name == "alpha"
        assert load_tokens(tokens).find(first) is None
        assert len(load_tokens(tokens).tokens) == 2
        with pytest.raises(ConfigError, match="has no token"):
            revoke_token(tokens, found.id)
        with pytest.raises(ConfigError, match="cannot be called"):
            new_token(tokens, "a b")

    def test_an_expired_token_leaves_room_for_a_new_one(self, tokens: Path) -> None:
        for _ in range(4):
            new_token(tokens, "alpha", datetime.now(UTC) - timedelta(seconds=1))
        assert len(load_tokens(tokens).tokens) == 1

    @pytest.mark.parametrize(
        "content",
        [
            "tenants = 1",
            "[other]",
            "[tenants.a]\nmax_stream = 1",
            "[tenants.a]\nmax_streams = 0",
            "[tenants.a]\nmax_streams = true",
            '[tenants."a b"]',
            "[tenants.a]\ntokens = 1",
            "[tenants.a]\ntokens = [1]",
            '[[tenants.a.tokens]]\nsha256 = "ab"',
            f'[[tenants.a.tokens]]\nsha256 = "{"a" * 64}"\nexpires = 2027-01-01',
            f'[[tenants.a.tokens]]\nsha256 = "{"a" * 64}"\nexpires = 2027-01-01T00:00:00',
            f'[[tenants.a.tokens]]\nsha256 = "{"a" * 64}"\ntoken = "x"',
            f'[[tenants.a.tokens]]\nsha256 = "{"a" * 64}"\n[[tenants.b.tokens]]\nsha256 = "{"a" * 64}"',
            "".join(f'[[tenants.a.tokens]]\nsha256 = "{digit * 64}"\n' for digit in "abc"),
            "not TOML",
        ],
    )
    def test_a_file_that_is_not_what_it_should_be_is_refused(self, tokens: Path, content: str) -> None:
        tokens.write_text(content)
        with pytest.raises(ConfigError) as caught:
            load_tokens(tokens)
        assert len(caught.value.message.splitlines()) == 1

    def test_the_commands(self, tmp_path: Path) -> None:
        def dqs(*arguments: str) -> tuple[int, str, str]:
            return dqs_here(tmp_path, "tokens", *arguments, DQS_TOKENS="t.toml")

        status, token, notes = dqs("new", "alpha", "--expires-days", "30")
        assert status == 0
        assert token.strip() not in notes
        assert load_tokens(tmp_path / "t.toml").find(token.strip()) is not None
        status, listed, _ = dqs("list")
        tenant, token_id, _, ends, state = listed.strip().split("\t")
        assert (status, tenant, state) == (0, "alpha", "valid")
        assert datetime.fromisoformat(ends) > datetime.now(UTC) + timedelta(days=29)
        assert token_id not in token
        assert dqs("revoke", token_id)[0] == 0
        assert load_tokens(tmp_path / "t.toml").tokens == ()
        status, _, complaint = dqs("revoke", token_id)
        assert status == 2
        assert complaint.startswith("dqs: t.toml has no token")


class TestTenantsApart:
    def test_one_never_sees_the_documents_of_another(self, redis: Redis, tokens: Path) -> None:
        alpha, beta = new_token(tokens, "alpha"), new_token(tokens, "beta")
        in_corpus = pb.ScoreOptions(policy="score-only", corpus="shared")
        with (
            LocalServer(tokens=tokens, redis_url=redis.url) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            scoring, corpora = ScoringServiceStub(channel), CorpusServiceStub(channel)  # type: ignore[no-untyped-call]

            def score(token: str, document_id: str, text: str, *, stream: bool = False) -> str:
                """Id of the document that it repeats."""
                document = pb.Document(id=document_id, text=text.encode())
                if stream:
                    request = pb.ScoreStreamRequest(sequence=1, options=in_corpus, documents=[document])
                    (answer,) = scoring.ScoreStream(iter([request]), metadata=bearer(token))
                else:
                    request = pb.ScoreBatchRequest(options=in_corpus, documents=[document])
                    answer = scoring.ScoreBatch(request, metadata=bearer(token))
                (result,) = answer.scored.results
                assert not result.HasField("error")
                return str(result.duplicate_of)

            assert score(alpha, "secret-of-alpha", ENGLISH) == ""
            keys_of_alpha = redis.key_names()
            assert score(beta, "of-beta", ENGLISH) == ""
            # Even the id of a document of alpha's is beta's to use, with another text.
            assert score(beta, "secret-of-alpha", ENGLISH[::-1], stream=True) == ""
            assert score(alpha, "copy", ENGLISH, stream=True) == "secret-of-alpha"
            assert score(beta, "copy", ENGLISH) == "of-beta"

            assert all(key.startswith(("dqs:{alpha:", "dqs:{alpha}")) for key in keys_of_alpha)
            owners = {key.partition("{")[2].partition("}")[0].partition(":")[0] for key in redis.key_names()}
            assert owners == {"alpha", "beta"}

            corpora.DropCorpus(corpus_pb2.DropCorpusRequest(corpus="shared"), metadata=bearer(beta))
            assert score(alpha, "another-copy", ENGLISH) == "secret-of-alpha"
            assert score(beta, "first-again", ENGLISH) == ""

    @pytest.mark.parametrize(
        "corpus", ["shared}:{alpha:shared", "../alpha", "}", ":", "alpha:shared", "\x00", "{alpha"]
    )
    def test_no_name_of_a_corpus_leads_to_another_tenant(self, redis: Redis, tokens: Path, corpus: str) -> None:
        beta = new_token(tokens, "beta")
        with (
            LocalServer(tokens=tokens, redis_url=redis.url) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            options = pb.ScoreOptions(policy="score-only", corpus=corpus)
            stub.ScoreBatch(batch(ENGLISH.encode(), options=options), metadata=bearer(beta))
            keys = redis.key_names()
            assert keys
            for key in keys:
                # Redis Cluster hashes what stands between the first brace and the next closing one.
                tag = key[key.index("{") + 1 : key.index("}")]
                tenant, _, of_corpus = tag.partition(":")
                assert tenant == "beta"
                assert ":" not in of_corpus


class TestRequestIds:
    def test_the_callers_id_comes_back_in_answers_and_errors(
        self, local: LocalServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with grpc.insecure_channel(local.address) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            own = (("x-request-id", "job-17/part:3"),)
            _, call = stub.GetServerInfo.with_call(INFO, metadata=own)
            assert dict(call.trailing_metadata())["x-request-id"] == "job-17/part:3"
            no_policy = pb.ScoreOptions(policy="none such", deduplication=pb.DEDUPLICATION_DISABLED)
            _, details = status_of(lambda: stub.ScoreBatch(batch(b"a", options=no_policy), metadata=own))
            assert details["ErrorInfo"].metadata["request_id"] == "job-17/part:3"

    @pytest.mark.parametrize("given", ["", "x" * 65, "two words"])
    def test_what_is_no_id_is_replaced(self, local: LocalServer, given: str) -> None:
        with grpc.insecure_channel(local.address) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            _, call = stub.GetServerInfo.with_call(INFO, metadata=(("x-request-id", given),))
            answered = str(dict(call.trailing_metadata())["x-request-id"])
        assert answered != given
        assert len(answered) == 16


class TestSilence:
    def test_neither_text_nor_tokens_come_into_logs_or_errors(
        self, tokens: Path, redis: Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        token = new_token(tokens, "alpha")
        secret = "Kwisatz"
        texts = [f"{secret} {ENGLISH}".encode(), secret.encode() + b"\xff\xfe", secret.encode() + POISON]
        errors: list[str] = []
        with (
            LocalServer(tokens=tokens, redis_url=redis.url, log_level="debug") as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            answer = stub.ScoreBatch(batch(*texts), metadata=bearer(token))
            errors += [result.error.message for result in answer.scored.results if result.HasField("error")]
            assert len(errors) == 2
            raw = channel.unary_unary("/dqs.v1.ScoringService/ScoreBatch")
            bad_policy = pb.ScoreOptions(policy="none", deduplication=pb.DEDUPLICATION_DISABLED)
            refused: list[Callable[[], Any]] = [
                lambda: raw(batch(*texts).SerializeToString() + b"\xff" + secret.encode(), metadata=bearer(token)),
                lambda: stub.ScoreBatch(batch(*texts, options=bad_policy), metadata=bearer(token)),
                lambda: stub.ScoreBatch(batch(*texts), metadata=bearer(token[:-1])),
            ]
            redis.kill()
            in_corpus = pb.ScoreOptions(policy="score-only", corpus="c")
            refused.append(lambda: stub.ScoreBatch(batch(texts[0], options=in_corpus), metadata=bearer(token)))
            for call in refused:
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                errors.append(str(caught.value))
            redis.start()
        said = caplog.text + "\n".join(errors)
        assert "incident" in said
        assert secret not in said
        assert token[:-1] not in said


def code_of(stub: Any, token: str) -> grpc.StatusCode:
    """How a call with a token ends."""
    call = stub.GetServerInfo.future(INFO, metadata=bearer(token), timeout=20)
    code: grpc.StatusCode = call.code()
    return code


def message(sequence: int) -> pb.ScoreStreamRequest:
    return pb.ScoreStreamRequest(
        sequence=sequence,
        options=NO_INDEX if sequence == 1 else None,
        documents=[pb.Document(id=str(sequence), text=b"text")],
    )
