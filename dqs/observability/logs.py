"""Log lines on standard error: text for a person or one JSON object each, with the call that they belong to.

No line ever quotes a document. The words of an exception may, so of an exception
that is not ours a line has the type and the places in the code, never the words.

This module knows nothing of gRPC.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from dqs.errors import DqsError

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the call that is being answered, "" outside of one."""
tenant: ContextVar[str] = ContextVar("tenant", default="")
"""Name of the tenant whose call is being answered, "" outside of one."""

_OURS = "dqs"
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What could forge lines or move a terminal's cursor."""


def setup(format: Literal["text", "json"], level: str, stream: TextIO | None = None) -> None:  # noqa: A002 - as in the setting
    """Sends the log lines of this process to standard error; a second call replaces the first.

    Lines of other libraries appear from "warning" on.

    Args:
        format: "text" or "json".
        level: least level of our lines: "debug", "info", "warning" or "error".
        stream: where to instead of standard error.
    """
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for former in [former for former in root.handlers if isinstance(former, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    logging.getLogger(_OURS).setLevel(level.upper())


class TextFormatter(logging.Formatter):
    """`2026-11-21T23:10:00.123Z WARNING dqs.server.server [request id]: message`; further lines are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One entry."""
        call = f" [{request_id.get()}]" if request_id.get() else ""
        lines = f"{record.levelname} {record.name}{call}: {_message(record)}".splitlines()
        if record.exc_info and record.exc_info[1] is not None:
            lines += [*_places(record.exc_info[1]), _described(record.exc_info[1])]
        return f"{_time(record)} " + "\n    ".join(line.translate(_CONTROL) for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, level, logger, message; in a call request_id and tenant; exception, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, object] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if request_id.get():
            fields["request_id"] = request_id.get()
        if tenant.get():
            fields["tenant"] = tenant.get()
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = _described(record.exc_info[1])
            fields["traceback"] = _places(record.exc_info[1])
        return json.dumps(fields, ensure_ascii=True)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is of the base class
        """Says that a line was lost; the base class would print its arguments."""
        kind = getattr(sys.exception(), "__class__", type(None)).__qualname__
        sys.stderr.write(f"a log line of {record.name} was lost: {kind}\n")


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    """The message, without the values that asyncio puts into its own: exceptions of futures, arguments of callbacks.

    "Exception in callback Batcher.finish(<...>)" becomes "Exception in callback Batcher.finish".
    """
    message = record.getMessage()
    return re.split(r"[\n<({]", message, maxsplit=1)[0].strip() if record.name == "asyncio" else message


def _described(error: BaseException) -> str:
    """Type of an exception, and its words where they are ours: those never quote a document."""
    kind = type(error).__qualname__
    return f"{kind}: {error.message}" if isinstance(error, DqsError) else kind


def _places(error: BaseException) -> list[str]:
    """Where an exception and its causes came from, the cause first."""
    places: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        here = [f"{at.filename}:{at.lineno} in {at.name}" for at in traceback.extract_tb(current.__traceback__)]
        if current is not error:
            here.append(f"{_described(current)}, and then")
        places = here + places
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return places


__all__ = ["JsonFormatter", "TextFormatter", "request_id", "setup", "tenant"]
