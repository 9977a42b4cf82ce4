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

MAX_BANDS = 64
"""More bands than this cost more than comparing with a lower similarity can be worth."""


MAX_SAME = 24
"""Kept documents that share a key of a band, the earliest ones, which are found by it.

More than that under one key are boilerplate, not copies: the band is then full for that key,
so that time and memory stay bounded.
"""

MAX_VERIFIED = 32
"""Candidates of a document whose similarity is estimated: those that met in most bands, of equals the earliest."""


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


def choose_banding(threshold: float, *, recall: float = 0.96, max_bands: int = MAX_BANDS) -> Banding:
    """The cheapest banding that still lets documents at the threshold meet.

    Fewer bands cost less memory, more rows let fewer unlike documents meet and
    be verified for nothing. So: for every number of rows the fewest bands that
    reach `recall` at `threshold`, and of these the one that minimises the bands
    plus the look-ups wasted on unlike documents.

    Args:
        threshold: Jaccard similarity in (0, 1] that counts as a duplicate.
        recall: wanted probability in (0, 1) of meeting at exactly `threshold`.
        max_bands: limit on the cost.

    Raises:
        ValueError: no banding reaches `recall`.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold {threshold} is not in (0, 1]")
    best: Banding | None = None
    best_cost = float("inf")
    for rows in range(1, MAX_ROWS + 1):
        for bands in range(1, max_bands + 1):
            banding = Banding(bands, rows)
            if banding.meeting_probability(threshold) < recall:
                continue
            # What is looked up for nothing, in bands' worth: pairs that share boilerplate, three tenths of all
            # shingles at the default threshold, and a million documents that share one shingle in two hundred.
            boilerplate = banding.meeting_probability(0.3 * threshold / 0.75)
            cost = bands + 60.0 * boilerplate + 1e6 * banding.meeting_probability(0.005)
            if cost < best_cost:
                best, best_cost = banding, cost
            break
    if best is None:
        raise ValueError(
            f"at most {max_bands} bands cannot find similarity {threshold} with probability {recall}; "
            "take a higher threshold"
        )
    return best


@njit(cache=True, nogil=True)
def band_keys(minima: NDArray[np.uint32], shingles: NDArray[np.int32], rows: int, keys: NDArray[np.uint32]) -> None:
    """One 32-bit key per document and band, equal where all rows of the band agree.

    A band's number enters its keys, so equal rows in two bands differ.

    Args:
        minima: uint32[n, m] with m at least `bands * rows`; further columns are not read.
        shingles: int32[n]; documents with none keep the keys that they have, which mean nothing.
        rows: minima per band.
        keys: uint32[n, bands]; written.
    """
    for document in range(keys.shape[0]):
        if shingles[document] == 0:
            continue
        for band in range(keys.shape[1]):
            key = np.uint64(band + 1)
            for row in range(rows):
                key = mix64(key ^ np.uint64(minima[document, band * rows + row])) + np.uint64(band)
            keys[document, band] = np.uint32(key >> np.uint64(32))
