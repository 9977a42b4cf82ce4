"""What the service answers, turned into verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from dqs.data import Label, Missing, Reason, Verdict
from dqs.v1 import decision_pb2, scoring_pb2

_OPERATORS: Mapping[int, str] = MappingProxyType(
    {
        decision_pb2.OPERATOR_LESS: "<",
        decision_pb2.OPERATOR_LESS_OR_EQUAL: "<=",
        decision_pb2.OPERATOR_GREATER: ">",
        decision_pb2.OPERATOR_GREATER_OR_EQUAL: ">=",
    }
)
_LABELS: Mapping[int, Label] = MappingProxyType({int(label): label for label in Label})
_MISSING: Mapping[int, Missing] = MappingProxyType({int(missing): missing for missing in Missing})
_ERROR_CODE_PREFIX = "DOCUMENT_ERROR_CODE_"


def verdicts(scored: scoring_pb2.ScoredDocuments) -> Iterator[Verdict]:
    """The verdicts in a message of the wire.

    Args:
        scored: answers to some documents.

    Yields:
        One verdict for each, in their order.
    """
    names = list(scored.signals)
    width = len(names)
    positions = {name: position for position, name in enumerate(names)}
    values = list(scored.values)
    missing = bytes(scored.missing)
    present: dict[str, Missing] = {}
    # Most documents lack the same few signals: one mapping for all that do.
    patterns: dict[bytes, dict[str, Missing]] = {b"": present, bytes(width): present}
    policy = scored.policy
    named = itertools.chain.from_iterable(
        itertools.repeat(tuple(run.models), run.documents) for run in scored.model_runs
    )
    for row, result in enumerate(scored.results):
        models = next(named, ())  # a server of an earlier version names none
        if result.HasField("error"):
            yield Verdict(
                result.id,
                Label.UNSPECIFIED,
                policy=policy,
                error=(_error_code(result.error.code), result.error.message),
                models=models,
            )
            continue
        cells = slice(row * width, (row + 1) * width)
        pattern = missing[cells]
        why = patterns.get(pattern)
        if why is None:
            why = {name: _missing(code) for name, code in zip(names, pattern, strict=True) if code}
            patterns[pattern] = why
        yield Verdict(
            id=result.id,
            # A label that this version does not know needs a person's look.
            label=_LABELS.get(result.label, Label.REVIEW),
            reasons=tuple(map(_reason, result.reasons)),
            language=result.language,
            signals=_Signals(positions, values[cells], why),
            missing=why,
            duplicate_of=result.duplicate_of if result.HasField("duplicate_of") else None,
            toxicity_span=(result.toxicity_span_start, result.toxicity_span_end) if result.toxicity_span_end else None,
            policy=policy,
            models=models,
        )


class _Signals(Mapping[str, float | None]):
    """The signals of one document, looked up in its row: a dictionary for each would cost more than the rest."""

    __slots__ = ("_missing", "_positions", "_values")

    def __init__(self, positions: Mapping[str, int], values: Sequence[float], missing: Mapping[str, Missing]) -> None:
        self._positions = positions
        self._values = values
        self._missing = missing

    def __getitem__(self, name: str) -> float | None:
        return None if name in self._missing else self._values[self._positions[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict[str, float | None]], tuple[dict[str, float | None]]]:
        return dict, (dict(self),)


def _reason(reason: decision_pb2.Reason) -> Reason:
    return Reason(
        rule=reason.rule,
        signal=reason.signal,
        value=reason.value if reason.HasField("value") else None,
        operator=_OPERATORS.get(reason.operator, "?"),
        threshold=reason.threshold,
        missing=_missing(reason.missing),
    )


def _missing(code: int) -> Missing:
    return _MISSING.get(code, Missing.UNAVAILABLE)


def _error_code(code: int) -> str:
    value = scoring_pb2.DocumentErrorCode.DESCRIPTOR.values_by_number.get(code)
    return "INTERNAL" if value is None else value.name.removeprefix(_ERROR_CODE_PREFIX)
