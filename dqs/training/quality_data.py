"""Rows for quality models, read from parquet files, and which of them may feed a model that is distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError

LANGUAGES: Final = ("en", "zh")
NOISE_KINDS: Final = ("sms_spam", "masc_spam", "clickbait_headlines")
"""Kinds of noisy text that count as not worth training on; the others are neither good nor bad, and only scored."""
_REFUSED_LICENCES: Final = ("NC", "GPL", "research use", "non-commercial")
_MOST_NOISE: Final = 400
_SOURCE_CUTS: Final = 450
_CUT_CHARACTERS: Final = (60, 120, 250, 500, 1000, 2000, 4000, 8000, 16000)
_CHINESE_FACTOR: Final = 3
"""A Chinese character says about as much as this many English ones."""
UNLABELLED: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Texts with what is known about them.

    Attributes:
        texts: UTF-8.
        labels: int8[n]; 1 = worth training on, 0 = not, -1 = neither.
        parts: `corruptions`, `web`, `noisy` or `clean`.
        kinds: kind of damage or text.
        languages: ISO 639-1 codes.
        sources: name of each row's source.
        groups: what is left out of training together: the source, or the site of a web page.
        train: bool[n]; labelled, and its licence lets it feed a distributed model.
        licences: as stated; "" for corruptions, whose source stands among the clean texts.
    """

    texts: list[bytes]
    labels: NDArray[np.int8]
    parts: NDArray[np.str_]
    kinds: NDArray[np.str_]
    languages: NDArray[np.str_]
    sources: NDArray[np.str_]
    groups: NDArray[np.str_]
    train: NDArray[np.bool_]
    licences: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.texts)


def read_rows(data: Path, seed: int) -> Rows:
    """Reads `quality_synthetic_corruptions`, `web_raw_vs_gold`, `noisy_text` and `clean_<language>` of a folder.

    Of every clean source some documents are cut at line ends to lengths from a sentence to
    several pages, so that good text of every length is known.

    Raises:
        ConfigError: a file cannot be read, lacks columns, or no row may be trained on.
    """
    rng = np.random.default_rng(seed)
    found: list[tuple[str, int, str, str, str, str, str, bool, str]] = []
    ships: dict[str, bool] = {}
    cuts: list[tuple[str, int, str, str, str, str, str, bool, str]] = []
    for language in LANGUAGES:
        table = _read(data / f"clean_{language}.parquet", ("text", "source", "license", "ship"))
        by_source: dict[str, list[int]] = {}
        for at, (source, ship) in enumerate(zip(table["source"], table["ship"], strict=True)):
            by_source.setdefault(source, []).append(at)
            ships[source] = bool(ship)
        for source, members in sorted(by_source.items()):
            for at in rng.permutation(members)[:_SOURCE_CUTS].tolist():
                text = _cut(table["text"][at], language, rng)
                cuts.append((text, 1, "clean", "clean", language, source, source, ships[source], table["license"][at]))
    table = _read(data / "quality_synthetic_corruptions.parquet", ("text", "label", "kind", "lang", "source"))
    for text, label, kind, language, source in _records(table):
        found.append((text, label, "corruptions", kind, language, source, source, ships.get(source, False), ""))
    table = _read(
        data / "web_raw_vs_gold.parquet", ("text", "label", "kind", "lang", "source", "domain", "page_id", "license")
    )
    for text, label, kind, language, source, domain, page, licence in _records(table):
        site = f"site {domain or page}"
        found.append((text, label, "web", kind, language, source, site, _may_ship(licence), licence))
    table = _read(data / "noisy_text.parquet", ("text", "kind", "lang", "source", "license"))
    taken: Counter[str] = Counter()
    for at in rng.permutation(len(table["text"])).tolist():
        text, kind, language, source, licence = (table[name][at] for name in table)
        taken[kind] += 1
        if taken[kind] <= _MOST_NOISE:
            label = 0 if kind in NOISE_KINDS else UNLABELLED
            found.append((text, label, "noisy", kind, language, source, source, _may_ship(licence), licence))
    found = [row for row in found + cuts if row[4] in LANGUAGES and row[0]]
    texts, labels, parts, kinds, languages, sources, groups, train, licences = zip(*found, strict=True)
    rows = Rows(
        texts=[text.encode() for text in texts],
        labels=np.array(labels, dtype=np.int8),
        parts=np.array(parts),
        kinds=np.array(kinds),
        languages=np.array(languages),
        sources=np.array(sources),
        groups=np.array(groups),
        train=np.array(train) & (np.array(labels) != UNLABELLED),
        licences=np.array(licences),
    )
    if set(rows.labels[rows.train].tolist()) != {0, 1}:
        raise ConfigError(f"{data} holds no good or no bad text that may be trained on: both are needed")
    return rows


def deal_sources(data: Path, language: str, folds: int) -> list[tuple[str, ...]]:
    """Clean sources per fold, dealt domain by domain, so that no fold loses a whole domain that has several."""
    table = _read(data / f"clean_{language}.parquet", ("source", "domain"))
    frequency = Counter(table["source"])
    # `tech_docs` and `tech_articles` are one domain here.
    domain = {source: name.partition("_")[0] for source, name in zip(table["source"], table["domain"], strict=True)}
    order = sorted(frequency, key=lambda source: (domain[source], -frequency[source], source))
    return [tuple(order[number::folds]) for number in range(folds)]


def shipped_sources(data: Path, language: str) -> set[str]:
    """Clean sources of a language that training uses."""
    table = _read(data / f"clean_{language}.parquet", ("source", "ship"))
    return {source for source, ship in zip(table["source"], table["ship"], strict=True) if ship}


def _cut(text: str, language: str, rng: np.random.Generator) -> str:
    size = int(rng.choice(_CUT_CHARACTERS)) // (_CHINESE_FACTOR if language == "zh" else 1)
    lines = text.split("\n")
    if len(text) > size:
        lines = lines[int(rng.integers(len(lines))) :]
    kept: list[str] = []
    characters = 0
    for line in lines:
        kept.append(line)
        characters += len(line) + 1
        if characters >= size:
            break
    return "\n".join(kept).strip()


def _may_ship(licence: str) -> bool:
    return not any(word in licence for word in _REFUSED_LICENCES)


def _records(table: dict[str, list[Any]]) -> zip[tuple[Any, ...]]:
    return zip(*table.values(), strict=True)


def _read(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    try:
        missing = [column for column in columns if column not in pq.read_schema(path).names]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no parquet file that can be read: give the folder that holds it") from error
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}: give files with the columns {', '.join(columns)}")
    table: dict[str, list[Any]] = pq.read_table(path, columns=list(columns)).to_pydict()
    return table
