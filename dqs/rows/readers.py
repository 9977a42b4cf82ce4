"""Reading rows of JSONL and Parquet files into batches that fit a scoring call.

Files are streamed, never held whole. A row that cannot be understood becomes a
row with an error and stops nothing. Where batches are cut depends only on the
rows since the last part boundary, so that a run which continues at such a
boundary scores the very batches that an uninterrupted run would have scored.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dqs.data import Document, parse_language
from dqs.errors import ConfigError, DocumentError, DocumentErrorCode

SUFFIXES = {
    ".jsonl": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".parquet": ("parquet", None),
}
"""File endings that can be read -> kind of file and its compression."""

_PEEK_ROWS = 200
_BUFFER_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """One input.

    Attributes:
        path: as the user wrote it; `-` is standard input, read as JSONL.
        name: begins the ids of rows that have none; unique among the inputs of a run.
        kind: `jsonl` or `parquet`.
        compression: `gzip`, `zstd` or None.
    """

    path: str
    name: str
    kind: str
    compression: str | None

    @property
    def regular(self) -> bool:
        """Whether the input can be read twice: a file rather than a pipe."""
        return self.path != "-" and Path(self.path).is_file()


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are read.

    Attributes:
        text: the text's field.
        id: the id's field; rows without it are named `<file name>:<row>`.
        language: the language code's field, or None.
        id_asked: whether the user named the id field, so that a file without it is a mistake.
    """

    text: str = "text"
    id: str = "id"
    language: str | None = None
    id_asked: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """Where batches end.

    Attributes:
        batch_bytes: a batch ends with the row that brings its text to this size.
        batch_rows: most rows of a batch.
        part_rows: a batch never crosses a multiple of this many rows of the run; None for no parts.
        max_line_bytes: a longer JSONL line is an error row and is not held in memory.
    """

    batch_bytes: int = 1 << 20
    batch_rows: int = 1024
    part_rows: int | None = None
    max_line_bytes: int = 128 << 20


@dataclass(frozen=True, slots=True)
class Position:
    """Just behind a row: the place from which a run continues.

    Attributes:
        source: number of the input, from 0.
        row: row number within it, from 1; 0 stands for its start.
        count: rows of the run before this place.
    """

    source: int = 0
    row: int = 0
    count: int = 0


@dataclass(slots=True, eq=False)
class Rows:
    """A batch of consecutive rows of one input, as parallel lists.

    Attributes:
        source: number of the input, from 0.
        path: the input as the user wrote it.
        numbers: row number within the input, from 1; JSONL counts lines, blank ones too.
        ids: the row's id or its default.
        texts: UTF-8 bytes, unchecked; empty where the row has an error.
        languages: the row's language code, or "".
        errors: why a row cannot be scored, or None.
        lines: raw JSONL lines without the line feed; empty unless asked for.
        table: raw Parquet rows; None unless asked for, and where every row is an error.
        text_bytes: size of all texts.
        bytes_read: position in the input file, as stored; for Parquet an estimate.
    """

    source: int
    path: str
    numbers: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    errors: list[DocumentError | None] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    table: pa.RecordBatch | None = None
    text_bytes: int = 0
    bytes_read: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, number: int, id_: str, text: bytes, language: str, error: DocumentError | None) -> None:
        """Appends a row."""
        self.numbers.append(number)
        self.ids.append(id_)
        self.texts.append(text)
        self.languages.append(language)
        self.errors.append(error)
        self.text_bytes += len(text)

    def documents(self, language: str = "") -> list[Document]:
        """The rows that can be scored, in order.

        Args:
            language: hint for rows that name no language.
        """
        return [
            Document(id_, text, own or language)
            for id_, text, own, error in zip(self.ids, self.texts, self.languages, self.errors, strict=True)
            if error is None
        ]


def open_sources(paths: Sequence[str]) -> list[Source]:
    """Names the inputs and checks that they can be opened.

    Args:
        paths: files or `-`.

    Raises:
        ConfigError: an input is unknown, unreadable, or given twice.
    """
    base_names = [Path(path).name for path in paths]
    sources = []
    for path, base in zip(paths, base_names, strict=True):
        if list(paths).count(path) > 1:
            raise ConfigError(f"Input {path} is given twice; name each input once.")
        if path == "-":
            sources.append(Source("-", "-", "jsonl", None))
            continue
        suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.endswith(s)), None)
        if Path(path).is_dir():
            raise ConfigError(f"Input {path} is a folder; name the files in it, such as {path.rstrip('/')}/*.parquet.")
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise ConfigError(f"Input {path} cannot be read: {error.strerror}.") from None
        if suffix is None:
            raise ConfigError(f"Input {path} has an unknown ending; known are: {', '.join(SUFFIXES)}, and - for JSONL.")
        # Two inputs of one base name would give different rows the same id.
        name = path if base_names.count(base) > 1 else base
        sources.append(Source(path, printable(name), *SUFFIXES[suffix]))
    return sources


def printable(path: str) -> str:
    r"""A path as valid text: bytes of a name that are not UTF-8 are written like `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_sources(sources: Sequence[Source], fields: Fields) -> None:
    """Looks at the beginning of every file, before any work is done.

    Raises:
        ConfigError: a file is no such file, or has none of the named fields.
    """
    for source in sources:
        if not source.regular:
            continue
        if source.kind == "parquet":
            with _open_parquet(source) as file:
                _check_schema(source, fields, file.schema_arrow)
            continue
        parser = _RowParser(source, fields)
        try:
            with _open_lines(source) as (stream, _):
                for _ in range(_PEEK_ROWS):
                    line = stream.readline(_BUFFER_BYTES)
                    if not line:
                        break
                    parser.parse(line)
        except (OSError, pa.ArrowException) as error:
            if not parser.rows:
                raise ConfigError(f"Input {source.path} cannot be read: {_one_line(error)}.") from None
        parser.check()


def read_rows(
    sources: Sequence[Source], fields: Fields, cut: Cut, start: Position | None = None, *, raw: bool = False
) -> Iterator[Rows]:
    """Reads all inputs, one after the other.

    Args:
        sources: the inputs.
        fields: which fields of a row are read.
        cut: where batches end.
        start: where to begin; everything before has been dealt with.
        raw: whether batches carry the rows as stored.

    Yields:
        Batches, none of them empty.

    Raises:
        ConfigError: standard input has none of the named fields, or a file is gone.
    """
    start = start or Position()
    count = start.count
    for number in range(start.source, len(sources)):
        skip = start.row if number == start.source else 0
        read = _read_parquet if sources[number].kind == "parquet" else _read_jsonl
        for rows in read(sources[number], number, fields, cut, skip, count, raw):
            count += len(rows)
            yield rows


def _room(cut: Cut, count: int) -> int:
    """Most rows of the batch that begins after `count` rows of the run."""
    if cut.part_rows is None:
        return cut.batch_rows
    return min(cut.batch_rows, cut.part_rows - count % cut.part_rows)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


# JSONL


@contextlib.contextmanager
def _open_lines(source: Source) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Opens a JSONL input.

    Yields:
        The decompressed stream, which raises OSError where an archive is damaged or
        cut off, and a function that tells how far the stored file has been read.
    """
    if source.path == "-":
        # A reader of its own: a thread that still waits in `sys.stdin` keeps the interpreter from ending.
        yield os.fdopen(0, "rb", buffering=_BUFFER_BYTES, closefd=False), lambda: 0
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(source.path).open("rb", buffering=_BUFFER_BYTES))
        except OSError as error:
            raise ConfigError(f"Input {source.path} cannot be read: {error.strerror}.") from None
        position = file.tell if source.regular else lambda: 0
        if source.compression is None:
            yield file, position
        else:
            with pa.CompressedInputStream(file, source.compression) as unpacked:
                yield cast(BinaryIO, io.BufferedReader(unpacked, _BUFFER_BYTES)), position


def _next_line(stream: BinaryIO, max_bytes: int) -> tuple[bytes, bool]:
    """Reads a line.

    Returns:
        The line, empty at the end, and whether it is within `max_bytes`. Of a longer
        one the rest is passed over.
    """
    line = stream.readline(max_bytes + 1)
    if len(line) <= max_bytes or line.endswith(b"\n"):
        return line, True
    while rest := stream.readline(_BUFFER_BYTES):
        if rest.endswith(b"\n"):
            break
    return b"\n", False


class _RowParser:
    """Takes JSONL lines apart and counts which fields it has met."""

    def __init__(self, source: Source, fields: Fields) -> None:
        self.rows = 0
        self._source = source
        self._fields = fields
        self._objects = 0
        self._met: set[str] = set()

    def parse(self, line: bytes) -> tuple[str | None, bytes, str, DocumentError | None]:
        """Returns id or None, text, language and error of a row."""
        self.rows += 1
        try:
            row = json.loads(line.removeprefix(_BOM).decode("utf-8"))
        except UnicodeDecodeError:
            return None, b"", "", DocumentError(DocumentErrorCode.INVALID_UTF8, "The row is not valid UTF-8.")
        except (ValueError, RecursionError):
            return None, b"", "", _malformed("The row is not valid JSON.")
        if not isinstance(row, dict):
            return None, b"", "", _malformed("The row is not a JSON object.")
        self._objects += 1
        if len(self._met) < 1000:
            self._met.update(row)
        id_, error = _clean_id(row.get(self._fields.id))
        language, language_error = "", None
        if self._fields.language is not None:
            language, language_error = _clean_language(row.get(self._fields.language))
        error = error or language_error
        if error is not None:
            return id_, b"", "", error
        text = row.get(self._fields.text)
        if not isinstance(text, str):
            what = "is not a string" if self._fields.text in row else "is missing"
            return id_, b"", "", _malformed(f"The field {self._fields.text!r} {what}.")
        try:
            return id_, text.encode("utf-8"), language, None
        except UnicodeEncodeError:
            message = "The text holds a lone surrogate, which is no character."
            return id_, b"", "", DocumentError(DocumentErrorCode.INVALID_UTF8, message)

    def check(self) -> None:
        """Refuses an input in which a named field stands in none of the rows met so far.

        Raises:
            ConfigError: names the field and those that there are.
        """
        if not self._objects:
            return
        for name, option in _asked(self._fields):
            if name not in self._met:
                raise ConfigError(_no_such_field(self._source, name, option, sorted(self._met)))


def _read_jsonl(
    source: Source, number: int, fields: Fields, cut: Cut, skip: int, count: int, raw: bool
) -> Iterator[Rows]:
    parser = _RowParser(source, fields)
    checked = source.regular
    rows, room, at = Rows(number, source.path), _room(cut, count), 0
    with _open_lines(source) as (stream, position):
        while True:
            at += 1
            try:
                line, whole = _next_line(stream, cut.max_line_bytes)
            except (OSError, pa.ArrowException) as error:
                if at > skip:
                    message = f"From this row on the input cannot be read: {_one_line(error)}."
                    rows.add(at, f"{source.name}:{at}", b"", "", _malformed(message))
                    if raw:
                        rows.lines.append(b"")
                break
            if not line:
                break
            if at <= skip or (whole and line.isspace()):
                continue
            if whole:
                id_, text, language, problem = parser.parse(line)
            else:
                message = f"The row has more than {cut.max_line_bytes} bytes; split it."
                id_, text, language = None, b"", ""
                problem = DocumentError(DocumentErrorCode.TOO_LARGE, message)
            rows.add(at, f"{source.name}:{at}" if id_ is None else id_, text, language, problem)
            if raw:
                rows.lines.append(line.removesuffix(b"\n"))
            if len(rows) >= room or rows.text_bytes >= cut.batch_bytes:
                if not checked:
                    parser.check()
                    checked = True
                rows.bytes_read = position()
                count += len(rows)
                yield rows
                rows, room = Rows(number, source.path), _room(cut, count)
        if not checked:
            parser.check()
        if len(rows):
            rows.bytes_read = position()
            yield rows


# Parquet


@contextlib.contextmanager
def _open_parquet(source: Source) -> Iterator[pq.ParquetFile]:
    try:
        # Pages are read as they are needed: a row group may be larger than memory.
        file = pq.ParquetFile(source.path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"Input {source.path} is no readable Parquet file: {_one_line(error)}.") from None
    with file:
        yield file


def parquet_schema(source: Source) -> pa.Schema:
    """The columns of a Parquet input, as `--kept` and `--dropped` write them again.

    Raises:
        ConfigError: the file cannot be read.
    """
    with _open_parquet(source) as file:
        return file.schema_arrow


def _check_schema(source: Source, fields: Fields, schema: pa.Schema) -> None:
    for name, option in _asked(fields):
        if schema.names.count(name) != 1:
            raise ConfigError(_no_such_field(source, name, option, schema.names))
    kinds = {fields.text: "strings"}
    if fields.language is not None:
        kinds[fields.language] = "strings"
    if fields.id in schema.names:
        kinds[fields.id] = "strings or whole numbers"
    for name, wanted in kinds.items():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (_is_text(kind) or (name == fields.id and pa.types.is_integer(kind))):
            raise ConfigError(f"Input {source.path}: the column {name!r} holds {kind}, not {wanted}.")


def _is_text(kind: pa.DataType) -> bool:
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def _read_parquet(
    source: Source, number: int, fields: Fields, cut: Cut, skip: int, count: int, raw: bool
) -> Iterator[Rows]:
    with _open_parquet(source) as file:
        schema = file.schema_arrow
        _check_schema(source, fields, schema)
        wanted = [fields.text, fields.id, fields.language]
        names = None if raw else [name for name in schema.names if name in wanted]
        stored_bytes = Path(source.path).stat().st_size
        at = 0
        for group in range(file.num_row_groups):
            group_rows = file.metadata.row_group(group).num_rows
            end = at + group_rows
            if end <= skip:
                at = end
                continue
            try:
                for batch in file.iter_batches(_slice_rows(file, group, cut), [group], names, use_threads=False):
                    begin = max(0, skip - at)
                    if begin < batch.num_rows:
                        for rows in _cut_parquet(batch, begin, at, source, number, fields, cut, count, raw):
                            rows.bytes_read = int(stored_bytes * rows.numbers[-1] / file.metadata.num_rows)
                            count += len(rows)
                            yield rows
                    at += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                # The next row group stands by itself; of this one the rest is lost.
                message = f"The row group cannot be read: {_one_line(error)}."
                at = max(at, skip)
                while at < end:
                    rows = Rows(number, source.path)
                    for row in range(at + 1, min(end, at + _room(cut, count)) + 1):
                        rows.add(row, f"{source.name}:{row}", b"", "", _malformed(message))
                    at += len(rows)
                    count += len(rows)
                    yield rows


def _slice_rows(file: pq.ParquetFile, group: int, cut: Cut) -> int:
    """How many rows of a row group to decode at once: about as many as one batch holds."""
    meta = file.metadata.row_group(group)
    fitting: int = cut.batch_bytes * meta.num_rows // max(1, meta.total_byte_size)
    return max(1, min(cut.batch_rows, fitting))


def _cut_parquet(
    batch: pa.RecordBatch,
    begin: int,
    at: int,
    source: Source,
    number: int,
    fields: Fields,
    cut: Cut,
    count: int,
    raw: bool,
) -> Iterator[Rows]:
    """Cuts the rows of one decoded slice from `begin` on; `at` rows of the file lie before the slice."""
    texts = _column_bytes(batch, fields.text)
    ids = _column_ids(batch, fields.id)
    languages = None if fields.language is None else _column_bytes(batch, fields.language)
    rows, room, first = Rows(number, source.path), _room(cut, count), begin
    for i in range(begin, batch.num_rows):
        id_, error = _clean_id(ids[i]) if ids is not None else (None, None)
        language = ""
        if languages is not None:
            code = languages[i]
            language, problem = _clean_language(None if code is None else code.decode("utf-8", "replace"))
            error = error or problem
        text = texts[i]
        if text is None:
            error = error or _malformed(f"The field {fields.text!r} is null.")
        name = f"{source.name}:{at + i + 1}" if id_ is None else id_
        rows.add(at + i + 1, name, b"" if error or text is None else text, language, error)
        if len(rows) >= room or rows.text_bytes >= cut.batch_bytes or i + 1 == batch.num_rows:
            if raw:
                rows.table = batch.slice(first, len(rows))
            count += len(rows)
            yield rows
            rows, room, first = Rows(number, source.path), _room(cut, count), i + 1


def _column_bytes(batch: pa.RecordBatch, name: str) -> list[bytes | None]:
    """A column of text as bytes: Parquet files may hold strings that are not UTF-8."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return cast("list[bytes | None]", column.cast(pa.large_binary()).to_pylist())


def _column_ids(batch: pa.RecordBatch, name: str) -> list[Any] | None:
    if name not in batch.schema.names:
        return None
    column = batch.column(name)
    if pa.types.is_integer(column.type):
        return cast("list[Any]", column.to_pylist())
    return list(_column_bytes(batch, name))


# What both have in common


def _malformed(message: str) -> DocumentError:
    return DocumentError(DocumentErrorCode.MALFORMED_ROW, message)


def _clean_id(value: Any) -> tuple[str | None, DocumentError | None]:
    """An id as a string; None where the row has none or an unusable one."""
    if value is None:
        return None, None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8"), None
        if isinstance(value, str):
            value.encode("utf-8")
            return value, None
    except UnicodeError:
        return None, DocumentError(DocumentErrorCode.INVALID_ID, "The id is not valid UTF-8.")
    return None, DocumentError(DocumentErrorCode.INVALID_ID, "The id is neither a string nor a whole number.")


def _clean_language(value: Any) -> tuple[str, DocumentError | None]:
    """A language code as `parse_language` makes it; nothing as ""."""
    if value is None:
        return "", None
    language = parse_language(value) if isinstance(value, str) else None
    if language is None:
        return "", _malformed("The language is no ISO 639-1 code such as en or zh.")
    return language, None


def _asked(fields: Fields) -> list[tuple[str, str]]:
    """Fields that must be there, with the options that name them."""
    asked = [(fields.text, "--text-field")]
    if fields.id_asked:
        asked.append((fields.id, "--id-field"))
    if fields.language is not None:
        asked.append((fields.language, "--language-field"))
    return asked


def _no_such_field(source: Source, name: str, option: str, present: Sequence[str]) -> str:
    shown = ", ".join(present[:20]) + (", …" if len(present) > 20 else "")
    return f"Input {source.path} has no field {name!r}; it has: {shown or 'none'}. Name one with {option}."


def check_language(code: str) -> str:
    """A language code that a person gave for every row.

    Raises:
        ConfigError: it is none.
    """
    language, error = _clean_language(code)
    if error is not None:
        raise ConfigError(f"--language {code!r} is no ISO 639-1 code such as en or zh.")
    return language
