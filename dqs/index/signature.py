"""Signatures: what the duplicate index knows of a text. Pure and stateless.

Text becomes tokens, tokens become shingles, shingles become a MinHash signature:

    tokens    of the folded text (NFKC, lower case). A document written in a script
              without spaces: every letter, digit or underscore is a token. Any
              other document: every maximal run of them. The choice is made once
              per document, by `UNSPACED_SHARE`. Punctuation, symbols and white
              space never enter a token.
    shingles  every run of `SHINGLE_TOKENS` tokens, as a set.
    minima    per permutation the smallest value over all shingles; two documents
              agree in a minimum with probability equal to the Jaccard similarity
              of their shingle sets (Broder 1997).
    sketch    the lowest `bits` bits of every minimum, packed: what is stored and
              what similarity is estimated from (Li & König 2010).
    bands     see `dqs.index.bands`.

The choice by document has an edge: a text that is half Chinese, half English is
cut into characters on one side of `UNSPACED_SHARE` and into words on the other,
so two versions of it that lie on different sides share few shingles and are not
found as near-duplicates. Their exact copies are.

A text with fewer than `SHINGLE_TOKENS` tokens has no signature: it is a
duplicate of nothing but a text with the same hash. The hash covers the folded
text with every run of white space as one space and none at the ends. An empty
text (nothing but white space, or invalid UTF-8) is a duplicate of nothing.

The hash functions are fast, not cryptographic: someone who may write into a
corpus can construct two texts that meet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.index.bands import Banding, band_keys, choose_banding
from dqs.text import TextBatch
from dqs.text.kernels import mix64
from dqs.text.unicode_tables import CharClass

NORMALISER = "nfkc-lower/1"
"""Name of the text normalisation and tokens described above; part of a corpus's header."""

SHINGLE_TOKENS = 5
"""Tokens in a shingle."""

UNSPACED_SHARE = 0.2
"""From this share of word characters in scripts without spaces on, single characters are the tokens."""

_SPACE = np.uint8(CharClass.SPACE)
_UNSPACED = np.uint8(CharClass.UNSPACED)
_WORD = np.uint8(CharClass.WORD)

_TOKEN_OFFSET = np.uint64(0xCBF29CE484222325)
_TOKEN_PRIME = np.uint64(0x00000100000001B3)
# An odd constant without structure; its fifth power drops the oldest token from a rolling hash.
_ROLL = np.uint64(0x9E3779B97F4A7C15)
_ROLL_5 = np.uint64(pow(0x9E3779B97F4A7C15, SHINGLE_TOKENS, 1 << 64))

_BLOCK = 4


@dataclass(frozen=True, slots=True)
class SignatureParameters:
    """How signatures are made and compared. Signatures of different parameters do not mix.

    Attributes:
        permutations: minima per document; the estimate's standard error is about
            sqrt(J (1 - J) / permutations), a little more for few `bits`.
        bands: bands looked up per document.
        rows: permutations per band; `bands * rows` may not exceed `permutations`.
        bits: bits kept of every minimum in the stored sketch: 1, 2, 4 or 8.
        threshold: estimated Jaccard similarity in (0, 1] from which a document is a near-duplicate.
        seed: of the permutations.
    """

    permutations: int = 256
    bands: int = 12
    rows: int = 5
    bits: int = 4
    threshold: float = 0.75
    seed: int = 1

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise ValueError(f"bits is {self.bits}, must be 1, 2, 4 or 8")
        if self.permutations <= 0 or self.permutations * self.bits % 64:
            raise ValueError(f"permutations times bits is {self.permutations * self.bits}, must be a multiple of 64")
        if self.bands < 1 or self.rows < 1 or self.bands * self.rows > self.permutations:
            raise ValueError(f"{self.bands} bands of {self.rows} rows do not fit into {self.permutations} permutations")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}, must be in (0, 1]")

    @classmethod
    def for_threshold(cls, threshold: float, *, permutations: int = 256, bits: int = 4) -> SignatureParameters:
        """Parameters with the bands that `dqs.index.bands.choose_banding` finds for a threshold."""
        banding = choose_banding(threshold, permutations=permutations)
        return cls(permutations=permutations, bands=banding.bands, rows=banding.rows, bits=bits, threshold=threshold)

    @property
    def banding(self) -> Banding:
        """Bands and rows together."""
        return Banding(self.bands, self.rows)

    @property
    def sketch_bytes(self) -> int:
        """Bytes of a sketch."""
        return self.permutations * self.bits // 8

    @property
    def min_agreements(self) -> int:
        """Fewest agreeing sketch entries whose estimated similarity reaches `threshold`."""
        return _min_agreements(self)

    def similarity(self, agreements: NDArray[np.int64]) -> NDArray[np.float64]:
        """Estimated Jaccard similarity of documents, by how many sketch entries agree.

        Two minima that differ still share their lowest `bits` bits with probability
        2 ** -bits, so of the entries that agree, that part is taken off again.

        Args:
            agreements: int64, each in [0, permutations].

        Returns:
            float64 of the same shape, in [0, 1].

        Source: Li & König, "b-Bit Minwise Hashing" (WWW 2010), for sets that are small
        beside the space of all shingles, where both of its constants become 2 ** -bits.
        """
        chance = 2.0**-self.bits
        estimate = (agreements / self.permutations - chance) / (1.0 - chance)
        clipped: NDArray[np.float64] = np.clip(estimate, 0.0, 1.0)
        return clipped


@functools.cache
def _min_agreements(parameters: SignatureParameters) -> int:
    counts = np.arange(parameters.permutations + 1, dtype=np.int64)
    return int(np.argmax(parameters.similarity(counts) >= parameters.threshold - 1e-9))


@dataclass(frozen=True, slots=True, eq=False)
class Signatures:
    """Signatures of n documents.

    Attributes:
        parameters: how they were made.
        shingles: int32[n]; runs of `SHINGLE_TOKENS` tokens, repeated ones counted; 0 = no signature.
        text_hash: uint64[n, 2]; 128-bit hash of the normalised text; zeros = an empty text.
        bands: uint32[n, bands]; key per band; meaningless without a signature.
        sketch: uint8[n, sketch_bytes]; lowest bits of the minima, first permutation in the
            lowest bits of the first byte; zeros without a signature.
    """

    parameters: SignatureParameters
    shingles: NDArray[np.int32]
    text_hash: NDArray[np.uint64]
    bands: NDArray[np.uint32]
    sketch: NDArray[np.uint8]

    def __len__(self) -> int:
        return int(self.shingles.size)

    def __getitem__(self, index: slice | NDArray[np.integer] | NDArray[np.bool_]) -> Signatures:
        """The signatures of some of the documents, chosen as in a numpy array."""
        return Signatures(
            self.parameters, self.shingles[index], self.text_hash[index], self.bands[index], self.sketch[index]
        )


def sign(batch: TextBatch, parameters: SignatureParameters) -> Signatures:
    """Signs every document of a batch; invalid documents as empty texts."""
    minima, shingles = minhashes(batch, parameters)
    return Signatures(
        parameters=parameters,
        shingles=shingles,
        text_hash=text_hashes(batch),
        bands=band_keys(minima, shingles, parameters.bands, parameters.rows),
        sketch=_pack(minima, shingles, parameters.bits),
    )


def minhashes(batch: TextBatch, parameters: SignatureParameters) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """The full minima of every document.

    Permutation p maps a shingle with the 64-bit hash (high, low) to
    `high + multiplier[p] * low` modulo 2 ** 32. Any two permutations are thereby
    pairwise independent given good shingle hashes, and the loop over them
    compiles to vector instructions.

    Returns:
        uint32[n, permutations], all ones where a document has no shingle, and
        int32[n], the number of its shingles with repetitions.
    """
    n = len(batch)
    multipliers = permutation_multipliers(parameters.permutations, parameters.seed)
    minima = np.full((n, parameters.permutations), 0xFFFFFFFF, dtype=np.uint32)
    shingles = np.empty(n, dtype=np.int32)
    _minhash(
        batch.folded, batch.folded_classes, batch.folded_offsets, UNSPACED_SHARE,
        multipliers, np.empty(_longest(batch) + _BLOCK, dtype=np.uint64), minima, shingles,
    )  # fmt: skip
    return minima, shingles


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


def text_hashes(batch: TextBatch) -> NDArray[np.uint64]:
    """uint64[n, 2]: 128-bit hash of every normalised text; zeros for empty and invalid ones."""
    hashes = np.zeros((len(batch), 2), dtype=np.uint64)
    scratch = np.empty(_longest(batch) + 4, dtype=np.uint32)
    _hash_texts(batch.folded, batch.folded_classes, batch.folded_offsets, scratch, hashes)
    return hashes


def _longest(batch: TextBatch) -> int:
    """Folded code points of the longest document."""
    return int(np.diff(batch.folded_offsets).max()) if len(batch) else 0


@njit(cache=True, nogil=True)
def _tokenise(
    folded: NDArray[np.uint32], classes: NDArray[np.uint8], start: int, end: int, unspaced_share: float,
    tokens: NDArray[np.uint64],
) -> int:  # fmt: skip
    """Writes one hash per token of folded[start:end] into `tokens`; returns their number."""
    word = 0
    unspaced = 0
    for position in range(start, end):
        word += 1 if classes[position] & _WORD else 0
        unspaced += 1 if classes[position] & (_WORD | _UNSPACED) == (_WORD | _UNSPACED) else 0
    count = 0
    if unspaced >= unspaced_share * word:
        for position in range(start, end):
            tokens[count] = (_TOKEN_OFFSET ^ np.uint64(folded[position])) * _TOKEN_PRIME
            count += 1 if classes[position] & _WORD else 0
        return count
    inside = False
    token = _TOKEN_OFFSET
    for position in range(start, end):
        if classes[position] & _WORD:
            token = (token ^ np.uint64(folded[position])) * _TOKEN_PRIME
            inside = True
        elif inside:
            tokens[count] = token
            count += 1
            token = _TOKEN_OFFSET
            inside = False
    if inside:
        tokens[count] = token
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
def _minhash(
    folded: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    unspaced_share: float,
    multipliers: NDArray[np.uint32],
    scratch: NDArray[np.uint64],
    minima: NDArray[np.uint32],
    shingles: NDArray[np.int32],
) -> None:
    low_half = np.uint64(0xFFFFFFFF)
    for document in range(shingles.size):
        tokens = _tokenise(folded, classes, offsets[document], offsets[document + 1], unspaced_share, scratch)
        count = _shingle(scratch, tokens)
        shingles[document] = count
        if count == 0:
            continue
        # Whole blocks only: the last shingle repeated changes no minimum.
        for position in range(count, (count + _BLOCK - 1) // _BLOCK * _BLOCK):
            scratch[position] = scratch[count - 1]
        smallest = minima[document]
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
                smallest[permutation] = min(min(min(value_0, value_1), min(value_2, value_3)), smallest[permutation])


@njit(cache=True, nogil=True)
def _pack(minima: NDArray[np.uint32], shingles: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    n, permutations = minima.shape
    per_byte = 8 // bits
    mask = np.uint32((1 << bits) - 1)
    packed = np.zeros((n, permutations // per_byte), dtype=np.uint8)
    for document in range(n):
        if shingles[document] == 0:
            continue
        for column in range(packed.shape[1]):
            value = np.uint32(0)
            for part in range(per_byte):
                low = minima[document, column * per_byte + part] & mask
                value |= np.uint32(low << np.uint32(part * bits))
            packed[document, column] = np.uint8(value)
    return packed


@njit(cache=True, nogil=True, inline="always")
def _rotate(value: np.uint64, by: int) -> np.uint64:
    return (value << np.uint64(by)) | (value >> np.uint64(64 - by))


_MURMUR_1 = np.uint64(0x87C37B91114253D5)
_MURMUR_2 = np.uint64(0x4CF5AD432745937F)


@njit(cache=True, nogil=True)
def _hash_texts(
    folded: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    scratch: NDArray[np.uint32],
    hashes: NDArray[np.uint64],
) -> None:
    """MurmurHash3_x64_128 (seed 0) of the normalised text as little-endian 32-bit code points.

    Source: Austin Appleby, MurmurHash3 (public domain).
    """
    for document in range(hashes.shape[0]):
        length = 0
        after_space = 1
        for position in range(offsets[document], offsets[document + 1]):
            space = 1 if classes[position] & _SPACE else 0
            scratch[length] = np.uint32(32) if space else folded[position]
            length += 1 - (space & after_space)
            after_space = space
        if length > 0 and after_space:
            length -= 1
        if length == 0:
            continue
        # Zeros after the end do not change the last, incomplete block.
        scratch[length : length + 3] = 0
        hash_1 = np.uint64(0)
        hash_2 = np.uint64(0)
        for position in range(0, length, 4):
            key_1 = np.uint64(scratch[position]) | (np.uint64(scratch[position + 1]) << np.uint64(32))
            key_2 = np.uint64(scratch[position + 2]) | (np.uint64(scratch[position + 3]) << np.uint64(32))
            hash_1 ^= _rotate(key_1 * _MURMUR_1, 31) * _MURMUR_2
            if position + 4 > length:
                hash_2 ^= _rotate(key_2 * _MURMUR_2, 33) * _MURMUR_1
                break
            hash_1 = (_rotate(hash_1, 27) + hash_2) * np.uint64(5) + np.uint64(0x52DCE729)
            hash_2 ^= _rotate(key_2 * _MURMUR_2, 33) * _MURMUR_1
            hash_2 = (_rotate(hash_2, 31) + hash_1) * np.uint64(5) + np.uint64(0x38495AB5)
        size = np.uint64(4 * length)
        hash_1 ^= size
        hash_2 ^= size
        hash_1 += hash_2
        hash_2 += hash_1
        hash_1 = mix64(hash_1)
        hash_2 = mix64(hash_2)
        hash_1 += hash_2
        hash_2 += hash_1
        hashes[document, 0] = hash_1
        hashes[document, 1] = hash_2
