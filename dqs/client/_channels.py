"""The way to the servers: addresses, credentials, whose turn it is, where to go when one fails."""

from __future__ import annotations

import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc

from dqs.client._failures import FIRST_BACKOFF_S, REQUEST_ID_KEY, Notices, Patience, StreamEnded, closed, failure_of
from dqs.client._options import Tls
from dqs.errors import ConfigError, Unavailable

Token: TypeAlias = "str | Callable[[], str]"
"""A bearer token, or what is asked for one before each call."""

_TOKEN_KEY = "authorization"
_SERVICE = "/dqs.v1.ScoringService"
_CORPUS_SERVICE = "/dqs.v1.CorpusService"
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # One name may stand for several servers.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Finds a server that vanished without closing the connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Without it the answer to such a ping is waited for a whole minute.
    ("grpc.http2.ping_timeout_ms", 20_000),
)
_LISTS_OF_ADDRESSES = ("ipv4:", "ipv6:")
"""Targets of gRPC in which a comma does not part one target from the next."""
_FIRST_ABSENCE_S = 0.5
_MAX_ABSENCE_S = 30.0
_YOUNG_S = 1.0
"""A server that ends streams without an answer sooner than this does not work."""


def parse_targets(target: str | Sequence[str]) -> list[str]:
    """The servers that a caller names.

    Args:
        target: one, several parted by commas, or several.

    Raises:
        ConfigError: there is none.
    """
    given = [target] if isinstance(target, str) else target
    targets = [
        part.strip()
        for one in given
        for part in ([one] if one.startswith(_LISTS_OF_ADDRESSES) else one.split(","))
        if part.strip()
    ]
    if not targets:
        raise ConfigError("No server is named: give its address as HOST:PORT.")
    return list(dict.fromkeys(targets))


def is_loopback(target: str) -> bool:
    """Whether what is sent to a target stays on this machine, as far as its name tells."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    if target.startswith(_LISTS_OF_ADDRESSES):
        return all(is_loopback(address) for address in target.partition(":")[2].split(","))
    address = target.rpartition("/")[2]  # dns:///host:port
    address = address.removeprefix("dns:")
    host = address if address.count(":") > 1 and not address.startswith("[") else address.rpartition(":")[0] or address
    host = host.partition("]")[0].removeprefix("[")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server:
    """The methods of one server.

    Args:
        target: as gRPC takes it.
        channel: to it, of either kind.
    """

    def __init__(self, target: str, channel: Any) -> None:
        self.target = target
        self.channel = channel
        self.score_stream = channel.stream_stream(f"{_SERVICE}/ScoreStream")
        self.score_batch = channel.unary_unary(f"{_SERVICE}/ScoreBatch")
        self.get_server_info = channel.unary_unary(f"{_SERVICE}/GetServerInfo")
        self.create_corpus = channel.unary_unary(f"{_CORPUS_SERVICE}/CreateCorpus")
        self.configure_corpus = channel.unary_unary(f"{_CORPUS_SERVICE}/ConfigureCorpus")
        self.list_corpora = channel.unary_unary(f"{_CORPUS_SERVICE}/ListCorpora")
        self.get_corpus = channel.unary_unary(f"{_CORPUS_SERVICE}/GetCorpus")
        self.drop_corpus = channel.unary_unary(f"{_CORPUS_SERVICE}/DropCorpus")
        self.find_documents = channel.unary_unary(f"{_CORPUS_SERVICE}/FindDocuments")
        self.delete_documents = channel.unary_unary(f"{_CORPUS_SERVICE}/DeleteDocuments")
        self.export_corpus = channel.unary_stream(f"{_CORPUS_SERVICE}/ExportCorpus")
        self.import_corpus = channel.stream_unary(f"{_CORPUS_SERVICE}/ImportCorpus")


class Servers:
    """All servers of a client.

    Args:
        grpc_module: `grpc` or `grpc.aio`.
        target: as for `parse_targets`.
        tls: None sends in clear.
        token: sent with every call.
        allow_insecure_token: whether a token may be sent in clear to another machine.

    Raises:
        ConfigError: no server is named, a file of `tls` cannot be read, or a token would travel in clear.
    """

    def __init__(
        self,
        grpc_module: Any,
        target: str | Sequence[str],
        tls: Tls | None,
        token: Token | None,
        allow_insecure_token: bool,
    ) -> None:
        targets = parse_targets(target)
        self._token = token
        if isinstance(token, str):
            _check_token(token)
        if token is not None and tls is None and not allow_insecure_token:
            for exposed in targets:
                if not is_loopback(exposed):
                    raise ConfigError(
                        f"The token would travel to {exposed} in clear: give `tls`, or `allow_insecure_token=True` "
                        "where nobody can listen."
                    )
        credentials = None
        if tls is not None:
            credentials = grpc.ssl_channel_credentials(*tls.read())
        self.all = [
            Server(
                one,
                grpc_module.insecure_channel(one, options=_CHANNEL_OPTIONS)
                if credentials is None
                else grpc_module.secure_channel(one, credentials, options=_CHANNEL_OPTIONS),
            )
            for one in targets
        ]
        self.rota = Rota(len(self.all))
        self.notices = Notices()
        self.is_closed = False
        """Whether the caller has closed the client, which ends its calls."""

    def metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """What goes along with a call; asks for the token.

        Args:
            request_id: names the call in the server's log.

        Raises:
            ConfigError: the token cannot be sent.
        """
        metadata = [(REQUEST_ID_KEY, request_id)]
        if self._token is not None:
            token = self._token if isinstance(self._token, str) else self._token()
            _check_token(token)
            metadata.append((_TOKEN_KEY, f"Bearer {token}"))
        return tuple(metadata)


def _check_token(token: str) -> None:
    if not token or not all("!" <= character <= "~" for character in token):
        raise ConfigError("The token is empty, or has white space or other characters that no token has.")


class Rota:
    """Whose turn it is among several servers: one after the other, without those that failed of late. Thread-safe.

    Args:
        size: how many servers there are.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._turn = 0
        self._absences_s = [0.0] * size
        self._back_s = [0.0] * size
        """When each may be asked again."""

    def next(self) -> int:
        """The next server that has not failed of late; the one that failed longest ago where all have."""
        with self._lock:
            size, now_s = len(self._back_s), time.monotonic()
            order = [(self._turn + step) % size for step in range(size)]
            chosen = min(order, key=lambda at: max(self._back_s[at], now_s))
            self._turn = (chosen + 1) % size
            return chosen

    def is_free(self, at: int) -> bool:
        """Whether a server has not failed of late."""
        with self._lock:
            return self._back_s[at] <= time.monotonic()

    def failed(self, at: int, at_least_s: float) -> None:
        """Leaves a server out, each time in a row for twice as long.

        Args:
            at: its number.
            at_least_s: how long the server itself asks to be spared.
        """
        with self._lock:
            self._absences_s[at] = min(_MAX_ABSENCE_S, 2 * self._absences_s[at] or _FIRST_ABSENCE_S)
            self._back_s[at] = time.monotonic() + max(self._absences_s[at], at_least_s)

    def answered(self, at: int) -> None:
        """Counts an answer."""
        # Called for every answer, and almost always in vain: looked at without the lock first.
        if self._absences_s[at]:
            with self._lock:
                self._absences_s[at] = self._back_s[at] = 0.0


class Route:
    """Where one call goes, try by try.

    Args:
        servers: to choose from.
        retry_s: how long to try without any answer.
    """

    def __init__(self, servers: Servers, retry_s: float) -> None:
        self.request_id = secrets.token_hex(8)
        """Names the call in the servers' logs, at every try."""
        if servers.is_closed:
            raise Unavailable("The client is closed: make another one.")
        self._servers = servers
        self._rota = servers.rota
        self._patience = Patience(retry_s, self.request_id, [server.target for server in servers.all], servers.notices)
        self._at = self._rota.next()
        self._opened_s = time.monotonic()
        self._has_answered = False
        self._hopeless: set[int] = set()
        """Who will not answer, however long it is asked."""

    @property
    def server(self) -> Server:
        """Whom to ask."""
        return self._servers.all[self._at]

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes along with the next try."""
        return self._servers.metadata(self.request_id)

    def answered(self) -> None:
        """Counts an answer."""
        self._has_answered = True
        self._hopeless.clear()
        self._patience.reset()
        self._rota.answered(self._at)

    def pause_s(self, error: grpc.RpcError) -> float:
        """Chooses whom to ask next, and how long to wait before that.

        Args:
            error: how the last try ended.

        Raises:
            DqsError: there is no use in another, patience has ended, or the client was closed.
        """
        if self._servers.is_closed:
            raise closed()
        now_s = time.monotonic()
        has_answered, self._has_answered = self._has_answered, False
        age_s, self._opened_s = now_s - self._opened_s, now_s
        if isinstance(error, StreamEnded) and (has_answered or age_s >= _YOUNG_S):
            if has_answered and not error.is_certain:
                # A connection that broke, perhaps: then the server has kept the answers, and is asked first.
                return FIRST_BACKOFF_S
            self._at = self._rota.next()
            return 0.0
        failure = failure_of(error, self.server.target, self.request_id)
        if not failure.may_retry:
            raise failure.error
        if failure.is_hopeless:
            self._hopeless.add(self._at)
            if len(self._hopeless) == len(self._servers.all):
                raise failure.error
        before = self._at
        # A server that was at work a moment ago may have kept the answers: it is asked
        # once more before the others, unless it says itself that it has no time.
        if not has_answered or failure.retry_after_s:
            self._rota.failed(before, failure.retry_after_s)
            self._at = self._rota.next()
        return self._patience.pause_s(
            failure, self._servers.all[before].target, at_once=self._at != before and self._rota.is_free(self._at)
        )
