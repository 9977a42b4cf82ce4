"""Transformers that classify texts: answers, windows, and batches that do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dqs.errors import ModelError
from dqs.inference.sessions import Runtime
from dqs.inference.transformer import Transformer, read_shape
from dqs.models import load_model, to_toml
from dqs.text import TextBatch
from tests.unit.networks import WORDS, expected_logits, write_folder, write_graph, write_loaded

ROOM = 6
"""Words that a window of 8 tokens has room for."""
STEP = 4
TEXTS = [
    "good word",
    "",
    "bad",
    "Fine plain word good fine plain word good fine bad vile bad plain word good fine",
    "好 word 坏",
    "unknown things",
    "good " * 40 + "vile vile " + "fine " * 11,
]


def windows_of(text: str) -> list[list[str]]:
    words = text.lower().split()
    if len(words) <= ROOM:
        return [words]
    starts = [*range(0, len(words) - ROOM, STEP), len(words) - ROOM]
    return [words[start : start + ROOM] for start in starts]


def expected(text: str, head: str, aggregation: str) -> NDArray[np.float64]:
    logits = np.array([expected_logits(words, 2) for words in windows_of(text)])
    if head == "multi_label":
        logits = 1 / (1 + np.exp(-logits))
    elif head == "single_label":
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    values: NDArray[np.float64] = logits.max(axis=0) if aggregation == "max" else logits.mean(axis=0)
    return values


@pytest.mark.parametrize("head", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("aggregation", ["max", "mean"])
def test_answers_are_those_of_the_graph(tmp_path: Path, head: str, aggregation: str) -> None:
    model = write_loaded(tmp_path, head=head, aggregation=aggregation)

    scores, _ = model.score_texts(TEXTS)

    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [expected(text, head, aggregation) for text in TEXTS], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_answers_do_not_depend_on_how_batches_are_cut(tmp_path: Path, precision: str, size: int) -> None:
    model = write_loaded(tmp_path, precision=precision)
    whole, spans = model.score_texts(TEXTS)

    parts = [model.score_texts(TEXTS[start : start + size]) for start in range(0, len(TEXTS), size)]

    np.testing.assert_allclose(np.concatenate([scores for scores, _ in parts]), whole, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([span for _, span in parts]), spans)


@pytest.mark.parametrize("run_tokens", [1, 20, 100_000])
def test_nor_on_how_many_tokens_run_together(tmp_path: Path, run_tokens: int) -> None:
    folder = write_folder(tmp_path)

    np.testing.assert_allclose(
        Transformer(folder, run_tokens=run_tokens).score_texts(TEXTS)[0],
        Transformer(folder).score_texts(TEXTS)[0],
        atol=1e-5,
    )


def test_weights_of_half_precision_are_close(tmp_path: Path) -> None:
    half = write_loaded(tmp_path, name="half", precision="fp16").score_texts(TEXTS)[0]

    np.testing.assert_allclose(half, write_loaded(tmp_path).score_texts(TEXTS)[0], atol=1e-2)


def test_weights_of_8_bits_run_alone_where_the_batch_matters(tmp_path: Path) -> None:
    whole = write_loaded(tmp_path).score_texts(TEXTS)[0]
    together = write_loaded(tmp_path, name="together", precision="int8")
    alone = write_loaded(tmp_path, name="alone", precision="int8", alone=True)

    scores = alone.score_texts(TEXTS)[0]

    np.testing.assert_allclose(scores, whole, atol=0.15)
    np.testing.assert_array_equal(np.concatenate([alone.score_texts([text])[0] for text in TEXTS]), scores)
    parts = np.concatenate([together.score_texts([text])[0] for text in TEXTS])
    assert np.abs(parts - together.score_texts(TEXTS)[0]).max() > 1e-5


@pytest.mark.parametrize(("rows", "tokens"), [(1, 8), (3, 8), (3, "tokens"), ("rows", 8), (2, 12)])
def test_graphs_of_fixed_shape(tmp_path: Path, rows: int | str, tokens: int | str) -> None:
    free = write_loaded(tmp_path, name="free")
    fixed = write_loaded(tmp_path, rows=rows, tokens=tokens)

    for some in (TEXTS, TEXTS[:1], []):
        scores, spans = fixed.score_texts(some)
        np.testing.assert_allclose(scores, free.score_texts(some)[0], atol=1e-5)
        np.testing.assert_array_equal(spans, free.score_texts(some)[1])


def test_weights_in_files_beside_the_graph(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, shards=True)

    assert len(folder.files) == 4
    folder.verify()
    np.testing.assert_allclose(
        Transformer(folder).score_texts(TEXTS)[0], write_loaded(tmp_path, name="one").score_texts(TEXTS)[0], atol=1e-6
    )

    shard = folder.file("graph_data_0")
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} cannot be read"):
        folder.verify()
    with pytest.raises(ModelError, match="a file of weights beside it is missing or cut off: restore it"):
        Transformer(folder)


def test_the_span_is_that_of_the_window_that_decided(tmp_path: Path) -> None:
    model = write_loaded(tmp_path)
    text = "Good word fine plain good word fine plain Bad vile bad plain good good word fine"

    _, spans = model.score_texts([text, "short", ""])

    start, end = spans[0].tolist()
    assert text[start:end] == "Bad vile bad plain good good"
    assert spans[1:].tolist() == [[0, 5], [0, 0]]


def test_the_main_label_decides(tmp_path: Path) -> None:
    text = "bad vile bad vile bad vile good good good good good good"
    spans = [
        write_loaded(tmp_path, name=name, main_label=label).score_texts([text])[1][0].tolist()
        for name, label in (("a", "fine"), ("b", "rude"))
    ]

    assert text[slice(*spans[1])] == "bad vile bad vile bad vile"
    assert spans[0] != spans[1]


def test_documents_of_a_batch_are_scored_as_their_texts(tmp_path: Path) -> None:
    model = write_loaded(tmp_path)
    texts = ["good 好 bad word", "\ufeff🙂 vile " * 12, "", "fine"]
    batch = TextBatch.from_bytes([text.encode() for text in texts])

    whole, spans = model.score_documents(batch, np.array([3, 1]))

    np.testing.assert_allclose(whole, model.score_texts([texts[3], texts[1]])[0], atol=1e-5)
    assert spans.shape == (2, 2)
    assert model.score_documents(batch, np.empty(0, dtype=np.int64))[0].shape == (0, 2)


def test_runs_pad_little_and_stay_small(tmp_path: Path) -> None:
    model = Transformer(write_folder(tmp_path, max_tokens=600, window_tokens=512), run_tokens=4096)
    lengths = np.random.default_rng(3).integers(0, 510, 3000)

    runs = list(model.runs(lengths))

    np.testing.assert_array_equal(np.sort(np.concatenate(runs)), np.arange(lengths.size))
    cells = [run.size * (int(lengths[run].max()) + 2) for run in runs]
    assert max(cells) <= 4096
    assert 1 - (lengths.sum() + 2 * lengths.size) / sum(cells) < 0.02
    sparse = list(model.runs(np.array([0, 100, 0, 400])))
    assert [run.tolist() for run in sparse] == [[0, 2], [1], [3]]


def test_a_text_of_too_many_windows_is_sampled(tmp_path: Path) -> None:
    some = write_loaded(tmp_path, max_windows=2, aggregation="max")
    text = "good " * 30 + "vile " * 6 + "good " * 30

    assert some.score_texts([text])[0][0, 1] < 0.6
    assert write_loaded(tmp_path, name="all", max_windows=0).score_texts([text])[0][0, 1] > 0.9


def test_values_of_a_regression_are_cut_off(tmp_path: Path) -> None:
    model = write_loaded(tmp_path, head="regression", range=(0.0, 1.0))

    scores, _ = model.score_texts([" ".join(WORDS), "vile", "good"])

    assert scores.min() >= 0
    assert scores.max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "labels in"),
        ({"labels": ["a", "a"]}, "different texts"),
        ({"labels": ["a", "b", "c"], "main_label": "a"}, "names 3 labels but its graph gives 2 numbers"),
        ({"main_label": "absent"}, "main_label in .* must be one of labels"),
        ({"head": "tokens"}, "head in .* single_label, multi_label, regression"),
        ({"labels": ["a"], "main_label": "a", "head": "single_label"}, "since there is one label"),
        ({"window_tokens": 17}, "at most 16"),
        ({"window_tokens": "8"}, "a whole number from 3 on"),
        ({"stride_tokens": 6}, "less than the 6 tokens"),
        ({"aggregation": "median"}, "max, mean"),
        ({"task": "other"}, "toxicity, quality, custom"),
        ({"output": "absent"}, "has no output 'absent'; it has: logits"),
        ({"output": 1}, "output in .* a text"),
        ({"rows": 2}, "takes batches of any x any tokens"),
        ({"alone": 1}, "true or false"),
        ({"range": [1.0, 0.0]}, "the smaller one first"),
        ({"inputs": {"mask": "attention_mask"}}, "a table with ids"),
        ({"inputs": {"ids": "input_ids"}}, "takes attention_mask, input_ids"),
        ({"inputs": {"ids": "tokens", "mask": "attention_mask"}}, "make them equal"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_folder(tmp_path)
    table = {**folder.table("classifier"), **change}
    data = {
        "name": "tiny", "version": "1", "kind": "classifier", "languages": [],
        "files": [{"role": file.role, "name": file.name, "sha256": file.sha256} for file in folder.files],
        "classifier": table,
    }  # fmt: skip
    (folder.path / "model.toml").write_text(to_toml(data), "utf-8")

    with pytest.raises(ModelError, match=message):
        Transformer(load_model(folder.path))


def test_a_graph_that_leaves_its_width_open_is_found_out_when_it_runs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, free_width=True)
    write_graph(folder.file("graph"), labels=3, free_width=True)

    with pytest.raises(ModelError, match="names 2 labels but its graph gives 3 numbers"):
        Transformer(folder).score_texts(["good"])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, head="regression", range=(-1.0, 5.0), precision="fp32", max_windows=3)

    shape = read_shape(folder)

    assert shape.range == (-1.0, 5.0)
    assert shape.to_table() == folder.table("classifier")
    assert shape.main == 1


def test_more_threads_answer_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)

    np.testing.assert_allclose(
        Transformer(folder, Runtime(threads=2)).score_texts(TEXTS)[0], Transformer(folder).score_texts(TEXTS)[0],
        atol=1e-5,
    )  # fmt: skip
