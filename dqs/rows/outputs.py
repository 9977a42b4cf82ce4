"""Where a run writes: one file that appears at the end, or a folder of parts that appear one by one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dqs.errors import ConfigError
from dqs.rows.manifest import Manifest, Part
from dqs.rows.readers import SUFFIXES, Position, Rows, Source, parquet_schema
from dqs.rows.summary import Summary
from dqs.rows.writers import TABLE_SUFFIXES, RawWriter, TableWriter, explained, open_raw, open_table

_PART = "part-{:05d}"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Targets:
    """Where everything goes.

    Attributes:
        scores: file, folder, or `-`.
        kept: where input rows that are kept go, or None.
        dropped: where input rows that are dropped go, or None.
        folder: whether these are folders of parts.
        schema: of Parquet inputs, as far as input rows are written; else None.
    """

    scores: str
    kept: str | None
    dropped: str | None
    folder: bool
    schema: pa.Schema | None

    @property
    def raw(self) -> bool:
        """Whether input rows are written."""
        return self.kept is not None or self.dropped is not None


def plan_targets(scores: str, kept: str | None, dropped: str | None, sources: Sequence[Source]) -> Targets:
    """Checks the names of the outputs before any work is done.

    A name without a known ending is a folder.

    Raises:
        ConfigError: an ending is unknown, does not fit the inputs, or a name is used twice.
    """
    folder = _is_folder(scores)
    if not folder and scores != "-" and not scores.endswith(TABLE_SUFFIXES):
        raise ConfigError(
            f"Output {scores} has an unknown ending; known are: {', '.join(TABLE_SUFFIXES)}, - for JSONL on standard "
            "output, and no ending for a folder."
        )
    named = [scores, *(path for path in (kept, dropped) if path is not None)]
    places = [Path(path).resolve() for path in (*named, *(source.path for source in sources)) if path != "-"]
    if len(set(places)) < len(places):
        raise ConfigError("Two of the inputs and outputs have the same name; give each a name of its own.")
    schema: pa.Schema | None = None
    raw = [(option, path) for option, path in (("--kept", kept), ("--dropped", dropped)) if path is not None]
    if raw:
        kinds = {source.kind for source in sources}
        if len(kinds) > 1:
            raise ConfigError(f"{raw[0][0]} writes rows as they are, so it takes JSONL or Parquet inputs, not both.")
        if "parquet" in kinds:
            schema = parquet_schema(sources[0])
            for source in sources[1:]:
                if not parquet_schema(source).equals(schema):
                    raise ConfigError(
                        f"{raw[0][0]} writes rows as they are, but {source.path} has other columns than "
                        f"{sources[0].path}; score them apart."
                    )
        for option, path in raw:
            _check_raw(option, path, folder, schema)
    return Targets(scores, kept, dropped, folder, schema)


def _is_folder(path: str) -> bool:
    return path != "-" and (path.endswith("/") or Path(path).is_dir() or not Path(path).suffix)


def _check_raw(option: str, path: str, folder: bool, schema: pa.Schema | None) -> None:
    if folder:
        if not _is_folder(path):
            raise ConfigError(f"{option} {path} must be a folder, as --output is one.")
        return
    kind = "jsonl" if schema is None else "parquet"
    fitting = [suffix for suffix, (of, _) in SUFFIXES.items() if of == kind]
    if _is_folder(path) or not path.endswith(tuple(fitting)):
        raise ConfigError(f"{option} {path} writes rows as they are, so its ending must be {' or '.join(fitting)}.")


class Outputs(Protocol):
    """Takes scored batches in order; `finish` makes everything visible, `abort` leaves no half file."""

    def write(self, rows: Rows, table: pa.RecordBatch) -> None:
        """Appends the rows of a batch."""
        ...

    def finish(self) -> None:
        """Makes everything visible."""
        ...

    def abort(self) -> None:
        """Removes what is not complete; does nothing after `finish`."""
        ...


class _Files:
    """The three files of a run or of a part."""

    def __init__(self, scores: str, kept: str | None, dropped: str | None, schema: pa.Schema, raw: pa.Schema | None):
        self._raw: list[tuple[RawWriter, str]] = []
        self._table: TableWriter | None = None
        try:
            for path, label in ((kept, "keep"), (dropped, "drop")):
                if path is not None:
                    self._raw.append((open_raw(path, raw), label))
            self._table = open_table(scores, schema)
        except BaseException:
            self.abort()
            raise

    def write(self, rows: Rows, table: pa.RecordBatch) -> None:
        labels = np.array(table.column("label").to_pylist(), dtype=object)
        for writer, label in self._raw:
            writer.write(rows, labels == label)
        if self._table is not None:
            self._table.write(table)

    def finish(self) -> None:
        for writer, _ in self._raw:
            writer.commit()
        if self._table is not None:
            self._table.commit()

    def abort(self) -> None:
        for writer, _ in self._raw:
            writer.abort()
        if self._table is not None:
            self._table.abort()


class FileOutputs:
    """Writes whole files.

    Args:
        targets: where to; not a folder.
        schema: of the scores.

    Raises:
        ConfigError: a file cannot be made.
    """

    def __init__(self, targets: Targets, schema: pa.Schema) -> None:
        self._files = _Files(targets.scores, targets.kept, targets.dropped, schema, targets.schema)

    def write(self, rows: Rows, table: pa.RecordBatch) -> None:
        """Appends the rows of a batch."""
        self._files.write(rows, table)

    def finish(self) -> None:
        """Makes the files visible."""
        self._files.finish()

    def abort(self) -> None:
        """Leaves nothing behind."""
        self._files.abort()


class Folder:
    """A folder of parts that one run at a time may write.

    Args:
        path: made if missing.

    Raises:
        ConfigError: it cannot be made, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"Output {path} is being written by another process; wait or choose another.") from None

    def close(self) -> None:
        """Lets others write."""
        os.close(self._lock)


class PartOutputs:
    """Writes a part for every so many rows and records each in the manifest.

    Args:
        targets: where to; folders.
        schema: of the scores.
        manifest: of the run; its parts are taken as written.
        part_rows: rows of a part; batches never cross a multiple of it.

    Raises:
        ConfigError: a folder cannot be made.
    """

    def __init__(self, targets: Targets, schema: pa.Schema, manifest: Manifest, part_rows: int) -> None:
        self._targets = targets
        self._schema = schema
        self._manifest = manifest
        self._part_rows = part_rows
        self._files: _Files | None = None
        self._summary = Summary()
        self._end = manifest.end
        for path in (targets.scores, targets.kept, targets.dropped):
            if path is not None:
                with explained(path):
                    Path(path).mkdir(parents=True, exist_ok=True)
                if not manifest.started and any(Path(path).glob("part-*")):
                    raise ConfigError(f"The folder {path} holds parts of another run; empty it or choose another.")
        manifest.save(Path(targets.scores))

    def write(self, rows: Rows, table: pa.RecordBatch) -> None:
        """Appends the rows of a batch; closes the part that they fill."""
        if self._files is None:
            stem = _PART.format(len(self._manifest.parts))
            ending = ".jsonl" if self._targets.schema is None else ".parquet"
            kept, dropped = (
                None if path is None else str(Path(path) / (stem + ending))
                for path in (self._targets.kept, self._targets.dropped)
            )
            scores = str(Path(self._targets.scores) / (stem + ".parquet"))
            self._files = _Files(scores, kept, dropped, self._schema, self._targets.schema)
        self._files.write(rows, table)
        self._summary.add(table, rows.text_bytes)
        self._end = Position(rows.source, rows.numbers[-1], self._end.count + len(rows))
        if self._end.count % self._part_rows == 0:
            self._close_part()
            self._manifest.save(Path(self._targets.scores))

    def _close_part(self) -> None:
        if self._files is None:
            return
        self._files.finish()
        name = _PART.format(len(self._manifest.parts)) + ".parquet"
        self._manifest.parts.append(Part(name, self._end, self._summary))
        self._files, self._summary = None, Summary()

    def finish(self) -> None:
        """Closes the last part and marks the run as complete."""
        self._close_part()
        self._manifest.complete = True
        self._manifest.save(Path(self._targets.scores))

    def abort(self) -> None:
        """Removes the part that is not complete."""
        if self._files is not None:
            self._files.abort()


def read_parts(folder: Path, parts: Sequence[Part], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Reads columns of complete parts, in order.

    Raises:
        ConfigError: a part is missing or has another number of rows than the manifest says.
    """
    for part in parts:
        path = folder / part.file
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows != part.summary.rows:
                    raise ConfigError(f"{path} is not the file that the manifest describes; choose another folder.")
                yield from file.iter_batches(columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            cause = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(f"{path} cannot be read ({cause}); choose another folder.") from None
