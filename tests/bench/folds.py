"""Models that have not seen the sources they are measured on: one set per fold, trained once and kept.

The clean sources of each language are dealt into folds; the models of a fold
are trained without its sources, so every source is left out once. Needs lmplz.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from dqs.training.perplexity import train_perplexity
from dqs.training.quality_data import deal_sources, shipped_sources
from dqs.training.toxicity import train_toxicity

LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Fold:
    """Models of both languages and the clean sources that they have not seen."""

    number: int
    sources: dict[str, tuple[str, ...]]
    models: Path


def train_folds(data: Path, cache: Path, folds: int) -> list[Fold]:
    """Trains what `cache` does not hold yet."""
    dealt = {language: deal_sources(data, language, folds) for language in LANGUAGES}
    made = []
    for number in range(folds):
        models = cache / f"{number + 1}-of-{folds}"
        for language in LANGUAGES:
            excluded = dealt[language][number]

            def say(line: str, where: str = f"fold {number + 1} of {folds}, {language}") -> None:
                print(f"{where}: {line}", file=sys.stderr)

            if not (models / f"perplexity-{language}").exists():
                train_perplexity(data, models, language, exclude_sources=known(data, language, excluded), progress=say)
            if not (models / f"toxicity-{language}").exists():
                train_toxicity(data, models, language, exclude_sources=excluded, progress=say)
        made.append(Fold(number + 1, {language: dealt[language][number] for language in LANGUAGES}, models))
    return made


def known(data: Path, language: str, sources: tuple[str, ...]) -> list[str]:
    """Those of the sources that training would use, as it refuses to leave out what it would not."""
    shipped = shipped_sources(data, language)
    return [source for source in sources if source in shipped]
