"""Training: what it refuses, what it chooses; and a whole small training where lmplz is on the PATH."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqs.errors import ConfigError
from dqs.scorer import ScoreColumns
from dqs.scorers.perplexity import PerplexityScorer
from dqs.text import TextBatch
from dqs.training.perplexity import Recipe, choose_vocabulary, find_programs, train_perplexity

NAMES = {
    "en": ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"],
    "zh": ["安娜", "本恩", "陈山", "丁一", "方远", "郭宁", "何川", "金海"],
}
SENTENCES = {
    "en": ["{} walked to the market and bought bread.", "The old bridge near {} was closed for repairs.",
           "{} wrote a long letter about the weather.", "Nobody in the village had heard of {} before."],
    "zh": ["{}走到市场买了面包。", "{}附近的旧桥因维修而关闭。",
           "{}写了一封关于天气的长信。", "村里以前没有人听说过{}。"],
}  # fmt: skip


def rows(language: str, documents: int = 60) -> dict[str, list[Any]]:
    names, sentences = NAMES[language], SENTENCES[language]
    texts = [
        "\n".join(sentences[(at * 7 + line * 3) % 4].format(names[(at + line * line) % 8]) for line in range(12))
        for at in range(documents)
    ]
    sources = [f"source_{at % 5}" for at in range(documents)]
    return {
        "text": texts, "lang": [language] * documents, "source": sources, "domain": ["tale"] * documents,
        "license": ["CC0-1.0"] * documents, "ship": [source != "source_4" for source in sources],
    }  # fmt: skip


def write(folder: Path, language: str, data: dict[str, list[Any]]) -> Path:
    path = folder / f"clean_{language}.parquet"
    pq.write_table(pa.table(data), path)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Stands for lmplz where training must stop before it runs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("lmplz", "build_binary"):
        (folder / name).write_text("#!/bin/sh\necho 'no space left' >&2\nexit 3\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder / "lmplz"


def test_missing_programs_say_how_to_build_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make kenlm-tools"):
        find_programs(tmp_path / "lmplz")
    with pytest.raises(ConfigError, match="make kenlm-tools"):
        train_perplexity(tmp_path, tmp_path, "en", lmplz=tmp_path / "lmplz")


def test_data_that_do_not_fit_are_refused(tmp_path: Path, programs: Path) -> None:
    def refuses(message: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            train_perplexity(tmp_path, tmp_path / "models", "en", lmplz=programs, **options)
        assert not list(tmp_path.glob("models/*/*/model.toml"))

    refuses("no parquet file")
    good = rows("en")
    write(tmp_path, "en", {**good, "stars": [5] * 60})
    refuses("has unknown stars")
    write(tmp_path, "en", {name: values for name, values in good.items() if name != "ship"})
    refuses("lacks ship")
    write(tmp_path, "en", {**good, "ship": [False] * 60})
    refuses("holds no text")
    write(tmp_path, "en", {name: values[:0] for name, values in good.items()} | {"text": pa.array([], pa.string())})
    refuses("holds no text")
    write(tmp_path, "en", good)
    refuses("no source nowhere", exclude_sources=["nowhere"])
    refuses("holds no text", exclude_sources=[f"source_{at}" for at in range(4)])
    refuses("lmplz failed: no space left")
    figures = tmp_path / "figures.json"
    figures.write_text('{"languages": {"zh": {}}}', encoding="utf-8")
    refuses("no figures for en", figures=figures)


def test_vocabulary_is_chosen_by_count_and_without_blanks() -> None:
    texts = ["alpha beta alpha\u3000gamma x2 2024 中文" * 6, "delta deltas deltas"]
    tokens = choose_vocabulary(texts, Recipe(words=2, word_count=2, pieces=3, han=False))
    assert len(tokens) == len(set(tokens))
    words = [token for token in tokens if len(token) > 1 and not token.startswith("~")]
    assert len(words) == 2
    assert "alpha" in words
    assert len([token for token in tokens if token.startswith("~") and len(token) > 2]) == 3
    assert {"中", "文", "~2"} <= set(tokens)
    assert "2024" not in tokens
    assert not any(character.isspace() for token in tokens for character in token)


@pytest.mark.skipif(shutil.which("lmplz") is None, reason="needs lmplz on the PATH: `make kenlm-tools` builds it")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_small_training(tmp_path: Path, language: str) -> None:
    data = write(tmp_path, language, rows(language))
    recipe = Recipe(prune=(0, 1, 1), words=200, word_count=2, pieces=50)
    above = {"95": 0.1, "99": 0.05}
    row = {"pairs": 7, "worse": 0.985, "median_clean": 30.0, "median_corrupted": 90.0, "above": above}
    measured = {"corruptions": {"ocr_noise": row}, "percentile_medians": {"100": 51.0}, "clean_above": above}
    figures = tmp_path / "figures.json"
    figures.write_text(
        json.dumps({"date": "2026-11-21", "folds": 3, "languages": {language: measured}}), encoding="utf-8"
    )
    reports = [
        train_perplexity(data, tmp_path / place, language, exclude_sources=["source_0"], recipe=recipe, figures=figures)
        for place in ("one", "two")
    ]
    first, second = (report.model for report in reports)
    assert first.files == second.files
    assert first.digest == second.digest
    first.verify()
    assert [source.source for source in reports[0].sources] == ["source_1", "source_2", "source_3"]
    card = (first.path / "CARD.md").read_text(encoding="utf-8")
    assert "source_1" in card
    assert "CC0-1.0" in card
    assert "| ocr_noise | 7 | 98.5% | 30 | 90 | 10.0% | 5.0% |" in card
    assert "source_0" not in first.training_data

    clean = rows(language)["text"][0]
    shuffled = "".join(np.random.default_rng(5).permutation(list(clean.replace("\n", ""))))
    texts = [clean.encode(), shuffled.encode()]
    columns = ScoreColumns(size=2, language=[language] * 2)
    PerplexityScorer([first]).score(TextBatch.from_bytes(texts), columns)
    for signal in ("perplexity", "perplexity_percentile"):
        good, bad = columns.values[signal].tolist()
        assert good < bad
