"""Model folders: where models are searched, what model.toml says, whether the files are the ones it names.

    <root>/<name>/<version>/model.toml      this module's business
    <root>/<name>/<version>/<weights>       opaque here; the scorer of that kind reads them

A folder is described by model.toml: the keys below, and one free table per
kind (`[perplexity]`, `[toxicity]`, …) that only that kind's scorer reads.

    name = "perplexity-en"          # equal to the folder's name
    version = "1"                   # equal to the folder's name
    kind = "perplexity"
    languages = ["en"]
    normaliser = "dqs"              # "" where the kind has none
    licence = "Apache-2.0"
    training_data = ["source A (CC0-1.0)", "…"]

    [[files]]
    role = "language_model"         # what the scorer asks for
    name = "en.bin"                 # a plain file name inside the folder
    sha256 = "…"

This module knows nothing of what a model computes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dqs.errors import ModelError
from dqs.promoted import SERVING_FILE, promoted_versions

MODEL_FILE: Final = "model.toml"
PACKAGE: Final = "dqs_models"
"""Import name of the distribution `dqs-models`, whose package folder is a root."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_KEYS = frozenset({"name", "version", "kind", "languages", "normaliser", "licence", "training_data", "files"})
_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model folder.

    Attributes:
        role: what the file is to its scorer, such as `language_model`; unique within the folder.
        name: plain file name inside the folder.
        sha256: lower-case hexadecimal digest of the file's bytes.
    """

    role: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model as its model.toml describes it. Reading it does not read the files it names.

    Attributes:
        path: the folder.
        name: model name, equal to the name of the folder above.
        version: equal to the folder's own name.
        kind: which scorer reads it: `perplexity`, `toxicity`, ….
        languages: ISO 639-1 codes that it serves.
        files: the files, in the order of model.toml.
        normaliser: name of the text normaliser that the model was trained with, "" for none.
        licence: SPDX expression or a sentence.
        training_data: one line per source, with its licence.
        tables: every other key of model.toml; the kind's own settings.
        digest: sha256 of model.toml, which holds the digests of the files: names the whole model.
    """

    path: Path
    name: str
    version: str
    kind: str
    languages: tuple[str, ...]
    files: tuple[ModelFile, ...]
    normaliser: str = ""
    licence: str = ""
    training_data: tuple[str, ...] = ()
    tables: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def label(self) -> str:
        """`name@version`, as replies and reports name the model."""
        return f"{self.name}@{self.version}"

    def file(self, role: str) -> Path:
        """Returns the path of the file with this role.

        Raises:
            ModelError: model.toml names no file with this role.
        """
        for entry in self.files:
            if entry.role == role:
                return self.path / entry.name
        raise ModelError(f"model {self.label} names no file with role {role!r}: add it to {self.path / MODEL_FILE}")

    def has_file(self, role: str) -> bool:
        """Tells whether model.toml names a file with this role."""
        return any(entry.role == role for entry in self.files)

    def table(self, name: str) -> Mapping[str, Any]:
        """Returns the free table `name`, empty where model.toml has none.

        Raises:
            ModelError: the key exists and is no table.
        """
        value = self.tables.get(name, {})
        if not isinstance(value, dict):
            raise ModelError(f"model {self.label}: [{name}] in {self.path / MODEL_FILE} must be a table")
        return value

    def verify(self) -> None:
        """Checks that every file is there and is the one that model.toml names.

        Raises:
            ModelError: a file is missing, cannot be read or has another digest; the message names
                the file and the beginnings of both digests.
        """
        for entry in self.files:
            path = self.path / entry.name
            found = file_digest(path)
            if found != entry.sha256:
                raise ModelError(
                    f"model {self.label}: {path} is not the file that {MODEL_FILE} names "
                    f"(sha256 {found[:_SHOWN_DIGITS]}…, expected {entry.sha256[:_SHOWN_DIGITS]}…): "
                    "restore the file, or write its digest into model.toml if the change was meant"
                )


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file, in lower-case hexadecimal.

    Raises:
        ModelError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read ({error.strerror}): restore it") from error


def model_roots(models: Path | None = None, data_dir: Path | None = None, *, missing: bool = False) -> list[Path]:
    """Returns the folders to search for models, the strongest first.

    The order is `models`, `<data_dir>/models`, the `models/` of the clone that this code lies in,
    the installed package `dqs-models`.

    Args:
        models: folder that the user named.
        data_dir: the data directory.
        missing: those too that do not exist, which may be made.

    Raises:
        ModelError: `models` is given and is no folder.
    """
    roots: list[Path] = []
    if models is not None:
        if not models.is_dir():
            raise ModelError(f"the models folder {models} does not exist: create it or leave --models out")
        roots.append(models)
    if data_dir is not None:
        roots.append(data_dir / "models")
    clone = Path(__file__).resolve().parent.parent
    if (clone / "pyproject.toml").is_file():
        roots.append(clone / "models")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        roots.extend(Path(place) for place in spec.submodule_search_locations)
    seen: dict[Path, Path] = {}
    for root in roots:
        if missing or root.is_dir():
            seen.setdefault(root.resolve(), root)
    return list(seen.values())


def writable_root(models: Path | None, data_dir: Path) -> Path:
    """Returns the first folder of `model_roots` that can be written, which is made if it is that of the data.

    Args:
        models: folder that the user named.
        data_dir: the data directory.

    Raises:
        ModelError: `models` is given and is no folder, or nothing can be written.
    """
    folders = [data_dir / "models", *model_roots(None, None)]
    if models is not None:
        folders = [*model_roots(models, None)[:1], *folders]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise ModelError(f"No models folder can be written, neither {folders[0]} nor another: give another --data-dir.")


def find_models(
    roots: Iterable[Path],
    *,
    kind: str | None = None,
    versions: Mapping[str, str] | None = None,
    promoted: Mapping[str, str] | None = None,
) -> list[ModelFolder]:
    """Finds one version of every model under the roots.

    A model that was promoted (see `dqs.promoted`) comes in that version, from the first root that has it.
    Of the others, a name that several roots hold is taken from the first of them; of several versions
    in one root the highest is taken, numbers counting as numbers ("10" after "9").

    Args:
        roots: folders to search, the strongest first.
        kind: only models of this kind.
        versions: model name → the version to take, whatever was promoted; such a model may come from
            a later root.
        promoted: model name → version that was promoted; what the roots say if None.

    Returns:
        The models, those of stronger roots first, by name within a root.

    Raises:
        ModelError: a model.toml or serving.toml is malformed, the only version of a model in a root lacks its
            model.toml, or a version that is asked for or was promoted is in no root.
    """
    roots = list(roots)
    wanted = {**(promoted_versions(roots) if promoted is None else promoted), **(versions or {})}
    found: dict[str, ModelFolder] = {}
    for root in roots:
        if not root.is_dir():
            continue
        for place in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in found):
            folders = [path for path in place.iterdir() if (path / MODEL_FILE).is_file()]
            if not folders:
                _refuse_headless(place)
            if place.name in wanted:
                folders = [path for path in folders if path.name == wanted[place.name]]
            if folders:
                found[place.name] = load_model(max(folders, key=lambda path: version_key(path.name)))
    for name, version in wanted.items():
        if name not in found:
            if name not in (versions or {}):
                raise ModelError(
                    f"{SERVING_FILE} says that {name}@{version} serves, which is in no models folder: install it, or "
                    f"promote another version with `dqs models promote {name}`"
                )
            raise ModelError(f"model {name}@{version} is in no models folder: install it or ask for another")
    return [model for model in found.values() if kind is None or model.kind == kind]


def _refuse_headless(place: Path) -> None:
    """Raises where a model's only version has lost its model.toml: a weaker root's would serve in its place."""
    for path in place.iterdir():
        if not path.name.startswith(".") and ((path / "CARD.md").is_file() or any(path.glob("*.onnx"))):
            raise ModelError(f"{path} has no {MODEL_FILE}: restore it, or remove the folder")


def find_exactly(roots: Iterable[Path], versions: Mapping[str, str]) -> list[ModelFolder]:
    """Finds these versions of these models and no others.

    Args:
        roots: folders to search, the strongest first.
        versions: model name → version.

    Returns:
        The models, in the order of `versions`.

    Raises:
        ModelError: a model.toml is malformed, or a version is in no root.
    """
    roots = list(roots)
    found: list[ModelFolder] = []
    for name, version in versions.items():
        folder = next((root / name / version for root in roots if (root / name / version / MODEL_FILE).is_file()), None)
        if folder is None:
            raise ModelError(f"model {name}@{version} is in no models folder: install it or ask for another")
        found.append(load_model(folder))
    return found


def find_versions(roots: Iterable[Path]) -> list[ModelFolder]:
    """Finds every version of every model under the roots, by name; the versions of a name in their order.

    Raises:
        ModelError: a model.toml is malformed.
    """
    folders = {
        (path.parent.name, path.name): path
        for root in reversed(list(roots))
        for path in root.glob("*/*")
        if (path / MODEL_FILE).is_file()
    }
    return [load_model(folders[key]) for key in sorted(folders, key=lambda key: (key[0], version_key(key[1])))]


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Returns a key that orders versions: runs of digits as numbers, everything else as text."""
    return tuple(
        (1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.findall(r"[0-9]+|[^0-9.]+", version)
    )


def load_model(path: Path) -> ModelFolder:
    """Reads the model.toml of one folder. The digests of the files are not checked: see `verify`.

    Raises:
        ModelError: model.toml is missing, is no TOML, lacks a key, or names a file outside the folder.
    """
    source = path / MODEL_FILE
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror}): restore it") from error
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{source} is no valid TOML: {error}") from error

    name, version = _text(data, "name", source), _text(data, "version", source)
    if (name, version) != (path.parent.name, path.name):
        raise ModelError(f"{source} says {name}@{version} but lies in {path.parent.name}/{path.name}: make them equal")
    return ModelFolder(
        path=path,
        name=name,
        version=version,
        kind=_text(data, "kind", source),
        languages=_texts(data, "languages", source),
        files=_files(data, source),
        normaliser=_text(data, "normaliser", source, default=""),
        licence=_text(data, "licence", source, default=""),
        training_data=_texts(data, "training_data", source),
        tables={key: value for key, value in data.items() if key not in _KEYS},
        digest=hashlib.sha256(content).hexdigest(),
    )


def write_model(
    root: Path,
    *,
    name: str,
    version: str,
    kind: str,
    languages: Sequence[str],
    files: Mapping[str, str],
    normaliser: str = "",
    licence: str = "",
    training_data: Sequence[str] = (),
    tables: Mapping[str, Any] | None = None,
) -> ModelFolder:
    """Writes the model.toml of a folder whose files are already in place, and reads it back.

    Args:
        root: the models folder; the model's own folder is `<root>/<name>/<version>`.
        name: model name: letters, digits, `.`, `_`, `-`.
        version: likewise.
        kind: which scorer reads it.
        languages: ISO 639-1 codes.
        files: role → plain file name inside the model's folder; digests are computed here.
        normaliser: name of the text normaliser, "" for none.
        licence: SPDX expression or a sentence.
        training_data: one line per source, with its licence.
        tables: further keys: scalars, lists and tables (nested mappings) of plain values.

    Raises:
        ModelError: a name is malformed, or a file is missing.
    """
    check_names(name, version)
    folder = root / name / version
    data: dict[str, Any] = {
        "name": name,
        "version": version,
        "kind": kind,
        "languages": list(languages),
        "normaliser": normaliser,
        "licence": licence,
        "training_data": list(training_data),
        "files": [{"role": role, "name": file, "sha256": file_digest(folder / file)} for role, file in files.items()],
    }
    clash = sorted(_KEYS.intersection(tables or {}))
    if clash:
        raise ModelError(f"model {name}: the key {clash[0]!r} belongs to every model.toml: rename the table")
    data.update(tables or {})
    target = folder / MODEL_FILE
    partial = folder / f".{MODEL_FILE}.partial"
    partial.write_text(to_toml(data), encoding="utf-8")
    partial.replace(target)
    return load_model(folder)


def check_languages(models: Iterable[ModelFolder]) -> None:
    """Refuses two models of one kind that serve the same language.

    Raises:
        ModelError: there are two; the message names both.
    """
    served: dict[str, str] = {}
    for folder in models:
        for language in folder.languages:
            if language in served:
                raise ModelError(
                    f"The models {served[language]} and {folder.label} both score {folder.kind} for {language!r}: "
                    "take the language out of one, or give both the same name to let the first folder win."
                )
            served[language] = folder.label


def check_names(name: str, version: str) -> None:
    """Refuses what cannot be the folders of a model.

    Raises:
        ModelError: the name or the version is malformed.
    """
    for what, word in (("model", name), ("version", version)):
        if not _NAME.match(word):
            raise ModelError(f"{word!r} cannot name a {what}: use letters, digits, '.', '_' and '-'")


def to_toml(data: Mapping[str, Any]) -> str:
    """Formats plain values as TOML: scalars and lists first, then tables and arrays of tables.

    Args:
        data: str, bool, int, finite float, list, and mappings with string keys.

    Raises:
        TypeError: a value is of another type, or a float is not finite.
    """
    return "\n".join(_table_lines(data, ())).strip() + "\n"


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    tables: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) or _is_table_list(value):
            tables.append((key, value))
        else:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in tables:
        inner = (*path, key)
        header = ".".join(_toml_key(part) for part in inner)
        entries = [value] if isinstance(value, Mapping) else value
        mark = "[{}]" if isinstance(value, Mapping) else "[[{}]]"
        for entry in entries:
            lines += ["", mark.format(header), *_table_lines(entry, inner)]
    return lines


def _is_table_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(text: str) -> str:
    # JSON's escapes are TOML's; only DEL may stand bare in JSON and not in TOML.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        return _toml_text(value)
    if isinstance(value, list | tuple):
        texts = [_toml_value(item) for item in value]
        line = "[" + ", ".join(texts) + "]"
        if len(line) <= 100:
            return line
        if all(isinstance(item, int | float) for item in value):
            rows = [", ".join(texts[at : at + 8]) for at in range(0, len(texts), 8)]
        else:
            rows = texts
        return "[\n" + "".join(f"    {row},\n" for row in rows) + "]"
    raise TypeError(f"{type(value).__name__} cannot stand in a model.toml")


def _text(data: Mapping[str, Any], key: str, source: Path, *, default: str | None = None) -> str:
    value = data.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise ModelError(f"{source}: {key} must be a text")
    return value


def _texts(data: Mapping[str, Any], key: str, source: Path) -> tuple[str, ...]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{source}: {key} must be a list of texts")
    return tuple(value)


def _files(data: Mapping[str, Any], source: Path) -> tuple[ModelFile, ...]:
    entries = data.get("files", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{source}: files must be an array of tables, [[files]]")
    files: list[ModelFile] = []
    for entry in entries:
        role, name = _text(entry, "role", source), _text(entry, "name", source)
        sha256 = _text(entry, "sha256", source, default="").lower()
        if name in (".", "..") or "/" in name or "\\" in name or "\x00" in name:
            raise ModelError(f"{source}: {name!r} is no plain file name: keep the files beside model.toml")
        if not _DIGEST.match(sha256):
            raise ModelError(f"{source}: {name} needs sha256, 64 hexadecimal digits: take them from `sha256sum {name}`")
        if any(file.role == role for file in files):
            raise ModelError(f"{source}: two files have the role {role!r}: give each its own")
        files.append(ModelFile(role=role, name=name, sha256=sha256))
    return tuple(files)
