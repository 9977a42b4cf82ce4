"""Who scores which batch, what a death means, and how many scorers there should be: decisions only.

Nothing here knows of Ray, of threads or of the time of day: callers hold a lock
and say what time it is, so that every rule can be tested by itself.

A batch whose scorer died is *suspected*, since what it holds may be the cause.
It runs again alone on a scorer that holds nothing else (`reserve`), and only
while another scorer remains for everybody else, so that no text can stop all of
them at once.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PIECES = 16
"""Into how many pieces a batch that killed scorers is cut. Each round costs one death; halves would cost four."""


class State(enum.Enum):
    """Where a scorer is in its life."""

    STARTING = "starting"
    """Being made, or made again after a death; no real batch has passed through it since."""
    READY = "ready"
    STOPPING = "stopping"
    """Takes no more batches; ends once it holds none."""


@dataclass(eq=False, slots=True)
class Member:
    """One scorer.

    Attributes:
        name: unique within the executor, never used again.
        pool: "cpu" or "gpu".
        since_s: when it entered its state.
        state: see `State`.
        token: names its present life; "" while it is not ready.
        node: where it runs; "" until it has said so.
        batches: batches that it holds.
        pending_bytes: text that it holds.
        restarts: how often it has died.
        idle_since_s: since when it has held nothing.
        reserved: whether one suspected batch has it for itself.
    """

    name: str
    pool: str
    since_s: float
    state: State = State.STARTING
    token: str = ""
    node: str = ""
    batches: int = 0
    pending_bytes: int = 0
    restarts: int = 0
    idle_since_s: float = 0.0
    reserved: bool = False

    @property
    def holds_nothing(self) -> bool:
        """Whether it could score and has nothing to."""
        return self.state is State.READY and not self.batches and not self.reserved


@dataclass(frozen=True, slots=True)
class Limits:
    """How many scorers one pool has."""

    least: int
    most: int


class Roster:
    """All scorers and what each holds.

    Args:
        batches_per_member: how many batches one scorer holds at most.
    """

    def __init__(self, batches_per_member: int) -> None:
        self._batches_per_member = batches_per_member
        self._isolating = False
        self.members: list[Member] = []

    @property
    def ready(self) -> list[Member]:
        """Scorers that take batches."""
        return [member for member in self.members if member.state is State.READY]

    @property
    def slots(self) -> int:
        """How many batches all scorers together take at once now."""
        return len(self.ready) * self._batches_per_member

    def find(self, name: str) -> Member | None:
        """The scorer of that name, unless it is gone."""
        return next((member for member in self.members if member.name == name), None)

    def take(self, text_bytes: int) -> Member | None:
        """Gives a batch to the scorer that holds the least text; None where all are full."""
        free = [member for member in self.ready if not member.reserved and member.batches < self._batches_per_member]
        if not free:
            return None
        # Of equals the first: with little to do the last ones stay idle and can be stopped.
        chosen = min(free, key=lambda member: member.pending_bytes)
        chosen.batches += 1
        chosen.pending_bytes += text_bytes
        return chosen

    def reserve(self, *, isolated: bool, spare: bool) -> Member | None:
        """Sets a scorer aside for one suspected batch; `occupy` it when it holds nothing any more.

        Args:
            isolated: the batch has killed twice: only one such runs at a time.
            spare: only while another scorer remains for everybody else.

        Returns:
            None where that cannot be now.
        """
        if isolated and self._isolating:
            return None
        free = [member for member in self.ready if not member.reserved]
        if len(free) < (2 if spare else 1):
            return None
        chosen = min(free, key=lambda member: member.pending_bytes)
        chosen.reserved = True
        self._isolating = self._isolating or isolated
        return chosen

    def occupy(self, member: Member, text_bytes: int) -> bool:
        """Starts the suspected batch on the scorer reserved for it; false while that still holds others."""
        if member.batches:
            return False
        member.batches = 1
        member.pending_bytes = text_bytes
        return True

    def unreserve(self, member: Member, *, isolated: bool) -> None:
        """Ends a reservation, whatever became of the scorer."""
        member.reserved = False
        if isolated:
            self._isolating = False

    def release(self, member: Member, text_bytes: int, now_s: float) -> None:
        """Takes down that a batch has left a scorer, however it ended."""
        member.batches -= 1
        member.pending_bytes -= text_bytes
        if not member.batches:
            member.idle_since_s = now_s

    def became_ready(self, member: Member, token: str, node: str, now_s: float) -> None:
        """A real batch has passed through a scorer that was starting."""
        member.state, member.token, member.node, member.since_s = State.READY, token, node, now_s
        member.idle_since_s = now_s

    def start_again(self, member: Member, now_s: float) -> None:
        """A scorer is to build its scorers once more, with other models; what it holds goes elsewhere."""
        if member.state is State.READY:
            member.state, member.token, member.since_s = State.STARTING, "", now_s

    def died(self, member: Member, token: str, now_s: float) -> bool:
        """Takes down a death; false where that life's end is known already.

        Args:
            member: who died.
            token: of the life that ended.
            now_s: when.
        """
        if not token or member.token != token:
            return False
        member.token = ""
        member.restarts += 1
        if member.state is State.READY:
            member.state = State.STARTING
        member.since_s = now_s
        return True


class Sizer:
    """Chooses how many scorers a pool has, from the text that waits for one.

    It grows by one when too much has waited without a break for `grow_s`, and shrinks
    by one when a scorer has been idle for `shrink_s` while nothing waits. What it has just
    added counts at once, and one that has just started has not been idle, so that it
    does not go back and forth.

    Args:
        limits: of the pool.
        grow_bytes: waiting text per scorer that is too much.
        grow_s: how long it must be too much, in seconds.
        shrink_s: how long one must be idle, in seconds.
    """

    def __init__(self, limits: Limits, *, grow_bytes: int, grow_s: float, shrink_s: float) -> None:
        self._limits = limits
        self._grow_bytes = grow_bytes
        self._grow_s = grow_s
        self._shrink_s = shrink_s
        self._short_since_s: float | None = None

    def missing(self, members: Sequence[Member]) -> int:
        """How many scorers the pool has too few whatever waits."""
        return max(0, self._limits.least - len(members))

    def grows(self, members: Sequence[Member], waiting_bytes: int, now_s: float) -> bool:
        """Whether one more scorer is to be started now.

        Args:
            members: of the pool, without those that are stopping.
            waiting_bytes: text that waits for any scorer.
            now_s: seconds on a clock that never goes back.
        """
        if waiting_bytes < self._grow_bytes * max(1, len(members)) or len(members) >= self._limits.most:
            self._short_since_s = None
            return False
        if self._short_since_s is None:
            self._short_since_s = now_s
        if now_s - self._short_since_s < self._grow_s:
            return False
        self._short_since_s = now_s
        return True

    def shrinks(self, members: Sequence[Member], waiting_bytes: int, now_s: float) -> Member | None:
        """The scorer that is to be stopped now, or None.

        Args:
            members: of the pool, without those that are stopping.
            waiting_bytes: text that waits for any scorer.
            now_s: seconds on a clock that never goes back.
        """
        if waiting_bytes or len(members) <= self._limits.least:
            return None
        for member in reversed(members):
            if member.holds_nothing and now_s - member.idle_since_s >= self._shrink_s:
                return member
        return None


class Quarantine:
    """Remembers texts that killed scorers, so that sending one again kills nothing.

    Args:
        keep_s: how long a text is remembered, in seconds.
        capacity: how many are remembered at most.
    """

    def __init__(self, keep_s: float, capacity: int = 1024) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._until_s: OrderedDict[tuple[int, bytes], float] = OrderedDict()
        self._sizes: frozenset[int] = frozenset()

    def add(self, text: NDArray[np.uint8], now_s: float) -> None:
        """Remembers a text.

        Args:
            text: uint8[bytes].
            now_s: seconds on a clock that never goes back.
        """
        self._until_s[text.size, _digest(text)] = now_s + self._keep_s
        while len(self._until_s) > self._capacity or next(iter(self._until_s.values())) < now_s:
            self._until_s.popitem(last=False)
        self._sizes = frozenset(size for size, _ in self._until_s)

    def find(self, utf8: NDArray[np.uint8], byte_offsets: NDArray[np.int64], now_s: float) -> NDArray[np.bool_] | None:
        """bool[n], true for texts of a batch that are remembered; None where none is."""
        sizes = self._sizes
        if not sizes:
            return None
        found = np.zeros(byte_offsets.size - 1, dtype=np.bool_)
        for i, size in enumerate(np.diff(byte_offsets).tolist()):
            # Hashing only texts of the size of a remembered one costs next to nothing.
            if size in sizes:
                key = (size, _digest(utf8[byte_offsets[i] : byte_offsets[i + 1]]))
                found[i] = self._until_s.get(key, now_s) > now_s
        return found if found.any() else None


def _digest(text: NDArray[np.uint8]) -> bytes:
    return blake2b(text.tobytes(), digest_size=16).digest()


def cut(byte_offsets: NDArray[np.int64], pieces: int = PIECES) -> Iterator[slice]:
    """Cuts a batch into at most `pieces` runs of documents, as equal in number as can be."""
    n = byte_offsets.size - 1
    edges = np.linspace(0, n, min(n, pieces) + 1).astype(int).tolist()
    return (slice(start, stop) for start, stop in pairwise(edges))
