"""What callers choose: how long to wait, how much to have on its way, whom to trust, how to score."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dqs.errors import ConfigError, RequestError
from dqs.v1 import scoring_pb2

MIB = 1 << 20
_MAX_TIME_S = 1e9
"""More than anybody waits, and less than threads and gRPC refuse."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits.

    Attributes:
        connect_s: for the first contact with the server.
        answer_s: for the next answer while documents are on their way, and for a whole unary call.
        retry_s: for a lost server to come back, or another to answer.

    Raises:
        ConfigError: one of them is no length of time.
    """

    connect_s: float = 10.0
    answer_s: float = 300.0
    retry_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "answer_s", "retry_s"):
            check_time(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Window:
    """How much is on its way at a time; memory is bounded by a small multiple of it.

    Attributes:
        documents: most documents sent and not yet handed to the caller.
        text_bytes: most bytes of text sent and not yet handed to the caller, but for one longer document.
        message_documents: most documents in one message.
        message_bytes: bytes of text at which a message is full.
        message_wait_s: how long a message that is not full waits for the next document.
        streams: most calls of `score` and `score_batches` of one client that have a stream open at a
            time; the others wait for their turn, without a limit and in the order in which they came,
            so that nobody may take verdicts from more of them by turns.

    Raises:
        ConfigError: one of them leaves no room for a document, or is no length of time.
    """

    documents: int = 4096
    text_bytes: int = 8 * MIB
    message_documents: int = 256
    message_bytes: int = MIB // 2
    message_wait_s: float = 0.01
    streams: int = 64

    def __post_init__(self) -> None:
        for name in ("documents", "text_bytes", "message_documents", "message_bytes", "streams"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}` is {value!r}: give a whole number, 1 or more.")
        check_time("message_wait_s", self.message_wait_s)


@dataclass(frozen=True, slots=True)
class Tls:
    """Encryption of the connection. Each part is a path to a PEM file, or what would stand in it.

    Files are read when the client is made.

    Attributes:
        ca: authorities that the server's certificate is checked against; None for those that gRPC ships.
        cert: certificate chain that the client shows; None to show none.
        key: private key of `cert`.
    """

    ca: str | Path | bytes | None = None
    cert: str | Path | bytes | None = None
    key: str | Path | bytes | None = None

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Authorities, private key and certificate, in the order in which gRPC wants them.

        Raises:
            ConfigError: a file cannot be read, of certificate and key one is missing, or they do not fit.
        """
        if (self.cert is None) != (self.key is None):
            raise ConfigError("A client certificate needs its private key and the other way round: give both.")
        ca = _pem("authorities", self.ca, "are")
        key, cert = _pem("private key", self.key), _pem("certificate", self.cert)
        if key is not None and cert is not None:
            _check_pair(cert, key)
        return ca, key, cert


def _pem(what: str, source: str | Path | bytes | None, verb: str = "is") -> bytes | None:
    if source is None or isinstance(source, bytes):
        content = source
    else:
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise ConfigError(f"The TLS {what} in {source} cannot be read ({error.strerror}).") from None
    # gRPC takes anything, and fails at the first call with words about something else.
    if content is not None and b"-----BEGIN " not in content:
        raise ConfigError(f"The TLS {what} {verb} not in PEM format: give the file that begins with -----BEGIN.")
    return content


def _check_pair(cert: bytes, key: bytes) -> None:
    """Refuses a certificate that cannot be shown, which gRPC would not say before the server misses it."""
    if not hasattr(os, "memfd_create"):
        return

    def passphrase() -> str:
        raise ConfigError("The TLS private key has a passphrase: give one without.")

    # Python takes both from files only, and a key belongs on no disk but the caller's.
    with os.fdopen(os.memfd_create("dqs-tls"), "wb") as pair:
        pair.write(key + b"\n" + cert)
        pair.flush()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
                f"/proc/self/fd/{pair.fileno()}", password=passphrase
            )
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    "The TLS private key does not belong to the certificate: give the two that were made together."
                ) from None
            reason = error.reason.replace("_", " ").lower() if error.reason else "no PEM"
            raise ConfigError(f"The TLS certificate and private key cannot be used ({reason}): give others.") from None


def check_time(name: str, value_s: float) -> None:
    """Refuses what is no length of time, or longer than gRPC can wait.

    Raises:
        ConfigError: so it is.
    """
    if not 0 <= value_s <= _MAX_TIME_S:  # NaN is neither
        raise ConfigError(f"`{name}` is {value_s!r}: give seconds, from 0 to {_MAX_TIME_S:g}.")


def score_options(
    policy: str,
    corpus: str | None,
    *,
    degrade: bool,
    replace: bool,
    timings: bool = False,
    classifiers: Iterable[str] | None = None,
) -> scoring_pb2.ScoreOptions:
    """The options of a call on the wire.

    Raises:
        RequestError: the corpus has an empty name, or the classifiers are no names.
    """
    if corpus == "":
        raise RequestError("A corpus has a name: give one, or None to leave duplication out.", field="corpus")
    chosen = None
    if classifiers is not None:
        names = [classifiers] if isinstance(classifiers, str) else sorted(set(classifiers))
        if isinstance(classifiers, str) or not all(isinstance(name, str) for name in names):
            raise RequestError(
                "`classifiers` is a list of names: put one name into a list too, or give None for all.",
                field="classifiers",
            )
        chosen = scoring_pb2.ClassifierChoice(names=names)
    return scoring_pb2.ScoreOptions(
        policy=policy,
        corpus=corpus or "",
        deduplication=scoring_pb2.DEDUPLICATION_DISABLED if corpus is None else scoring_pb2.DEDUPLICATION_ENABLED,
        index_failure=scoring_pb2.INDEX_FAILURE_DEGRADE if degrade else scoring_pb2.INDEX_FAILURE_FAIL,
        timings=timings,
        replace=replace,
        classifiers=chosen,
    )
