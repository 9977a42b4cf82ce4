"""The scorers: one file each, found by a scan of this folder.

A file that defines a class with the members of `dqs.scorer.Scorer` is a scorer;
a new one needs no other edit. This module knows how to find and order them.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, cast

from dqs.errors import ConfigError, ModelError
from dqs.inference.sessions import Runtime
from dqs.models import ModelFolder
from dqs.scorer import Scorer


def find_scorers() -> dict[str, type[Scorer]]:
    """Imports every module of this folder and returns its scorer classes by name.

    Raises:
        ConfigError: two files define the same scorer.
    """
    found: dict[str, type[Scorer]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            if member.__module__ != module.__name__ or not hasattr(member, "needs") or not hasattr(member, "score"):
                continue
            scorer = cast(type[Scorer], member)
            if scorer.name in found:
                raise ConfigError(f"Two scorers are named {scorer.name}; rename one of the files in dqs/scorers.")
            found[scorer.name] = scorer
    return found


def build_scorers(
    models: Sequence[ModelFolder], names: Sequence[str] | None = None, runtime: Runtime | None = None
) -> list[Scorer]:
    """Makes scorers, each with the model folders of its own kind, in an order that respects `needs`.

    Args:
        models: every model folder that serves; a scorer takes those whose kind is its name.
        names: scorers to make; all of them if None.
        runtime: how networks run; on the processor if None.

    Raises:
        ConfigError: an unknown name, or scorers that need each other in a circle.
        ModelError: a model does not load, or two scorers have a signal of the same name.
    """
    classes = find_scorers()
    for name in names or ():
        if name not in classes:
            raise ConfigError(f"There is no scorer {name}; there are: {', '.join(sorted(classes))}.")
    wanted = list(names) if names is not None else sorted(classes)
    built: dict[str, Scorer] = {}

    def build(name: str, path: tuple[str, ...]) -> None:
        if name in built:
            return
        if name in path:
            raise ConfigError(f"Scorers need each other in a circle: {' -> '.join((*path, name))}.")
        for need in classes[name].needs:
            build(need, (*path, name))
        make: Callable[..., Scorer] = classes[name]
        arguments: dict[str, Any] = {}
        parameters = inspect.signature(make).parameters
        if "models" in parameters:
            arguments["models"] = [model for model in models if model.kind == name]
        if "runtime" in parameters:
            arguments["runtime"] = runtime or Runtime()
        built[name] = make(**arguments)

    for name in wanted:
        build(name, ())
    _check_signals(list(built.values()))
    return list(built.values())


def _check_signals(scorers: Sequence[Scorer]) -> None:
    owners: dict[str, str] = {}
    for scorer in scorers:
        for signal in scorer.signals:
            if signal.name in owners:
                raise ModelError(
                    f"The scorers {owners[signal.name]} and {scorer.name} both have a signal {signal.name}: "
                    "import the model under another name."
                )
            owners[signal.name] = scorer.name
