"""The design for one corpus over several shards keeps its promises, and without any one of its rules it does not."""

from __future__ import annotations

import pytest

from tests.simulation.history import Outcome
from tests.simulation.sharded_index import BANDS, Flaw, Settings, band_keys, near, shard_of, simulate

SEEDS = 60
"""Runs per setting here; `MANY_SEEDS` in the long tests."""

MANY_SEEDS = 5000

SETTINGS = {
    "default": Settings(),
    "many deletions and repetitions": Settings(deletion=0.4, repetition=0.4, window=16),
    "many failovers": Settings(failover_every=8.0, faults_until=200.0),
    "five shards, five replicas": Settings(shards=5, replicas=5, clients=6),
    "one cluster, small window": Settings(clusters=1, variants=4, clients=8, calls=4, window=3),
}

# Where the default faults meet a flaw too rarely, more of those that it takes; seeds that are known to show it.
FLAWED = {
    Flaw.NO_DECIDER: (Settings(deletion=0.0), 20),
    Flaw.NO_WINDOW: (Settings(), 20),
    Flaw.SHORT_WINDOW: (Settings(), 100),
    Flaw.BLIND_TO_DELETIONS: (Settings(deletion=0.4, repetition=0.4, window=16), 50),
    Flaw.DECIDED_TWICE: (Settings(deletion=0.3, repetition=0.4, straggling=0.2, window=16), 200),
    Flaw.EARLY_ANSWER: (Settings(failover_every=10.0), 100),
    Flaw.NO_FENCING: (Settings(failover_every=8.0, faults_until=200.0), 300),
    Flaw.LASTING_WATERMARK: (Settings(), 20),
    Flaw.GAPS_APPLIED: (Settings(), 20),
}


def assert_sound(settings: Settings, seeds: int) -> None:
    for seed in range(seeds):
        result = simulate(seed, settings)
        assert not result.violations, f"seed {seed}: {[violation.sentence for violation in result.violations]}"
        assert not result.astray, f"seed {seed}: {result.astray}"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_promise_is_kept(name: str) -> None:
    assert_sound(SETTINGS[name], SEEDS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_promise_is_kept_in_many_runs(name: str) -> None:
    assert_sound(SETTINGS[name], MANY_SEEDS)


@pytest.mark.parametrize("flaw", FLAWED, ids=lambda flaw: flaw.name)
def test_without_a_rule_of_the_design_a_promise_is_broken(flaw: Flaw) -> None:
    settings, seeds = FLAWED[flaw]
    assert any(simulate(seed, settings, flaw).violations for seed in range(seeds)), flaw.value


def test_every_flaw_is_tried() -> None:
    assert set(FLAWED) == set(Flaw) - {Flaw.NONE}


def test_a_run_is_decided_by_its_seed() -> None:
    assert simulate(3) == simulate(3)


def test_the_runs_hold_what_they_are_meant_to_try() -> None:
    results = [simulate(seed) for seed in range(20)]
    for outcome in (*Outcome, None):
        assert sum(result.outcomes[outcome] for result in results) >= 20
    assert sum(result.failovers for result in results) >= 60
    assert sum(result.expired for result in results) >= 20


def test_near_duplicates_share_two_bands_and_others_none() -> None:
    texts = [f"{name}/{variant}" for name in "ab" for variant in range(5)]
    on_shards = set()
    for a in texts:
        assert len(band_keys(a)) == BANDS
        for b in texts:
            shared = set(band_keys(a)) & set(band_keys(b))
            assert (len(shared) >= 2) == near(a, b)
            assert near(a, b) or not shared
            on_shards.add(frozenset(shard_of(key, 3) for key in shared))
    # Some pairs meet on shards that other pairs do not meet on, so no shard sees them all.
    assert len(on_shards) > 2
