"""The toxicity models in `models/`: they load, and tell mild insults from harmless text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqs.models import find_models
from dqs.scorer import ScoreColumns
from dqs.scorers.toxicity import ToxicityScorer
from dqs.text import TextBatch

ROOT = Path(__file__).resolve().parents[2]

HARMLESS = {
    "en": [
        "The ferry leaves at noon, so bring a warm coat and something to read on the deck.",
        "Thank you for the long letter; my aunt read it twice and laughed at the part about the goat.",
        "Fold the flour into the batter slowly, then let the dough rest for an hour before baking.",
    ],
    "zh": [
        "渡轮中午开船，请带一件厚外套，再带本书在甲板上看。",
        "谢谢你的长信，姑姑读了两遍，看到山羊那一段笑了起来。",
        "把面粉慢慢拌进去，让面团休息一个小时再烤。",
    ],
}
INSULTING = {
    "en": [
        "You are a stupid idiot and a pathetic loser, so shut up.",
        "What a dumb, disgusting moron you are.",
        "Shut up, you stupid ugly pig.",
    ],
    "zh": [
        "你这个蠢货，脑子有病，滚远点，垃圾。",
        "真是恶心的垃圾，又蠢又坏，不要脸的东西。",
        "这群人就是一帮无耻的废物，恶心，去死吧。",
    ],
}


@pytest.fixture(scope="module")
def scorer() -> ToxicityScorer:
    models = find_models([ROOT / "models"], kind="toxicity")
    for model in models:
        model.verify()
    return ToxicityScorer(models=models)


def score(scorer: ToxicityScorer, language: str, texts: list[str]) -> ScoreColumns:
    columns = ScoreColumns(len(texts), language=[language] * len(texts))
    scorer.score(TextBatch.from_bytes([text.encode() for text in texts]), columns)
    return columns


@pytest.mark.parametrize("language", ["en", "zh"])
def test_insults_score_above_harmless_text(scorer: ToxicityScorer, language: str) -> None:
    harmless = score(scorer, language, HARMLESS[language]).values["toxicity"]
    insulting = score(scorer, language, INSULTING[language]).values["toxicity"]
    assert harmless.max() < 0.4
    assert insulting.min() > {"en": 0.6, "zh": 0.5}[language]  # the thresholds of `default`


@pytest.mark.parametrize("language", ["en", "zh"])
def test_one_insult_in_a_long_text_is_found_and_placed(scorer: ToxicityScorer, language: str) -> None:
    gap = " " if language == "en" else ""
    before = gap.join(HARMLESS[language] * 8) + gap
    insult = gap.join(INSULTING[language])
    text = before + insult + gap + gap.join(HARMLESS[language] * 8)
    columns = score(scorer, language, [text, before])
    assert columns.toxicity_span is not None
    start, end = columns.toxicity_span[0]
    assert start < len(before) + len(insult)
    assert end > len(before)
    assert end - start < len(text) / 3
    limit = {"en": 0.6, "zh": 0.5}[language]  # of the default policy
    assert columns.values["toxicity"][0] > limit
    assert columns.values["toxicity"][1] < 0.4


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_cut_of_batches_does_not_matter(scorer: ToxicityScorer, language: str) -> None:
    texts = [*HARMLESS[language], *INSULTING[language], "".join(HARMLESS[language] * 20)]
    together = score(scorer, language, texts).values["toxicity"]
    alone = [score(scorer, language, [text]).values["toxicity"][0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)
