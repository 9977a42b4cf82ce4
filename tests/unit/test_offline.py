"""Duplicates of a whole collection: against the rules in plain Python, document by document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqs.index.bands import MAX_SAME, MAX_VERIFIED
from dqs.index.offline import (
    Components,
    Decisions,
    FirstKept,
    find_groups,
    find_repeats,
    in_memory,
    route,
    sorted_runs,
)
from dqs.index.signature import SignatureParameters, Signatures, similarity

THRESHOLD = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """Signatures made up at random: few band keys, so that many documents meet.

    Attributes:
        ids: int64[n]; some come again.
        signatures: of the documents; equal texts have equal ones.
    """

    ids: NDArray[np.int64]
    signatures: Signatures


def make(seed: int, n: int, texts: int, alphabet: int, bands: int, flips: float, families: int) -> Collection:
    """A collection of `n` documents of `texts` texts: text 0 is empty, the next few are tiny."""
    rng = np.random.default_rng(seed)
    parameters = SignatureParameters(bands=bands, rows=1, bins=32, threshold=THRESHOLD)
    text_hash = rng.integers(1, 1 << 63, (texts, 2)).astype(np.uint64)
    text_hash[0] = 0
    shingles = rng.integers(1, 100, texts).astype(np.int32)
    shingles[: 1 + texts // 10] = 0
    keys = rng.integers(0, alphabet, (texts, bands)).astype(np.uint32) * np.uint32(0xFFFFFFFF // alphabet)
    codes = rng.integers(0, 4, (families, 32))[rng.integers(0, families, texts)]
    codes = np.where(rng.random(codes.shape) < flips, rng.integers(0, 4, codes.shape), codes).astype(np.uint8)
    codes[:, 0] = 1  # no document with shingles has an empty sketch
    sketch = (codes.reshape(texts, 8, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(axis=2).astype(np.uint8)
    sketch[shingles == 0] = 0
    chosen = rng.integers(0, texts, n)
    ids = np.where(rng.random(n) < 0.15, rng.integers(0, max(n, 1), n), np.arange(n))
    lines = np.zeros((n, 32), dtype=np.uint32)
    signatures = Signatures(parameters, shingles[chosen], text_hash[chosen], keys[chosen], sketch[chosen], lines)
    return Collection(ids, signatures)


collections = st.builds(
    make,
    seed=st.integers(0, 1 << 32),
    n=st.integers(0, 160),
    texts=st.integers(1, 200),
    alphabet=st.integers(1, 6),
    bands=st.integers(1, 6),
    flips=st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    families=st.integers(1, 4),
)

Answer = tuple[str, int, float, bool, int]
"""keep, duplicate or reused; the document named or -1; similarity; exact; bands met."""


def expected(collection: Collection, max_same: int = MAX_SAME, max_verified: int = MAX_VERIFIED) -> list[Answer]:
    """The rules of `FirstKept`, as they are written down."""
    signed = collection.signatures
    answers: list[Answer] = []
    first_of_id: dict[int, int] = {}
    kept_of_hash: dict[tuple[int, int], int] = {}
    registered: dict[tuple[int, int], list[int]] = {}
    for document in range(len(signed)):
        text = (int(signed.text_hash[document, 0]), int(signed.text_hash[document, 1]))
        id_ = int(collection.ids[document])
        if id_ in first_of_id:
            first = first_of_id[id_]
            same = (signed.text_hash[first] == signed.text_hash[document]).all()
            answers.append(answers[first] if same else ("reused", -1, 0.0, False, 0))
            continue
        first_of_id[id_] = document
        keys = list(enumerate(signed.bands[document].tolist())) if signed.shingles[document] > 0 else []
        met: dict[int, int] = {}
        for key in keys:
            for candidate in registered.get(key, []):
                met[candidate] = met.get(candidate, 0) + 1
        if text != (0, 0) and text in kept_of_hash:
            kept = kept_of_hash[text]
            answers.append(("duplicate", kept, 1.0, True, met.get(kept, 0)))
            continue
        best, best_similarity = -1, -1.0
        for candidate in sorted(sorted(met, key=lambda one: (-met[one], one))[:max_verified]):
            pair = signed.sketch[[document]], signed.sketch[[candidate]]
            value = float(similarity(*pair)[0])
            if value > best_similarity:
                best, best_similarity = candidate, value
        if best >= 0 and signed.parameters.is_near(np.array([best_similarity]))[0]:
            answers.append(("duplicate", best, best_similarity, False, met[best]))
            continue
        answers.append(("keep", -1, 0.0, False, 0))
        if text != (0, 0):
            kept_of_hash[text] = document
        for key in keys:
            if len(registered.setdefault(key, [])) < max_same:
                registered[key].append(document)
    return answers


def connected(collection: Collection) -> list[Answer]:
    """The rules of `Components`, on a graph of all pairs."""
    signed = collection.signatures
    first_of_id: dict[int, int] = {}
    for document, id_ in enumerate(collection.ids.tolist()):
        first_of_id.setdefault(id_, document)
    nodes = sorted(first_of_id.values())
    neighbours: dict[int, set[int]] = {document: set() for document in nodes}

    def connect(left: int, right: int) -> None:
        neighbours[left].add(right)
        neighbours[right].add(left)

    texts: dict[tuple[int, ...], list[int]] = {}
    groups: dict[tuple[int, int], list[int]] = {}
    for document in nodes:
        if signed.text_hash[document].any():
            texts.setdefault(tuple(signed.text_hash[document].tolist()), []).append(document)
        if signed.shingles[document] > 0:
            for key in enumerate(signed.bands[document].tolist()):
                groups.setdefault(key, []).append(document)
    for members in texts.values():
        for right in members[1:]:
            connect(members[0], right)
    for key, members in groups.items():
        # How many share a key is counted with the rows whose ids came before.
        chain = shared(collection, key) > MAX_SAME
        for at, right in enumerate(members):
            for left in members[max(at - 1, 0) : at] if chain else members[:at]:
                if float(similarity(signed.sketch[[left]], signed.sketch[[right]])[0]) >= THRESHOLD - 1e-9:
                    connect(left, right)
    head: dict[int, int] = {}
    for document in nodes:
        waiting = [document] if document not in head else []
        while waiting:
            one = waiting.pop()
            if one not in head:
                head[one] = document
                waiting.extend(neighbours[one])
    answers: list[Answer] = []
    for document, id_ in enumerate(collection.ids.tolist()):
        first = first_of_id[id_]
        if (signed.text_hash[first] != signed.text_hash[document]).any():
            answers.append(("reused", -1, 0.0, False, 0))
        elif head[first] == first:
            answers.append(("keep", -1, 0.0, False, 0))
        else:
            named = head[first]
            exact = bool((signed.text_hash[first] == signed.text_hash[named]).all())
            value = 1.0 if exact else float(similarity(signed.sketch[[first]], signed.sketch[[named]])[0])
            met = int((signed.bands[first] == signed.bands[named]).sum()) if signed.shingles[first] > 0 else 0
            answers.append(("duplicate", named, value, exact, met))
    return answers


def shared(collection: Collection, key: tuple[int, int]) -> int:
    band, value = key
    signed = collection.signatures
    return int(((signed.bands[:, band] == value) & (signed.shingles > 0)).sum())


def answered(
    collection: Collection,
    method: str = "first",
    ranges: int = 1,
    run: int = 1000,
    max_same: int = MAX_SAME,
    max_verified: int = MAX_VERIFIED,
) -> list[Answer]:
    """The module's answers, with keys cut into ranges and documents into runs."""
    signed = collection.signatures
    n, parameters = len(signed), signed.parameters
    documents = np.arange(n)
    id_hash = np.stack([collection.ids, collection.ids], axis=1).astype(np.uint64)
    repeats, first, same = find_repeats(id_hash, signed.text_hash, documents)
    repeat_of = np.full(n, -1, dtype=np.int64)
    repeat_of[repeats] = first
    reused = np.zeros(n, dtype=np.bool_)
    reused[repeats] = ~same
    groups, place = [], 0
    kinds: list[tuple[list[NDArray[Any]], NDArray[np.bool_], int, bool]] = [
        ([signed.text_hash[:, 0], signed.text_hash[:, 1]], np.asarray(signed.text_hash.any(axis=1)), 64, True)
    ]
    kinds += [([signed.bands[:, band]], signed.shingles > 0, 32, False) for band in range(parameters.bands)]
    for keys, there, bits, exact in kinds:
        for number in range(ranges):
            low, high = (number << bits) // ranges, ((number + 1) << bits) // ranges
            inside = [low <= int(key) < high for key in keys[0]]
            chosen = there & np.array(inside, dtype=np.bool_)
            found = find_groups(
                [key[chosen] for key in keys],
                documents[chosen],
                exact=exact,
                all_pairs=method == "components",
                max_same=max_same,
            )
            groups.append((found.documents, found.entries, place))
            place += found.slots
    active = repeat_of < 0
    runs = [(begin, min(begin + run, n), *route(groups, begin, min(begin + run, n))) for begin in range(0, n, run)]
    members = sum(int(np.count_nonzero(np.diff(offsets))) for _, _, offsets, _ in runs)
    least, sketch_bytes = parameters.least_similarity, parameters.sketch_bytes
    parts: list[Decisions] = []
    if method == "first":
        first_kept = FirstKept(place, members, sketch_bytes, least, in_memory, max_verified)
        for begin, end, offsets, entries in runs:
            part = first_kept.decide(begin, active[begin:end], signed.sketch[begin:end], offsets, entries)
            parts.append(part)
    else:
        components = Components(place, members, sum(e.size for *_, e in runs), sketch_bytes, least)
        for begin, end, offsets, entries in runs:
            components.link(begin, active[begin:end], signed.sketch[begin:end], offsets, entries)
        parts = [components.decide(active[begin:end], offsets) for begin, end, offsets, _ in runs]
    answers: list[Answer] = []
    for (begin, end, *_), part in zip(runs, parts, strict=True):
        for at in range(end - begin):
            document = begin + at
            if reused[document]:
                answers.append(("reused", -1, 0.0, False, 0))
            elif repeat_of[document] >= 0:
                answers.append(answers[repeat_of[document]])
            elif part.duplicate_of[at] < 0:
                assert np.isnan(part.similarity[at])
                answers.append(("keep", -1, 0.0, bool(part.exact[at]), int(part.bands_met[at])))
            else:
                named, value = int(part.duplicate_of[at]), float(part.similarity[at])
                answers.append(("duplicate", named, value, bool(part.exact[at]), int(part.bands_met[at])))
    return answers


@given(collections, st.integers(1, 5), st.integers(1, 200))
def test_the_first_is_kept_as_by_the_rules(collection: Collection, ranges: int, run: int) -> None:
    assert answered(collection, ranges=ranges, run=run) == expected(collection)


@given(collections, st.integers(1, 4), st.integers(1, 5))
def test_small_limits_are_kept_exactly(collection: Collection, max_same: int, max_verified: int) -> None:
    found = answered(collection, max_same=max_same, max_verified=max_verified)
    assert found == expected(collection, max_same, max_verified)


@given(collections, st.integers(1, 5), st.integers(1, 200))
def test_components_are_those_of_the_graph(collection: Collection, ranges: int, run: int) -> None:
    assert answered(collection, "components", ranges, run) == connected(collection)


def test_both_limits_decide_something() -> None:
    collection = make(seed=0, n=160, texts=400, alphabet=2, bands=4, flips=0.3, families=4)
    found = expected(collection)
    assert found != expected(collection, max_same=200)
    assert found != expected(collection, max_verified=200)
    assert answered(collection) == found
    assert {answer[0] for answer in found} == {"keep", "duplicate", "reused"}


def test_what_is_in_no_group_is_not_touched() -> None:
    groups = find_groups([np.array([3, 5, 3, 7], dtype=np.uint32)], np.array([0, 1, 2, 3]), exact=False)
    assert groups.documents.tolist() == [0, 2]
    assert groups.slots == 2
    offsets, _ = route([(groups.documents, groups.entries, 0)], 1, 4)
    assert offsets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("columns", [1, 2])
def test_no_keys_make_no_runs(columns: int) -> None:
    members, sizes = sorted_runs([np.zeros(0, dtype=np.uint64)] * columns, np.zeros(0, dtype=np.int64))
    assert members.size == sizes.size == 0


def test_text_hashes_that_differ_in_one_half_are_different() -> None:
    keys = [np.array([1, 1, 1], dtype=np.uint64), np.array([2, 9, 2], dtype=np.uint64)]
    assert find_groups(keys, np.arange(3), exact=True).documents.tolist() == [0, 2]
