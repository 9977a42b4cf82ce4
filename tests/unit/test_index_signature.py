"""Signatures against plain-Python definitions: tokens, shingles, hashes of texts and lines, estimate, bands."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqs.index.bands import Banding, band_keys, choose_banding
from dqs.index.signature import (
    LINES,
    NORMALISERS,
    SHINGLE_TOKENS,
    UNSPACED_SHARE,
    Normaliser,
    SignatureParameters,
    Signatures,
    agreements,
    permutation_multipliers,
    sign,
    similarity,
    similarity_of,
)
from dqs.text import CharClass, TextBatch
from dqs.text.simplified import simplified_table
from dqs.text.unicode_tables import unicode_tables
from tests.unit.awkward import INVALID_BYTES, texts

PARAMETERS = SignatureParameters()
LOWER = SignatureParameters(normaliser="lower/1")
SIMPLIFIED = SignatureParameters(normaliser="nfkc-lower-simplified/1")
MASK = (1 << 64) - 1

ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody in the village was surprised by it."
CHINESE = "敏捷的棕色狐狸跳过了懒狗，村里没有一个人感到惊讶，第3次也是如此。"
TRADITIONAL = "敏捷的棕色狐狸跳過了懶狗，村裡沒有一個人感到驚訝，第3次也是如此。"

normalisers = st.sampled_from([PARAMETERS, LOWER, SIMPLIFIED])


def batch_of(*documents: str) -> TextBatch:
    return TextBatch.from_bytes([document.encode() for document in documents])


def signed(*documents: str, parameters: SignatureParameters = PARAMETERS) -> Signatures:
    return sign(batch_of(*documents), parameters)


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def normalised(text: str, normaliser: Normaliser = "nfkc-lower/1") -> str:
    if normaliser == "lower/1":
        return "".join(character.lower() if len(character.lower()) == 1 else character for character in text)
    if normaliser == "nfkc-lower-simplified/1":
        table = simplified_table()
        return "".join(chr(table[ord(character)]) for character in folded(text))
    return folded(text)


def plain_tokens(text: str, normaliser: Normaliser = "nfkc-lower/1") -> list[str]:
    """Tokens by their definition, with the class table's word on which scripts have no spaces."""
    characters = [character for character in normalised(text, normaliser) if character.isalnum() or character == "_"]
    classes = batch_of("".join(characters)).classes
    unspaced = int(np.count_nonzero(classes & CharClass.UNSPACED))
    if characters and unspaced >= UNSPACED_SHARE * len(characters):
        return characters
    return re.findall(r"\w+", normalised(text, normaliser))


def plain_shingles(text: str) -> set[tuple[str, ...]]:
    tokens = plain_tokens(text)
    return {tuple(tokens[start : start + 5]) for start in range(len(tokens) - 4)}


def plain_jaccard(a: str, b: str) -> float:
    left, right = plain_shingles(a), plain_shingles(b)
    return len(left & right) / len(left | right)


def mixed(value: int) -> int:
    """The finaliser of MurmurHash3."""
    value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCD & MASK
    value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ (value >> 33)


def fnv(text: str, offset: int, prime: int) -> int:
    """FNV-1a over code points, mixed at the end."""
    value = offset
    for character in text:
        value = (value ^ ord(character)) * prime & MASK
    return mixed(value)


def plain_text_hash(text: str, normaliser: Normaliser) -> tuple[int, int]:
    words = " ".join(normalised(text, normaliser).split())
    if not words:
        return 0, 0
    return (
        fnv(words, 0xCBF29CE484222325, 0x00000100000001B3),
        fnv(words, 0x6C62272E07BB0142, 0xD6E8FEB86659FD93),
    )


def plain_lines(text: str) -> list[int]:
    """The hashes of a text's lines by their definition, the smallest first."""
    found = set()
    lines = text.split("\n")
    ended = len(lines) - 1
    for number, line in enumerate(lines):
        line = line.removesuffix("\r") if number < ended else line
        flags = unicode_tables().classes[np.array([ord(character) for character in line], dtype=np.int64)].tolist()
        kept, letters = [], 0
        for character, flag in zip(line, flags, strict=True):
            letters += bool(flag & CharClass.LETTER)
            alone = folded(character)
            if flag & CharClass.WORD:
                kept.append("0" if flag & CharClass.DIGIT else alone if len(alone) == 1 else character)
        if letters:
            found.add(max(fnv("".join(kept), 0xCBF29CE484222325, 0x00000100000001B3) >> 32, 1))
    return sorted(found)[:LINES]


def line_hashes(*documents: str) -> list[list[int]]:
    return [[value for value in row if value] for row in signed(*documents).lines.tolist()]


def plain_similarity(left: bytes, right: bytes) -> float:
    codes = [[(byte >> shift) & 3 for byte in sketch for shift in (0, 2, 4, 6)] for sketch in (left, right)]
    pairs = list(zip(*codes, strict=True))
    either = sum(1 for a, b in pairs if a or b)
    both = sum(1 for a, b in pairs if a and b)
    same = sum(1 for a, b in pairs if a and a == b)
    return min(max((same - (both - same) / 2) / either, 0.0), 1.0) if either else float("nan")


def estimate(a: str, b: str, parameters: SignatureParameters = PARAMETERS) -> float:
    sketches = signed(a, b, parameters=parameters).sketch
    return float(similarity(sketches[:1], sketches[1:])[0])


def numbered_texts(shared: int, own: int, seed: int, *, chinese: bool) -> tuple[str, str]:
    """Two texts of random words with a common beginning of `shared` words and `own` words each after it."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, 20_000, size=shared + 2 * own)
    words = [chr(0x4E00 + number) if chinese else f"w{number}" for number in numbers.tolist()]
    separator = "" if chinese else " "
    return separator.join(words[: shared + own]), separator.join(words[:shared] + words[shared + own :])


def same_shingles(signatures: Signatures) -> bool:
    """Whether all documents have the same set of shingles, as far as sketches and bands tell."""
    return bool((signatures.sketch == signatures.sketch[0]).all() and (signatures.bands == signatures.bands[0]).all())


@given(texts, normalisers)
def test_tokens_are_those_of_the_definition(text: str, parameters: SignatureParameters) -> None:
    tokens = plain_tokens(text, parameters.normaliser)
    rebuilt = " , ".join(tokens)
    assume(normalised(rebuilt, parameters.normaliser) == rebuilt)
    signatures = signed(text, rebuilt, parameters=parameters)
    assert signatures.shingles.tolist() == [max(0, len(tokens) - SHINGLE_TOKENS + 1)] * 2
    assert same_shingles(signatures)


@given(texts, normalisers)
def test_text_hash_is_that_of_the_normalised_text(text: str, parameters: SignatureParameters) -> None:
    found = signed(text, parameters=parameters).text_hash[0].tolist()
    assert tuple(found) == plain_text_hash(text, parameters.normaliser)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_text_hash_ignores_case_width_and_white_space_only(text: str) -> None:
    same = [text.upper(), f"\n\t {text}\u3000", text.replace(" ", " \r\n "), text.replace("，", ",").replace("3", "３")]
    other = [text[:-1], text + "!", text.replace("o", "0").replace("的", "地"), " ".join(text), text[::-1]]
    hashes = signed(text, *same, *other).text_hash
    assert (hashes[1:5] == hashes[0]).all()
    for half in (0, 1):
        assert len(set(hashes[:, half].tolist())) == 1 + len(other)


class TestNormalisers:
    FULL = "Ｔｈｅ ｑｕｉｃｋ ｂｒｏｗｎ ｆｏｘ ｊｕｍｐｓ ｏｖｅｒ １２ ｄｏｇｓ"
    HALF = "the quick BROWN fox jumps over 12 dogs"

    @pytest.mark.parametrize("normaliser", ["nfkc-lower/1", "nfkc-lower-simplified/1", "lower/1"])
    def test_full_and_half_width_meet_under_nfkc(self, normaliser: Normaliser) -> None:
        signatures = signed(self.FULL, self.HALF, parameters=SignatureParameters(normaliser=normaliser))
        meet = normaliser != "lower/1"
        assert bool((signatures.text_hash[0] == signatures.text_hash[1]).all()) == meet
        assert same_shingles(signatures) == meet

    @pytest.mark.parametrize("normaliser", ["nfkc-lower/1", "nfkc-lower-simplified/1", "lower/1"])
    def test_traditional_and_simplified_meet_under_simplified(self, normaliser: Normaliser) -> None:
        signatures = signed(TRADITIONAL, CHINESE, parameters=SignatureParameters(normaliser=normaliser))
        meet = normaliser == "nfkc-lower-simplified/1"
        assert bool((signatures.text_hash[0] == signatures.text_hash[1]).all()) == meet
        assert same_shingles(signatures) == meet

    @pytest.mark.parametrize("parameters", [PARAMETERS, LOWER, SIMPLIFIED])
    def test_case_meets_under_all(self, parameters: SignatureParameters) -> None:
        signatures = signed(ENGLISH.upper(), ENGLISH, parameters=parameters)
        assert (signatures.text_hash[0] == signatures.text_hash[1]).all()
        assert same_shingles(signatures)

    def test_they_are_all_there_are(self) -> None:
        assert set(NORMALISERS) == {parameters.normaliser for parameters in (PARAMETERS, LOWER, SIMPLIFIED)}

    def test_simplifying_touches_unspaced_characters_alone(self) -> None:
        # The words of a document without them are taken from the batch, which knows nothing of simplifying.
        table = simplified_table()
        changed = np.flatnonzero(table != np.arange(table.size, dtype=np.uint32))
        assert changed.size > 1000
        wanted = int(CharClass.WORD | CharClass.UNSPACED)
        classes = unicode_tables().classes
        assert (classes[changed] & wanted == wanted).all()
        assert (classes[table[changed]] & wanted == wanted).all()


class TestPaths:
    """Tokens of a document come from the batch's words, from runs or from characters: the same either way."""

    @given(st.lists(st.sampled_from([ENGLISH, CHINESE, f"{ENGLISH} 狐", "snake_case __init__ v1.2 café naïve"])))
    def test_a_document_signs_the_same_among_others(self, others: list[str]) -> None:
        for text in (ENGLISH, f"{ENGLISH} 狐", CHINESE):
            signatures = signed(*others, text, *others)
            alone = signed(text)
            assert np.array_equal(signatures.sketch[len(others)], alone.sketch[0])
            assert np.array_equal(signatures.bands[len(others)], alone.bands[0])

    @pytest.mark.parametrize("parameters", [PARAMETERS, LOWER, SIMPLIFIED])
    def test_one_chinese_character_changes_one_shingle(self, parameters: SignatureParameters) -> None:
        # Without it the words come from the batch, with it from runs; under lower/1 from runs in both.
        text = " ".join(f"word{number}" for number in range(60))
        assert plain_jaccard(text, f"{text} 狐") == pytest.approx(56 / 57)
        assert estimate(text, f"{text} 狐", parameters) == pytest.approx(56 / 57, abs=0.02)

    def test_normalisers_agree_on_what_none_of_them_changes(self) -> None:
        plain = " ".join(f"word{number}" for number in range(60))
        for text in (plain, f"{plain} 狐", "狐" + plain.replace(" ", "狐")):
            first, *others = (signed(text, parameters=each) for each in (PARAMETERS, LOWER, SIMPLIFIED))
            for other in others:
                assert np.array_equal(first.sketch, other.sketch)
                assert np.array_equal(first.bands, other.bands)
                assert np.array_equal(first.text_hash, other.text_hash)


@given(st.lists(st.one_of(texts.map(str.encode), st.sampled_from(INVALID_BYTES)), max_size=6), normalisers, st.data())
def test_signatures_do_not_depend_on_the_batch(
    documents: list[bytes], parameters: SignatureParameters, data: st.DataObject
) -> None:
    whole = sign(TextBatch.from_bytes(documents), parameters)
    cut = data.draw(st.integers(0, len(documents)))
    for part, where in ((documents[:cut], slice(0, cut)), (documents[cut:], slice(cut, None))):
        signatures = sign(TextBatch.from_bytes(part), parameters)
        expected = whole[where]
        assert len(signatures) == len(expected) == len(part)
        for name in ("shingles", "text_hash", "sketch", "lines"):
            assert np.array_equal(getattr(signatures, name), getattr(expected, name)), name
        has = signatures.shingles > 0
        assert np.array_equal(signatures.bands[has], expected.bands[has])


@pytest.mark.parametrize("parameters", [PARAMETERS, LOWER, SIMPLIFIED])
@pytest.mark.parametrize(
    "text", ["", " \n\u3000", "one two three four", "一二三四", "!!! ??? …… ，。", "😀 😀 😀 😀 😀 😀"]
)
def test_fewer_than_five_tokens_have_no_signature(text: str, parameters: SignatureParameters) -> None:
    signatures = signed(text, parameters=parameters)
    assert signatures.shingles.tolist() == [0]
    assert not signatures.sketch.any()
    assert signatures.text_hash.any() == bool(text.strip())


@pytest.mark.parametrize("document", INVALID_BYTES)
def test_invalid_documents_are_empty_texts(document: bytes) -> None:
    signatures = sign(TextBatch.from_bytes([document]), PARAMETERS)
    assert signatures.shingles.tolist() == [0]
    assert not signatures.text_hash.any()
    assert not signatures.lines.any()


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
    assert signed(text).shingles.tolist() == [tokens - 4]


def test_the_share_of_unspaced_characters_chooses_the_tokens() -> None:
    # 40 Latin letters in 8 words, then 9 or 10 characters of Chinese in one run: just under and at one fifth.
    latin = " ".join(["abcde"] * 8)
    signatures = signed(f"{latin} 一二三四五六七八九", f"{latin} 一二三四五六七八九十")
    assert signatures.shingles.tolist() == [9 - 4, 50 - 4]


@given(st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8)), min_size=1))
def test_similarity_is_that_of_the_definition(pairs: list[tuple[bytes, bytes]]) -> None:
    left, right = (np.array([list(pair[side]) for pair in pairs], dtype=np.uint8) for side in (0, 1))
    expected = [plain_similarity(*pair) for pair in pairs]
    assert similarity(left, right).tolist() == pytest.approx(expected, nan_ok=True)
    assert similarity(right, left).tolist() == pytest.approx(expected, nan_ok=True)
    assert similarity_of(*agreements(left, right).T).tolist() == pytest.approx(expected, nan_ok=True)
    assert all(value == 1.0 or np.isnan(value) for value in similarity(left, left).tolist())


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("bins", [128, 512, 1024])
def test_the_estimate_is_close_to_true_jaccard(bins: int, chinese: bool) -> None:
    parameters = SignatureParameters(bins=bins)
    errors, deviations = [], []
    for seed in range(80):
        a, b = numbered_texts(shared=10 + 7 * seed, own=1 + (seed * 13) % 90, seed=seed, chinese=chinese)
        true = plain_jaccard(a, b)
        sketches = signed(a, b, parameters=parameters).sketch
        counts: NDArray[np.int64] = agreements(sketches[:1], sketches[1:])
        _, both, either = counts[0].tolist()
        errors.append(float(similarity(sketches[:1], sketches[1:])[0]) - true)
        # Of the shingles of both, one per filled bin is drawn, and none twice; codes that differ agree by chance.
        left_out = 1 - either / len(plain_shingles(a) | plain_shingles(b))
        differing = max(both / either - true, 0)
        deviations.append(np.sqrt((true * (1 - true) * left_out + differing / 2) / either) + 1e-3)
    scaled = np.array(errors) / np.array(deviations)
    assert np.abs(scaled).max() < 4.5
    assert np.abs(scaled.mean()) < 4.0 / np.sqrt(scaled.size)
    assert 0.5 < scaled.std() < 1.3


@pytest.mark.parametrize("chinese", [False, True])
def test_the_estimate_of_tiny_sets_is_nearly_exact(chinese: bool) -> None:
    errors = []
    for seed in range(200):
        a, b = numbered_texts(shared=6 + seed % 9, own=1 + seed % 4, seed=seed, chinese=chinese)
        errors.append(abs(estimate(a, b) - plain_jaccard(a, b)))
    assert np.mean(np.array(errors) < 1e-9) > 0.75
    assert np.mean(errors) < 0.02
    assert np.max(errors) < 0.25


@pytest.mark.parametrize("chinese", [False, True])
def test_documents_meet_in_a_band_as_often_as_theory_says(chinese: bool) -> None:
    parameters = SignatureParameters(bands=16, rows=3)
    met, expected = [], []
    for seed in range(120):
        a, b = numbered_texts(shared=60, own=20, seed=1000 + seed, chinese=chinese)
        bands = signed(a, b, parameters=parameters).bands
        met.append(np.count_nonzero(bands[0] == bands[1]))
        expected.append(parameters.bands * plain_jaccard(a, b) ** parameters.rows)
    assert np.mean(met) == pytest.approx(np.mean(expected), rel=0.15)


@pytest.mark.parametrize("chinese", [False, True])
def test_documents_meet_somewhere_as_often_as_theory_says(chinese: bool) -> None:
    parameters = SignatureParameters(bands=4, rows=4)
    met, expected = [], []
    for seed in range(300):
        a, b = numbered_texts(shared=60, own=20, seed=5000 + seed, chinese=chinese)
        bands = signed(a, b, parameters=parameters).bands
        met.append((bands[0] == bands[1]).any())
        expected.append(parameters.banding.meeting_probability(plain_jaccard(a, b)))
    assert np.mean(met) == pytest.approx(np.mean(expected), abs=0.09)


def test_equal_minima_in_two_bands_give_unequal_keys() -> None:
    keys = np.zeros((2, 12), dtype=np.uint32)
    band_keys(np.full((2, 64), 7, dtype=np.uint32), np.array([1, 0], dtype=np.int32), 5, keys)
    assert np.unique(keys[0]).size == 12
    assert not keys[1].any()


class TestBanding:
    @given(st.floats(0.3, 1.0), st.floats(0.7, 0.99))
    def test_chosen_bands_reach_the_recall_and_no_fewer_do(self, threshold: float, recall: float) -> None:
        banding = choose_banding(threshold, recall=recall)
        assert banding.meeting_probability(threshold) >= recall
        if banding.bands > 1:
            assert Banding(banding.bands - 1, banding.rows).meeting_probability(threshold) < recall

    @pytest.mark.parametrize(("threshold", "max_bands"), [(0.3, 4), (0.0, 64), (1.1, 64), (float("nan"), 64)])
    def test_impossible_ones_are_refused(self, threshold: float, max_bands: int) -> None:
        with pytest.raises(ValueError, match=r"threshold"):
            choose_banding(threshold, max_bands=max_bands)

    @pytest.mark.parametrize(("similarity", "bands", "rows", "probability"), [(0.5, 2, 1, 0.75), (0.5, 1, 3, 0.125)])
    def test_probability(self, similarity: float, bands: int, rows: int, probability: float) -> None:
        assert Banding(bands, rows).meeting_probability(similarity) == pytest.approx(probability)

    def test_lower_thresholds_take_no_more_rows(self) -> None:
        rows = [choose_banding(threshold).rows for threshold in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
        assert rows == sorted(rows)
        assert rows[0] < rows[-1]

    def test_default_parameters_are_those_chosen_for_their_threshold(self) -> None:
        assert SignatureParameters.for_threshold(0.75) == SignatureParameters()
        assert PARAMETERS.banding == choose_banding(0.75)
        assert PARAMETERS.permutations == PARAMETERS.bands * PARAMETERS.rows


def test_the_threshold_is_reached_up_to_rounding() -> None:
    parameters = SignatureParameters(threshold=0.7)
    assert parameters.is_near(np.array([0.7 - 1e-12, 0.7, 0.7001, 0.6999, np.nan])).tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"bins": 16}, {"bins": 100}, {"bins": 8192}, {"bands": 65}, {"bands": 0}, {"rows": 0}, {"rows": 17},
        {"threshold": 0.0}, {"threshold": 1.01}, {"threshold": float("nan")}, {"normaliser": "nfkc"},
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|may"):
        SignatureParameters(**wrong)  # type: ignore[arg-type]


def test_the_seed_changes_the_permutations_and_nothing_else() -> None:
    first, second = (signed(ENGLISH, parameters=SignatureParameters(seed=seed)) for seed in (1, 2))
    assert not (first.bands == second.bands).any()
    assert np.array_equal(first.sketch, second.sketch)
    assert np.array_equal(first.text_hash, second.text_hash)
    assert permutation_multipliers(3, 1).tolist() == permutation_multipliers(4, 1).tolist()[:3]


def test_signatures_are_the_same_on_every_machine() -> None:
    # Corpora outlive processes: a change of these bytes needs a new name of the normaliser or the format.
    signatures = signed(ENGLISH, CHINESE)
    assert [row.tobytes()[:16].hex() for row in signatures.sketch] == [
        "00000000000000000000000000000000",
        "000c300008000010c000000000300000",
    ]
    assert signatures.bands[:, 0].tolist() == [113078356, 2128196465]
    assert [[f"{half:016x}" for half in row] for row in signatures.text_hash.tolist()] == [
        ["4d012fc4772f0f88", "5945b4fc8c2caf48"],
        ["a105d0b6da2550f8", "30beaec59fcacd72"],
    ]
    assert signatures.lines[:, 0].tolist() == [2915245621, 2549893373]


class TestLines:
    NOTICE = "All rights reserved, 2019 to 2024. Print this page"

    @given(texts)
    def test_hashes_are_those_of_the_definition(self, text: str) -> None:
        assert line_hashes(text) == [plain_lines(text)]

    def test_a_line_has_one_hash_in_any_place(self) -> None:
        found = line_hashes(
            self.NOTICE, f"Another line\n{self.NOTICE}", f"{self.NOTICE}\r\nAnother line\r\n", f"\n\n{self.NOTICE}\n\n"
        )
        (notice,) = found[0]
        assert len(found[1]) == len(found[2]) == 2
        assert all(notice in hashes for hashes in found)
        assert found[3] == [notice]

    @pytest.mark.parametrize(
        "same",
        [
            "All rights reserved, 2011 to 2038. Print this page",
            "  ALL RIGHTS RESERVED 2019 TO 2024 -- PRINT THIS PAGE!",
            "Ａｌｌ rights reserved， ２０１９ to 2024。Print this page",
        ],
    )
    def test_digits_punctuation_case_and_width_do_not_matter(self, same: str) -> None:
        assert line_hashes(same) == line_hashes(self.NOTICE)

    @pytest.mark.parametrize("other", ["All rights reserved, 201 to 2024. Print this page", "All rights preserved"])
    def test_other_lines_have_other_hashes(self, other: str) -> None:
        assert line_hashes(other) != line_hashes(self.NOTICE)

    def test_lines_without_a_letter_have_none(self) -> None:
        assert line_hashes("", "\n \n\t\n", "2024-11-22\n---\n***", "12.3\n\u3000\n！！") == [[], [], [], []]

    def test_a_repeated_line_counts_once(self) -> None:
        assert line_hashes("again\n" * 50) == line_hashes("again")

    def test_of_many_lines_the_smallest_hashes_stay_wherever_they_stand(self) -> None:
        lines = [f"line {'abcdefghijklmnopqrstuvwxyz'[number % 26] * (1 + number // 26)}" for number in range(100)]
        found, backwards = line_hashes("\n".join(lines), "\n".join(reversed(lines)))
        every = sorted(value for (value,) in line_hashes(*lines))
        assert found == backwards == every[:LINES]


def test_signatures_are_sliced_like_arrays() -> None:
    signatures = signed(ENGLISH, CHINESE, "")
    chosen: Signatures = signatures[np.array([2, 0])]
    assert chosen.shingles.tolist() == [0, signatures.shingles[0]]
    assert np.array_equal(chosen.sketch[1], signatures.sketch[0])
    assert len(signatures[np.array([False, True, False])]) == 1


def test_parts_join_to_the_whole() -> None:
    signatures = signed(ENGLISH, CHINESE, "")
    joined = Signatures.join([signatures[:1], Signatures.empty(0, PARAMETERS), signatures[1:]])
    for mine, theirs in zip(joined.columns, signatures.columns, strict=True):
        assert np.array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


def test_empty_texts_are_those_of_empty_signatures() -> None:
    made = signed("", "  ")
    for mine, theirs in zip(made.columns, Signatures.empty(2, PARAMETERS).columns, strict=True):
        assert np.array_equal(mine, theirs)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
