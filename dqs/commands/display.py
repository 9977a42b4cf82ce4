"""What a person sees of a run, on standard error: progress, broken rows, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dqs.rows.readers import Rows, Source
from dqs.rows.summary import LABELS, Summary

MAX_SHOWN_ERRORS = 20
_MB = 1_000_000


class Display:
    """Follows a run. Draws a bar on a terminal only.

    Args:
        sources: the inputs, for the bar's length.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._console = Console(stderr=True, highlight=False)
        sizes = [Path(source.path).stat().st_size if source.regular else 0 for source in sources]
        self._before = [sum(sizes[:at]) for at in range(len(sizes))]
        known = all(source.regular for source in sources)
        self._progress = Progress(
            TextColumn("scoring"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("scoring", total=sum(sizes) if known else None, rate="")
        self._begin = time.perf_counter()
        self._rows = 0
        self._text_bytes = 0
        self._errors = 0

    def __enter__(self) -> Display:
        self._progress.start()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """One line for a person."""
        self._progress.console.print(escape(sentence), soft_wrap=True)

    def advance(self, rows: Rows, errors: Sequence[str | None]) -> None:
        """Moves the bar behind a batch and reports its broken rows.

        Args:
            rows: the batch.
            errors: the error column of its rows.
        """
        self._rows += len(rows)
        self._text_bytes += rows.text_bytes
        for number, error in zip(rows.numbers, errors, strict=True):
            if error is not None:
                self._errors += 1
                if self._errors <= MAX_SHOWN_ERRORS:
                    self.say(f"{rows.path}:{number}: {error}")
                elif self._errors == MAX_SHOWN_ERRORS + 1:
                    self.say("… more broken rows; the column `error` of the output has them all")
        elapsed_s = max(1e-9, time.perf_counter() - self._begin)
        rate = f"{self._text_bytes / _MB / elapsed_s:.1f} MB/s, {self._rows / elapsed_s:,.0f} rows/s"
        self._progress.update(self._task, completed=self._before[rows.source] + rows.bytes_read, rate=rate)

    def finish(self, summary: Summary, policy: str) -> None:
        """Prints the table.

        Args:
            summary: counts over the whole run.
            policy: `name@version`.
        """
        self._progress.stop()
        elapsed_s = time.perf_counter() - self._begin
        table = Table(title=f"{summary.rows:,} rows, policy {policy}", title_justify="left", show_edge=False)
        table.add_column("")
        table.add_column("rows", justify="right")
        table.add_column("share", justify="right")

        def add(name: str, count: int) -> None:
            table.add_row(escape(name), f"{count:,}", f"{count / max(1, summary.rows):.1%}")

        for label in LABELS:
            if summary.labels[label] or label != "review":
                add({"keep": "kept", "drop": "dropped", "review": "to review"}[label], summary.labels[label])
        add("errors", summary.errors)
        if summary.rules:
            table.add_section()
            for rule, count in sorted(summary.rules.items(), key=lambda item: (-item[1], item[0])):
                add(f"rule {rule}", count)
        table.add_section()
        for language, labels in sorted(summary.languages.items(), key=lambda item: (-item[1].total(), item[0])):
            total = labels.total()
            add(f"language {language}, kept {labels['keep'] / total:.1%}", total)
        self._console.print(table)
        if self._rows:
            mb = self._text_bytes / _MB
            self.say(f"{mb:,.1f} MB of text in {elapsed_s:,.1f} s: {mb / max(1e-9, elapsed_s):.2f} MB/s")
