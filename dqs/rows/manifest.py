"""The manifest of a folder of parts: what a run was asked for and how far it has come.

It is written anew after every part, as a whole, so that a killed run continues
behind its last complete part. It holds what decides the result (inputs, fields,
policy, models); a run continues only where all of that is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dqs.errors import ConfigError
from dqs.rows.readers import Position, Source
from dqs.rows.summary import Summary
from dqs.rows.writers import write_json

MANIFEST = "manifest.json"
_FORMAT = 1
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One complete part.

    Attributes:
        file: its name in the folder.
        end: the place in the inputs behind its last row.
        summary: counts of its rows.
    """

    file: str
    end: Position
    summary: Summary


@dataclass(slots=True)
class Manifest:
    """What a folder of parts holds.

    Attributes:
        run: what decides the result, as JSON values.
        corpus: name of the corpus that the run compares with, or None.
        parts: complete parts, in order.
        complete: whether every row has been written.
        started: whether it was read from a folder, in which half a part may lie.
    """

    run: Mapping[str, Any]
    corpus: str | None
    parts: list[Part] = field(default_factory=list)
    complete: bool = False
    started: bool = False

    @property
    def end(self) -> Position:
        """The place from which the run continues."""
        return self.parts[-1].end if self.parts else Position()

    @property
    def may_continue(self) -> bool:
        """Whether a later run has parts to continue behind and inputs that can be read again."""
        return bool(self.parts) and not self.complete and self.run.get("inputs") is not None

    def summary(self) -> Summary:
        """Counts over all parts."""
        total = Summary()
        for part in self.parts:
            total.merge(part.summary)
        return total

    def save(self, folder: Path) -> None:
        """Replaces the manifest of `folder`.

        Raises:
            ConfigError: it cannot be written.
        """
        value = {
            "format": _FORMAT,
            "complete": self.complete,
            "run": dict(self.run),
            "corpus": self.corpus,
            "summary": self.summary().as_json(),
            "parts": [
                {"file": part.file, "end": asdict(part.end), "summary": part.summary.as_json()} for part in self.parts
            ],
        }
        write_json(folder / MANIFEST, value)

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Reads the manifest of `folder`; None where there is none.

        Raises:
            ConfigError: it is damaged or of another format.
        """
        path = folder / MANIFEST
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["format"] != _FORMAT:
                raise ConfigError(f"{path} is of format {value['format']}, not {_FORMAT}; choose another folder.")
            parts = [
                Part(part["file"], Position(**part["end"]), Summary.from_json(part["summary"]))
                for part in value["parts"]
            ]
            return cls(value["run"], value["corpus"], parts, value["complete"], started=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({type(error).__name__}); choose another folder.") from None

    def check_same(self, run: Mapping[str, Any], folder: Path) -> None:
        """Refuses to continue a run that was asked for something else.

        Raises:
            ConfigError: names what differs.
        """
        differing = sorted(key for key in {*self.run, *run} if self.run.get(key) != run.get(key))
        if differing:
            raise ConfigError(
                f"The run in {folder} was started with other {', '.join(differing)}; give the same, or another folder."
            )


def identify(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Size and a digest of both ends of every input, to notice that one has changed.

    Raises:
        ConfigError: an input cannot be read, or cannot be read again.
    """
    found = []
    for source in sources:
        if not source.regular:
            raise ConfigError(f"Input {source.path} cannot be read a second time, so --resume needs files.")
        path = Path(source.path)
        try:
            size = path.stat().st_size
            digest = hashlib.blake2b(digest_size=16)
            with path.open("rb") as file:
                digest.update(file.read(_PROBE_BYTES))
                file.seek(max(0, size - _PROBE_BYTES))
                digest.update(file.read(_PROBE_BYTES))
        except OSError as error:
            raise ConfigError(f"Input {source.path} cannot be read: {error.strerror}.") from None
        found.append({"name": source.name, "bytes": size, "digest": digest.hexdigest()})
    return found
