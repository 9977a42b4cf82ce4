"""How well toxicity is found in sources that the model has not seen, and how often clean text is accused.

    python -m tests.bench.toxicity --data ../shared/data

Every evaluated source is left out of training in turn, together with a part of
the clean sources, whose paragraphs measure false alarms. One more model per
language is trained on everything but the development and test rows, for the
figures of sources that it has seen. Models are kept in `--cache`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqs.models import ModelFolder, load_model
from dqs.scorers.toxicity import ToxicityModel
from dqs.training.toxicity import RECIPES, score_rows, train_toxicity
from dqs.training.toxicity_data import Rows, read_data
from dqs.training.toxicity_figures import SourceFigures, source_figures
from tests.bench.report import emit, show

_LEAST_ROWS = 400
_CLEAN_FOLDS = 4
_SEED = 20_261_121
_SEEN_SPLITS = {"en": ("test",), "zh": ("dev", "test")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of toxicity_*.parquet and clean_*.parquet")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/bench-toxicity"), help="where trained models are kept"
    )
    parser.add_argument("--language", choices=sorted(RECIPES), action="append", help="both by default")
    arguments = parser.parse_args()
    figures = {
        language: measure(arguments.data, arguments.cache, language)
        for language in arguments.language or sorted(RECIPES)
    }
    emit("toxicity", {"languages": figures})


def measure(data: Path, cache: Path, language: str) -> dict[str, Any]:
    labelled, paragraphs = read_data(data, None, language, _SEED)
    if paragraphs is None:
        raise SystemExit(f"{data} holds no clean text in {language}")
    clean = np.unique(paragraphs.sources).tolist()
    evaluated = evaluated_rows(labelled, language)
    left_out = []
    clean_rows = clean_alarms = 0
    accused: dict[str, list[float]] = {source: [] for source in clean}
    for at, rows in enumerate(evaluated):
        source = str(rows.sources[0])
        unseen = clean[at % _CLEAN_FOLDS :: _CLEAN_FOLDS]
        model = ToxicityModel(trained(data, cache / f"without-{source}", language, [source, *unseen], ()))
        left_out.append(source_figures(source, rows.labels, score_rows(model, rows), model.threshold))
        for name in unseen:
            found = paragraphs.take(paragraphs.sources == name)
            above = score_rows(model, found) > model.threshold
            clean_rows += above.size
            clean_alarms += int(above.sum())
            accused[name].append(float(above.mean()))
    splits = _SEEN_SPLITS[language]
    model = ToxicityModel(trained(data, cache / "seen", language, [], splits))
    seen = []
    for source in np.unique(labelled.sources[labelled.ship]).tolist():
        rows = labelled.take((labelled.sources == source) & np.isin(labelled.splits, splits))
        if len(rows) >= _LEAST_ROWS:
            seen.append(source_figures(source, rows.labels, score_rows(model, rows), model.threshold))
    columns = ("source", "rows", "toxic", "AUC", "best macro-F1", "recall", "false alarms")
    for title, part in (("source left out of training", left_out), ("other rows of the source seen", seen)):
        show(f"Toxicity, {language}, {title}, threshold {model.threshold:g}", columns, [cells(row) for row in part])
    show(
        f"Clean paragraphs above {model.threshold:g}, {language}, sources left out",
        ("source", "false alarms"),
        [(name, f"{np.mean(shares):.2%}") for name, shares in accused.items() if shares]
        + [("all", f"{clean_alarms / clean_rows:.2%}")],
    )
    return {
        "threshold": model.threshold,
        "left_out": [as_json(row) for row in left_out],
        "left_out_mean_auc": float(np.mean([row.auc for row in left_out])),
        "left_out_mean_recall": float(np.mean([row.recall for row in left_out])),
        "seen": [as_json(row) for row in seen],
        "seen_mean_auc": float(np.mean([row.auc for row in seen])),
        "clean_paragraphs": clean_rows,
        "clean_false_alarms": clean_alarms / clean_rows,
        "clean_false_alarms_by_source": {name: float(np.mean(shares)) for name, shares in accused.items() if shares},
    }


def evaluated_rows(labelled: Rows, language: str) -> list[Rows]:
    """The rows to evaluate, one source each: test rows where sources have enough of them, else whole sources."""
    chosen = labelled.splits == "test" if language == "en" else np.ones(len(labelled), dtype=np.bool_)
    sources, sizes = np.unique(labelled.sources[chosen], return_counts=True)
    return [
        labelled.take(chosen & (labelled.sources == source))
        for source, size in zip(sources.tolist(), sizes.tolist(), strict=True)
        if size >= _LEAST_ROWS
    ]


def trained(data: Path, root: Path, language: str, sources: Sequence[str], splits: Sequence[str]) -> ModelFolder:
    name = f"toxicity-{language}"
    folder = root / name / "1"
    if not (folder / "CARD.md").exists():
        train_toxicity(
            data,
            root,
            language,
            exclude_sources=sources,
            exclude_splits=splits,
            seed=_SEED,
            card_figures=False,
            progress=lambda line: print(f"{root.name}, {language}: {line}", file=sys.stderr),
        )
    return load_model(folder)


def cells(row: SourceFigures) -> tuple[str | int, ...]:
    return (
        row.source, row.rows, f"{row.toxic_share:.2f}", f"{row.auc:.3f}", f"{row.macro_f1:.3f}",
        f"{row.recall:.3f}", f"{row.false_alarms:.2%}",
    )  # fmt: skip


def as_json(row: SourceFigures) -> dict[str, str | int | float | None]:
    values = {name: getattr(row, name) for name in SourceFigures.__slots__}
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}


if __name__ == "__main__":
    main()
