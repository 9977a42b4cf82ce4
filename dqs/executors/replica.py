"""The scorer process: builds its scorers once from local files, then scores batch after batch.

It knows nothing of Ray, which only runs it. Importing this module is cheap on
purpose: where compiled kernels are kept must be said before numba is imported.
"""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dqs.inference.runtime import Runtime
from dqs.settings import use_kernel_cache

if TYPE_CHECKING:
    from dqs.executors.inline import InlineExecutor
    from dqs.models import ModelFolder
    from dqs.pipeline import ModelInfo
    from dqs.scorer import Scorer, Signal

    BuildScorers = Callable[[Sequence[ModelFolder]], list[Scorer]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a scorer process is made from; the paths are those of the machine that it runs on.

    Attributes:
        data_dir: folder of compiled kernels and imported models.
        models: folder of models that is searched before all others, or None.
        build: makes the scorers from the models; None for those that ship.
        runtime: how networks run.
        classifiers: names of the models of kind `classifier` that serve; None for all.
    """

    data_dir: Path
    models: Path | None
    build: BuildScorers | None = None
    runtime: Runtime = field(default_factory=Runtime)
    classifiers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a scorer process says of itself once it can score.

    Attributes:
        token: names this life of the process; another after every restart.
        node: name of its machine.
        version: of DQS.
        signals: what it computes.
        models: what it answers with.
    """

    token: str
    node: str
    version: str
    signals: tuple[Signal, ...]
    models: tuple[ModelInfo, ...]


class ScorerReplica:
    """One scorer process; one call at a time.

    Args:
        recipe: what to build.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._token = ""
        self._inner: InlineExecutor | None = None
        self._signals: tuple[str, ...] = ()
        self._introduction: Introduction | None = None

    def introduce(self) -> Introduction:
        """Builds the scorers, has a real batch pass through them, and says who it is.

        Raises:
            ConfigError: models or settings do not fit.
        """
        if self._introduction is None:
            self._introduction = self._build()
        return self._introduction

    def ping(self, token: str) -> bool:
        """Whether it is still the process that introduced itself with this token."""
        return token == self._token

    def score(self, message: bytes) -> bytes:
        """Scores a batch; see `dqs.pipeline.Executor.score` and `dqs.executors.columns`.

        Args:
            message: as `encode_batch` makes it.

        Returns:
            As `encode_scores` makes it; nothing, without any work, where the batch is meant for
            another process than the one that introduced itself.
        """
        from dqs.executors.columns import decode_batch, encode_scores

        batch = decode_batch(message)
        if self._inner is None or batch.token != self._token:
            return b""
        scored = self._inner.score(batch.utf8, batch.byte_offsets, batch.languages, signature=batch.signature)
        return encode_scores(scored, self._signals)

    def _build(self) -> Introduction:
        # First of all, because the imports below bring numba.
        use_kernel_cache(self._recipe.data_dir)
        import dqs
        from dqs.executors.inline import InlineExecutor
        from dqs.executors.loading import describe, keep_freed_memory, load_scorers, warm_up

        keep_freed_memory()
        recipe = self._recipe
        models, scorers = load_scorers(
            recipe.models, recipe.data_dir, recipe.build, runtime=recipe.runtime, classifiers=recipe.classifiers
        )
        inner = InlineExecutor(scorers, describe(models))
        warm_up(inner)
        self._inner = inner
        self._signals = tuple(signal.name for signal in inner.signals)
        self._token = secrets.token_hex(8)
        return Introduction(
            token=self._token,
            node=platform.node(),
            version=dqs.__version__,
            signals=tuple(inner.signals),
            models=tuple(inner.models),
        )
