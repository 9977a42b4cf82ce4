"""Answers in the wire format of protocol buffers, written from columns.

Building one message object per document, reason and number costs several times
what all else in the gateway costs. So what repeats is encoded once, by the
generated classes, and what differs is put between: the bytes that come out
parse to the same messages as if the generated classes had written them.

This module knows the numbers of fields and nothing of gRPC.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from dqs.data import Missing
from dqs.errors import DocumentError, DocumentErrorCode
from dqs.v1 import decision_pb2, scoring_pb2

if TYPE_CHECKING:
    from dqs.pipeline import Results
    from dqs.policy import Rule

OPERATORS: Mapping[str, decision_pb2.Operator] = MappingProxyType(
    {
        "<": decision_pb2.OPERATOR_LESS,
        "<=": decision_pb2.OPERATOR_LESS_OR_EQUAL,
        ">": decision_pb2.OPERATOR_GREATER,
        ">=": decision_pb2.OPERATOR_GREATER_OR_EQUAL,
    }
)
_ERROR_CODES: Mapping[DocumentErrorCode, scoring_pb2.DocumentErrorCode] = MappingProxyType(
    {code: scoring_pb2.DocumentErrorCode.Value(f"DOCUMENT_ERROR_CODE_{code.value}") for code in DocumentErrorCode}
)
_VARINT, _LENGTH_DELIMITED, _FIXED_32 = 0, 2, 5
_SMALL = 1 << 14
"""Numbers below this, which most are, have their varint in a table."""

_MOST_LABELS = 4096
"""Pairs of label and language that are remembered; callers may send any language."""


def varint(number: int) -> bytes:
    """A number from 0 on, seven bits to a byte, the lowest first."""
    return _SMALL_VARINTS[number] if number < _SMALL else _varint(number)


def tag(number: int, kind: int) -> bytes:
    """What stands before the value of field `number`."""
    return varint(number << 3 | kind)


def delimited(number: int, *parts: bytes) -> bytes:
    """Field `number` with a message, a string, bytes or packed numbers in it, which `parts` make up."""
    return b"".join((tag(number, _LENGTH_DELIMITED), varint(sum(map(len, parts))), *parts))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL_VARINTS = tuple(map(_varint, range(_SMALL)))

_RESULT = tag(scoring_pb2.ScoredDocuments.RESULTS_FIELD_NUMBER, _LENGTH_DELIMITED)
_ID = tag(scoring_pb2.Result.ID_FIELD_NUMBER, _LENGTH_DELIMITED)
_REASON = tag(scoring_pb2.Result.REASONS_FIELD_NUMBER, _LENGTH_DELIMITED)
_SPAN_START = tag(scoring_pb2.Result.TOXICITY_SPAN_START_FIELD_NUMBER, _VARINT)
_SPAN_END = tag(scoring_pb2.Result.TOXICITY_SPAN_END_FIELD_NUMBER, _VARINT)
_REASON_VALUE = tag(decision_pb2.Reason.VALUE_FIELD_NUMBER, _FIXED_32)


class ResultWriter:
    """Writes results; remembers what rules and pairs of label and language look like."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str, str, float], _ReasonTemplate] = {}
        self._labels: dict[tuple[int, str], bytes] = {}

    def results(self, results: Results, start: int, stop: int) -> list[bytes]:
        """Fields `results` of ScoredDocuments.

        Args:
            results: answers.
            start: first of them.
            stop: past the last of them.

        Returns:
            The encoded fields, one per document.
        """
        written: list[bytes] = []
        small = _SMALL_VARINTS  # long enough for every id that is scored
        labels = results.labels[start:stop].tolist()
        languages = results.columns.language[start:stop]
        spans = [b""] * (stop - start)
        if results.columns.toxicity_span is not None:
            spans = [_span(first, end) for first, end in results.columns.toxicity_span[start:stop].tolist()]
        columns = zip(
            results.ids[start:stop], results.errors[start:stop], zip(labels, languages, strict=True),
            self._reasons_of(results, start, stop), spans, results.duplicate_of[start:stop], strict=True,
        )  # fmt: skip
        for name, error, verdict, reasons, span, original in columns:
            if error is not None:
                written.append(error_result(name, error))
                continue
            raw_id = name.encode()
            label = self._labels.get(verdict) or self._label(*verdict)
            if original is not None:
                span += delimited(scoring_pb2.Result.DUPLICATE_OF_FIELD_NUMBER, original.encode())
            body = b"".join((_ID, small[len(raw_id)], raw_id, label, reasons, span))
            size = len(body)
            written.append(b"".join((_RESULT, small[size] if size < _SMALL else varint(size), body)))
        return written

    def _label(self, label: int, language: str) -> bytes:
        """Fields `label` and `language`."""
        if len(self._labels) >= _MOST_LABELS:
            self._labels.clear()
        written: bytes = scoring_pb2.Result(
            label=decision_pb2.Label.ValueType(label), language=language
        ).SerializeToString()
        self._labels[label, language] = written
        return written

    def _reasons_of(self, results: Results, start: int, stop: int) -> list[bytes]:
        """Fields `reasons` of each document."""
        reasons = results.reasons
        templates: list[_ReasonTemplate | None] = [None] * len(reasons.rules)
        offsets = reasons.offsets[start : stop + 1].tolist()
        entries = slice(offsets[0], offsets[-1])
        rules = reasons.rule[entries].tolist()
        missing = reasons.missing[entries].tolist()
        values = reasons.values[entries].astype("<f4").tobytes()
        encoded: list[bytes] = []
        for entry, rule in enumerate(rules):
            template = templates[rule]
            if template is None:
                template = templates[rule] = self._template(reasons.rules[rule])
            if missing[entry] == Missing.PRESENT:
                encoded.append(template.before + values[4 * entry : 4 * entry + 4] + template.after)
            else:
                encoded.append(template.missing[missing[entry]])
        return [
            b"".join(encoded[first - entries.start : end - entries.start]) if end > first else b""
            for first, end in itertools.pairwise(offsets)
        ]

    def _template(self, rule: Rule) -> _ReasonTemplate:
        key = (rule.id, rule.signal, rule.operator, rule.threshold)
        if key not in self._reasons:
            self._reasons[key] = _ReasonTemplate(rule)
        return self._reasons[key]


class _ReasonTemplate:
    """A broken rule as a field `reasons`, but for the document's value.

    Attributes:
        before: what comes before the four bytes of the value.
        after: what follows them.
        missing: the whole field where the value is missing, by code of `Missing`.
    """

    def __init__(self, rule: Rule) -> None:
        head: bytes = decision_pb2.Reason(rule=rule.id, signal=rule.signal).SerializeToString()
        limit = decision_pb2.Reason(operator=OPERATORS[rule.operator], threshold=rule.threshold)
        self.after: bytes = limit.SerializeToString()
        size = len(head) + len(_REASON_VALUE) + 4 + len(self.after)
        self.before = _REASON + varint(size) + head + _REASON_VALUE
        self.missing: dict[int, bytes] = {}
        for code in Missing:
            limit.missing = decision_pb2.MissingReason.ValueType(code)
            self.missing[code] = delimited(scoring_pb2.Result.REASONS_FIELD_NUMBER, head, limit.SerializeToString())


def _span(first: int, end: int) -> bytes:
    """Fields of the most toxic window; nothing where there is none."""
    if first < 0:
        return b""
    return b"".join((_SPAN_START, varint(first), _SPAN_END, varint(end)))


def error_result(document_id: str, error: DocumentError) -> bytes:
    """Field `results` of ScoredDocuments for a document without a verdict."""
    result = scoring_pb2.Result(id=document_id)
    result.error.code = _ERROR_CODES[error.code]
    result.error.message = error.message
    return delimited(scoring_pb2.ScoredDocuments.RESULTS_FIELD_NUMBER, result.SerializeToString())


def timing(documents: int, queue_s: float, seconds: Mapping[str, float], replica: str) -> bytes:
    """Field `timings` of ScoredDocuments.

    Args:
        documents: how many were scored together.
        queue_s: how long they waited, in seconds.
        seconds: time per stage; empty where scoring failed.
        replica: who scored.
    """
    written = scoring_pb2.Timing(
        documents=documents,
        queue_seconds=queue_s,
        score_seconds=seconds.get("score", 0.0),
        index_seconds=seconds.get("index", 0.0),
        policy_seconds=seconds.get("policy", 0.0),
        replica=replica,
    )
    return delimited(scoring_pb2.ScoredDocuments.TIMINGS_FIELD_NUMBER, written.SerializeToString())
