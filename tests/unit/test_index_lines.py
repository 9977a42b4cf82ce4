"""The table of seen lines against plain Python: counts, shares, and the commands that read and write it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqs.index.connection import Packed
from dqs.index.lines import (
    COMMAND_LINES,
    FIRST_SLOTS,
    SeenLines,
    as_pairs,
    count_seen,
    distinct,
    line_counts,
    reads,
    share_seen,
    writes,
)

WIDTH = 4

hashes = st.one_of(st.integers(1, 9), st.integers(1, 2**32 - 1), st.sampled_from([1, 2**31, 2**32 - 1]))
documents = st.lists(st.sets(hashes, max_size=WIDTH), max_size=8)
"""The lines of some documents."""

apart = st.integers(1, 60).map(lambda number: number | (number * 0x9E3779B9 & 0xFFF00000))
"""Hashes of which no two want the same slots."""


def rows(documents: list[set[int]]) -> NDArray[np.uint32]:
    lines = np.zeros((len(documents), WIDTH), dtype=np.uint32)
    for document, members in enumerate(documents):
        lines[document, : len(members)] = sorted(members)
    return lines


class Table:
    """The table in plain Python: it runs the commands that `reads` and `writes` make."""

    def __init__(self, slots: int = FIRST_SLOTS) -> None:
        self.slots = [0] * slots

    def run(self, packed: Packed) -> list[int]:
        words = iter(parsed(packed))
        answers = []
        for operation in words:
            kind, place = next(words), next(words)
            assert place.startswith(b"#")
            if operation == b"GET":
                assert kind == b"i64"
                first = 2 * int(place[1:])
                value = self.slots[first] << 32 | self.slots[first + 1]
                answers.append(value - (1 << 64) if value >> 63 else value)
            else:
                assert (operation, kind) == (b"SET", b"u32")
                self.slots[int(place[1:])] = int(next(words))
        return answers

    def double(self) -> None:
        self.slots += self.slots

    def see(self, lines: NDArray[np.uint32]) -> SeenLines:
        found, of, first = distinct(lines)
        numbers = [number for packed in reads(found, len(self.slots)) for number in self.run(packed)]
        pairs = as_pairs(numbers)
        return SeenLines(lines, found, of, pairs, len(self.slots), count_seen(lines, found, of, first, pairs))

    def remember(self, seen: SeenLines, kept: NDArray[np.bool_]) -> int:
        unknown = seen.unknown(kept)
        fresh = 0
        for packed, taken in writes(seen.hashes[unknown], seen.pairs[unknown], seen.slots):
            self.run(packed)
            fresh += taken
        return fresh


def parsed(packed: Packed) -> list[bytes]:
    """The arguments, by Redis's protocol: `$length CR LF bytes CR LF` each."""
    words, rest = [], packed.data
    while rest:
        assert rest[:1] == b"$"
        length, _, rest = rest[1:].partition(b"\r\n")
        size = int(length)
        words.append(rest[:size])
        assert rest[size : size + 2] == b"\r\n"
        rest = rest[size + 2 :]
    assert len(words) == packed.count
    return words


@given(documents)
def test_distinct_hashes_and_who_has_them_first(documents: list[set[int]]) -> None:
    lines = rows(documents)
    found, of, first = distinct(lines)
    every = sorted(set().union(*documents))
    assert found.tolist() == every
    assert np.array_equal(found[of[lines > 0]], lines[lines > 0])
    expected = [next(place for place, members in enumerate(documents) if value in members) for value in every]
    assert first.tolist() == expected


@given(documents, st.sets(hashes, max_size=12))
def test_seen_are_lines_of_the_table_and_of_documents_before(documents: list[set[int]], known: set[int]) -> None:
    lines = rows(documents)
    found, of, first = distinct(lines)
    pairs = np.array([[0, value] if value in known else [value ^ 1, 0] for value in found.tolist()], dtype=np.uint32)
    counts = count_seen(lines, found, of, first, pairs.reshape(-1, 2))
    before: set[int] = set(known)
    expected = []
    for members in documents:
        expected.append(len(members & before))
        before |= members
    assert counts.tolist() == expected
    assert counts.dtype == np.uint8


@given(documents, st.data())
def test_share_of_lines_seen(documents: list[set[int]], data: st.DataObject) -> None:
    lines = rows(documents)
    assert line_counts(lines).tolist() == [len(members) for members in documents]
    # A stored count may be of a text that has lost its lines since.
    seen = [data.draw(st.integers(0, 255)) for _ in documents]
    shares = share_seen(np.array(seen, dtype=np.uint8), lines).tolist()
    for share, count, members in zip(shares, seen, documents, strict=True):
        if members:
            assert share == pytest.approx(min(count / len(members), 1.0), rel=1e-6)
        else:
            assert math.isnan(share)


@given(documents, st.data())
def test_written_are_lines_of_kept_documents_that_the_table_lacks(
    documents: list[set[int]], data: st.DataObject
) -> None:
    kept = [data.draw(st.booleans()) for _ in documents]
    lines = rows(documents)
    found, of, first = distinct(lines)
    held = [data.draw(st.booleans()) for _ in found]
    pairs = np.array([[value if has else 0, 7] for value, has in zip(found.tolist(), held, strict=True)], np.uint32)
    pairs = pairs.reshape(-1, 2)
    seen = SeenLines(lines, found, of, pairs, FIRST_SLOTS, count_seen(lines, found, of, first, pairs))
    wanted = set().union(*(members for members, is_kept in zip(documents, kept, strict=True) if is_kept))
    lacking = {value for value, has in zip(found.tolist(), held, strict=True) if not has and value != 7}
    unknown = seen.unknown(np.array(kept, dtype=np.bool_))
    assert set(found[unknown].tolist()) == wanted & lacking


@given(st.lists(hashes, max_size=40, unique=True), st.sampled_from([FIRST_SLOTS, 1 << 22, 1 << 28]))
def test_reads_name_the_pair_of_slots_of_each_hash(values: list[int], slots: int) -> None:
    words = [word for packed in reads(np.array(values, dtype=np.uint32), slots) for word in parsed(packed)]
    places = [word for value in values for word in (b"GET", b"i64", b"#%d" % (value % (slots // 2)))]
    assert words == places


@given(st.lists(st.tuples(hashes, st.integers(0, 9), st.integers(0, 9)), max_size=40, unique_by=lambda line: line[0]))
def test_writes_take_an_empty_slot_or_overwrite_one(lines: list[tuple[int, int, int]]) -> None:
    slots = 1 << 20
    values = np.array([line[0] for line in lines], dtype=np.uint32)
    pairs = np.array([line[1:] for line in lines], dtype=np.uint32).reshape(-1, 2)
    made = list(writes(values, pairs, slots))
    words = [word for packed, _ in made for word in parsed(packed)]
    expected = []
    free = 0
    for value, first, second in lines:
        # Empty, or left by a doubling in the half that it does not belong to.
        open_to = [not other or (other - value) % (slots // 2) != 0 for other in (first, second)]
        side = 0 if open_to[0] else 1 if open_to[1] else value >> 31
        free += any(open_to)
        expected += [b"SET", b"u32", b"#%d" % (2 * (value % (slots // 2)) + side), b"%d" % value]
    assert words == expected
    assert sum(taken for _, taken in made) == free


def test_commands_are_bounded() -> None:
    values = np.arange(1, 2 * COMMAND_LINES + 4, dtype=np.uint32)
    assert [packed.count for packed in reads(values, FIRST_SLOTS)] == [3 * COMMAND_LINES] * 2 + [9]
    pairs = np.zeros((values.size, 2), dtype=np.uint32)
    made = list(writes(values, pairs, FIRST_SLOTS))
    assert [(packed.count, taken) for packed, taken in made] == [(4 * COMMAND_LINES, COMMAND_LINES)] * 2 + [(12, 3)]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))))
def test_numbers_of_redis_are_two_slots_each(pairs: list[tuple[int, int]]) -> None:
    numbers = [int.from_bytes((first << 32 | second).to_bytes(8, "big"), "big", signed=True) for first, second in pairs]
    assert as_pairs(numbers).tolist() == [list(pair) for pair in pairs]


@given(st.lists(st.lists(st.sets(apart, max_size=WIDTH), max_size=5), max_size=4), st.data())
def test_a_table_with_room_knows_the_lines_of_kept_documents(
    batches: list[list[set[int]]], data: st.DataObject
) -> None:
    table = Table(128)
    known: set[int] = set()
    for documents in batches:
        if data.draw(st.booleans()):
            table.double()
        kept = [data.draw(st.booleans()) for _ in documents]
        seen = table.see(rows(documents))
        before = set(known)
        for members, count in zip(documents, seen.counts.tolist(), strict=True):
            assert count == len(members & before)
            before |= members
        table.remember(seen, np.array(kept, dtype=np.bool_))
        for members, is_kept in zip(documents, kept, strict=True):
            known |= members if is_kept else set()


def test_a_full_table_forgets_and_knows_the_latest() -> None:
    table = Table(64)
    random = np.random.default_rng(1)
    fresh = 0
    for _ in range(200):
        lines = random.integers(1, 2**32, size=(1, WIDTH), dtype=np.uint32)
        fresh += table.remember(table.see(lines), np.ones(1, dtype=np.bool_))
        # Two lines of one document may want the same two slots.
        assert table.see(lines).counts[0] >= WIDTH - 2
    assert fresh >= 64 == sum(1 for slot in table.slots if slot)
