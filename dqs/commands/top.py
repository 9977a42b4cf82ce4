"""`dqs top`: a running server in the terminal, read from its metrics."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dqs.errors import DqsError, RequestError, Unavailable
from dqs.observability.snapshot import Latency, Page, Snapshot, compare, parse

DEFAULT_PORT = 9464
"""What OpenTelemetry and others serve Prometheus metrics on."""

_TIMEOUT_S = 5.0
_MAX_PAGE_BYTES = 16 << 20
_HISTORY_S = 60.0
_WIDE_COLUMNS = 110
_TALL_ROWS = 40
_MAIN_STAGES = ("score", "index", "policy")
"""Stages that a low terminal shows; the others are parts of "score"."""
_MAX_ROWS = 12
_NAME_COLUMNS = 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLES = {"keep": "green", "drop": "yellow", "review": "cyan", "error": "red"}


def top(
    url: Annotated[
        str, typer.Argument(help="Where the server shows its metrics: a URL or HOST:PORT.", show_default=True)
    ] = f"http://127.0.0.1:{DEFAULT_PORT}/metrics",
    once: Annotated[bool, typer.Option("--once", help="Measure one interval, print it, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Watch a running server: speed, decisions, queue, workers, times.

    The server must have been started with --metrics-port. Quantiles are those of the last interval,
    interpolated within the buckets of the server's histograms. Without a terminal one interval is printed.
    """
    watcher = Watcher(metrics_url(url))
    try:
        watcher.look()
        if as_json:
            _print_json(watcher, interval, once)
        elif once or not sys.stdout.isatty():
            time.sleep(interval)
            _print(watcher)
        else:
            _watch(watcher, interval)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Whoever read the lines has seen enough; what is still buffered must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def metrics_url(address: str) -> str:
    """The URL that a person means.

    Args:
        address: a URL, HOST:PORT or HOST; the path is /metrics where none is given.

    Raises:
        RequestError: it is none of these.
    """
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"{address!r} is no address of metrics: give HOST:PORT or a URL such as {_example()}.")
    if port is None and "://" not in address:
        parts = parts._replace(netloc=f"{parts.netloc.removesuffix(':')}:{DEFAULT_PORT}")
    if parts.path in ("", "/"):
        parts = parts._replace(path="/metrics")
    return parts.geturl()


class Watcher:
    """Looks at a server again and again.

    Args:
        url: of its metrics.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._page: Page | None = None
        self.history: deque[tuple[float, float, float]] = deque()
        """Time, documents per second and bytes per second of the last minute."""

    def look(self) -> Snapshot:
        """What happened since the last look; the first one sees nothing happen.

        Raises:
            Unavailable: nothing answers there, or not with metrics of ours.
        """
        page = fetch(self.url)
        snapshot = compare(self._page or page, page, time.time())
        if self._page is not None:
            self.history.append((page.at_s, snapshot.documents_per_s, snapshot.text_bytes_per_s))
            while self.history[0][0] < page.at_s - _HISTORY_S:
                self.history.popleft()
        self._page = page
        return snapshot


def fetch(url: str) -> Page:
    """One scrape.

    Raises:
        Unavailable: nothing answers there, or not with metrics of ours.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MAX_PAGE_BYTES).decode("utf-8", "replace")
        return parse(text, time.monotonic())
    except RequestError as error:
        raise Unavailable(f"Cannot read {url}: {error.message}.") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise Unavailable(f"Cannot read {url}: it answers with status {error.code}.") from error
    except http.client.HTTPException as error:
        raise Unavailable(
            f"Cannot read {url}: what answers there is no metrics page; give the address of --metrics-port, "
            "not that of the service."
        ) from error
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise Unavailable(
            f"Cannot read {url} ({words}): start the server with --metrics-port, and give the address here."
        ) from error


def render(
    snapshot: Snapshot, watcher: Watcher, columns: int, rows: int | None = None, trouble: str = ""
) -> RenderableType:
    """The whole picture.

    Args:
        snapshot: the last interval.
        watcher: who looks.
        columns: width of the terminal.
        rows: its height; None where all may be shown.
        trouble: why there is nothing newer, "" where there is.
    """
    latencies = _latency_table(snapshot, every_stage=rows is None or rows >= _TALL_ROWS)
    replicas, tenants = _replica_table(snapshot), _tenant_table(snapshot)
    right = [table for table in (replicas, tenants) if table is not None]
    below: list[RenderableType] = []
    if columns >= _WIDE_COLUMNS:
        beside = Table.grid(padding=(0, 4))
        beside.add_row(latencies, Group(*_spaced(right)))
        below = ["", beside]
    else:
        below = ["", *_spaced([latencies, *right])]
    return Group(_head(snapshot, watcher, trouble), "", _summary(snapshot, watcher, columns), *below)


def _print(watcher: Watcher) -> None:
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(render(watcher.look(), watcher, console.width))
    # Without the spaces that fill each line.
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _watch(watcher: Watcher, interval_s: float) -> None:
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
        snapshot = watcher.look()
        trouble = ""
        while True:
            live.update(render(snapshot, watcher, console.width, console.height, trouble), refresh=True)
            time.sleep(interval_s)
            try:
                snapshot, trouble = watcher.look(), ""
            except DqsError as error:  # it may be starting again
                trouble = error.message


def _print_json(watcher: Watcher, interval_s: float, once: bool) -> None:
    while True:
        time.sleep(interval_s)
        print(json.dumps(asdict(watcher.look())), flush=True)
        if once:
            return


def _head(snapshot: Snapshot, watcher: Watcher, trouble: str) -> RenderableType:
    parts = [f"dqs {snapshot.version}", urlsplit(watcher.url).netloc]
    if snapshot.uptime_s is not None:
        parts.append(f"up {_duration(snapshot.uptime_s)}")
    if snapshot.cores is not None:
        parts.append(f"{snapshot.cores:.2f} cores")
    if snapshot.resident_bytes is not None:
        parts.append(_size(snapshot.resident_bytes))
    lines = [Text(_clean(" · ".join(parts)), style="bold", overflow="ellipsis", no_wrap=True)]
    if trouble:
        lines.append(Text(_clean(trouble), style="red"))
    if snapshot.slots is None:
        lines.append(Text("STARTING: what scores is not loaded yet", style="yellow"))
    if snapshot.slots == 0:
        lines.append(Text("NOT SCORING: no worker is ready", style="bold red"))
    if snapshot.degraded:
        lines.append(Text("DEGRADED: the duplicate index could not be reached", style="bold red"))
    if snapshot.models_refused:
        lines.append(Text("MODELS REFUSED: those promoted last do not serve; the log says why", style="bold red"))
    return Group(*lines)


def _summary(snapshot: Snapshot, watcher: Watcher, columns: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=11)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    room = max(10, min(60, columns - 28))
    documents, text = f"{snapshot.documents_per_s:,.0f}/s", f"{_size(snapshot.text_bytes_per_s)}/s"
    grid.add_row("documents", f"{documents:>12}  {_sparkline([each[1] for each in watcher.history], room)}")
    grid.add_row("text", f"{text:>12}  {_sparkline([each[2] for each in watcher.history], room)}")
    shares = Text(" ")
    for name, per_s in snapshot.decisions_per_s.items():
        share = f"{per_s / snapshot.documents_per_s:.1%}" if snapshot.documents_per_s else "–"
        shares.append(f"  {name} ", style=_STYLES[name]).append(share)
    grid.add_row("decisions", shares)
    waiting = f"   {_count(snapshot.pending_documents)} documents, {_size(snapshot.pending_bytes)}"
    if snapshot.oldest_s:
        waiting += f", the oldest for {_seconds(snapshot.oldest_s)}"
    grid.add_row("pending", waiting)
    grid.add_row("open", f"   calls {_count(snapshot.calls)}, streams {_count(snapshot.streams)}")
    for title, counts, style in (
        ("calls ended", snapshot.calls_per_s, ""),
        ("not scored", snapshot.failures_per_s, "red"),
    ):
        shown = ", ".join(f"{_clean(name)} {per_s:,.1f}/s" for name, per_s in counts.items() if per_s)
        if shown:
            grid.add_row(title, Text(f"   {shown}", style=style))
    return grid


def _latency_table(snapshot: Snapshot, *, every_stage: bool) -> Table:
    table = _table(f"times over the last {snapshot.interval_s:.1f} s", "", "per s", "p50 ≈", "p99 ≈")
    for latency in sorted(snapshot.latencies, key=_latency_order):
        if latency.what == "stage" and not every_stage and latency.name not in _MAIN_STAGES:
            continue
        if latency.p50_s is not None or latency.what == "queue":
            table.add_row(
                Text(_clean(_latency_name(latency))),
                f"{latency.per_s:,.1f}",
                _seconds(latency.p50_s),
                _seconds(latency.p99_s),
            )
    return table


def _latency_order(latency: Latency) -> int:
    """The way of a document: its call, the queue, score with its parts, index, policy."""
    if latency.what != "stage":
        return 0
    return 1 + _MAIN_STAGES.index(latency.name) * 2 if latency.name in _MAIN_STAGES else 2


def _latency_name(latency: Latency) -> str:
    if latency.what == "stage":
        return f"batch {latency.name}" if latency.name in _MAIN_STAGES else f"  {latency.name}"
    return f"call {latency.name}" if latency.what == "request" else "queue"


def _replica_table(snapshot: Snapshot) -> Table | None:
    if not snapshot.replicas:
        return None
    ready = sum(replica.ready for replica in snapshot.replicas)
    table = _table(
        f"workers: {ready} of {len(snapshot.replicas)} ready", "", "pending", "restarts", "pool", "node", text=(3, 4)
    )
    for replica in snapshot.replicas[:_MAX_ROWS]:
        table.add_row(
            Text(_short(replica.name, _NAME_COLUMNS), style="" if replica.ready else "red"),
            _size(replica.pending_bytes) if replica.ready else Text("starting", style="red"),
            f"{replica.restarts}",
            Text(_clean(replica.pool)),
            Text(_short(replica.node, _NAME_COLUMNS)),
        )
    _more(table, len(snapshot.replicas))
    return table


def _tenant_table(snapshot: Snapshot) -> Table | None:
    if not snapshot.tenants:
        return None
    table = _table("tenants", "", "documents/s", "keep", "drop", "review", "error")
    for tenant in snapshot.tenants[:_MAX_ROWS]:
        shares = (
            f"{tenant.decisions_per_s.get(name, 0.0) / tenant.documents_per_s:.1%}" if tenant.documents_per_s else "–"
            for name in _STYLES
        )
        table.add_row(Text(_short(tenant.name, _NAME_COLUMNS)), f"{tenant.documents_per_s:,.1f}", *shares)
    _more(table, len(snapshot.tenants))
    return table


def _table(title: str, first: str, *rest: str, text: tuple[int, ...] = ()) -> Table:
    """A table whose first column, and those numbered in `text`, hold words and all others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for number, name in enumerate(rest, start=1):
        if number in text:
            table.add_column(name, no_wrap=True, overflow="ellipsis", header_style="dim")
        else:
            table.add_column(name, justify="right", no_wrap=True, header_style="dim")
    return table


def _more(table: Table, rows: int) -> None:
    if rows > _MAX_ROWS:
        table.add_row(Text(f"… and {rows - _MAX_ROWS} more", style="dim"))


def _spaced(tables: Sequence[RenderableType]) -> list[RenderableType]:
    return [part for table in tables for part in (table, "")][:-1]


def _sparkline(values: Sequence[float], columns: int) -> str:
    """The last values as blocks, the highest of them as the tallest."""
    shown = list(values)[-columns:]
    highest = max(shown, default=0.0)
    if len(shown) < 2 or highest <= 0:
        return ""
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(value / highest * len(_BLOCKS)))] for value in shown)


def _size(size_bytes: float | None) -> str:
    if size_bytes is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds >= 100:
        return _duration(seconds)
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2f} ms"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _count(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _clean(text: str) -> str:
    """Without what would move the terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _short(text: str, columns: int) -> str:
    return _clean(text if len(text) <= columns else f"{text[: columns - 1]}…")


def _example() -> str:
    return f"http://127.0.0.1:{DEFAULT_PORT}/metrics"
