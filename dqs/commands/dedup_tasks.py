"""The tasks of `dqs dedup`: what each reads and leaves in the folder of the job.

Every task may run twice: what it makes is the same, and appears under its name when it is
complete. See `dqs.commands.deduplicating` for their order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError, DocumentErrorCode
from dqs.index.offline import Decisions, find_groups, find_repeats, route
from dqs.index.signature import SignatureParameters, Signatures, sign
from dqs.pipeline import MAX_ID_BYTES
from dqs.rows.readers import Cut, Fields, Position, Rows, Source, read_rows
from dqs.rows.writers import ParquetWriter, RawWriter, explained, open_raw, sync_folder
from dqs.settings import MIB
from dqs.text import TextBatch

UNIT_BYTES = 32 * MIB
"""Stored size of inputs that one task reads, if they can be cut there."""

GROUP_ROWS = 4_000_000
"""Rows whose keys of one kind one task sorts: it holds about 50 bytes of each, 80 of an id."""

_WORK = "work"
IDS, EXACT, BANDS = 0, 1, 2
"""Kinds of keys: ids, text hashes, and from the third on one of every band."""


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("keep", pa.bool_()),
        pa.field("duplicate_of", pa.string()),
        pa.field("similarity", pa.float64()),
        pa.field("exact", pa.bool_()),
        pa.field("bands_met", pa.int32()),
        pa.field("error", pa.string()),
    ]
)
"""The columns of verdicts. Where there is an error everything else but id, file and row is null; where a row
is kept `duplicate_of` and `similarity` are null."""

_SEGMENT_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.uint32()), ("row", pa.int64()), ("error", pa.string())])


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive rows that one task reads: from `first` to the end of input `last`, or to its row `last_row`."""

    number: int
    first: Position
    last: int
    last_row: int | None


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of a unit.

    Attributes:
        unit: number of the unit.
        number: within the unit.
        begin: the place before its first row; counts rows of the unit.
        end: the place behind its last row.
        text_bytes: of its texts.
    """

    unit: int
    number: int
    begin: Position
    end: Position
    text_bytes: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.end.count - self.begin.count


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks know; the paths are absolute and the same on all nodes.

    Attributes:
        folder: of the output.
        kept: folder for kept input rows, or None.
        dropped: the same for dropped ones.
        schema: of Parquet inputs where input rows are written.
        sources: the inputs.
        shown: the inputs as the user wrote them.
        fields: which fields of a row are read.
        parameters: of signatures.
        method: `first` or `components`.
        part_rows: most rows of a segment.
        max_document_bytes: longer texts are errors.
    """

    folder: Path
    kept: Path | None
    dropped: Path | None
    schema: pa.Schema | None
    sources: Sequence[Source]
    shown: Sequence[str]
    fields: Fields
    parameters: SignatureParameters
    method: str
    part_rows: int
    max_document_bytes: int

    @property
    def work(self) -> Path:
        """The folder of what lies between the stages."""
        return self.folder / _WORK


@dataclass(frozen=True, slots=True)
class GroupTask:
    """Keys of one kind in one of `ranges` equal ranges."""

    kind: int
    number: int
    ranges: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What tasks know once all rows have been read.

    Attributes:
        job: the job.
        units: all, in input order.
        segments: all, in input order.
        begins: number of the first document of each, and behind it the number of documents.
        groups: tasks that have found groups, and the place of the slots of each.
    """

    job: Job
    units: Sequence[Unit]
    segments: Sequence[Segment]
    begins: Sequence[int]
    groups: Sequence[tuple[GroupTask, int]] = ()


def cut_inputs(sources: Sequence[Source]) -> list[Unit]:
    """Cuts the inputs: Parquet files at row groups, small files together, a larger JSONL file whole."""
    units: list[Unit] = []
    first, taken = Position(), 0

    def end(source: int, row: int | None) -> None:
        nonlocal first, taken
        units.append(Unit(len(units), first, source, row))
        first = Position(source + 1) if row is None else Position(source, row)
        taken = 0

    for number, source in enumerate(sources):
        if source.kind == "parquet":
            with pq.ParquetFile(source.path) as file:
                row = 0
                for group in range(file.num_row_groups):
                    meta = file.metadata.row_group(group)
                    row += meta.num_rows
                    taken += meta.total_byte_size
                    if taken >= UNIT_BYTES and group + 1 < file.num_row_groups:
                        end(number, row)
        else:
            taken += Path(source.path).stat().st_size
        if taken >= UNIT_BYTES or number + 1 == len(sources):
            end(number, None)
    return units


# Files between the stages.


@contextlib.contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `path` when it is complete.

    Where another process was faster, what that one made stands: it is the same.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with explained(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.rglob("*"):
                handle = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            try:
                partial.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
            sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def save(folder: Path, **arrays: NDArray[Any]) -> None:
    """Writes arrays under their names."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load(folder: Path, name: str) -> NDArray[Any]:
    """An array of a complete folder, mapped; the pages that are not read cost nothing."""
    path = folder / f"{name}.npy"
    with explained(path):
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r")
        except ValueError:
            # An empty file cannot be mapped.
            array = np.load(path)
    return array


def segment_folder(job: Job, segment: Segment) -> Path:
    """Where a segment's signatures are."""
    return job.work / "sign" / f"{segment.unit:06d}" / f"{segment.number:05d}"


def _group_folder(job: Job, task: GroupTask) -> Path:
    return job.work / "group" / f"{task.kind:02d}-{task.number:05d}"


def route_folder(job: Job, number: int) -> Path:
    """Where the groups of a segment's documents are."""
    return job.work / "route" / f"{number:06d}"


def part_name(number: int) -> str:
    """A part's name without an ending."""
    return f"part-{number:05d}"


def _write_note(folder: Path, value: Any) -> None:
    (folder / "note.json").write_text(json.dumps(value))


def _read_note(folder: Path) -> Any:
    return json.loads((folder / "note.json").read_text())


# Signing.


def sign_unit(job: Job, unit: Unit) -> list[Segment]:
    """Signs the rows of a unit, segment by segment; continues behind the last complete one."""
    folder = job.work / "sign" / f"{unit.number:06d}"
    if not job.folder.is_dir():
        raise ConfigError(f"{job.folder} is not on every node of the cluster: give a folder that all nodes share.")
    folder.mkdir(exist_ok=True)
    segments: list[Segment] = []
    while (done := folder / f"{len(segments):05d}").exists():
        value = _read_note(done)
        begin, end = Position(**value["begin"]), Position(**value["end"])
        segments.append(Segment(unit.number, len(segments), begin, end, value["text_bytes"]))
    if (folder / "complete").exists():
        return segments
    start = segments[-1].end if segments else unit.first
    signing = _Signing(job, unit.number, len(segments), start)
    for rows in _read_unit(job, unit, start):
        signing.add(rows)
        if signing.position.count % job.part_rows == 0:
            segments.append(signing.finish(folder))
    if signing.rows:
        segments.append(signing.finish(folder))
    (folder / "complete").touch()
    return segments


def _read_unit(job: Job, unit: Unit, start: Position, *, raw: bool = False) -> Iterator[Rows]:
    """Batches of a unit from a place on; none crosses a multiple of `part_rows` rows of the unit."""
    cut = Cut(
        batch_bytes=MIB, batch_rows=4096, part_rows=job.part_rows, max_line_bytes=8 * job.max_document_bytes + MIB
    )
    # Nothing behind the unit's last input is even opened.
    for rows in read_rows(job.sources[: unit.last + 1], job.fields, cut, start, raw=raw):
        if unit.last_row is not None and rows.source == unit.last and rows.numbers[0] > unit.last_row:
            return
        yield rows


class _Signing:
    """A segment on its way.

    Args:
        job: the job.
        unit: number of the unit.
        number: of the next segment.
        start: the place where it begins.
    """

    def __init__(self, job: Job, unit: int, number: int, start: Position) -> None:
        self._job = job
        self._unit = unit
        self._number = number
        self._begin = start
        self.position = start
        self._clear()

    def _clear(self) -> None:
        self.rows = 0
        self._text_bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._signatures: list[Signatures] = []
        self._readable: list[NDArray[np.bool_]] = []
        self._id_hashes: list[NDArray[np.uint64]] = []

    def add(self, rows: Rows) -> None:
        """Signs a batch."""
        errors = [None if error is None else f"{error.code}: {error.message}" for error in rows.errors]
        ids = [id_.encode() for id_ in rows.ids]
        limit = self._job.max_document_bytes
        for at, (id_, text) in enumerate(zip(ids, rows.texts, strict=True)):
            if errors[at] is not None:
                continue
            if not 1 <= len(id_) <= MAX_ID_BYTES:
                errors[at] = (
                    f"{DocumentErrorCode.INVALID_ID}: A document id has 1 to {MAX_ID_BYTES} bytes of UTF-8; "
                    "give it another."
                )
            elif len(text) > limit:
                errors[at] = (
                    f"{DocumentErrorCode.TOO_LARGE}: The text has {len(text)} bytes, more than the limit of {limit}; "
                    "split it."
                )
        texts = [b"" if error else text for text, error in zip(rows.texts, errors, strict=True)]
        batch = TextBatch.from_bytes(texts)
        for at in np.flatnonzero(~batch.valid).tolist():
            errors[at] = f"{DocumentErrorCode.INVALID_UTF8}: The text is not valid UTF-8."
        self._signatures.append(sign(batch, self._job.parameters))
        self._readable.append(np.array([error is None for error in errors], dtype=np.bool_))
        digests = b"".join([hashlib.blake2b(id_, digest_size=16).digest() for id_ in ids])
        self._id_hashes.append(np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64))
        self._batches.append(
            pa.record_batch(
                [
                    pa.array(rows.ids, pa.string()),
                    pa.array(np.full(len(rows), rows.source, dtype=np.uint32)),
                    pa.array(rows.numbers, pa.int64()),
                    pa.array(errors, pa.string()),
                ],
                schema=_SEGMENT_SCHEMA,
            )
        )
        self.rows += len(rows)
        self._text_bytes += rows.text_bytes
        self.position = Position(rows.source, rows.numbers[-1], self.position.count + len(rows))

    def finish(self, folder: Path) -> Segment:
        """Writes the segment."""
        segment = Segment(self._unit, self._number, self._begin, self.position, self._text_bytes)
        signed = Signatures.join(self._signatures)
        readable = np.concatenate(self._readable)
        id_hash = np.concatenate(self._id_hashes)
        text_hash = signed.text_hash
        with complete_folder(folder / f"{self._number:05d}") as made:
            documents = np.flatnonzero(readable).astype(np.uint32)
            documents = documents[np.argsort(id_hash[documents, 0], kind="stable")]
            save(made, id_keys=id_hash[documents], id_documents=documents, id_texts=text_hash[documents])
            documents = np.flatnonzero(readable & text_hash.any(axis=1)).astype(np.uint32)
            documents = documents[np.argsort(text_hash[documents, 0], kind="stable")]
            save(made, exact_keys=text_hash[documents], exact_documents=documents)
            documents = np.flatnonzero(readable & (signed.shingles > 0)).astype(np.uint32)
            keys = np.ascontiguousarray(signed.bands[documents].T)
            orders = np.argsort(keys, axis=1, kind="stable")
            save(made, band_keys=np.take_along_axis(keys, orders, axis=1), band_documents=documents[orders])
            save(made, sketch=signed.sketch, readable=readable)
            with pa.OSFile(str(made / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, _SEGMENT_SCHEMA) as writer:
                writer.write_table(pa.Table.from_batches(self._batches).combine_chunks())
            value = {"begin": asdict(segment.begin), "end": asdict(segment.end), "text_bytes": segment.text_bytes}
            _write_note(made, value)
        self._number += 1
        self._begin = self.position
        self._clear()
        return segment


def segment_rows(job: Job, segment: Segment) -> pa.Table:
    """Ids, inputs, row numbers and errors of a segment, mapped."""
    path = segment_folder(job, segment) / "rows.arrow"
    with explained(path):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


# Grouping and routing.


def group_keys(plan: Plan, task: GroupTask) -> int:
    """Finds the documents that share keys in a range; returns the slots that their groups take."""
    folder = _group_folder(plan.job, task)
    if folder.exists():
        return int(_read_note(folder))
    name = {IDS: "id", EXACT: "exact"}.get(task.kind, "band")
    keys, documents, texts = [], [], []
    for segment, begin in zip(plan.segments, plan.begins, strict=False):
        source = segment_folder(plan.job, segment)
        key, number = load(source, f"{name}_keys"), load(source, f"{name}_documents")
        if name == "band":
            key, number = key[task.kind - BANDS], number[task.kind - BANDS]
        leading = key if key.ndim == 1 else key[:, 0]
        bits = 8 * leading.itemsize
        low, high = (np.searchsorted(leading, _bound(bits, at, task.ranges)) for at in (task.number, task.number + 1))
        if task.number + 1 == task.ranges:
            high = leading.size
        keys.append(np.asarray(key[low:high]))
        documents.append(number[low:high].astype(np.int64) + begin)
        if name == "id":
            texts.append(np.asarray(load(source, "id_texts")[low:high]))
    joined, numbers = np.concatenate(keys), np.concatenate(documents)
    slots = 0
    with complete_folder(folder) as made:
        if name == "id":
            repeats, first, same = find_repeats(joined, np.concatenate(texts), numbers)
            save(made, documents=repeats, first=first, same=same)
        else:
            columns = [joined] if joined.ndim == 1 else [joined[:, 0], joined[:, 1]]
            groups = find_groups(columns, numbers, exact=name == "exact", all_pairs=plan.job.method == "components")
            slots = groups.slots
            save(made, documents=groups.documents, entries=groups.entries)
        _write_note(made, slots)
    return slots


def _bound(bits: int, number: int, ranges: int) -> np.unsignedinteger[Any]:
    value = min((number << bits) // ranges, (1 << bits) - 1)
    return np.uint32(value) if bits == 32 else np.uint64(value)


def route_segment(plan: Plan, number: int) -> tuple[int, int]:
    """Finds the groups of a segment's documents; returns how many documents have any, and how many they have."""
    job = plan.job
    folder = route_folder(job, number)
    if not folder.exists():
        begin, end = plan.begins[number], plan.begins[number + 1]
        active = np.array(load(segment_folder(job, plan.segments[number]), "readable"))
        repeat_of = np.full(end - begin, -1, dtype=np.int64)
        reused = np.zeros(end - begin, dtype=np.bool_)
        groups = []
        for task, place in plan.groups:
            of = load(_group_folder(job, task), "documents")
            if task.kind != IDS:
                groups.append((of, load(_group_folder(job, task), "entries"), place))
                continue
            low, high = np.searchsorted(of, (begin, end))
            repeats = np.asarray(of[low:high]) - begin
            repeat_of[repeats] = load(_group_folder(job, task), "first")[low:high]
            reused[repeats] = ~load(_group_folder(job, task), "same")[low:high]
            active[repeats] = False
        offsets, entries = route(groups, begin, end)
        with complete_folder(folder) as made:
            save(made, active=active, repeat_of=repeat_of, reused=reused, offsets=offsets, entries=entries)
            _write_note(made, [int(np.count_nonzero(np.diff(offsets))), int(entries.size)])
    members, found = _read_note(folder)
    return members, found


def load_decisions(job: Job, number: int) -> Decisions:
    """What became of a segment's documents, mapped."""
    folder = job.work / "decided" / f"{number:06d}"
    return Decisions(*(load(folder, name) for name in ("duplicate_of", "similarity", "exact", "bands_met")))


# Writing.


def write_unit(plan: Plan, unit: int) -> Counter[str]:
    """Writes the parts of a unit, from the first that is not there; returns counts of all of them."""
    job = plan.job
    counts: Counter[str] = Counter()
    numbers = [number for number, segment in enumerate(plan.segments) if segment.unit == unit]
    done = 0
    while done < len(numbers) and (job.folder / f"{part_name(numbers[done])}.parquet").exists():
        counts.update(_verdicts(plan, numbers[done]).counts)
        done += 1
    if job.kept is not None or job.dropped is not None:
        for more in _write_rows(plan, unit, numbers[done:]):
            counts.update(more)
        return counts
    for number in numbers[done:]:
        verdicts = _verdicts(plan, number)
        _write_part(job, number, verdicts.table)
        counts.update(verdicts.counts)
    return counts


def _write_part(job: Job, number: int, table: pa.RecordBatch) -> None:
    writer = ParquetWriter(job.folder / f"{part_name(number)}.parquet", SCHEMA)
    try:
        writer.write(table)
        writer.commit()
    finally:
        writer.abort()


def _write_rows(plan: Plan, unit: int, numbers: Sequence[int]) -> Iterator[Counter[str]]:
    """Reads rows again, and writes kept and dropped ones, and behind those of a part its verdicts."""
    if not numbers:
        return
    job = plan.job
    ending = ".jsonl" if job.schema is None else ".parquet"
    batches = _read_unit(job, plan.units[unit], plan.segments[numbers[0]].begin, raw=True)
    for number in numbers:
        verdicts = _verdicts(plan, number)
        writers: list[tuple[RawWriter, NDArray[np.bool_]]] = []
        try:
            for folder, chosen in ((job.kept, verdicts.keep), (job.dropped, verdicts.drop)):
                if folder is not None:
                    writers.append((open_raw(str(folder / (part_name(number) + ending)), job.schema), chosen))
            at = 0
            while at < verdicts.table.num_rows:
                rows = next(batches, None)
                if rows is None:
                    raise ConfigError("An input has fewer rows than before: leave inputs alone while they are read.")
                for writer, chosen in writers:
                    writer.write(rows, chosen[at : at + len(rows)])
                at += len(rows)
            for writer, _ in writers:
                writer.commit()
        finally:
            for writer, _ in writers:
                writer.abort()
        _write_part(job, number, verdicts.table)
        yield verdicts.counts


@dataclass(frozen=True, slots=True, eq=False)
class _Verdicts:
    """What is said of the rows of a segment.

    Attributes:
        table: the columns of `SCHEMA`.
        keep: bool[n]; rows that are kept, without those that came again.
        drop: bool[n]; rows that are dropped; those with errors are neither.
        counts: by what the report calls them.
    """

    table: pa.RecordBatch
    keep: NDArray[np.bool_]
    drop: NDArray[np.bool_]
    counts: Counter[str]


def _verdicts(plan: Plan, number: int) -> _Verdicts:
    job = plan.job
    rows = segment_rows(job, plan.segments[number])
    folder = route_folder(job, number)
    repeat_of, reused = np.array(load(folder, "repeat_of")), np.array(load(folder, "reused"))
    found = load_decisions(job, number)
    of, similarity = np.array(found.duplicate_of), np.array(found.similarity)
    exact, bands_met = np.array(found.exact), np.array(found.bands_met)
    begins = np.array(plan.begins)
    # A row that came again has the answer of the first time.
    again = np.flatnonzero((repeat_of >= 0) & ~reused)
    for positions, segment in _by_segment(begins, repeat_of, again):
        answers, local = load_decisions(job, segment), repeat_of[positions] - begins[segment]
        of[positions], similarity[positions] = answers.duplicate_of[local], answers.similarity[local]
        exact[positions], bands_met[positions] = answers.exact[local], answers.bands_met[local]
    errors = rows["error"].to_pylist()
    for at in np.flatnonzero(reused).tolist():
        errors[at] = f"{DocumentErrorCode.ID_REUSED}: The id came before with another text; give each document its own."
    failed = np.array([error is not None for error in errors], dtype=np.bool_)
    duplicate = ~failed & (of >= 0)
    keep = ~failed & (of < 0)
    names: list[str | None] = [None] * len(errors)
    for positions, segment in _by_segment(begins, of, np.flatnonzero(duplicate)):
        ids = segment_rows(job, plan.segments[segment])["id"].take(pa.array(of[positions] - begins[segment]))
        for at, name in zip(positions.tolist(), ids.to_pylist(), strict=True):
            names[at] = name
    sources = rows["source"].to_pylist()
    table = pa.record_batch(
        [
            rows["id"].combine_chunks(),
            pa.array([job.shown[source] for source in sources], pa.string()),
            rows["row"].combine_chunks(),
            pa.array(keep, pa.bool_(), mask=failed),
            pa.array(names, pa.string()),
            pa.array(similarity, pa.float64(), mask=~duplicate),
            pa.array(exact, pa.bool_(), mask=failed),
            pa.array(bands_met, pa.int32(), mask=failed),
            pa.array(errors, pa.string()),
        ],
        schema=SCHEMA,
    )
    once = repeat_of < 0
    counts = Counter(
        rows=len(errors),
        text_bytes=plan.segments[number].text_bytes,
        kept=int(np.count_nonzero(keep & once)),
        exact=int(np.count_nonzero(duplicate & exact & once)),
        near=int(np.count_nonzero(duplicate & ~exact & once)),
        repeated_kept=int(np.count_nonzero(keep & ~once)),
        repeated_dropped=int(np.count_nonzero(duplicate & ~once)),
        errors=int(np.count_nonzero(failed)),
    )
    counts.update(f"error {error.partition(':')[0]}" for error in errors if error is not None)
    return _Verdicts(table, keep & once, duplicate, counts)


def _by_segment(
    begins: NDArray[np.int64], documents: NDArray[np.int64], positions: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Cuts positions by the segment that the document of each lies in."""
    segments = np.searchsorted(begins, documents[positions], side="right") - 1
    for segment in np.unique(segments).tolist():
        yield positions[segments == segment], segment
