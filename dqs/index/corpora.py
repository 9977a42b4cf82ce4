"""The life of corpora: made, listed, measured, exported, imported, pruned, dropped. How they lie in Redis: `layout.py`.

`redis_store.py` answers for documents, this module for whole corpora. Nothing here holds Redis
for long: what is large is read and removed in pieces of a millisecond or so.
"""

from __future__ import annotations

import enum
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from dqs.errors import CorpusMismatch, CorpusNotFound, RequestError
from dqs.index.layout import (
    ENTRY_BYTES,
    FIXED_STRUCTURES,
    CorpusOptions,
    Stored,
    corpus_base,
    decoded_id,
    encoded_id,
    read_parameters,
    registry_key,
    write_parameters,
)
from dqs.index.redis_store import DATA, DuplicateStore, Layout
from dqs.index.signature import LINES, SignatureParameters, Signatures

PIECE_NUMBERS = 256
"""Document numbers that one command of an export reads: less than a millisecond of Redis's time, and than 1 MiB."""

DELETE_IDS = 1024
"""Ids that are deleted together: 32 script calls, after which others that wait have their turn."""

_LISTED_TOGETHER = 256
_SAMPLED_FIELDS = 2000
_SAMPLED_VALUES = 200
_FIELD_BYTES = 64
"""About what Redis needs for a field of a hash beside its value: entry, place in the table, name, two lengths."""

# Adds to or sets a field of a header, unless the corpus is another one by now; returns whether it has.
_CHANGE = """
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return 0 end
if ARGV[2] == 'add' then redis.call('HINCRBY', KEYS[1], ARGV[3], ARGV[4])
elseif ARGV[2] == 'set' then redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
else redis.call('HDEL', KEYS[1], ARGV[3]) end
return 1
"""
_RETRY_NAMED = slice(26, 31)
"""Where a retry holds the number of the document that it names."""


class FileRewrite(enum.Enum):
    """What became of the wish to have deleted bytes off Redis's disk."""

    STARTED = "started"
    BUSY = "busy"
    NO_FILE = "no file"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Rewriting:
    """The answer of `rewrite_files`.

    Attributes:
        outcome: what happened.
        message: one sentence for a person where it was refused or Redis is busy, else empty.
    """

    outcome: FileRewrite
    message: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One corpus in a list.

    Attributes:
        corpus: its name.
        documents: kept ones.
        bytes: memory in Redis, estimated by Redis.
        created_s: Unix time at which it was made.
    """

    corpus: str
    documents: int
    bytes: int
    created_s: int


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened in a corpus since it was made, in documents.

    Attributes:
        asked: asked about, again or for the first time.
        exact: of these, first asked about and of the same text as a kept one.
        near: of these, first asked about and similar to a kept one.
        retried: of these, answered as before.
        reused: of these, refused: an id that came before with another text.
        replaced: took the place of another one with their id.
        deleted: kept and then deleted.
        expired: kept, and removed after they had left the windows.
        imported: of `asked`, kept unchecked by an import.
    """

    asked: int = 0
    exact: int = 0
    near: int = 0
    retried: int = 0
    reused: int = 0
    replaced: int = 0
    deleted: int = 0
    expired: int = 0
    imported: int = 0

    @property
    def hit_rate(self) -> float | None:
        """(exact + near) / (asked - retried - reused - imported); None where that divides by 0.

        Of the documents that were decided about, the share that repeats a kept one.
        """
        decided = self.asked - self.retried - self.reused - self.imported
        return (self.exact + self.near) / decided if decided > 0 else None


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated memory of a corpus in Redis by what it is for, in bytes.

    The totals per hash are Redis's own estimates (MEMORY USAGE); that of the buckets is split
    in proportion to a random sample of their fields.

    Attributes:
        lsh: buckets of the bands.
        record: records of kept documents without their ids, and the buckets of text hashes.
        id: ids of kept documents, and their part of the buckets of ids.
        retries: remembered answers, and their part of the buckets of ids.
        lines: the table of lines.
        sampled_fields: fields of the buckets that were looked at.
    """

    lsh: int
    record: int
    id: int
    retries: int
    lines: int
    sampled_fields: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.lsh + self.record + self.id + self.retries + self.lines


@dataclass(frozen=True, slots=True)
class Description:
    """One corpus.

    Attributes:
        corpus: its name.
        parameters: how its documents are signed.
        options: how long it remembers.
        created_s: Unix time at which it was made.
        documents: kept ones.
        sketched: those of them that are long enough to have a sketch.
        retries: remembered answers about documents that were not kept.
        buckets: per structure; there is one structure per band, one of ids, one of text hashes.
        lines: hashes that were put into the table of lines; some may have been overwritten since.
        line_slots: hashes that the table has room for now.
        counters: what happened so far.
        memory: None where it was not asked for.
    """

    corpus: str
    parameters: SignatureParameters
    options: CorpusOptions
    created_s: int
    documents: int
    sketched: int
    retries: int
    buckets: int
    lines: int
    line_slots: int
    counters: Counters
    memory: Memory | None

    @property
    def lsh_bytes_per_document_and_band(self) -> float:
        """Bytes of the buckets of the bands per document with a sketch and band; 0 where there is no such document."""
        if self.memory is None or not self.sketched:
            return 0.0
        return self.memory.lsh / self.sketched / self.parameters.bands


class State(enum.Enum):
    """What a corpus knows of a document."""

    UNKNOWN = "unknown"
    KEPT = "kept"
    EXACT_DUPLICATE = "exact duplicate"
    NEAR_DUPLICATE = "near-duplicate"
    NOT_KEPT = "not kept"


@dataclass(frozen=True, slots=True)
class Found:
    """What a corpus holds under one id.

    Attributes:
        id: as asked for.
        state: what is known.
        seconds: Unix time at which it was kept or answered; 0 where nothing is known.
        duplicate_of: the kept document that it repeats; None where there is none, or it has been forgotten.
    """

    id: str
    state: State
    seconds: int = 0
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True)
class ExportHeader:
    """What an export must be read with.

    Attributes:
        parameters: how the documents are signed.
        options: how long the corpus remembers.
        export_id: names this export, so that a broken import of it can go on.
        documents: kept ones at its beginning.
    """

    parameters: SignatureParameters
    options: CorpusOptions
    export_id: str
    documents: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredDocuments:
    """n documents as a corpus holds them.

    Attributes:
        ids: as stored.
        seconds: uint32[n]; Unix time at which each was kept.
        text_hash: uint8[n, 16]; little-endian.
        lines_seen: uint8[n]; how many of its lines the corpus knew.
        has_sketch: bool[n].
        bands: uint8[n, 4 * bands]; keys, little-endian; zeros without a sketch.
        sketch: uint8[n, sketch_bytes]; zeros without a sketch.
    """

    ids: list[bytes]
    seconds: NDArray[np.uint32]
    text_hash: NDArray[np.uint8]
    lines_seen: NDArray[np.uint8]
    has_sketch: NDArray[np.bool_]
    bands: NDArray[np.uint8]
    sketch: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, stored: Sequence[Stored], parameters: SignatureParameters) -> StoredDocuments:
        """The columns of some records."""
        n, no_bands, no_sketch = len(stored), bytes(4 * parameters.bands), bytes(parameters.sketch_bytes)

        def matrix(rows: list[bytes]) -> NDArray[np.uint8]:
            return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(n, -1 if n else 0)

        return cls(
            [one.id for one in stored],
            np.array([one.seconds for one in stored], dtype=np.uint32),
            matrix([one.text_hash for one in stored]),
            np.array([one.lines_seen for one in stored], dtype=np.uint8),
            np.array([bool(one.sketch) for one in stored], dtype=np.bool_),
            matrix([one.bands or no_bands for one in stored]),
            matrix([one.sketch or no_sketch for one in stored]),
        )

    def check(self, parameters: SignatureParameters) -> None:
        """Refuses columns that do not fit together.

        Raises:
            RequestError: so it is.
        """
        n = len(self)
        for name, width in (("text_hash", 16), ("bands", 4 * parameters.bands), ("sketch", parameters.sketch_bytes)):
            if getattr(self, name).shape != (n, width):
                raise RequestError(f"The documents have {name} of the wrong size: export the corpus again.")
        if any(getattr(self, name).shape != (n,) for name in ("seconds", "lines_seen", "has_sketch")):
            raise RequestError("The documents have columns of unlike length: export the corpus again.")

    def signatures(self, parameters: SignatureParameters) -> Signatures:
        """What the documents are inserted with; of the number of shingles only whether there are any is kept."""
        return Signatures(
            parameters,
            self.has_sketch.astype(np.int32),
            np.ascontiguousarray(self.text_hash).view("<u8").astype(np.uint64),
            np.ascontiguousarray(self.bands).view("<u4").astype(np.uint32),
            self.sketch,
            np.zeros((len(self), LINES), dtype=np.uint32),
        )


@dataclass(slots=True)
class Imported:
    """What became of imported documents.

    Attributes:
        imported: put into the corpus.
        known: were there already, with the same text.
        conflicts: left out, because the corpus has their id with another text.
    """

    imported: int = 0
    known: int = 0
    conflicts: int = 0


@dataclass(slots=True)
class Export:
    """The documents of a corpus, piece by piece, in the order in which they were kept.

    Documents that stay are all there; those that come or go meanwhile may or may not be.

    Attributes:
        header: what they must be read with.
    """

    header: ExportHeader
    _corpora: Corpora
    _corpus: str
    _generation: str
    _number: int
    _stop: int
    _since_s: float = field(default=0.0)

    def read(self) -> StoredDocuments | None:
        """The next piece, perhaps an empty one; None at the end.

        Raises:
            CorpusNotFound: the corpus was dropped meanwhile.
            IndexUnavailable: Redis does not answer.
        """
        if self._number >= self._stop:
            return None
        stop = min(self._number + PIECE_NUMBERS, self._stop)
        numbers = [number.to_bytes(5, "big") for number in range(self._number, stop)]
        store, base = self._corpora.store, corpus_base(self._corpora.store.tenant, self._corpus)
        with store.asking(), store.client.pipeline(transaction=False) as pipeline:
            pipeline.hmget(f"{base}{self._generation}:records", numbers)
            pipeline.hget(base + "header", "generation")
            values, generation = pipeline.execute()
        if generation != self._generation.encode():
            raise CorpusNotFound(f"corpus {self._corpus} was dropped while it was being exported")
        self._number = stop
        parameters = self.header.parameters
        stored = [Stored.of(number, value, parameters) for number, value in zip(numbers, values, strict=True) if value]
        return StoredDocuments.of([one for one in stored if one.seconds > self._since_s], parameters)

    def __iter__(self) -> Iterator[StoredDocuments]:
        """The pieces that have documents."""
        while (piece := self.read()) is not None:
            if len(piece):
                yield piece


@dataclass(slots=True)
class Import:
    """Fills a new corpus with the documents of an export.

    Attributes:
        done: what has become of the documents so far.
    """

    done: Imported
    _corpora: Corpora
    _corpus: str
    _generation: str
    _parameters: SignatureParameters
    _goes_on: bool

    def write(self, documents: StoredDocuments) -> None:
        """Keeps documents, whatever they repeat; may be repeated.

        Raises:
            RequestError: columns do not fit together, or an id is empty or too long.
            CorpusNotFound: the corpus was dropped meanwhile.
            IndexUnavailable: Redis does not answer.
        """
        documents.check(self._parameters)
        if not len(documents):
            return
        store = self._corpora.store
        everything = np.ones(len(documents), dtype=np.bool_)
        try:
            ids = [decoded_id(one) for one in documents.ids]
        except UnicodeDecodeError:
            raise RequestError("The documents have an id that is not UTF-8: export the corpus again.") from None
        # Only what a broken import has left can be there already.
        there = {one.id for one in store.find(self._corpus, ids) if one.is_kept} if self._goes_on else set()
        answers = store.check_and_insert(
            self._corpus,
            ids,
            documents.signatures(self._parameters),
            everything,
            lines_seen=documents.lines_seen,
            unchecked=True,
        )
        conflicts = int(np.count_nonzero(answers.reused_id))
        known = sum(one in there for one, reused in zip(documents.ids, answers.reused_id, strict=True) if not reused)
        imported = len(documents) - conflicts - known
        if not self._corpora.change(self._corpus, self._generation, "add", "imported", imported):
            raise CorpusNotFound(f"corpus {self._corpus} was dropped while it was being imported")
        self.done.imported += imported
        self.done.conflicts += conflicts
        self.done.known += known

    def finish(self) -> Imported:
        """Says that it was the last document.

        Raises:
            CorpusNotFound: the corpus was dropped meanwhile.
            IndexUnavailable: Redis does not answer.
        """
        if not self._corpora.change(self._corpus, self._generation, "remove", "importing"):
            raise CorpusNotFound(f"corpus {self._corpus} was dropped while it was being imported")
        return self.done


class Corpora:
    """The corpora of one tenant. Thread-safe.

    Args:
        store: holds their documents.
    """

    def __init__(self, store: DuplicateStore) -> None:
        self.store = store

    def create(
        self,
        corpus: str,
        *,
        threshold: float | None = None,
        normaliser: str | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> bool:
        """Makes a corpus.

        Args:
            corpus: its name.
            threshold: estimated Jaccard similarity from which documents are near-duplicates; None for the default.
            normaliser: of texts; None for the default.
            options: fields of `CorpusOptions` that differ from the defaults.

        Returns:
            False if there is one with these parameters and options.

        Raises:
            RequestError: a name or value is not allowed.
            CorpusMismatch: there is one with others; the message names the difference.
            IndexUnavailable: Redis does not answer.
        """
        wanted = wanted_parameters(self.store.default_parameters, threshold, normaliser)
        wanted_options = changed_options(self.store.default_options, options)
        if self.store.create(corpus, wanted, wanted_options):
            return True
        there = self._layout(corpus).options
        if there != wanted_options:
            raise CorpusMismatch(
                f"corpus {corpus} exists and has {_option_difference(there, wanted_options)}; change that with "
                "configure, name another corpus, or drop this one"
            )
        return False

    def configure(self, corpus: str, options: Mapping[str, Any]) -> CorpusOptions:
        """Changes options of a corpus; see `DuplicateStore.configure`.

        Args:
            corpus: its name.
            options: fields of `CorpusOptions` that change.

        Returns:
            All options as they are now.

        Raises:
            RequestError: a name or value is not allowed.
            CorpusNotFound: there is no such corpus.
            CorpusMismatch: this version cannot read it.
            IndexUnavailable: Redis does not answer.
        """
        changed = changed_options(self._layout(corpus).options, options)
        self.store.configure(corpus, changed)
        return changed

    def list(self) -> list[Entry]:
        """All corpora, by name.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        names = self.names()
        found = []
        for start in range(0, len(names), _LISTED_TOGETHER):
            part = names[start : start + _LISTED_TOGETHER]
            bases = [corpus_base(self.store.tenant, name) for name in part]
            with self.store.asking():
                with self.store.client.pipeline(transaction=False) as pipeline:
                    for base in bases:
                        pipeline.hmget(base + "header", "parameters", "generation", "documents", "created_s")
                    headers = pipeline.execute()
                there = [place for place, header in enumerate(headers) if header[0] is not None]
                with self.store.client.pipeline(transaction=False) as pipeline:
                    for place in there:
                        for name in DATA:
                            key = f"{bases[place]}{headers[place][1].decode()}:{name}"
                            pipeline.memory_usage(key, samples=_SAMPLED_VALUES)
                    sizes = pipeline.execute()
            for at, place in enumerate(there):
                size = sum(one or 0 for one in sizes[len(DATA) * at : len(DATA) * (at + 1)])
                _, _, documents, created_s = headers[place]
                found.append(Entry(part[place], int(documents or 0), size, int(created_s or 0)))
        return found

    def names(self) -> Sequence[str]:
        """Names of corpora, in order; some may be gone, see `list`.

        Raises:
            IndexUnavailable: Redis does not answer.
        """
        with self.store.asking():
            return sorted(name.decode() for name in self.store.client.sscan_iter(registry_key(self.store.tenant)))

    def describe(self, corpus: str, *, measure: bool = True) -> Description:
        """Describes a corpus.

        Args:
            corpus: its name.
            measure: estimates where its memory goes, from a sample of bounded size.

        Raises:
            RequestError: the name is empty or too long.
            CorpusNotFound: there is no such corpus.
            CorpusMismatch: this version cannot read it.
            IndexUnavailable: Redis does not answer.
        """
        layout = self._layout(corpus)
        base = corpus_base(self.store.tenant, corpus)
        counted = [one.name for one in fields(Counters)]
        names = ["created_s", "documents", "sketched", "lines", "line_slots", "id_bytes", *counted]
        # No transaction: a full server refuses all of them, whatever they hold.
        with self.store.asking(), self.store.client.pipeline(transaction=False) as pipeline:
            pipeline.hmget(base + "header", names)
            pipeline.hlen(f"{base}{layout.generation}:retries")
            values, retries = pipeline.execute()
        numbers = {name: int(value or 0) for name, value in zip(names, values, strict=True)}
        return Description(
            corpus,
            layout.parameters,
            layout.options,
            numbers["created_s"],
            numbers["documents"],
            numbers["sketched"],
            int(retries),
            layout.buckets,
            numbers["lines"],
            numbers["line_slots"] if layout.options.line_slots else 0,
            Counters(*(numbers[name] for name in counted)),
            self._measure(f"{base}{layout.generation}:", numbers["id_bytes"]) if measure else None,
        )

    def find(self, corpus: str, ids: Sequence[str]) -> Sequence[Found]:
        """What a corpus holds under some ids, in their order.

        Raises:
            RequestError: a name or id is empty or too long.
            CorpusNotFound: there is no such corpus.
            IndexUnavailable: Redis does not answer.
        """
        layout = self._layout(corpus)
        base = f"{corpus_base(self.store.tenant, corpus)}{layout.generation}:"
        stored = self.store.find(corpus, ids)
        answered = [one.number for one in stored if not one.is_kept]
        named: dict[bytes, tuple[bytes, str | None]] = {}
        with self.store.asking():
            now_s = int(self.store.client.time()[0])
            values: list[Any] = self.store.client.hmget(base + "retries", answered) if answered else []
            numbers = [value[_RETRY_NAMED] if value else b"" for value in values]
            records: list[Any] = self.store.client.hmget(base + "records", numbers) if numbers else []
        since_s = now_s - (layout.options.window_s or now_s)
        for number, value, other, record in zip(answered, values, numbers, records, strict=True):
            original = None if record is None else Stored.of(other, record, layout.parameters)
            is_there = original is not None and original.seconds > since_s
            named[number] = (value[:1] if value else b"", decoded_id(original.id) if original and is_there else None)
        best: dict[bytes, Found] = {}
        for one in sorted(stored, key=lambda one: (one.is_kept, one.number)):
            document = decoded_id(one.id)
            if one.is_kept:
                if one.seconds > since_s:
                    best[one.id] = Found(document, State.KEPT, one.seconds)
            elif now_s - one.seconds < layout.options.retry_s:
                kind, original_id = named[one.number]
                if kind in _STATES:
                    best[one.id] = Found(document, _STATES[kind], one.seconds, original_id)
        return [best.get(encoded_id(document), Found(document, State.UNKNOWN)) for document in ids]

    def delete(self, corpus: str, ids: Sequence[str]) -> int:
        """Deletes documents; see `DuplicateStore.delete`.

        Returns:
            How many ids were known.

        Raises:
            RequestError: a name or id is empty or too long.
            CorpusNotFound: there is no such corpus.
            IndexUnavailable: Redis does not answer; repeat the call.
        """
        self._layout(corpus)
        return self.store.delete(corpus, ids)

    def drop(self, corpus: str) -> None:
        """Removes a corpus; see `DuplicateStore.drop_corpus`."""
        self.store.drop_corpus(corpus)

    def rewrite_files(self) -> Rewriting:
        """See `rewrite_files`."""
        with self.store.asking():
            return rewrite_files(self.store.client)

    def export(self, corpus: str) -> Export:
        """Begins to read all documents of a corpus.

        Raises:
            RequestError: the name is empty or too long.
            CorpusNotFound: there is no such corpus.
            CorpusMismatch: this version cannot read it.
            IndexUnavailable: Redis does not answer.
        """
        layout = self._layout(corpus)
        with self.store.asking():
            values = self.store.client.hmget(
                corpus_base(self.store.tenant, corpus) + "header", "documents", "oldest", "next"
            )
            now_s = int(self.store.client.time()[0])
        documents, oldest, stop = (int(value or 0) for value in values)
        header = ExportHeader(layout.parameters, layout.options, secrets.token_hex(16), documents)
        since_s = 0.0 if layout.options.window_s is None else now_s - layout.options.window_s
        return Export(header, self, corpus, layout.generation, oldest, stop, since_s)

    def import_(self, corpus: str, header: ExportHeader) -> Import:
        """Makes a corpus for the documents of an export, or goes on with a broken import of the same export.

        Raises:
            RequestError: the name is empty or too long.
            CorpusMismatch: there is a corpus of that name that has documents, or other parameters.
            IndexUnavailable: Redis does not answer.
        """
        self.store.create(corpus, header.parameters, header.options)
        layout = self._layout(corpus)
        with self.store.asking():
            documents, importing = self.store.client.hmget(
                corpus_base(self.store.tenant, corpus) + "header", "documents", "importing"
            )
        goes_on = importing == header.export_id.encode()
        if int(documents or 0) and not goes_on:
            raise CorpusMismatch(
                f"corpus {corpus} has documents that are not of a broken import of this export; "
                "name another corpus, or drop this one"
            )
        if layout.options != header.options:
            self.store.configure(corpus, header.options)
        self.change(corpus, layout.generation, "set", "importing", header.export_id)
        return Import(Imported(), self, corpus, layout.generation, header.parameters, goes_on)

    def change(self, corpus: str, generation: str, how: str, name: str, value: str | int = "") -> bool:
        """Changes a field of a header; false if the corpus is another one by now.

        Args:
            corpus: its name.
            generation: what it must still be.
            how: "add", "set" or "remove".
            name: of the field.
            value: added or set.
        """
        key = corpus_base(self.store.tenant, corpus) + "header"
        with self.store.asking():
            return bool(self.store.client.eval(_CHANGE, 1, key, generation, how, name, value))

    def _layout(self, corpus: str) -> Layout:
        layout = self.store.read_layout(corpus)
        if layout is None:
            raise CorpusNotFound(f"there is no corpus {corpus}; create it, or score documents into it")
        return layout

    def _measure(self, prefix: str, id_bytes: int) -> Memory:
        """Estimates where memory goes; reads as much of a large corpus as of a small one."""
        client = self.store.client
        with self.store.asking():
            with client.pipeline(transaction=False) as pipeline:
                for name in DATA:
                    pipeline.memory_usage(prefix + name, samples=_SAMPLED_FIELDS)
                sizes = dict(zip(DATA, (size or 0 for size in pipeline.execute()), strict=True))
            sample: Any = client.hrandfield(prefix + "buckets", _SAMPLED_FIELDS, withvalues=True) or []
        weights = {"lsh": 0.0, "record": 0.0, "id": 0.0, "retries": 0.0}
        for bucket, entries in zip(sample[::2], sample[1::2], strict=True):
            weight = _FIELD_BYTES + len(entries)
            if bucket[0] >= FIXED_STRUCTURES:
                weights["lsh"] += weight
            elif bucket[0]:
                weights["record"] += weight
            else:
                # The highest bit of a document number says that it is a retry.
                retries = np.count_nonzero(np.frombuffer(entries, dtype=np.uint8)[3::ENTRY_BYTES] >= 128)
                share = float(retries) * ENTRY_BYTES / max(len(entries), 1)
                weights["retries"] += weight * share
                weights["id"] += weight * (1 - share)
        scale = sizes["buckets"] / max(sum(weights.values()), 1)
        ids = min(id_bytes, sizes["records"])
        return Memory(
            lsh=round(scale * weights["lsh"]),
            record=round(scale * weights["record"]) + sizes["records"] - ids,
            id=round(scale * weights["id"]) + ids,
            retries=round(scale * weights["retries"]) + sizes["retries"],
            lines=sizes["lines"],
            sampled_fields=len(sample) // 2,
        )


def wanted_parameters(
    default: SignatureParameters, threshold: float | None, normaliser: str | None
) -> SignatureParameters:
    """The parameters that somebody asks for; those of `default` where nothing is said.

    Raises:
        RequestError: a value is not allowed.
    """
    try:
        name: Any = normaliser or default.normaliser
        if threshold is None or threshold == default.threshold:
            return replace(default, normaliser=name)
        return SignatureParameters.for_threshold(threshold, normaliser=name)
    except ValueError as error:
        raise RequestError(f"No corpus can have that: {error}.") from None


def changed_options(options: CorpusOptions, changes: Mapping[str, Any]) -> CorpusOptions:
    """Options with some fields changed; a window of 0 is none.

    Raises:
        RequestError: a value is not allowed.
    """
    values = dict(changes)
    for name in ("window_documents", "window_s"):
        if values.get(name) == 0:
            values[name] = None
    try:
        return replace(options, **values)
    except ValueError as error:
        raise RequestError(f"No corpus can have that: {error}.") from None


def rewrite_files(client: redis.Redis) -> Rewriting:
    """Has Redis write its append-only file anew, without what was deleted. Takes no snapshot.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    info: dict[str, Any] = client.info("persistence")
    if not info.get("aof_enabled"):
        return Rewriting(FileRewrite.NO_FILE)
    try:
        client.bgrewriteaof()
    except redis.ResponseError as error:
        what = "Redis's files still hold what was deleted"
        if "already in progress" in str(error):
            # What was deleted after that began is in the new file as well.
            return Rewriting(
                FileRewrite.BUSY,
                f"{what}: it is writing its append-only file anew already; run BGREWRITEAOF there when it is done.",
            )
        return Rewriting(
            FileRewrite.REFUSED, f"{what}: it refuses BGREWRITEAOF ({error}); have whoever runs it do that."
        )
    return Rewriting(FileRewrite.STARTED)


def wait_for_files(client: redis.Redis, limit_s: float) -> bool:
    """Waits until Redis has written its append-only file anew, as a process must whose end is that of Redis.

    Args:
        client: of the server.
        limit_s: longest time to wait.

    Returns:
        Whether it has.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    give_up_s = time.monotonic() + limit_s
    while time.monotonic() < give_up_s:
        info: dict[str, Any] = client.info("persistence")
        if not info.get("aof_rewrite_in_progress") and not info.get("aof_rewrite_scheduled"):
            return True
        time.sleep(0.05)
    return False


def _option_difference(there: CorpusOptions, wanted: CorpusOptions) -> str:
    theirs, ours = asdict(there), asdict(wanted)
    changed = [name for name in theirs if theirs[name] != ours[name]]
    shown = {name: ["none" if value is None else value for value in (theirs[name], ours[name])] for name in changed}
    return ", ".join(f"{name} {there} (here {wanted})" for name, (there, wanted) in shown.items())


def parameters_as_stored(parameters: SignatureParameters) -> dict[str, Any]:
    """Parameters as plain values, with what a reader must agree on; `read_stored_parameters` reads them."""
    stored: dict[str, Any] = json.loads(write_parameters(parameters))
    return stored


def read_stored_parameters(what: str, values: Mapping[str, Any]) -> SignatureParameters:
    """The parameters in values of `parameters_as_stored`.

    Args:
        what: whose they are, for the error.
        values: the values.

    Raises:
        CorpusMismatch: this version does not read them.
    """
    return read_parameters(what, json.dumps(dict(values)))


_STATES = {b"x": State.EXACT_DUPLICATE, b"n": State.NEAR_DUPLICATE, b"u": State.NOT_KEPT}
