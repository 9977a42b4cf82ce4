"""Errors from end to end, and the service without its Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from dqs import Client, Missing
from dqs.client import Timeouts
from dqs.client._failures import failure_of
from dqs.errors import (
    ConfigError,
    DeadlineExceeded,
    DocumentError,
    DqsError,
    IndexUnavailable,
    InternalError,
    Overloaded,
    RequestError,
    Unavailable,
)
from dqs.server.status import DETAILS_KEY, incident, rpc_status
from tests.service.serving import CHINESE, ENGLISH, Redis, ServerProcess


class FailedCall(grpc.RpcError):  # type: ignore[misc]  # gRPC ships no types
    """A call that failed with what a server sends for an error."""

    def __init__(self, error: DqsError) -> None:
        status = rpc_status(error)
        self._code = grpc.StatusCode[error.grpc_status]
        self._message = status.message
        self._trailing: tuple[Any, ...] = (("other", "x"), (DETAILS_KEY, status.SerializeToString()))

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return str(self._message)

    def trailing_metadata(self) -> Any:
        return self._trailing


def every_error() -> list[type[DqsError]]:
    classes = [DqsError]
    for known in classes:
        classes.extend(known.__subclasses__())
    return [known for known in classes if known.__module__ == "dqs.errors"]


class TestErrors:
    @pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
    def test_the_client_raises_what_the_server_meant(self, kind: type[DqsError]) -> None:
        error = DocumentError("INTERNAL", "A sentence.") if kind is DocumentError else kind("A sentence.")  # type: ignore[arg-type]
        failure = failure_of(FailedCall(error), "somewhere:1")

        # A document's error is never that of a call; the root of the tree is INTERNAL.
        expected = {DqsError: InternalError, DocumentError: RequestError}.get(kind, kind)
        assert type(failure.error) is expected
        assert failure.error.message == "A sentence."
        assert failure.may_retry == (kind in (Unavailable, Overloaded, IndexUnavailable))
        assert (failure.retry_after_s > 0) == failure.may_retry

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("INVALID_ARGUMENT", RequestError),
            ("FAILED_PRECONDITION", ConfigError),
            ("RESOURCE_EXHAUSTED", RequestError),
            ("UNAVAILABLE", Unavailable),
            ("DEADLINE_EXCEEDED", DeadlineExceeded),
            ("UNIMPLEMENTED", RequestError),
            ("DATA_LOSS", InternalError),
        ],
    )
    def test_a_status_without_details_has_a_type_too(self, code: str, kind: type[DqsError]) -> None:
        call = FailedCall(InternalError("words of gRPC's own"))
        call._code, call._trailing = grpc.StatusCode[code], ()
        failure = failure_of(call, "somewhere:1")

        assert type(failure.error) is kind
        assert "somewhere:1" in failure.error.message
        assert failure.may_retry == (code == "UNAVAILABLE")

    def test_an_unforeseen_error_keeps_its_words_to_itself(self, caplog: pytest.LogCaptureFixture) -> None:
        text = "".join(("words ", "of a ", "document"))
        try:
            raise ValueError(text)
        except ValueError as error:
            shown = incident(error)

        assert text not in shown.message + caplog.text
        assert "ValueError" in caplog.text
        assert __file__ in caplog.text


class TestWithoutRedis:
    def test_the_caller_chooses_to_fail_or_to_go_without(self, redis: Redis, tmp_path: Path) -> None:
        given = [("en", ENGLISH), ("zh", CHINESE)]
        impatient = Timeouts(retry_s=0.5)
        with (
            ServerProcess(port=0, data_dir=tmp_path, redis_url=redis.url, redis_timeout_s=1) as process,
            Client(process.address, timeouts=impatient) as client,
        ):
            before = list(client.score(given, policy="score-only"))
            redis.kill()
            with pytest.raises(IndexUnavailable):
                list(client.score(given, policy="score-only"))
            with pytest.raises(IndexUnavailable):
                client.score_batch(given, policy="score-only")
            without = list(client.score(given, policy="score-only", degrade=True))
            off = list(client.score(given, policy="score-only", corpus=None))
            redis.start()
            with Client(process.address) as patient:
                after = list(patient.score(given, policy="score-only"))
                copies = list(patient.score([("copy", ENGLISH)], policy="score-only"))

        for verdict in without:
            assert verdict.signals["exact_duplicate"] is None
            assert verdict.signals["duplicate_similarity"] is None
            assert verdict.missing["exact_duplicate"] == Missing.UNAVAILABLE
        assert {verdict.missing["exact_duplicate"] for verdict in off} == {Missing.NOT_ASKED}
        assert after == before
        assert [verdict.duplicate_of for verdict in copies] == ["en"]
