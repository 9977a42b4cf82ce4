"""A policy decides over columns exactly as a plain loop over documents and rules would."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dqs.data import Label, Missing, Reason
from dqs.policy import OPERATORS, Policy, Rule
from dqs.scorer import ScoreColumns

SIGNALS = ("alpha", "beta", "gamma")
LANGUAGES = ("en", "zh", "de", "und")
GRID = (-1.0, 0.0, 0.1, 0.3, 0.5, 1.0)

rules = st.builds(
    Rule,
    id=st.sampled_from(("first", "second", "third")),
    signal=st.sampled_from((*SIGNALS, "never_scored")),
    operator=st.sampled_from(OPERATORS),
    threshold=st.sampled_from(GRID),
    languages=st.frozensets(st.sampled_from(LANGUAGES), max_size=2),
    label=st.sampled_from((Label.DROP, Label.REVIEW)),
    missing=st.dictionaries(
        st.sampled_from([code for code in Missing if code != Missing.PRESENT]),
        st.sampled_from((Label.KEEP, Label.REVIEW, Label.DROP)),
    ),
)
cells = st.one_of(st.sampled_from(GRID), st.sampled_from([c for c in Missing if c != Missing.PRESENT]))
documents = st.lists(st.tuples(st.sampled_from(LANGUAGES), st.tuples(cells, cells, cells)), max_size=12)


def columns_of(rows: list[tuple[str, tuple[float | Missing, ...]]]) -> ScoreColumns:
    columns = ScoreColumns(len(rows), language=[language for language, _ in rows])
    for at, signal in enumerate(SIGNALS):
        column = [row[at] for _, row in rows]
        columns.put(
            signal,
            np.array(
                [np.nan if isinstance(c, Missing) else c for c in column],
                dtype=np.float32,
            ),
            np.array([c if isinstance(c, Missing) else 0 for c in column], dtype=np.uint8),
        )
    return columns


def broken_rules(
    policy: Policy,
    language: str,
    row: tuple[float | Missing, ...],
    ignore: frozenset[str],
) -> list[tuple[Label, Reason]]:
    """One document, one rule at a time, as a person would read the policy."""
    found: list[tuple[Label, Reason]] = []
    for rule in policy.rules:
        if rule.signal in ignore or (rule.languages and language not in rule.languages):
            continue
        cell = row[SIGNALS.index(rule.signal)] if rule.signal in SIGNALS else Missing.NOT_ASKED
        if isinstance(cell, Missing):
            label = rule.missing.get(cell, Label.KEEP)
            if label != Label.KEEP:
                reason = Reason(rule.id, rule.signal, None, rule.operator, rule.threshold, cell)
                found.append((label, reason))
            continue
        value, limit = float(np.float32(cell)), float(np.float32(rule.threshold))
        broken = {
            "<": value < limit,
            "<=": value <= limit,
            ">": value > limit,
            ">=": value >= limit,
        }
        if broken[rule.operator]:
            found.append(
                (
                    rule.label,
                    Reason(rule.id, rule.signal, value, rule.operator, rule.threshold),
                )
            )
    return found


@given(
    st.lists(rules, max_size=6),
    documents,
    st.frozensets(st.sampled_from(SIGNALS), max_size=1),
)
def test_decides_like_the_plain_loop(
    some: list[Rule],
    rows: list[tuple[str, tuple[float | Missing, ...]]],
    ignore: frozenset[str],
) -> None:
    policy = Policy("p", 1, tuple(some))
    decision = policy.decide(columns_of(rows), ignore)
    assert decision.labels.dtype == np.int8
    assert len(decision.reasons) == len(rows)
    assert policy.decide(columns_of(rows), ignore, reasons=False).labels.tolist() == decision.labels.tolist()
    for i, (language, row) in enumerate(rows):
        expected = broken_rules(policy, language, row, ignore)
        labels = [label for label, _ in expected]
        best = Label.DROP if Label.DROP in labels else Label.REVIEW if labels else Label.KEEP
        assert decision.labels[i] == best
        assert decision.reasons[i] == tuple(reason for _, reason in expected)


def test_threshold_is_compared_in_float32() -> None:
    """0.1 is stored as slightly more than 0.1; it must not break `> 0.1`."""
    policy = Policy("p", 1, (Rule("r", "alpha", ">", 0.1), Rule("s", "alpha", ">=", 0.1)))
    decision = policy.decide(columns_of([("en", (0.1, 0.0, 0.0))]))
    assert [reason.rule for reason in decision.reasons[0]] == ["s"]


def test_every_broken_rule_is_reported_with_value_threshold_and_margin() -> None:
    policy = Policy("p", 1, (Rule("low", "alpha", "<", 1.0), Rule("high", "beta", ">", 0.25)))
    (reasons,) = policy.decide(columns_of([("zh", (0.5, 0.5, 0.0))])).reasons
    assert [(r.rule, r.value, r.threshold, r.margin) for r in reasons] == [
        ("low", 0.5, 1.0, 0.5),
        ("high", 0.5, 0.25, 0.25),
    ]


def test_an_unavailable_score_asks_for_review_unless_told_otherwise() -> None:
    policy = Policy("p", 1, (Rule("r", "alpha", ">", 0.5),))
    decision = policy.decide(columns_of([("en", (Missing.UNAVAILABLE, 0.0, 0.0))]))
    assert decision.labels.tolist() == [Label.REVIEW]
    (reason,) = decision.reasons[0]
    assert reason.value is None
    assert reason.missing == Missing.UNAVAILABLE
    assert reason.margin is None


def test_no_documents_and_no_rules() -> None:
    empty = Policy("p", 1, (Rule("r", "alpha", ">", 0.5, frozenset({"en"})),))
    assert list(empty.decide(columns_of([])).reasons) == []
    decision = Policy("q", 1, ()).decide(columns_of([("en", (math.pi, 0.0, 0.0))]))
    assert decision.labels.tolist() == [Label.KEEP]


def test_a_rule_looks_only_at_texts_that_are_long_enough() -> None:
    columns = columns_of([("en", (0.9, 0.0, 0.0))] * 3)
    columns.put("characters", np.array([199, 200, 201], dtype=np.float32))
    policy = Policy("p", 1, (Rule("r", "alpha", ">", 0.5, min_characters=200),))
    assert policy.decide(columns).labels.tolist() == [Label.KEEP, Label.DROP, Label.DROP]
