"""What every executor must hold to: here, with scoring in this process and in Ray workers."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dqs.data import Missing
from dqs.executors.inline import InlineExecutor
from dqs.executors.loading import describe, load_scorers
from dqs.executors.ray_actors import RayExecutor
from dqs.index.signature import SignatureParameters
from dqs.pipeline import Executor, Scored
from dqs.settings import load_settings
from tests.cluster.killing import RAISES, BrokenScorer, build
from tests.cluster.workers import score
from tests.contract.test_scorers import DOCUMENTS, ONNX_TOLERANCE

LANGUAGES = ["", "en", "zh", "de", "en"] * (len(DOCUMENTS) // 5 + 1)


@pytest.fixture(scope="session")
def inline() -> InlineExecutor:
    settings = load_settings()
    models, scorers = load_scorers(settings.models, settings.data_dir, build)
    return InlineExecutor(scorers, describe(models))


@pytest.fixture(params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Executor:
    chosen: Executor = request.getfixturevalue("inline" if request.param == "inline" else "workers")
    return chosen


@pytest.fixture(scope="session")
def expected(inline: InlineExecutor) -> Scored:
    return score(inline, DOCUMENTS, LANGUAGES[: len(DOCUMENTS)])


def assert_same(got: Scored, expected: Scored) -> None:
    assert got.columns.language == expected.columns.language
    assert list(got.columns.values) == list(expected.columns.values)
    for name, values in expected.columns.values.items():
        assert got.columns.values[name].dtype == np.float32
        assert got.columns.missing[name].dtype == np.uint8
        if name == "quality" or name.startswith("toxicity"):
            np.testing.assert_allclose(got.columns.values[name], values, atol=ONNX_TOLERANCE)
        else:
            np.testing.assert_array_equal(got.columns.values[name], values, err_msg=name)
        np.testing.assert_array_equal(got.columns.missing[name], expected.columns.missing[name], err_msg=name)
    assert got.columns.toxicity_span is not None
    np.testing.assert_array_equal(got.columns.toxicity_span, expected.columns.toxicity_span)
    np.testing.assert_array_equal(got.valid, expected.valid)
    assert got.failed is None
    assert (got.signatures is None) == (expected.signatures is None)
    if got.signatures is not None and expected.signatures is not None:
        assert got.signatures.parameters == expected.signatures.parameters
        for name in ("shingles", "text_hash", "bands", "sketch", "lines"):
            mine, theirs = getattr(got.signatures, name), getattr(expected.signatures, name)
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


def part(whole: Scored, documents: slice) -> Scored:
    columns = whole.columns
    assert columns.toxicity_span is not None
    assert whole.signatures is not None
    return Scored(
        type(columns)(
            len(range(len(columns.language))[documents]),
            {name: values[documents] for name, values in columns.values.items()},
            {name: codes[documents] for name, codes in columns.missing.items()},
            columns.language[documents],
            columns.toxicity_span[documents],
        ),
        whole.valid[documents],
        whole.signatures[documents],
    )


@pytest.mark.parametrize("size", [1, 7, len(DOCUMENTS)])
def test_scores_are_the_same_however_batches_are_cut(executor: Executor, expected: Scored, size: int) -> None:
    for start in range(0, len(DOCUMENTS), size):
        documents = slice(start, min(start + size, len(DOCUMENTS)))
        assert_same(score(executor, DOCUMENTS[documents], LANGUAGES[documents]), part(expected, documents))


def test_what_it_says_of_itself(executor: Executor, inline: InlineExecutor) -> None:
    assert executor.signals == inline.signals
    assert executor.models == inline.models
    assert len(executor.models) >= 4
    status = executor.status()
    assert 1 <= status.slots <= executor.max_slots
    assert status.lost is None
    assert any(replica.ready for replica in status.replicas)
    assert score(executor, [b"Who?"]).replica in {replica.name for replica in status.replicas}


def test_an_empty_batch(executor: Executor) -> None:
    scored = score(executor, [])

    assert scored.columns.size == scored.valid.size == 0
    assert list(scored.columns.values) == [signal.name for signal in executor.signals]
    assert scored.signatures is not None
    assert len(scored.signatures) == 0


def test_invalid_utf8_beside_a_good_document(executor: Executor) -> None:
    scored = score(executor, [b"\xff\xfe", b"A good document.", b"\xc3"])

    assert scored.valid.tolist() == [False, True, False]


def test_one_huge_document(executor: Executor, inline: InlineExecutor) -> None:
    text = b"Every word counts, and there are many of them. " * (10_000_000 // 47)

    assert_same(score(executor, [text]), score(inline, [text]))


def test_signatures_only_where_asked_for(executor: Executor) -> None:
    utf8, byte_offsets = np.frombuffer(b"text", dtype=np.uint8), np.array([0, 4], dtype=np.int64)

    assert executor.score(utf8, byte_offsets, [""]).signatures is None
    signed = executor.score(utf8, byte_offsets, [""], signature=SignatureParameters.for_threshold(0.5)).signatures
    assert signed is not None
    assert signed.bands.shape == (1, SignatureParameters.for_threshold(0.5).bands)


@pytest.mark.parametrize("chosen", [None, frozenset(), frozenset({"wordy"}), frozenset({"wordy", "brief"})])
def test_only_the_classifiers_that_were_asked_for_run(executor: Executor, chosen: frozenset[str] | None) -> None:
    assert executor.classifiers == ["brief", "wordy"]
    utf8, byte_offsets = np.frombuffer(b"Short.", dtype=np.uint8), np.array([0, 6], dtype=np.int64)

    columns = executor.score(utf8, byte_offsets, [""], classifiers=chosen).columns

    for name, signals in (("brief", ["short"]), ("wordy", ["long", "longer"])):
        runs = chosen is None or name in chosen
        for signal in signals:
            assert columns.missing[signal].tolist() == [Missing.PRESENT if runs else Missing.NOT_ASKED]
            assert np.isnan(columns.values[signal]).tolist() == [not runs]
    assert columns.missing["characters"].tolist() == [Missing.PRESENT], "what is no classifier runs always"


def test_every_answer_names_its_models(executor: Executor, inline: InlineExecutor) -> None:
    models = score(executor, DOCUMENTS[:2]).models

    assert models is not None
    assert models.digest == inline.model_set.digest
    assert list(models.models) == executor.models


def test_what_a_scorer_raises_comes_as_it_is(executor: Executor) -> None:
    with pytest.raises(BrokenScorer, match="as asked"):
        score(executor, [b"good", RAISES])

    assert score(executor, [b"good"]).failed is None


def test_answers_belong_to_nobody_else(executor: Executor) -> None:
    first = score(executor, DOCUMENTS[:4])
    before = {name: values.copy() for name, values in first.columns.values.items()}
    for values in score(executor, DOCUMENTS[:4]).columns.values.values():
        if values.flags.writeable:
            values[:] = -1

    for name, values in first.columns.values.items():
        np.testing.assert_array_equal(values, before[name])


def test_stages_have_times(executor: Executor, inline: InlineExecutor) -> None:
    seconds = score(executor, DOCUMENTS[:4]).seconds

    assert set(seconds) == set(score(inline, DOCUMENTS[:4]).seconds)
    assert all(spent_s >= 0 for spent_s in seconds.values())


def test_many_threads_at_once(executor: Executor, expected: Scored) -> None:
    wrong: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for start in range(thread, len(DOCUMENTS) - 3, 8):
                documents = slice(start, start + 3)
                assert_same(score(executor, DOCUMENTS[documents], LANGUAGES[documents]), part(expected, documents))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_the_workers_are_ray_workers(workers: RayExecutor) -> None:
    assert {replica.pool for replica in workers.status().replicas} == {"cpu"}
