"""Load on a server from a process of its own: messages made beforehand, answers counted and not read.

    python -m tests.bench.load ADDRESS --data DIR [--megabytes 20] [--message-documents 256] [--streams 4]
                               [--in-flight 8] [--no-dedup] [--seconds S] [--token-file FILE]

Prints one JSON object: what was answered, in which time, and how much processor
time this process took for it, so that it can be subtracted from the server's
machine. With `--seconds` the same documents are sent again and again;
`rates_mb_per_s` has the speed of each half second.
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from dqs.v1 import scoring_pb2
from tests.bench.speed import LANGUAGES, sample

BUCKET_S = 0.5


def messages(data: Path, megabytes: float, documents: int, salt: str) -> list[tuple[bytes, int]]:
    """Encoded requests of both languages in turns, without options and numbers, each with its bytes of text."""
    halves = [sample(data, language, megabytes / len(LANGUAGES)) for language in LANGUAGES]
    made = []
    for start in range(0, max(map(len, halves)), documents):
        for half in halves:
            part = half[start : start + documents]
            if part:
                request = scoring_pb2.ScoreStreamRequest(
                    documents=[scoring_pb2.Document(id=f"{salt}-{one.id}", text=one.text) for one in part],
                )
                made.append((request.SerializeToString(), sum(len(one.text) for one in part)))
    return made


class Tally:
    """Counts answers of several streams."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begin_s = time.perf_counter()
        self.documents = 0
        self.text_bytes = 0
        self.errors = 0
        self.buckets: list[int] = []

    def add(self, response: scoring_pb2.ScoreStreamResponse, text_bytes: int) -> None:
        """Takes one answer down."""
        errors = sum(result.HasField("error") for result in response.scored.results)
        with self._lock:
            bucket = int((time.perf_counter() - self.begin_s) / BUCKET_S)
            self.buckets.extend([0] * (bucket + 1 - len(self.buckets)))
            self.buckets[bucket] += text_bytes
            self.documents += len(response.scored.results)
            self.text_bytes += text_bytes
            self.errors += errors


def stream(
    address: str,
    token: str,
    options: scoring_pb2.ScoreOptions,
    work: queue.SimpleQueue[tuple[bytes, int] | None],
    in_flight: int,
    tally: Tally,
    failures: list[str],
) -> None:
    """Sends what `work` holds until None comes, with at most `in_flight` messages without an answer."""
    limits = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    room = threading.Semaphore(in_flight)
    sizes: dict[int, int] = {}

    def requests() -> Iterator[bytes]:
        sequence = 0
        while (item := work.get()) is not None:
            room.acquire()
            sequence += 1
            raw, sizes[sequence] = item
            # Encoded messages that follow one another are one message with the fields of both.
            head = scoring_pb2.ScoreStreamRequest(sequence=sequence, options=options if sequence == 1 else None)
            numbered: bytes = head.SerializeToString() + raw
            yield numbered

    with grpc.insecure_channel(address, options=limits) as channel:
        try:
            call = channel.stream_stream("/dqs.v1.ScoringService/ScoreStream")
            for raw in call(requests(), metadata=[("authorization", f"Bearer {token}")] if token else None):
                response = scoring_pb2.ScoreStreamResponse.FromString(raw)
                tally.add(response, sizes.pop(response.sequence))
                room.release()
        except grpc.RpcError as error:
            failures.append(f"{error.code().name}: {error.details()}")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends the load; what came of it."""
    salt = f"{time.time_ns()}"
    options = scoring_pb2.ScoreOptions(
        corpus=f"load-{salt}",
        deduplication=(scoring_pb2.DEDUPLICATION_DISABLED if arguments.no_dedup else scoring_pb2.DEDUPLICATION_ENABLED),
    )
    made = messages(arguments.data, arguments.megabytes, arguments.message_documents, salt)
    work: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
    failures: list[str] = []
    tally = Tally()
    cpu_s = time.process_time()
    token = arguments.token_file.read_text().strip() if arguments.token_file else ""
    given = (arguments.address, token, options, work, arguments.in_flight, tally, failures)
    threads = [threading.Thread(target=stream, args=given) for _ in range(arguments.streams)]
    for thread in threads:
        thread.start()
    sent = 0
    while not failures:
        for item in made:
            work.put(item)
            sent += item[1]
        while work.qsize() > arguments.streams and not failures:
            time.sleep(0.01)
        if time.perf_counter() - tally.begin_s >= arguments.seconds:
            break
    for _ in threads:
        work.put(None)
    for thread in threads:
        thread.join()
    return {
        "megabytes": tally.text_bytes / 1e6,
        "sent_megabytes": sent / 1e6,
        "documents": tally.documents,
        "errors": tally.errors,
        "failures": failures,
        "seconds": time.perf_counter() - tally.begin_s,
        "client_cpu_s": time.process_time() - cpu_s,
        "rates_mb_per_s": [value / 1e6 / BUCKET_S for value in tally.buckets],
    }


def main() -> None:
    """Runs the load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--message-documents", type=int, default=256)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--no-dedup", action="store_true")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--token-file", type=Path)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
