"""Weights of n-grams that leave neutral sentences alone, by the smallest change."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import sparse

_ROUNDS = 1000
_NEAR = 1e-3
"""Of a score; where no step changes one by more, the weights have settled."""


def hold_down(weights: NDArray[np.float32], sentences: sparse.csr_matrix, limit: float) -> NDArray[np.float32]:
    """The nearest weights under which no sentence scores more than a limit.

    Minimises the Euclidean norm of the change, by Hildreth's method for quadratic programs (C. Hildreth, A quadratic
    programming procedure, Naval Research Logistics Quarterly 4, 1957). What many sentences have in common changes
    most: the names of groups, where each stands in many sentences.

    Args:
        weights: float32[n].
        sentences: float64[m, n]; a sentence's score is its row times the weights. No row is empty.
        limit: highest score.
    """
    excess = np.asarray(sentences @ weights.astype(np.float64) - limit)
    if not sentences.shape[0] or excess.max() <= 0:
        return weights
    products = np.asarray((sentences @ sentences.T).todense())
    change = sentences.T @ _hildreth(products, excess)
    return np.asarray(weights - change, dtype=np.float32)


@njit(cache=True)
def _hildreth(products: NDArray[np.float64], excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[m], not negative: how much of each sentence to take off. `excess` is used up."""
    shares = np.zeros(excess.size)
    for _ in range(_ROUNDS):
        moved = 0.0
        for i in range(shares.size):
            step = max(-shares[i], excess[i] / products[i, i])
            if step != 0:
                shares[i] += step
                excess -= step * products[i]
                moved = max(moved, abs(step) * products[i, i])
        if moved < _NEAR:
            break
    return shares
