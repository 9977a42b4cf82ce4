"""The card of a quality model: what it is, how well it does on sources it has not seen, what it is not for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any


def model_card(
    label: str,
    figures: Mapping[str, Any],
    trained: Mapping[str, int],
    licences: Mapping[str, str],
    seed: int,
    trees: int,
    leaves: int,
    minimum_words: int,
) -> str:
    """Writes CARD.md.

    Args:
        label: `name@version`.
        figures: of `dqs.training.quality.held_out_figures`.
        trained: rows per source.
        licences: licence as stated, per source.
        seed: of everything that was drawn.
        trees: their number.
        leaves: most leaves of one.
        minimum_words: documents with fewer words have no score.
    """
    kinds = sorted(set().union(*(figures["kinds"][language] for language in figures["kinds"])))
    parts = [
        f"# {label}",
        "Probability that a document in English or Chinese is text worth training on: edited running text, rather "
        "than menus and boilerplate, spam, damaged encodings, OCR errors, shuffled or repeated text, logs, "
        "tables of numbers.",
        "## How it works",
        f"{trees} boosted trees of at most {leaves} leaves on measures that hold no words: shares of characters and "
        "repetitions, shapes of lines, function words, and the percentile of perplexity. No measure counts length. "
        f"Documents of fewer than {minimum_words} words (in Chinese, characters) have no score. The probability "
        "assumes that half of the documents are good; where the share is b, multiply the odds by b / (1 - b).",
        "## Held-out results",
        "Three folds: every source of clean and corrupted text and every web site is scored by a model, and with a "
        "perplexity model, that has not seen it. AUC. Two numbers of calibration were fitted to these scores.",
        _table(("raw page against its article", "AUC"), [(k, f"{v:.3f}") for k, v in figures["web"].items()]),
        _table(
            ("corrupted against clean", "AUC", "ECE"),
            [(k, f"{v:.4f}", f"{figures['ece'][k]:.3f}") for k, v in figures["corruptions"].items()],
        ),
        _table(
            ("kind against all clean text", *figures["kinds"]),
            [
                (kind, *(f"{own[kind]:.3f}" if kind in own else "" for own in figures["kinds"].values()))
                for kind in kinds
            ],
        ),
        "Mean probability of clean text by length:",
        _table(
            ("bytes from", *figures["clean_by_bytes"]),
            [
                (low, *(f"{own[low]:.2f}" if low in own else "" for own in figures["clean_by_bytes"].values()))
                for low in sorted(set().union(*figures["clean_by_bytes"].values()), key=int)
            ],
        ),
        "Mean probability by source of clean text:",
        _table(
            ("source", "mean"),
            [(k, f"{v:.2f}") for own in figures["clean_sources"].values() for k, v in own.items()],
        ),
        "Mean probability of rough text, its source left out (only spam and headlines count as bad, the rest as "
        "neither):",
        _table(("kind", "mean"), [(k, f"{v:.2f}") for own in figures["noisy"].values() for k, v in own.items()]),
        "## Weaknesses",
        "Keywords put here and there into English prose are often missed. Spam and headlines of a source that was "
        "not trained on read as prose. Raw pages with a long article and little around it look like the article. "
        "Lists, verse, dialogue in short lines, code, classical Chinese of a kind that perplexity has not seen, "
        "and texts of one or two sentences score lower than they deserve. Chinese web pages were not trained on: "
        "what is known of menus comes from English pages and synthetic text. The synthetic kinds are made by one "
        "program: real damage is more varied, and the figures for it are likely lower. A document whose language "
        "is not recognised has no score.",
        "## Training data",
        _table(("source", "rows", "licence as stated"), [(s, f"{n:,}", licences[s]) for s, n in trained.items()]),
        "Rows under non-commercial or research-only terms and GPL pages were left out. Page text belongs to its "
        "publishers, and some licences are unspecified: the model holds thresholds on statistics, and no text. "
        f"Seed {seed}.",
        "## What it must not be used for",
        "To judge people, their language or the truth of what they say; to rank good texts among themselves; or as the "
        "only reason to drop text of a kind that it was not trained on (verse, transcripts, code, forms). A rule that "
        "uses it should start near 0.1 and be looked at by a person.",
    ]
    return "\n\n".join(part if part[0] in "#|" else textwrap.fill(part, 110) for part in parts if part) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), "---|" + "|".join("---:" for _ in head[1:]), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if not line.startswith("---") else f"|{line}|" for line in lines)
