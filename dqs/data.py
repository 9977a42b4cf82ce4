"""The nouns: Document, Label, Reason, Verdict. Read this first.

Plain standard-library types, shared by the client and the service.
This module knows nothing of how scores are computed, sent or stored.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Label(enum.IntEnum):
    """The decision about a document. The numbers are those of the wire."""

    UNSPECIFIED = 0
    KEEP = 1
    DROP = 2
    REVIEW = 3


class Missing(enum.IntEnum):
    """Why a signal has no value. The numbers are those of the wire."""

    PRESENT = 0
    TOO_SHORT = 1
    """The text is too short for the signal to mean anything."""
    NO_MODEL = 2
    """No model serves the document's language."""
    NOT_ASKED = 3
    """The caller switched the signal off (for instance duplication)."""
    UNAVAILABLE = 4
    """What computes the signal could not be reached; the value is unknown."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text to score.

    Attributes:
        id: names the document in answers and in the duplicate index; unique within a corpus.
        text: UTF-8 bytes; other bytes become an error of this document alone.
        language: ISO 639-1 code if the caller knows it, else "" (detected).
        source: free label of the caller's, carried along.
    """

    id: str
    text: bytes
    language: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """One broken rule.

    Attributes:
        rule: rule id, stable across versions of a policy.
        signal: name of the signal that the rule reads.
        value: what the document has; None where the signal is missing.
        operator: one of `<`, `<=`, `>`, `>=`: the rule is broken when `value operator threshold`.
        threshold: the policy's limit, in the signal's unit.
        missing: why `value` is None.
    """

    rule: str
    signal: str
    value: float | None
    operator: str
    threshold: float
    missing: Missing = Missing.PRESENT

    @property
    def margin(self) -> float | None:
        """Distance from the threshold, in the signal's unit and never negative; None without a value."""
        return None if self.value is None else abs(self.value - self.threshold)

    @property
    def explanation(self) -> str:
        """One sentence for a person."""
        if self.value is None:
            return f"{self.rule}: {self.signal} is missing ({self.missing.name.lower()})"
        return f"{self.rule}: {self.signal} {self.value:.6g} {self.operator} {self.threshold:.6g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer about one document.

    Attributes:
        id: the document's id.
        label: KEEP, DROP or REVIEW; UNSPECIFIED exactly when `error` is set.
        reasons: every broken rule, empty for a kept document.
        language: ISO 639-1 code, or "und".
        signals: value per signal name; None where missing.
        missing: why, for each signal whose value is None.
        duplicate_of: id of the earlier kept document that this one repeats, or None.
        toxicity_span: first and past-the-last code point of the most toxic window, or None.
        policy: `name@version` of the policy that decided.
        error: None, or the document's error code and a sentence.
    """

    id: str
    label: Label
    reasons: tuple[Reason, ...] = ()
    language: str = "und"
    signals: Mapping[str, float | None] = field(default_factory=dict)
    missing: Mapping[str, Missing] = field(default_factory=dict)
    duplicate_of: str | None = None
    toxicity_span: tuple[int, int] | None = None
    policy: str = ""
    error: tuple[str, str] | None = None
