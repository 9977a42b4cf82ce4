"""A checked connection to Redis or Valkey, and its failures as sentences. Knows nothing of what is stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from dqs.errors import ConfigError, IndexUnavailable

MIN_REDIS_VERSION = (6, 2)

_log = logging.getLogger(__name__)


def connect(url: str, *, timeout_s: float = 2.0, retries: int = 2) -> redis.Redis:
    """A client for a Redis or Valkey server, checked.

    A call ends after at most `(retries + 1) * timeout_s` plus short pauses.
    Settings under which the index would lose data are logged as warnings.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        timeout_s: for connecting and for every answer.
        retries: repetitions after a lost connection or a late answer; safe, see `redis_store`.

    Raises:
        ConfigError: the URL is malformed or the server too old.
        IndexUnavailable: nothing answers there.
    """
    shown = _without_password(url)
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            command_packer=_CommandPacker(),
        )
    except ValueError as error:
        raise ConfigError(f"{shown} is not a Redis URL ({error}); give redis://HOST:PORT/0") from None
    try:
        with translated(f"Redis at {shown}"):
            version = str(_info(client, "server").get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS_VERSION:
            raise ConfigError(f"Redis at {shown} is version {version}; 6.2 or later is needed")
    except Exception:
        client.close()
        raise
    for warning in persistence_warnings(client):
        _log.warning("Redis at %s: %s", shown, warning)
    return client


def persistence_warnings(client: redis.Redis) -> list[str]:
    """One sentence per setting of the server under which the index would silently lose documents."""
    try:
        policy = str(_info(client, "memory").get("maxmemory_policy", "noeviction"))
        persistence = _info(client, "persistence")
        snapshots = client.config_get("save").get("save", "")
    except redis.RedisError:
        # Managed servers forbid CONFIG; without an answer there is nothing to warn of.
        return []
    warnings = []
    if policy != "noeviction":
        warnings.append(
            f"maxmemory-policy is {policy}, so a full server forgets documents and their duplicates are kept; "
            "set it to noeviction"
        )
    # While Redis loads its append-only file, it says that it has none.
    if not persistence.get("aof_enabled") and not persistence.get("loading"):
        if snapshots:
            warnings.append(
                f"appendonly is off, so a restart forgets what came after the last snapshot (save {snapshots}), "
                "and duplicates of it are kept; set appendonly yes"
            )
        else:
            warnings.append("neither appendonly nor save is on, so a restart forgets every corpus; set appendonly yes")
    return warnings


@dataclass(frozen=True, slots=True)
class Packed:
    """Arguments of a command that are in Redis's protocol already.

    Attributes:
        count: how many they are.
        data: `$length CR LF bytes CR LF` of each.
    """

    count: int
    data: bytes

    def then(self, more: Packed) -> Packed:
        """These arguments, and others after them."""
        return Packed(self.count + more.count, self.data + more.data)


class _CommandPacker:
    """Writes a command in Redis's protocol as one piece.

    redis-py's own packer makes a chunk, and with it a system call that wakes the server,
    of every 6,000 bytes; a group's script call has several times as many.
    """

    def pack(self, *args: str | bytes | int | float | Packed) -> list[bytes]:
        """The command `args`, whose first one may hold several words, such as `CONFIG GET`."""
        name = args[0] if isinstance(args[0], bytes) else str(args[0]).encode()
        count = 0
        pieces = [b""]
        for arg in (*name.split(), *args[1:]):
            if isinstance(arg, Packed):
                count += arg.count
                pieces.append(arg.data)
                continue
            word = arg if isinstance(arg, bytes) else str(arg).encode()
            count += 1
            pieces += (b"$%d\r\n" % len(word), word, b"\r\n")
        pieces[0] = b"*%d\r\n" % count
        return [b"".join(pieces)]


@contextmanager
def translated(server: str = "Redis") -> Iterator[None]:
    """Turns the failures of Redis into `IndexUnavailable` with a sentence each."""
    try:
        yield
    except redis.AuthenticationError:
        raise IndexUnavailable(f"{server} refuses the user name or password; correct the Redis URL") from None
    except redis.BusyLoadingError:
        raise IndexUnavailable(f"{server} is still loading its data; try again in a moment") from None
    except redis.TimeoutError:
        raise IndexUnavailable(f"{server} did not answer in time; check the server and try again") from None
    except redis.ConnectionError as error:
        detail = str(error).rstrip(".")
        raise IndexUnavailable(f"{server} cannot be reached ({detail}); start it or correct the Redis URL") from None
    except redis.ReadOnlyError:
        raise IndexUnavailable(f"{server} is a read-only replica; give the URL of the primary") from None
    except redis.ResponseError as error:
        text = str(error)
        # Redis 6.2 wraps the cause in the script's error, later ones send it as it is.
        if isinstance(error, redis.OutOfMemoryError) or "OOM " in text:
            raise IndexUnavailable(
                f"{server} is full (maxmemory) and takes nothing more; give it memory, or delete documents or corpora"
            ) from None
        if "MISCONF" in text:
            raise IndexUnavailable(f"{server} cannot write to its disk; free some space there") from None
        if "READONLY" in text:
            raise IndexUnavailable(f"{server} is a read-only replica; give the URL of the primary") from None
        if "NOREPLICAS" in text:
            raise IndexUnavailable(f"{server} has too few replicas to write (min-replicas-to-write)") from None
        if isinstance(error, redis.exceptions.MasterDownError) or "MASTERDOWN" in text:
            raise IndexUnavailable(f"{server} is a replica that has lost its primary; try again in a moment") from None
        if "BUSY" in text:
            raise IndexUnavailable(f"{server} is busy with a script; try again in a moment") from None
        raise IndexUnavailable(f"{server} refuses a command ({text}); check the server's version and rights") from error


def is_read_only(error: BaseException | None) -> bool:
    """Whether a server said that it is a replica, as the former primary does after a failover."""
    return isinstance(error, redis.ReadOnlyError) or (
        isinstance(error, redis.ResponseError) and "READONLY" in str(error)
    )


def _without_password(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.password is None and "password=" not in parts.query:
            return url
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "the given address"
    return f"{parts.scheme}://{host}{parts.path}"


def _info(client: redis.Redis, section: str) -> dict[str, Any]:
    return client.info(section)
