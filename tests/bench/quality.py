"""How well quality is told in sources and on sites that the model has not seen, and what scoring costs.

    python -m tests.bench.quality --data ../shared/data

Every source of clean and corrupted text and every site is left out once, in three
folds; perplexity models of the folds are kept in `--cache` (training them needs lmplz).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dqs.models import find_models, model_roots
from dqs.scorer import ScoreColumns
from dqs.scorers import build_scorers
from dqs.text import TextBatch
from dqs.training.quality import train_quality
from tests.bench.report import emit, show

_SPEED_BYTES = 4_000_000
_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files")
    parser.add_argument("--cache", type=Path, default=Path(".cache/folds"), help="perplexity models of the folds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = train_quality(
            arguments.data, Path(scratch), arguments.cache, progress=lambda line: print(line, file=sys.stderr)
        )
    figures = report.figures
    for title, name in (
        ("Raw page against its article, site left out", "web"),
        ("Corrupted against clean, source left out", "corruptions"),
    ):
        show(title, ("", "AUC"), list(figures[name].items()))
    for language, kinds in figures["kinds"].items():
        show(f"Kinds against clean, {language}, source left out", ("kind", "AUC"), list(kinds.items()))
        show(f"Clean text by bytes, {language}", ("from", "mean"), list(figures["clean_by_bytes"][language].items()))
        show(f"Rough text, {language}", ("kind", "mean"), list(figures["noisy"][language].items()))
    show("Calibration error", ("", "ECE"), list(figures["ece"].items()))
    speed = {language: measure_speed(arguments.data, language) for language in ("en", "zh")}
    show(
        "Cost of the scorer",
        ("", "ms per MB", "of all scorers"),
        [(language, row["ms_per_mb"], f"{row['share']:.1%}") for language, row in speed.items()],
    )
    emit("quality", {**figures, "speed": speed, "graph_bytes": report.file_bytes})


def measure_speed(data: Path, language: str) -> dict[str, Any]:
    """Milliseconds per megabyte of the quality scorer and of all scorers with decoding; the best of some rounds."""
    texts: list[bytes] = []
    size = 0
    for text in pq.read_table(data / f"clean_{language}.parquet", columns=["text"])["text"].to_pylist():
        texts.append(text.encode())
        size += len(texts[-1])
        if size > _SPEED_BYTES:
            break
    scorers = build_scorers(find_models(model_roots()))
    best: dict[str, float] = {}
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        batch = TextBatch.from_bytes(texts)
        times = {"decoding": time.perf_counter() - start}
        columns = ScoreColumns(len(batch))
        for scorer in scorers:
            start = time.perf_counter()
            scorer.score(batch, columns)
            times[scorer.name] = time.perf_counter() - start
        best = {name: min(value, best.get(name, value)) for name, value in times.items()}
    megabytes = size / 1e6
    return {
        "ms_per_mb": best["quality"] * 1000 / megabytes,
        "all_ms_per_mb": sum(best.values()) * 1000 / megabytes,
        "share": best["quality"] / sum(best.values()),
    }


if __name__ == "__main__":
    main()
