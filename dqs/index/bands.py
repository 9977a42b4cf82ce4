"""Bands and rows of a MinHash index: chosen from a threshold, and the keys they give.

A band is a run of `rows` permutations. Two documents meet in a band when all
its minima agree, which happens with probability J ** rows at Jaccard similarity
J, so with n bands they meet somewhere with probability 1 - (1 - J ** rows) ** n.

Pure functions; this module knows nothing of text or of Redis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.text.kernels import mix64

MAX_ROWS = 16
"""More rows than this leave no chance to meet to anything but copies."""


@dataclass(frozen=True, slots=True)
class Banding:
    """How permutations are cut into bands.

    Attributes:
        bands: number of bands; each costs memory and one look-up per document.
        rows: permutations per band.
    """

    bands: int
    rows: int

    def meeting_probability(self, similarity: float) -> float:
        """Probability that two documents of this Jaccard similarity share a band."""
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)


def choose_banding(threshold: float, *, permutations: int, recall: float = 0.95, max_bands: int = 64) -> Banding:
    """The cheapest banding that still lets documents at the threshold meet.

    Fewer bands cost less memory, more rows let fewer unlike documents meet and
    be verified for nothing. So: for every number of rows the fewest bands that
    reach `recall` at `threshold`, and of these the one that minimises the bands
    plus the look-ups wasted on unlike documents.

    Args:
        threshold: Jaccard similarity in (0, 1] that counts as a duplicate.
        permutations: how many there are; bands never share one.
        recall: wanted probability in (0, 1) of meeting at exactly `threshold`.
        max_bands: limit on the cost.

    Raises:
        ValueError: no banding of so few permutations reaches `recall`.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold {threshold} is not in (0, 1]")
    best: Banding | None = None
    best_cost = float("inf")
    for rows in range(1, min(MAX_ROWS, permutations) + 1):
        for bands in range(1, min(max_bands, permutations // rows) + 1):
            banding = Banding(bands, rows)
            if banding.meeting_probability(threshold) < recall:
                continue
            # Corpora hold many pairs that share boilerplate; three tenths of all shingles is a lot of it.
            cost = bands + 200.0 * banding.meeting_probability(0.3 * threshold / 0.75)
            if cost < best_cost:
                best, best_cost = banding, cost
            break
    if best is None:
        raise ValueError(
            f"{permutations} permutations in at most {max_bands} bands cannot find similarity {threshold} "
            f"with probability {recall}; take more permutations or a higher threshold"
        )
    return best


@njit(cache=True, nogil=True)
def band_keys(minhashes: NDArray[np.uint32], shingles: NDArray[np.int32], bands: int, rows: int) -> NDArray[np.uint32]:
    """One 32-bit key per document and band, equal where all rows of the band agree.

    Args:
        minhashes: uint32[n, permutations], at least `bands * rows` permutations.
        shingles: int32[n]; documents with none get zeros, which mean nothing.
        bands: number of bands.
        rows: permutations per band.

    Returns:
        uint32[n, bands]. A band's number enters its keys, so equal rows in two bands differ.
    """
    n = minhashes.shape[0]
    keys = np.zeros((n, bands), dtype=np.uint32)
    for document in range(n):
        if shingles[document] == 0:
            continue
        for band in range(bands):
            key = np.uint64(band + 1)
            for row in range(rows):
                key = mix64(key ^ np.uint64(minhashes[document, band * rows + row])) + np.uint64(band)
            keys[document, band] = np.uint32(key >> np.uint64(32))
    return keys
