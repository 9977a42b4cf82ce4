"""The composition root: makes the parts from settings and joins them. Knows no command and no wire."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dqs.errors import ConfigError
from dqs.executors.inline import InlineExecutor
from dqs.executors.loading import WARM_UP, describe, keep_freed_memory, load_scorers
from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import CorpusOptions, DuplicateStore, connect
from dqs.index.signature import SignatureParameters
from dqs.pipeline import DUPLICATE_SIGNALS, Executor, Pipeline
from dqs.policy import load_policies
from dqs.settings import Settings, quiet_grpc


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
    models, scorers = load_scorers(settings.models, settings.data_dir)
    yield InlineExecutor(scorers, describe(models), settings.score_threads)


@contextlib.contextmanager
def open_store(settings: Settings) -> Iterator[DuplicateStore]:
    """The duplicate index on the Redis of the settings, or on a private one; closed at the end.

    Raises:
        ConfigError: settings do not fit.
        IndexUnavailable: Redis cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        url = settings.redis_url
        if url is None:
            url = stack.enter_context(EmbeddedRedis(settings.data_dir / "redis")).url
        client = connect(url, timeout_s=settings.redis_timeout_s)
        try:
            parameters = SignatureParameters.for_threshold(
                settings.corpus_threshold, normaliser=settings.corpus_normaliser
            )
        except ValueError as error:
            raise ConfigError(f"Setting corpus_threshold: {error}.") from None
        options = CorpusOptions(
            window_documents=settings.corpus_window_documents,
            window_s=settings.corpus_window_s,
            retry_s=settings.corpus_retry_s,
            line_slots=settings.corpus_line_slots,
        )
        yield stack.enter_context(contextlib.closing(DuplicateStore(client, parameters, options=options)))


def warm(pipeline: Pipeline) -> None:
    """Runs a small batch in both languages through every scorer, so that all kernels are compiled and loaded."""
    pipeline.run(WARM_UP, policy=next(iter(pipeline.policies)), corpus=None)


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
            yield pipeline

    server.serve(settings, open_pipeline)
