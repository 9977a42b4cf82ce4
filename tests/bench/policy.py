"""What a policy keeps of clean text and drops of corrupted text, by kind; models have not seen the sources.

    python -m tests.bench.policy --data DIR [--policy default] [--folds 3] [--cache .cache/folds]

Every passage of quality_synthetic_corruptions.parquet goes through the whole
pipeline without duplication, its language detected. Needs lmplz for the folds
that the cache does not hold.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dqs.data import Document, Label
from dqs.settings import load_settings, use_kernel_cache
from tests.bench.report import emit, show

CLEAN = "clean"
BATCH_DOCUMENTS = 500


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the evaluation data")
    parser.add_argument("--policy", default="default")
    parser.add_argument("--policies", type=Path, help="folder of policies to search first")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path(".cache/folds"), help="where fold models are kept")
    arguments = parser.parse_args()
    base = load_settings(policies=arguments.policies)
    use_kernel_cache(base.data_dir)
    from dqs.app import build_pipeline
    from tests.bench.folds import LANGUAGES, train_folds

    rows = pq.read_table(arguments.data / "quality_synthetic_corruptions.parquet").to_pylist()
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    rules: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for fold in train_folds(arguments.data, arguments.cache, arguments.folds):
        own = [row for row in rows if row["source"] in fold.sources[row["lang"]]]
        with tempfile.TemporaryDirectory() as folder:
            settings = base.model_copy(update={"models": fold.models, "data_dir": Path(folder)})
            with build_pipeline(settings, dedup=False) as pipeline:
                for start in range(0, len(own), BATCH_DOCUMENTS):
                    part = own[start : start + BATCH_DOCUMENTS]
                    documents = [Document(str(i), row["text"].encode()) for i, row in enumerate(part)]
                    results = pipeline.run(documents, policy=arguments.policy, corpus=None)
                    for row, label, reasons in zip(part, results.labels.tolist(), results.reasons, strict=True):
                        key = (row["lang"], row["kind"])
                        counts[key][Label(label).name] += 1
                        rules[key].update({reason.rule for reason in reasons})

    figures: dict[str, Any] = {}
    for language in LANGUAGES:
        kinds = {kind: counts[language, kind] for name, kind in sorted(counts) if name == language}
        dropped = {kind: count["DROP"] / count.total() for kind, count in kinds.items()}
        bad = sum((count for kind, count in kinds.items() if kind != CLEAN), Counter[str]())
        figures[language] = {
            "clean_kept": kinds[CLEAN]["KEEP"] / kinds[CLEAN].total(),
            "corrupted_dropped": bad["DROP"] / bad.total(),
            "dropped_by_kind": dropped,
            "passages_by_kind": {kind: count.total() for kind, count in kinds.items()},
            "rules_by_kind": {
                kind: {rule: n / count.total() for rule, n in rules[language, kind].most_common(6)}
                for kind, count in kinds.items()
            },
        }
    names = sorted({kind for _, kind in counts})
    show(
        f"Policy {arguments.policy}: share dropped by kind, sources left out of training",
        ("kind", *LANGUAGES),
        [(kind, *(f"{figures[language]['dropped_by_kind'][kind]:.1%}" for language in LANGUAGES)) for kind in names]
        + [
            ("all corrupted", *(f"{figures[language]['corrupted_dropped']:.1%}" for language in LANGUAGES)),
            ("clean kept", *(f"{figures[language]['clean_kept']:.1%}" for language in LANGUAGES)),
        ],
    )
    emit("policy", {"policy": arguments.policy, "folds": arguments.folds, "languages": figures})


if __name__ == "__main__":
    main()
