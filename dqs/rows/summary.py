"""What a run has come to: counts that add up over batches, parts and resumed runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

LABELS = ("keep", "drop", "review")


@dataclass(slots=True)
class Summary:
    """Counts of rows.

    Attributes:
        rows: all rows.
        errors: rows without a verdict.
        text_bytes: size of the texts.
        labels: rows per label.
        rules: rows per broken rule; a row counts under each of its rules.
        languages: rows per language and label.
    """

    rows: int = 0
    errors: int = 0
    text_bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    languages: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, table: pa.RecordBatch, text_bytes: int) -> None:
        """Counts scored rows."""
        labels = table.column("label").to_pylist()
        self.rows += len(labels)
        self.text_bytes += text_bytes
        for label, language in zip(labels, table.column("language").to_pylist(), strict=True):
            if label is None:
                self.errors += 1
                continue
            self.labels[label] += 1
            self.languages.setdefault(language, Counter())[label] += 1
        self.rules.update(table.column("reasons").flatten().to_pylist())

    def merge(self, other: Summary) -> None:
        """Adds the counts of other rows."""
        self.rows += other.rows
        self.errors += other.errors
        self.text_bytes += other.text_bytes
        self.labels.update(other.labels)
        self.rules.update(other.rules)
        for language, labels in other.languages.items():
            self.languages.setdefault(language, Counter()).update(labels)

    def as_json(self) -> dict[str, Any]:
        """The counts in a fixed order."""
        return {
            "rows": self.rows,
            "errors": self.errors,
            "text_bytes": self.text_bytes,
            "labels": dict(sorted(self.labels.items())),
            "rules": dict(sorted(self.rules.items())),
            "languages": {code: dict(sorted(labels.items())) for code, labels in sorted(self.languages.items())},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Summary:
        """Reads what `as_json` wrote."""
        return cls(
            rows=value["rows"],
            errors=value["errors"],
            text_bytes=value["text_bytes"],
            labels=Counter(value["labels"]),
            rules=Counter(value["rules"]),
            languages={code: Counter(labels) for code, labels in value["languages"].items()},
        )
