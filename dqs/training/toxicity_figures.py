"""How well probabilities of toxicity agree with labels. Knows nothing of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dqs.training.toxicity_data import Rows


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """How a model did on one source.

    Attributes:
        source: its name.
        rows: rows or paragraphs scored.
        toxic_share: share of them labelled toxic.
        auc: area under the ROC curve; NaN where there is one class only.
        macro_f1: mean F1 of both classes at the probability that is best for it; NaN where there is
            one class only.
        recall: share of the toxic rows above the threshold; NaN where there are none.
        false_alarms: share of the other rows above the threshold; NaN where there are none.
    """

    source: str
    rows: int
    toxic_share: float
    auc: float
    macro_f1: float
    recall: float
    false_alarms: float


def figures_by_source(rows: Rows, probability: NDArray[np.float64], threshold: float) -> list[SourceFigures]:
    """Compares probabilities with labels, per source.

    Args:
        rows: the rows.
        probability: float64[n], of each row.
        threshold: probability above which a row counts as toxic.
    """
    result = []
    for source in np.unique(rows.sources):
        chosen = rows.sources == source
        result.append(source_figures(str(source), rows.labels[chosen], probability[chosen], threshold))
    return result


def source_figures(
    source: str, labels: NDArray[np.int8], probability: NDArray[np.float64], threshold: float
) -> SourceFigures:
    """Figures of one source from int8[n] labels and float64[n] probabilities."""
    toxic = labels == 1
    above = probability > threshold
    both = bool(toxic.any()) and not bool(toxic.all())
    return SourceFigures(
        source=source,
        rows=int(labels.size),
        toxic_share=float(toxic.mean()),
        auc=float(roc_auc_score(toxic, probability)) if both else float("nan"),
        macro_f1=_best_macro_f1(toxic, probability) if both else float("nan"),
        recall=float(above[toxic].mean()) if toxic.any() else float("nan"),
        false_alarms=float(above[~toxic].mean()) if not toxic.all() else float("nan"),
    )


def _best_macro_f1(toxic: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Largest mean F1 of both classes over all thresholds between two neighbouring probabilities."""
    order = np.argsort(-probability, kind="stable")
    hits = np.cumsum(toxic[order])
    called = np.arange(1, toxic.size + 1)
    toxic_total, other_total = int(toxic.sum()), int((~toxic).sum())
    # F1 = 2 * hits / (called + members), of the toxic and of the other class.
    toxic_f1 = 2 * hits / (called + toxic_total)
    other_hits = other_total - (called - hits)
    other_f1 = 2 * other_hits / (toxic.size - called + other_total)
    cuts = np.append(np.diff(probability[order]) != 0, True)
    return float(((toxic_f1 + other_f1) / 2)[cuts].max())
