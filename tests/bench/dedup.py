"""How fast `dqs dedup` is, what it holds, and how well it finds near-duplicates, against truth from the text.

    python -m tests.bench.dedup --data ../shared/data

The streams are those of `tests.bench.duplicates`, with the same truth. Speed needs
more text: the clean texts, each `--copies` times with other words, or other
characters, taken out of every copy, so that some copies are near-duplicates and some
are not. Seconds per stage are what the command says; the memory is the largest
resident size of the command and all processes below it together, shared pages
counted in each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.duplicates import Answers, evaluate
from tests.bench.report import emit, show

_STAGE = re.compile(r"dqs: (\w+): [\d,]+ tasks in ([\d.]+) s")
_LOOK_S = 0.05
_MB = 1_000_000


def run(inputs: Sequence[Path], output: Path, options: Sequence[str]) -> dict[str, Any]:
    """Runs the command; returns its report, seconds by stage, and the memory and disk that it took."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dqs.cli", "dedup", *map(str, inputs), "--output", str(output), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    peak, disk = [0], [0]
    watch = threading.Thread(target=_watch, args=(process.pid, output / "work", peak, disk), daemon=True)
    watch.start()
    _, said = process.communicate()
    seconds = time.perf_counter() - begin
    watch.join()
    if process.returncode not in (0, 1):
        raise SystemExit(said)
    stages = {name: float(value) for name, value in _STAGE.findall(said)}
    report = json.loads((output / "report.json").read_text())
    working = sum(stages.values())
    return {
        "documents": report["documents"],
        "text_mb": report["text_bytes"] / _MB,
        "share_removed": report["share_removed"],
        "seconds": seconds,
        "mb_per_s": report["text_bytes"] / _MB / working,
        "documents_per_s": report["documents"] / working,
        **{f"{name}_s": value for name, value in stages.items()},
        **{f"{name}_documents_per_s": report["documents"] / value for name, value in stages.items() if value},
        "memory_peak_mb": peak[0] / _MB,
        "work_bytes_per_document": disk[0] / max(1, report["documents"]),
    }


def _watch(pid: int, work: Path, peak: list[int], disk: list[int]) -> None:
    """Follows the memory of a process and those below it, and the disk that `work` takes, until it ends."""
    look = 0
    while True:
        try:
            root = psutil.Process(pid)
            if root.status() == psutil.STATUS_ZOMBIE:
                return
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        held = 0
        for process in processes:
            try:
                held += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], held)
        if look % 10 == 0:
            taken = 0
            for place, _, names in os.walk(work):
                for name in names:
                    try:
                        # Blocks, because files that are mapped have holes.
                        taken += (Path(place) / name).stat().st_blocks * 512
                    except FileNotFoundError:
                        continue
            disk[0] = max(disk[0], taken)
        look += 1
        time.sleep(_LOOK_S)


def multiply(source: Path, folder: Path, copies: int, documents: int | None) -> list[Path]:
    """Writes a file per copy of the texts, with pieces missing from all but the first."""
    texts = pq.read_table(source, columns=["text"])["text"].to_pylist()[:documents]
    paths = []
    for copy in range(copies):
        rng = np.random.default_rng(copy)
        changed = []
        for text in texts:
            pieces = text.split(" ") if " " in text[:200] else list(text)
            # Up to a third of the pieces, so that some copies are duplicates and some are not.
            share = rng.random() / 3 if copy else 0.0
            left = rng.random(len(pieces)) >= share * rng.random()
            changed.append((" " if " " in text[:200] else "").join(np.array(pieces, dtype=object)[left]))
        paths.append(folder / f"{source.stem}-{copy}.parquet")
        ids = [f"{copy}-{number}" for number in range(len(changed))]
        pq.write_table(pa.table({"id": ids, "text": changed}), paths[-1], row_group_size=5_000)
    return paths


def quality(source: Path, output: Path) -> dict[str, Any]:
    """Recall and precision of the verdicts on a stream, as `tests.bench.duplicates` has them for the index."""
    rows = [row for part in sorted(output.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    texts = pq.read_table(source, columns=["text"])["text"].to_pylist()
    numbers = {row["id"]: number for number, row in enumerate(rows)}
    answers = Answers(
        duplicate_of=[None if row["duplicate_of"] is None else numbers[row["duplicate_of"]] for row in rows],
        similarity=np.array([row["similarity"] or 0.0 for row in rows], dtype=np.float32),
        exact=np.array([bool(row["exact"]) for row in rows]),
        documents_per_s=float("nan"),
        bytes_per_document=float("nan"),
    )
    found = evaluate(texts, answers)
    return {name: value for name, value in found.items() if not name.startswith("index_")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed, memory and recall of dqs dedup.")
    parser.add_argument("--data", type=Path, required=True, help="folder with dup_stream_* and clean_*.parquet")
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--copies", type=int, default=4, help="copies of the clean texts")
    parser.add_argument("--documents", type=int, help="take only the first so many clean texts")
    parser.add_argument("--workers", default="2", help="0 runs without Ray")
    parser.add_argument("--methods", nargs="+", default=["first", "components"])
    parser.add_argument("--no-truth", action="store_true", help="leave out recall")
    arguments = parser.parse_args()
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="dqs-bench-") as name:
        folder = Path(name)
        for language in arguments.languages:
            stream = arguments.data / f"dup_stream_{language}.parquet"
            clean = multiply(
                arguments.data / f"clean_{language}.parquet", folder, arguments.copies, arguments.documents
            )
            for method in arguments.methods:
                options = ["--workers", arguments.workers, "--method", method]
                title = f"{language} {method}"
                output = folder / f"stream-{language}-{method}"
                runs[f"stream {title}"] = run([stream], output, options)
                if not arguments.no_truth and method == "first":
                    runs[f"stream {title}"] |= quality(stream, output)
                runs[f"clean {title}"] = run(clean, folder / f"clean-{language}-{method}", options)
            for path in clean:
                path.unlink()
    names = dict.fromkeys(name for figures in runs.values() for name in figures)
    show(
        f"dqs dedup, {arguments.workers} workers",
        ["", *runs],
        [[name, *(figures.get(name, "") for figures in runs.values())] for name in names],
    )
    emit("dedup", {"workers": int(arguments.workers), "copies": arguments.copies, "runs": runs})


if __name__ == "__main__":
    main()
