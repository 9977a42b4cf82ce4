"""Labelled rows and clean paragraphs for toxicity models, read from parquet files."""

from __future__ import annotations

import tomllib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError
from dqs.training.disguise import DISGUISES

COLUMNS: Final = (
    "text", "label", "lang", "source", "split", "toxic", "severe_toxic", "obscene", "threat", "insult",
    "identity_hate", "sexual", "spam", "fine_label", "target", "ship",
)  # fmt: skip
"""Columns of labelled data; only the required ones are read."""
ATTRIBUTE_COLUMNS: Final = {
    "insult": "insult",
    "obscene": "obscene",
    "threat": "threat",
    "identity_attack": "identity_hate",
    "sexual": "sexual",
}
"""Attribute of a model → the column of labelled data that says it."""
REQUIRED_COLUMNS: Final = ("text", "label", "lang", "source", "split", "ship")
CLEAN_COLUMNS: Final = ("text", "lang", "source", "domain", "license", "ship")
CLEAN_REQUIRED_COLUMNS: Final = ("text", "lang", "source", "ship")
PARAGRAPH_CHARACTERS: Final = 20
"""Shorter lines of clean text are no paragraphs."""
SOURCE_PARAGRAPHS: Final = 4000
"""Most paragraphs taken from one clean source."""
IDENTITY_SOURCE: Final = "identity_sentences"
"""Name of the neutral sentences about groups of people that are written in `identities.toml`."""
_EVALUATION_PARTS = 5
_DISGUISED_WORDS = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Texts with what is known about them, in the order of the files.

    Attributes:
        texts: UTF-8.
        labels: int8[n]; 1 = toxic as the source defines it.
        sources: name of each row's source.
        splits: the source's own split; "" for clean paragraphs.
        ship: bool[n]; whether a model that is distributed may be trained on the row.
        attributes: int8[n, attributes], in the order of `ATTRIBUTE_COLUMNS`; 1 = has it, 0 = has it not, -1 = unknown.
    """

    texts: list[bytes]
    labels: NDArray[np.int8]
    sources: NDArray[np.str_]
    splits: NDArray[np.str_]
    ship: NDArray[np.bool_]
    attributes: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Puts rows one after the other."""
        return cls(
            [text for part in parts for text in part.texts],
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.sources for part in parts]),
            np.concatenate([part.splits for part in parts]),
            np.concatenate([part.ship for part in parts]),
            np.concatenate([part.attributes for part in parts]),
        )

    def take(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows where `chosen`, bool[n], is true."""
        return self.pick(np.flatnonzero(chosen))

    def pick(self, order: NDArray[np.int64]) -> Rows:
        """Rows by their indices, int64[k], in that order."""
        return Rows(
            [self.texts[i] for i in order.tolist()],
            self.labels[order],
            self.sources[order],
            self.splits[order],
            self.ship[order],
            self.attributes[order],
        )


def read_rows(path: Path, language: str) -> Rows:
    """Reads labelled rows of one language.

    Raises:
        ConfigError: the file cannot be read, has unknown or lacks required columns, or holds no such row.
    """
    table = _read_columns(path, COLUMNS, REQUIRED_COLUMNS, tuple(ATTRIBUTE_COLUMNS.values()))
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
        attributes=np.array(
            [
                [_known(table[column][i]) if column in table else -1 for column in ATTRIBUTE_COLUMNS.values()]
                for i in chosen
            ],
            dtype=np.int8,
        ),
    )


def identity_rows(language: str) -> Rows:
    """Neutral sentences about groups of people, with the label 0; none in a language without them."""
    table = tomllib.loads(files("dqs.training").joinpath("identities.toml").read_text("utf-8")).get(language, {})
    return _harmless(
        [sentence.replace("{}", term).encode() for term in table.get("terms", ()) for sentence in table["train"]],
        IDENTITY_SOURCE,
    )


def identity_test(language: str) -> tuple[list[str], list[str], frozenset[str]]:
    """All terms, test sentences with `{}` in the term's place, and the terms that training does not see."""
    table = tomllib.loads(files("dqs.training").joinpath("identities.toml").read_text("utf-8"))[language]
    return [*table["terms"], *table["held_out"]], table["test"], frozenset(table["held_out"])


def disguised_rows(rows: Rows, language: str, share: float, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Copies of some rows with disguised words.

    Args:
        rows: the originals.
        language: whose disguises; a language without any gives no copies.
        share: of the rows that get a copy.
        seed: of everything that is drawn.

    Returns:
        The copies, and int64[copies]: the row that each is made from.
    """
    rng = np.random.default_rng(seed)
    ways = list(DISGUISES.get(language, {}).values())
    chosen = rng.random(len(rows)) < share if ways else np.zeros(len(rows), dtype=np.bool_)
    copies = rows.take(chosen)
    texts = [ways[int(rng.integers(len(ways)))](text.decode(), rng, _DISGUISED_WORDS).encode() for text in copies.texts]
    return (
        Rows(texts, copies.labels, copies.sources, copies.splits, copies.ship, copies.attributes),
        np.flatnonzero(chosen),
    )


def is_for_evaluation(text: str) -> bool:
    """Whether a clean document, one in five, is never trained on: a matter of its first characters."""
    return zlib.crc32(text[:200].encode()) % _EVALUATION_PARTS == 0


def _harmless(texts: list[bytes], source: str) -> Rows:
    n = len(texts)
    return Rows(
        texts,
        np.zeros(n, dtype=np.int8),
        np.full(n, source),
        np.full(n, ""),
        np.ones(n, dtype=np.bool_),
        np.full((n, len(ATTRIBUTE_COLUMNS)), 0, dtype=np.int8),
    )


def _known(value: int | None) -> int:
    return -1 if value is None else int(value)


def read_paragraphs(path: Path, language: str, seed: int, *, evaluation: bool = False) -> Rows:
    """Reads clean text of one language as paragraphs with the label 0.

    A paragraph is a line of `PARAGRAPH_CHARACTERS` or more; of each source at most
    `SOURCE_PARAGRAPHS` are drawn. Documents are either for training or for evaluation.

    Raises:
        ConfigError: the file cannot be read, has unknown or lacks required columns, or holds no such text.
    """
    table = _read_columns(path, CLEAN_COLUMNS, CLEAN_REQUIRED_COLUMNS)
    found: dict[tuple[str, bool], list[str]] = {}
    for text, code, source, ship in zip(table["text"], table["lang"], table["source"], table["ship"], strict=True):
        if code == language and is_for_evaluation(text) == evaluation:
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
        attributes=np.zeros((len(texts), len(ATTRIBUTE_COLUMNS)), dtype=np.int8),
    )


def read_data(data: Path, clean: Path | None, language: str, seed: int) -> tuple[Rows, Rows | None]:
    """Reads labelled rows and clean paragraphs; the arguments are those of `train_toxicity`."""
    if data.is_dir():
        clean = clean or data / f"clean_{language}.parquet"
        data = data / f"toxicity_{language}.parquet"
    return read_rows(data, language), None if clean is None else read_paragraphs(clean, language, seed)


def read_clean_documents(data: Path, language: str, *, evaluation: bool) -> list[tuple[str, str, bool]]:
    """Clean documents of the folder `data`, for evaluation or not: text, source, whether it may ship."""
    table = _read_columns(data / f"clean_{language}.parquet", CLEAN_COLUMNS, CLEAN_REQUIRED_COLUMNS)
    return [
        (text, source, bool(ship))
        for text, code, source, ship in zip(table["text"], table["lang"], table["source"], table["ship"], strict=True)
        if code == language and is_for_evaluation(text) == evaluation
    ]


def _read_columns(
    path: Path, allowed: Sequence[str], required: Sequence[str], wanted: Sequence[str] = ()
) -> dict[str, list[Any]]:
    try:
        names = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no parquet file that can be read: give the folder that holds it") from error
    missing = [column for column in required if column not in names]
    unknown = [column for column in names if column not in allowed]
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ConfigError(f"{path} {' and '.join(said)}: its columns may be {', '.join(allowed)}")
    table: dict[str, list[Any]] = pq.read_table(
        path, columns=[*required, *(column for column in wanted if column in names)]
    ).to_pydict()
    return table
