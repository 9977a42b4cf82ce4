"""The composition root: makes the parts from settings and joins them. Knows no command and no wire."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from dqs.errors import ConfigError
from dqs.executors.inline import InlineExecutor
from dqs.executors.loading import WARM_UP, describe, keep_freed_memory, load_scorers
from dqs.executors.promotions import Promotions, follow_promotions
from dqs.inference.runtime import Runtime
from dqs.pipeline import DUPLICATE_SIGNALS, Executor, Pipeline
from dqs.policy import load_policies
from dqs.settings import Settings, quiet_grpc
from dqs.stores import open_store, warm_index


@contextlib.contextmanager
def build_pipeline(settings: Settings, *, dedup: bool = True) -> Iterator[Pipeline]:
    """Everything that scoring needs, closed at the end.

    Args:
        settings: where models, policies and Redis are.
        dedup: false leaves the duplicate index out and starts no Redis.

    Raises:
        ConfigError: settings, models or policies do not fit.
        IndexUnavailable: Redis cannot be reached.
    """
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(settings)) if dedup else None
        executor = stack.enter_context(_open_executor(settings))
        policies = load_policies(settings.policies, {signal.name for signal in (*executor.signals, *DUPLICATE_SIGNALS)})
        yield Pipeline(executor, policies, store, settings.max_document_bytes)


@contextlib.contextmanager
def _open_executor(settings: Settings) -> Iterator[Executor]:
    """Scoring in Ray actors where workers are asked for, else in this process."""
    if settings.workers or settings.gpu_workers:
        # Imported here, so that scoring without workers needs no Ray.
        from dqs.executors.ray_actors import RayExecutor

        with contextlib.closing(RayExecutor(settings)) as executor:
            yield executor
        return
    if settings.ray_address is not None or settings.max_workers or settings.max_gpu_workers:
        raise ConfigError("Ray workers need a number to begin with: add --workers or --gpu-workers.")
    load = functools.partial(
        load_scorers,
        settings.models,
        settings.data_dir,
        runtime=Runtime.of(settings),
        classifiers=settings.classifiers,
    )
    models, scorers = load()
    yield InlineExecutor(scorers, describe(models), settings.score_threads, load)


def warm(pipeline: Pipeline) -> None:
    """Runs a small batch in both languages through every scorer, so that all kernels are compiled and loaded."""
    pipeline.run(WARM_UP, policy=next(iter(pipeline.policies)), corpus=None)
    warm_index()


def serve(settings: Settings) -> None:
    """Serves over gRPC until SIGTERM or SIGINT; see `dqs.server.server.serve`.

    Raises:
        ConfigError: the address, settings, models or policies do not fit.
        IndexUnavailable: Redis cannot be reached.
    """
    quiet_grpc()
    # Imported here, so that scoring without a server does not load gRPC.
    from dqs.server import server

    @contextlib.contextmanager
    def open_pipeline() -> Iterator[Pipeline]:
        with build_pipeline(settings) as pipeline:
            warm(pipeline)
            promotions = Promotions(pipeline, settings.models, settings.data_dir, settings.worker_start_timeout_s)
            with follow_promotions(promotions):
                yield pipeline

    server.serve(settings, open_pipeline)
