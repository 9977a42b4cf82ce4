"""Which version of each model serves: `serving.toml` in a models folder.

    "toxicity-en" = "2"
    "perplexity-en" = "1"

Models that it does not name serve in their highest version. Where several
models folders hold such a file, what the strongest says of a model counts. It
is replaced as a whole, so that nobody reads half of it, under a lock, so that
two who promote at a time lose nothing. This module knows nothing of what a
version holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from dqs.errors import ConfigError, ModelError

SERVING_FILE: Final = "serving.toml"
_LOCK_FILE: Final = ".serving.lock"
_HEAD: Final = "# Which version of each model serves. Written by `dqs models promote`.\n"


def promoted_versions(roots: Iterable[Path]) -> dict[str, str]:
    """What the models folders say about which versions serve.

    Args:
        roots: models folders, the strongest first.

    Returns:
        Model name -> version, of models that were promoted; the others serve in their highest version.

    Raises:
        ModelError: a file cannot be read or is malformed.
    """
    versions: dict[str, str] = {}
    for root in roots:
        for name, version in _read(root / SERVING_FILE).items():
            versions.setdefault(name, version)
    return versions


def promotions_state(roots: Iterable[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """Path, time, size and number of each file: changes whenever somebody promotes, the same version again included.

    Args:
        roots: models folders.
    """
    state = []
    for root in roots:
        with contextlib.suppress(OSError):
            found = (root / SERVING_FILE).stat()
            state.append((str(root), found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(state)


def promote(root: Path, stronger: Iterable[Path], name: str, version: str | None) -> None:
    """Writes down which version of a model serves from now on.

    Args:
        root: the models folder to write to.
        stronger: models folders whose word counts more.
        name: of the model.
        version: of the model; None leaves it to the folders again, which means the highest.

    Raises:
        ModelError: a file cannot be read or written, or a stronger folder names another version.
    """
    for folder in stronger:
        if name in (said := _read(folder / SERVING_FILE)) and said[name] != version:
            raise ModelError(
                f"{folder / SERVING_FILE} says that {name}@{said[name]} serves, and it counts more than "
                f"{root / SERVING_FILE}: take the line out of it first."
            )
    path = root / SERVING_FILE
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / _LOCK_FILE):
            versions = _read(path)
            versions.pop(name, None)
            if version is not None:
                versions[name] = version
            _write(path, versions)
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({error.strerror}): give a models folder of your own.") from error


def first_writable(roots: Iterable[Path]) -> Path:
    """The first models folder that this process may write to; one that does not exist yet counts as well.

    Args:
        roots: models folders, the strongest first.

    Raises:
        ConfigError: there is none.
    """
    for root in roots:
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                return root
    raise ConfigError("No models folder can be written: give one with --models, or another --data-dir.")


def _read(path: Path) -> dict[str, str]:
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): restore it, or remove it.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelError(f"{path} is no valid TOML ({error}): restore it, or remove it.") from error
    for name, version in said.items():
        if not isinstance(version, str) or not version:
            raise ModelError(f'{path} names no version of {name}: write "{name}" = "1", with the version in quotes.')
    return said


def _write(path: Path, versions: Mapping[str, str]) -> None:
    # JSON's escapes are TOML's.
    lines = [f"{json.dumps(name)} = {json.dumps(version)}\n" for name, version in sorted(versions.items())]
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(_HEAD + "".join(lines))
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
