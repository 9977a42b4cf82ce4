"""How well pairs of documents are told to be duplicates or not: DQS, and other libraries on the same pairs.

    python -m tests.bench.duplicate_pairs --data DIR [--peers PYTHON] [--pairs N]

A pair is a duplicate if the Jaccard similarity of its sets of five tokens, in plain Python and without the kernels
under test, reaches the threshold. Precision, recall and F1 come with the middle 95 % of 1,000 resamples of the pairs,
the same resamples for everything that is compared. The definition of the truth is DQS's own: a library that cuts
tokens otherwise answers a slightly other question and loses by it.

The pairs of `dup_extractor_clusters` are every two extractions of one page, and as the easy negatives 10,000
random pairs of different pages. Its resamples draw pages, with all their pairs, because those are not independent.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.index.signature import SignatureParameters, Signatures, sign, similarity
from dqs.text import TextBatch
from tests.bench.duplicates import jaccard, shingle_set
from tests.bench.report import emit, show

THRESHOLDS = (0.5, 0.7, 0.8)
FILES = {
    "synthetic_en": ("dup_synthetic_pairs_en", "en"),
    "synthetic_zh": ("dup_synthetic_pairs_zh", "zh"),
    "law_zh": ("dup_law_versions_zh", "zh"),
    "extractors": ("dup_extractor_clusters", "en"),
    "wikisplit_en": ("dup_wikisplit_pairs_en", "en"),
}
"""Name: file, and the language whose tokens the other libraries take."""

BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
"""Edges of the bins of true similarity; the last one contains 1."""

FAR = 0.05
"""An error on a pair whose true similarity is farther than this from the threshold is no matter of chance."""

UNLIKE_PAIRS = 10_000
SEED = 20_26
RESAMPLES = 1_000

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Pairs:
    """Pairs of documents.

    Attributes:
        texts: distinct texts.
        left: int64[n]; one document of each pair.
        right: int64[n]; the other.
        group: int64[n]; pairs of the same number are resampled together.
        listed: float64[n]; similarity by the file's own column; NaN where it gives none.
    """

    texts: list[str]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    group: NDArray[np.int64]
    listed: Floats

    def __len__(self) -> int:
        return int(self.left.size)


def read_pairs(path: Path, limit: int | None) -> Pairs:
    """The pairs of a file, or `limit` random ones of them."""
    table = pq.read_table(path)
    columns = table.column_names
    generator = np.random.default_rng(SEED)
    if "cluster_id" in columns:
        raw = table["text"].to_pylist()
        left, right, group, listed = _cluster_pairs(table, generator)
    else:
        n = table.num_rows
        raw = table["text_a"].to_pylist() + table["text_b"].to_pylist()
        left = np.arange(n)
        right = left + n
        group = np.arange(n)
        listed = table["jaccard5"].to_numpy().astype(np.float64)
    if limit is not None and limit < left.size:
        chosen = np.sort(generator.choice(left.size, limit, replace=False))
        left, right, group, listed = left[chosen], right[chosen], group[chosen], listed[chosen]
    used, compact = np.unique(np.concatenate([left, right]), return_inverse=True)
    numbers: dict[str, int] = {}
    number_of = np.array([numbers.setdefault(raw[row], len(numbers)) for row in used], dtype=np.int64)
    document = number_of[compact]
    return Pairs(list(numbers), document[: left.size], document[left.size :], np.unique(group, return_inverse=True)[1],
                 listed)  # fmt: skip


def _cluster_pairs(
    table: pa.Table, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Floats]:
    """Every two rows of a cluster, then random rows of two clusters, each a group of its own."""
    _, cluster = np.unique(np.array(table["cluster_id"].to_pylist()), return_inverse=True)
    inside = [
        pair
        for number in range(int(cluster.max()) + 1)
        for pair in combinations(np.flatnonzero(cluster == number).tolist(), 2)
    ]
    left, right = np.array(inside, dtype=np.int64).T
    drawn = generator.integers(0, table.num_rows, size=(4 * UNLIKE_PAIRS, 2))
    drawn = drawn[cluster[drawn[:, 0]] != cluster[drawn[:, 1]]][:UNLIKE_PAIRS]
    group = np.concatenate([cluster[left], int(cluster.max()) + 1 + np.arange(len(drawn))])
    left = np.concatenate([left, drawn[:, 0]])
    right = np.concatenate([right, drawn[:, 1]])
    gold = np.array(table["extractor"].to_pylist()) == "ground_truth"
    to_gold = table["jaccard5_to_gold"].to_numpy().astype(np.float64)
    listed = np.where(gold[right], to_gold[left], np.where(gold[left], to_gold[right], np.nan))
    listed[len(inside) :] = np.nan
    return left, right, group, listed


def true_similarity(pairs: Pairs) -> Floats:
    """float64[n]: Jaccard similarity of the shingle sets, and 1 where the normalised texts are equal."""
    sets = []
    for number, text in enumerate(pairs.texts):
        if number % 500 == 0:
            print(f"\r  truth: {number} of {len(pairs.texts)} documents", end="", file=sys.stderr, flush=True)
        sets.append(shingle_set(text))
    normalised = [" ".join(unicodedata.normalize("NFKC", text).lower().split()) for text in pairs.texts]
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return np.array(
        [
            1.0 if normalised[left] and normalised[left] == normalised[right] else jaccard(sets[left], sets[right])
            for left, right in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
        ]
    )


def estimated(parameters: SignatureParameters, left: Signatures, right: Signatures) -> tuple[Floats, Bools]:
    """float64[n], bool[n]: similarity estimated from the sketches, and whether it reaches the threshold."""
    signed = (left.shingles > 0) & (right.shingles > 0)
    estimate = np.where(signed, similarity(left.sketch, right.sketch), 0.0)
    return estimate, signed & parameters.is_near(estimate)


def same_text(left: Signatures, right: Signatures) -> Bools:
    """bool[n]: whether the normalised texts are equal and not empty."""
    equal: Bools = (left.text_hash == right.text_hash).all(axis=1) & left.text_hash.any(axis=1)
    return equal


def meet(left: Signatures, right: Signatures) -> Bools:
    """bool[n]: whether the documents share a band."""
    signed = (left.shingles > 0) & (right.shingles > 0)
    shared: Bools = (left.bands == right.bands).any(axis=1) & signed
    return shared


def predicted(parameters: SignatureParameters, left: Signatures, right: Signatures) -> Bools:
    """bool[n]: whether the index would call the documents of a pair duplicates."""
    return same_text(left, right) | (meet(left, right) & estimated(parameters, left, right)[1])


def run_dqs(
    pairs: Pairs, truth: Floats
) -> tuple[dict[str, dict[str, Bools]], dict[str, dict[str, Any]], dict[str, str]]:
    """Predictions by threshold, what was lost where and the error of the estimate by threshold, and the bandings."""
    batch = TextBatch.from_bytes([text.encode() for text in pairs.texts])
    predictions: dict[str, Bools] = {}
    details: dict[str, dict[str, Any]] = {}
    bandings: dict[str, str] = {}
    for threshold in THRESHOLDS:
        parameters = SignatureParameters.for_threshold(threshold)
        signatures = sign(batch, parameters)
        left, right = signatures[pairs.left], signatures[pairs.right]
        estimate, like = estimated(parameters, left, right)
        other = ~same_text(left, right)
        met = meet(left, right)
        positive = truth >= threshold
        key = str(threshold)
        predictions[key] = predicted(parameters, left, right)
        bandings[key] = f"{parameters.bands}x{parameters.rows}"
        details[key] = {
            "parameters": asdict(parameters),
            "positives": int(positive.sum()),
            "missed_by_bands": int((positive & other & ~met & like).sum()),
            "missed_by_estimate": int((positive & other & met & ~like).sum()),
            "missed_by_both": int((positive & other & ~met & ~like).sum()),
            "wrong_by_estimate": int((~positive & predictions[key]).sum()),
            "estimate_error": _errors((estimate - truth)[other], truth[other]),
        }
    return {"DQS": predictions}, details, bandings


def _errors(error: Floats, truth: Floats) -> dict[str, dict[str, Any]]:
    """Mean and root mean square of an error, over all and by bin of the true similarity."""
    chosen = {"all": np.ones(truth.size, dtype=np.bool_)}
    for lower, upper in pairwise(BINS):
        last = upper == BINS[-1]
        chosen[f"{lower} to {upper}"] = (truth >= lower) & ((truth <= upper) if last else (truth < upper))
    return {
        name: {
            "pairs": int(these.sum()),
            "mean": float(error[these].mean()) if these.any() else None,
            "rms": float(np.sqrt(np.square(error[these]).mean())) if these.any() else None,
        }
        for name, these in chosen.items()
    }


def run_peers(python: str, pairs: Pairs, language: str) -> dict[str, Any]:
    """The same pairs through `tests/bench/duplicate_peers.py`."""
    with tempfile.TemporaryDirectory(prefix="dqs-bench-") as name:
        folder = Path(name)
        pq.write_table(pa.table({"text": pairs.texts}), folder / "documents.parquet")
        pq.write_table(pa.table({"left": pairs.left, "right": pairs.right}), folder / "pairs.parquet")
        script = Path(__file__).with_name("duplicate_peers.py")
        subprocess.run([python, str(script), name, language, *map(str, THRESHOLDS)], check=True)
        answer: dict[str, Any] = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    answer["predictions"] = {
        peer: {threshold: np.array(list(text)) == "1" for threshold, text in by_threshold.items()}
        for peer, by_threshold in answer["predictions"].items()
    }
    return answer


def score(
    pairs: Pairs, truth: Floats, predictions: Mapping[str, Mapping[str, Bools]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Precision, recall and F1 with intervals, by method and threshold; and F1 less that of DQS."""
    groups = int(pairs.group.max()) + 1
    generator = np.random.default_rng(SEED)
    weights = generator.multinomial(groups, np.full(groups, 1.0 / groups), size=RESAMPLES).astype(np.float32)
    figures: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in predictions}
    for threshold in THRESHOLDS:
        positive = truth >= threshold
        far = np.abs(truth - threshold) > FAR
        resampled_f1 = {}
        for name, by_threshold in predictions.items():
            found = by_threshold[str(threshold)]
            kinds = (positive & found, ~positive & found, positive & ~found)
            per_group = np.stack([np.bincount(pairs.group[kind], minlength=groups) for kind in kinds], axis=1)
            point = _precision_recall_f1(per_group.sum(axis=0, keepdims=True).astype(np.float64))[:, 0]
            resampled = _precision_recall_f1((weights @ per_group.astype(np.float32)).astype(np.float64))
            resampled_f1[name] = resampled[2]
            measured: dict[str, Any] = {"positives": int(positive.sum())}
            for row, measure in enumerate(("precision", "recall", "f1")):
                measured[measure] = _number(point[row])
                measured[f"{measure}_95"] = _interval(resampled[row])
            measured["false_positives"] = int(kinds[1].sum())
            measured["misses"] = int(kinds[2].sum())
            measured["far_false_positives"] = int((kinds[1] & far).sum())
            measured["far_misses"] = int((kinds[2] & far).sum())
            figures[name][str(threshold)] = measured
        for name, values in resampled_f1.items():
            figures[name][str(threshold)]["f1_less_dqs_95"] = _interval(values - resampled_f1["DQS"])
    return figures


def _precision_recall_f1(counts: Floats) -> Floats:
    """float64[3, n] from counts [n, 3] of true positives, false positives and misses; NaN for 0 / 0."""
    true, false, missed = counts.T
    with np.errstate(invalid="ignore"):
        return np.stack([true / (true + false), true / (true + missed), 2 * true / (2 * true + false + missed)])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _interval(values: Floats) -> list[float] | None:
    values = values[~np.isnan(values)]
    return [float(end) for end in np.percentile(values, (2.5, 97.5))] if values.size else None


def compare_with_column(pairs: Pairs, truth: Floats) -> dict[str, Any]:
    """How far the recomputed truth is from the file's own column."""
    given = ~np.isnan(pairs.listed)
    distance = np.abs(truth - pairs.listed)[given]
    return {
        "pairs_with_column": int(given.sum()),
        "largest": float(distance.max()) if distance.size else None,
        "above_0.001": int((distance > 1e-3).sum()),
    }


def show_file(name: str, figures: Mapping[str, Any], bandings: Mapping[str, Mapping[str, str]]) -> None:
    """One table per file: methods by threshold."""
    rows = []
    for threshold in map(str, THRESHOLDS):
        for method, by_threshold in figures["methods"].items():
            one = by_threshold[threshold]
            low, high = one["f1_95"] or (math.nan, math.nan)
            less, more = one["f1_less_dqs_95"] or (0.0, 0.0)
            rows.append(
                [
                    method, threshold, bandings[method][threshold], _cell(one["precision"]), _cell(one["recall"]),
                    f"{_cell(one['f1'])} [{low:.3f}, {high:.3f}]", "+" if less > 0 else "-" if more < 0 else "",
                    one["false_positives"], one["misses"], one["far_false_positives"] + one["far_misses"],
                ]
            )  # fmt: skip
    counts = ", ".join(f"{figures['detail'][str(t)]['positives']} from {t}" for t in THRESHOLDS)
    show(
        f"{name}: {figures['pairs']} pairs; duplicates: {counts}\n"
        f"+, -: F1 surely above, below that of DQS; far: errors on pairs farther than {FAR} from the threshold",
        ["", "from", "bands", "precision", "recall", "F1 [95 %]", "", "wrong", "missed", "far"],
        rows,
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def show_detail(results: Mapping[str, Mapping[str, Any]]) -> None:
    """What DQS lost where, the error of its estimate, and the check of the truth."""
    keys = ("positives", "missed_by_bands", "missed_by_estimate", "missed_by_both", "wrong_by_estimate")
    show(
        "DQS: duplicates missed because they share no band, because the estimate is too low, because of both",
        ["", "from", *(key.replace("_", " ") for key in keys)],
        [
            [name, threshold, *(detail[key] for key in keys)]
            for name, figures in results.items()
            for threshold, detail in figures["detail"].items()
        ],
    )
    show(
        f"DQS: mean and root mean square error of the estimate, by true similarity (parameters for {THRESHOLDS[1]})",
        ["", "similarity", "pairs", "mean", "rms"],
        [
            [name, where, one["pairs"], *("-" if one[m] is None else f"{one[m]:+.4f}" for m in ("mean", "rms"))]
            for name, figures in results.items()
            for where, one in figures["detail"][str(THRESHOLDS[1])]["estimate_error"].items()
        ],
    )
    show(
        "Recomputed truth against the column of the file",
        ["", "pairs", "largest difference", "above 0.001"],
        [
            [
                name,
                one["pairs_with_column"],
                "-" if one["largest"] is None else f"{one['largest']:.5f}",
                one["above_0.001"],
            ]
            for name, one in ((name, figures["truth_against_column"]) for name, figures in results.items())
        ],
    )


def measure(path: Path, language: str, peers: str | None, limit: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything on one file; the figures and the bandings."""
    pairs = read_pairs(path, limit)
    truth = true_similarity(pairs)
    predictions, detail, banding = run_dqs(pairs, truth)
    bandings: dict[str, Any] = {"DQS": banding}
    figures: dict[str, Any] = {
        "pairs": len(pairs),
        "documents": len(pairs.texts),
        "truth_against_column": compare_with_column(pairs, truth),
        "detail": detail,
    }
    if peers is not None:
        answer = run_peers(peers, pairs, language)
        predictions |= answer["predictions"]
        bandings |= answer["banding"]
        figures |= {"peer_versions": answer["versions"], "peer_seconds": answer["seconds"]}
    return figures | {"methods": score(pairs, truth, predictions), "bandings": bandings}, bandings


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files dup_*.parquet")
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--pairs", type=int, help="take only so many random pairs of each file")
    parser.add_argument("--peers", help="python of an environment with datasketch, text-dedup and datatrove")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = {}
    for name in options.files:
        file, language = FILES[name]
        results[name], bandings = measure(options.data / f"{file}.parquet", language, options.peers, options.pairs)
        show_file(name, results[name], bandings)
    show_detail(results)
    emit("duplicate_pairs", {"thresholds": list(THRESHOLDS), "resamples": RESAMPLES, "files": results})


if __name__ == "__main__":
    main()
