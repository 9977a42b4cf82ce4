"""The duplicate index: corpora of signatures in Redis. How they lie there: `layout.py`.

`DuplicateStore.check_and_insert` is one atomic script call per group of
documents: look up, verify, decide, insert (`check_and_insert.lua`). Documents
are decided in order, also inside a group. A duplicate is not inserted, so an
answer always names a document that was kept. The call may be repeated: a
document that is known under the same id with the same text has its stored
answer.

What a corpus is and how long it remembers stands in its header, which every
call checks. Nothing here ever flushes a database.

This module and `corpora.py` are the only ones that talk to Redis about
duplicates; they know nothing of text.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from dqs.errors import CorpusMismatch, IndexUnavailable
from dqs.index.bands import MAX_SAME, MAX_VERIFIED
from dqs.index.circuit import Circuit
from dqs.index.connection import Packed, connect, is_read_only, persistence_warnings, translated
from dqs.index.layout import (
    EMPTY_BINS,
    FIRST_BUCKETS,
    FIXED_STRUCTURES,
    MAX_BUCKETS,
    CorpusOptions,
    Stored,
    Submission,
    bucket_numbers,
    corpus_base,
    decoded_id,
    difference,
    encoded_id,
    find_numbers,
    id_keys,
    is_of_this_format,
    packed_words,
    read_parameters,
    registry_key,
    write_parameters,
)
from dqs.index.lines import (
    COPY_BYTES,
    FIRST_SLOTS,
    SeenLines,
    as_pairs,
    count_seen,
    distinct,
    reads,
    writes,
)
from dqs.index.signature import SignatureParameters, Signatures, similarity_of

__all__ = ["CorpusOptions", "DuplicateStore", "Duplicates", "connect", "persistence_warnings"]

GROUP_DOCUMENTS = 24
"""Documents per script call: about 1.5 ms of Redis's time, so that other clients never wait 5 ms."""

ENTRIES_PER_BUCKET = 16
"""Mean length of a bucket from which on the corpus gets more buckets."""

SPLIT_BUCKETS = 8
"""Buckets split by one script call; divides `FIRST_BUCKETS`."""

_MAX_LAYOUT_CHANGES = 100
_REMOVE_DOCUMENTS = 24
"""Looked at by one script call that removes: as long a call as one that inserts."""
_REMOVE_THREADS = 2
_FIND_DOCUMENTS = 512
_LINE_PIECES = 4
DATA = ("records", "retries", "buckets", "lines")
"""What a generation consists of, and the last part of each name."""


@dataclass(frozen=True, slots=True, eq=False)
class Duplicates:
    """What the index says of n documents.

    Attributes:
        duplicate_of: id of the kept document that each one repeats, else None.
        similarity: float32[n]; estimated Jaccard similarity to that document in [0, 1]; 1 for an
            exact duplicate; 0 = no duplicate; NaN = unknown (`reused_id`).
        exact: bool[n]; the normalised texts are the same.
        bands_met: uint8[n]; in how many bands the two documents met; 0 = no duplicate.
        lines_seen: uint8[n]; how many of the document's lines the corpus knew when it first came.
        reused_id: bool[n]; the corpus has this id with another text; nothing was decided or stored.
    """

    duplicate_of: list[str | None]
    similarity: NDArray[np.float32]
    exact: NDArray[np.bool_]
    bands_met: NDArray[np.uint8]
    lines_seen: NDArray[np.uint8]
    reused_id: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """What a client must know of a corpus to name its keys."""

    parameters: SignatureParameters
    header: str
    options: CorpusOptions
    generation: str
    buckets: int
    revision: int


@dataclass(slots=True)
class _Ageing:
    """When a corpus has something to forget, as far as this process knows.

    Attributes:
        due_s: Unix time at which the oldest document or retry leaves its window; 0 = not known yet.
    """

    due_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class DuplicateStore:
    """Corpora of one tenant. Thread-safe; any number of stores and processes may share a server."""

    def __init__(
        self,
        client: redis.Redis,
        parameters: SignatureParameters | None = None,
        *,
        options: CorpusOptions | None = None,
        tenant: str = "default",
        group_documents: int = GROUP_DOCUMENTS,
    ) -> None:
        """Wraps a client, which `close` closes.

        Args:
            client: of `connect`, with undecoded replies.
            parameters: of corpora that are made by their first document; the default ones if None.
            options: of such corpora.
            tenant: corpora of different tenants never meet.
            group_documents: documents per script call.
        """
        self.default_parameters = parameters or SignatureParameters()
        self.default_options = options or CorpusOptions()
        self.client = client
        self.tenant = tenant
        self._registry = registry_key(tenant)
        self._group_documents = group_documents
        folder = files("dqs.index")
        common = (folder / "common.lua").read_bytes()
        self._scripts = {
            name: client.register_script(common + (folder / f"{name}.lua").read_bytes())
            for name in ("check_and_insert", "grow", "remove", "remember_lines", "double_lines", "configure", "drop")
        }
        self._layouts: dict[str, Layout] = {}
        self._openings: dict[str, tuple[Layout, Packed]] = {}
        self._ageing: dict[str, _Ageing] = {}
        self._line_slots: dict[str, int] = {}
        self._lock = threading.Lock()
        self._circuit = Circuit()
        self._threads = threading.local()
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
                    self.client,
                    self.default_parameters,
                    options=self.default_options,
                    tenant=tenant,
                    group_documents=self._group_documents,
                )
                store._tenants = self._tenants
                store._circuit = self._circuit
                store._threads = self._threads
                self._tenants[tenant] = store
            return store

    def parameters(self, corpus: str) -> SignatureParameters:
        """How documents must be signed for a corpus; those that it will be made with if there is none.

        Raises:
            RequestError: the name is empty or too long.
            CorpusMismatch: this version cannot read the corpus.
            IndexUnavailable: Redis does not answer.
        """
        layout = self._layouts.get(corpus) or self.read_layout(corpus)
        return self.default_parameters if layout is None else layout.parameters

    def check_and_insert(
        self,
        corpus: str,
        ids: Sequence[str],
        signatures: Signatures,
        insert: NDArray[np.bool_],
        *,
        lines_seen: NDArray[np.uint8] | None = None,
        replace: bool = False,
        unchecked: bool = False,
    ) -> Duplicates:
        """Looks up documents in a corpus and inserts those that repeat nothing.

        Args:
            corpus: made if it does not exist.
            ids: n document ids, unique within the corpus.
            signatures: of the n documents, made with the corpus's parameters.
            insert: bool[n]; false = look up only.
            lines_seen: uint8[n]; of `see_lines`, stored and given back when a document is answered again.
            replace: a document whose id the corpus has with another text takes its place:
                the other one is forgotten in the same step.
            unchecked: keeps documents whatever they repeat, as an import does.

        Raises:
            RequestError: a name or id is empty or too long.
            CorpusMismatch: the corpus was made with other parameters.
            IndexUnavailable: Redis does not answer, is loading or is full. Groups answered
                before that stay inserted; repeating the call gives their answers again.
        """
        n = len(ids)
        encoded = [encoded_id(document) for document in ids]
        result = Duplicates(
            [None] * n,
            np.zeros(n, np.float32),
            np.zeros(n, np.bool_),
            np.zeros(n, np.uint8),
            np.zeros(n, np.uint8) if lines_seen is None else lines_seen.copy(),
            np.zeros(n, np.bool_),
        )
        if n == 0:
            return result
        base = corpus_base(self.tenant, corpus)
        submission = Submission.of(encoded, signatures, insert, result.lines_seen, unchecked=unchecked, replace=replace)
        counts = np.zeros((n, 3), dtype=np.int64)
        start = 0
        while start < n:
            answers = self._call_group(corpus, base, submission, start, min(start + self._group_documents, n))
            for document, answer in enumerate(answers, start):
                if not answer:
                    continue
                kind = answer[:1]
                if kind == b"r":
                    result.reused_id[document] = True
                    result.similarity[document] = np.nan
                    continue
                result.lines_seen[document] = answer[1]
                if kind == b"k":
                    continue
                result.bands_met[document] = answer[2]
                if kind == b"x":
                    result.duplicate_of[document] = decoded_id(answer[3:])
                    result.exact[document] = True
                    result.similarity[document] = 1.0
                else:
                    result.duplicate_of[document] = decoded_id(answer[9:])
                    counts[document] = np.frombuffer(answer, dtype=">u2", count=3, offset=3)
            # The script may answer fewer documents than asked, to keep its time short.
            start += len(answers)
        near = np.flatnonzero(counts[:, 2])
        if near.size:
            result.similarity[near] = similarity_of(*counts[near].T)
        return result

    def see_lines(self, corpus: str, lines: NDArray[np.uint32]) -> SeenLines | None:
        """Which lines of n documents earlier documents of the corpus had; see `dqs.index.lines`.

        Args:
            corpus: none of its lines is known if there is no such corpus.
            lines: uint32[n, LINES] of their signatures.

        Returns:
            None where the corpus remembers no lines.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        layout = self._layouts.get(corpus) or self.read_layout(corpus)
        if not (self.default_options if layout is None else layout.options).line_slots:
            return None
        hashes, of, first = distinct(lines)
        pairs = np.zeros((hashes.size, 2), dtype=np.uint32)
        slots = self._line_slots.get(corpus, FIRST_SLOTS)
        if layout is not None and hashes.size:
            base = corpus_base(self.tenant, corpus)
            # The number of slots is asked for along with what stands in them, which is most often the known one.
            for _ in range(_MAX_LAYOUT_CHANGES):
                with self.asking(), self.client.pipeline(transaction=False) as pipeline:
                    pipeline.hget(base + "header", "line_slots")
                    for packed in reads(hashes, slots):
                        pipeline.execute_command(  # type: ignore[no-untyped-call]
                            "BITFIELD_RO", f"{base}{layout.generation}:lines", packed
                        )
                    now, *parts = pipeline.execute()
                if int(now or slots) == slots:
                    break
                slots = self._line_slots[corpus] = int(now)
            pairs = as_pairs([number for part in parts for number in part])
        return SeenLines(lines, hashes, of, pairs, slots, count_seen(lines, hashes, of, first, pairs))

    def remember_lines(self, corpus: str, seen: SeenLines, kept: NDArray[np.bool_]) -> None:
        """Takes down the lines of documents that were kept.

        Args:
            corpus: does nothing if it is gone.
            seen: what `see_lines` has returned for n documents.
            kept: bool[n].

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        layout = self._layouts.get(corpus)
        unknown = seen.unknown(kept)
        if layout is None or not unknown.size:
            return
        base = corpus_base(self.tenant, corpus)
        lines = 0
        for packed, fresh in writes(seen.hashes[unknown], seen.pairs[unknown], seen.slots):
            reply = self._run("remember_lines", base, layout.generation, [fresh], packed)
            if reply[0] != b"done":
                return
            lines = int(reply[1])
        # From a quarter full on, too many a line would push out another. A few pieces at a time, so that nobody
        # waits long.
        slots = seen.slots
        for _ in range(_LINE_PIECES):
            if 4 * lines <= slots or 2 * slots > layout.options.line_slots:
                break
            reply = self._run("double_lines", base, layout.generation, [slots, COPY_BYTES])
            if reply[0] != b"done":
                break
            slots = int(reply[1])

    @property
    def is_left_alone(self) -> bool:
        """Whether Redis did not answer a moment ago, so that calls fail without asking it."""
        return not self._circuit.would_admit()

    def documents(self, corpus: str) -> int:
        """Number of kept documents in a corpus; 0 if there is none.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        with self.asking():
            stored = self.client.hget(corpus_base(self.tenant, corpus) + "header", "documents")
        return int(stored or 0)

    def create(
        self, corpus: str, parameters: SignatureParameters | None = None, options: CorpusOptions | None = None
    ) -> bool:
        """Makes a corpus.

        Args:
            corpus: its name.
            parameters: of its signatures; the store's default ones if None.
            options: what may be changed later; the store's default ones if None.

        Returns:
            False if there is one with the same parameters, which keeps its options.

        Raises:
            RequestError: the name is empty or too long.
            CorpusMismatch: there is one with other parameters.
            IndexUnavailable: Redis does not answer.
        """
        generation = secrets.token_hex(4)
        wanted = parameters or self.default_parameters
        layout = self._make(corpus, generation, wanted, options or self.default_options)
        if layout.parameters != wanted:
            raise CorpusMismatch(
                f"corpus {corpus} exists and was made with {difference(layout.parameters, wanted)}; "
                "name another corpus, or drop this one"
            )
        return layout.generation == generation

    def configure(self, corpus: str, options: CorpusOptions) -> None:
        """Changes the options of a corpus; shorter windows take effect at once and are freed while it is in use.

        Raises:
            CorpusMismatch: there is no such corpus, or this version cannot read it.
            IndexUnavailable: Redis does not answer.
        """
        layout = self.read_layout(corpus)
        if layout is None:
            raise CorpusMismatch(f"there is no corpus {corpus}; create it, or score documents into it")
        fields = [word for pair in _option_fields(options).items() for word in pair]
        self._run("configure", corpus_base(self.tenant, corpus), layout.generation, fields)
        with self._lock:
            self._layouts.pop(corpus, None)
            self._ageing.pop(corpus, None)

    def delete(self, corpus: str, ids: Iterable[str]) -> int:
        """Deletes documents: when it returns, no answer names them and Redis holds nothing of them.

        What Redis has written to its disk before is there until it next rewrites its files; see
        `dqs.index.corpora.rewrite_files`. A line that they brought into the corpus stays known as seen.

        Args:
            corpus: does nothing if there is none.
            ids: of kept documents, or of others whose answer is remembered; unknown ones are passed over.

        Returns:
            How many ids were known.

        Raises:
            RequestError: a name or id is empty or too long.
            IndexUnavailable: Redis does not answer; repeat the call.
        """
        encoded = list(dict.fromkeys(encoded_id(document) for document in ids))
        base = corpus_base(self.tenant, corpus)
        raw = id_keys(encoded).tobytes()

        def remove(start: int) -> int:
            part = encoded[start : start + _REMOVE_DOCUMENTS]
            pairs = [word for place, id_ in enumerate(part, start) for word in (raw[4 * place : 4 * place + 4], id_)]
            reply = self._call_remove(corpus, base, ["ids"], Packed(len(pairs), packed_words(pairs)))
            return 0 if reply is None else int(reply[1])

        starts = range(0, len(encoded), _REMOVE_DOCUMENTS)
        if len(starts) < _REMOVE_THREADS:
            return sum(map(remove, starts))
        # One call is written while Redis works on another, and nobody else waits longer than for one of them.
        pool = ThreadPoolExecutor(_REMOVE_THREADS, thread_name_prefix="dqs-delete")
        try:
            return sum(pool.map(remove, starts))
        finally:
            pool.shutdown(cancel_futures=True)

    def find(self, corpus: str, ids: Iterable[str]) -> list[Stored]:
        """What a corpus holds under some ids: kept documents, and remembered answers about others.

        Raises:
            RequestError: a name or id is empty or too long.
            IndexUnavailable: Redis does not answer.
        """
        encoded = [encoded_id(document) for document in ids]
        base = corpus_base(self.tenant, corpus)
        parts = (encoded[start : start + _FIND_DOCUMENTS] for start in range(0, len(encoded), _FIND_DOCUMENTS))
        return [stored for part in parts for stored in self._find(corpus, base, part)]

    def expire(self, corpus: str, budget: int) -> int:
        """Forgets what has left the corpus's windows, the oldest first.

        `check_and_insert` does so along with its work; a corpus that is not in use needs somebody to call this.

        Args:
            corpus: does nothing if there is none.
            budget: looks at no more documents than this.

        Returns:
            How many documents and answers were removed.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        base = corpus_base(self.tenant, corpus)
        removed = 0
        while budget > 0:
            layout = self._layouts.get(corpus) or self.read_layout(corpus)
            if layout is None:
                break
            options = layout.options
            look_at = min(budget, _REMOVE_DOCUMENTS)
            most = "" if options.window_documents is None else options.window_documents
            reply = self._call_remove(corpus, base, ["expired", look_at, most, options.retry_documents])
            if reply is None:
                break
            removed += int(reply[1])
            budget -= look_at
            due_s = float(reply[3]) if reply[3] else float("inf")
            self._ageing.setdefault(corpus, _Ageing()).due_s = due_s
            if due_s > 0:
                break
        return removed

    def drop_corpus(self, corpus: str) -> None:
        """Removes a corpus and frees its memory; does nothing if there is none.

        Once the header is gone no answer names a document of the corpus. Should this call
        be cut short after that, the next drop of the same name frees the rest.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        base = corpus_base(self.tenant, corpus)
        with self._lock:
            self._layouts.pop(corpus, None)
            self._ageing.pop(corpus, None)
        with self.asking():
            generation, parameters = self.client.hmget(base + "header", "generation", "parameters")
            dropped: Any = self._scripts["drop"](keys=[base + "header", base + "dropped"], args=[generation or b""])
            if parameters is not None and not is_of_this_format(parameters):
                # Other formats have keys of other names.
                for key in self.client.scan_iter(match=_literally(base) + b"*", count=1000):
                    if not key.endswith(b"dropped"):
                        self.client.unlink(key)
            for generation in dropped:
                # Redis frees them in a thread of its own.
                self.client.unlink(*(f"{base}{generation.decode()}:{name}" for name in DATA))
                self.client.srem(base + "dropped", generation)
            self.client.srem(self._registry, corpus.encode())

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    def read_layout(self, corpus: str) -> Layout | None:
        """Reads a corpus's header; None if there is no such corpus.

        Raises:
            RequestError: the name is empty or too long.
            CorpusMismatch: this version cannot read the corpus.
            IndexUnavailable: Redis does not answer.
        """
        key = corpus_base(self.tenant, corpus) + "header"
        with self.asking():
            values = self.client.hmget(key, "parameters", "generation", "buckets", "options", "revision")
        return self._remember(corpus, values) if values[0] is not None else None

    def _make(self, corpus: str, generation: str, parameters: SignatureParameters, options: CorpusOptions) -> Layout:
        """Makes the corpus if there is none, and returns the layout of the one there is."""
        key = corpus_base(self.tenant, corpus) + "header"
        first = {
            "parameters": write_parameters(parameters),
            "generation": generation,
            "buckets": str(FIRST_BUCKETS),
            "created_s": str(int(time.time())),
            **_option_fields(options),
            **dict.fromkeys(_COUNTERS, "0"),
            "line_slots": str(FIRST_SLOTS),
        }
        with self.asking():
            # Listed before it is there, or a kill in between would hide it.
            self.client.sadd(self._registry, corpus.encode())
            with self.client.pipeline(transaction=True) as pipeline:
                # Whoever comes first makes the header; the others read it.
                for name, value in first.items():
                    pipeline.hsetnx(key, name, value)
                pipeline.hmget(key, "parameters", "generation", "buckets", "options", "revision")
                values = pipeline.execute()[-1]
        return self._remember(corpus, values)

    def _remember(self, corpus: str, values: Sequence[Any]) -> Layout:
        parameters, generation, buckets, options, revision = (value or b"" for value in values)
        read = read_parameters(corpus, parameters)
        layout = Layout(
            read, parameters.decode(), CorpusOptions.read(options), generation.decode(), int(buckets), int(revision)
        )
        with self._lock:
            self._layouts[corpus] = layout
        return layout

    def _call_group(self, corpus: str, base: str, submission: Submission, start: int, stop: int) -> list[bytes]:
        parameters = submission.signatures.parameters
        for _ in range(_MAX_LAYOUT_CHANGES):
            layout = self._layouts.get(corpus) or self._make(
                corpus, secrets.token_hex(4), self.default_parameters, self.default_options
            )
            if layout.parameters != parameters:
                raise CorpusMismatch(
                    f"corpus {corpus} was made with {difference(layout.parameters, parameters)}; "
                    "score with these parameters, name another corpus, or drop this one"
                )
            documents = Packed(1, packed_words([b"%d" % (stop - start)])).then(
                submission.pack(start, stop, layout.buckets)
            )
            reply = self._evaluate("check_and_insert", self._opening(base, layout).then(documents))
            if reply[0] == b"done":
                self._look_after(corpus, base, layout, reply, stop - start)
                return reply[6:]
            self._note(corpus, layout, reply)
        raise IndexUnavailable(f"corpus {corpus} is being remade faster than it can be read; try again")

    def _call_remove(
        self, corpus: str, base: str, arguments: Sequence[Any], more: Packed | None = None
    ) -> list[Any] | None:
        """Calls `remove.lua`; None where there is no such corpus."""
        for _ in range(_MAX_LAYOUT_CHANGES):
            layout = self._layouts.get(corpus) or self.read_layout(corpus)
            if layout is None:
                return None
            parameters = layout.parameters
            reply = self._run(
                "remove", base, layout.generation, [parameters.bands, parameters.sketch_bytes, *arguments], more
            )
            if reply[0] == b"done":
                return reply
            self._note(corpus, layout, reply)
        raise IndexUnavailable(f"corpus {corpus} is being remade faster than it can be read; try again")

    def _note(self, corpus: str, layout: Layout, reply: Sequence[Any]) -> None:
        """Takes down that a corpus has changed."""
        with self._lock:
            if reply[0] == b"buckets":
                self._layouts[corpus] = replace(layout, buckets=int(reply[1]))
            else:
                self._layouts.pop(corpus, None)

    def _look_after(self, corpus: str, base: str, layout: Layout, reply: Sequence[Any], asked: int) -> None:
        """Adds buckets to a corpus that has grown, and forgets what has left its windows."""
        documents, retries, oldest_retry, seconds, revision = map(int, reply[1:6])
        if revision != layout.revision:
            # Somebody has changed the options.
            self.read_layout(corpus)
            self._ageing.pop(corpus, None)
            return
        remembered = retries - oldest_retry
        # Answers stand in the buckets of ids alone, which may be four times as long as the others.
        longest = max(documents, (documents + remembered) // 4)
        if ENTRIES_PER_BUCKET * layout.buckets < longest and layout.buckets < MAX_BUCKETS:
            structures = FIXED_STRUCTURES + layout.parameters.bands
            grown = [layout.buckets, layout.buckets + SPLIT_BUCKETS, structures]
            self._note(corpus, layout, self._run("grow", base, layout.generation, grown))
        options = layout.options
        ageing = self._ageing.setdefault(corpus, _Ageing())
        if (
            seconds >= ageing.due_s
            or (options.window_documents is not None and documents > options.window_documents)
            or remembered > options.retry_documents
        ) and ageing.lock.acquire(blocking=False):
            try:
                self.expire(corpus, 2 * asked)
            finally:
                ageing.lock.release()

    def _find(self, corpus: str, base: str, ids: Sequence[bytes]) -> list[Stored]:
        keys = id_keys(ids)
        raw = keys.tobytes()
        wanted = set(ids)
        buckets: list[bytes | None] = []
        parameters, prefix = self.default_parameters, ""
        for _ in range(_MAX_LAYOUT_CHANGES):
            layout = self.read_layout(corpus)
            if layout is None or not ids:
                return []
            parameters = layout.parameters
            prefix = f"{base}{layout.generation}:"
            numbers = bucket_numbers(keys, layout.buckets).astype(">u4").tobytes()
            fields = [numbers[start : start + 4] for start in range(0, len(numbers), 4)]
            # No transaction, which a full server refuses: if the header, read last, has no more buckets, none were
            # split before they were read.
            with self.asking(), self.client.pipeline(transaction=False) as pipeline:
                pipeline.hmget(prefix + "buckets", fields)
                pipeline.hmget(base + "header", "generation", "buckets")
                buckets, now = pipeline.execute()
            if now == [layout.generation.encode(), b"%d" % layout.buckets]:
                break
        found: list[Stored] = []
        named = [
            number for place, bucket in enumerate(buckets) for number in find_numbers(bucket, raw[4 * place :][:4])
        ]
        for name, part in (
            ("records", [number for number in named if number[0] < 128]),
            ("retries", [number for number in named if number[0] >= 128]),
        ):
            if part:
                with self.asking():
                    values: list[Any] = self.client.hmget(prefix + name, part)
                found += [
                    Stored.of(number, value, parameters)
                    for number, value in zip(part, values, strict=True)
                    if value is not None
                ]
        return [stored for stored in found if stored.id in wanted]

    def _run(
        self, script: str, base: str, generation: str, arguments: Sequence[Any], more: Packed | None = None
    ) -> list[Any]:
        """Calls a script; `more` are arguments in Redis's protocol already."""
        keys = [base + "header", *(f"{base}{generation}:{name}" for name in DATA)]
        words = [str(word).encode() for word in (self._scripts[script].sha, len(keys), *keys, generation, *arguments)]
        packed = Packed(len(words), packed_words(words))
        return self._evaluate(script, packed if more is None else packed.then(more))

    def _opening(self, base: str, layout: Layout) -> Packed:
        """The arguments of `check_and_insert.lua` that are the same for all documents."""
        known = self._openings.get(base)
        if known is None or known[0] is not layout:
            parameters = layout.parameters
            keys = [base + "header", *(f"{base}{layout.generation}:{name}" for name in DATA)]
            words = [
                self._scripts["check_and_insert"].sha, len(keys), *keys, layout.generation, layout.header,
                layout.buckets, parameters.bands, parameters.bins, repr(parameters.least_similarity),
            ]  # fmt: skip
            encoded = [str(word).encode() for word in words]
            encoded += (EMPTY_BINS, b"%d" % MAX_SAME, b"%d" % MAX_VERIFIED)
            known = self._openings[base] = (layout, Packed(len(encoded), packed_words(encoded)))
        return known[1]

    def _evaluate(self, script: str, arguments: Packed) -> list[Any]:
        with self.asking():
            for _ in range(2):
                try:
                    reply: list[Any] = self._own_client().execute_command("EVALSHA", arguments)  # type: ignore[no-untyped-call]
                    return reply
                except redis.exceptions.NoScriptError:
                    # A restart or SCRIPT FLUSH has lost it.
                    self.client.script_load(self._scripts[script].script)
        raise IndexUnavailable("Redis forgets scripts as soon as they are loaded; check the server")

    def _own_client(self) -> redis.Redis:
        """A client with a connection of this thread's own: to take one from the pool costs as much as a small call."""
        client: redis.Redis | None = getattr(self._threads, "client", None)
        if client is None:
            client = self._threads.client = self.client.client()  # type: ignore[no-untyped-call]
        return client

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Translates failures, and leaves a server alone that did not answer; see `Circuit`."""
        if not self._circuit.admit():
            raise IndexUnavailable("Redis did not answer a moment ago and is left alone for a while; try again shortly")
        begin_s = time.monotonic()
        try:
            with translated():
                yield
        except IndexUnavailable as error:
            if isinstance(error.__context__, redis.ConnectionError | redis.TimeoutError):
                self._circuit.fail(time.monotonic() - begin_s)
            else:  # it answers, though not with what was asked for
                self._circuit.succeed()
                if is_read_only(error.__context__):
                    # The name may stand for another server by now; old connections would stay with this one.
                    self.client.connection_pool.disconnect(inuse_connections=False)
                    own = self._own_client().connection
                    if own is not None:
                        own.disconnect()  # type: ignore[no-untyped-call]
            raise
        except BaseException:
            self._circuit.succeed()
            raise
        self._circuit.succeed()


def _literally(text: str) -> bytes:
    """A pattern of Redis that matches this text alone."""
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", text.encode())


_COUNTERS = (
    "documents", "next", "oldest", "retries_next", "retries_oldest", "asked", "exact", "near", "retried", "reused",
    "replaced", "deleted", "expired", "id_bytes", "sketched", "unbanded", "lines", "lines_copied", "revision",
)  # fmt: skip


def _option_fields(options: CorpusOptions) -> dict[Any, Any]:
    """The fields of a header that hold options; those that the scripts read stand by themselves too."""
    return {
        "options": options.write(),
        "window_s": "" if options.window_s is None else repr(options.window_s),
        "retry_s": repr(options.retry_s),
    }
