"""Training of toxicity models on a few hundred generated sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from dqs.errors import ConfigError
from dqs.models import load_model
from dqs.scorers.toxicity import ToxicityModel
from dqs.text import TextBatch
from dqs.text.ngrams import NgramShape, hash_ngrams
from dqs.training.toxicity import (
    LinearModel,
    Recipe,
    evaluate_toxicity,
    ngram_matrix,
    train_toxicity,
    write_toxicity_model,
)
from dqs.training.toxicity_data import COLUMNS, read_paragraphs, read_rows

_NICE = {
    "en": ("a kind", "the quiet", "our useful", "river", "garden", "letter", "helps", "grows", "waits"),
    "zh": ("善良的", "安静的", "有用的", "小河", "花园", "信件", "在帮忙", "在生长", "在等待"),
}
_RUDE = {
    "en": ("a stupid", "the rotten", "our useless", "fool", "liar", "idiot", "stinks", "lies", "rots"),
    "zh": ("愚蠢的", "腐烂的", "没用的", "笨蛋", "骗子", "白痴", "在发臭", "在撒谎", "在腐烂"),
}
_RECIPES = {
    "en": Recipe(
        shape=NgramShape(word_sizes=2, character_sizes=(4,), bits=14, block_words=8), fitted_share=0.5, toxic_share=0.5
    ),
    "zh": Recipe(
        shape=NgramShape(word_sizes=3, character_sizes=(), bits=14, block_words=8), fitted_share=0.5, toxic_share=0.5
    ),
}


def sentences(language: str, words: tuple[str, ...], count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    gap, stop = (" ", ".") if language == "en" else ("", "。")
    return [
        gap.join(words[3 * part + int(rng.integers(0, 3))] for part in range(3))
        + gap
        + gap.join(str(n) for n in rng.integers(0, 50, 3))
        + stop
        for _ in range(count)
    ]


def labelled_table(language: str) -> dict[str, list[Any]]:
    texts = sentences(language, _NICE[language], 160, 1) + sentences(language, _RUDE[language], 160, 2)
    n = len(texts)
    table: dict[str, list[Any]] = {column: [None] * n for column in COLUMNS}
    table["text"] = texts
    table["label"] = [0] * 160 + [1] * 160
    table["lang"] = [language] * n
    table["source"] = [("forum", "posts", "letters", "secret")[i % 4] for i in range(n)]
    table["split"] = [("train", "train", "test")[i // 4 % 3] for i in range(n)]
    table["ship"] = [source != "secret" for source in table["source"]]
    return table


def clean_table(language: str) -> dict[str, list[Any]]:
    gap = " " if language == "en" else ""
    lines = sentences(language, _NICE[language], 400, 3)
    texts = [gap.join(lines[i : i + 4]) + "\n" + gap.join(lines[i + 4 : i + 8]) for i in range(0, 400, 8)]
    n = len(texts)
    return {
        "text": texts,
        "lang": [language] * n,
        "source": [("book", "manual")[i % 2] for i in range(n)],
        "domain": ["x"] * n,
        "license": ["CC0-1.0"] * n,
        "ship": [True] * n,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for language in ("en", "zh"):
        pq.write_table(pa.table(labelled_table(language)), folder / f"toxicity_{language}.parquet")
        pq.write_table(pa.table(clean_table(language)), folder / f"clean_{language}.parquet")
    return folder


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_graph_equals_scikit_learn(tmp_path: Path, language: str) -> None:
    table = labelled_table(language)
    shape = _RECIPES[language].shape
    batch = TextBatch.from_bytes([text.encode() for text in table["text"]])
    documents = np.arange(len(batch))
    matrix = ngram_matrix(hash_ngrams(batch, documents, shape), shape)
    estimator = LogisticRegression(C=20).fit(matrix, table["label"])
    model = LinearModel(estimator.coef_[0].astype(np.float32), scale=1.0, offset=float(estimator.intercept_[0]))
    folder = write_toxicity_model(model, Recipe(shape=shape), tmp_path, name="tiny", version="1", language=language)
    probability = ToxicityModel(folder).score(batch, documents).probability
    np.testing.assert_allclose(probability, estimator.predict_proba(matrix)[:, 1], atol=1e-5)
    assert probability.min() < 0.1
    assert probability.max() > 0.9


@pytest.mark.parametrize("language", ["en", "zh"])
def test_long_text_equals_scikit_learn_window_by_window(tmp_path: Path, language: str) -> None:
    table = labelled_table(language)
    shape = _RECIPES[language].shape
    gap = " " if language == "en" else ""
    long_text = gap.join(table["text"][120:180])
    estimator = LogisticRegression(C=20).fit(
        ngram_matrix(
            hash_ngrams(TextBatch.from_bytes([text.encode() for text in table["text"]]), np.arange(320), shape), shape
        ),
        table["label"],
    )
    model = LinearModel(estimator.coef_[0].astype(np.float32), scale=1.0, offset=float(estimator.intercept_[0]))
    loaded = ToxicityModel(
        write_toxicity_model(model, Recipe(shape=shape), tmp_path, name="tiny", version="1", language=language)
    )
    batch = TextBatch.from_bytes([long_text.encode()])
    ngrams = hash_ngrams(batch, np.arange(1), shape)
    found = loaded.score_windows(ngrams)
    rows = [ngrams.ids[ngrams.row_block == block].reshape(-1) for block in range(ngrams.block_ngrams.size)]
    windows = np.zeros((found.size, 1 << shape.bits))
    for window, pair in enumerate(zip(ngrams.window_first, ngrams.window_second, strict=True)):
        ids = np.concatenate([rows[block] for block in pair])
        ids = ids[ids != shape.padding]
        np.add.at(windows[window], ids, 1 / np.sqrt(ids.size))
    np.testing.assert_allclose(found, estimator.predict_proba(windows)[:, 1], atol=1e-5)
    worst = loaded.score(batch, np.arange(1)).probability
    assert worst[0] == found.max()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_trained_model_knows_what_it_was_shown(tmp_path: Path, data: Path, language: str) -> None:
    report = train_toxicity(data, tmp_path / "models", language, recipe=_RECIPES[language])
    report.model.verify()
    clean = read_paragraphs(data / f"clean_{language}.parquet", language, 1)
    kept = read_paragraphs(data / f"clean_{language}.parquet", language, 1, evaluation=True)
    # Some clean documents are for measuring only, and no text is for both.
    assert len(clean) + len(kept) == 100
    assert len(kept) > 5
    assert not set(clean.texts) & set(kept.texts)
    paragraphs = {source: int((clean.sources == source).sum()) for source in ("book", "manual")}
    assert report.trained == {"forum": 80, "posts": 80, "letters": 80, **paragraphs}
    assert {row.source for row in report.left_out} == {"forum", "posts", "letters", "book", "manual"}
    assert {row.source for row in report.seen} == {"forum", "posts", "letters"}
    rows = read_rows(data / f"toxicity_{language}.parquet", language)
    figures = evaluate_toxicity(report.model, rows, threshold=0.5)
    assert [row.source for row in figures] == ["forum", "letters", "posts", "secret"]
    assert min(row.auc for row in figures) > 0.95
    assert max(row.false_alarms for row in evaluate_toxicity(report.model, clean)) == 0
    card = (report.model.path / "CARD.md").read_text("utf-8")
    assert "must not be used for" in card
    assert "| forum | 80 |" in card


def test_the_same_seed_gives_the_same_model(tmp_path: Path, data: Path) -> None:
    reports = [
        train_toxicity(data, tmp_path / name, "zh", recipe=_RECIPES["zh"], card_figures=False) for name in ("a", "b")
    ]
    assert reports[0].model.digest == reports[1].model.digest
    assert reports[0].model.files == reports[1].model.files


def test_sources_and_splits_can_be_left_out(tmp_path: Path, data: Path) -> None:
    report = train_toxicity(
        data,
        tmp_path,
        "en",
        recipe=_RECIPES["en"],
        exclude_sources=["posts", "manual"],
        exclude_splits=["test"],
        name="mine",
        version="7",
        card_figures=False,
    )
    assert set(report.trained) == {"forum", "letters", "book"}
    assert report.trained["forum"] < 80
    assert report.model.label == "mine@7"
    assert load_model(tmp_path / "mine" / "7").languages == ("en",)
    assert "posts" in (report.model.path / "CARD.md").read_text("utf-8")


def test_rows_that_must_not_ship_come_only_when_asked_for(tmp_path: Path, data: Path) -> None:
    report = train_toxicity(data, tmp_path, "en", recipe=_RECIPES["en"], include_unshipped=True, card_figures=False)
    assert report.trained["secret"] == 80


def test_one_file_without_clean_text_is_enough(tmp_path: Path, data: Path) -> None:
    table = pq.read_table(data / "toxicity_en.parquet")
    one = table.filter(pa.compute.equal(table["source"], "forum"))
    pq.write_table(one, tmp_path / "mine.parquet")
    report = train_toxicity(tmp_path / "mine.parquet", tmp_path / "models", "en", recipe=_RECIPES["en"])
    assert report.trained == {"forum": 80}
    assert report.left_out == ()


Change = Callable[[dict[str, list[Any]]], dict[str, list[Any]]]


def _without(column: str) -> Change:
    return lambda table: {name: values for name, values in table.items() if name != column}


def _set(column: str, value: Any) -> Change:
    return lambda table: {**table, column: [value] * len(table["text"])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("colour", "red"), "unknown colour"),
        (_without("label"), "lacks label"),
        (_set("label", 2), "labels other than 0 and 1"),
        (_set("label", 0), "both classes are needed"),
        (_set("ship", False), "both classes are needed"),
        (_set("lang", "fr"), "no row in en"),
        (lambda table: {name: values[:0] for name, values in table.items()}, "no row in en"),
    ],
)
def test_labelled_data_that_do_not_fit_are_refused(tmp_path: Path, data: Path, change: Change, said: str) -> None:
    pq.write_table(pa.table(change(labelled_table("en"))), data / "toxicity_en.parquet")
    with pytest.raises(ConfigError, match=said):
        train_toxicity(data, tmp_path / "models", "en", recipe=_RECIPES["en"])


@pytest.mark.parametrize(
    ("change", "said"),
    [(_set("mood", "x"), "unknown mood"), (_without("source"), "lacks source"), (_set("lang", "fr"), "no paragraph")],
)
def test_clean_data_that_do_not_fit_are_refused(tmp_path: Path, data: Path, change: Change, said: str) -> None:
    pq.write_table(pa.table(change(clean_table("en"))), data / "clean_en.parquet")
    with pytest.raises(ConfigError, match=said):
        train_toxicity(data, tmp_path / "models", "en", recipe=_RECIPES["en"])


def test_unknown_sources_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="no source nowhere"):
        train_toxicity(data, tmp_path, "en", exclude_sources=["nowhere"])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"toxicity_en\.parquet"):
        train_toxicity(tmp_path, tmp_path, "en")


def test_labels_that_say_nothing_are_refused(tmp_path: Path, data: Path) -> None:
    table = labelled_table("en")
    table["label"] = [1 - label for label in table["label"]]
    table["text"] = ["the same words in every row"] * len(table["text"])
    pq.write_table(pa.table(table), tmp_path / "same.parquet")
    with pytest.raises(ConfigError, match="toxic rows score no higher"):
        train_toxicity(tmp_path / "same.parquet", tmp_path / "models", "en", recipe=_RECIPES["en"])
