"""The card of a toxicity model: what it is, how well it does on sources it has not seen, what it is not for."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from dqs.text.ngrams import NgramShape
from dqs.training.toxicity_figures import SourceFigures

_WEAK: Final[Mapping[str, Sequence[str]]] = {
    "en": (
        "- Posts in which an emoji carries the insult, and posts written to fool a classifier: little better than",
        "  chance.",
        "- Polite or coded contempt for a group, stereotypes told as jokes, irony.",
        "- Heated but civil argument about women, immigrants or religion, which it takes for abuse too often: the",
        "  threshold that suits one source is far off in another.",
        "- Words with letters replaced or stars inside: part of them is lost, see the benchmark.",
        "- Old fiction and plays, chronicles of war and crime: strong words without an attack.",
        "- Threats without a strong word, and calls to harm a group in sober words.",
        "- Slurs that a group uses for itself, and quotations.",
    ),
    "zh": (
        "- Abuse outside of the subjects of its sources (race, region, gender): everyday insults, quarrels, obscene",
        "  advertising. On rewritten pairs of the same subject, one rude and one civil, it is little better than",
        "  chance, for it knows subjects better than tone.",
        "- Sober discussion of regions, ethnic groups and women, which it takes for abuse too often.",
        "- Abbreviations in Latin letters, emoji in the place of a word, dialect other than Mandarin.",
        "- A few abusive sentences among some hundred characters of clean text, which lower the score of the window.",
        "- Threats without a strong word, and short everyday insults.",
        "- Classical histories with war and punishment.",
    ),
}
"""Of models with the recipes of these languages, by category; from errors on rows for development."""
_WEAK_ELSEWHERE: Final = "Nobody has looked at what it is bad at."


def model_card(
    *,
    label: str,
    language: str,
    shape: NgramShape,
    threshold: float,
    toxic_share: float,
    clean_share: float,
    folds: int,
    left_out: Sequence[SourceFigures],
    seen: Sequence[SourceFigures],
    trained: Mapping[str, int],
    training_note: str,
) -> str:
    """Writes CARD.md.

    Args:
        label: `name@version`.
        language: ISO 639-1 code.
        shape: the n-grams.
        threshold: recommended probability.
        toxic_share: share of toxic texts that the calibration assumes.
        clean_share: share of clean prose among the others.
        folds: parts that were left out in turn.
        left_out: figures without the source.
        seen: figures with other rows of the source.
        trained: rows per source.
        training_note: seed and what was left out.
    """
    sizes = " and ".join(map(str, shape.character_sizes))
    inside = f", and of {sizes} characters inside words" if sizes else ""
    sounds = ""
    if shape.sound_sizes:
        sounds = (
            f", and of 1 to {shape.sound_sizes} characters as they sound in Mandarin without tones, traditional "
            "characters read as simplified ones"
        )
    clean = [row for row in left_out if row.toxic_share == 0]
    results = [
        "## Held-out results",
        f"By models of the same recipe, trained in {folds} folds. AUC; macro-F1 at the threshold that is best for it; "
        f"share of toxic rows (recall) and of other rows (false alarms) above {threshold:g}. Every source means "
        "something else by its labels.",
    ]
    parts = [
        f"# {label}",
        f"Probability that a passage in {language!r} is toxic: insults, hate, obscenity or threats, as the sources "
        "below define them. DQS uses it to find text that a training corpus should not hold.",
        "## How it works",
        f"N-grams of 1 to {shape.word_sizes} words (a character of a script without spaces is a word){inside}{sounds}, "
        "hashed "
        f"to {1 << shape.bits:,} numbers; what repeats within {shape.block_words} words counts once. Logistic "
        "regression on the counts over the root of their sum. A document of more than "
        f"{2 * shape.block_words} words is scored in windows of {shape.block_words + 1} to {2 * shape.block_words} "
        "words, and its worst window counts.",
        f"The recommended threshold is **{threshold:g}**. The probability assumes that {toxic_share:.0%} of the texts "
        f"are toxic, and that of the others {clean_share:.0%} are clean prose and {1 - clean_share:.0%} rough but "
        "harmless posts. Where a share b of your text is toxic, multiply the odds p / (1 - p) by "
        f"{(1 - toxic_share) / toxic_share:.3g} · b / (1 - b).",
        *(results if left_out or seen else []),
    ]
    if left_out:
        parts += ["### Trained without the source", _table(left_out)]
    if seen:
        parts += ["### Trained with other rows of the source", _table(seen)]
    if clean:
        paragraphs = sum(row.rows for row in clean)
        alarms = sum(row.false_alarms * row.rows for row in clean) / paragraphs
        parts.append(
            f"Of {paragraphs:,} clean paragraphs, their sources left out, {alarms:.2%} are above the threshold."
        )
    parts += [
        "## Training data",
        "\n".join(
            [
                "| source | rows |",
                "|---|---:|",
                *(f"| {source} | {rows:,} |" for source, rows in sorted(trained.items())),
            ]
        ),
        training_note,
        "## What it is bad at",
        "\n".join(_WEAK[language]) if language in _WEAK else _WEAK_ELSEWHERE,
        "## What it must not be used for",
        "To judge a person, to moderate what people write to each other without a person looking, or as the only "
        "reason to remove text by or about a group. It knows words and not what is meant: quotations, research on "
        "hate speech, reclaimed words and history books raise it; irony, new code words and polite hate do not. The "
        "sources are mostly posts from a few platforms, and what annotators called toxic there carries their biases.",
    ]
    return "\n\n".join(part if part[0] in "#|-" else textwrap.fill(part, 110) for part in parts) + "\n"


def _table(figures: Sequence[SourceFigures]) -> str:
    def shown(value: float, style: str) -> str:
        return "" if math.isnan(value) else format(value, style)

    return "\n".join(
        [
            "| source | rows | toxic | AUC | macro-F1 | recall | false alarms |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {row.source} | {row.rows:,} | {row.toxic_share:.2f} | {shown(row.auc, '.3f')} |"
                f" {shown(row.macro_f1, '.3f')} | {shown(row.recall, '.3f')} | {shown(row.false_alarms, '.2%')} |"
                for row in figures
            ),
        ]
    )
