"""The checker of histories: good ones pass, and every promise that is broken is named."""

from __future__ import annotations

import math

import pytest

from tests.simulation.history import Action, Event, Invariant, Kind, Outcome, Recorder, Violation, check

KEPT, DUPLICATE, REUSED, DELETED = Outcome.KEPT, Outcome.DUPLICATE, Outcome.ID_REUSED, Outcome.DELETED
Line = tuple[float, float, str, str | None, Outcome | None, str | None]


def near(a: str, b: str) -> bool:
    return a[0] == b[0]


def submit(begin: float, end: float, document: str, text: str, outcome: Outcome | None, of: str | None = None) -> Line:
    return begin, end, document, text, outcome, of


def delete(begin: float, end: float, document: str, outcome: Outcome | None = DELETED) -> Line:
    return begin, end, document, None, outcome, None


def events(lines: list[Line]) -> list[Event]:
    """Calls as events; one without an outcome fails at its end, or stays open if that is infinite."""
    found = []
    for call, (begin, end, document, text, outcome, of) in enumerate(lines):
        action = Action.DELETE if text is None else Action.SUBMIT
        found.append(Event(begin, Kind.INVOKE, call, f"c{call}", action, document, text or ""))
        if math.isfinite(end):
            kind = Kind.FAIL if outcome is None else Kind.ANSWER
            found.append(Event(end, kind, call, outcome=outcome, duplicate_of=of))
    return sorted(found, key=lambda event: event.time)


def broken(lines: list[Line], final: dict[str, str] | None = None, *, remembers: bool = True) -> set[Invariant]:
    violations = check(events(lines), final, near=near, group=lambda text: text[0], remembers_duplicates=remembers)
    assert violations == check(events(lines), final, near=near, remembers_duplicates=remembers)
    return {violation.invariant for violation in violations}


GOOD: dict[str, tuple[list[Line], dict[str, str]]] = {
    "nothing": ([], {}),
    "one kept, others name it": (
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "y", "a2", DUPLICATE, "x"), submit(4, 5, "z", "b1", KEPT)],
        {"x": "a1", "z": "b1"},
    ),
    "racing near-duplicates": (
        [submit(0, 9, "x", "a1", DUPLICATE, "y"), submit(1, 8, "y", "a2", KEPT)],
        {"y": "a2"},
    ),
    "kept, named and deleted in the middle of a call that was repeated": (
        [
            submit(0, 9, "x", "a1", DUPLICATE, "z"),
            submit(1, 2, "y", "a2", DUPLICATE, "x"),
            delete(3, 4, "x"),
            submit(5, 6, "z", "a3", KEPT),
        ],
        {"z": "a3"},
    ),
    "a retry and a reused id": (
        [
            submit(0, 1, "x", "a1", KEPT),
            submit(2, 3, "x", "a1", KEPT),
            submit(4, 5, "x", "b1", REUSED),
            submit(6, 7, "x", "b1", REUSED),
        ],
        {"x": "a1"},
    ),
    "an unknown call that happened": (
        [submit(0, 1, "x", "a1", None), submit(2, 3, "y", "a2", DUPLICATE, "x"), submit(4, 5, "x", "a1", KEPT)],
        {"x": "a1"},
    ),
    "an unknown call that did not happen": (
        [submit(0, 1, "x", "a1", None), submit(2, 3, "y", "a2", KEPT), submit(4, 5, "x", "a1", DUPLICATE, "y")],
        {"y": "a2"},
    ),
    "an open call that happened late": (
        [submit(0, math.inf, "x", "a1", None), submit(2, 3, "z", "b1", KEPT)],
        {"x": "a1", "z": "b1"},
    ),
    "a deletion makes room": (
        [submit(0, 1, "x", "a1", KEPT), delete(2, 3, "x"), submit(4, 5, "y", "a2", KEPT)],
        {"y": "a2"},
    ),
    "a deletion during the call that names it": (
        [submit(0, 1, "x", "a1", KEPT), delete(2, 5, "x"), submit(3, 6, "y", "a2", DUPLICATE, "x")],
        {},
    ),
    "a duplicate of a deleted document is decided anew": (
        [
            submit(0, 1, "x", "a1", KEPT),
            submit(2, 3, "y", "a2", DUPLICATE, "x"),
            submit(4, 5, "y", "b2", REUSED),
            delete(6, 7, "x"),
            submit(8, 9, "y", "b2", KEPT),
        ],
        {"y": "b2"},
    ),
    "a deletion of unknown outcome": (
        [submit(0, 1, "x", "a1", KEPT), delete(2, 3, "x", None), submit(4, 5, "y", "a2", DUPLICATE, "x")],
        {"x": "a1"},
    ),
    "a document that came back": (
        [submit(0, 1, "x", "a1", KEPT), delete(2, 3, "x"), submit(4, 5, "x", "a2", KEPT)],
        {"x": "a2"},
    ),
}

BAD: dict[str, tuple[Invariant, list[Line], dict[str, str] | None]] = {
    "both of a race are kept": (
        Invariant.ONE_KEPT,
        [submit(0, 5, "x", "a1", KEPT), submit(1, 4, "y", "a2", KEPT)],
        {"x": "a1", "y": "a2"},
    ),
    "both are kept, and the final state is unknown": (
        Invariant.ONE_KEPT,
        [submit(0, 5, "x", "a1", KEPT), submit(1, 4, "y", "a2", KEPT)],
        None,
    ),
    "two unknown calls both happened": (
        Invariant.ONE_KEPT,
        [submit(0, 1, "x", "a1", None), submit(0, 1, "y", "a2", None)],
        {"x": "a1", "y": "a2"},
    ),
    "kept beside a live one, then deleted": (
        Invariant.ONE_KEPT,
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "y", "a2", KEPT), delete(3, 4, "y")],
        {"x": "a1"},
    ),
    "both of a race are dropped": (
        Invariant.NAMES_A_KEPT_ONE,
        [submit(0, 5, "x", "a1", DUPLICATE, "y"), submit(1, 4, "y", "a2", DUPLICATE, "x")],
        {},
    ),
    "a duplicate of itself": (Invariant.NAMES_A_KEPT_ONE, [submit(0, 1, "x", "a1", DUPLICATE, "x")], {}),
    "a duplicate of nothing": (Invariant.NAMES_A_KEPT_ONE, [submit(0, 1, "x", "a1", DUPLICATE, None)], {}),
    "a duplicate of an unlike document": (
        Invariant.NAMES_A_KEPT_ONE,
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "y", "b1", DUPLICATE, "x")],
        {"x": "a1"},
    ),
    "a duplicate of what came after it": (
        Invariant.NAMES_A_KEPT_ONE,
        [submit(0, 1, "y", "a2", DUPLICATE, "x"), submit(2, 3, "x", "a1", KEPT)],
        {"x": "a1"},
    ),
    "a retry is its own duplicate's duplicate": (
        Invariant.SAME_ANSWER,
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "x", "a1", DUPLICATE, "y")],
        {"x": "a1"},
    ),
    "a retry names another": (
        Invariant.SAME_ANSWER,
        [
            submit(0, 1, "x", "a1", None),
            submit(0, 1, "y", "a2", None),
            submit(2, 3, "z", "a3", DUPLICATE, "x"),
            submit(4, 5, "z", "a3", DUPLICATE, "y"),
        ],
        None,
    ),
    "an id with two texts": (
        Invariant.ID_REUSED,
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "x", "b1", KEPT)],
        {"x": "a1"},
    ),
    "a reuse that changed the text": (
        Invariant.ID_REUSED,
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "x", "b1", REUSED)],
        {"x": "b1"},
    ),
    "a reuse of an id that nobody used": (Invariant.ID_REUSED, [submit(0, 1, "x", "a1", REUSED)], {}),
    "an unknown call answered as a duplicate, and named": (
        Invariant.ONE_OUTCOME,
        [
            submit(0, 1, "x", "a1", None),
            submit(0, 1, "y", "a2", KEPT),
            submit(2, 3, "x", "a1", DUPLICATE, "y"),
            submit(4, 5, "z", "a3", DUPLICATE, "x"),
        ],
        None,
    ),
    "an unknown call answered as a duplicate, and held": (
        Invariant.ONE_OUTCOME,
        [
            submit(0, 1, "x", "a1", None),
            submit(0, 1, "y", "a2", KEPT),
            submit(2, 3, "x", "a1", DUPLICATE, "y"),
        ],
        {"x": "a1", "y": "a2"},
    ),
    "a kept one is lost": (Invariant.NOTHING_LOST, [submit(0, 1, "x", "a1", KEPT)], {}),
    "one that was named is lost": (
        Invariant.NOTHING_LOST,
        [submit(0, 1, "x", "a1", None), submit(2, 3, "y", "a2", DUPLICATE, "x")],
        {},
    ),
    "one that came back after a deletion is lost": (
        Invariant.NOTHING_LOST,
        [submit(0, 1, "x", "a1", KEPT), delete(2, 3, "x"), submit(4, 5, "x", "a1", KEPT)],
        {},
    ),
    "one that nobody sent": (Invariant.NOTHING_LOST, [submit(0, 1, "x", "a1", KEPT)], {"x": "a1", "y": "b1"}),
    "a duplicate that is held": (
        Invariant.NOTHING_LOST,
        [submit(0, 1, "x", "a1", KEPT), submit(2, 3, "y", "a2", DUPLICATE, "x")],
        {"x": "a1", "y": "a2"},
    ),
    "a deleted one is named": (
        Invariant.DELETED_IS_GONE,
        [submit(0, 1, "x", "a1", KEPT), delete(2, 3, "x"), submit(4, 5, "y", "a2", DUPLICATE, "x")],
        {},
    ),
    "a deleted one is held": (
        Invariant.DELETED_IS_GONE,
        [submit(0, 1, "x", "a1", KEPT), delete(2, 3, "x")],
        {"x": "a1"},
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    lines, final = GOOD[name]
    assert broken(lines, final) == set()


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_is_named(name: str) -> None:
    invariant, lines, final = BAD[name]
    assert invariant in broken(lines, final)


def test_every_promise_has_a_history_that_breaks_it() -> None:
    assert {invariant for invariant, _, _ in BAD.values()} == set(Invariant)


class TestIndexThatForgetsDuplicates:
    def test_a_retry_of_a_duplicate_may_name_another(self) -> None:
        lines = [
            submit(0, 1, "x", "a1", None),
            submit(0, 1, "y", "b1", KEPT),
            submit(2, 3, "z", "b2", DUPLICATE, "y"),
            submit(4, 5, "z", "a2", DUPLICATE, "x"),
        ]
        assert broken(lines) == {Invariant.ID_REUSED}
        assert broken(lines, remembers=False) == set()

    def test_what_was_kept_is_remembered_all_the_same(self) -> None:
        kept = submit(0, 1, "x", "a1", KEPT)
        assert broken([kept, submit(2, 3, "x", "b1", KEPT)], remembers=False) == {Invariant.ID_REUSED}
        assert broken(
            [kept, submit(0, 1, "y", "b1", KEPT), submit(2, 3, "x", "b2", DUPLICATE, "y")], remembers=False
        ) == {Invariant.ID_REUSED}


def test_a_violation_says_who_did_what_when() -> None:
    violations = check(events(BAD["both of a race are kept"][1]), near=near)
    assert violations == [
        Violation(
            Invariant.ONE_KEPT,
            "near-duplicates were live at the same time: "
            "x kept by call 0 of c0 (0 to 5); y kept by call 1 of c1 (1 to 4)",
            (0, 1),
        )
    ]


def test_a_recorder_writes_what_the_checker_reads() -> None:
    recorder = Recorder()
    first = recorder.invoke("a", Action.SUBMIT, "x", "a1")
    second = recorder.invoke("b", Action.SUBMIT, "y", "a2")
    recorder.answer(second, KEPT)
    recorder.answer(first, DUPLICATE, "y")
    recorder.fail(recorder.invoke("a", Action.DELETE, "y"))
    assert [event.time for event in recorder.events] == [0, 1, 2, 3, 4, 5]
    assert check(recorder.events, {"y": "a2"}, near=near) == []
    assert check(recorder.events, {}, near=near) == []
    assert [violation.invariant for violation in check(recorder.events, {"x": "a1"}, near=near)] != []


@pytest.mark.parametrize(
    "lines",
    [
        [Event(0, Kind.ANSWER, 0, outcome=KEPT)],
        [Event(0, Kind.INVOKE, 0, document="x", text="a"), Event(1, Kind.INVOKE, 0, document="x", text="a")],
        [Event(1, Kind.INVOKE, 0, document="x", text="a"), Event(0, Kind.ANSWER, 0, outcome=KEPT)],
        [Event(0, Kind.INVOKE, 0, document="x", text="a"), Event(1, Kind.ANSWER, 0)],
    ],
    ids=["no beginning", "two beginnings", "back in time", "no outcome"],
)
def test_what_is_no_history_is_refused(lines: list[Event]) -> None:
    with pytest.raises(ValueError, match="call 0"):
        check(lines, near=near)
