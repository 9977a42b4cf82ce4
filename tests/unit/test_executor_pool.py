from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from dqs.executors.pool import Limits, Member, Quarantine, Roster, Sizer, State, cut

MIB = 1 << 20


def member(name: str, state: State = State.READY, since_s: float = 0.0) -> Member:
    token = f"token-{name}" if state is State.READY else ""
    return Member(name, "cpu", since_s, state, token, idle_since_s=since_s)


def roster(size: int = 2, batches: int = 2) -> Roster:
    made = Roster(batches)
    made.members = [member(f"cpu-{number}") for number in range(size)]
    return made


def name_of(chosen: Member | None) -> str | None:
    return None if chosen is None else chosen.name


def test_a_batch_goes_to_whom_holds_the_least_text() -> None:
    pool = roster()

    assert [name_of(pool.take(size)) for size in (100, 10, 10, 1000)] == ["cpu-0", "cpu-1", "cpu-1", "cpu-0"]
    assert pool.take(1) is None, "two batches each"


def test_with_little_to_do_the_first_does_it() -> None:
    pool = roster(3)
    for _ in range(3):
        chosen = pool.take(10)
        assert chosen is pool.members[0]
        pool.release(chosen, 10, 1.0)


def test_only_the_ready_count() -> None:
    pool = roster(3)
    pool.members[0].state, pool.members[1].state = State.STARTING, State.STOPPING

    assert pool.slots == 2
    assert name_of(pool.take(1)) == "cpu-2"
    assert name_of(pool.take(1)) == "cpu-2"
    assert pool.take(1) is None


def test_a_death_counts_once_however_many_batches_it_took() -> None:
    pool = roster()
    dead = pool.members[0]

    assert pool.died(dead, "token-cpu-0", 1.0)
    assert not pool.died(dead, "token-cpu-0", 1.1)
    assert (dead.restarts, dead.state, pool.slots) == (1, State.STARTING, 2)

    pool.became_ready(dead, "second life", "node", 2.0)
    assert not pool.died(dead, "token-cpu-0", 2.1), "the news of the first death comes late"
    assert (dead.restarts, dead.state, pool.slots) == (1, State.READY, 4)


def test_a_suspected_batch_waits_until_the_scorer_is_empty() -> None:
    pool = roster()
    other = pool.take(5)
    assert other is pool.members[0]
    pool.members[1].pending_bytes = 100

    reserved = pool.reserve(isolated=False, spare=True)
    assert reserved is other
    assert not pool.occupy(reserved, 7)
    assert name_of(pool.take(1)) == "cpu-1", "nobody else goes there any more"
    pool.release(other, 5, 1.0)
    assert pool.occupy(reserved, 7)
    assert (reserved.batches, reserved.pending_bytes) == (1, 7)
    pool.release(reserved, 7, 2.0)
    pool.unreserve(reserved, isolated=False)
    assert name_of(pool.take(1)) == "cpu-0"


def test_suspected_batches_leave_a_scorer_to_everybody_else() -> None:
    pool = roster(3)

    assert pool.reserve(isolated=False, spare=True) is not None
    assert pool.reserve(isolated=False, spare=True) is not None
    assert pool.reserve(isolated=False, spare=True) is None
    assert pool.reserve(isolated=False, spare=False) is not None, "the only one of its pool, or out of patience"
    assert pool.reserve(isolated=False, spare=False) is None


def test_only_one_batch_that_killed_twice_runs_at_a_time() -> None:
    pool = roster(5)
    first = pool.reserve(isolated=True, spare=True)
    assert first is not None

    assert pool.reserve(isolated=True, spare=True) is None
    assert pool.reserve(isolated=False, spare=True) is not None
    pool.unreserve(first, isolated=True)
    assert pool.reserve(isolated=True, spare=True) is not None


def test_a_reservation_ends_though_its_scorer_died() -> None:
    pool = roster(2)
    reserved = pool.reserve(isolated=True, spare=True)
    assert reserved is not None
    pool.died(reserved, reserved.token, 1.0)
    pool.unreserve(reserved, isolated=True)
    pool.became_ready(reserved, "again", "node", 2.0)

    assert pool.reserve(isolated=True, spare=True) is not None


def sizer(least: int = 1, most: int = 4) -> Sizer:
    return Sizer(Limits(least, most), grow_bytes=MIB, grow_s=2.0, shrink_s=60.0)


def test_a_pool_grows_only_when_too_much_has_waited_long_enough() -> None:
    chooses, members = sizer(), [member("cpu-0")]

    assert not chooses.grows(members, 2 * MIB, 0.0)
    assert not chooses.grows(members, 2 * MIB, 1.9)
    assert chooses.grows(members, 2 * MIB, 2.0)


def test_a_break_begins_the_wait_anew() -> None:
    chooses, members = sizer(), [member("cpu-0")]

    assert not chooses.grows(members, 2 * MIB, 0.0)
    assert not chooses.grows(members, 0, 1.0)
    assert not chooses.grows(members, 2 * MIB, 2.5)
    assert not chooses.grows(members, 2 * MIB, 4.4)
    assert chooses.grows(members, 2 * MIB, 4.5)


def test_a_pool_grows_by_one_at_a_time_and_no_further_than_allowed() -> None:
    chooses, members = sizer(), [member("cpu-0")]
    times = [0.1 * tick for tick in range(200)]
    grown = []
    for now_s in times:
        if chooses.grows(members, 100 * MIB, now_s):
            grown.append(round(now_s, 1))
            members.append(member(f"cpu-{len(members)}", State.STARTING))

    assert len(members) == 4
    assert all(later - earlier >= 1.9 for earlier, later in pairwise(grown))


def test_text_that_those_there_can_take_starts_nobody() -> None:
    chooses = sizer()
    members = [member("cpu-0"), member("cpu-1", State.STARTING)]

    assert not any(chooses.grows(members, 2 * MIB - 1, now_s) for now_s in range(100))


def test_the_last_idle_one_is_stopped_after_a_while() -> None:
    chooses = sizer()
    members = [member("cpu-0"), member("cpu-1"), member("cpu-2", since_s=10.0)]

    assert chooses.shrinks(members, 0, 59.0) is None
    assert name_of(chooses.shrinks(members, 0, 65.0)) == "cpu-1"
    assert name_of(chooses.shrinks(members, 0, 70.0)) == "cpu-2"
    assert chooses.shrinks(members, 1, 70.0) is None, "text waits"
    assert chooses.shrinks(members[:1], 0, 1000.0) is None, "the least there may be"


@pytest.mark.parametrize("busy", [{"batches": 1}, {"reserved": True}, {"state": State.STARTING}])
def test_a_busy_one_is_not_stopped(busy: dict[str, object]) -> None:
    last = member("cpu-1")
    for name, value in busy.items():
        setattr(last, name, value)
    first = member("cpu-0", since_s=1000.0)

    assert sizer().shrinks([first, last], 0, 1000.0) is None


def test_a_load_that_comes_and_goes_does_not_make_the_pool_flap() -> None:
    """Ten minutes in which text waits for three of every five seconds: it grows, and stays."""
    chooses, members = sizer(), [member("cpu-0")]
    changes = 0
    for tick in range(6000):
        now_s = 0.1 * tick
        waiting = 3 * MIB if int(now_s) % 5 < 3 else 0
        if chooses.grows(members, waiting, now_s):
            members.append(member(f"cpu-{len(members)}", since_s=now_s))
            changes += 1
        for one in members:  # each has a batch now and then
            if waiting:
                one.idle_since_s = now_s
        stopped = chooses.shrinks(members, waiting, now_s)
        if stopped is not None:
            members.remove(stopped)
            changes += 1

    assert changes <= 3
    assert len(members) == 1 + changes


def test_what_there_must_be_is_missing_at_once() -> None:
    assert sizer(least=3).missing([member("cpu-0")]) == 2
    assert sizer(least=1).missing([member("cpu-0"), member("cpu-1")]) == 0


def packed(*texts: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    edges = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=edges[1:])
    return np.frombuffer(b"".join(texts), dtype=np.uint8), edges


def test_a_text_in_quarantine_is_found_again_for_a_while() -> None:
    quarantine = Quarantine(keep_s=10.0)
    utf8, edges = packed(b"good", b"evil", b"", b"evil")
    assert quarantine.find(utf8, edges, 0.0) is None

    quarantine.add(np.frombuffer(b"evil", dtype=np.uint8), 0.0)

    found = quarantine.find(utf8, edges, 9.0)
    assert found is not None
    assert found.tolist() == [False, True, False, True]
    assert quarantine.find(utf8, edges, 10.0) is None
    assert quarantine.find(*packed(b"well"), 9.0) is None


def test_a_quarantine_does_not_grow_for_ever() -> None:
    quarantine = Quarantine(keep_s=1000.0, capacity=3)
    for number in range(10):
        quarantine.add(np.frombuffer(b"%d" % number, dtype=np.uint8), float(number))

    found = quarantine.find(*packed(*(b"%d" % number for number in range(10))), 11.0)
    assert found is not None
    assert np.flatnonzero(found).tolist() == [7, 8, 9]


@pytest.mark.parametrize("documents", [2, 3, 15, 16, 17, 100, 1024])
def test_pieces_cover_the_batch_and_get_smaller(documents: int) -> None:
    pieces = list(cut(np.arange(documents + 1, dtype=np.int64)))

    covered = [document for piece in pieces for document in range(piece.start, piece.stop)]
    assert covered == list(range(documents))
    assert 1 < len(pieces) <= 16
    assert all(0 < piece.stop - piece.start < documents for piece in pieces)
