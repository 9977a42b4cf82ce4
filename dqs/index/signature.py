"""Signatures: what the duplicate index knows of a text. Pure and stateless.

Text becomes tokens, tokens become shingles, shingles become a signature:

    tokens    of the text after the corpus's normaliser (by default NFKC and lower case).
              A document written in a script without spaces: every letter, digit or
              underscore is a token. Any other document: every maximal run of them. The
              choice is made once per document, by `UNSPACED_SHARE`. Punctuation, symbols
              and white space never enter a token.
    shingles  every run of `SHINGLE_TOKENS` tokens, as a set.
    bands     keys that two documents share if some minima of their shingle sets agree;
              every minimum agrees with probability equal to the Jaccard similarity of the
              sets (Broder 1997). They find candidates; see `dqs.index.bands`.
    sketch    one permutation of all shingles, cut into `bins` bins, and two bits of the
              smallest value in each: what is stored, and what the similarity of candidates
              is estimated from.
    lines     hashes of some of the document's lines; see `LINES`.

The choice of tokens by document has an edge: a text that is half Chinese, half English
is cut into characters on one side of `UNSPACED_SHARE` and into words on the other,
so two versions of it that lie on different sides share few shingles and are not
found as near-duplicates. Their exact copies are.

A text with fewer than `SHINGLE_TOKENS` tokens has no signature: it is a
duplicate of nothing but a text with the same hash. The hash covers the normalised
text with every run of white space as one space and none at the ends. An empty
text (nothing but white space, or invalid UTF-8) is a duplicate of nothing.

The hash functions are fast, not cryptographic: someone who may write into a
corpus can construct two texts that meet.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.index.bands import MAX_BANDS, MAX_ROWS, Banding, band_keys, choose_banding
from dqs.text import TextBatch
from dqs.text.kernels import mix64
from dqs.text.simplified import simplified_table
from dqs.text.unicode_tables import CharClass, lower_table, unicode_tables

Normaliser = Literal["nfkc-lower/1", "nfkc-lower-simplified/1", "lower/1"]
"""What is done to a text before it is cut into tokens and hashed; part of a corpus's header.

    nfkc-lower/1             NFKC and lower case: full-width and half-width forms meet,
                             traditional and simplified characters do not.
    nfkc-lower-simplified/1  besides, every traditional character is read as its simplified
                             form, one for one (`dqs.text.simplified`).
    lower/1                  lower case alone, character by character: full-width and
                             half-width forms do not meet.
"""

NORMALISERS: tuple[str, ...] = get_args(Normaliser)

SHINGLE_TOKENS = 5
"""Tokens in a shingle."""

UNSPACED_SHARE = 0.2
"""From this share of word characters in scripts without spaces on, single characters are the tokens."""

LINES = 16
"""Lines of a document whose hashes are kept: all, or of more distinct ones those with the smallest hashes.

The sample does not depend on where a line stands, and of 16 lines the share that has a
property is known with a standard error of at most 0.13.
"""

_SPACE = np.uint8(CharClass.SPACE)
_LETTER = np.uint8(CharClass.LETTER)
_DIGIT = np.uint8(CharClass.DIGIT)
_UNSPACED = np.uint8(CharClass.UNSPACED)
_WORD = np.uint8(CharClass.WORD)

_TOKEN_OFFSET = np.uint64(0xCBF29CE484222325)
_TOKEN_PRIME = np.uint64(0x00000100000001B3)
_SECOND_OFFSET = np.uint64(0x6C62272E07BB0142)
_SECOND_PRIME = np.uint64(0xD6E8FEB86659FD93)
# An odd constant without structure; its fifth power drops the oldest token from a rolling hash.
_ROLL = np.uint64(0x9E3779B97F4A7C15)
_ROLL_5 = np.uint64(pow(0x9E3779B97F4A7C15, SHINGLE_TOKENS, 1 << 64))

_BLOCK = 4
_LANES = 16


@dataclass(frozen=True, slots=True)
class SignatureParameters:
    """How signatures are made and compared. Signatures of different parameters do not mix.

    Attributes:
        bands: bands looked up per document.
        rows: minima per band.
        bins: of a sketch, a multiple of 32; takes `bins / 4` bytes.
        threshold: estimated Jaccard similarity in (0, 1] from which a document is a near-duplicate.
        normaliser: of the text.
        seed: of the permutations.
    """

    bands: int = 9
    rows: int = 4
    bins: int = 512
    threshold: float = 0.75
    normaliser: Normaliser = "nfkc-lower/1"
    seed: int = 1

    def __post_init__(self) -> None:
        if not 32 <= self.bins <= 4096 or self.bins % 32:
            raise ValueError(f"bins is {self.bins}, must be a multiple of 32 from 32 to 4096")
        if not 1 <= self.bands <= MAX_BANDS or not 1 <= self.rows <= MAX_ROWS:
            raise ValueError(
                f"{self.bands} bands of {self.rows} rows; there may be 1 to {MAX_BANDS} of 1 to {MAX_ROWS}"
            )
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}, must be in (0, 1]")
        if self.normaliser not in NORMALISERS:
            raise ValueError(f"normaliser is {self.normaliser!r}, must be one of {', '.join(NORMALISERS)}")

    @classmethod
    def for_threshold(cls, threshold: float, *, normaliser: Normaliser = "nfkc-lower/1") -> SignatureParameters:
        """Parameters with the bands that `dqs.index.bands.choose_banding` finds for a threshold.

        Raises:
            ValueError: the threshold is not in (0, 1], or too low for any bands.
        """
        banding = choose_banding(threshold)
        return cls(bands=banding.bands, rows=banding.rows, threshold=threshold, normaliser=normaliser)

    @property
    def banding(self) -> Banding:
        """Bands and rows together."""
        return Banding(self.bands, self.rows)

    @property
    def permutations(self) -> int:
        """Minima that the bands need."""
        return self.bands * self.rows

    @property
    def sketch_bytes(self) -> int:
        """Bytes of a sketch."""
        return self.bins // 4

    def is_near(self, similarity: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether estimated similarities reach the threshold, up to rounding."""
        reached: NDArray[np.bool_] = similarity >= self.least_similarity
        return reached

    @property
    def least_similarity(self) -> float:
        """The threshold less what rounding may take off a fraction."""
        return self.threshold - 1e-9


def similarity(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of pairs of documents.

    Of the bins that are filled in either sketch, those whose smallest values are the same
    are an unbiased estimate of the similarity, the better the fewer shingles there are per
    bin, since no shingle is drawn twice. Two values that differ still have the same code
    with probability 1/3; so a third of the bins that are filled in both and differ is
    taken off again.

    Args:
        left: uint8[m, sketch_bytes], sketches of the first document of every pair.
        right: the same of the second.

    Returns:
        float64[m] in [0, 1]; NaN where both are empty.

    Source: the estimator with empty bins is that of Li, Owen & Zhang, "One Permutation
    Hashing" (NIPS 2012), the correction for few bits that of Li & König, "b-Bit Minwise
    Hashing" (WWW 2010); putting the two into two bits with a code of its own for "empty"
    is ours.
    """
    counts = agreements(left, right)
    return similarity_of(counts[:, 0], counts[:, 1], counts[:, 2])


def similarity_of(same: NDArray[np.int64], both: NDArray[np.int64], either: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity from counts of bins; see `similarity`.

    Args:
        same: bins filled in both sketches with the same code.
        both: bins filled in both.
        either: bins filled in one or both.

    Returns:
        float64 of the same shape in [0, 1]; NaN where `either` is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = (3 * same - both) / (2 * either)
    clipped: NDArray[np.float64] = np.clip(estimate, 0.0, 1.0)
    return clipped


def agreements(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts of bins of m pairs of sketches: int64[m, 3] of `same`, `both`, `either` as in `similarity_of`."""
    counts = np.zeros((left.shape[0], 3), dtype=np.int64)
    _agreements(as_words(left), as_words(right), counts)
    return counts


@njit(cache=True, nogil=True)
def _agreements(left: NDArray[np.uint64], right: NDArray[np.uint64], counts: NDArray[np.int64]) -> None:
    for pair in range(counts.shape[0]):
        counts[pair, 0], counts[pair, 1], counts[pair, 2] = pair_agreements(left[pair], right[pair])


def as_words(sketch: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Sketches eight bytes at a time, of one constness wherever they lie: one compiled kernel."""
    words = np.ascontiguousarray(sketch).view(np.uint64)
    words.flags.writeable = False
    return words


@njit(cache=True, nogil=True)
def pair_agreements(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> tuple[np.int64, np.int64, np.int64]:
    """Counts of bins of one pair, 32 at a time: `same`, `both`, `either` as in `similarity_of`.

    Args:
        left: uint64[sketch_bytes / 8] of `as_words`.
        right: the same of the other document.
    """
    low = np.uint64(0x5555555555555555)
    one = np.uint64(1)
    same = np.int64(0)
    both = np.int64(0)
    either = np.int64(0)
    for word in range(left.size):
        a = left[word]
        b = right[word]
        # The low bit of each code: whether it is filled, and whether the two differ.
        filled_a = (a | (a >> one)) & low
        filled_b = (b | (b >> one)) & low
        differs = a ^ b
        both_filled = filled_a & filled_b
        either += _ones(filled_a | filled_b)
        both += _ones(both_filled)
        same += _ones(both_filled & ~(differs | (differs >> one)))
    return same, both, either


@njit(cache=True, nogil=True)
def _ones(bits: np.uint64) -> np.int64:
    """How many bits are set, of which none has a neighbour."""
    pairs = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bytes_ = (pairs + (pairs >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bytes_ * np.uint64(0x0101010101010101)) >> np.uint64(56))


@dataclass(frozen=True, slots=True, eq=False)
class Signatures:
    """Signatures of n documents.

    Attributes:
        parameters: how they were made.
        shingles: int32[n]; runs of `SHINGLE_TOKENS` tokens, repeated ones counted; 0 = no signature.
        text_hash: uint64[n, 2]; 128-bit hash of the normalised text; zeros = an empty text.
        bands: uint32[n, bands]; key per band; meaningless without a signature.
        sketch: uint8[n, sketch_bytes]; two bits per bin, the first bin in the lowest bits of the
            first byte: 0 = empty, else 1 + the smallest value modulo 3; zeros without a signature.
        lines: uint32[n, LINES]; hashes of distinct lines, the smallest first, never 0; 0 = no more lines.
            Equal lines have equal hashes. See `line_hashes`.
    """

    parameters: SignatureParameters
    shingles: NDArray[np.int32]
    text_hash: NDArray[np.uint64]
    bands: NDArray[np.uint32]
    sketch: NDArray[np.uint8]
    lines: NDArray[np.uint32]

    def __len__(self) -> int:
        return int(self.shingles.size)

    def __getitem__(self, index: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Signatures:
        """The signatures of some of the documents, chosen as in a numpy array."""
        return Signatures(self.parameters, *(column[index] for column in self.columns))

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in the order of `empty`."""
        return self.shingles, self.text_hash, self.bands, self.sketch, self.lines

    @classmethod
    def empty(cls, n: int, parameters: SignatureParameters) -> Signatures:
        """Signatures of n empty texts."""
        return cls(
            parameters,
            np.zeros(n, dtype=np.int32),
            np.zeros((n, 2), dtype=np.uint64),
            np.zeros((n, parameters.bands), dtype=np.uint32),
            np.zeros((n, parameters.sketch_bytes), dtype=np.uint8),
            np.zeros((n, LINES), dtype=np.uint32),
        )

    @classmethod
    def join(cls, parts: Sequence[Signatures]) -> Signatures:
        """Signatures of consecutive parts; at least one, all with the same parameters."""
        columns = zip(*(part.columns for part in parts), strict=True)
        return cls(parts[0].parameters, *(np.concatenate(column) for column in columns))


def sign(batch: TextBatch, parameters: SignatureParameters) -> Signatures:
    """Signs every document of a batch; invalid documents as empty texts."""
    text, classes, offsets = _normalised(batch, parameters.normaliser)
    n = len(batch)
    longest = int(np.diff(offsets).max()) if n else 0
    # Zeros fill up the last vector: they are computed along and never read.
    multipliers = np.zeros(-(-parameters.permutations // _LANES) * _LANES, dtype=np.uint32)
    multipliers[: parameters.permutations] = permutation_multipliers(parameters.permutations, parameters.seed)
    minima = np.full((n, multipliers.size), 0xFFFFFFFF, dtype=np.uint32)
    signed = Signatures.empty(n, parameters)
    # The words are those of the folded text; simplifying changes none of a document without Han characters.
    word_offsets = np.zeros(1, dtype=np.int64) if parameters.normaliser == "lower/1" else batch.word_offsets
    _sign(
        text, classes, offsets, batch.word_hash, word_offsets, UNSPACED_SHARE, multipliers,
        np.empty(longest + _BLOCK, dtype=np.uint64), np.empty(parameters.bins, dtype=np.uint64),
        minima, signed.shingles, signed.text_hash, signed.sketch,
    )  # fmt: skip
    band_keys(minima, signed.shingles, parameters.rows, signed.bands)
    tables = unicode_tables()
    _hash_lines(
        batch.codepoints, batch.classes, batch.line_offsets, batch.line_start, batch.line_end,
        tables.fold, tables.fold_length, signed.lines,
    )  # fmt: skip
    return signed


def _normalised(
    batch: TextBatch, normaliser: Normaliser
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.int64]]:
    """Code points of the normalised documents end to end, their classes, and offsets of the documents."""
    if normaliser == "lower/1":
        return lower_table()[batch.codepoints], batch.classes, batch.codepoint_offsets
    if normaliser == "nfkc-lower-simplified/1":
        return simplified_table()[batch.folded], batch.folded_classes, batch.folded_offsets
    return batch.folded, batch.folded_classes, batch.folded_offsets


@functools.cache
def permutation_multipliers(permutations: int, seed: int) -> NDArray[np.uint32]:
    """uint32[permutations]: odd multipliers, fixed by the seed on every machine and numpy version; shared."""
    mask = (1 << 64) - 1
    state = seed & mask
    multipliers = np.empty(permutations, dtype=np.uint32)
    for position in range(permutations):
        # SplitMix64 (Steele, Lea & Flood 2014).
        state = (state + 0x9E3779B97F4A7C15) & mask
        value = state
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        multipliers[position] = ((value ^ (value >> 31)) & 0xFFFFFFFF) | 1
    return multipliers


@njit(cache=True, nogil=True)
def _characters(
    text: NDArray[np.uint32], classes: NDArray[np.uint8], start: int, end: int, tokens: NDArray[np.uint64]
) -> int:
    """Writes one hash per word character of text[start:end] into `tokens`; returns their number."""
    count = 0
    for position in range(start, end):
        # Written in any case and overwritten by the next: a branch would cost more.
        tokens[count] = (_TOKEN_OFFSET ^ np.uint64(text[position])) * _TOKEN_PRIME
        count += 1 if classes[position] & _WORD else 0
    return count


@njit(cache=True, nogil=True)
def _runs(
    text: NDArray[np.uint32], classes: NDArray[np.uint8], start: int, end: int, tokens: NDArray[np.uint64]
) -> int:
    """Writes one hash per run of word characters of text[start:end] into `tokens`; returns their number.

    The hashes are those of `TextBatch.word_hash`, where a run is a word.
    """
    count = 0
    inside = 0
    token = _TOKEN_OFFSET
    for position in range(start, end):
        word = 1 if classes[position] & _WORD else 0
        tokens[count] = mix64(token)
        count += inside & (1 - word)
        token = (token ^ np.uint64(text[position])) * _TOKEN_PRIME if word else _TOKEN_OFFSET
        inside = word
    if inside:
        tokens[count] = mix64(token)
        count += 1
    return count


@njit(cache=True, nogil=True)
def _shingle(tokens: NDArray[np.uint64], count: int) -> int:
    """Replaces token hashes by the hashes of the shingles that begin at them; returns their number."""
    if count < SHINGLE_TOKENS:
        return 0
    rolling = np.uint64(0)
    for position in range(SHINGLE_TOKENS - 1):
        rolling = rolling * _ROLL + tokens[position]
    oldest = np.uint64(0)
    for position in range(count - SHINGLE_TOKENS + 1):
        rolling = rolling * _ROLL + tokens[position + SHINGLE_TOKENS - 1] - oldest * _ROLL_5
        oldest = tokens[position]
        tokens[position] = mix64(rolling)
    return count - SHINGLE_TOKENS + 1


@njit(cache=True, nogil=True)
def _hash_text(
    text: NDArray[np.uint32], classes: NDArray[np.uint8], start: int, end: int, text_hash: NDArray[np.uint64]
) -> tuple[int, int]:
    """Hashes text[start:end], and counts its word characters and those of scripts without spaces.

    The hash is two of FNV-1a's form over code points, with a factor each: every run of white
    space counts as one space, none at the ends. It stays zeros where nothing else is there.

    Source: Fowler, Noll & Vo, draft-eastlake-fnv; over code points instead of bytes, two
    factors and a final mixing are ours.
    """
    words = 0
    unspaced = 0
    after_space = 1
    low, high = _TOKEN_OFFSET, _SECOND_OFFSET
    # As they were after the last character that is no space.
    end_low, end_high = low, high
    for position in range(start, end):
        flags = classes[position]
        words += 1 if flags & _WORD else 0
        unspaced += 1 if flags & (_WORD | _UNSPACED) == (_WORD | _UNSPACED) else 0
        space = 1 if flags & _SPACE else 0
        value = np.uint64(32) if space else np.uint64(text[position])
        skip = space & after_space
        low = low if skip else (low ^ value) * _TOKEN_PRIME
        high = high if skip else (high ^ value) * _SECOND_PRIME
        end_low = end_low if space else low
        end_high = end_high if space else high
        after_space = space
    if end_low != _TOKEN_OFFSET or end_high != _SECOND_OFFSET:
        text_hash[0] = mix64(end_low)
        text_hash[1] = mix64(end_high)
    return words, unspaced


@njit(cache=True, nogil=True)
def _sign(
    text: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    word_hash: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
    unspaced_share: float,
    multipliers: NDArray[np.uint32],
    scratch: NDArray[np.uint64],
    bins: NDArray[np.uint64],
    minima: NDArray[np.uint32],
    shingles: NDArray[np.int32],
    text_hash: NDArray[np.uint64],
    sketch: NDArray[np.uint8],
) -> None:
    """Fills minima, numbers of shingles, text hashes and sketches.

    Permutation p maps a shingle with the 64-bit hash (high, low) to
    `high + multiplier[p] * low` modulo 2 ** 32. Any two permutations are thereby
    pairwise independent given good shingle hashes, and the loop over them
    compiles to vector instructions.

    `word_offsets` of no more than one entry says that `word_hash` is of another text.
    """
    low_half = np.uint64(0xFFFFFFFF)
    empty = np.uint64(0xFFFFFFFFFFFFFFFF)
    bin_count = np.uint64(bins.size)
    for document in range(shingles.size):
        start, end = offsets[document], offsets[document + 1]
        words, unspaced = _hash_text(text, classes, start, end, text_hash[document])
        if unspaced >= unspaced_share * words:
            tokens = _characters(text, classes, start, end, scratch)
        elif unspaced or word_offsets.size <= 1:
            tokens = _runs(text, classes, start, end, scratch)
        else:
            first = word_offsets[document]
            tokens = word_offsets[document + 1] - first
            scratch[:tokens] = word_hash[first : first + tokens]
        count = _shingle(scratch, tokens)
        shingles[document] = count
        if count == 0:
            continue
        bins[:] = empty
        for position in range(count):
            place = np.int64(((scratch[position] >> np.uint64(32)) * bin_count) >> np.uint64(32))
            bins[place] = min(bins[place], scratch[position] & low_half)
        for column in range(sketch.shape[1]):
            value = np.uint32(0)
            for part in range(4):
                smallest = bins[4 * column + part]
                code = np.uint32(0) if smallest == empty else np.uint32(1) + np.uint32(smallest) % np.uint32(3)
                value |= np.uint32(code << np.uint32(2 * part))
            sketch[document, column] = np.uint8(value)
        # Whole blocks only: the last shingle repeated changes no minimum.
        for position in range(count, (count + _BLOCK - 1) // _BLOCK * _BLOCK):
            scratch[position] = scratch[count - 1]
        least = minima[document]
        # Four shingles at a time, so that each minimum is loaded and stored once for four.
        for position in range(0, count, _BLOCK):
            low_0 = np.uint32(scratch[position] & low_half)
            low_1 = np.uint32(scratch[position + 1] & low_half)
            low_2 = np.uint32(scratch[position + 2] & low_half)
            low_3 = np.uint32(scratch[position + 3] & low_half)
            high_0 = np.uint32(scratch[position] >> np.uint64(32))
            high_1 = np.uint32(scratch[position + 1] >> np.uint64(32))
            high_2 = np.uint32(scratch[position + 2] >> np.uint64(32))
            high_3 = np.uint32(scratch[position + 3] >> np.uint64(32))
            for permutation in range(multipliers.size):
                multiplier = multipliers[permutation]
                value_0 = np.uint32(multiplier * low_0 + high_0)
                value_1 = np.uint32(multiplier * low_1 + high_1)
                value_2 = np.uint32(multiplier * low_2 + high_2)
                value_3 = np.uint32(multiplier * low_3 + high_3)
                least[permutation] = min(min(min(value_0, value_1), min(value_2, value_3)), least[permutation])


@njit(cache=True, nogil=True)
def _hash_lines(
    codepoints: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    line_offsets: NDArray[np.int64],
    line_start: NDArray[np.int64],
    line_end: NDArray[np.int64],
    fold: NDArray[np.uint32],
    fold_length: NDArray[np.uint8],
    lines: NDArray[np.uint32],
) -> None:
    """Hashes of the folded letters of every line, every digit read as 0; lines without a letter are left out.

    What web pages repeat differs in dates, counts and punctuation. Reading digits as one and leaving
    punctuation out is CCNet's normalisation of paragraphs (Wenzek et al., LREC 2020); a sample of the
    smallest hashes is ours.
    """
    kept = lines.shape[1]
    for document in range(lines.shape[0]):
        count = 0
        smallest = lines[document]
        for line in range(line_offsets[document], line_offsets[document + 1]):
            value = _TOKEN_OFFSET
            letters = 0
            for position in range(line_start[line], line_end[line]):
                flags = classes[position]
                letters += 1 if flags & _LETTER else 0
                codepoint = codepoints[position]
                codepoint = fold[codepoint] if fold_length[codepoint] == 1 else codepoint
                codepoint = np.uint32(48) if flags & _DIGIT else codepoint
                value = (value ^ np.uint64(codepoint)) * _TOKEN_PRIME if flags & _WORD else value
            if letters == 0:
                continue
            key = max(np.uint32(mix64(value) >> np.uint64(32)), np.uint32(1))
            if count == kept and key >= smallest[count - 1]:
                continue
            place = count
            while place > 0 and smallest[place - 1] > key:
                place -= 1
            if place > 0 and smallest[place - 1] == key:
                continue
            last = min(count, kept - 1)
            for position in range(last, place, -1):
                smallest[position] = smallest[position - 1]
            smallest[place] = key
            count = min(count + 1, kept)
