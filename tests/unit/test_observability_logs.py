"""Log lines: their fields, and that no word of a document gets into them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import numpy as np
import pytest

from dqs.data import Document
from dqs.errors import Overloaded
from dqs.observability import logs
from dqs.pipeline import Pipeline
from dqs.server.status import incident
from tests.unit.pipelines import breaking_pipeline

SECRET = "the words of a document that nobody else may read"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where log lines go during a test; the logging of the process is as before afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("dqs")
    before, level = list(root.handlers), ours.level
    yield io.StringIO()
    root.handlers[:] = before
    ours.setLevel(level)


def broken_scoring() -> Exception:
    """What a scorer raises that quotes the document which it cannot score."""
    pipeline: Pipeline = breaking_pipeline()
    with pytest.raises(ValueError, match=SECRET) as caught:
        pipeline.run([Document("a", SECRET.encode())], corpus=None)
    return caught.value


@pytest.mark.parametrize("form", ["text", "json"])
def test_document_text_is_never_logged(form: str, stream: io.StringIO) -> None:
    logs.setup("json" if form == "json" else "text", "debug", stream)
    error = broken_scoring()
    incident(error)
    logging.getLogger("dqs.server").error("a batch failed", exc_info=error)
    try:
        raise RuntimeError(f"again: {SECRET}") from error
    except RuntimeError:
        logging.getLogger("elsewhere").exception("a task failed")

    async def forgotten_task() -> None:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        del future
        asyncio.get_running_loop().call_soon(lambda text: 1 / 0, SECRET)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(forgotten_task())
    written = stream.getvalue()
    assert "words of a document" not in written
    for expected in ("incident", "a batch failed", "a task failed", "ValueError", "RuntimeError", "in score"):
        assert expected in written
    assert "Future exception was never retrieved" in written
    assert "Exception in callback" in written


def test_json_fields(stream: io.StringIO) -> None:
    logs.setup("json", "info", stream)
    log = logging.getLogger("dqs.somewhere")
    log.debug("not shown")
    log.info("outside of a call, with \x1b[31m and\na second line")
    request, tenant = logs.request_id.set("abc"), logs.tenant.set("news")
    try:
        log.warning("in a call", exc_info=Overloaded("Try again later."))
    finally:
        logs.request_id.reset(request)
        logs.tenant.reset(tenant)
    outside, inside = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert set(outside) == {"ts", "level", "logger", "message"}
    assert outside["message"] == "outside of a call, with \x1b[31m and\na second line"
    assert outside["level"] == "info"
    assert inside["request_id"] == "abc"
    assert inside["tenant"] == "news"
    assert inside["exception"] == "Overloaded: Try again later."
    assert inside["traceback"] == []
    assert inside["logger"] == "dqs.somewhere"


def test_text_lines_cannot_be_forged(stream: io.StringIO) -> None:
    logs.setup("text", "info", stream)
    request = logs.request_id.set("abc")
    try:
        logging.getLogger("dqs.somewhere").info("one\n2026-11-21T00:00:00.000Z INFO dqs: forged \x1b[2J")
    finally:
        logs.request_id.reset(request)
    first, second = stream.getvalue().splitlines()
    assert first.endswith("Z INFO dqs.somewhere [abc]: one")
    assert second == "    2026-11-21T00:00:00.000Z INFO dqs: forged \\x1b[2J"


def test_a_second_setup_replaces_the_first(stream: io.StringIO) -> None:
    first = io.StringIO()
    logs.setup("text", "info", first)
    logs.setup("text", "error", stream)
    logging.getLogger("dqs").warning("below the level")
    logging.getLogger("dqs").error("shown once")
    logging.getLogger("elsewhere").info("somebody else's")
    assert first.getvalue() == ""
    assert len(stream.getvalue().splitlines()) == 1


def test_a_broken_log_call_prints_no_arguments(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers.clear()  # pytest's own raises what a broken log call raises
    logs.setup("text", "info", stream)
    logging.getLogger("dqs").error("%d documents", SECRET)
    printed = capsys.readouterr().err
    assert "a log line of dqs was lost: TypeError" in printed
    assert "words" not in printed + stream.getvalue()


def test_causes_come_first(stream: io.StringIO) -> None:
    logs.setup("json", "info", stream)
    try:
        try:
            np.zeros(3).reshape(2)
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError:
        logging.getLogger("dqs").exception("both")
    line = json.loads(stream.getvalue())
    assert line["exception"] == "KeyError"
    assert line["traceback"][1] == "ValueError, and then"
    assert line["traceback"][0].endswith("in test_causes_come_first")
