"""What a policy is and how it decides: rules over columns of scores, every broken rule reported.

Deciding is pure and works on whole columns: the same scores and the same
policy give the same verdicts anywhere. Where policies are stored is the
business of `dqs.policy.files`; how scores come about is none of ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqs.data import Label, Missing, Reason
from dqs.scorer import ScoreColumns

OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
)

DEFAULT_MISSING: Mapping[Missing, Label] = MappingProxyType(
    {
        Missing.TOO_SHORT: Label.KEEP,
        Missing.NO_MODEL: Label.KEEP,
        Missing.NOT_ASKED: Label.KEEP,
        # Unknown is not the same as fine: somebody has to look, or ask again.
        Missing.UNAVAILABLE: Label.REVIEW,
    }
)
"""What a missing score means where a rule does not say; KEEP stands for `pass`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: a document breaks it when `value operator threshold`.

    Attributes:
        id: stands in the reasons of a verdict; several rules may share an id
            when no language falls under two of them.
        signal: name of the signal that the rule reads.
        operator: one of `<`, `<=`, `>`, `>=`.
        threshold: the limit, in the signal's unit; compared in float32, as scores are.
        languages: ISO 639-1 codes under which the rule applies; empty for all.
        label: what a broken rule makes of a document, DROP or REVIEW.
        missing: what a missing score makes of it: KEEP (the rule passes), REVIEW or DROP.
        min_characters: the rule looks at documents of at least this many code points; a share of
            ten characters says little. Needs the signal `characters`.
    """

    id: str
    signal: str
    operator: str
    threshold: float
    languages: frozenset[str] = frozenset()
    label: Label = Label.DROP
    missing: Mapping[Missing, Label] = field(default_factory=lambda: DEFAULT_MISSING)
    min_characters: int = 0

    def applies_to(self, language: str) -> bool:
        """Whether the rule looks at documents of `language`."""
        return not self.languages or language in self.languages


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy made of a batch.

    Attributes:
        labels: int8[n] of `Label`: DROP where a rule that drops is broken, else
            REVIEW where one that asks for review is, else KEEP.
        reasons: every broken rule of each document, in the policy's order.
    """

    labels: NDArray[np.int8]
    reasons: list[tuple[Reason, ...]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A named, versioned list of rules.

    Attributes:
        name: as in `--policy`.
        version: raised when the rules change.
        rules: in the order of the reasons.
        description: one sentence.
        index_dropped: whether documents that the policy drops enter the duplicate
            index; when false, `duplicate_of` always names a document that was kept.
    """

    name: str
    version: int
    rules: tuple[Rule, ...]
    description: str = ""
    index_dropped: bool = False

    @property
    def label(self) -> str:
        """`name@version`, as verdicts carry it."""
        return f"{self.name}@{self.version}"

    @property
    def signals(self) -> frozenset[str]:
        """Names of the signals that the rules read."""
        return frozenset(rule.signal for rule in self.rules)

    def decide(
        self,
        columns: ScoreColumns,
        ignore: frozenset[str] = frozenset(),
        *,
        reasons: bool = True,
    ) -> Decision:
        """Applies every rule to every document.

        A signal without a column counts as not asked for.

        Args:
            columns: scores of a batch; `columns.language` is filled.
            ignore: signals whose rules are left out, such as those of duplication
                before the index has been asked.
            reasons: false where only the labels are of interest; every document's
                reasons are empty then.

        Returns:
            Labels and reasons, one per document.
        """
        labels = np.full(columns.size, Label.KEEP, dtype=np.int8)
        broken: dict[int, list[Reason]] = {}
        languages = np.asarray(columns.language, dtype=np.str_) if columns.size else np.empty(0, np.str_)
        in_language: dict[str, NDArray[np.bool_]] = {}
        absent = np.full(columns.size, np.nan, dtype=np.float32)
        not_asked = np.full(columns.size, Missing.NOT_ASKED, dtype=np.uint8)
        for rule in self.rules:
            if rule.signal in ignore:
                continue
            values = columns.values.get(rule.signal, absent)
            missing = columns.missing.get(rule.signal, not_asked)
            hit = OPERATORS[rule.operator](values, np.float32(rule.threshold))
            applies = np.ones(columns.size, dtype=np.bool_)
            if rule.languages:
                applies[:] = False
                for language in rule.languages:
                    if language not in in_language:
                        in_language[language] = languages == language
                    applies |= in_language[language]
            if rule.min_characters:
                applies &= columns.values.get("characters", absent) >= rule.min_characters
            outcome = np.where(hit, np.int8(rule.label), np.int8(Label.KEEP))
            for code, label in rule.missing.items():
                if label != Label.KEEP:
                    outcome[missing == code] = label
            outcome[~applies] = Label.KEEP
            labels = np.where(
                labels == Label.DROP,
                labels,
                np.where(outcome == Label.KEEP, labels, outcome),
            )
            if not reasons:
                continue
            for i in np.flatnonzero(outcome != Label.KEEP).tolist():
                code = Missing(int(missing[i]))
                value = float(values[i]) if code == Missing.PRESENT else None
                broken.setdefault(i, []).append(
                    Reason(rule.id, rule.signal, value, rule.operator, rule.threshold, code)
                )
        told: list[tuple[Reason, ...]] = [()] * columns.size
        for i, found in broken.items():
            told[i] = tuple(found)
        return Decision(labels, told)
