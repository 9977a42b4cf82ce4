"""What `dqs corpus` works with: corpora in Redis or behind a service, files of exports, tables."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import dqs
from dqs.client import Client
from dqs.commands.scoring import client_speaks, connect_to_server
from dqs.errors import ConfigError, InternalError, RequestError, Unauthenticated
from dqs.index.corpora import (
    DELETE_IDS,
    PIECE_NUMBERS,
    Corpora,
    Description,
    Entry,
    ExportHeader,
    FileRewrite,
    Found,
    Imported,
    Rewriting,
    StoredDocuments,
    parameters_as_stored,
    read_stored_parameters,
    wait_for_files,
)
from dqs.index.layout import CorpusOptions
from dqs.server import corpus_codec
from dqs.settings import Settings
from dqs.stores import open_store

FILE_FORMAT = 1
"""Of the Parquet files of exports."""

_METADATA = b"dqs.corpus"
"""Key of a file's metadata that holds, as JSON, what the documents must be read with."""
_ROW_GROUP_ROWS = 1 << 16
_SENT_IDS = 4096
_FILES_WAIT_S = 600.0
_UNITS = ("B", "kB", "MB", "GB", "TB")

_Item = TypeVar("_Item")


class Keeper(Protocol):
    """Corpora of one tenant, wherever they are; the methods are those of `dqs.index.corpora.Corpora`."""

    def create(self, corpus: str, threshold: float | None, normaliser: str | None, options: Mapping[str, Any]) -> bool:
        """Makes a corpus; false if it is there."""

    def configure(self, corpus: str, options: Mapping[str, Any]) -> CorpusOptions:
        """Changes options."""

    def list(self) -> Sequence[Entry]:
        """All corpora."""

    def describe(self, corpus: str, *, measure: bool) -> Description:
        """One corpus."""

    def find(self, corpus: str, ids: Sequence[str]) -> Sequence[Found]:
        """What is known of documents."""

    def delete(self, corpus: str, ids: Iterator[str]) -> int:
        """Deletes documents; returns how many were known."""

    def drop(self, corpus: str) -> Rewriting | None:
        """Drops a corpus, and has the files written anew."""

    def rewrite(self, corpus: str) -> Rewriting | None:
        """Has the files written anew."""

    def export(self, corpus: str) -> tuple[ExportHeader, Iterator[StoredDocuments]]:
        """The documents of a corpus."""

    def import_(self, corpus: str, header: ExportHeader, documents: Iterable[StoredDocuments]) -> Imported:
        """Makes a corpus of documents."""


@contextlib.contextmanager
def open_keeper(settings: Settings, server: str | None, tenant: str | None) -> Iterator[Keeper]:
    """The corpora behind a service, or in Redis.

    Args:
        settings: say how to reach the service, or where Redis is.
        server: address of a service; None for Redis.
        tenant: whose corpora in Redis; None for the default one.

    Raises:
        ConfigError: settings do not fit.
        IndexUnavailable: Redis cannot be reached.
        Unauthenticated: the service asks for a token.
    """
    with contextlib.ExitStack() as stack:
        if server is not None:
            stack.enter_context(client_speaks())
            client = stack.enter_context(connect_to_server(server, settings))
            try:
                yield RemoteKeeper(client)
            except Unauthenticated:
                if settings.server_token_file is not None:
                    raise
                raise Unauthenticated(
                    "The service asks for a token: give the file that holds it with --token-file."
                ) from None
            return
        store = stack.enter_context(open_store(settings))
        yield LocalKeeper(Corpora(store if tenant is None else store.of(tenant)), waits=settings.redis_url is None)


class LocalKeeper:
    """Corpora in Redis.

    Args:
        corpora: of the tenant.
        waits: whether Redis may end with this process, so that it must have written its files before.
    """

    def __init__(self, corpora: Corpora, *, waits: bool) -> None:
        self._corpora = corpora
        self._waits = waits
        self.configure = corpora.configure
        self.list = corpora.list
        self.describe = corpora.describe
        self.find = corpora.find

    def create(self, corpus: str, threshold: float | None, normaliser: str | None, options: Mapping[str, Any]) -> bool:
        """See `Corpora.create`."""
        return self._corpora.create(corpus, threshold=threshold, normaliser=normaliser, options=options)

    def delete(self, corpus: str, ids: Iterator[str]) -> int:
        """See `Corpora.delete`."""
        return sum(self._corpora.delete(corpus, part) for part in _parts(ids, DELETE_IDS))

    def drop(self, corpus: str) -> Rewriting | None:
        """Drops a corpus and has the files written anew."""
        self._corpora.drop(corpus)
        return self.rewrite(corpus)

    def rewrite(self, corpus: str) -> Rewriting | None:
        """Has the files written anew."""
        rewriting = self._corpora.rewrite_files()
        if rewriting.outcome == FileRewrite.BUSY and wait_for_files(self._corpora.store.client, _FILES_WAIT_S):
            rewriting = self._corpora.rewrite_files()
        if self._waits and rewriting.outcome == FileRewrite.STARTED:
            wait_for_files(self._corpora.store.client, _FILES_WAIT_S)
        return rewriting

    def export(self, corpus: str) -> tuple[ExportHeader, Iterator[StoredDocuments]]:
        """See `Corpora.export`."""
        export = self._corpora.export(corpus)
        return export.header, iter(export)

    def import_(self, corpus: str, header: ExportHeader, documents: Iterable[StoredDocuments]) -> Imported:
        """See `Corpora.import_`."""
        filling = self._corpora.import_(corpus, header)
        for piece in documents:
            filling.write(piece)
        return filling.finish()


class RemoteKeeper:
    """Corpora behind a service.

    Args:
        client: of the service.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(self, corpus: str, threshold: float | None, normaliser: str | None, options: Mapping[str, Any]) -> bool:
        """See `Client.create_corpus`."""
        changes = corpus_codec.encode_changes(dict(options))
        return self._client.create_corpus(
            corpus, threshold=threshold, normaliser=normaliser or "", options=changes
        ).created

    def configure(self, corpus: str, options: Mapping[str, Any]) -> CorpusOptions:
        """See `Client.configure_corpus`."""
        return corpus_codec.decode_options(
            self._client.configure_corpus(corpus, corpus_codec.encode_changes(dict(options)))
        )

    def list(self) -> Sequence[Entry]:
        """See `Client.list_corpora`."""
        return [corpus_codec.decode_entry(entry) for entry in self._client.list_corpora()]

    def describe(self, corpus: str, *, measure: bool) -> Description:
        """See `Client.corpus`."""
        return corpus_codec.decode_description(self._client.corpus(corpus, measure=measure))

    def find(self, corpus: str, ids: Sequence[str]) -> Sequence[Found]:
        """See `Client.find_documents`."""
        return [corpus_codec.decode_found(found) for found in self._client.find_documents(corpus, ids)]

    def delete(self, corpus: str, ids: Iterator[str]) -> int:
        """See `Client.delete_documents`."""
        return self._client.delete_documents(corpus, ids).known

    def drop(self, corpus: str) -> Rewriting | None:
        """See `Client.drop_corpus`."""
        return corpus_codec.decode_rewriting(self._client.drop_corpus(corpus, rewrite_files=True))

    def rewrite(self, corpus: str) -> Rewriting | None:
        """Has the files written anew."""
        return corpus_codec.decode_rewriting(self._client.delete_documents(corpus, [], rewrite_files=True))

    def export(self, corpus: str) -> tuple[ExportHeader, Iterator[StoredDocuments]]:
        """See `Client.export_corpus`."""
        pieces = self._client.export_corpus(corpus)
        first = next(pieces, None)
        if first is None or first.WhichOneof("piece") != "header":
            raise InternalError("The service sent an export without a header: is it of this version?")
        header = corpus_codec.decode_header(corpus, first.header)
        return header, (corpus_codec.decode_documents(one.documents, header.parameters) for one in pieces)

    def import_(self, corpus: str, header: ExportHeader, documents: Iterable[StoredDocuments]) -> Imported:
        """See `Client.import_corpus`."""
        done = self._client.import_corpus(
            corpus, corpus_codec.encode_header(header, dqs.__version__), map(corpus_codec.encode_documents, documents)
        )
        return Imported(done.imported, done.known, done.conflicts)


class Counting:
    """How far a long command is, on standard error; draws on a terminal only. A context manager.

    Args:
        what: "deleting" or the like.
        total: documents, where that is known.

    Attributes:
        count: documents so far.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        console = Console(stderr=True, highlight=False)
        self.count = 0
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.completed:,.0f} documents"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, total: int) -> None:
        """Says how many there will be, about."""
        self._progress.update(self._task, total=total)

    def over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Counts items as they are taken."""
        for item in items:
            self._add(1)
            yield item

    def over_pieces(self, pieces: Iterable[StoredDocuments]) -> Iterator[StoredDocuments]:
        """Counts the documents of pieces as they are taken."""
        for piece in pieces:
            self._add(len(piece))
            yield piece

    def _add(self, documents: int) -> None:
        self.count += documents
        self._progress.advance(self._task, documents)


def read_ids(file: Path | None) -> Iterator[str]:
    """The ids in a file, one per line; empty lines are passed over.

    Args:
        file: None reads standard input.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    shown = "standard input" if file is None else str(file)
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    document = line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise ConfigError(f"Line {number} of {shown} is not UTF-8: write one id per line.") from None
                if document:
                    yield document
    except OSError as error:
        raise ConfigError(f"Cannot read {shown} ({error.strerror}).") from None


def write_export(keeper: Keeper, corpus: str, file: Path, counting: Counting) -> None:
    """Writes an export; the file is there only when it is whole.

    Args:
        keeper: has the corpus.
        corpus: its name.
        file: does not exist.
        counting: counts documents.

    Raises:
        ConfigError: the file exists or cannot be written.
        CorpusNotFound: there is no such corpus, or it was dropped meanwhile.
    """
    if file == Path("-"):
        raise ConfigError("An export is Parquet, which is written to a file and not to a pipe: give its name.")
    if file.exists():
        raise ConfigError(f"{file} exists: choose another name, or remove it.")
    header, pieces = keeper.export(corpus)
    counting.expect(header.documents)
    head = {
        "format": FILE_FORMAT,
        "dqs": dqs.__version__,
        "corpus": corpus,
        "export_id": header.export_id,
        "documents": header.documents,
        "parameters": parameters_as_stored(header.parameters),
        "options": asdict(header.options),
    }
    schema = _schema().with_metadata({_METADATA: json.dumps(head, ensure_ascii=False).encode("utf-8", "replace")})
    part = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as out, pq.ParquetWriter(out, schema, compression="zstd") as writer:
            waiting: list[pa.RecordBatch] = []
            for piece in counting.over_pieces(pieces):
                waiting.append(_batch(piece))
                if sum(map(len, waiting)) >= _ROW_GROUP_ROWS:
                    writer.write_table(pa.Table.from_batches(waiting).replace_schema_metadata(schema.metadata))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting).replace_schema_metadata(schema.metadata))
        part.chmod(0o600)
        part.rename(file)
        part = None
    except OSError as error:
        raise ConfigError(f"Cannot write {file} ({error.strerror}): choose another place.") from None
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def read_export(file: Path) -> Iterator[tuple[ExportHeader, Iterator[StoredDocuments]]]:
    """The header and the documents of an export, in pieces.

    Raises:
        ConfigError: the file cannot be read, or is no export of a corpus.
        CorpusMismatch: this version cannot use its parameters.
    """
    wrong = ConfigError(f"{file} is no export of a corpus that this version reads: write it with dqs corpus export.")
    try:
        opened = pq.ParquetFile(file)
    except OSError as error:
        raise ConfigError(f"Cannot read {file} ({error.strerror or 'it is no Parquet file'}).") from None
    except pa.ArrowInvalid:
        raise wrong from None
    with opened:
        try:
            head = json.loads((opened.schema_arrow.metadata or {})[_METADATA])
            parameters, options = head["parameters"], head["options"]
            export_id, documents = str(head["export_id"]), int(head["documents"])
            is_known = head["format"] == FILE_FORMAT and opened.schema_arrow.equals(_schema())
        except (KeyError, TypeError, ValueError):
            raise wrong from None
        if not is_known:
            raise wrong
        try:
            header = ExportHeader(
                read_stored_parameters(f"in {file}", parameters),
                CorpusOptions.read(json.dumps(options)),
                export_id,
                documents,
            )
        except (TypeError, ValueError):
            raise wrong from None
        yield header, _pieces(opened, header)


def _pieces(opened: pq.ParquetFile, header: ExportHeader) -> Iterator[StoredDocuments]:
    parameters = header.parameters
    no_bands, no_sketch = bytes(4 * parameters.bands), bytes(parameters.sketch_bytes)

    def matrix(column: list[bytes | None], missing: bytes) -> Any:
        rows = [missing if value is None else value for value in column]
        if any(len(row) != len(missing) for row in rows):
            raise RequestError("The file has bands or sketches of the wrong size: export the corpus again.")
        return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), len(missing))

    for batch in opened.iter_batches(batch_size=_ROW_GROUP_ROWS):
        for start in range(0, len(batch), PIECE_NUMBERS):
            columns = batch.slice(start, PIECE_NUMBERS).to_pydict()
            yield StoredDocuments(
                columns["id"],
                np.array(columns["seconds"], dtype=np.uint32),
                matrix(columns["text_hash"], bytes(16)),
                np.array(columns["lines_seen"], dtype=np.uint8),
                np.array([value is not None for value in columns["sketch"]], dtype=np.bool_),
                matrix(columns["bands"], no_bands),
                matrix(columns["sketch"], no_sketch),
            )


def _schema() -> pa.Schema:
    """The columns of an export; `seconds` is Unix time, bands and sketch are null where a text is too short."""
    return pa.schema(
        [
            pa.field("id", pa.binary(), nullable=False),
            pa.field("seconds", pa.uint32(), nullable=False),
            pa.field("text_hash", pa.binary(16), nullable=False),
            pa.field("lines_seen", pa.uint8(), nullable=False),
            pa.field("bands", pa.binary()),
            pa.field("sketch", pa.binary()),
        ]
    )


def _batch(piece: StoredDocuments) -> pa.RecordBatch:
    has = piece.has_sketch.tolist()
    columns = (
        piece.ids,
        piece.seconds,
        [row.tobytes() for row in piece.text_hash],
        piece.lines_seen,
        [row.tobytes() if there else None for row, there in zip(piece.bands, has, strict=True)],
        [row.tobytes() if there else None for row, there in zip(piece.sketch, has, strict=True)],
    )
    schema = _schema()
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _parts(items: Iterator[_Item], most: int) -> Iterator[Sequence[_Item]]:
    while part := list(islice(items, most)):
        yield part


def option_rows(options: CorpusOptions) -> list[tuple[str, str]]:
    """Options as a person reads them."""
    return [
        ("window_documents", "all" if options.window_documents is None else f"{options.window_documents:,}"),
        ("window_s", "for ever" if options.window_s is None else f"{options.window_s:,g}"),
        ("retry_s", f"{options.retry_s:,g}"),
        ("retry_documents", f"{options.retry_documents:,}"),
        ("line_slots", f"{options.line_slots:,}"),
    ]


def print_entries(entries: Sequence[Entry], *, as_json: bool) -> None:
    """Prints a list of corpora."""
    if as_json:
        rows = [
            {"corpus": one.corpus, "documents": one.documents, "bytes": one.bytes, "created": _time(one.created_s)}
            for one in entries
        ]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not sys.stdout.isatty():
        for one in entries:
            print(f"{one.corpus}\t{one.documents}\t{one.bytes}\t{_time(one.created_s)}")
        return
    table = Table(show_edge=False)
    table.add_column("corpus")
    for name in ("documents", "bytes (estimate)"):
        table.add_column(name, justify="right")
    table.add_column("made")
    for one in entries:
        table.add_row(escape(one.corpus), f"{one.documents:,}", _size(one.bytes), _time(one.created_s))
    Console(highlight=False).print(table)


def print_description(there: Description, *, as_json: bool) -> None:
    """Prints one corpus."""
    memory, counters = there.memory, there.counters
    if as_json:
        shown: dict[str, Any] = asdict(there)
        shown["created"] = _time(shown.pop("created_s"))
        shown["counters"]["hit_rate"] = counters.hit_rate
        if memory is not None:
            shown["memory"]["total"] = memory.total
            shown["memory"]["lsh_per_document_and_band"] = there.lsh_bytes_per_document_and_band
        print(json.dumps(shown, ensure_ascii=False, indent=2))
        return
    rows: list[tuple[str, str]] = [
        ("corpus", there.corpus),
        ("made", _time(there.created_s)),
        *((name, str(value)) for name, value in asdict(there.parameters).items()),
        *option_rows(there.options),
        ("documents", f"{there.documents:,}"),
        ("with a sketch", f"{there.sketched:,}"),
        ("retries remembered", f"{there.retries:,}"),
        ("buckets per structure", f"{there.buckets:,}"),
        ("lines", f"{there.lines:,} in {there.line_slots:,} slots"),
        *((name, f"{value:,}") for name, value in asdict(counters).items()),
        ("hit rate", "-" if counters.hit_rate is None else f"{counters.hit_rate:.2%}"),
    ]
    if memory is not None:
        kept = max(there.documents, 1)
        rows.append(("bytes (estimate)", f"{_size(memory.total)}, {memory.total / kept:,.1f} per document"))
        for name in ("lsh", "record", "id", "retries", "lines"):
            value = getattr(memory, name)
            rows.append((f"  {name}", f"{_size(value)}, {value / kept:,.1f} per document"))
        rows.append(("  lsh per document and band", f"{there.lsh_bytes_per_document_and_band:.2f} B"))
        rows.append(("  sampled fields", f"{memory.sampled_fields:,}"))
    if not sys.stdout.isatty():
        for name, value in rows:
            print(f"{name.strip()}\t{value}")
        return
    table = Table(show_header=False, show_edge=False)
    table.add_column()
    table.add_column()
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    Console(highlight=False).print(table)


def print_found(found: Sequence[Found], *, as_json: bool) -> None:
    """Prints what is known of some documents."""
    rows = [
        {
            "id": one.id,
            "state": one.state.value,
            "since": _time(one.seconds) if one.seconds else None,
            "duplicate_of": one.duplicate_of,
        }
        for one in found
    ]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(str(value or "-") for value in row.values()))
        return
    table = Table(show_edge=False)
    for name in ("id", "state", "since", "duplicate of"):
        table.add_column(name)
    for row in rows:
        table.add_row(*(escape(str(value or "-")) for value in row.values()))
    Console(highlight=False).print(table)


def say_rewriting(rewriting: Rewriting | None) -> None:
    """Says on standard error what became of deleted bytes on Redis's disk."""
    if rewriting is None:
        return
    said = {
        FileRewrite.STARTED: "Redis writes its append-only file anew, without what was deleted.",
        FileRewrite.BUSY: rewriting.message
        or "Redis is writing its append-only file anew; the service has it do so once more, without what was deleted.",
        FileRewrite.NO_FILE: "Redis has no append-only file; snapshots, if it takes any, forget with the next one.",
        FileRewrite.REFUSED: rewriting.message,
    }
    print(f"dqs: {said[rewriting.outcome]}", file=sys.stderr)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _size(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} {_UNITS[-1]}"
