"""What the gateway itself costs: bytes of text per second of its processor time, scoring being free.

    python -m tests.bench.gateway [--megabytes 400] [--rounds 3] [--workers 1] [direct ray ray-index]

    direct      a scorer in the gateway that looks at nothing: what gRPC, the codec, the batcher
                and the policy cost
    ray         the same scorer in Ray actors: what the way to a worker and back costs besides
    ray-index   the same with the duplicate index, signatures being made by the actors

Documents of 2,000 bytes in messages of 256, 60 signals, the default policy; every third document
breaks two rules. The load comes from this process; only the processor time of the gateway's process
counts, that of Ray, its workers, Redis and the load is stated beside it. Megabytes are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
import numpy as np
import psutil
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.scorer import Direction, ScoreColumns, Signal
from dqs.settings import load_settings, use_kernel_cache
from dqs.v1 import scoring_pb2
from tests.bench.report import emit, show

if TYPE_CHECKING:
    from dqs.index.signature import SignatureParameters
    from dqs.models import ModelFolder
    from dqs.pipeline import Executor, ExecutorStatus, ModelInfo, Scored
    from dqs.scorer import Scorer
    from dqs.text import TextBatch

DOCUMENT_BYTES = 2000
MESSAGE_DOCUMENTS = 256
DOCUMENTS = 16_384
"""Different ones; they are sent again and again."""
SIGNALS = 56
"""With the four of duplication, 60 travel."""
BROKEN_EVERY = 3
MOST_DOCUMENTS = 1 << 16
"""Of one batch."""
STREAMS = 4
IN_FLIGHT = 8
"""Messages without an answer per stream."""
CASES = ("direct", "ray", "ray-index")


def constant_columns() -> tuple[list[Signal], dict[str, NDArray[np.float32]]]:
    """The signals of the default scorers and as many made-up ones as are wanted; their values by row.

    The values break no rule but `toxic` and `top_2gram`, and those in every third row.
    """
    from dqs.models import find_models, model_roots
    from dqs.scorers import build_scorers

    signals = [signal for scorer in build_scorers(find_models(model_roots(None, Path()))) for signal in scorer.signals]
    signals += [
        Signal(f"constant_{i}", "share", 0, 1, Direction.NEUTRAL, "A constant.") for i in range(SIGNALS - len(signals))
    ]
    fine = {"perplexity": 100.0, "perplexity_percentile": 50.0, "characters": 2000.0, "words": 350.0,
            "lines": 20.0, "mean_word_length": 5.0, "letter_share": 0.8, "punctuation_share": 0.05,
            "terminated_line_share": 1.0}  # fmt: skip
    broken = np.arange(MOST_DOCUMENTS) % BROKEN_EVERY == 0
    columns = {signal.name: np.full(MOST_DOCUMENTS, fine.get(signal.name, 0.0), dtype=np.float32) for signal in signals}
    for name in ("toxicity", "top_2gram_share"):
        columns[name][broken] = 0.9
    return signals, columns


class ConstantScorer:
    """Fills every column with what it has beforehand."""

    name: ClassVar[str] = "constant"
    needs: ClassVar[tuple[str, ...]] = ()
    signals: Sequence[Signal]

    def __init__(self) -> None:
        self.signals, self._columns = constant_columns()

    def score(self, batch: TextBatch, columns: ScoreColumns) -> None:
        self.fill(columns)

    def fill(self, columns: ScoreColumns) -> None:
        """Fills columns of any batch."""
        columns.language = ["en"] * columns.size
        columns.toxicity_span = np.full((columns.size, 2), (10, 90), dtype=np.int32)
        present = np.full(columns.size, Missing.PRESENT, dtype=np.uint8)
        for name, values in self._columns.items():
            columns.put(name, values[: columns.size], present)


class DirectExecutor:
    """An executor that does nothing but fill columns, in the calling thread."""

    def __init__(self) -> None:
        self._scorer = ConstantScorer()
        self.signals: list[Signal] = list(self._scorer.signals)
        self.models: list[ModelInfo] = []
        self.classifiers: list[str] = []
        self.max_slots = 1

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signature: SignatureParameters | None = None,
        classifiers: frozenset[str] | None = None,
    ) -> Scored:
        from dqs.pipeline import Scored

        columns = ScoreColumns(size=len(languages))
        self._scorer.fill(columns)
        return Scored(columns, valid=np.ones(len(languages), dtype=np.bool_), signatures=None)

    def swap(self, versions: Mapping[str, str], timeout_s: float) -> None:
        raise NotImplementedError

    def status(self) -> ExecutorStatus:
        from dqs.pipeline import ExecutorStatus

        return ExecutorStatus(slots=self.max_slots, replicas=())

    def subscribe(self, changed: Callable[[], None]) -> None:
        pass

    def note_waiting(self, text_bytes: int) -> None:
        pass


def constant_scorers(_models: Sequence[ModelFolder]) -> list[Scorer]:
    """What a Ray actor is to build."""
    return [ConstantScorer()]


def serve(case: str, folder: Path, workers: int) -> None:
    """Serves until SIGTERM."""
    settings = load_settings(port=0, data_dir=folder, workers=workers)
    use_kernel_cache(load_settings().data_dir)
    from dqs.executors.loading import keep_freed_memory
    from dqs.executors.ray_actors import RayExecutor
    from dqs.index.embedded import EmbeddedRedis
    from dqs.index.redis_store import DuplicateStore, connect
    from dqs.index.signature import SignatureParameters
    from dqs.pipeline import DUPLICATE_SIGNALS, Pipeline
    from dqs.policy import load_policies
    from dqs.server import server

    @contextlib.contextmanager
    def open_pipeline() -> Iterator[Pipeline]:
        keep_freed_memory()
        with contextlib.ExitStack() as stack:
            store = None
            if case == "ray-index":
                redis = stack.enter_context(EmbeddedRedis(settings.data_dir / "redis"))
                store = stack.enter_context(
                    contextlib.closing(DuplicateStore(connect(redis.url), SignatureParameters()))
                )
            executor: Executor = DirectExecutor()
            if case != "direct":
                executor = stack.enter_context(contextlib.closing(RayExecutor(settings, build=constant_scorers)))
            policies = load_policies(None, {signal.name for signal in (*executor.signals, *DUPLICATE_SIGNALS)})
            yield Pipeline(executor, policies, store, settings.max_document_bytes)

    server.serve(settings, open_pipeline)


@contextlib.contextmanager
def served(case: str, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own: its address and process."""
    with tempfile.TemporaryDirectory() as folder:
        # Ray finds the scorers by the name of this module, which must not be __main__.
        code = (
            "from pathlib import Path; from tests.bench import gateway;"
            f"gateway.serve({case!r}, Path({folder!r}), {workers})"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the server ended with status {process.wait()}")
            yield line.split()[-1], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def messages() -> list[bytes]:
    """Encoded requests without options and numbers."""
    letters = np.frombuffer(b"etaoin shrdlu cmfwyp vbgkjqxz ", dtype=np.uint8)
    texts = np.random.default_rng(2026).choice(letters, size=(DOCUMENTS, DOCUMENT_BYTES))
    return [
        scoring_pb2.ScoreStreamRequest(
            documents=[
                scoring_pb2.Document(id=f"document-{i}", text=texts[i].tobytes())
                for i in range(start, start + MESSAGE_DOCUMENTS)
            ]
        ).SerializeToString()
        for start in range(0, DOCUMENTS, MESSAGE_DOCUMENTS)
    ]


def send(address: str, made: Sequence[bytes], options: scoring_pb2.ScoreOptions, megabytes: float) -> int:
    """Sends messages over several streams; returns how many documents were answered."""
    each = max(1, round(megabytes * 1e6 / (STREAMS * MESSAGE_DOCUMENTS * DOCUMENT_BYTES)))
    answered = [0] * STREAMS

    def stream(number: int) -> None:
        room = threading.Semaphore(IN_FLIGHT)
        acknowledged = 0

        def requests() -> Iterator[bytes]:
            for i in range(each):
                room.acquire()
                # Named and acknowledged, as by the client that ships.
                head = scoring_pb2.ScoreStreamRequest(sequence=i + 1, acknowledged=acknowledged)
                if not i:
                    head.stream_id = secrets.token_hex(16)
                    head.options.CopyFrom(options)
                # Encoded messages that follow one another are one message with the fields of both.
                numbered: bytes = head.SerializeToString() + made[(number * each + i) % len(made)]
                yield numbered

        limits = (("grpc.max_receive_message_length", -1),)
        with grpc.insecure_channel(address, options=limits) as channel:
            for raw in channel.stream_stream("/dqs.v1.ScoringService/ScoreStream")(requests()):
                response = scoring_pb2.ScoreStreamResponse.FromString(raw)
                reasons = sum(len(result.reasons) for result in response.scored.results[:BROKEN_EVERY])
                if len(response.scored.results) != MESSAGE_DOCUMENTS or reasons != 2:
                    break  # told from the count
                acknowledged = response.acknowledged
                answered[number] += 1
                room.release()

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if answered != [each] * STREAMS:
        raise SystemExit(f"{answered} of {each} messages were answered")
    return each * STREAMS * MESSAGE_DOCUMENTS


def cpu_s(process: psutil.Process) -> float:
    """User and system time of one process, its children apart."""
    times = process.cpu_times()
    return float(times.user + times.system)


def others_cpu_s(gateway: psutil.Process) -> float:
    """Processor time of what the gateway started."""
    total = 0.0
    for child in gateway.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += cpu_s(child)
    return total


def measure(case: str, megabytes: float, rounds: int, workers: int) -> dict[str, Any]:
    """One case: medians of the rounds, and the rounds."""
    made = messages()
    figures: dict[str, list[float]] = {}
    with served(case, workers) as (address, gateway):
        for number in range(rounds + 1):
            options = scoring_pb2.ScoreOptions(
                corpus=f"round-{number}",
                deduplication=(
                    scoring_pb2.DEDUPLICATION_ENABLED if case == "ray-index" else scoring_pb2.DEDUPLICATION_DISABLED
                ),
            )
            before = (cpu_s(gateway), others_cpu_s(gateway), time.process_time(), time.perf_counter())
            # The first round is to warm up.
            documents = send(address, made, options, megabytes if number else megabytes / 10)
            after = (cpu_s(gateway), others_cpu_s(gateway), time.process_time(), time.perf_counter())
            gateway_s, others_s, load_s, wall_s = (b - a for a, b in zip(before, after, strict=True))
            if number:
                size = documents * DOCUMENT_BYTES / 1e6
                for name, value in (
                    ("mb_per_gateway_cpu_s", size / gateway_s),
                    ("gateway_us_per_document", 1e6 * gateway_s / documents),
                    ("mb_per_s", size / wall_s),
                    ("others_cpu_s", others_s),
                    ("load_cpu_s", load_s),
                    ("megabytes", size),
                ):
                    figures.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in figures.items()} | {"rounds": figures}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES, help=" ".join(CASES))
    parser.add_argument("--megabytes", type=float, default=400, help="text per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="Ray actors")
    arguments = parser.parse_args()
    figures = {
        case: measure(case, arguments.megabytes, arguments.rounds, arguments.workers) for case in arguments.cases
    }
    names = [name for name in next(iter(figures.values())) if name != "rounds"]
    show(
        f"The gateway alone, median of {arguments.rounds} rounds",
        ("", *figures),
        [(name, *(figures[case][name] for case in figures)) for name in names],
    )
    emit("gateway", figures)


if __name__ == "__main__":
    main()
