"""What every benchmark prints: a table for people, JSON for programs, and where it ran."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_PACKAGES = ("dqs", "numpy", "numba", "kenlm", "onnxruntime", "redis", "grpcio")


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": versions,
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table on standard error."""
    table = Table()
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(file=sys.stderr, width=120)
    console.print(title, style="bold")
    console.print(table)


def emit(name: str, figures: Mapping[str, Any]) -> None:
    """Prints the figures as JSON on standard output."""
    print(json.dumps({"benchmark": name, "machine": machine(), **figures}, indent=1, ensure_ascii=False))
