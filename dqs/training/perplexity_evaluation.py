"""How a perplexity model does on given text: by source, and on pairs of clean and corrupted text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError
from dqs.models import ModelFolder
from dqs.scorer import ScoreColumns
from dqs.scorers.perplexity import PerplexityScorer
from dqs.text import TextBatch

_HIGH_PERCENTILE: Final = 95
_BATCH_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class PerplexityFigures:
    """How a model did on one group of rows.

    Attributes:
        group: value of the column `kind`, else of `source`, else `all`.
        rows: rows scored or found too short.
        scored: share of them that have a perplexity.
        perplexity: median; NaN where there is none.
        percentile: median; NaN where there is none.
        high: share of the percentiles above 95; clean text like the reference has 0.05.
        worse: share of the pairs in which the corrupted text has the higher perplexity, a
            missing score counting as not higher; NaN where there are no pairs.
    """

    group: str
    rows: int
    scored: float
    perplexity: float
    percentile: float
    high: float
    worse: float


def evaluate_perplexity(model: ModelFolder, data: Path) -> list[PerplexityFigures]:
    """Scores the rows in the model's languages.

    Args:
        model: a folder of kind `perplexity`.
        data: a parquet file with the columns `text` and `lang`, perhaps `kind` or `source`, and
            for pairs `pair_id` and `label` (1 the clean text, 0 its corrupted twin).

    Returns:
        Figures per group, by name.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or holds no row in the model's languages.
        ModelError: the model does not load.
    """
    try:
        table = pq.read_table(data)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{data} cannot be read as Parquet: {' '.join(str(error).split())}") from None
    for column in ("text", "lang"):
        if column not in table.column_names:
            raise ConfigError(f"{data} has no column {column!r}; it has: {', '.join(table.column_names)}")
    rows = [row for row in table.to_pylist() if row["lang"] in model.languages and isinstance(row["text"], str)]
    if not rows:
        raise ConfigError(f"{data} holds no text in {' or '.join(model.languages)}, the model's languages.")
    perplexity, percentile = _score(PerplexityScorer([model]), rows)
    by = next((name for name in ("kind", "source") if name in table.column_names), None)
    groups = np.array([str(row[by]) if by else "all" for row in rows])
    paired = {"pair_id", "label"} <= set(table.column_names)
    clean = {row["pair_id"]: at for at, row in enumerate(rows) if row["label"] == 1} if paired else {}
    return [
        _figures(group, np.flatnonzero(groups == group), rows, clean, perplexity, percentile)
        for group in sorted(set(groups.tolist()))
    ]


def _score(scorer: PerplexityScorer, rows: Sequence[dict[str, Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    columns = [_score_batch(scorer, batch) for batch in _batches(rows)]
    return (
        np.concatenate([column.values["perplexity"] for column in columns]),
        np.concatenate([column.values["perplexity_percentile"] for column in columns]),
    )


def _batches(rows: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(rows), _BATCH_ROWS):
        yield rows[start : start + _BATCH_ROWS]


def _score_batch(scorer: PerplexityScorer, rows: Sequence[dict[str, Any]]) -> ScoreColumns:
    columns = ScoreColumns(size=len(rows), language=[row["lang"] for row in rows])
    scorer.score(TextBatch.from_bytes([row["text"].encode("utf-8", "replace") for row in rows]), columns)
    return columns


def _figures(
    group: str,
    members: NDArray[np.intp],
    rows: Sequence[dict[str, Any]],
    clean: dict[Any, int],
    perplexity: NDArray[np.float32],
    percentile: NDArray[np.float32],
) -> PerplexityFigures:
    values, percents = perplexity[members], percentile[members]
    twins = [(at, clean[rows[at]["pair_id"]]) for at in members.tolist() if clean and rows[at]["label"] == 0
             and rows[at]["pair_id"] in clean]  # fmt: skip
    return PerplexityFigures(
        group=group,
        rows=len(members),
        scored=float(np.mean(np.isfinite(values))),
        perplexity=_median(values),
        percentile=_median(percents),
        high=float(np.mean(percents[np.isfinite(percents)] > _HIGH_PERCENTILE))
        if np.isfinite(percents).any()
        else np.nan,
        worse=float(np.mean([perplexity[bad] > perplexity[good] for bad, good in twins])) if twins else np.nan,
    )


def _median(values: NDArray[np.float32]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")
