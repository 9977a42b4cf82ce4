"""Duplicates in a whole collection at once: the answers of the index, without the index. Pure; knows no Ray, no Redis.

Documents are numbered in input order. What decides is, for every document, which
earlier kept ones share a key with it: the text hash, or the key of a band. So:

    group    documents that share a key, found by sorting keys. Most keys belong to one
             document alone and are forgotten here.
    route    per document, the groups that it is in. Every group has a place in one array,
             `slots`, for the documents that are registered under its key.
    decide   one pass in input order: look up, estimate, register. What it touches are
             slots of groups and sketches of kept documents that are in one; nothing is
             held of a document that shares no key.

`FirstKept` gives the answers that the online index gives to the same documents one
after the other. `Components` joins all that is connected instead.

All three steps work on pieces of any size with the same result: group on ranges of
keys, route and decide on runs of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.index.bands import MAX_SAME, MAX_VERIFIED
from dqs.index.signature import as_words, pair_agreements

Allocate = Callable[[str, tuple[int, ...], Any], NDArray[Any]]
"""Makes an array of zeros from name, shape and dtype: in memory, or a file that is mapped into it."""

_CODE_BITS = 8
_EXACT = 0
_CHAIN = 255


def in_memory(_: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Allocates in memory."""
    return np.zeros(shape, dtype=dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Documents that share keys of one kind, within a range of keys.

    Attributes:
        documents: int64[m], ascending; numbers of documents that share their key with others.
        entries: int64[m]; the group of each: the place of its slots, shifted by 8 bits, and in the low
            bits how many documents may be registered, or a mark of another kind of group.
        slots: uint32 slots that the groups take, from place 0 on.
    """

    documents: NDArray[np.int64]
    entries: NDArray[np.int64]
    slots: int


def sorted_runs(
    keys: Sequence[NDArray[Any]], documents: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Finds runs of two or more equal keys.

    Args:
        keys: columns of the key, the most significant first, each of n.
        documents: int64[n], ascending among equal keys.

    Returns:
        Positions of the members, run by run, in each in the order given; and int64 sizes of the runs.
    """
    order = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort(tuple(reversed(keys)))
    if not documents.size:
        return order, np.zeros(0, dtype=np.int64)
    differs = np.ones(order.size, dtype=np.bool_)
    differs[1:] = False
    for column in keys:
        ordered = column[order]
        differs[1:] |= ordered[1:] != ordered[:-1]
    sizes = np.diff(np.append(np.flatnonzero(differs), order.size))
    shared = sizes > 1
    return order[np.repeat(shared, sizes)], sizes[shared]


def find_groups(
    keys: Sequence[NDArray[Any]],
    documents: NDArray[np.int64],
    *,
    exact: bool,
    all_pairs: bool = False,
    max_same: int = MAX_SAME,
) -> Groups:
    """Groups of documents that share a key.

    Args:
        keys: columns of the key, the most significant first, each of n.
        documents: int64[n], ascending among equal keys.
        exact: whether the keys are text hashes; else they are keys of one band.
        all_pairs: for `Components`: no document is kept out of a group, and of a group with more than
            `max_same` documents only the last one is remembered.
        max_same: kept documents that are found by one key.
    """
    members, sizes = sorted_runs(keys, documents)
    # The last member registers for nobody.
    room = np.minimum(sizes - 1, max_same)
    code = room
    if exact:
        room, code = np.ones_like(sizes), np.full_like(sizes, _EXACT)
    elif all_pairs:
        room = np.where(sizes > max_same, 1, sizes - 1)
        code = np.where(sizes > max_same, _CHAIN, room)
    ends = np.cumsum(room + 1)
    entries = np.repeat(((ends - room - 1) << _CODE_BITS) | code, sizes)
    found = documents[members]
    order = np.argsort(found, kind="stable")
    return Groups(found[order], entries[order], int(ends[-1]) if ends.size else 0)


def find_repeats(
    id_hash: NDArray[np.uint64], text_hash: NDArray[np.uint64], documents: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Finds documents whose id came before.

    Args:
        id_hash: uint64[n, 2]; ids with equal hashes are taken as equal.
        text_hash: uint64[n, 2].
        documents: int64[n], ascending among equal ids.

    Returns:
        int64 numbers of the documents, ascending; of each, the first document with the id; and whether
        that one has the same text hash.
    """
    members, sizes = sorted_runs((id_hash[:, 0], id_hash[:, 1]), documents)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    later = np.arange(members.size) != starts
    members, first = members[later], members[starts[later]]
    same = np.asarray((text_hash[members] == text_hash[first]).all(axis=1), dtype=np.bool_)
    order = np.argsort(documents[members], kind="stable")
    return documents[members][order], documents[first][order], same[order]


def route(
    groups: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], int]], begin: int, end: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The groups of each document of a run.

    Args:
        groups: `documents` and `entries` of every `Groups`, those of text hashes first, then band by band,
            and the place where its slots begin in the array of all slots.
        begin: number of the first document.
        end: behind the last.

    Returns:
        int64[end - begin + 1] offsets into int64 entries; those of a document ascend from band to band,
        behind that of its text hash.
    """
    documents, entries = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for of, entry, place in groups:
        low, high = np.searchsorted(of, (begin, end))
        documents.append(np.asarray(of[low:high]) - begin)
        entries.append(np.asarray(entry[low:high]) + (place << _CODE_BITS))
    joined = np.concatenate(documents)
    offsets = np.zeros(end - begin + 1, dtype=np.int64)
    np.cumsum(np.bincount(joined, minlength=end - begin), out=offsets[1:])
    return offsets, np.concatenate(entries)[np.argsort(joined, kind="stable")]


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """What became of n consecutive documents. Those that were not `active` have the values of a kept one.

    Attributes:
        duplicate_of: int64[n]; number of the kept document that it repeats; -1 where it is kept.
        similarity: float64[n]; estimated Jaccard similarity to that one, 1 for an exact copy; NaN where kept.
        exact: bool[n]; whether both have the same text hash.
        bands_met: int32[n]; bands in which the two met; 0 where kept.
    """

    duplicate_of: NDArray[np.int64]
    similarity: NDArray[np.float64]
    exact: NDArray[np.bool_]
    bands_met: NDArray[np.int32]

    @classmethod
    def kept(cls, n: int) -> Decisions:
        """Of n documents that are all kept."""
        return cls(
            np.full(n, -1, dtype=np.int64),
            np.full(n, np.nan),
            np.zeros(n, dtype=np.bool_),
            np.zeros(n, dtype=np.int32),
        )


class FirstKept:
    """Decides documents in input order as the online index does, where all are to be inserted.

    A kept document that shares a key gets a rank, in input order, and its sketch is copied to the
    others of its kind, so that candidates are compared within one array.

    Args:
        slots: that all groups take together.
        members: documents that are in any group, at most.
        sketch_bytes: bytes of a sketch.
        least_similarity: estimated similarity from which a document is a near-duplicate.
        allocate: makes the arrays.
        max_verified: candidates whose similarity is estimated.
    """

    def __init__(
        self,
        slots: int,
        members: int,
        sketch_bytes: int,
        least_similarity: float,
        allocate: Allocate = in_memory,
        max_verified: int = MAX_VERIFIED,
    ) -> None:
        self._slots = allocate("slots", (max(slots, 1),), np.uint32)
        self._sketches = allocate("sketches", (max(members, 1), sketch_bytes // 8), np.uint64)
        self._numbers = allocate("numbers", (max(members, 1),), np.int64)
        self._ranks = np.zeros(1, dtype=np.int64)
        self._least = least_similarity
        self._max_verified = max_verified

    def decide(
        self,
        begin: int,
        active: NDArray[np.bool_],
        sketch: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        entries: NDArray[np.int64],
    ) -> Decisions:
        """Decides the next documents.

        Args:
            begin: number of the first.
            active: bool[n]; the others neither look up nor register.
            sketch: uint8[n, sketch_bytes].
            offsets: as `route` returns it.
            entries: as `route` returns it.
        """
        decisions = Decisions.kept(active.size)
        most = int(np.max(entries & ((1 << _CODE_BITS) - 1), initial=0)) * int(np.diff(offsets).max(initial=0))
        _decide_first(
            begin, active, as_words(sketch), offsets, entries, self._slots, self._sketches, self._numbers, self._ranks,
            self._least, np.empty(most + 1, dtype=np.int64), np.empty(most + 1, dtype=np.int64), self._max_verified,
            decisions.duplicate_of, decisions.similarity, decisions.exact, decisions.bands_met,
        )  # fmt: skip
        return decisions


class Components:
    """Joins documents that are connected by pairs at or above the threshold; the earliest of each component is kept.

    First `link` all documents in order, then `decide` all in order.

    Args:
        slots: that all groups take together, found with `all_pairs`.
        members: documents that are in any group, at most.
        entries: of all documents together, at most.
        sketch_bytes: bytes of a sketch.
        least_similarity: estimated similarity from which two documents are connected.
        allocate: makes the arrays.
    """

    def __init__(
        self,
        slots: int,
        members: int,
        entries: int,
        sketch_bytes: int,
        least_similarity: float,
        allocate: Allocate = in_memory,
    ) -> None:
        self._slots = allocate("slots", (max(slots, 1),), np.uint32)
        self._sketches = allocate("sketches", (max(members, 1), sketch_bytes // 8), np.uint64)
        self._numbers = allocate("numbers", (max(members, 1),), np.int64)
        self._parents = allocate("parents", (max(members, 1),), np.int64)
        self._starts = allocate("starts", (members + 1,), np.int64)
        self._entries = allocate("entries", (max(entries, 1),), np.int64)
        self._ranks = np.zeros(1, dtype=np.int64)
        self._decided = np.zeros(1, dtype=np.int64)
        self._least = least_similarity

    def link(
        self,
        begin: int,
        active: NDArray[np.bool_],
        sketch: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        entries: NDArray[np.int64],
    ) -> None:
        """Takes the next documents in; arguments as those of `FirstKept.decide`."""
        code = entries & ((1 << _CODE_BITS) - 1)
        most = int(np.max(code, initial=0, where=code != _CHAIN) + 1) * int(np.diff(offsets).max(initial=0))
        _link(
            begin, active, as_words(sketch), offsets, entries, self._slots, self._sketches, self._numbers,
            self._parents, self._starts, self._entries, self._ranks, self._least, np.empty(most + 1, dtype=np.int64),
        )  # fmt: skip

    def decide(self, active: NDArray[np.bool_], offsets: NDArray[np.int64]) -> Decisions:
        """Decides the next documents.

        Args:
            active: as given to `link`.
            offsets: as given to `link`.
        """
        decisions = Decisions.kept(active.size)
        _decide_components(
            active, offsets, self._sketches, self._numbers, self._parents, self._starts, self._entries, self._decided,
            decisions.duplicate_of, decisions.similarity, decisions.exact, decisions.bands_met,
        )  # fmt: skip
        return decisions


@njit(cache=True, nogil=True)
def _similarity(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> float:
    """Of one pair of sketches as words; see `dqs.index.signature.similarity`."""
    same, both, either = pair_agreements(left, right)
    if either == 0:
        return np.nan
    return min(max((3 * same - both) / (2 * either), 0.0), 1.0)


@njit(cache=True, nogil=True)
def _decide_first(
    begin: int,
    active: NDArray[np.bool_],
    sketch: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entries: NDArray[np.int64],
    slots: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    numbers: NDArray[np.int64],
    ranks: NDArray[np.int64],
    least: float,
    candidates: NDArray[np.int64],
    met: NDArray[np.int64],
    max_verified: int,
    duplicate_of: NDArray[np.int64],
    similarities: NDArray[np.float64],
    exact: NDArray[np.bool_],
    bands_met: NDArray[np.int32],
) -> None:
    """The pass of `FirstKept`. A group's first slot counts those that are registered, the next ones name them."""
    for document in range(active.size):
        first, end = offsets[document], offsets[document + 1]
        if not active[document] or first == end:
            continue
        hashed = np.int64(-1)
        if entries[first] & 255 == _EXACT:
            hashed = entries[first] >> _CODE_BITS
            first += 1
        if hashed >= 0 and slots[hashed] > 0:
            rank = np.int64(slots[hashed + 1])
            times = np.int64(0)
            for entry in range(first, end):
                place = entries[entry] >> _CODE_BITS
                for slot in range(place + 1, place + 1 + np.int64(slots[place])):
                    times += 1 if slots[slot] == rank else 0
            duplicate_of[document] = numbers[rank]
            similarities[document] = 1.0
            exact[document] = True
            bands_met[document] = times
            continue
        count = 0
        for entry in range(first, end):
            place = entries[entry] >> _CODE_BITS
            for slot in range(place + 1, place + 1 + np.int64(slots[place])):
                candidates[count] = slots[slot]
                count += 1
        if count > 1:
            candidates[:count].sort()
        # Each candidate once, and in how many bands it was met.
        distinct = 0
        for position in range(count):
            if distinct and candidates[distinct - 1] == candidates[position]:
                met[distinct - 1] += 1
            else:
                candidates[distinct] = candidates[position]
                met[distinct] = 1
                distinct += 1
        best = np.int64(-1)
        best_similarity = -1.0
        verified = 0
        wanted = end - first if distinct > max_verified else np.int64(0)
        while verified < max_verified and wanted >= 0:
            # With few candidates all are verified in one round, else one round for every number of bands.
            for position in range(distinct):
                if wanted and met[position] != wanted:
                    continue
                if verified == max_verified:
                    break
                verified += 1
                rank = candidates[position]
                value = _similarity(sketch[document], sketches[rank])
                if value > best_similarity or (value == best_similarity and rank < candidates[best]):
                    best, best_similarity = np.int64(position), value
            wanted -= 1
            if wanted == 0:
                break
        if best >= 0 and best_similarity >= least:
            duplicate_of[document] = numbers[candidates[best]]
            similarities[document] = best_similarity
            bands_met[document] = met[best]
            continue
        rank = ranks[0]
        ranks[0] = rank + 1
        numbers[rank] = begin + document
        sketches[rank] = sketch[document]
        if hashed >= 0:
            slots[hashed] = 1
            slots[hashed + 1] = rank
        for entry in range(first, end):
            place = entries[entry] >> _CODE_BITS
            taken = np.int64(slots[place])
            if taken < entries[entry] & 255:
                slots[place + 1 + taken] = rank
                slots[place] = taken + 1


@njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int64], rank: np.int64) -> np.int64:
    """The earliest member of a rank's component so far; shortens the way there."""
    while parents[rank] != rank:
        parents[rank] = parents[parents[rank]]
        rank = parents[rank]
    return rank


@njit(cache=True, nogil=True)
def _join(parents: NDArray[np.int64], one: np.int64, other: np.int64) -> None:
    one, other = _root(parents, one), _root(parents, other)
    parents[max(one, other)] = min(one, other)


@njit(cache=True, nogil=True)
def _link(
    begin: int,
    active: NDArray[np.bool_],
    sketch: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entries: NDArray[np.int64],
    slots: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    numbers: NDArray[np.int64],
    parents: NDArray[np.int64],
    starts: NDArray[np.int64],
    all_entries: NDArray[np.int64],
    ranks: NDArray[np.int64],
    least: float,
    candidates: NDArray[np.int64],
) -> None:
    """The first pass of `Components`. Pairs that are connected already are not compared, which changes nothing."""
    for document in range(active.size):
        first, end = offsets[document], offsets[document + 1]
        if not active[document] or first == end:
            continue
        rank = ranks[0]
        ranks[0] = rank + 1
        numbers[rank] = begin + document
        sketches[rank] = sketch[document]
        parents[rank] = rank
        starts[rank + 1] = starts[rank] + end - first
        all_entries[starts[rank] : starts[rank + 1]] = entries[first:end]
        count = 0
        for entry in range(first, end):
            place = entries[entry] >> _CODE_BITS
            code = entries[entry] & 255
            taken = np.int64(slots[place])
            if code == _EXACT:
                if taken:
                    _join(parents, rank, np.int64(slots[place + 1]))
                else:
                    slots[place] = 1
                    slots[place + 1] = rank
                continue
            for slot in range(place + 1, place + 1 + taken):
                candidates[count] = slots[slot]
                count += 1
            if code == _CHAIN:
                slots[place] = 1
                slots[place + 1] = rank
            elif taken < code:
                slots[place] = taken + 1
                slots[place + 1 + taken] = rank
        for position in range(count):
            other = candidates[position]
            if (
                _root(parents, rank) != _root(parents, other)
                and _similarity(sketch[document], sketches[other]) >= least
            ):
                _join(parents, rank, other)


@njit(cache=True, nogil=True)
def _decide_components(
    active: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    sketches: NDArray[np.uint64],
    numbers: NDArray[np.int64],
    parents: NDArray[np.int64],
    starts: NDArray[np.int64],
    entries: NDArray[np.int64],
    decided: NDArray[np.int64],
    duplicate_of: NDArray[np.int64],
    similarities: NDArray[np.float64],
    exact: NDArray[np.bool_],
    bands_met: NDArray[np.int32],
) -> None:
    """The second pass of `Components`."""
    for document in range(active.size):
        if not active[document] or offsets[document] == offsets[document + 1]:
            continue
        rank = decided[0]
        decided[0] = rank + 1
        root = _root(parents, rank)
        if root == rank:
            continue
        duplicate_of[document] = numbers[root]
        similarities[document] = _similarity(sketches[rank], sketches[root])
        one, other = starts[rank], starts[root]
        while one < starts[rank + 1] and other < starts[root + 1]:
            if entries[one] == entries[other]:
                if entries[one] & 255 == _EXACT:
                    exact[document] = True
                    similarities[document] = 1.0
                else:
                    bands_met[document] += 1
            left, right = entries[one], entries[other]
            one += 1 if left <= right else 0
            other += 1 if right <= left else 0
