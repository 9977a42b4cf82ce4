"""Has a service that runs follow `dqs models promote`: looks at the models folders, and has the executor swap.

What is to serve are the models that serve now, but for those that somebody has
promoted, or given back to the folders, since. Models that appeared in the folders
meanwhile are left alone until they are promoted or the service is started again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from dqs.errors import DqsError
from dqs.models import find_models, model_roots
from dqs.pipeline import Pipeline
from dqs.promoted import promoted_versions, promotions_state

LOOK_S = 1.0
"""Time between two looks."""

_LOG = logging.getLogger(__name__)


class Promotions:
    """Follows the models folders of one service.

    Args:
        pipeline: whose executor swaps, and whose `swaps` says what became of it.
        models: folder of models that is searched before all others, or None.
        data_dir: folder of imported models.
        timeout_s: longest time for loading other models, in seconds, for each scorer process.
    """

    def __init__(self, pipeline: Pipeline, models: Path | None, data_dir: Path, timeout_s: float) -> None:
        self._pipeline = pipeline
        self._models = models
        self._data_dir = data_dir
        self._timeout_s = timeout_s
        self._state: object = None
        self._promoted: dict[str, str] = {}
        with contextlib.suppress(DqsError):  # else `look` says so
            self._promoted = promoted_versions(model_roots(models, data_dir))

    def look(self) -> None:
        """Swaps where somebody has promoted a model since the last look. Blocks while models are loaded."""
        try:
            roots = model_roots(self._models, self._data_dir)
            state = promotions_state(roots)
            if state == self._state:
                return
            # Taken down first: what is refused is refused once, until somebody promotes again.
            self._state = state
            before = self._serving()
            wanted = self._wanted(roots, before)
            if wanted == before:
                self._pipeline.swaps.refusal = ""
                return
            self._pipeline.executor.swap(wanted, self._timeout_s)
        except DqsError as error:
            self._refused(error.message)
        except Exception as error:
            _LOG.exception("Following the models folders failed; it goes on.")
            self._refused(f"The models cannot be loaded ({type(error).__name__}); the log has the cause.")
        else:
            self._pipeline.swaps.done += 1
            self._pipeline.swaps.refusal = ""
            _LOG.info("other models serve: %s", _changes(before, wanted))

    def _serving(self) -> dict[str, str]:
        return {model.name: model.version for model in self._pipeline.models}

    def _wanted(self, roots: list[Path], serving: dict[str, str]) -> dict[str, str]:
        """Model name -> version of all that are to serve, in the order of those that do."""
        promoted = promoted_versions(roots)
        given_back = self._promoted.keys() - promoted.keys()
        self._promoted = promoted
        wanted = {**serving, **promoted}
        if given_back:
            wanted.update({model.name: model.version for model in find_models(roots) if model.name in given_back})
        return wanted

    def _refused(self, why: str) -> None:
        self._pipeline.swaps.refused += 1
        self._pipeline.swaps.refusal = why
        _LOG.error("the models stay as they were: %s", why)


@contextlib.contextmanager
def follow_promotions(promotions: Promotions, look_s: float = LOOK_S) -> Iterator[None]:
    """Looks again and again, in a thread of its own, until the end of the context.

    Args:
        promotions: what looks.
        look_s: time between two looks, in seconds.
    """
    closing = threading.Event()

    def work() -> None:
        while not closing.wait(look_s):
            promotions.look()

    thread = threading.Thread(target=work, name="dqs-promotions", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Not waited for: it may be loading models, and ends with the process.
        closing.set()


def _changes(before: dict[str, str], after: dict[str, str]) -> str:
    names = [name for name in after if before.get(name) != after[name]]
    return ", ".join(f"{name} {before.get(name, 'none')} -> {after[name]}" for name in names)
