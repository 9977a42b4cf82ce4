"""What a policy is and how it decides: rules over columns of scores, every broken rule reported.

Deciding is pure and works on whole columns: the same scores and the same
policy give the same verdicts anywhere. Where policies are stored is the
business of `dqs.policy.files`; how scores come about is none of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dqs.data import Label, Missing, Reason
from dqs.scorer import ScoreColumns

OPERATORS = ("<", "<=", ">", ">=")
"""A document breaks a rule when `value operator threshold`."""

# As the columns hold them: numpy takes its time over members of an enum.
_KEEP, _REVIEW, _DROP = (np.int8(label) for label in (Label.KEEP, Label.REVIEW, Label.DROP))

DEFAULT_MISSING: Mapping[Missing, Label] = MappingProxyType(
    {
        Missing.TOO_SHORT: Label.KEEP,
        Missing.NO_MODEL: Label.KEEP,
        Missing.NOT_ASKED: Label.KEEP,
        Missing.NOT_LOOKED_AT: Label.KEEP,
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


@dataclass(frozen=True, slots=True, eq=False)
class Reasons(Sequence[tuple[Reason, ...]]):
    """Every broken rule of n documents as columns of r entries; reads as one tuple of reasons per document.

    Attributes:
        rules: what the entries of `rule` point into.
        offsets: int64[n + 1]: document i has the entries from `offsets[i]` up to and without `offsets[i + 1]`.
        rule: int64[r]; which rule, in the policy's order within a document.
        values: float32[r]; what the document has, NaN where the signal is missing.
        missing: uint8[r] of `Missing`; why the signal is missing.
    """

    rules: tuple[Rule, ...]
    offsets: NDArray[np.int64]
    rule: NDArray[np.int64]
    values: NDArray[np.float32]
    missing: NDArray[np.uint8]

    def __len__(self) -> int:
        return self.offsets.size - 1

    @overload
    def __getitem__(self, index: int) -> tuple[Reason, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[Reason, ...]]: ...

    def __getitem__(self, index: int | slice) -> tuple[Reason, ...] | list[tuple[Reason, ...]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return tuple(map(self._reason, range(self.offsets[i], self.offsets[i + 1])))

    def _reason(self, entry: int) -> Reason:
        rule = self.rules[self.rule[entry]]
        code = Missing(int(self.missing[entry]))
        value = float(self.values[entry]) if code == Missing.PRESENT else None
        return Reason(rule.id, rule.signal, value, rule.operator, rule.threshold, code)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy made of a batch.

    Attributes:
        labels: int8[n] of `Label`: DROP where a rule that drops is broken, else
            REVIEW where one that asks for review is, else KEEP.
        reasons: every broken rule of each document, in the policy's order.
    """

    labels: NDArray[np.int8]
    reasons: Reasons


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
    _tables: dict[frozenset[str], _Table] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By ignored signals; made when first used."""

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
        table = self._tables.get(ignore)
        if table is None:
            table = self._tables[ignore] = _Table(rule for rule in self.rules if rule.signal not in ignore)
        values, missing, outcomes = table.apply(columns)
        labels = np.full(columns.size, _KEEP, dtype=np.int8)
        broken = outcomes != _KEEP
        # Most documents break nothing, and are not looked at again.
        documents = np.flatnonzero(broken.any(axis=0))
        dropped = (outcomes[:, documents] == _DROP).any(axis=0)
        labels[documents] = np.where(dropped, _DROP, _REVIEW)
        counts = np.zeros(columns.size + 1, dtype=np.int64)
        if not reasons:
            documents = documents[:0]
        place, rule = np.nonzero(broken[:, documents].T)
        document = documents[place]
        counts[1:] = np.bincount(document, minlength=columns.size)
        offsets = np.cumsum(counts)
        return Decision(labels, Reasons(table.rules, offsets, rule, values[rule, document], missing[rule, document]))


class _Table:
    """Rules as arrays with one row per rule, so that a batch is decided in a few operations on whole matrices."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        count = len(self.rules)
        self._signals = sorted({rule.signal for rule in self.rules}) or [""]
        self._row_of = np.array([self._signals.index(rule.signal) for rule in self.rules], dtype=np.int64)
        # With the signs of `<` and `<=` turned there are but two comparisons.
        self._signs = np.array(
            [[-1.0 if rule.operator.startswith("<") else 1.0] for rule in self.rules], dtype=np.float32
        ).reshape(count, 1)
        self._limits = self._signs * np.array([rule.threshold for rule in self.rules], np.float32).reshape(count, 1)
        self._inclusive = np.array([rule.operator.endswith("=") for rule in self.rules], np.bool_).reshape(count, 1)
        self._labels = np.array([rule.label for rule in self.rules], dtype=np.int8).reshape(count, 1)
        self._long_rows = np.array([row for row, rule in enumerate(self.rules) if rule.min_characters], dtype=np.int64)
        self._min_characters = np.array(
            [[self.rules[row].min_characters] for row in self._long_rows], dtype=np.float32
        ).reshape(-1, 1)
        named = sorted({language for rule in self.rules for language in rule.languages})
        self._column_of = {language: column for column, language in enumerate(named, start=1)}
        """Column of each language that rules name; all others share column 0."""
        self._applies = np.array(
            [[not rule.languages, *(rule.applies_to(language) for language in named)] for rule in self.rules],
            dtype=np.bool_,
        ).reshape(count, len(named) + 1)
        keep = int(_KEEP)
        self._when_missing = np.array(
            [[rule.missing.get(code, keep) if code else keep for code in Missing] for rule in self.rules], dtype=np.int8
        ).reshape(count, len(Missing))
        """Label by rule and code of `Missing`; KEEP leaves the comparison's outcome as it is."""

    def apply(self, columns: ScoreColumns) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int8]]:
        """Compares every document with every rule.

        Returns:
            The values that rules read, float32[rules, n], why they are missing, uint8[rules, n] of
            `Missing`, and what the rules make of it, int8[rules, n] of `Label`.
        """
        absent = np.full(columns.size, np.nan, dtype=np.float32)
        not_asked = np.full(columns.size, Missing.NOT_ASKED.value, dtype=np.uint8)
        shape = (len(self._signals), columns.size)
        read = [columns.values.get(signal, absent) for signal in self._signals]
        reasons = [columns.missing.get(signal, not_asked) for signal in self._signals]
        values = np.concatenate(read, dtype=np.float32).reshape(shape)[self._row_of]
        missing = np.concatenate(reasons, dtype=np.uint8).reshape(shape)[self._row_of]
        signed = values * self._signs
        hit = (signed > self._limits) | (self._inclusive & (signed == self._limits))
        outcomes = np.where(hit, self._labels, _KEEP)
        rows = np.flatnonzero(missing.any(axis=1))
        if rows.size:
            told = self._when_missing[rows[:, np.newaxis], missing[rows]]
            outcomes[rows] = np.where(told != _KEEP, told, outcomes[rows])
        of_document = np.fromiter(
            (self._column_of.get(language, 0) for language in columns.language), dtype=np.int64, count=columns.size
        )
        applies = self._applies[:, of_document]
        if self._long_rows.size:
            applies[self._long_rows] &= columns.values.get("characters", absent) >= self._min_characters
        outcomes[~applies] = _KEEP
        return values, missing, outcomes
