"""Signatures against plain-Python definitions: tokens, shingles, text hash, estimate, bands."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dqs.index.bands import Banding, band_keys, choose_banding
from dqs.index.signature import (
    SHINGLE_TOKENS,
    UNSPACED_SHARE,
    SignatureParameters,
    Signatures,
    minhashes,
    permutation_multipliers,
    sign,
    text_hashes,
)
from dqs.text import CharClass, TextBatch
from tests.unit.awkward import INVALID_BYTES, texts

PARAMETERS = SignatureParameters()

ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody in the village was surprised by it."
CHINESE = "敏捷的棕色狐狸跳过了懒狗，村里没有一个人感到惊讶，第3次也是如此。"


def batch_of(*documents: str) -> TextBatch:
    return TextBatch.from_bytes([document.encode() for document in documents])


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def plain_tokens(text: str) -> list[str]:
    """Tokens by their definition, with the class table's word on which scripts have no spaces."""
    characters = [character for character in folded(text) if character.isalnum() or character == "_"]
    classes = batch_of("".join(characters)).classes
    unspaced = int(np.count_nonzero(classes & CharClass.UNSPACED))
    if characters and unspaced >= UNSPACED_SHARE * len(characters):
        return characters
    return re.findall(r"\w+", folded(text))


def plain_jaccard(a: str, b: str) -> float:
    sets = []
    for text in (a, b):
        tokens = plain_tokens(text)
        sets.append({tuple(tokens[start : start + 5]) for start in range(len(tokens) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def murmur3_x64_128(data: bytes) -> tuple[int, int]:
    """MurmurHash3_x64_128, seed 0, for data in whole four-byte words."""
    mask = (1 << 64) - 1
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(value: int, by: int) -> int:
        return ((value << by) | (value >> (64 - by))) & mask

    def final(value: int) -> int:
        value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCD & mask
        value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53 & mask
        return value ^ (value >> 33)

    h1 = h2 = 0
    whole = len(data) // 16 * 16
    for start in range(0, whole, 16):
        k1 = int.from_bytes(data[start : start + 8], "little")
        k2 = int.from_bytes(data[start + 8 : start + 16], "little")
        h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & mask
        h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & mask
    k1 = int.from_bytes(data[whole : whole + 8], "little")
    k2 = int.from_bytes(data[whole + 8 :], "little")
    h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
    h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & mask
    h2 = (h2 + h1) & mask
    h1, h2 = final(h1), final(h2)
    h1 = (h1 + h2) & mask
    return h1, (h2 + h1) & mask


def numbered_texts(shared: int, own: int, seed: int, *, chinese: bool) -> tuple[str, str]:
    """Two texts of random words with a common beginning of `shared` words and `own` words each after it."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, 20_000, size=shared + 2 * own)
    words = [chr(0x4E00 + number) if chinese else f"w{number}" for number in numbers.tolist()]
    separator = "" if chinese else " "
    return separator.join(words[: shared + own]), separator.join(words[:shared] + words[shared + own :])


@given(texts)
def test_tokens_are_those_of_the_definition(text: str) -> None:
    tokens = plain_tokens(text)
    rebuilt = " , ".join(tokens)
    assume(folded(rebuilt) == rebuilt)
    minima, shingles = minhashes(batch_of(text, rebuilt), PARAMETERS)
    assert shingles.tolist() == [max(0, len(tokens) - SHINGLE_TOKENS + 1)] * 2
    assert np.array_equal(minima[0], minima[1])


@given(texts)
def test_text_hash_is_murmur3_of_the_normalised_text(text: str) -> None:
    normalised = " ".join(folded(text).split())
    expected = murmur3_x64_128(normalised.encode("utf-32-le")) if normalised else (0, 0)
    assert tuple(text_hashes(batch_of(text))[0].tolist()) == expected


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_text_hash_ignores_case_width_and_white_space_only(text: str) -> None:
    same = [text.upper(), f"\n\t {text}\u3000", text.replace(" ", " \r\n "), text.replace("，", ",").replace("3", "３")]
    other = [text[:-1], text + "!", text.replace("o", "0").replace("的", "地")]
    hashes = text_hashes(batch_of(text, *same, *other))
    assert (hashes[1:5] == hashes[0]).all()
    assert len({tuple(row) for row in hashes.tolist()}) == 1 + len(other)


@given(st.lists(st.one_of(texts.map(str.encode), st.sampled_from(INVALID_BYTES)), max_size=6), st.data())
def test_signatures_do_not_depend_on_the_batch(documents: list[bytes], data: st.DataObject) -> None:
    whole = sign(TextBatch.from_bytes(documents), PARAMETERS)
    cut = data.draw(st.integers(0, len(documents)))
    for part, where in ((documents[:cut], slice(0, cut)), (documents[cut:], slice(cut, None))):
        signed = sign(TextBatch.from_bytes(part), PARAMETERS)
        expected = whole[where]
        assert len(signed) == len(expected) == len(part)
        for name in ("shingles", "text_hash", "sketch"):
            assert np.array_equal(getattr(signed, name), getattr(expected, name)), name
        has = signed.shingles > 0
        assert np.array_equal(signed.bands[has], expected.bands[has])


@pytest.mark.parametrize(
    "text", ["", " \n\u3000", "one two three four", "一二三四", "!!! ??? …… ，。", "😀 😀 😀 😀 😀 😀"]
)
def test_fewer_than_five_tokens_have_no_signature(text: str) -> None:
    signatures = sign(batch_of(text), PARAMETERS)
    assert signatures.shingles.tolist() == [0]
    assert not signatures.sketch.any()
    assert signatures.text_hash.any() == bool(text.strip())


@pytest.mark.parametrize("document", INVALID_BYTES)
def test_invalid_documents_are_empty_texts(document: bytes) -> None:
    signatures = sign(TextBatch.from_bytes([document]), PARAMETERS)
    assert signatures.shingles.tolist() == [0]
    assert not signatures.text_hash.any()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("five plain English words here", 5),
        ("state-of-the-art isn't", 6),
        ("snake_case __init__ v1.2 café naïve", 6),
        ("中文没有空格", 6),
        ("数据库TiDB是6个字", 11),
        ("１２３ ＡＢＣ ①②③ x y", 5),
        ("カタカナ ﾊﾝｶｸ", 8),
    ],
)
def test_token_counts(text: str, tokens: int) -> None:
    assert len(plain_tokens(text)) == tokens
    _, shingles = minhashes(batch_of(text), PARAMETERS)
    assert shingles.tolist() == [tokens - 4]


def test_the_share_of_unspaced_characters_chooses_the_tokens() -> None:
    # 40 Latin letters in 8 words, then 9 or 10 characters of Chinese in one run: just under and at one fifth.
    latin = " ".join(["abcde"] * 8)
    _, shingles = minhashes(batch_of(f"{latin} 一二三四五六七八九", f"{latin} 一二三四五六七八九十"), PARAMETERS)
    assert shingles.tolist() == [9 - 4, 50 - 4]


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_estimate_is_close_to_true_jaccard(bits: int, chinese: bool) -> None:
    parameters = SignatureParameters(bits=bits)
    errors, deviations = [], []
    for seed in range(80):
        a, b = numbered_texts(shared=10 + 7 * seed, own=1 + (seed * 13) % 90, seed=seed, chinese=chinese)
        true = plain_jaccard(a, b)
        sketches = sign(batch_of(a, b), parameters).sketch
        differ = np.bitwise_xor(sketches[0], sketches[1])
        mask = (1 << bits) - 1
        agreements = sum(int(np.count_nonzero((differ >> shift) & mask == 0)) for shift in range(0, 8, bits))
        errors.append(float(parameters.similarity(np.array([agreements]))[0]) - true)
        chance = 2.0**-bits
        agree = true + (1 - true) * chance
        deviations.append(np.sqrt(agree * (1 - agree) / parameters.permutations) / (1 - chance) + 1e-9)
    normalised = np.array(errors) / np.array(deviations)
    assert np.abs(normalised).max() < 4.5
    assert np.abs(normalised.mean()) < 4.0 / np.sqrt(normalised.size)
    assert 0.7 < normalised.std() < 1.3


@pytest.mark.parametrize("chinese", [False, True])
def test_documents_meet_in_a_band_as_often_as_theory_says(chinese: bool) -> None:
    parameters = SignatureParameters(permutations=128, bands=16, rows=3, bits=8)
    met, expected = [], []
    for seed in range(120):
        a, b = numbered_texts(shared=60, own=20, seed=1000 + seed, chinese=chinese)
        bands = sign(batch_of(a, b), parameters).bands
        met.append(np.count_nonzero(bands[0] == bands[1]))
        expected.append(parameters.bands * plain_jaccard(a, b) ** parameters.rows)
    assert np.mean(met) == pytest.approx(np.mean(expected), rel=0.15)


def test_equal_minima_in_two_bands_give_unequal_keys() -> None:
    keys = band_keys(np.full((1, 60), 7, dtype=np.uint32), np.ones(1, dtype=np.int32), 12, 5)
    assert np.unique(keys).size == 12


@given(st.floats(0.3, 0.95), st.floats(0.7, 0.99))
def test_chosen_bands_reach_the_recall(threshold: float, recall: float) -> None:
    banding = choose_banding(threshold, permutations=256, recall=recall)
    assert banding.bands * banding.rows <= 256
    assert banding.meeting_probability(threshold) >= recall
    assert Banding(banding.bands - 1, banding.rows).meeting_probability(threshold) < recall


@pytest.mark.parametrize(("threshold", "permutations"), [(0.3, 8), (0.0, 256), (1.1, 256)])
def test_impossible_bands_are_refused(threshold: float, permutations: int) -> None:
    with pytest.raises(ValueError, match=r"threshold|permutations"):
        choose_banding(threshold, permutations=permutations)


def test_default_parameters_are_those_chosen_for_their_threshold() -> None:
    assert SignatureParameters.for_threshold(0.75) == SignatureParameters()


@given(st.sampled_from([1, 2, 4, 8]), st.floats(0.05, 1.0))
def test_fewest_agreements_reach_the_threshold(bits: int, threshold: float) -> None:
    parameters = SignatureParameters(bits=bits, threshold=threshold)
    fewest = parameters.min_agreements
    assert parameters.similarity(np.array([fewest]))[0] >= threshold - 1e-6
    assert fewest == 0 or parameters.similarity(np.array([fewest - 1]))[0] < threshold


@pytest.mark.parametrize(
    "wrong", [{"bits": 3}, {"permutations": 100}, {"bands": 100, "rows": 5}, {"rows": 0}, {"threshold": 0.0}]
)
def test_wrong_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|fit"):
        SignatureParameters(**wrong)  # type: ignore[arg-type]


def test_the_seed_changes_the_permutations_and_nothing_else() -> None:
    first, second = (sign(batch_of(ENGLISH), SignatureParameters(seed=seed)) for seed in (1, 2))
    assert not np.array_equal(first.sketch, second.sketch)
    assert np.array_equal(first.text_hash, second.text_hash)
    assert permutation_multipliers(3, 1).tolist() == permutation_multipliers(4, 1).tolist()[:3]


def test_signatures_are_the_same_on_every_machine() -> None:
    # Corpora outlive processes: a change of these bytes needs a new name of the normaliser or the format.
    signatures = sign(batch_of(ENGLISH, CHINESE), PARAMETERS)
    assert [row.tobytes()[:8].hex() for row in signatures.sketch] == ["635443ffde44aea2", "28e4bc18fdf4d16d"]
    assert signatures.bands[:, 0].tolist() == [636518396, 3738657025]
    assert [f"{high:016x}" for high in signatures.text_hash[:, 0].tolist()] == ["3e7a14e06e7b9f1e", "fab03e56b6b2e06c"]


def test_signatures_are_sliced_like_arrays() -> None:
    signatures = sign(batch_of(ENGLISH, CHINESE, ""), PARAMETERS)
    chosen: Signatures = signatures[np.array([2, 0])]
    assert chosen.shingles.tolist() == [0, signatures.shingles[0]]
    assert np.array_equal(chosen.sketch[1], signatures.sketch[0])
    assert len(signatures[np.array([False, True, False])]) == 1
