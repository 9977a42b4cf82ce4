from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from dqs.data import Missing
from dqs.errors import ConfigError
from dqs.scorer import ScoreColumns
from dqs.scorers.language import LanguageScorer
from dqs.text import TextBatch

SAMPLES = {
    "en": "The library closes at six in the evening, and the last bus leaves a little later than that.",
    "zh": "图书馆晚上六点关门，末班车稍晚一些才开。",
    "ja": "図書館は午後六時に閉まりますが、最終バスは少し遅れて出ます。",
    "de": "Die Bibliothek schließt um sechs Uhr abends, und der letzte Bus fährt etwas später.",
    "ko": "도서관은 저녁 여섯 시에 문을 닫고 마지막 버스는 조금 뒤에 떠난다.",
    "ru": "Библиотека закрывается в шесть часов вечера, а последний автобус уходит чуть позже.",
}


@pytest.fixture(scope="module")
def scorer() -> LanguageScorer:
    return LanguageScorer()


def detect(scorer: LanguageScorer, documents: list[str], hints: list[str] | None = None) -> ScoreColumns:
    batch = TextBatch.from_bytes([text.encode() for text in documents])
    columns = ScoreColumns(len(batch), language=hints or [])
    scorer.score(batch, columns)
    return columns


def test_languages_are_named(scorer: LanguageScorer) -> None:
    columns = detect(scorer, list(SAMPLES.values()))

    assert columns.language == list(SAMPLES)
    assert (columns.values["language_confidence"] > 0.5).all()


def test_language_is_seen_past_a_foreign_start(scorer: LanguageScorer) -> None:
    text = "Die Überschrift steht auf Deutsch. " + SAMPLES["en"] * 60

    assert detect(scorer, [text]).language == ["en"]


@pytest.mark.parametrize("text", ["東京都知事選挙", "国立国会図書館法", "会社情報 2024", "漢字 only"])
def test_han_without_kana_is_never_japanese(scorer: LanguageScorer, text: str) -> None:
    assert detect(scorer, [text]).language != ["ja"]


def test_text_without_letters_has_no_language(scorer: LanguageScorer) -> None:
    columns = detect(scorer, ["", "  \n", "1234 5678 !!", "🙂🙂"])

    assert columns.language == ["und"] * 4
    assert np.isnan(columns.values["language_confidence"]).all()
    assert (columns.missing["language_confidence"] == Missing.TOO_SHORT).all()


@pytest.mark.parametrize("mark", ["\u00ad", "\u200b", "\u200d", "\u2060", "\ufeff"])
def test_invisible_characters_change_nothing(scorer: LanguageScorer, mark: str) -> None:
    for language, text in SAMPLES.items():
        hidden = mark.join(text[:60])
        plain = detect(scorer, [text[:60]])
        assert detect(scorer, [hidden]).language == plain.language, language


def test_full_width_letters_are_letters(scorer: LanguageScorer) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in SAMPLES["en"])
    assert detect(scorer, [wide]).language == ["en"]


def test_what_the_caller_says_wins(scorer: LanguageScorer) -> None:
    columns = detect(scorer, [SAMPLES["en"], SAMPLES["de"]], hints=["zh", ""])

    assert columns.language == ["zh", "de"]
    assert columns.missing["language_confidence"].tolist() == [Missing.NOT_ASKED, Missing.PRESENT]


def test_a_fasttext_package_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "fasttext-0.9.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fasttext\nVersion: 0.9.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.metadata.version("fasttext") == "0.9.3"

    with pytest.raises(ConfigError, match="pip uninstall fasttext"):
        LanguageScorer()
