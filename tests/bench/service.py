"""The service with workers: speed against one process, latency of one document, a killed worker.

    python -m tests.bench.service --data DIR [--megabytes 24] [--rounds 3] [workers hop latency flood kill]

    workers   two workers on two cores against the in-process run with every process, Redis
              included, on one core. The processor time of the load client, which shares the
              two cores, is stated, and half of it is taken off the time.
    hop       one worker behind gRPC and Ray against in-process on the same cores, with messages
              and batches of 256 documents: on one core, and on two
    latency   one document of about 2 KB after the other on an idle service, inline and one worker
    flood     the same calls of one tenant, twenty a second, alone and beside another tenant that sends
              as much as it may; two workers, and the load on the same cores
    kill      kill -9 of one of two workers under load: answers, and time to full speed again

What is compared runs in turns over the same documents. Megabytes are 10^6 bytes of UTF-8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.bench.load import BUCKET_S
from tests.bench.report import emit, show
from tests.bench.speed import LANGUAGES, megabytes_of, sample

MESSAGE_DOCUMENTS = 256
CORES = (0, 1)
READY_TIMEOUT_S = 180.0
"""Of a worker under load: Ray starts processes one by one."""


def in_process(data: Path, megabytes: float, dedup: bool) -> float:
    """MB/s of batches of 256 documents through a pipeline of this process."""
    from dqs.app import build_pipeline, warm
    from dqs.settings import load_settings, use_kernel_cache

    base = load_settings()
    use_kernel_cache(base.data_dir)
    halves = [sample(data, language, megabytes / len(LANGUAGES)) for language in LANGUAGES]
    with (
        tempfile.TemporaryDirectory() as folder,
        build_pipeline(base.model_copy(update={"data_dir": Path(folder)})) as pipeline,
    ):
        warm(pipeline)
        pipeline.run(halves[0][:64], corpus="before")
        begin = time.perf_counter()
        for half in halves:
            for start in range(0, len(half), MESSAGE_DOCUMENTS):
                pipeline.run(half[start : start + MESSAGE_DOCUMENTS], corpus="bench" if dedup else None)
        seconds = time.perf_counter() - begin
    return sum(map(megabytes_of, halves)) / seconds


def in_process_on(cores: Sequence[int], data: Path, megabytes: float, dedup: bool) -> float:
    """`in_process` in a process of its own, with all its children on these cores."""
    command = [
        sys.executable, "-m", "tests.bench.service", "in-process",
        "--data", str(data), "--megabytes", str(megabytes), *([] if dedup else ["--no-dedup"]),
    ]  # fmt: skip
    answer = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    return float(answer.stdout)


@contextlib.contextmanager
def served(cores: Sequence[int], workers: int, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A `dqs serve` with all its processes on these cores: its address and process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dqs.cli", "serve", "--port", "0", "--data-dir", folder]
        process = subprocess.Popen(
            [*command, "--workers", str(workers), *options],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"dqs serve ended with status {process.wait()}")
            yield line.split()[-1], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def load(address: str, data: Path, megabytes: float, *, dedup: bool = True, seconds: float = 0) -> dict[str, Any]:
    """What `tests.bench.load` says."""
    command = [
        sys.executable, "-m", "tests.bench.load", address, "--data", str(data), "--megabytes", str(megabytes),
        "--message-documents", str(MESSAGE_DOCUMENTS), "--seconds", str(seconds), *([] if dedup else ["--no-dedup"]),
    ]  # fmt: skip
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if answer["failures"] or answer["megabytes"] != answer["sent_megabytes"]:
        raise SystemExit(f"the load was not answered: {answer['failures']}")
    return dict(answer)


def measure_workers(data: Path, megabytes: float, rounds: int) -> dict[str, Any]:
    """Two workers on two cores against everything on one."""
    figures: dict[str, list[float]] = {"one_core": [], "two_workers": [], "ratio": [], "client_cpu_s": []}
    with served(CORES, workers=2) as (address, _):
        load(address, data, 2)
        for _ in range(rounds):
            baseline = in_process_on(CORES[:1], data, megabytes, dedup=True)
            answer = load(address, data, megabytes)
            speed = answer["megabytes"] / (answer["seconds"] - answer["client_cpu_s"] / len(CORES))
            figures["one_core"].append(baseline)
            figures["two_workers"].append(speed)
            figures["ratio"].append(speed / baseline)
            figures["client_cpu_s"].append(answer["client_cpu_s"])
    return {name: statistics.median(values) for name, values in figures.items()} | {"rounds": figures}


def measure_hop(data: Path, megabytes: float, rounds: int) -> dict[str, Any]:
    """One worker behind gRPC and Ray against in-process."""
    figures: dict[str, Any] = {}
    for name, cores in (("one_core", CORES[:1]), ("two_cores", CORES)):
        for dedup in (True, False):
            pairs = []
            with served(cores, workers=1) as (address, _):
                load(address, data, 2, dedup=dedup)
                for _ in range(rounds):
                    baseline = in_process_on(cores, data, megabytes, dedup)
                    answer = load(address, data, megabytes, dedup=dedup)
                    pairs.append((baseline, answer["megabytes"] / answer["seconds"]))
            figures[f"{name}_{'with_index' if dedup else 'without_index'}"] = {
                "in_process": statistics.median(one for one, _ in pairs),
                "served": statistics.median(two for _, two in pairs),
                "ratio": statistics.median(two / one for one, two in pairs),
                "rounds": pairs,
            }
    return figures


def measure_latency(data: Path) -> dict[str, Any]:
    """Milliseconds of calls with one document, one after the other."""
    from dqs import Client

    documents = [one for language in LANGUAGES for one in sample(data, language, 3) if 1500 <= len(one.text) <= 3000]
    figures = {}
    for name, workers in (("inline", 0), ("worker", 1)):
        with served(CORES, workers) as (address, _), Client(address) as client:
            for corpus in ("latency", None):
                client.score_batch(documents[:20], corpus=None)
                took_ms = []
                for document in documents[:500]:
                    begin = time.perf_counter()
                    client.score_batch([document], corpus=corpus)
                    took_ms.append(1000 * (time.perf_counter() - begin))
                cuts = statistics.quantiles(took_ms, n=100)
                figures[f"{name}_{'with_index' if corpus else 'without_index'}"] = {
                    "p50_ms": cuts[49], "p99_ms": cuts[98], "calls": len(took_ms),
                }  # fmt: skip
    return figures


def measure_flood(data: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of calls with one document, alone and beside a flood."""
    from dqs import Client
    from dqs.server.tenants import new_token

    texts = [one for one in sample(data, "en", 3) if 1500 <= len(one.text) <= 3000]
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokens.toml"
        tokens = {name: new_token(file, name) for name in ("light", "flood")}
        flood_token = Path(folder) / "flood"
        flood_token.touch(mode=0o600)
        flood_token.write_text(tokens["flood"])
        with served(CORES, 2, "--tokens", str(file)) as (address, _), Client(address, token=tokens["light"]) as client:

            def cuts_ms() -> list[float]:
                took_ms = []
                for number in range(400):
                    time.sleep(0.05)
                    begin = time.perf_counter()
                    client.score_batch([texts[number % len(texts)]], corpus=None)
                    took_ms.append(1000 * (time.perf_counter() - begin))
                return statistics.quantiles(took_ms, n=100)

            cuts_ms()
            for _ in range(rounds):
                alone = cuts_ms()
                command = [
                    sys.executable, "-m", "tests.bench.load", address, "--data", str(data), "--megabytes", "16",
                    "--streams", "4", "--seconds", "40", "--no-dedup", "--token-file", str(flood_token),
                ]  # fmt: skip
                flood = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                time.sleep(8)
                beside = cuts_ms()
                answer = json.loads(flood.communicate()[0])
                for name, value in (
                    ("alone_p50_ms", alone[49]), ("alone_p99_ms", alone[98]),
                    ("beside_p50_ms", beside[49]), ("beside_p99_ms", beside[98]),
                    ("p50_ratio", beside[49] / alone[49]), ("p99_ratio", beside[98] / alone[98]),
                    ("flood_mb_per_s", answer["megabytes"] / answer["seconds"]),
                ):  # fmt: skip
                    figures.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in figures.items()} | {"rounds": figures}


def workers_of(server: psutil.Process) -> list[psutil.Process]:
    """The scorer processes of a server."""
    return [
        child for child in server.children(recursive=True)
        if child.is_running() and " ".join(child.cmdline()).startswith("ray::") and "Replica" in child.cmdline()[0]
    ]  # fmt: skip


def measure_kill(data: Path, megabytes: float) -> dict[str, Any]:
    """Speed before and after the death of one of two workers."""
    kill_at_s, run_s = 12.0, 45.0
    with served(CORES, workers=2) as (address, server):
        load(address, data, 2)

        def kill() -> None:
            time.sleep(kill_at_s)
            workers_of(server)[0].send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        answer = load(address, data, megabytes, dedup=False, seconds=run_s)
        killer.join()
    rates = answer["rates_mb_per_s"]
    before = statistics.median(rates[4 : int(kill_at_s / BUCKET_S) - 2])
    # The load client starts some time before its first message, so the dip is looked for.
    first = int(kill_at_s / BUCKET_S) - 6
    dip = min(range(first, first + int(12 / BUCKET_S)), key=lambda i: sum(rates[i : i + 3]))
    after = next(
        (i for i in range(dip, len(rates) - 4) if statistics.mean(rates[i : i + 4]) >= 0.9 * before), len(rates)
    )
    return {
        "mb_per_s_before": before,
        "mb_per_s_lowest_half_second": rates[dip],
        "full_speed_after_s": (after - first) * BUCKET_S,
        "documents": answer["documents"],
        "errors": answer["errors"],
        "lost_megabytes": answer["sent_megabytes"] - answer["megabytes"],
        "rates_mb_per_s": rates,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["workers", "hop", "latency", "flood", "kill"])
    parser.add_argument("--data", type=Path, required=True, help="folder with clean_en.parquet and clean_zh.parquet")
    parser.add_argument("--megabytes", type=float, default=24, help="text per run, both languages together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-dedup", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data, megabytes, rounds = arguments.data, arguments.megabytes, arguments.rounds
    if arguments.what == ["in-process"]:
        print(in_process(data, megabytes, not arguments.no_dedup))
        return
    figures: dict[str, Any] = {}
    for what in arguments.what:
        if what == "workers":
            figures[what] = one = measure_workers(data, megabytes, rounds)
            show("Two workers on two cores, MB/s", ("", "value"), [(k, v) for k, v in one.items() if k != "rounds"])
        elif what == "hop":
            figures[what] = measure_hop(data, megabytes, rounds)
            rows = [(name, one["in_process"], one["served"], one["ratio"]) for name, one in figures[what].items()]
            show("One worker behind gRPC and Ray, MB/s", ("cores, index", "in-process", "served", "ratio"), rows)
        elif what == "latency":
            figures[what] = measure_latency(data)
            ms = [(name, one["p50_ms"], one["p99_ms"]) for name, one in figures[what].items()]
            show("One document on an idle service, ms", ("", "p50", "p99"), ms)
        elif what == "flood":
            figures[what] = one = measure_flood(data, rounds)
            show("One tenant beside another's flood", ("", "value"), [(k, v) for k, v in one.items() if k != "rounds"])
        elif what == "kill":
            figures[what] = one = measure_kill(data, megabytes)
            shown = [(k, v) for k, v in one.items() if k != "rates_mb_per_s"]
            show("kill -9 of one of two workers", ("", "value"), shown)
        else:
            parser.error(f"there is no {what}")
    emit("service", figures)


if __name__ == "__main__":
    main()
