"""Scores as a table: one row per input row, in input order. The columns of `dqs score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dqs.data import Label, Missing, Reason, Verdict
from dqs.pipeline import Results
from dqs.rows.readers import Rows, printable

_FIRST_SIGNALS = ("perplexity", "perplexity_percentile", "toxicity")
_DUPLICATE_SIGNALS = ("duplicate_similarity", "exact_duplicate")
_SPAN = pa.list_(pa.int32())
_MISSING = pa.map_(pa.string(), pa.string())
_LABELS = {Label.KEEP: "keep", Label.DROP: "drop", Label.REVIEW: "review"}


@dataclass(slots=True, eq=False)
class Answers:
    """What was answered about n documents, as columns.

    Attributes:
        labels: int8[n] of `Label`; UNSPECIFIED exactly where there is an error.
        reasons: broken rules per document.
        languages: ISO 639-1 code or `und` per document.
        signals: float32[n] per signal name; NaN where there is no score.
        missing: uint8[n] of `Missing` per signal name: why there is none.
        toxicity_span: int32[n, 2]; first and past-the-last code point of the worst passage, -1 where there is none.
        duplicate_of: id of the document that it repeats, or None.
        errors: `CODE: sentence`, or None.
    """

    labels: NDArray[np.int8]
    reasons: Sequence[tuple[Reason, ...]]
    languages: Sequence[str]
    signals: dict[str, NDArray[np.float32]]
    missing: dict[str, NDArray[np.uint8]]
    toxicity_span: NDArray[np.int32]
    duplicate_of: Sequence[str | None]
    errors: Sequence[str | None]

    @classmethod
    def from_results(cls, results: Results) -> Answers:
        """Takes the columns of a pipeline as they are."""
        return cls(
            labels=results.labels,
            reasons=results.reasons,
            languages=results.columns.language,
            signals=results.columns.values,
            missing=results.columns.missing,
            toxicity_span=_spans(results.columns.toxicity_span, len(results)),
            duplicate_of=results.duplicate_of,
            errors=[None if error is None else f"{error.code}: {error.message}" for error in results.errors],
        )

    @classmethod
    def from_verdicts(cls, verdicts: Sequence[Verdict], signals: Sequence[str]) -> Answers:
        """Turns verdicts of a service into columns.

        Args:
            verdicts: answers in order.
            signals: names of the service's signals.
        """
        nan = float("nan")
        columns, missing = {}, {}
        for name in signals:
            values = (verdict.signals.get(name) for verdict in verdicts)
            columns[name] = np.fromiter(
                (nan if value is None else value for value in values), np.float32, len(verdicts)
            )
            codes = (verdict.missing.get(name, Missing.PRESENT) for verdict in verdicts)
            missing[name] = np.fromiter(codes, np.uint8, len(verdicts))
        return cls(
            labels=np.fromiter((verdict.label for verdict in verdicts), np.int8, len(verdicts)),
            reasons=[verdict.reasons for verdict in verdicts],
            languages=[verdict.language for verdict in verdicts],
            signals=columns,
            missing=missing,
            toxicity_span=np.array([verdict.toxicity_span or (-1, -1) for verdict in verdicts], dtype=np.int32).reshape(
                -1, 2
            ),
            duplicate_of=[verdict.duplicate_of for verdict in verdicts],
            errors=[None if v.error is None else f"{v.error[0]}: {v.error[1]}" for v in verdicts],
        )


def score_schema(signals: Sequence[str], policy: str) -> pa.Schema:
    """The columns of a scored file.

    Args:
        signals: every signal that is computed.
        policy: `name@version`, kept in the file's metadata.
    """
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("reasons", pa.list_(pa.string())),
        pa.field("explanations", pa.list_(pa.string())),
        pa.field("error", pa.string()),
        pa.field("language", pa.string()),
        *(pa.field(name, pa.float32()) for name in _FIRST_SIGNALS),
        pa.field("toxicity_span", _SPAN),
        pa.field("duplicate_of", pa.string()),
        pa.field("duplicate_similarity", pa.float32()),
        pa.field("exact_duplicate", pa.bool_()),
        *(pa.field(name, pa.float32()) for name in signals if name not in _FIRST_SIGNALS + _DUPLICATE_SIGNALS),
        pa.field("missing", _MISSING),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
    return pa.schema(fields, metadata={"dqs.policy": policy})


def score_table(rows: Rows, answers: Answers, schema: pa.Schema) -> pa.RecordBatch:
    """Joins a batch of rows with the answers about those of them that could be scored.

    Args:
        rows: the batch.
        answers: one for each row without an error, in order.
        schema: of `score_schema`.

    Returns:
        One row per input row. Missing values are null, never NaN; where there is an
        error everything else but id, file and row is null.
    """
    n = len(rows)
    scored = np.array([error is None for error in rows.errors], dtype=np.bool_)
    place = np.flatnonzero(scored)
    good = np.zeros(n, dtype=np.bool_)
    good[place] = answers.labels != Label.UNSPECIFIED
    labels: list[str | None] = [None] * n
    reasons: list[list[str] | None] = [None] * n
    explanations: list[list[str] | None] = [None] * n
    errors: list[str | None] = [None if e is None else f"{e.code}: {e.message}" for e in rows.errors]
    languages: list[str | None] = [None] * n
    duplicate_of: list[str | None] = [None] * n
    spans: list[list[int] | None] = [None] * n
    found_spans = answers.toxicity_span.tolist()
    for k, i in enumerate(place.tolist()):
        if not good[i]:
            errors[i] = answers.errors[k]
            continue
        labels[i] = _LABELS[Label(int(answers.labels[k]))]
        reasons[i] = [reason.rule for reason in answers.reasons[k]]
        explanations[i] = [reason.explanation for reason in answers.reasons[k]]
        languages[i] = answers.languages[k]
        duplicate_of[i] = answers.duplicate_of[k]
        spans[i] = found_spans[k] if found_spans[k][0] >= 0 else None
    columns: dict[str, pa.Array] = {
        "id": pa.array(rows.ids, pa.string()),
        "label": pa.array(labels, pa.string()),
        "reasons": pa.array(reasons, pa.list_(pa.string())),
        "explanations": pa.array(explanations, pa.list_(pa.string())),
        "error": pa.array(errors, pa.string()),
        "language": pa.array(languages, pa.string()),
        "toxicity_span": pa.array(spans, _SPAN),
        "duplicate_of": pa.array(duplicate_of, pa.string()),
        "missing": _missing(answers.missing, place[good[place]], np.flatnonzero(good[place]), n),
        "file": pa.array([printable(rows.path)] * n, pa.string()),
        "row": pa.array(rows.numbers, pa.int64()),
    }
    for name in schema.names:
        if name in columns:
            continue
        values = np.full(n, np.nan, dtype=np.float32)
        if name in answers.signals:
            values[place] = answers.signals[name]
        empty = ~(good & np.isfinite(values))
        if schema.field(name).type == pa.bool_():
            columns[name] = pa.array(values > 0, pa.bool_(), mask=empty)
        else:
            columns[name] = pa.array(values, pa.float32(), mask=empty)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _spans(spans: NDArray[np.int32] | None, n: int) -> NDArray[np.int32]:
    return np.full((n, 2), -1, dtype=np.int32) if spans is None else spans


def _missing(
    missing: dict[str, NDArray[np.uint8]], place: NDArray[np.int64], answered: NDArray[np.int64], n: int
) -> pa.Array:
    """A map of each of n rows: from the names of signals without a value to the reason, such as `too_short`.

    Args:
        missing: uint8[answers] of `Missing` per signal name.
        place: int64[k], ascending; rows that have been scored, the other rows' maps are null.
        answered: int64[k]; their answers.
        n: number of rows.
    """
    names = list(missing)
    codes = np.stack([missing[name][answered] for name in names], axis=1) if names else np.zeros((place.size, 0))
    row, signal = np.nonzero(codes)
    sizes = np.zeros(n, dtype=np.int64)
    sizes[place] = np.bincount(row, minlength=place.size)
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int32)
    unknown = np.ones(n + 1, dtype=np.bool_)
    unknown[place] = unknown[n] = False
    reasons = pa.array([code.name.lower() for code in Missing])
    return pa.MapArray.from_arrays(
        pa.array(offsets, mask=unknown),
        pa.array(names, pa.string()).take(pa.array(signal)),
        reasons.take(pa.array(codes[row, signal].astype(np.int64))),
    )
