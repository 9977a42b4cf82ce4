"""Policies as TOML files: finding, reading, checking.

A file holds one policy and is named after it:

    name = "default"
    version = 1
    description = "One sentence."
    index_dropped = false             # optional

    [missing]                         # optional: what a missing score means to every rule
    too_short = "pass"                # pass, review or drop

    [[rules]]
    id = "too_toxic"
    signal = "toxicity"
    operator = ">"                    # broken when value > threshold
    threshold = 0.9                   # or one per language: {en = 0.9, zh = 0.8}
    languages = ["en", "zh"]          # optional: all languages otherwise
    label = "drop"                    # optional: drop or review
    missing = {no_model = "pass"}     # optional: what differs from [missing]

With one threshold per language the rule applies under those languages alone.
A user's directory is looked into before the presets that ship.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dqs.data import Label, Missing
from dqs.errors import PolicyError
from dqs.policy.policy import DEFAULT_MISSING, OPERATORS, Policy, Rule

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_RULE_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_LANGUAGE = re.compile(r"[a-z]{2}|und")
_POLICY_FIELDS = ("name", "version", "description", "index_dropped", "missing", "rules")
_RULE_FIELDS = (
    "id",
    "signal",
    "operator",
    "threshold",
    "languages",
    "label",
    "missing",
    "min_characters",
)
_LABELS = {"drop": Label.DROP, "review": Label.REVIEW}
_MISSING_LABELS = {"pass": Label.KEEP, "review": Label.REVIEW, "drop": Label.DROP}
_MISSING_CODES = {code.name.lower(): code for code in Missing if code != Missing.PRESENT}


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """Where a policy is stored.

    Attributes:
        name: the file's name without `.toml`.
        path: the file.
        shipped: whether it is a preset of this distribution.
    """

    name: str
    path: Path
    shipped: bool


def find_policies(directory: Path | None = None) -> dict[str, PolicyFile]:
    """Finds policy files; of two with one name the user's counts.

    Args:
        directory: the user's own.

    Returns:
        Policy files by name, in alphabetical order.

    Raises:
        PolicyError: there is no such folder.
    """
    found: dict[str, PolicyFile] = {}
    presets = Path(str(resources.files("dqs.policy") / "presets"))
    if directory is not None:
        if not directory.is_dir():
            raise PolicyError(f"the policy folder {directory} does not exist or is not a folder")
        found = {path.stem: PolicyFile(path.stem, path, False) for path in directory.glob("*.toml")}
    for path in presets.glob("*.toml"):
        found.setdefault(path.stem, PolicyFile(path.stem, path, True))
    return dict(sorted(found.items()))


def load_policy(name: str, directory: Path | None = None, signals: Collection[str] | None = None) -> Policy:
    """Reads the policy of that name.

    Args:
        name: policy name.
        directory: the user's own, looked into before the presets.
        signals: names that rules may read; None to allow any.

    Returns:
        The policy.

    Raises:
        PolicyError: no such policy, or its file is malformed.
    """
    files = find_policies(directory)
    if name not in files:
        raise PolicyError(f"there is no policy {name!r}; there are: {', '.join(files)}")
    return read_policy(files[name].path, signals)


def load_policies(directory: Path | None = None, signals: Collection[str] | None = None) -> dict[str, Policy]:
    """Reads every policy that can be found.

    Args:
        directory: the user's own, looked into before the presets.
        signals: names that rules may read; None to allow any.

    Returns:
        Policies by name.

    Raises:
        PolicyError: a file is malformed.
    """
    return {name: read_policy(file.path, signals) for name, file in find_policies(directory).items()}


def read_policy(path: Path, signals: Collection[str] | None = None) -> Policy:
    """Reads one policy file, which must be named after its policy.

    Args:
        path: the file.
        signals: names that rules may read; None to allow any.

    Returns:
        The policy.

    Raises:
        PolicyError: the file cannot be read or is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PolicyError(f"policy file {path} cannot be read: {reason}") from None
    policy = parse_policy(text, str(path), signals)
    if policy.name != path.stem:
        raise PolicyError(f"{path}: name = {policy.name!r} must equal the file's name; rename one of them to the other")
    return policy


def parse_policy(text: str, source: str, signals: Collection[str] | None = None) -> Policy:
    """Makes a policy of TOML text.

    Args:
        text: TOML.
        source: names the text in error messages.
        signals: names that rules may read; None to allow any.

    Returns:
        The policy.

    Raises:
        PolicyError: names the source, the rule, what is wrong and what is allowed.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source}: not valid TOML: {error}") from None
    _check_fields(table, _POLICY_FIELDS, ("name", "version"), source)
    name = table["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PolicyError(f"{source}: name must be lower-case letters, digits, '-' and '_', not {name!r}")
    version = table["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PolicyError(f"{source}: version must be a whole number from 1, not {version!r}")
    description = table.get("description", "")
    if not isinstance(description, str):
        raise PolicyError(f"{source}: description must be a string, not {description!r}")
    index_dropped = table.get("index_dropped", False)
    if not isinstance(index_dropped, bool):
        raise PolicyError(f"{source}: index_dropped must be true or false, not {index_dropped!r}")
    missing = _parse_missing(table.get("missing", {}), DEFAULT_MISSING, source)
    entries = table.get("rules", [])
    if not isinstance(entries, list):
        raise PolicyError(f"{source}: rules must be written as [[rules]]")
    rules: list[Rule] = []
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        parsed = _parse_rule(entry, number, missing, source, signals)
        if parsed[0].id in seen:
            raise PolicyError(
                f"{source}: rule {parsed[0].id!r} stands twice; for limits that differ by language "
                "write threshold = {en = …, zh = …}"
            )
        seen.add(parsed[0].id)
        rules.extend(parsed)
    return Policy(name, version, tuple(rules), description, index_dropped)


def _parse_rule(
    entry: Any,
    number: int,
    missing: Mapping[Missing, Label],
    source: str,
    signals: Collection[str] | None,
) -> list[Rule]:
    """Makes the rules of one `[[rules]]` entry: one, or one per language of its threshold."""
    where = f"{source}: rule {number}"
    if not isinstance(entry, dict):
        raise PolicyError(f"{where}: must be a table, written as [[rules]]")
    if isinstance(entry.get("id"), str):
        where = f"{source}: rule {entry['id']!r}"
    _check_fields(entry, _RULE_FIELDS, ("id", "signal", "operator", "threshold"), where)
    rule_id = entry["id"]
    if not isinstance(rule_id, str) or not _RULE_ID.fullmatch(rule_id):
        raise PolicyError(f"{where}: id must be lower-case letters, digits, '_' and '.', not {rule_id!r}")
    signal = entry["signal"]
    if not isinstance(signal, str) or (signals is not None and signal not in signals):
        known = ", ".join(sorted(signals)) if signals else "names of signals"
        raise PolicyError(f"{where}: unknown signal {signal!r}; allowed are: {known}")
    operator = entry["operator"]
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise PolicyError(f"{where}: unknown operator {operator!r}; allowed are: {' '.join(OPERATORS)}")
    label = entry.get("label", "drop")
    if label not in _LABELS:
        raise PolicyError(f"{where}: unknown label {label!r}; allowed are: {', '.join(_LABELS)}")
    own_missing = _parse_missing(entry.get("missing", {}), missing, where)
    min_characters = entry.get("min_characters", 0)
    if not isinstance(min_characters, int) or isinstance(min_characters, bool) or min_characters < 0:
        raise PolicyError(f"{where}: min_characters must be a whole number from 0 on, not {min_characters!r}")
    languages = entry.get("languages")
    if languages is not None:
        if not isinstance(languages, list) or not languages:
            raise PolicyError(f'{where}: languages must be a list such as ["en", "zh"]; leave it out for all')
        for language in languages:
            _check_language(language, where)
    threshold = entry["threshold"]
    limits: list[tuple[frozenset[str], Any]]
    if isinstance(threshold, dict):
        if languages is not None:
            raise PolicyError(f"{where}: give languages or one threshold per language, not both")
        if not threshold:
            raise PolicyError(f"{where}: threshold is an empty table; write such as {{en = 0.9, zh = 0.8}}")
        for language in threshold:
            _check_language(language, where)
        limits = [(frozenset({language}), limit) for language, limit in threshold.items()]
    else:
        limits = [(frozenset(languages or ()), threshold)]
    rules = []
    for applies, limit in limits:
        if not isinstance(limit, int | float) or isinstance(limit, bool) or not math.isfinite(limit):
            raise PolicyError(f"{where}: threshold must be a finite number, not {limit!r}")
        rules.append(
            Rule(
                rule_id,
                signal,
                operator,
                float(limit),
                applies,
                _LABELS[label],
                own_missing,
                min_characters,
            )
        )
    return rules


def _parse_missing(table: Any, base: Mapping[Missing, Label], where: str) -> Mapping[Missing, Label]:
    """Lays what `table` says about missing scores over `base`."""
    if not isinstance(table, dict):
        raise PolicyError(f'{where}: missing must be a table such as {{too_short = "pass"}}')
    merged = dict(base)
    for code, label in table.items():
        if code not in _MISSING_CODES:
            raise PolicyError(f"{where}: unknown missing code {code!r}; allowed are: {', '.join(_MISSING_CODES)}")
        if not isinstance(label, str) or label not in _MISSING_LABELS:
            raise PolicyError(f"{where}: missing.{code} = {label!r}; allowed are: {', '.join(_MISSING_LABELS)}")
        merged[_MISSING_CODES[code]] = _MISSING_LABELS[label]
    return merged


def _check_language(language: Any, where: str) -> None:
    if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
        raise PolicyError(f"{where}: {language!r} is no ISO 639-1 code such as en or zh")


def _check_fields(
    table: Mapping[str, Any],
    allowed: Sequence[str],
    required: Sequence[str],
    where: str,
) -> None:
    for name in table:
        if name not in allowed:
            raise PolicyError(f"{where}: unknown field {name!r}; allowed are: {', '.join(allowed)}")
    for name in required:
        if name not in table:
            raise PolicyError(f"{where}: the field {name!r} is missing")
