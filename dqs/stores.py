"""Opens the duplicate index from settings; apart from `app`, so that what needs the index alone loads no scorer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from dqs.errors import ConfigError
from dqs.index.embedded import EmbeddedRedis
from dqs.index.layout import FIRST_BUCKETS, Submission
from dqs.index.lines import FIRST_SLOTS, distinct, reads, writes
from dqs.index.redis_store import CorpusOptions, DuplicateStore, connect
from dqs.index.signature import SignatureParameters, sign
from dqs.settings import Settings
from dqs.text import TextBatch


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


def warm_index() -> None:
    """Prepares a call of the index without making it, so that the kernels for that are compiled and loaded."""
    text = "One line of a few words, which nobody looks up.\nAnd one more."
    signatures = sign(TextBatch.from_bytes([text.encode()]), SignatureParameters())
    ones, zeros = np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.uint8)
    Submission.of([b"id"], signatures, ones, zeros).pack(0, 1, FIRST_BUCKETS)
    hashes, _, _ = distinct(signatures.lines)
    list(reads(hashes, FIRST_SLOTS))
    list(writes(hashes, np.zeros((hashes.size, 2), dtype=np.uint32), FIRST_SLOTS))
