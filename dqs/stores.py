"""Opens the duplicate index from settings; apart from `app`, so that what needs the index alone loads no scorer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dqs.errors import ConfigError
from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import CorpusOptions, DuplicateStore, connect
from dqs.index.signature import SignatureParameters
from dqs.settings import Settings


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
