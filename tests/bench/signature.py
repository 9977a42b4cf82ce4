"""How fast documents are signed for the duplicate index, on one core, decoding not included.

    python -m tests.bench.signature --data ../shared/data

Processor time of the thread over batches of 256 documents of `clean_en` and `clean_zh`; the best of several
rounds, because a shared machine only ever takes away.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dqs.index.signature import SignatureParameters, sign
from dqs.text import TextBatch
from tests.bench.report import emit, show

_BATCH_DOCUMENTS = 256
_THRESHOLDS = (None, 0.5, 0.8)


def measure(texts: list[bytes], parameters: SignatureParameters, rounds: int) -> float:
    """Megabytes of UTF-8 a second of processor time."""
    starts = range(0, len(texts), _BATCH_DOCUMENTS)
    batches = [TextBatch.from_bytes(texts[start : start + _BATCH_DOCUMENTS]) for start in starts]
    sign(batches[0], parameters)
    best_s = float("inf")
    for _ in range(rounds):
        begin_s = time.thread_time()
        for batch in batches:
            sign(batch, parameters)
        best_s = min(best_s, time.thread_time() - begin_s)
    return sum(map(len, texts)) / 1e6 / best_s


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Speed of signing, in MB of text a second of one core.")
    parser.add_argument("--data", type=Path, required=True, help="folder with clean_<language>.parquet")
    parser.add_argument("--documents", type=int, default=6000, help="of each language")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for language in ("en", "zh"):
        table = pq.read_table(arguments.data / f"clean_{language}.parquet", columns=["text"])
        texts = [text.encode() for text in table["text"].to_pylist()[: arguments.documents]]
        for threshold in _THRESHOLDS:
            parameters = SignatureParameters() if threshold is None else SignatureParameters.for_threshold(threshold)
            name = f"threshold {parameters.threshold}, {parameters.bands} x {parameters.rows}"
            figures.setdefault(name, {})[language] = measure(texts, parameters, arguments.rounds)
    show(
        "Signing, MB/s of one core",
        ["parameters", "en", "zh"],
        [[name, row["en"], row["zh"]] for name, row in figures.items()],
    )
    emit("signature", {"mb_per_s": figures})


if __name__ == "__main__":
    main()
