"""The composition root: makes the parts from settings and joins them. Knows no command and no wire."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from dqs.data import Document
from dqs.executors.inline import InlineExecutor
from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import SignatureParameters
from dqs.models import find_models, model_roots
from dqs.pipeline import DUPLICATE_SIGNALS, ModelInfo, Pipeline
from dqs.policy import load_policies
from dqs.scorers import build_scorers
from dqs.settings import MIB, Settings

_WARM_UP = (
    Document("en", b"A short text that goes through every scorer before the first real one does.\nTwice, in fact."),
    Document("zh", "这段短文先走过每一个评分器，真正的文档随后才到。\n第二行也是如此。".encode()),
    Document("de", "Für diese Sprache gibt es kein Modell.".encode()),
    Document("empty", b""),
    Document("broken", b"\xff\xfe"),
)


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
    _keep_freed_memory()
    models = find_models(model_roots(settings.models, settings.data_dir))
    for model in models:
        model.verify()
    scorers = build_scorers(models)
    signals = [signal for scorer in scorers for signal in scorer.signals]
    policies = load_policies(settings.policies, {signal.name for signal in (*signals, *DUPLICATE_SIGNALS)})
    infos = [ModelInfo(model.name, model.version, model.kind, model.languages, model.digest) for model in models]
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(_open_store(settings)) if dedup else None
        executor = InlineExecutor(
            scorers, store.parameters if store is not None else None, infos, settings.score_threads
        )
        yield Pipeline(executor, policies, store, settings.max_document_bytes)


@contextlib.contextmanager
def _open_store(settings: Settings) -> Iterator[DuplicateStore]:
    with contextlib.ExitStack() as stack:
        url = settings.redis_url
        if url is None:
            url = stack.enter_context(EmbeddedRedis(settings.data_dir / "redis")).url
        client = connect(url, timeout_s=settings.redis_timeout_s)
        store = stack.enter_context(contextlib.closing(DuplicateStore(client, SignatureParameters())))
        yield store


def _keep_freed_memory() -> None:
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


def warm(pipeline: Pipeline) -> None:
    """Runs a small batch in both languages through every scorer, so that all kernels are compiled and loaded."""
    pipeline.run(_WARM_UP, policy=next(iter(pipeline.policies)), corpus=None)


def serve(settings: Settings) -> None:
    """Serves over gRPC until SIGTERM or SIGINT; see `dqs.server.server.serve`.

    Raises:
        ConfigError: the address, settings, models or policies do not fit.
        IndexUnavailable: Redis cannot be reached.
    """
    # Imported here, so that scoring without a server does not load gRPC.
    from dqs.server import server

    @contextlib.contextmanager
    def open_pipeline() -> Iterator[Pipeline]:
        with build_pipeline(settings) as pipeline:
            warm(pipeline)
            yield pipeline

    server.serve(settings, open_pipeline)
