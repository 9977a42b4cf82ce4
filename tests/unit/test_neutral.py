"""Weights held down on neutral sentences: the limit holds, nothing else moves, and no nearer weights do it."""

from __future__ import annotations

import numpy as np
from scipy import optimize, sparse

from dqs.training.neutral import hold_down


def test_the_limit_holds_and_the_change_is_the_smallest() -> None:
    random = np.random.default_rng(4)
    sentences = random.integers(0, 2, size=(12, 20)).astype(float)
    sentences[:, 17:] = 0
    weights = random.normal(size=20)
    found = hold_down(weights.astype(np.float32), sparse.csr_matrix(sentences), 0.1)
    assert (sentences @ found).max() <= 0.1 + 1e-3
    np.testing.assert_array_equal(found[17:], weights[17:].astype(np.float32))
    best = optimize.minimize(
        lambda changed: 0.5 * np.sum((changed - weights) ** 2), weights, jac=lambda changed: changed - weights,
        constraints={"type": "ineq", "fun": lambda c: 0.1 - sentences @ c, "jac": lambda c: -sentences},
        method="SLSQP", options={"maxiter": 500},
    )  # fmt: skip
    assert best.success
    np.testing.assert_allclose(found, best.x, atol=2e-3)


def test_what_is_below_already_stays() -> None:
    weights = np.array([-1.0, 0.5], dtype=np.float32)
    assert hold_down(weights, sparse.csr_matrix([[1.0, 0.0]]), 0.0) is weights
    assert hold_down(weights, sparse.csr_matrix((0, 2)), 0.0) is weights
