"""Says of a history of calls to a duplicate index which of its promises were broken.

A history is a list of events: a call begins, is answered, or fails with an
unknown outcome. With the documents that the index holds at the end it goes into
`check`, which returns one readable sentence per broken promise. Nothing here
knows how the index works, so one checker serves the simulation of several
shards and a real store that threads and processes write to.

The checker reasons with intervals: an answer takes effect at some moment between
its call and its return, an unknown one at any moment from its call on, or never.
It reports only what no choice of such moments explains. It judges calls in pairs
and does not search for one order of all of them, so a history may pass though
only a longer chain of calls contradicts itself.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum


class Action(Enum):
    """What a call asks for."""

    SUBMIT = "submit"
    DELETE = "delete"


class Outcome(Enum):
    """What a call is answered."""

    KEPT = "kept"
    DUPLICATE = "duplicate"
    ID_REUSED = "id reused"
    DELETED = "deleted"
    """The document is gone, whether or not this call removed it."""


class Kind(Enum):
    """What an event says of its call."""

    INVOKE = "invoke"
    ANSWER = "answer"
    FAIL = "fail"
    """The caller gave up: it may have taken effect, may still do so, or never will."""


class Invariant(IntEnum):
    """The promises of an index."""

    ONE_KEPT = 1
    """Near-duplicates are never live at the same time, and one is kept of those decided."""
    NAMES_A_KEPT_ONE = 2
    """`duplicate_of` names a near document that was live at some moment of the call."""
    SAME_ANSWER = 3
    """The same id with the same text is answered as before."""
    ID_REUSED = 4
    """The same id with another text is answered so and changes nothing."""
    ONE_OUTCOME = 5
    """A call of unknown outcome happened or did not; no two later answers disagree on it."""
    NOTHING_LOST = 6
    """What was kept is in the final state, and nothing else is."""
    DELETED_IS_GONE = 7
    """After a deletion has returned nothing names the document."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a history.

    Attributes:
        time: real or logical, of one clock for all clients; not decreasing along a history.
        kind: what happened.
        call: number of the call, one per `INVOKE`.
        client: who called; for the reader.
        action: of `INVOKE`.
        document: id of the document; of `INVOKE`.
        text: any label of a text, equal for equal texts; of the `INVOKE` of a submission.
        outcome: of `ANSWER`.
        duplicate_of: id of the document that was named; of a `DUPLICATE`.
    """

    time: float
    kind: Kind
    call: int
    client: str = ""
    action: Action = Action.SUBMIT
    document: str = ""
    text: str = ""
    outcome: Outcome | None = None
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise.

    Attributes:
        invariant: which.
        sentence: what happened, with ids and times.
        calls: numbers of the calls that show it.
    """

    invariant: Invariant
    sentence: str
    calls: tuple[int, ...]


class Recorder:
    """Writes a history down while clients run. Thread-safe; the clock counts events unless one is given."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """Starts empty.

        Args:
            clock: gives the time of every event, never going back.
        """
        self.events: list[Event] = []
        self._clock = clock or (lambda: float(len(self.events)))
        self._calls = itertools.count()
        self._lock = threading.Lock()

    def invoke(self, client: str, action: Action, document: str, text: str = "") -> int:
        """A call begins; to be noted before anything is sent. Returns its number."""
        with self._lock:
            call = next(self._calls)
            self.events.append(Event(self._clock(), Kind.INVOKE, call, client, action, document, text))
            return call

    def answer(self, call: int, outcome: Outcome, duplicate_of: str | None = None) -> None:
        """A call is answered; to be noted once the answer has come."""
        with self._lock:
            self.events.append(Event(self._clock(), Kind.ANSWER, call, outcome=outcome, duplicate_of=duplicate_of))

    def fail(self, call: int) -> None:
        """A call is given up with an unknown outcome."""
        with self._lock:
            self.events.append(Event(self._clock(), Kind.FAIL, call))


@dataclass(frozen=True, slots=True)
class _Call:
    """A call from begin to end; `end` is infinite and `outcome` None where the outcome is unknown."""

    number: int
    client: str
    action: Action
    document: str
    text: str
    begin: float
    end: float
    outcome: Outcome | None
    duplicate_of: str | None

    def __str__(self) -> str:
        end = "open" if math.isinf(self.end) else f"{self.end:g}"
        return f"call {self.number} of {self.client or 'a client'} ({self.begin:g} to {end})"


@dataclass(frozen=True, slots=True)
class _Sighting:
    """Proof that a document was live at some moment from `begin` to `end`.

    It stays so from `end` until `until`, before which no deletion can have begun to take effect.
    """

    document: str
    text: str | None
    begin: float
    end: float
    until: float
    call: _Call | None

    @property
    def numbers(self) -> tuple[int, ...]:
        return () if self.call is None else (self.call.number,)

    def __str__(self) -> str:
        if self.call is None:
            return f"{self.document} in the final state"
        if self.call.outcome is Outcome.KEPT:
            return f"{self.document} kept by {self.call}"
        return f"{self.document} named by {self.call}"


def check(
    events: Iterable[Event],
    final: Mapping[str, str] | None = None,
    *,
    near: Callable[[str, str], bool],
    group: Callable[[str], Hashable] | None = None,
    remembers_duplicates: bool = True,
) -> list[Violation]:
    """Finds the broken promises of a history.

    Args:
        events: in the order of time.
        final: text by id of every document that the index holds after the last event; None if it was not read.
        near: whether two texts are near-duplicates; symmetric, and true of equal texts.
        group: of a text; near texts have the same one. Saves comparing every pair; None compares them.
        remembers_duplicates: whether the index knows a duplicate's id again. Otherwise a retry of a duplicate
            may name another document, and its id may be used for another text.

    Returns:
        One violation per broken promise and place, the earliest promise first; empty if all were held.

    Raises:
        ValueError: the events are not a history: an answer without a call, or two of one call.
    """
    calls = _calls(events)
    return _Checker(calls, final, near, group or (lambda text: None), remembers_duplicates).run()


def _calls(events: Iterable[Event]) -> list[_Call]:
    begun: dict[int, Event] = {}
    ended: dict[int, Event] = {}
    before = -math.inf
    for event in events:
        if event.time < before:
            raise ValueError(f"the history goes back in time at call {event.call}")
        before = event.time
        if event.kind is Kind.INVOKE:
            if event.call in begun:
                raise ValueError(f"call {event.call} begins twice")
            begun[event.call] = event
            continue
        if event.call not in begun or event.call in ended:
            raise ValueError(f"call {event.call} ends twice or without a beginning")
        if (event.kind is Kind.ANSWER) != (event.outcome is not None):
            raise ValueError(f"call {event.call} is answered without an outcome, or fails with one")
        ended[event.call] = event
    return [_ended(begin, ended.get(number)) for number, begin in begun.items()]


def _ended(begin: Event, end: Event | None) -> _Call:
    if end is None or end.kind is Kind.FAIL:
        return _Call(
            begin.call, begin.client, begin.action, begin.document, begin.text, begin.time, math.inf, None, None
        )
    return _Call(
        begin.call, begin.client, begin.action, begin.document, begin.text,
        begin.time, end.time, end.outcome, end.duplicate_of,
    )  # fmt: skip


class _Checker:
    def __init__(
        self,
        calls: Sequence[_Call],
        final: Mapping[str, str] | None,
        near: Callable[[str, str], bool],
        group: Callable[[str], Hashable],
        remembers_duplicates: bool,
    ) -> None:
        self._near = near
        self._group = group
        self._remembers = remembers_duplicates
        self._final = final
        self._submits: dict[str, list[_Call]] = defaultdict(list)
        self._deletes: dict[str, list[_Call]] = defaultdict(list)
        for call in calls:
            (self._submits if call.action is Action.SUBMIT else self._deletes)[call.document].append(call)
        self._violations: list[Violation] = []
        self._over = 1.0 + max((call.end if math.isfinite(call.end) else call.begin for call in calls), default=0.0)

    def run(self) -> list[Violation]:
        sightings = self._named() + self._kept() + self._held()
        self._check_pairs(sightings)
        self._check_ids()
        self._check_outcomes(sightings)
        self._check_lost(sightings)
        return sorted(self._violations, key=lambda violation: (violation.invariant, violation.calls))

    def _report(self, invariant: Invariant, sentence: str, *calls: _Call | None) -> None:
        numbers = tuple(sorted({call.number for call in calls if call is not None}))
        self._violations.append(Violation(invariant, sentence, numbers))

    def _possible_deletes(self, document: str | None, begin: float, end: float) -> list[_Call]:
        """Deletions of a document that may take effect between two moments."""
        if document is None:
            return []
        return [call for call in self._deletes.get(document, ()) if call.begin <= end and call.end >= begin]

    def _may_be_anew(self, calls: Iterable[_Call], begin: float, end: float) -> bool:
        """Whether a deletion between two moments lets calls about one document be decided anew.

        Of the document itself, or of the one that it was a duplicate of. Where that name was never told, of any.
        """
        for call in calls:
            names: Iterable[str | None] = (call.document, call.duplicate_of)
            if call.outcome is Outcome.ID_REUSED:
                others = [other for other in self._submits[call.document] if other.text != call.text]
                if any(other.outcome is None for other in others):
                    names = self._deletes
                else:
                    names = (call.document, *(other.duplicate_of for other in others))
            if any(self._possible_deletes(name, begin, end) for name in names):
                return True
        return False

    def _until(self, document: str, begin: float) -> float:
        return min((call.begin for call in self._possible_deletes(document, begin, math.inf)), default=math.inf)

    def _may_be_kept(self, document: str) -> list[_Call]:
        """Submissions that may have kept a document, whatever they were answered in the end.

        A client repeats a call whose answer was lost. If the document was deleted in between, it is decided about
        anew, and that is the answer: that it was kept at first nobody was told.
        """
        deletes = self._deletes.get(document, ())
        return [
            call
            for call in self._submits.get(document, ())
            if call.outcome in (Outcome.KEPT, None)
            or any(call.begin < delete.end and delete.begin < call.end for delete in deletes)
        ]

    def _gone(self, keep: _Call, moment: float) -> _Call | None:
        """The deletion after which what `keep` kept was certainly gone before `moment`."""
        for delete in self._deletes.get(keep.document, ()):
            if keep.end < delete.begin and delete.end < moment:
                return delete
        return None

    def _kept(self) -> list[_Sighting]:
        return [
            _Sighting(document, call.text, call.begin, call.end, self._until(document, call.begin), call)
            for document, calls in self._submits.items()
            for call in calls
            if call.outcome is Outcome.KEPT
        ]

    def _named(self) -> list[_Sighting]:
        """Documents seen alive in answers; reports names that cannot be right."""
        found = []
        for call in itertools.chain.from_iterable(self._submits.values()):
            if call.outcome is not Outcome.DUPLICATE:
                continue
            name = call.duplicate_of
            if name is None or name == call.document:
                self._report(
                    Invariant.NAMES_A_KEPT_ONE, f"{call} answered {call.document} as a duplicate of {name}", call
                )
                continue
            keeps = [
                keep for keep in self._may_be_kept(name) if keep.begin < call.end and self._near(keep.text, call.text)
            ]
            if not keeps:
                self._report(
                    Invariant.NAMES_A_KEPT_ONE,
                    f"{call} named {name} for {call.document}, but no near document of that id was kept before",
                    call, *self._submits.get(name, ()),
                )  # fmt: skip
                continue
            deletes = [self._gone(keep, call.begin) for keep in keeps]
            if all(delete is not None for delete in deletes):
                self._report(
                    Invariant.DELETED_IS_GONE,
                    f"{call} named {name} for {call.document}, which {deletes[0]} had deleted before",
                    call, *deletes,
                )  # fmt: skip
                continue
            texts = {keep.text for keep in keeps}
            text = texts.pop() if len(texts) == 1 else None
            found.append(_Sighting(name, text, call.begin, call.end, self._until(name, call.begin), call))
        return found

    def _held(self) -> list[_Sighting]:
        """Documents in the final state; reports those that cannot be there."""
        found = []
        for document, text in (self._final or {}).items():
            submits = [call for call in self._submits.get(document, ()) if call.text == text]
            keeps = [call for call in submits if call.outcome in (Outcome.KEPT, None)]
            if not submits:
                self._report(
                    Invariant.NOTHING_LOST,
                    f"the final state holds {document} with a text that was never submitted under this id",
                    *self._submits.get(document, ()),
                )
            elif not keeps:
                reused = any(call.outcome is Outcome.ID_REUSED for call in submits)
                self._report(
                    Invariant.ID_REUSED if reused else Invariant.NOTHING_LOST,
                    f"the final state holds {document} with a text that {submits[0]} answered otherwise",
                    *submits,
                )
            else:
                deletes = [self._gone(keep, math.inf) for keep in keeps]
                if all(delete is not None for delete in deletes):
                    self._report(
                        Invariant.DELETED_IS_GONE,
                        f"the final state holds {document}, which {deletes[0]} had deleted",
                        *keeps, *deletes,
                    )  # fmt: skip
                found.append(_Sighting(document, text, self._over, self._over, math.inf, None))
        return found

    def _check_pairs(self, sightings: Sequence[_Sighting]) -> None:
        groups: dict[Hashable, list[_Sighting]] = defaultdict(list)
        for sighting in sightings:
            if sighting.text is not None:
                groups[self._group(sighting.text)].append(sighting)
        reported = set()
        for group in groups.values():
            for a, b in itertools.combinations(group, 2):
                pair = frozenset((a.document, b.document))
                if len(pair) < 2 or pair in reported or not (_together(a, b) or _together(b, a)):
                    continue
                if a.text is not None and b.text is not None and self._near(a.text, b.text):
                    reported.add(pair)
                    self._report(
                        Invariant.ONE_KEPT, f"near-duplicates were live at the same time: {a}; {b}", a.call, b.call
                    )

    def _check_ids(self) -> None:
        for calls in self._submits.values():
            answered = [call for call in calls if call.outcome is not None]
            for a, b in itertools.combinations(answered, 2):
                begin, end = min(a.begin, b.begin), max(a.end, b.end)
                if self._may_be_anew((a, b), begin, end):
                    continue
                if a.text == b.text:
                    self._check_retry(a, b)
                else:
                    self._check_reuse(a, b)
            for call in answered:
                if call.outcome is not Outcome.ID_REUSED:
                    continue
                others = [
                    other
                    for other in calls
                    if other.text != call.text and other.begin < call.end and other.outcome is not Outcome.ID_REUSED
                ]
                if not others:
                    self._report(
                        Invariant.ID_REUSED, f"{call} was answered as a reuse of {call.document}, but none was", call
                    )

    def _check_retry(self, a: _Call, b: _Call) -> None:
        if a.outcome is b.outcome and a.duplicate_of == b.duplicate_of:
            return
        if not self._remembers and Outcome.KEPT not in (a.outcome, b.outcome):
            return
        self._report(
            Invariant.SAME_ANSWER,
            f"{a.document} with the same text was answered {_answer(a)} by {a} and {_answer(b)} by {b}", a, b,
        )  # fmt: skip

    def _check_reuse(self, a: _Call, b: _Call) -> None:
        if Outcome.ID_REUSED in (a.outcome, b.outcome):
            return
        if not self._remembers and not (a.outcome is b.outcome is Outcome.KEPT):
            first, second = sorted((a, b), key=lambda call: call.begin)
            if first.outcome is not Outcome.KEPT or second.begin <= first.end:
                return
        self._report(
            Invariant.ID_REUSED,
            f"{a.document} was answered {_answer(a)} by {a} and, with another text, {_answer(b)} by {b}", a, b,
        )  # fmt: skip

    def _check_outcomes(self, sightings: Sequence[_Sighting]) -> None:
        """A document that was seen alive cannot have been answered as none."""
        reported = set()
        for sighting in sightings:
            if sighting.call is not None and sighting.call.outcome is Outcome.KEPT:
                continue  # two answers about one id are compared by `_check_ids`
            for call in self._submits.get(sighting.document, ()):
                if call.text != sighting.text or call.outcome not in (Outcome.DUPLICATE, Outcome.ID_REUSED):
                    continue
                begin, end = min(call.begin, sighting.begin), max(call.end, sighting.end)
                if call.number in reported or self._may_be_anew((call,), begin, end):
                    continue
                if not self._remembers and call.outcome is Outcome.ID_REUSED:
                    continue
                reported.add(call.number)
                self._report(
                    Invariant.ONE_OUTCOME,
                    f"{call} answered {call.document} as {_answer(call)}, but it was kept: {sighting}",
                    call, sighting.call,
                )  # fmt: skip

    def _check_lost(self, sightings: Sequence[_Sighting]) -> None:
        if self._final is None:
            return
        reported = set()
        for sighting in sightings:
            if math.isfinite(sighting.until) or sighting.document in reported:
                continue
            held = self._final.get(sighting.document)
            if held is None:
                reported.add(sighting.document)
                self._report(Invariant.NOTHING_LOST, f"the final state lacks {sighting}", sighting.call)
            elif sighting.text is not None and held != sighting.text:
                reported.add(sighting.document)
                self._report(Invariant.ID_REUSED, f"the final state has another text for {sighting}", sighting.call)


def _together(a: _Sighting, b: _Sighting) -> bool:
    """Whether `a` was live at some moment at which `b` certainly was."""
    return (b.end <= a.begin and a.end < b.until) or max(a.end, b.end) < min(a.until, b.until)


def _answer(call: _Call) -> str:
    if call.outcome is Outcome.DUPLICATE:
        return f"duplicate of {call.duplicate_of}"
    return "an unknown outcome" if call.outcome is None else call.outcome.value
