"""Putting a network behind a model of n-grams, on a few hundred generated sentences."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dqs.commands.root import app
from dqs.errors import ConfigError
from dqs.models import ModelFolder, find_models, load_model, model_roots
from dqs.scorers.toxicity import ToxicityModel
from dqs.text import TextBatch
from dqs.text.ngrams import NgramShape
from dqs.training.toxicity import Recipe, train_toxicity
from dqs.training.toxicity_second import Plan, add_second_look
from tests.unit.networks import write_graph, write_tokenizer
from tests.unit.test_toxicity_training import clean_table, labelled_table

RECIPE = Recipe(
    shape=NgramShape(word_sizes=2, character_sizes=(4,), bits=14, block_words=8),
    fitted_share=0.5, toxic_share=0.5, discount=0.25,
)  # fmt: skip
PLAN = Plan(low_short=0.0, low_long=0.0, short_per_mb=300.0, long_per_mb=200.0, toxic_share=0.5, clean_share=0.5)


def posts() -> dict[str, list[Any]]:
    """Sentences written as posts; the network knows the word behind them."""
    table = labelled_table("en")
    table["split"] = [{"test": "dev"}.get(split, split) for split in table["split"]]
    table["text"] = [
        f"{text.lower()} {'vile' if label else 'good'}!! @you"
        for text, label in zip(table["text"], table["label"], strict=True)
    ]
    return table


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table(posts()), folder / "toxicity_en.parquet")
    clean = clean_table("en")
    # Half of the documents are a sentence, and all are written as books are.
    clean["text"] = [(text if i % 2 else text.split(".")[0] + ".").capitalize() for i, text in enumerate(clean["text"])]
    pq.write_table(pa.table(clean), folder / "clean_en.parquet")
    return folder


@pytest.fixture
def first(tmp_path: Path, data: Path) -> ModelFolder:
    return train_toxicity(
        data, tmp_path / "first", "en", exclude_splits=["dev"], recipe=RECIPE, card_figures=False
    ).model


def export(folder: Path, labels: Sequence[str] = ("toxic",)) -> Path:
    folder.mkdir()
    write_graph(folder / "model.onnx", labels=len(labels))
    write_tokenizer(folder / "tokenizer.json")
    table = {
        "labels": [*labels], "main_label": "toxic", "head": "multi_label", "output": "logits", "max_tokens": 64,
        "window_tokens": 64, "inputs": {"ids": "input_ids", "mask": "attention_mask"},
    }  # fmt: skip
    (folder / "classifier.json").write_text(json.dumps(table), "utf-8")
    return folder


def test_posts_are_looked_at_again_and_prose_is_not(tmp_path: Path, data: Path, first: ModelFolder) -> None:
    told: list[str] = []
    network = export(tmp_path / "export")
    made = add_second_look(first, network, data, tmp_path / "made", version="2", plan=PLAN, progress=told.append)
    assert made.label == "toxicity-en@2"
    assert len(told) == 3
    model = ToxicityModel(made)
    assert model.discount == 0.25
    clean = [text.encode() for text in pq.read_table(data / "clean_en.parquet")["text"].to_pylist()]
    batch = TextBatch.from_bytes(clean)
    looked = model.score(batch, np.arange(len(clean))).looked_at
    megabytes = sum(map(len, clean)) / 1e6
    # Of the half that sets the limits no more windows than the plan allows; of all about twice as many.
    assert looked <= 2 * (PLAN.short_per_mb + PLAN.long_per_mb) * megabytes + 4
    table = posts()
    dev = [i for i, split in enumerate(table["split"]) if split == "dev" and table["ship"][i]]
    batch = TextBatch.from_bytes([table["text"][i].encode() for i in dev])
    found = model.score(batch, np.arange(len(dev)))
    assert found.looked_at > 0.8 * len(dev)
    toxic = np.array([table["label"][i] for i in dev]) == 1
    assert found.probability[toxic].min() > found.probability[~toxic].max()
    assert "The second look" in (made.path / "CARD.md").read_text("utf-8")


def test_a_model_takes_another_network(tmp_path: Path, data: Path, first: ModelFolder) -> None:
    add_second_look(first, export(tmp_path / "one"), data, tmp_path / "made", version="2", plan=PLAN)
    command = ["train", "second-look", str(tmp_path / "made" / "toxicity-en" / "2"), str(export(tmp_path / "two"))]
    command += ["--data", str(data), "--output", str(tmp_path / "made"), "--version", "3"]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    made = load_model(tmp_path / "made" / "toxicity-en" / "3")
    made.verify()
    ToxicityModel(made)
    assert (made.path / "CARD.md").read_text("utf-8").count("The second look") == 1
    command[2] = str(find_models(model_roots(), kind="quality")[0].path)
    command[-1] = "4"
    assert "no toxicity model of one language" in str(CliRunner().invoke(app, command).exception)
    command[2:4] = [str(made.path), str(tmp_path / "nowhere")]
    assert "has no model.onnx" in str(CliRunner().invoke(app, command).exception)
    assert not (tmp_path / "made" / "toxicity-en" / "4").exists()
    command[-1] = "3"
    again = CliRunner().invoke(app, command)
    assert "give another --version" in str(again.exception)


def test_the_same_data_give_the_same_model(tmp_path: Path, data: Path, first: ModelFolder) -> None:
    network = export(tmp_path / "export")
    files = []
    for name in ("one", "two"):
        made = add_second_look(first, network, data, tmp_path / name, version="2", plan=PLAN)
        files.append(tomllib.loads((made.path / "model.toml").read_text("utf-8")))
    assert files[0] == files[1]


def test_what_is_missing_is_said(tmp_path: Path, data: Path, first: ModelFolder) -> None:
    network = export(tmp_path / "export", ("toxic", "insult"))
    with pytest.raises(ConfigError, match="too few annotated toxic rows"):
        add_second_look(first, network, data, tmp_path / "made", version="2", plan=PLAN)
    (network / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        add_second_look(first, network, data, tmp_path / "made", version="2", plan=PLAN)
