"""A run of `dqs dedup`: stages from files to files, of tasks that may be repeated, in a folder that can be continued.

    sign     rows → signatures, in segments of at most `--part-rows` rows; a segment is later a part.
    group    keys of all segments, range by range → documents that share a key.
    route    groups → per segment, the groups of its documents.
    decide   segment after segment, in one process, see `dqs.index.offline`.
    write    segments and decisions → parts of verdicts, kept and dropped rows.

What a task has made appears under its name when it is complete, so a run that was
killed goes on with the tasks whose result is not there. Every result depends on
inputs and parameters alone, not on the workers or on where a run was killed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import dqs
from dqs.commands import dedup_tasks
from dqs.commands.dedup_tasks import (
    BANDS,
    GroupTask,
    Job,
    Plan,
    Segment,
    complete_folder,
    cut_inputs,
    group_keys,
    load,
    part_name,
    route_folder,
    route_segment,
    save,
    segment_folder,
    segment_rows,
    sign_unit,
    write_unit,
)
from dqs.errors import ConfigError
from dqs.executors.ray_tasks import Tasks
from dqs.index.bands import MAX_SAME, MAX_VERIFIED
from dqs.index.offline import Components, Decisions, FirstKept
from dqs.index.signature import SignatureParameters
from dqs.rows.manifest import Manifest, Part, identify
from dqs.rows.outputs import Folder, plan_targets
from dqs.rows.readers import Fields, check_sources, open_sources, printable
from dqs.rows.summary import Summary
from dqs.rows.writers import explained, write_json
from dqs.settings import Settings

REPORT = "report.json"
_MB = 1_000_000

LARGEST = 20
"""Clusters that the report names."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `dqs dedup` was asked for; see its options."""

    inputs: Sequence[str]
    output: str
    method: str
    threshold: float | None
    normaliser: str
    kept: str | None
    dropped: str | None
    fields: Fields
    resume: bool
    part_rows: int
    workers: int | None
    quiet: bool


def deduplicate(request: Request, settings: Settings) -> int:
    """Runs the job, or what is left of it.

    Returns:
        How many rows have errors.

    Raises:
        DqsError: nothing, or nothing more, could be done.
    """
    sources = open_sources(request.inputs)
    for source in sources:
        if not source.regular:
            raise ConfigError(f"Input {source.path} can be read only once: write it to a file first.")
    targets = plan_targets(request.output, request.kept, request.dropped, sources)
    if not targets.folder:
        raise ConfigError(f"--output {request.output} must be a folder: give a name without an ending.")
    check_sources(sources, request.fields)
    parameters = _parameters(request)
    display = _Display(request.quiet)
    job = Job(
        folder=Path(request.output).resolve(),
        kept=None if request.kept is None else Path(request.kept).resolve(),
        dropped=None if request.dropped is None else Path(request.dropped).resolve(),
        schema=targets.schema,
        sources=[replace(source, path=str(Path(source.path).resolve())) for source in sources],
        shown=[printable(source.path) for source in sources],
        fields=request.fields,
        parameters=parameters,
        method=request.method,
        part_rows=request.part_rows,
        max_document_bytes=settings.max_document_bytes,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(Folder(job.folder).close)
        manifest = Manifest.load(job.folder)
        if manifest is not None and not request.resume:
            raise ConfigError(
                f"The folder {request.output} holds another run; add --resume to continue it or choose another."
            )
        run = {
            "dqs": dqs.__version__,
            "command": "dedup",
            "inputs": identify(sources),
            "fields": [request.fields.text, request.fields.id],
            "part_rows": request.part_rows,
            "method": request.method,
            **asdict(parameters),
            "limits": [MAX_SAME, MAX_VERIFIED],
            "max_document_bytes": settings.max_document_bytes,
            "kept": request.kept is not None,
            "dropped": request.dropped is not None,
        }
        if manifest is not None:
            manifest.check_same(run, Path(request.output))
        else:
            manifest = Manifest(run, None)
            _prepare(job)
            manifest.save(job.folder)
        if not manifest.complete:
            for left in job.work.glob("**/.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            tasks = stack.enter_context(
                contextlib.closing(
                    Tasks(request.workers, settings.ray_address, settings.ray_node_ip, settings.data_dir)
                )
            )
            _run(job, tasks, manifest, display)
        else:
            shutil.rmtree(job.work, ignore_errors=True)  # where it was killed at its very end
            display.say(f"The run in {request.output} is complete; there is nothing to do.")
    report = json.loads((job.folder / REPORT).read_text(encoding="utf-8"))
    display.report(report)
    return int(report["errors"])


def _parameters(request: Request) -> SignatureParameters:
    try:
        if request.threshold is None:
            return SignatureParameters(normaliser=request.normaliser)  # type: ignore[arg-type]  # checked by it
        return SignatureParameters.for_threshold(
            request.threshold,
            normaliser=request.normaliser,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise ConfigError(f"Give other parameters: {error}.") from None


def _prepare(job: Job) -> None:
    """Makes the folders of a new run."""
    for path in (job.folder, job.kept, job.dropped):
        if path is None:
            continue
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            if any(path.glob("part-*")):
                raise ConfigError(f"The folder {path} holds parts of another run; empty it or choose another.")
    shutil.rmtree(job.work, ignore_errors=True)


def _run(job: Job, tasks: Tasks, manifest: Manifest, display: _Display) -> None:
    # Before anything else, so that the workers need no permission to make them.
    for stage in ("sign", "group", "route"):
        with explained(job.work):
            (job.work / stage).mkdir(parents=True, exist_ok=True)
    units = cut_inputs(job.sources)
    signed: dict[int, list[Segment]] = {}
    with display.stage("sign", len(units)) as advance:
        for position, segments in tasks.run(sign_unit, job, units):
            signed[position] = segments
            advance(sum(segment.text_bytes for segment in segments))
    segments = [segment for position in range(len(units)) for segment in signed[position]]
    begins = np.cumsum([0] + [segment.rows for segment in segments]).tolist()
    plan = Plan(job, units, segments, begins)
    if begins[-1] >= 1 << 32:
        raise ConfigError(f"{begins[-1]:,} rows are more than {(1 << 32) - 1:,}: deduplicate them in several runs.")
    if not (job.work / "decided").exists():
        ranges = -(-begins[-1] // dedup_tasks.GROUP_ROWS)
        work = [GroupTask(kind, n, ranges) for kind in range(BANDS + job.parameters.bands) for n in range(ranges)]
        slots = [0] * len(work)
        with display.stage("group", len(work)) as advance:
            for position, found in tasks.run(group_keys, plan, work):
                slots[position] = found
                advance(0)
        places = np.cumsum([0, *slots]).tolist()
        plan = replace(plan, groups=list(zip(work, places[:-1], strict=True)))
        members = entries = 0
        with display.stage("route", len(segments)) as advance:
            for _, (more_members, more_entries) in tasks.run(route_segment, plan, list(range(len(segments)))):
                members += more_members
                entries += more_entries
                advance(0)
        _decide(plan, places[-1], members, entries, display)
    counts: Counter[str] = Counter()
    with display.stage("write", len(units)) as advance:
        for _, more in tasks.run(write_unit, plan, list(range(len(units)))):
            counts.update(more)
            advance(0)
    report = _report(plan, counts)
    write_json(job.folder / REPORT, report)
    manifest.parts = [
        Part(part_name(number) + ".parquet", replace(segment.end, count=begins[number + 1]), Summary(segment.rows))
        for number, segment in enumerate(segments)
    ]
    manifest.complete = True
    manifest.save(job.folder)
    shutil.rmtree(job.work, ignore_errors=True)


# Deciding.


def _decide(plan: Plan, slots: int, members: int, entries: int, display: _Display) -> None:
    """The pass in input order. It is made as a whole: what a killed one had decided is decided again."""
    job = plan.job
    state = job.work / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()

    def mapped(name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return np.memmap(state / name, dtype=dtype, mode="w+", shape=shape)

    sketch_bytes, least = job.parameters.sketch_bytes, job.parameters.least_similarity
    with explained(state), complete_folder(job.work / "decided") as made:

        def each(stage: str) -> Iterator[tuple[int, Path, NDArray[np.bool_], NDArray[np.int64]]]:
            with display.stage(stage, len(plan.segments)) as advance:
                for number in range(len(plan.segments)):
                    folder = route_folder(job, number)
                    yield number, folder, np.array(load(folder, "active")), np.array(load(folder, "offsets"))
                    advance(0)

        def write(number: int, decisions: Decisions) -> None:
            target = made / f"{number:06d}"
            target.mkdir()
            save(
                target,
                duplicate_of=decisions.duplicate_of,
                similarity=decisions.similarity,
                exact=decisions.exact,
                bands_met=decisions.bands_met,
            )

        if job.method == "first":
            first = FirstKept(slots, members, sketch_bytes, least, mapped)
            for number, folder, active, offsets in each("decide"):
                sketch = load(segment_folder(job, plan.segments[number]), "sketch")
                found = np.array(load(folder, "entries"))
                write(number, first.decide(plan.begins[number], active, sketch, offsets, found))
        else:
            components = Components(slots, members, entries, sketch_bytes, least, mapped)
            for number, folder, active, offsets in each("link"):
                sketch = load(segment_folder(job, plan.segments[number]), "sketch")
                components.link(plan.begins[number], active, sketch, offsets, np.array(load(folder, "entries")))
            for number, _, active, offsets in each("decide"):
                write(number, components.decide(active, offsets))
    shutil.rmtree(state, ignore_errors=True)


# The report.


def _report(plan: Plan, counts: Mapping[str, int]) -> dict[str, Any]:
    """Counts of rows and of clusters; the same for every run over the same inputs."""
    job = plan.job
    path = job.work / "sizes"
    documents = plan.begins[-1]
    sizes = np.memmap(path, dtype=np.uint32, mode="w+", shape=(max(documents, 1),))
    for number in range(len(plan.segments)):
        of = load(job.work / "decided" / f"{number:06d}", "duplicate_of")
        heads, times = np.unique(of[of >= 0], return_counts=True)
        sizes[heads] += times.astype(np.uint32)
    # By powers of two: how many clusters, and how many documents they hold.
    clusters, held = np.zeros(34, dtype=np.int64), np.zeros(34, dtype=np.int64)
    largest: list[tuple[int, int]] = []
    for number in range(len(plan.segments)):
        begin = plan.begins[number]
        part = np.asarray(sizes[begin : plan.begins[number + 1]]).astype(np.int64)
        heads = np.flatnonzero(part)
        members = part[heads] + 1
        classes = np.ceil(np.log2(members)).astype(np.int64)
        clusters += np.bincount(classes, minlength=34)
        np.add.at(held, classes, members)
        top = heads[np.argsort(-members, kind="stable")[:LARGEST]]
        largest = sorted([*largest, *((-int(part[at]) - 1, begin + int(at)) for at in top)])[:LARGEST]
    begins = np.array(plan.begins)
    named = []
    for size, document in largest:
        segment = int(np.searchsorted(begins, document, side="right")) - 1
        name = segment_rows(job, plan.segments[segment])["id"][document - plan.begins[segment]].as_py()
        named.append({"id": name, "documents": -size})
    singles = int(counts.get("kept", 0) - clusters.sum())
    histogram = [{"from": 1, "to": 1, "clusters": singles, "documents": singles}]
    histogram += [
        {
            "from": (1 << (power - 1)) + 1,
            "to": 1 << power,
            "clusters": int(clusters[power]),
            "documents": int(held[power]),
        }
        for power in range(1, 34)
        if clusters[power]
    ]
    answered = sum(counts.get(name, 0) for name in ("kept", "exact", "near", "repeated_kept", "repeated_dropped"))
    removed = sum(counts.get(name, 0) for name in ("exact", "near", "repeated_dropped"))
    return {
        "dqs": dqs.__version__,
        "method": job.method,
        "parameters": asdict(job.parameters),
        "documents": counts.get("rows", 0),
        "text_bytes": counts.get("text_bytes", 0),
        "kept": counts.get("kept", 0) + counts.get("repeated_kept", 0),
        "exact": counts.get("exact", 0),
        "near": counts.get("near", 0),
        "repeated_ids": {"kept": counts.get("repeated_kept", 0), "dropped": counts.get("repeated_dropped", 0)},
        "errors": counts.get("errors", 0),
        "errors_by_code": {name[6:]: counts[name] for name in sorted(counts) if name.startswith("error ")},
        "share_removed": removed / answered if answered else 0.0,
        "cluster_sizes": histogram,
        "largest_clusters": named,
    }


class _Display:
    """Progress and the report, on standard error.

    Args:
        quiet: says nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)

    def say(self, sentence: str) -> None:
        """One line for a person."""
        if not self._quiet:
            print(f"dqs: {sentence}", file=sys.stderr)

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Follows a stage: a bar on a terminal, one line at its end elsewhere.

        Yields:
            To be called after every task, with the bytes of text that it has read.
        """
        begin, done_bytes = time.perf_counter(), 0
        terminal = self._console.is_terminal and not self._quiet
        progress = Progress(
            TextColumn(f"{name:<7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
            console=self._console,
            disable=not terminal,
        )
        bar = progress.add_task(name, total=total, rate="")

        def advance(text_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += text_bytes
            progress.update(bar, advance=1, rate=rate())

        def rate() -> str:
            elapsed_s = max(1e-9, time.perf_counter() - begin)
            return f"{done_bytes / _MB / elapsed_s:.1f} MB/s" if done_bytes else ""

        with progress:
            yield advance
        if not terminal:
            self.say(f"{name}: {total:,} tasks in {time.perf_counter() - begin:.2f} s {rate()}".rstrip() + ".")

    def report(self, report: Mapping[str, Any]) -> None:
        """Prints what the job has found."""
        if self._quiet:
            return
        documents = report["documents"]
        self.say(f"{documents:,} rows; removed {report['share_removed']:.1%} of those that have a verdict.")
        table = Table(show_edge=False)
        for name in ("", "rows", "share"):
            table.add_column(name, justify="right" if name else "left")
        repeated = report["repeated_ids"]
        for name, count in (
            ("kept", report["kept"]),
            ("  of those, ids that came again", repeated["kept"]),
            ("exact copies", report["exact"]),
            ("near-duplicates", report["near"]),
            ("ids that came again, dropped", repeated["dropped"]),
            ("errors", report["errors"]),
        ):
            table.add_row(name, f"{count:,}", f"{count / max(1, documents):.1%}")
        table.add_section()
        for line in report["cluster_sizes"]:
            sizes = str(line["from"]) if line["from"] == line["to"] else f"{line['from']:,} to {line['to']:,}"
            table.add_row(f"clusters of {sizes} rows: {line['clusters']:,}", f"{line['documents']:,}", "")
        if report["largest_clusters"]:
            table.add_section()
        for cluster in report["largest_clusters"][:10]:
            name = cluster["id"] if len(cluster["id"]) <= 48 else cluster["id"][:47] + "…"
            table.add_row(f"largest: {name}".replace("[", r"\["), f"{cluster['documents']:,}", "")
        self._console.print(table)
