"""Classifiers that users bring, as families of signals."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.executors.inline import InlineExecutor
from dqs.executors.loading import describe, load_scorers, warm_up
from dqs.executors.replica import Recipe, ScorerReplica
from dqs.inference.sessions import Runtime
from dqs.inference.transformer import Transformer
from dqs.models import ModelFolder
from dqs.scorer import Direction, ScoreColumns
from dqs.scorers import build_scorers
from dqs.scorers.classifier import ClassifierScorer, model_signals
from dqs.text import TextBatch
from tests.unit.networks import write_folder

TEXTS = ["good word", "bad vile", "", "好坏", "\U0001f642 !", "plain"]
LANGUAGES = ["en", "en", "und", "zh", "und", "de"]


def score(models: Sequence[ModelFolder], texts: Sequence[str] = TEXTS) -> ScoreColumns:
    batch = TextBatch.from_bytes([text.encode() for text in texts] + [b"\xff\xfe"])
    columns = ScoreColumns(len(batch), language=[*LANGUAGES[: len(texts)], "und"])
    ClassifierScorer(models).score(batch, columns)
    return columns


def names(folder: ModelFolder) -> dict[str, Direction]:
    return {signal.name: signal.direction for signal in model_signals(folder)}


def test_each_label_is_a_signal(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, languages=["en"])

    columns = score([folder])

    expected, _ = Transformer(folder).score_texts(TEXTS[:2])
    assert set(columns.values) == {"tiny_fine", "tiny_rude"}
    np.testing.assert_array_equal(columns.values["tiny_rude"][:2], expected[:, 1])
    for missing in columns.missing.values():
        assert missing.tolist() == [
            Missing.PRESENT, Missing.PRESENT, Missing.TOO_SHORT, Missing.NO_MODEL, Missing.TOO_SHORT, Missing.NO_MODEL,
            Missing.TOO_SHORT,
        ]  # fmt: skip
    assert np.isnan(columns.values["tiny_fine"][2:]).all()


def test_a_model_that_names_no_language_serves_all(tmp_path: Path) -> None:
    columns = score([write_folder(tmp_path, languages=[])])

    assert np.flatnonzero(np.isfinite(columns.values["tiny_fine"])).tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"tiny_fine": Direction.NEUTRAL, "tiny_rude": Direction.NEUTRAL}),
        ({"task": "toxicity", "main_label": "rude"},
         {"tiny_fine": Direction.HIGHER_IS_WORSE, "tiny_toxicity": Direction.HIGHER_IS_WORSE}),
        ({"task": "toxicity", "head": "single_label"},
         {"tiny_fine": Direction.NEUTRAL, "tiny_toxicity": Direction.HIGHER_IS_WORSE}),
        ({"task": "quality", "main_label": "fine"},
         {"tiny_quality": Direction.LOWER_IS_WORSE, "tiny_rude": Direction.NEUTRAL}),
        ({"labels": ["Very Good!", "LABEL_1"], "name": "My-Model.v2"},
         {"my_model_v2_very_good": Direction.NEUTRAL, "my_model_v2_label_1": Direction.NEUTRAL}),
        ({"labels": ["广告", "正文"], "name": "3x"},
         {"model_3x_label_0": Direction.NEUTRAL, "model_3x_label_1": Direction.NEUTRAL}),
    ],
)  # fmt: skip
def test_names_and_directions(tmp_path: Path, fields: dict[str, Any], expected: dict[str, Direction]) -> None:
    assert names(write_folder(tmp_path, **fields)) == expected


def test_a_regression_has_its_range(tmp_path: Path) -> None:
    (signal,) = model_signals(write_folder(tmp_path, labels=["score"], head="regression", range=(0.0, 5.0)))
    (free,) = model_signals(write_folder(tmp_path, "free", labels=["score"], head="regression"))

    assert (signal.unit, signal.low, signal.high) == ("value", 0, 5)
    assert (free.low, free.high) == (-np.inf, np.inf)


def test_answers_that_are_no_number_have_a_reason(tmp_path: Path) -> None:
    columns = score([write_folder(tmp_path, head="regression", factor=float("nan"))])

    assert columns.missing["tiny_fine"][:2].tolist() == [Missing.UNAVAILABLE] * 2
    assert np.isnan(columns.values["tiny_fine"]).all()


def test_signals_that_clash_are_refused(tmp_path: Path) -> None:
    one, two = write_folder(tmp_path, "a-b"), write_folder(tmp_path, "a.b")
    with pytest.raises(ModelError, match=r"a-b@1 and a\.b@1 both give the signal a_b_fine"):
        ClassifierScorer([one, two])

    with pytest.raises(ModelError, match="labels 'x y' and 'x-y' of the model same@1 both give the signal same_x_y"):
        model_signals(write_folder(tmp_path, "same", labels=["x y", "x-y"]))

    # "perplexity" is a signal that ships, so is "perplexity_percentile".
    clash = write_folder(tmp_path, "perplexity", labels=["percentile", "other"])
    with pytest.raises(ModelError, match="perplexity_percentile: import the model under another name"):
        build_scorers([clash])


def test_several_serve_side_by_side_as_settings_choose(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folder(tmp_path / "models", name)

    def serving(classifiers: Sequence[str] | None) -> tuple[set[str], list[str]]:
        models, scorers = load_scorers(tmp_path / "models", tmp_path / "data", classifiers=classifiers)
        found = {signal.name for scorer in scorers for signal in scorer.signals}
        return {name for name in found if name.startswith(("one_", "two_"))}, [
            model.name for model in models if model.kind == "classifier"
        ]

    both = {"one_fine", "one_rude", "two_fine", "two_rude"}
    assert serving(None) == (both, ["one", "two"])
    assert serving(["two"]) == ({"two_fine", "two_rude"}, ["two"])
    assert serving([]) == (set(), [])
    with pytest.raises(ModelError, match="no classifier 'three', which the setting classifiers names; there are: one"):
        serving(["three"])


def test_the_warm_up_goes_through_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "models", languages=[])
    models, scorers = load_scorers(tmp_path / "models", tmp_path / "data")
    executor = InlineExecutor(scorers, describe(models))

    warm_up(executor)

    assert {"tiny_fine", "tiny_rude"} < {signal.name for signal in executor.signals}
    assert "tiny" in {model.name for model in executor.models}


def test_workers_are_told_what_serves_and_how(tmp_path: Path) -> None:
    write_folder(tmp_path / "models", "one")
    write_folder(tmp_path / "models", "two")
    recipe = Recipe(tmp_path / "data", tmp_path / "models", runtime=Runtime("cpu", 2), classifiers=("two",))

    introduction = ScorerReplica(pickle.loads(pickle.dumps(recipe))).introduce()

    names = {signal.name for signal in introduction.signals}
    assert {"two_fine", "two_rude"} < names
    assert "one_fine" not in names
    assert {model.name for model in introduction.models if model.kind == "classifier"} == {"two"}


def test_a_changed_file_is_refused_at_start(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "models")
    graph = folder.file("graph")
    graph.write_bytes(graph.read_bytes() + b"\0")

    with pytest.raises(ModelError, match=r"model tiny@1: .*model\.onnx is not the file that model\.toml names"):
        load_scorers(tmp_path / "models", tmp_path / "data")
    graph.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx cannot be read"):
        load_scorers(tmp_path / "models", tmp_path / "data")
