"""What every process that scores does first: find models, check them, build scorers, have a batch pass through."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dqs.data import Document
from dqs.errors import ModelError
from dqs.index.signature import SignatureParameters
from dqs.inference.runtime import Runtime
from dqs.models import ModelFolder, find_exactly, find_models, model_roots
from dqs.pipeline import Executor, ModelInfo
from dqs.scorer import Scorer, Signal
from dqs.scorers import build_scorers
from dqs.settings import MIB

WARM_UP = (
    Document("en", b"A short text that goes through every scorer before the first real one does.\nTwice, in fact."),
    Document("zh", "这段短文先走过每一个评分器，真正的文档随后才到。\n第二行也是如此。".encode()),
    Document("de", "Für diese Sprache gibt es kein Modell.".encode()),
    Document("empty", b""),
    Document("broken", b"\xff\xfe"),
)
"""A batch that reaches every kernel and every model."""


class LoadScorers(Protocol):
    """`load_scorers`, with all but the versions given."""

    def __call__(self, *, versions: Mapping[str, str] | None = None) -> tuple[list[ModelFolder], list[Scorer]]:
        """Loads these versions, or those that serve by themselves."""
        ...


def load_scorers(
    models: Path | None,
    data_dir: Path,
    build: Callable[[Sequence[ModelFolder]], list[Scorer]] | None = None,
    *,
    runtime: Runtime | None = None,
    classifiers: Sequence[str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> tuple[list[ModelFolder], list[Scorer]]:
    """Finds the models of this machine, checks their files and builds the scorers.

    Args:
        models: folder that is searched before all others, or None.
        data_dir: folder of imported models.
        build: makes the scorers from the models; None for those that ship.
        runtime: how networks run; on the processor if None. Not for scorers that `build` makes.
        classifiers: names of the models of kind `classifier` that serve; None for all.
        versions: model name -> version, of exactly the models to load; None for those that serve, as
            `find_models` says.

    Raises:
        ModelError: a model is missing, damaged or does not fit.
    """
    roots = model_roots(models, data_dir)
    found = find_models(roots) if versions is None else find_exactly(roots, versions)
    found = choose_classifiers(found, classifiers)
    for model in found:
        model.verify()
    return found, build(found) if build else build_scorers(found, runtime=runtime)


def choose_classifiers(models: Sequence[ModelFolder], names: Sequence[str] | None) -> list[ModelFolder]:
    """Leaves out the classifiers that are not to serve.

    Args:
        models: models of all kinds.
        names: names of those of kind `classifier` that serve; None for all.

    Raises:
        ModelError: there is no classifier of that name.
    """
    there = {model.name for model in models if model.kind == "classifier"}
    for name in names or ():
        if name not in there:
            raise ModelError(
                f"There is no classifier {name!r}, which the setting classifiers names; there are: "
                f"{', '.join(sorted(there)) or 'none'}."
            )
    return [model for model in models if names is None or model.kind != "classifier" or model.name in names]


def describe(models: Sequence[ModelFolder]) -> list[ModelInfo]:
    """What answers say of the models."""
    return [ModelInfo(model.name, model.version, model.kind, model.languages, model.digest) for model in models]


def classifiers_of(scorers: Sequence[Scorer]) -> list[str]:
    """Names of the classifiers that a caller may choose among: what scorers have as `classifiers`, where they do."""
    return [name for scorer in scorers for name in getattr(scorer, "classifiers", ())]


def check_signals(
    serving: Sequence[Signal], others: Sequence[Signal], remedy: str = "start the service again to have them serve"
) -> None:
    """Refuses models that answer other signals than those that serve; policies and answers hold on to these.

    Args:
        serving: what is answered now.
        others: what the other models answer.
        remedy: what to do, for the message.

    Raises:
        ModelError: a signal came, went or means something else.
    """
    meanings = [
        {signal.name: (signal.unit, signal.low, signal.high, signal.direction, signal.version) for signal in signals}
        for signals in (serving, others)
    ]
    before, after = meanings
    differences = (
        ("new", sorted(after.keys() - before.keys())),
        ("gone", sorted(before.keys() - after.keys())),
        ("changed", sorted(name for name in before.keys() & after.keys() if before[name] != after[name])),
    )
    if said := "; ".join(f"{what}: {', '.join(names)}" for what, names in differences if names):
        raise ModelError(
            f"The models answer other signals than those that serve ({said}), on which policies depend: {remedy}."
        )


def slow_models(timeout_s: float) -> ModelError:
    """What is said of models that take too long."""
    return ModelError(f"The models did not load within {timeout_s:g} s: raise worker_start_timeout_s, or mend them.")


def warm_up(executor: Executor) -> None:
    """Has a batch in both languages pass through every scorer, so that all kernels are compiled and loaded."""
    texts = [document.text for document in WARM_UP]
    byte_offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=byte_offsets[1:])
    executor.score(
        np.frombuffer(b"".join(texts), dtype=np.uint8), byte_offsets, [""] * len(texts), signature=SignatureParameters()
    )


def keep_freed_memory() -> None:
    """Lets the C library reuse the memory of the last batch instead of returning it to the kernel.

    Every batch allocates the same large arrays; with glibc's defaults each of them is
    mapped afresh, and the page faults cost as much as the text kernels themselves.
    Elsewhere than on glibc nothing happens.
    """
    trim_threshold, mmap_threshold, kept_bytes = -1, -3, 256 * MIB
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, kept_bytes)
        libc.mallopt(trim_threshold, kept_bytes)
