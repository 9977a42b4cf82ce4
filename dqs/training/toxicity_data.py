"""Labelled rows and clean paragraphs for toxicity models, read from parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError

COLUMNS: Final = (
    "text", "label", "lang", "source", "split", "toxic", "severe_toxic", "obscene", "threat", "insult",
    "identity_hate", "sexual", "spam", "fine_label", "target", "ship",
)  # fmt: skip
"""Columns of labelled data; only the required ones are read."""
REQUIRED_COLUMNS: Final = ("text", "label", "lang", "source", "split", "ship")
CLEAN_COLUMNS: Final = ("text", "lang", "source", "domain", "license", "ship")
CLEAN_REQUIRED_COLUMNS: Final = ("text", "lang", "source", "ship")
PARAGRAPH_CHARACTERS: Final = 20
"""Shorter lines of clean text are no paragraphs."""
SOURCE_PARAGRAPHS: Final = 4000
"""Most paragraphs taken from one clean source."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Texts with what is known about them, in the order of the files.

    Attributes:
        texts: UTF-8.
        labels: int8[n]; 1 = toxic as the source defines it.
        sources: name of each row's source.
        splits: the source's own split; "" for clean paragraphs.
        ship: bool[n]; whether a model that is distributed may be trained on the row.
    """

    texts: list[bytes]
    labels: NDArray[np.int8]
    sources: NDArray[np.str_]
    splits: NDArray[np.str_]
    ship: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows where `chosen`, bool[n], is true."""
        texts = [text for text, wanted in zip(self.texts, chosen.tolist(), strict=True) if wanted]
        return Rows(texts, self.labels[chosen], self.sources[chosen], self.splits[chosen], self.ship[chosen])


def read_rows(path: Path, language: str) -> Rows:
    """Reads labelled rows of one language.

    Raises:
        ConfigError: the file cannot be read, has unknown or lacks required columns, or holds no such row.
    """
    table = _read_columns(path, COLUMNS, REQUIRED_COLUMNS)
    chosen = [i for i, code in enumerate(table["lang"]) if code == language]
    if not chosen:
        raise ConfigError(f"{path} holds no row in {language}: give labelled rows of that language")
    labels = [table["label"][i] for i in chosen]
    if not set(labels) <= {0, 1}:
        raise ConfigError(f"{path} has labels other than 0 and 1: 1 means toxic, 0 not toxic")
    return Rows(
        texts=[(table["text"][i] or "").encode() for i in chosen],
        labels=np.array(labels, dtype=np.int8),
        sources=np.array([table["source"][i] for i in chosen]),
        splits=np.array([table["split"][i] or "" for i in chosen]),
        ship=np.array([bool(table["ship"][i]) for i in chosen]),
    )


def read_paragraphs(path: Path, language: str, seed: int) -> Rows:
    """Reads clean text of one language as paragraphs with the label 0.

    A paragraph is a line of `PARAGRAPH_CHARACTERS` or more; of each source at most
    `SOURCE_PARAGRAPHS` are drawn.

    Raises:
        ConfigError: the file cannot be read, has unknown or lacks required columns, or holds no such text.
    """
    table = _read_columns(path, CLEAN_COLUMNS, CLEAN_REQUIRED_COLUMNS)
    found: dict[tuple[str, bool], list[str]] = {}
    for text, code, source, ship in zip(table["text"], table["lang"], table["source"], table["ship"], strict=True):
        if code == language:
            lines = [line for line in text.split("\n") if len(line) >= PARAGRAPH_CHARACTERS]
            found.setdefault((source, bool(ship)), []).extend(lines)
    rng = np.random.default_rng(seed)
    texts: list[bytes] = []
    sources: list[str] = []
    ships: list[bool] = []
    for (source, ship), lines in sorted(found.items()):
        drawn = np.sort(rng.permutation(len(lines))[:SOURCE_PARAGRAPHS])
        texts += [lines[i].encode() for i in drawn.tolist()]
        sources += [source] * drawn.size
        ships += [ship] * drawn.size
    if not texts:
        raise ConfigError(f"{path} holds no paragraph in {language}: give clean text of that language")
    return Rows(
        texts=texts,
        labels=np.zeros(len(texts), dtype=np.int8),
        sources=np.array(sources),
        splits=np.full(len(texts), ""),
        ship=np.array(ships),
    )


def read_data(data: Path, clean: Path | None, language: str, seed: int) -> tuple[Rows, Rows | None]:
    """Reads labelled rows and clean paragraphs; the arguments are those of `train_toxicity`."""
    if data.is_dir():
        clean = clean or data / f"clean_{language}.parquet"
        data = data / f"toxicity_{language}.parquet"
    return read_rows(data, language), None if clean is None else read_paragraphs(clean, language, seed)


def _read_columns(path: Path, allowed: Sequence[str], required: Sequence[str]) -> dict[str, list[Any]]:
    try:
        names = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no parquet file that can be read: give the folder that holds it") from error
    missing = [column for column in required if column not in names]
    unknown = [column for column in names if column not in allowed]
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ConfigError(f"{path} {' and '.join(said)}: its columns may be {', '.join(allowed)}")
    table: dict[str, list[Any]] = pq.read_table(path, columns=list(required)).to_pydict()
    return table
