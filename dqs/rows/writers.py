"""Writing tables and raw rows. A file appears under its name only when it is complete.

Everything is written to a hidden file beside the target, flushed to the disk,
and renamed. What is interrupted leaves nothing under the target's name.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import sys
from collections.abc import Iterator
from json.encoder import encode_basestring  # quotes a string without escaping what is not ASCII
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError
from dqs.rows.readers import Rows

TABLE_SUFFIXES = (".parquet", ".jsonl", ".jsonl.zst")
_ROW_GROUP_ROWS = 16384
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Turns a failure to write into one sentence: full disk, no permission, file size limit."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise ConfigError(f"Output {path} cannot be written: {cause.rstrip('.')}.") from None


class AtomicFile:
    """A file that takes its name only when it is complete.

    Args:
        path: the name it takes on `commit`.

    Raises:
        ConfigError: it cannot be made, or another process is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        with explained(path):
            handle = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.file: BinaryIO = os.fdopen(handle, "wb", buffering=1 << 20)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise ConfigError(f"Output {path} is being written by another process; wait or choose another.") from None
        os.ftruncate(handle, 0)  # what a killed run left behind

    def commit(self) -> None:
        """Makes the file durable, then visible."""
        with explained(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self._partial.replace(self.path)
            self.file.close()
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Leaves nothing behind."""
        if self.file.closed:
            return
        self._partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what could not be flushed is not wanted any more
            self.file.close()


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file as a whole.

    Raises:
        ConfigError: it cannot be written.
    """
    file = AtomicFile(path)
    try:
        with explained(path):
            file.file.write(json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")
        file.commit()
    finally:
        file.abort()


class TableWriter(Protocol):
    """Takes batches of one schema; `commit` or `abort` ends it."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows."""
        ...

    def commit(self) -> None:
        """Makes the file visible."""
        ...

    def abort(self) -> None:
        """Leaves nothing behind; does nothing after `commit`."""
        ...


def open_table(path: str, schema: pa.Schema) -> TableWriter:
    """Opens an output by its ending; `-` writes JSONL to standard output.

    Raises:
        ConfigError: the file cannot be made.
    """
    if path == "-":
        return JsonlWriter(None, schema, None)
    if path.endswith(".parquet"):
        return ParquetWriter(Path(path), schema)
    return JsonlWriter(Path(path), schema, _COMPRESSION.get(Path(path).suffix))


class ParquetWriter:
    """Writes Parquet in row groups of a fixed number of rows or somewhat more."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = AtomicFile(path)
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0
        with self._guard():
            self._writer = pq.ParquetWriter(self._file.file, schema, compression="zstd")

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with explained(self._file.path):
                yield
        except BaseException:
            self._file.abort()
            raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows; they reach the file when a row group is full."""
        self._pending.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _ROW_GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        with self._guard():
            table = pa.Table.from_batches(self._pending, self._schema)
            if table.num_rows:
                self._writer.write_table(table, row_group_size=table.num_rows)
        self._pending, self._rows = [], 0

    def commit(self) -> None:
        """Writes what is left and the footer."""
        self._write_group()
        with self._guard():
            self._writer.close()
            self._file.commit()

    def abort(self) -> None:
        """Leaves nothing behind."""
        if not self._file.file.closed:
            # The library would write a footer when it is collected, to a file that is closed by then.
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer.is_open = False
        self._file.abort()


class BytesWriter:
    """Writes bytes to a file or to standard output, compressed where the ending says so."""

    def __init__(self, path: Path | None, compression: str | None) -> None:
        self._name = path or "-"
        self._file = None if path is None else AtomicFile(path)
        raw = sys.stdout.buffer if self._file is None else self._file.file
        self._packer = None if compression is None else pa.CompressedOutputStream(_Unclosed(raw), compression)
        self._sink: Any = raw if self._packer is None else self._packer

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with explained(self._name):
                yield
        except ConfigError as error:
            # Who reads standard output may leave, as `head` does; that needs no explanation.
            if self._file is None and isinstance(error.__context__, BrokenPipeError):
                raise error.__context__ from None
            raise

    def write(self, data: bytes) -> None:
        """Appends bytes.

        Raises:
            BrokenPipeError: nobody reads standard output any more.
        """
        with self._explained():
            self._sink.write(data)

    def commit(self) -> None:
        """Makes the file visible; flushes standard output."""
        with self._explained():
            if self._packer is not None:
                self._packer.close()
            if self._file is None:
                sys.stdout.buffer.flush()
        if self._file is not None:
            self._file.commit()

    def abort(self) -> None:
        """Leaves nothing behind, as far as a file goes."""
        if self._file is not None:
            self._file.abort()


class _Unclosed(io.RawIOBase):
    """Keeps a compressor from closing the file that it writes to."""

    def __init__(self, file: BinaryIO) -> None:
        self._target = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._target.write(data)


class JsonlWriter:
    """Writes one JSON object per row; null where a value is missing."""

    def __init__(self, path: Path | None, schema: pa.Schema, compression: str | None) -> None:
        self._out = BytesWriter(path, compression)
        keys = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in schema.names)
        self._line = "{" + ", ".join(f"{key}: %s" for key in keys) + "}\n"

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows."""
        columns = [_json_values(column) for column in batch.columns]
        self._out.write("".join([self._line % values for values in zip(*columns, strict=True)]).encode())

    def commit(self) -> None:
        """Makes the file visible; flushes standard output."""
        self._out.commit()

    def abort(self) -> None:
        """Leaves nothing behind, as far as a file goes."""
        self._out.abort()


def _json_values(column: pa.Array) -> list[str]:
    """A column as JSON texts. Numbers take the shortest form that reads back as the same float32."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return cast("list[str]", pc.fill_null(pc.cast(column, pa.string()), "null").to_pylist())
    if pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type):
        return ["null" if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_list(column.type):
        values = column.to_pylist()
        return ["null" if value is None else f"[{', '.join(map(encode_basestring, value))}]" for value in values]
    if pa.types.is_map(column.type):
        return ["null" if value is None else _json_object(value) for value in column.to_pylist()]
    return ["null" if value is None else encode_basestring(value) for value in column.to_pylist()]


def _json_object(items: list[tuple[str, str]]) -> str:
    return "{" + ", ".join([f"{encode_basestring(key)}: {encode_basestring(value)}" for key, value in items]) + "}"


class RawWriter(Protocol):
    """Writes chosen input rows as they were stored."""

    def write(self, rows: Rows, chosen: NDArray[np.bool_]) -> None:
        """Appends the rows of a batch where `chosen`, bool[n], is true."""
        ...

    def commit(self) -> None:
        """Makes the file visible."""
        ...

    def abort(self) -> None:
        """Leaves nothing behind; does nothing after `commit`."""
        ...


def open_raw(path: str, schema: pa.Schema | None) -> RawWriter:
    """Opens an output for input rows.

    Args:
        path: a file name; `.gz` and `.zst` compress.
        schema: of Parquet inputs; None for JSONL.

    Raises:
        ConfigError: the file cannot be made.
    """
    if schema is not None:
        return RawParquetWriter(Path(path), schema)
    return RawLinesWriter(Path(path))


class RawLinesWriter:
    """Writes JSONL lines byte for byte."""

    def __init__(self, path: Path) -> None:
        self._out = BytesWriter(path, _COMPRESSION.get(path.suffix))

    def write(self, rows: Rows, chosen: NDArray[np.bool_]) -> None:
        """Appends the chosen lines."""
        self._out.write(b"".join([rows.lines[i] + b"\n" for i in np.flatnonzero(chosen).tolist()]))

    def commit(self) -> None:
        """Makes the file visible."""
        self._out.commit()

    def abort(self) -> None:
        """Leaves nothing behind."""
        self._out.abort()


class RawParquetWriter:
    """Writes Parquet rows with all their columns."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._table = ParquetWriter(path, schema)

    def write(self, rows: Rows, chosen: NDArray[np.bool_]) -> None:
        """Appends the chosen rows."""
        if rows.table is not None and chosen.any():
            self._table.write(rows.table.filter(pa.array(chosen)))

    def commit(self) -> None:
        """Makes the file visible."""
        self._table.commit()

    def abort(self) -> None:
        """Leaves nothing behind."""
        self._table.abort()
