"""The composition root: makes the parts from settings and joins them. Knows no command and no wire."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dqs.data import Document
from dqs.executors.inline import InlineExecutor
from dqs.index import SignatureParameters, open_store
from dqs.models import find_models, model_roots
from dqs.pipeline import ModelInfo, Pipeline
from dqs.policy import load_policies
from dqs.scorers import build_scorers
from dqs.settings import Settings

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
    models = find_models(model_roots(settings.models, settings.data_dir))
    for model in models:
        model.verify()
    scorers = build_scorers(models)
    policies = load_policies(settings.policies, {signal.name for scorer in scorers for signal in scorer.signals})
    infos = [ModelInfo(model.name, model.version, model.kind, model.languages, model.digest) for model in models]
    with contextlib.ExitStack() as stack:
        parameters = SignatureParameters() if dedup else None
        store = stack.enter_context(open_store(settings)) if dedup else None
        executor = InlineExecutor(scorers, parameters)
        yield Pipeline(executor, policies, store, infos, settings.max_document_bytes)


def warm(pipeline: Pipeline) -> None:
    """Runs a small batch in both languages through every scorer, so that all kernels are compiled and loaded."""
    pipeline.run(_WARM_UP, policy=next(iter(pipeline.policies)), corpus=None)
