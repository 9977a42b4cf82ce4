"""A message that comes again is told from another one under the same number."""

from __future__ import annotations

import pytest

from dqs.data import Documents
from dqs.server.sessions import _fingerprint

IDS = [f"document-{i}" for i in range(8)]
TEXTS = [bytes([65 + i]) * length for i, length in enumerate((0, 1, 7, 8, 487, 488, 489, 5000))]
LANGUAGES = ["", "en", "zh", "", "", "", "", "de"]


def documents() -> Documents:
    return Documents(list(IDS), list(TEXTS), list(LANGUAGES))


def test_the_same_documents_have_the_same_fingerprint() -> None:
    copied = Documents(list(IDS), [bytes(bytearray(text)) for text in TEXTS], list(LANGUAGES))
    assert _fingerprint(copied) == _fingerprint(documents())
    assert _fingerprint(Documents([], [], [])) == _fingerprint(Documents([], [], []))


@pytest.mark.parametrize("place", range(1, 8))
def test_one_other_byte_is_seen(place: int) -> None:
    other = documents()
    other.texts[place] = other.texts[place][:-1] + b"!"
    assert _fingerprint(other) != _fingerprint(documents())


def test_other_ids_languages_lengths_and_orders_are_seen() -> None:
    ids, languages, cut, swapped, fewer = (documents() for _ in range(5))
    ids.ids[0] = "another"
    languages.languages[0] = "fr"
    cut.texts[6], cut.texts[7] = cut.texts[6] + cut.texts[7][:1], cut.texts[7][1:]
    swapped.texts[3], swapped.texts[4] = swapped.texts[4], swapped.texts[3]
    seen = {_fingerprint(some) for some in (documents(), ids, languages, cut, swapped, fewer[:7])}
    assert len(seen) == 6
