"""What callers choose: how long to wait, how much to have on its way, how to score."""

from __future__ import annotations

from dataclasses import dataclass

from dqs.v1 import scoring_pb2

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits.

    Attributes:
        connect_s: for the first contact with the server.
        answer_s: for the next answer while documents are on their way, and for a whole unary call.
        retry_s: for a lost server to come back.
    """

    connect_s: float = 10.0
    answer_s: float = 300.0
    retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """How much is on its way at a time; memory is bounded by a small multiple of it.

    Attributes:
        documents: most documents sent and not yet handed to the caller.
        text_bytes: most bytes of text sent and not yet handed to the caller, but for one longer document.
        message_documents: most documents in one message.
        message_bytes: bytes of text at which a message is full.
    """

    documents: int = 4096
    text_bytes: int = 8 * MIB
    message_documents: int = 256
    message_bytes: int = MIB // 2


def score_options(policy: str, corpus: str | None, degrade: bool) -> scoring_pb2.ScoreOptions:
    return scoring_pb2.ScoreOptions(
        policy=policy,
        corpus=corpus or "",
        deduplication=scoring_pb2.DEDUPLICATION_DISABLED if corpus is None else scoring_pb2.DEDUPLICATION_ENABLED,
        index_failure=scoring_pb2.INDEX_FAILURE_DEGRADE if degrade else scoring_pb2.INDEX_FAILURE_FAIL,
    )
