"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

import pytest

from dqs.index.circuit import MAX_OPEN_S, MIN_OPEN_S, Circuit


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit(clock)


def test_everybody_may_ask_while_all_is_well(circuit: Circuit) -> None:
    assert all(circuit.admit() for _ in range(3))
    circuit.succeed()
    assert circuit.admit()


@pytest.mark.parametrize(("took_s", "open_s"), [(0.0, MIN_OPEN_S), (2.0, 2.0), (60.0, MAX_OPEN_S)])
def test_a_failure_opens_it_as_long_as_it_took(circuit: Circuit, clock: Clock, took_s: float, open_s: float) -> None:
    assert circuit.admit()
    circuit.fail(took_s)
    clock.now_s += 0.99 * open_s
    assert not circuit.admit()
    clock.now_s += 0.02 * open_s
    assert circuit.admit()


def test_one_tries_and_the_others_wait_for_it(circuit: Circuit, clock: Clock) -> None:
    circuit.fail(0.0)
    clock.now_s += 1
    assert circuit.admit()
    assert not circuit.admit()
    circuit.fail(0.0)
    assert not circuit.admit()
    clock.now_s += 1
    assert circuit.admit()
    circuit.succeed()
    assert circuit.admit()
    assert circuit.admit()


def test_who_tries_and_never_comes_back_loses_the_turn(circuit: Circuit, clock: Clock) -> None:
    circuit.fail(0.0)
    clock.now_s += 1
    assert circuit.admit()
    clock.now_s += MAX_OPEN_S
    assert circuit.admit()
