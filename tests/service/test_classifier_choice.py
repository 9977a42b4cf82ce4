"""Callers choose which classifiers run: over the wire, with both clients, from the command."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dqs import AsyncClient, Client, Verdict
from dqs.data import Missing
from dqs.errors import RequestError
from tests.cluster.killing import ChoosingScorer
from tests.service.conftest import SMALL_LIMITS
from tests.service.serving import ENGLISH, LocalServer, wait_until
from tests.service.test_cli_commands import assert_one_sentence, dqs_here

FAMILIES = {"brief": ("short",), "wordy": ("long", "longer")}
GIVEN = [(str(number), f"{ENGLISH} {number}") for number in range(20)]


@pytest.fixture
def scorer() -> ChoosingScorer:
    return ChoosingScorer()


@pytest.fixture
def local(scorer: ChoosingScorer) -> Iterator[LocalServer]:
    with LocalServer([scorer], **SMALL_LIMITS) as server:
        yield server


def score(kind: str, address: str, **options: Any) -> list[Verdict]:
    """All of `GIVEN`, by one of the ways to do so."""

    async def asynchronously() -> list[Verdict]:
        async with AsyncClient(address) as client:
            if kind == "async batch":
                return await client.score_batch(GIVEN, corpus=None, policy="score-only", **options)
            return [verdict async for verdict in client.score(GIVEN, corpus=None, policy="score-only", **options)]

    if kind.startswith("async"):
        return asyncio.run(asynchronously())
    with Client(address) as client:
        if kind == "batch":
            return client.score_batch(GIVEN, corpus=None, policy="score-only", **options)
        return list(client.score(GIVEN, corpus=None, policy="score-only", **options))


KINDS = ["stream", "batch", "async stream", "async batch"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", [None, (), ["wordy"], {"wordy", "brief"}])
def test_only_those_asked_for_run(
    kind: str, chosen: Iterable[str] | None, local: LocalServer, scorer: ChoosingScorer
) -> None:
    wanted = set(FAMILIES) if chosen is None else set(chosen)
    verdicts = score(kind, local.address, classifiers=chosen)

    assert [verdict.id for verdict in verdicts] == [name for name, _ in GIVEN]
    assert set(scorer.runs) == {frozenset(wanted)}
    for verdict in verdicts:
        for family, signals in FAMILIES.items():
            for signal in signals:
                if family in wanted:
                    assert verdict.signals[signal] is not None
                else:
                    assert verdict.missing[signal] == Missing.NOT_ASKED
        assert verdict.signals["characters"] is not None


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_refused_with_those_that_serve(kind: str, local: LocalServer) -> None:
    with pytest.raises(RequestError, match=r"There is no classifier 'bref'; there are: brief, wordy\."):
        score(kind, local.address, classifiers=["bref", "wordy"])
    assert len(score(kind, local.address, classifiers=["wordy"])) == len(GIVEN)


def test_one_name_is_no_list_of_names(local: LocalServer) -> None:
    with pytest.raises(RequestError, match="put one name into a list"):
        score("batch", local.address, classifiers="wordy")


def test_the_service_lists_them(local: LocalServer) -> None:
    with Client(local.address) as client:
        assert list(client.info().classifiers) == ["brief", "wordy"]


def test_calls_that_choose_differently_share_no_batch(local: LocalServer, scorer: ChoosingScorer) -> None:
    async def all_at_once() -> list[list[Verdict]]:
        async with AsyncClient(local.address) as client:
            calls = [
                asyncio.create_task(
                    client.score_batch([("a", ENGLISH)], corpus=None, policy="score-only", classifiers=chosen)
                )
                for chosen in [None, ["brief"], ["wordy"], []] * 5
            ]
            await asyncio.to_thread(wait_until, lambda: local.metric("dqs_pending_docs") == len(calls))
            local.executor.open_gate()
            return list(await asyncio.gather(*calls))

    local.executor.close_gate()
    answers = asyncio.run(all_at_once())

    for (verdict,), chosen in zip(answers, [{"brief", "wordy"}, {"brief"}, {"wordy"}, set()] * 5, strict=True):
        for family, signals in FAMILIES.items():
            assert all((verdict.signals[signal] is not None) == (family in chosen) for signal in signals)
    assert set(scorer.runs) == {frozenset(), frozenset({"brief"}), frozenset({"wordy"}), frozenset(FAMILIES)}


class TestTheCommand:
    @pytest.fixture
    def rows(self, tmp_path: Path) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"id": "a", "text": "One short text."}\n', "utf-8")
        return path

    def test_it_chooses_among_those_of_a_service(
        self, rows: Path, local: LocalServer, scorer: ChoosingScorer, tmp_path: Path
    ) -> None:
        for option, runs in (("wordy", {"wordy"}), (" brief, wordy", {"brief", "wordy"}), ("none", set())):
            scorer.runs.clear()
            status, _, err = dqs_here(
                tmp_path, "score", rows, "-o", "out.jsonl", "--no-dedup", "--policy", "score-only",
                "--server", local.address, "--classifiers", option,
            )  # fmt: skip
            assert status == 0, err
            assert scorer.runs == [runs]

    def test_it_refuses_an_unknown_name(self, rows: Path, local: LocalServer, tmp_path: Path) -> None:
        there, here = ["--server", local.address], list[str]()
        for where, said in (
            (there, "no classifier 'x'; it has: brief, wordy."),
            (here, "no classifier 'x'; there are: none."),
        ):
            status, _, err = dqs_here(
                tmp_path, "score", rows, "-o", "out.jsonl", "--no-dedup", "--classifiers", "x", *where
            )
            assert status == 2
            assert said in err.splitlines()[-1]
        assert not (tmp_path / "out.jsonl").exists()
        assert_one_sentence(err.splitlines()[-1])
