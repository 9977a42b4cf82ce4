"""How fast scoring is on one core: in-process by stage, with the index, through gRPC, and against datatrove.

    python -m tests.bench.speed --data DIR [--megabytes 6] [--rounds 3] [--core 0] [--grpc] [--peers PYTHON]

All that is compared runs in turns on the same core over the same documents, so
that a noisy machine disturbs all alike. Megabytes are 10^6 bytes of UTF-8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from dqs.data import Document
from dqs.settings import Settings, load_settings, use_kernel_cache
from tests.bench.report import emit, show

SEED = 20_26
LANGUAGES = ("en", "zh")


def sample(data: Path, language: str, megabytes: float) -> list[Document]:
    """Random clean documents of one language, as many as make `megabytes`."""
    texts = pq.read_table(data / f"clean_{language}.parquet", columns=["text"])["text"].to_pylist()
    random.Random(SEED).shuffle(texts)
    documents: list[Document] = []
    size = 0
    for text in texts:
        raw = text.encode()
        documents.append(Document(f"{language}-{len(documents)}", raw))
        size += len(raw)
        if size >= megabytes * 1e6:
            break
    return documents


def batches(documents: Iterable[Document], batch_bytes: int) -> Iterator[list[Document]]:
    """Cuts documents into batches of about `batch_bytes`."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def megabytes_of(documents: Iterable[Document]) -> float:
    """Their text in 10^6 bytes."""
    return sum(len(document.text) for document in documents) / 1e6


def run_in_process(
    pipeline: Any, documents: list[Document], settings: Settings, corpus: str | None, *, signed: bool = False
) -> tuple[float, dict[str, float]]:
    """Scores everything once; MB/s and milliseconds per MB and stage.

    With `signed` it makes signatures even where nobody looks them up, as datatrove's run does.
    """
    executor = pipeline.executor
    if signed:
        pipeline.executor = Signing(executor)
    try:
        return _run_in_process(pipeline, documents, settings, corpus)
    finally:
        pipeline.executor = executor


class Signing:
    """An executor that always makes signatures."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def score(
        self, utf8: Any, byte_offsets: Any, languages: Any, *, signature: Any = None, classifiers: Any = None
    ) -> Any:
        """Scores as the executor does."""
        # Imported here, for it brings the kernels, whose folder is set first.
        from dqs.index.signature import SignatureParameters

        return self._executor.score(
            utf8, byte_offsets, languages, signature=SignatureParameters(), classifiers=classifiers
        )


def _run_in_process(
    pipeline: Any, documents: list[Document], settings: Settings, corpus: str | None
) -> tuple[float, dict[str, float]]:
    stages: dict[str, float] = {}
    begin = time.perf_counter()
    for batch in batches(documents, settings.batch_bytes):
        results = pipeline.run(batch, corpus=corpus)
        for stage, seconds in results.seconds.items():
            if stage != "score":  # the sum of those before it
                stages[stage] = stages.get(stage, 0.0) + seconds
    seconds = time.perf_counter() - begin
    size = megabytes_of(documents)
    stages["other"] = seconds - sum(stages.values())
    return size / seconds, {stage: 1000 * value / size for stage, value in stages.items()}


@contextlib.contextmanager
def served(data_dir: Path, core: int) -> Iterator[tuple[str, float, int]]:
    """A `dqs serve` process on the core: its address, seconds until ready, process id."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "dqs.cli", "serve", "--port", "0", "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready_s = time.perf_counter() - begin
        if not line:
            raise SystemExit(f"dqs serve ended with status {process.wait()}")
        yield line.split()[-1], ready_s, process.pid
    finally:
        process.terminate()
        process.wait(30)


def run_through_grpc(address: str, documents: list[Document]) -> float:
    """Scores everything once through the client; MB/s."""
    from dqs import Client

    with Client(address) as client:
        begin = time.perf_counter()
        count = sum(1 for _ in client.score(documents, corpus=None))
        seconds = time.perf_counter() - begin
    if count != len(documents):
        raise SystemExit(f"{count} verdicts for {len(documents)} documents")
    return megabytes_of(documents) / seconds


def run_datatrove(python: str, documents: list[Document], language: str, core: int) -> float:
    """The same documents through datatrove's filters and signature; MB/s."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text.decode()}, ensure_ascii=False) + "\n")
        file.flush()
        answer = subprocess.run(
            [python, str(Path(__file__).with_name("datatrove_peer.py")), file.name, language],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    return float(json.loads(answer.stdout)["mb_per_s"])


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with clean_en.parquet and clean_zh.parquet")
    parser.add_argument("--megabytes", type=float, default=6, help="text per language")
    parser.add_argument("--peer-megabytes", type=float, default=0.4, help="of it for datatrove, which is slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="core that everything runs on")
    parser.add_argument("--models", type=Path, help="models to use instead of the default ones")
    parser.add_argument("--grpc", action="store_true", help="also through a server process")
    parser.add_argument("--no-index", action="store_true", help="leave the run with the duplicate index out")
    parser.add_argument("--peers", help="python of an environment with datatrove")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    base = load_settings(models=arguments.models)
    use_kernel_cache(base.data_dir)
    from dqs.app import build_pipeline, warm

    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = base.model_copy(update={"data_dir": Path(folder) / "in-process"})
        pipeline = stack.enter_context(build_pipeline(settings, dedup=not arguments.no_index))
        warm(pipeline)
        address = None
        start: dict[str, float] = {}
        if arguments.grpc:
            address, ready_s, pid = stack.enter_context(served(Path(folder) / "server", arguments.core))
            server = psutil.Process(pid)
            start = {"ready_s": ready_s, "resident_mb_when_ready": server.memory_info().rss / 1e6}
        for language in LANGUAGES:
            documents = sample(arguments.data, language, arguments.megabytes)
            few = sample(arguments.data, language, arguments.peer_megabytes)
            run_in_process(pipeline, documents[:50], settings, None)
            rounds: dict[str, list[float]] = {}
            stage_rounds: list[dict[str, float]] = []
            for number in range(arguments.rounds):
                speed, stages = run_in_process(pipeline, documents, settings, None, signed=True)
                rounds.setdefault("in_process", []).append(speed)
                stage_rounds.append(stages)
                rounds.setdefault("unsigned", []).append(run_in_process(pipeline, documents, settings, None)[0])
                if not arguments.no_index:
                    corpus = f"{language}-{number}"
                    rounds.setdefault("with_index", []).append(run_in_process(pipeline, documents, settings, corpus)[0])
                if address is not None:
                    rounds.setdefault("grpc", []).append(run_through_grpc(address, documents))
                if arguments.peers:
                    rounds.setdefault("datatrove", []).append(
                        run_datatrove(arguments.peers, few, language, arguments.core)
                    )
            figures[language] = {
                "megabytes": megabytes_of(documents),
                "documents": len(documents),
                "mb_per_s": {name: statistics.median(values) for name, values in rounds.items()},
                "rounds_mb_per_s": rounds,
                "ratios": {
                    f"{upper}/{lower}": statistics.median(
                        a / b for a, b in zip(rounds[upper], rounds[lower], strict=True)
                    )
                    for upper, lower in (("in_process", "datatrove"), ("grpc", "unsigned"))
                    if upper in rounds and lower in rounds
                },
                "ms_per_mb": {
                    stage: statistics.median(one.get(stage, 0.0) for one in stage_rounds) for stage in stage_rounds[0]
                },
            }
        if arguments.grpc:
            start["resident_mb_after_scoring"] = server.memory_info().rss / 1e6
    names = ("in_process", "unsigned", "with_index", "grpc", "datatrove")
    show(
        f"MB/s on core {arguments.core}, median of {arguments.rounds} rounds",
        ("", *LANGUAGES),
        [
            (name, *(figures[language]["mb_per_s"][name] for language in LANGUAGES))
            for name in names
            if name in figures["en"]["mb_per_s"]
        ]
        + [
            (ratio, *(figures[language]["ratios"][ratio] for language in LANGUAGES))
            for ratio in figures["en"]["ratios"]
        ],
    )
    show(
        "Budget: milliseconds per MB, in-process, look-up off",
        ("stage", *LANGUAGES),
        [
            (stage, *(figures[language]["ms_per_mb"][stage] for language in LANGUAGES))
            for stage in figures["en"]["ms_per_mb"]
        ],
    )
    if start:
        show("Start of dqs serve", ("", "value"), list(start.items()))
    emit("speed", {"languages": figures, "start": start})


if __name__ == "__main__":
    main()
