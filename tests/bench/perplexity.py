"""Quality figures of perplexity, from models that have never seen the sources they are measured on.

    python -m tests.bench.perplexity --data DIR [--folds 3] [--language en --language zh]

Needs lmplz (`make kenlm-tools`). The sources are dealt into folds; for each fold a model is
trained without its sources and measured on them, so every source is left out once.

* corruptions: the corrupted twin must have the higher perplexity; a missing score counts as not higher.
* percentiles: medians over clean text cut to 100, 300, 1,000 and 3,000 characters.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.scorer import ScoreColumns
from dqs.scorers.perplexity import PerplexityScorer
from dqs.text import TextBatch
from dqs.training.perplexity import train_perplexity
from tests.bench.report import emit, show

ASKED_KINDS = ("word_shuffle", "random_chars", "ocr_noise", "mojibake", "base64_blob")
CUTS = (100, 300, 1000, 3000)
THRESHOLDS = (90, 95, 98, 99)
TEXTS_PER_SOURCE = 200
BATCH_DOCUMENTS = 500


def score(scorer: PerplexityScorer, texts: Sequence[str], language: str) -> NDArray[np.float64]:
    """Perplexity and percentile per text, float64[n, 2]."""
    parts = [np.empty((0, 2))]
    for start in range(0, len(texts), BATCH_DOCUMENTS):
        part = [text.encode() for text in texts[start : start + BATCH_DOCUMENTS]]
        columns = ScoreColumns(size=len(part), language=[language] * len(part))
        scorer.score(TextBatch.from_bytes(part), columns)
        values = [columns.values[name].astype(np.float64) for name in ("perplexity", "perplexity_percentile")]
        parts.append(np.stack(values, axis=1))
    return np.concatenate(parts)


def read_pairs(data: Path, language: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Clean and corrupted row of every pair."""
    by_pair: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in pq.read_table(data / "quality_synthetic_corruptions.parquet").to_pylist():
        if row["lang"] == language:
            by_pair[row["pair_id"]][row["label"]] = row
    return [(pair[1], pair[0]) for pair in by_pair.values() if len(pair) == 2]


def read_long_texts(data: Path, language: str) -> dict[str, list[str]]:
    """Per source, texts of at least the longest cut; documents are joined where a source has only short ones."""
    table = pq.read_table(data / f"clean_{language}.parquet", columns=["text", "source"])
    documents: dict[str, list[str]] = defaultdict(list)
    for text, source in zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True):
        documents[source].append(text)
    texts: dict[str, list[str]] = {}
    for source, all_texts in documents.items():
        long_texts = [text for text in all_texts if len(text) >= CUTS[-1]]
        if len(long_texts) < TEXTS_PER_SOURCE // 4:
            long_texts, open_text = [], ""
            for text in all_texts:
                open_text = f"{open_text}\n{text}" if open_text else text
                if len(open_text) >= CUTS[-1]:
                    long_texts.append(open_text)
                    open_text = ""
        step = max(1, len(long_texts) // TEXTS_PER_SOURCE)
        texts[source] = long_texts[::step][:TEXTS_PER_SOURCE]
    return texts


def measure(data: Path, language: str, folds: int, seed: int) -> dict[str, Any]:
    """Trains `folds` models and collects the figures of one language."""
    pairs = read_pairs(data, language)
    long_texts = read_long_texts(data, language)
    table = pq.read_table(data / f"clean_{language}.parquet", columns=["source", "ship"]).to_pydict()
    shipped = {source for source, ship in zip(table["source"], table["ship"], strict=True) if ship}
    # The order of pairs spreads the sources with many of them over the folds.
    frequency = defaultdict(int, dict.fromkeys(long_texts, 0))
    for clean, _ in pairs:
        frequency[clean["source"]] += 1
    order = sorted(frequency, key=lambda source: (-frequency[source], source))

    kinds: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    cuts: dict[str, dict[int, NDArray[np.float64]]] = {}
    for fold in range(folds):
        sources = order[fold::folds]
        with tempfile.TemporaryDirectory() as scratch:
            report = train_perplexity(
                data,
                Path(scratch),
                language,
                exclude_sources=[source for source in sources if source in shipped],
                seed=seed,
                progress=functools.partial(_say, f"{language} fold {fold + 1} of {folds}"),
            )
            scorer = PerplexityScorer([report.model])
            own = [pair for pair in pairs if pair[0]["source"] in sources]
            good = score(scorer, [pair[0]["text"] for pair in own], language)
            bad = score(scorer, [pair[1]["text"] for pair in own], language)
            for at, (_, corrupted) in enumerate(own):
                kinds[corrupted["kind"]].append(np.concatenate((good[at], bad[at])))
            for source in sources:
                cuts[source] = {
                    cut: score(scorer, [text[:cut] for text in long_texts[source]], language)[:, 1] for cut in CUTS
                }
    return {
        "corruptions": {kind: _kind_figures(np.stack(rows)) for kind, rows in sorted(kinds.items())},
        "clean_above": _shares_above(np.concatenate([np.stack(rows)[:, 1] for rows in kinds.values()])),
        "percentile_medians": {cut: _median([cuts[source][cut] for source in cuts]) for cut in CUTS},
        "percentile_medians_per_source": {
            source: {cut: _median([by_cut[cut]]) for cut in CUTS} for source, by_cut in sorted(cuts.items())
        },
        "missing_per_cut": {cut: int(sum(np.isnan(by_cut[cut]).sum() for by_cut in cuts.values())) for cut in CUTS},
    }


def _say(where: str, line: str) -> None:
    print(f"{where}: {line}", file=sys.stderr)


def _kind_figures(rows: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of one kind from float64[pairs, 4]: clean perplexity, percentile, corrupted perplexity, percentile."""
    return {
        "pairs": len(rows),
        # NaN compares as false, as asked: a missing score is not worse.
        "worse": float(np.mean(rows[:, 2] > rows[:, 0])),
        "worse_percentile": float(np.mean(rows[:, 3] > rows[:, 1])),
        "median_clean": float(np.nanmedian(rows[:, 0])),
        "median_corrupted": float(np.nanmedian(rows[:, 2])),
        "above": _shares_above(rows[:, 3]),
    }


def _shares_above(percentiles: NDArray[np.float64]) -> dict[str, float]:
    return {str(threshold): float(np.mean(percentiles > threshold)) for threshold in THRESHOLDS}


def _median(parts: Sequence[NDArray[np.float64]]) -> float:
    return float(np.nanmedian(np.concatenate(parts)))


def show_language(language: str, figures: dict[str, Any]) -> None:
    """Prints the tables of one language."""
    rows: list[list[Any]] = [
        [
            kind + (" *" if kind in ASKED_KINDS else ""),
            row["pairs"],
            *(f"{row[name]:.3f}" for name in ("worse", "worse_percentile")),
            *(f"{row[name]:.0f}" for name in ("median_clean", "median_corrupted")),
            *(f"{row['above'][str(threshold)]:.3f}" for threshold in THRESHOLDS),
        ]
        for kind, row in sorted(figures["corruptions"].items(), key=lambda item: item[0] not in ASKED_KINDS)
    ]
    above = [f"{figures['clean_above'][str(threshold)]:.3f}" for threshold in THRESHOLDS]
    rows.append(["clean twins", "", "", "", "", "", *above])
    show(
        f"{language}: corrupted twin worse, by perplexity, by percentile (* asked: 0.97); shares above a percentile",
        ["kind", "pairs", "worse", "by pct.", "clean", "corrupted", *(f"> {threshold}" for threshold in THRESHOLDS)],
        rows,
    )
    sources = {"all": figures["percentile_medians"], **figures["percentile_medians_per_source"]}
    show(
        f"{language}: median percentile of clean text of left-out sources, by cut in characters; missing: "
        f"{sum(figures['missing_per_cut'].values())}",
        ["source", *map(str, CUTS), "spread"],
        [
            [source, *(f"{medians[cut]:.1f}" for cut in CUTS), f"{max(medians.values()) - min(medians.values()):.1f}"]
            for source, medians in sources.items()
        ],
    )


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=20_261_121)
    parser.add_argument("--language", action="append", choices=["en", "zh"], help="both by default")
    arguments = parser.parse_args()
    languages: dict[str, Any] = {}
    for language in arguments.language or ["en", "zh"]:
        languages[language] = measure(arguments.data, language, arguments.folds, arguments.seed)
        show_language(language, languages[language])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    emit("perplexity", {"date": date, "folds": arguments.folds, "seed": arguments.seed, "languages": languages})


if __name__ == "__main__":
    main()
