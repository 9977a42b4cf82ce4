"""The scorer process: builds its scorers once from local files, then scores batch after batch.

It knows nothing of Ray, which only runs it. Importing this module is cheap on
purpose: where compiled kernels are kept must be said before numba is imported.
"""

from __future__ import annotations

import functools
import gc
import platform
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dqs.inference.runtime import Runtime
from dqs.settings import use_kernel_cache

if TYPE_CHECKING:
    from concurrent.futures import Future

    from dqs.executors.inline import InlineExecutor
    from dqs.executors.loading import LoadScorers
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
        classifiers: names of the classifiers that a caller may choose among.
    """

    token: str
    node: str
    version: str
    signals: tuple[Signal, ...]
    models: tuple[ModelInfo, ...]
    classifiers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Models that a scorer process could serve with.

    Attributes:
        models: what it would answer with.
        classifiers: names of the classifiers that a caller could choose among.
    """

    models: tuple[ModelInfo, ...]
    classifiers: tuple[str, ...]


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
        self._next: Future[InlineExecutor] | None = None

    def introduce(
        self, versions: Mapping[str, str] | None = None, signals: Sequence[str] | None = None
    ) -> Introduction:
        """Builds the scorers, has a real batch pass through them, and says who it is.

        Args:
            versions: model name -> version, of exactly the models to serve; None for those that serve by themselves.
            signals: names of the signals in the order that answers have them in; None for that of the scorers.

        Raises:
            ConfigError: models or settings do not fit.
        """
        known = self._introduction
        if known is None or (versions is not None and versions != {m.name: m.version for m in known.models}):
            self._introduction = self._build(versions)
            if signals is not None and set(signals) == set(self._signals):
                self._signals = tuple(signals)
        assert self._introduction is not None
        return self._introduction

    def load(self, versions: Mapping[str, str]) -> None:
        """Begins to load other models beside those that serve, which go on meanwhile; ask `loaded` what became of it.

        Args:
            versions: model name -> version, of exactly the models to load.
        """
        if self._inner is not None:
            from dqs.executors.inline import start_loading

            self._next = start_loading(self._loader(), versions)

    def loaded(self) -> Loaded | None:
        """What `load` has loaded, once a batch has passed through it; None before.

        Raises:
            DqsError: it cannot serve here.
        """
        if self._inner is None or self._next is None or not self._next.done():
            return None
        from dqs.executors.loading import check_signals

        new = self._next.result()
        check_signals(self._inner.signals, new.signals)
        return Loaded(tuple(new.models), tuple(new.classifiers))

    def swap(self, token: str) -> bool:
        """Serves with what was loaded, from the next batch on; false where this is another process.

        Args:
            token: of the life that loaded it.
        """
        new, self._next = self._next, None
        if new is None or not new.done() or token != self._token or self._introduction is None:
            return False
        self._inner = new.result()
        # As in `InlineExecutor.swap`.
        gc.collect()
        self._introduction = replace(
            self._introduction, models=tuple(self._inner.models), classifiers=tuple(self._inner.classifiers)
        )
        return True

    def forget(self) -> None:
        """Forgets what was loaded."""
        self._next = None

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
        scored = self._inner.score(
            batch.utf8,
            batch.byte_offsets,
            batch.languages,
            signature=batch.signature,
            classifiers=batch.classifiers,
        )
        return encode_scores(scored, self._signals)

    def _loader(self) -> LoadScorers:
        from dqs.executors.loading import load_scorers

        recipe = self._recipe
        return functools.partial(
            load_scorers,
            recipe.models,
            recipe.data_dir,
            recipe.build,
            runtime=recipe.runtime,
            classifiers=recipe.classifiers,
        )

    def _build(self, versions: Mapping[str, str] | None) -> Introduction:
        # First of all, because the imports below bring numba.
        use_kernel_cache(self._recipe.data_dir)
        import dqs
        from dqs.executors.inline import open_inline
        from dqs.executors.loading import keep_freed_memory

        keep_freed_memory()
        inner = open_inline(self._loader(), versions)
        self._inner = inner
        self._signals = tuple(signal.name for signal in inner.signals)
        self._token = secrets.token_hex(8)
        return Introduction(
            token=self._token,
            node=platform.node(),
            version=dqs.__version__,
            signals=tuple(inner.signals),
            models=tuple(inner.models),
            classifiers=tuple(inner.classifiers),
        )
