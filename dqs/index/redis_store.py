"""The duplicate index: corpora of signatures in Redis.

Per corpus, all under one hash tag, so that a Redis Cluster keeps them on one node:

    header    hash: parameters (JSON), generation, buckets, documents
    records   hash: document number -> flags, time, text hash, sketch, id
    buckets   strings of 8-byte entries (fingerprint, document number); one set of
              buckets for ids, one for text hashes, one per band. Their number
              grows with the corpus by linear hashing (`grow.lua`).
    dropped   set of generations whose records and buckets are still being freed

A generation is part of the names of records and buckets: dropping a corpus
removes its header in one step, and whatever is freed later cannot be mistaken
for the data of a new corpus of the same name. Nothing here ever flushes a database.

`DuplicateStore.check_and_insert` is one atomic script call per group of
documents: look up, verify, decide, insert (`check_and_insert.lua`). Documents
are decided in order, also inside a group. A duplicate is not inserted, so an
answer always names a document that was kept. The call may be repeated: a
document that is known under the same id with the same text is not its own
duplicate.

This module is the only one that talks to Redis about duplicates; it knows
nothing of text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import redis
from numpy.typing import NDArray
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from dqs.errors import ConfigError, CorpusMismatch, IndexUnavailable, RequestError
from dqs.index.circuit import Circuit
from dqs.index.signature import NORMALISER, SHINGLE_TOKENS, SignatureParameters, Signatures

FORMAT_VERSION = 1
"""Of the layout in Redis; part of the header."""

GROUP_DOCUMENTS = 16
"""Documents per script call: 1.5 to 2 ms of Redis's time, so that other clients never wait 5 ms."""

ENTRIES_PER_BUCKET = 64
"""Mean length of a bucket from which on the corpus gets more buckets."""

FIRST_BUCKETS = 64
"""Buckets per band of a new corpus; a power of two."""

SPLIT_BUCKETS = 4
"""Buckets split by one script call; divides `FIRST_BUCKETS`."""

MAX_BUCKETS = 1 << 24
"""From here on, some 10^9 documents, buckets grow longer instead of more."""

MAX_ID_BYTES = 1024
"""Longest document id, in UTF-8 bytes."""

MAX_NAME_BYTES = 256
"""Longest name of a corpus or tenant, in UTF-8 bytes."""

MIN_REDIS_VERSION = (6, 2)

_FIXED_BUCKETS = 2  # ids and text hashes, before the bands
_BUCKET_DIGITS = 6
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_FLAG_INSERT, _FLAG_SKETCH, _FLAG_EMPTY = 1, 2, 4
_ESCAPES = {ord(character): f"%{ord(character):02X}" for character in "%:{}"}
_UNLINK_KEYS = 2000
_MAX_LAYOUT_CHANGES = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """What the index says of n documents.

    Attributes:
        duplicate_of: id of the kept document that each one repeats, else None.
        similarity: float32[n]; estimated Jaccard similarity to that document in [0, 1]; 1 for an
            exact duplicate; 0 = no duplicate; NaN = unknown (`reused_id`).
        exact: bool[n]; the normalised texts are the same.
        reused_id: bool[n]; the corpus has this id with another text; nothing was decided or stored.
    """

    duplicate_of: list[str | None]
    similarity: NDArray[np.float32]
    exact: NDArray[np.bool_]
    reused_id: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a client must know of a corpus to name its keys."""

    generation: str
    buckets: int


def connect(url: str, *, timeout_s: float = 2.0, retries: int = 2) -> redis.Redis:
    """A client for a Redis or Valkey server, checked.

    A call ends after at most `(retries + 1) * timeout_s` plus short pauses.
    Settings under which the index would lose data are logged as warnings.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        timeout_s: for connecting and for every answer.
        retries: repetitions after a lost connection or a late answer; safe, see the module.

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
        with _translated(f"Redis at {shown}"):
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
    if not persistence.get("aof_enabled") and not persistence.get("loading") and not snapshots:
        warnings.append("neither appendonly nor save is on, so a restart forgets every corpus; set appendonly yes")
    return warnings


class DuplicateStore:
    """Corpora of one tenant. Thread-safe; any number of stores and processes may share a server."""

    def __init__(
        self,
        client: redis.Redis,
        parameters: SignatureParameters | None = None,
        *,
        tenant: str = "default",
        group_documents: int = GROUP_DOCUMENTS,
    ) -> None:
        """Wraps a client, which `close` closes.

        Args:
            client: of `connect`, with undecoded replies.
            parameters: of every corpus; the default ones if None.
            tenant: corpora of different tenants never meet.
            group_documents: documents per script call.
        """
        self.parameters = parameters or SignatureParameters()
        self._client = client
        self._tenant = _key_name(tenant, "tenant")
        self._group_documents = group_documents
        self._header = json.dumps(
            {
                "format": FORMAT_VERSION,
                "normaliser": NORMALISER,
                "shingle_tokens": SHINGLE_TOKENS,
                **asdict(self.parameters),
            },
            sort_keys=True,
        )
        self._agreements = _agreements_by_difference(self.parameters.bits)
        folder = files("dqs.index")
        self._check_and_insert = client.register_script((folder / "check_and_insert.lua").read_bytes())
        self._grow = client.register_script((folder / "grow.lua").read_bytes())
        self._layouts: dict[str, _Layout] = {}
        self._lock = threading.Lock()
        self._circuit = Circuit()
        self._tenants: dict[str, DuplicateStore] = {tenant: self}

    def of(self, tenant: str) -> DuplicateStore:
        """The corpora of another tenant on the same server, through the same client.

        Args:
            tenant: name; anything of at most `MAX_NAME_BYTES`.
        """
        with self._lock:
            store = self._tenants.get(tenant)
            if store is None:
                store = DuplicateStore(
                    self._client, self.parameters, tenant=tenant, group_documents=self._group_documents
                )
                store._tenants = self._tenants
                store._circuit = self._circuit
                self._tenants[tenant] = store
            return store

    def check_and_insert(
        self, corpus: str, ids: Sequence[str], signatures: Signatures, insert: NDArray[np.bool_]
    ) -> Duplicates:
        """Looks up documents in a corpus and inserts those that repeat nothing.

        Args:
            corpus: made if it does not exist.
            ids: n document ids, unique within the corpus.
            signatures: of the n documents, made with this store's parameters.
            insert: bool[n]; false = look up only.

        Raises:
            RequestError: a name or id is empty or too long.
            CorpusMismatch: the corpus was made with other parameters.
            IndexUnavailable: Redis does not answer, is loading or is full. Groups answered
                before that stay inserted; repeating the call gives their answers again.
        """
        if signatures.parameters != self.parameters:
            raise ValueError("these signatures were made with other parameters than the store's")
        n = len(ids)
        encoded = [_encoded_id(document) for document in ids]
        result = Duplicates([None] * n, np.zeros(n, np.float32), np.zeros(n, np.bool_), np.zeros(n, np.bool_))
        if n == 0:
            return result
        fingerprints = self._fingerprints(encoded, signatures)
        packed = self._pack(signatures, fingerprints, insert)
        base = self._base(corpus)
        agreements = np.zeros(n, dtype=np.int64)
        start = 0
        while start < n:
            group = slice(start, min(start + self._group_documents, n))
            answers = self._call_group(corpus, base, fingerprints[group], packed[group], encoded[group])
            for document, answer in enumerate(answers, start):
                if not answer or answer == b"k":
                    continue
                kind = answer[:1]
                if kind == b"r":
                    result.reused_id[document] = True
                    result.similarity[document] = np.nan
                elif kind == b"x":
                    result.duplicate_of[document] = answer[1:].decode("utf-8", "surrogatepass")
                    result.exact[document] = True
                    result.similarity[document] = 1.0
                else:
                    result.duplicate_of[document] = answer[3:].decode("utf-8", "surrogatepass")
                    agreements[document] = int.from_bytes(answer[1:3], "big")
            # The script may answer fewer documents than asked, to keep its time short.
            start += len(answers)
        near = agreements > 0
        result.similarity[near] = self.parameters.similarity(agreements[near])
        return result

    @property
    def is_left_alone(self) -> bool:
        """Whether Redis did not answer a moment ago, so that calls fail without asking it."""
        return not self._circuit.would_admit()

    def documents(self, corpus: str) -> int:
        """Number of documents inserted into a corpus; 0 if there is none.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        with self._asking():
            stored = self._client.hget(self._base(corpus) + "header", "documents")
        return int(stored or 0)

    def drop_corpus(self, corpus: str) -> None:
        """Removes a corpus and frees its memory; does nothing if there is none.

        Once the header is gone no answer names a document of the corpus. Should this call
        be cut short after that, the next drop of the same name frees the rest.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        base = self._base(corpus)
        with self._lock:
            self._layouts.pop(corpus, None)
        with self._asking():
            header: dict[Any, Any] = self._client.hgetall(base + "header")
            with self._client.pipeline(transaction=True) as pipeline:
                if header:
                    parameters = json.loads(header[b"parameters"])
                    structures = _FIXED_BUCKETS + int(parameters["bands"])
                    # Others may add buckets until the header is gone; one doubling more is far away.
                    remains = f"{header[b'generation'].decode()} {structures} {2 * int(header[b'buckets'])}"
                    pipeline.sadd(base + "dropped", remains)
                    pipeline.delete(base + "header")
                pipeline.smembers(base + "dropped")
                dropped = pipeline.execute()[-1]
            for remains in dropped:
                generation, structures, buckets = remains.decode().split(" ")
                self._free(base, generation, int(structures), int(buckets))
                self._client.srem(base + "dropped", remains)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _call_group(
        self,
        corpus: str,
        base: str,
        fingerprints: NDArray[np.uint32],
        packed: Sequence[bytes],
        ids: Sequence[bytes],
    ) -> list[bytes]:
        arguments: list[bytes] = [b""] * (2 * len(ids))
        arguments[::2] = packed
        arguments[1::2] = ids
        for _ in range(_MAX_LAYOUT_CHANGES):
            layout = self._open(corpus, base)
            prefix = f"{base}{layout.generation}:"
            keys: list[Any] = [base + "header", prefix + "records", *_bucket_keys(prefix, fingerprints, layout.buckets)]
            with self._asking():
                reply: list[Any] = self._check_and_insert(
                    keys=keys,
                    args=[
                        self._header, layout.generation, layout.buckets, self.parameters.bands,
                        self.parameters.min_agreements, self.parameters.sketch_bytes, self._agreements, *arguments,
                    ],
                )  # fmt: skip
            if reply[0] == b"done":
                if ENTRIES_PER_BUCKET * layout.buckets < reply[1] and layout.buckets < MAX_BUCKETS:
                    self._split(corpus, base, layout)
                return reply[2:]
            with self._lock:
                if reply[0] == b"buckets":
                    self._layouts[corpus] = _Layout(layout.generation, int(reply[1]))
                else:
                    self._layouts.pop(corpus, None)
        raise IndexUnavailable(f"corpus {corpus} is being remade faster than it can be read; try again")

    def _open(self, corpus: str, base: str) -> _Layout:
        """The corpus's layout; makes the corpus if there is none and checks its header."""
        layout = self._layouts.get(corpus)
        if layout is not None:
            return layout
        key = base + "header"
        with _translated(), self._client.pipeline(transaction=True) as pipeline:
            # Whoever comes first makes the header; the others read it.
            pipeline.hsetnx(key, "parameters", self._header)
            pipeline.hsetnx(key, "generation", secrets.token_hex(4))
            pipeline.hsetnx(key, "buckets", str(FIRST_BUCKETS))
            pipeline.hsetnx(key, "documents", "0")
            pipeline.hmget(key, "parameters", "generation", "buckets")
            parameters, generation, buckets = pipeline.execute()[-1]
        if parameters.decode() != self._header:
            raise CorpusMismatch(
                f"corpus {corpus} was made with {_difference(parameters, self._header)}; "
                "score with these parameters, name another corpus, or drop this one"
            )
        layout = _Layout(generation.decode(), int(buckets))
        with self._lock:
            self._layouts[corpus] = layout
        return layout

    def _split(self, corpus: str, base: str, layout: _Layout) -> None:
        """Adds `SPLIT_BUCKETS` buckets per structure."""
        before = layout.buckets
        after = before + SPLIT_BUCKETS
        power = 1 << (before.bit_length() - 1)
        new = np.arange(before, after, dtype=np.uint32).reshape(-1, 1)
        shape = (SPLIT_BUCKETS, _FIXED_BUCKETS + self.parameters.bands)
        prefix = f"{base}{layout.generation}:"
        olds = _format_keys(prefix, np.broadcast_to(new - np.uint32(power), shape))
        news = _format_keys(prefix, np.broadcast_to(new, shape))
        keys: list[Any] = [base + "header", *chain.from_iterable(zip(olds, news, strict=True))]
        bit = before.bit_length() - 1
        with self._asking():
            buckets = self._grow(
                keys=keys,
                args=[layout.generation, before, after, bit // 8, 1 << (bit % 8)],
            )
        with self._lock:
            if buckets:
                self._layouts[corpus] = _Layout(layout.generation, int(buckets))
            else:
                self._layouts.pop(corpus, None)

    def _free(self, base: str, generation: str, structures: int, buckets: int) -> None:
        prefix = f"{base}{generation}:"
        self._client.unlink(prefix + "records")
        for start in range(0, buckets, _UNLINK_KEYS):
            numbers = np.arange(start, min(start + _UNLINK_KEYS, buckets), dtype=np.uint32)
            with self._client.pipeline(transaction=False) as pipeline:
                for structure in range(structures):
                    pipeline.unlink(*_format_keys(prefix, numbers.reshape(-1, 1), first_structure=structure))
                pipeline.execute()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Translates failures, and leaves a server alone that did not answer; see `Circuit`."""
        if not self._circuit.admit():
            raise IndexUnavailable("Redis did not answer a moment ago and is left alone for a while; try again shortly")
        begin_s = time.monotonic()
        try:
            with _translated():
                yield
        except IndexUnavailable as error:
            if isinstance(error.__context__, redis.ConnectionError | redis.TimeoutError):
                self._circuit.fail(time.monotonic() - begin_s)
            else:  # it answers, though not with what was asked for
                self._circuit.succeed()
            raise
        except BaseException:
            self._circuit.succeed()
            raise
        self._circuit.succeed()

    def _base(self, corpus: str) -> str:
        return f"dqs:{{{self._tenant}:{_key_name(corpus, 'corpus')}}}:"

    def _fingerprints(self, ids: Sequence[bytes], signatures: Signatures) -> NDArray[np.uint32]:
        """uint32[n, 2 + bands]: of id, text and bands."""
        digests = b"".join(hashlib.blake2b(document, digest_size=4).digest() for document in ids)
        fingerprints = np.empty((len(ids), _FIXED_BUCKETS + self.parameters.bands), dtype="<u4")
        fingerprints[:, 0] = np.frombuffer(digests, dtype="<u4")
        fingerprints[:, 1] = signatures.text_hash[:, 0].astype(np.uint32)
        fingerprints[:, _FIXED_BUCKETS:] = signatures.bands
        return fingerprints

    def _pack(self, signatures: Signatures, fingerprints: NDArray[np.uint32], insert: NDArray[np.bool_]) -> list[bytes]:
        """The packed fields of every document, see `check_and_insert.lua`."""
        n, structures = fingerprints.shape
        rows = np.empty((n, 17 + 4 * structures + self.parameters.sketch_bytes), dtype=np.uint8)
        flags = np.where(insert, _FLAG_INSERT, 0)
        flags |= np.where(signatures.shingles > 0, _FLAG_SKETCH, 0)
        flags |= np.where(signatures.text_hash.any(axis=1), 0, _FLAG_EMPTY)
        rows[:, 0] = flags
        rows[:, 1:17] = np.ascontiguousarray(signatures.text_hash.astype("<u8")).view(np.uint8)
        rows[:, 17 : 17 + 4 * structures] = fingerprints.view(np.uint8)
        rows[:, 17 + 4 * structures :] = signatures.sketch
        return _rows_as_bytes(rows)


class _CommandPacker:
    """Writes a command in Redis's protocol as one piece.

    redis-py's own packer makes a chunk, and with it a system call that wakes the server,
    of every 6,000 bytes; a group's script call has several times as many.
    """

    def pack(self, *args: str | bytes | int | float) -> list[bytes]:
        """The command `args`, whose first one may hold several words, such as `CONFIG GET`."""
        name = args[0] if isinstance(args[0], bytes) else str(args[0]).encode()
        words = name.split()
        words += [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args[1:]]
        pieces = [b"*%d\r\n" % len(words)]
        for word in words:
            pieces += (b"$%d\r\n" % len(word), word, b"\r\n")
        return [b"".join(pieces)]


def _bucket_keys(prefix: str, fingerprints: NDArray[np.uint32], buckets: int) -> list[bytes]:
    """Names of the buckets of every fingerprint, document by document, by linear hashing."""
    power = 1 << (buckets.bit_length() - 1)
    numbers = fingerprints & np.uint32(2 * power - 1)
    numbers = np.where(numbers < buckets, numbers, numbers & np.uint32(power - 1))
    return _format_keys(prefix, numbers)


def _format_keys(prefix: str, numbers: NDArray[np.uint32], first_structure: int = 0) -> list[bytes]:
    """Names of buckets: prefix, two hexadecimal digits of the structure (the column), six of the bucket."""
    head = prefix.encode()
    n, structures = numbers.shape
    keys = np.empty((n, structures, len(head) + 2 + _BUCKET_DIGITS), dtype=np.uint8)
    keys[:, :, : len(head)] = np.frombuffer(head, dtype=np.uint8)
    column = np.arange(first_structure, first_structure + structures)
    keys[:, :, len(head)] = _HEX[column >> 4]
    keys[:, :, len(head) + 1] = _HEX[column & 15]
    for digit in range(_BUCKET_DIGITS):
        shift = np.uint32(4 * (_BUCKET_DIGITS - 1 - digit))
        keys[:, :, len(head) + 2 + digit] = _HEX[(numbers >> shift) & np.uint32(15)]
    return _rows_as_bytes(keys.reshape(n * structures, -1))


def _rows_as_bytes(rows: NDArray[np.uint8]) -> list[bytes]:
    data = rows.tobytes()
    width = rows.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def _agreements_by_difference(bits: int) -> bytes:
    """For every exclusive or of two sketch bytes, how many of their entries are equal."""
    mask = (1 << bits) - 1
    return bytes(sum((value >> shift) & mask == 0 for shift in range(0, 8, bits)) for value in range(256))


def _encoded_id(document: str) -> bytes:
    # JSON may hold lone surrogates; an id is opaque, so they come back as they went in.
    encoded = document.encode("utf-8", "surrogatepass")
    if not encoded or len(encoded) > MAX_ID_BYTES:
        raise RequestError(f"a document id has {len(encoded)} bytes; give every document 1 to {MAX_ID_BYTES}")
    return encoded


def _key_name(name: str, what: str) -> str:
    """A name as part of a key; no two pairs of names share keys, and no name closes the hash tag."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= MAX_NAME_BYTES:
        raise RequestError(f"the name of a {what} needs 1 to {MAX_NAME_BYTES} bytes of valid Unicode")
    return name.translate(_ESCAPES)


def _difference(stored: bytes, wanted: str) -> str:
    try:
        theirs = json.loads(stored)
        ours = json.loads(wanted)
        names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        return ", ".join(f"{name} {theirs.get(name)} (here {ours.get(name)})" for name in names)
    except (ValueError, AttributeError):
        return "a header that this version cannot read"


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


@contextmanager
def _translated(server: str = "Redis") -> Iterator[None]:
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
            raise IndexUnavailable(f"{server} is full (maxmemory); nothing was inserted; give it more memory") from None
        if "MISCONF" in text:
            raise IndexUnavailable(f"{server} cannot write to its disk; free some space there") from None
        if "READONLY" in text:
            raise IndexUnavailable(f"{server} is a read-only replica; give the URL of the primary") from None
        if "BUSY" in text:
            raise IndexUnavailable(f"{server} is busy with a script; try again in a moment") from None
        raise IndexUnavailable(f"{server} refuses a command ({text}); check the server's version and rights") from error
