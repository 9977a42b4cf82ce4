"""What every process that scores does first: find models, check them, build scorers, have a batch pass through."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dqs.data import Document
from dqs.errors import ModelError
from dqs.index.signature import SignatureParameters
from dqs.inference.runtime import Runtime
from dqs.models import ModelFolder, find_models, model_roots
from dqs.pipeline import Executor, ModelInfo
from dqs.scorer import Scorer
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


def load_scorers(
    models: Path | None,
    data_dir: Path,
    build: Callable[[Sequence[ModelFolder]], list[Scorer]] | None = None,
    *,
    runtime: Runtime | None = None,
    classifiers: Sequence[str] | None = None,
) -> tuple[list[ModelFolder], list[Scorer]]:
    """Finds the models of this machine, checks their files and builds the scorers.

    Args:
        models: folder that is searched before all others, or None.
        data_dir: folder of imported models.
        build: makes the scorers from the models; None for those that ship.
        runtime: how networks run; on the processor if None. Not for scorers that `build` makes.
        classifiers: names of the models of kind `classifier` that serve; None for all.

    Raises:
        ModelError: a model is missing, damaged or does not fit.
    """
    found = choose_classifiers(find_models(model_roots(models, data_dir)), classifiers)
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
