"""The servers that tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.serving import LocalServer, Redis, ServerProcess

SMALL_LIMITS: dict[str, Any] = {
    "max_message_bytes": 2 << 20,
    "max_document_bytes": 100_000,
    "max_batch_documents": 300,
    "stream_window_bytes": 256 << 10,
    "stream_window_documents": 400,
    "batch_bytes": 64 << 10,
    "max_pending_bytes": 1 << 20,
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A whole server with small limits, in a process of its own."""
    with ServerProcess(port=0, data_dir=tmp_path_factory.mktemp("server"), **SMALL_LIMITS) as process:
        yield process


@pytest.fixture
def local() -> Iterator[LocalServer]:
    """A server in this process whose scoring can be held; without models and without an index."""
    with LocalServer(**SMALL_LIMITS) as server:
        yield server


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A redis-server without keys."""
    server = Redis(tmp_path_factory.mktemp("r"))
    server.start()
    yield server
    server.kill()
