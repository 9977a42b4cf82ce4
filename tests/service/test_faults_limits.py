"""What a server lacks or is given: file descriptors, a whole index file, sound models, a clock that goes forward.

Each fault ends with every document answered once, bounded memory, and a request that succeeds.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import redis as redis_client
from redis.backoff import NoBackoff
from redis.retry import Retry

from dqs import Client, Document, Verdict
from dqs.client import Timeouts
from dqs.errors import IndexUnavailable
from dqs.index.redis_store import GROUP_DOCUMENTS
from dqs.v1 import scoring_pb2 as pb
from dqs.v1 import server_info_pb2
from dqs.v1.scoring_pb2_grpc import ScoringServiceStub
from tests.service.serving import ENGLISH, ROOT, Redis, ServerProcess, raw_channel, status_of, wait_until
from tests.service.test_cli_commands import assert_one_sentence, dqs
from tests.service.test_faults_redis import documents, eventually, finds_duplicates, nothing_is_called_unique_in_vain

MAX_GROWTH_BYTES = 100 << 20
MAX_MESSAGE_BYTES = 2 << 20


@pytest.fixture
def service(redis: Redis, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose memory is looked at when the test is over."""
    with ServerProcess(
        port=0,
        data_dir=tmp_path,
        redis_url=redis.url,
        redis_timeout_s=0.5,
        max_message_bytes=MAX_MESSAGE_BYTES,
        # Lines are written after the documents, and would be the tail of the append-only file.
        corpus_line_slots=0,
    ) as process:
        memory = psutil.Process(process.pid).memory_info
        before_bytes = memory().rss
        yield process
        assert memory().rss < before_bytes + MAX_GROWTH_BYTES


def all_answered(verdicts: list[Verdict], wanted: list[Document]) -> None:
    assert [verdict.id for verdict in verdicts] == [document.id for document in wanted]
    assert {verdict.error for verdict in verdicts} == {None}


def append_only_file(redis: Redis) -> Path:
    """The file of Redis that grows."""
    folder = Path(redis.url.removeprefix("unix://")).parent
    return max((path for path in folder.rglob("*.aof") if path.is_file()), key=lambda path: path.stat().st_size)


def is_loading(redis: Redis) -> bool:
    once = Retry(NoBackoff(), 0)
    with redis_client.Redis.from_url(redis.url, retry=once) as connection:
        try:
            connection.ping()
        except redis_client.BusyLoadingError:
            return True
        except redis_client.ConnectionError:
            pass
        return False


class TestIndexFile:
    def test_a_tail_that_is_cut_off_loses_no_more_than_the_last(self, redis: Redis, service: ServerProcess) -> None:
        wanted = documents(0, 200)
        with Client(service.address) as client:
            all_answered(client.score_batch(wanted, policy="score-only"), wanted)
            redis.kill()
            file = append_only_file(redis)
            with file.open("r+b") as stream:
                stream.truncate(file.stat().st_size - 5)
            redis.start()
            assert eventually(lambda: finds_duplicates(client, "tail"))
            again = documents(0, 200, "copy")
            copies = client.score_batch(again, policy="score-only")
            once_more = client.score_batch(documents(0, 200, "more"), policy="score-only")

        all_answered(copies, again)
        # The last insert is gone as a whole, with the few documents that went in together.
        lost = [copy.duplicate_of is None for copy in copies].index(True)
        assert 200 - GROUP_DOCUMENTS <= lost < 200
        assert [copy.duplicate_of for copy in copies] == [
            *(f"d{number}" for number in range(lost)),
            *[None] * (200 - lost),
        ]
        assert [more.duplicate_of for more in once_more[lost:]] == [f"copy{number}" for number in range(lost, 200)]

    def test_a_broken_one_stops_redis_and_is_said_until_it_is_put_back(
        self, redis: Redis, service: ServerProcess, tmp_path: Path
    ) -> None:
        wanted = documents(0, 100)
        with Client(service.address, timeouts=Timeouts(retry_s=0.5)) as client:
            client.score_batch(wanted, policy="score-only")
            redis.kill()
            file = append_only_file(redis)
            sound = file.read_bytes()
            file.write_bytes(sound[:100] + b"?" * 40 + sound[140:])
            assert redis.fails_to_start()
            with pytest.raises(IndexUnavailable):
                client.score_batch(wanted, policy="score-only")
            degraded = client.score_batch(wanted, policy="score-only", degrade=True)
            status, _, err = dqs(tmp_path, "serve", "--port", "0", "--redis", redis.url)
            redis.kill()
            file.write_bytes(sound)
            redis.start()
            assert eventually(lambda: finds_duplicates(client, "broken"))
            copies = client.score_batch(documents(0, 100, "copy"), policy="score-only")

        assert status != 0
        assert_one_sentence(err)
        all_answered(degraded, wanted)
        nothing_is_called_unique_in_vain(degraded)
        assert [copy.duplicate_of for copy in copies] == [document.id for document in wanted]

    def test_while_redis_loads_nothing_is_called_unique(self, redis: Redis, service: ServerProcess) -> None:
        wanted, during = documents(0, 200), documents(1000, 1050)
        with Client(service.address) as client:
            client.score_batch(wanted, policy="score-only")
            with redis_client.Redis.from_url(redis.url) as connection, connection.pipeline(transaction=False) as pipe:
                # Redis answers that it loads after every thousand commands only.
                for number in range(20_000):
                    pipe.set(f"other {number}", number)
                pipe.execute()
            redis.kill()
            redis.slow_loading(400)
            redis.start()
            wait_until(lambda: is_loading(redis))
            meanwhile = client.score_batch(during, policy="score-only", degrade=True)
            assert eventually(lambda: finds_duplicates(client, "loading"))
            copies = client.score_batch(documents(0, 200, "copy"), policy="score-only")

        all_answered(meanwhile, during)
        nothing_is_called_unique_in_vain(meanwhile)
        assert "duplicate_similarity" in meanwhile[0].missing
        assert [copy.duplicate_of for copy in copies] == [document.id for document in wanted]


class TestMessages:
    def test_one_that_is_too_large_ends_its_stream_and_not_its_connection(self, service: ServerProcess) -> None:
        options = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)

        def message(sequence: int, text: bytes) -> pb.ScoreStreamRequest:
            return pb.ScoreStreamRequest(
                sequence=sequence,
                options=options if sequence == 1 else None,
                documents=[pb.Document(id=str(sequence), text=text)],
            )

        with raw_channel(service.address) as channel:
            stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
            other = stub.ScoreStream(message(number, b"text") for number in range(1, 101))
            large = [message(1, b"text"), message(2, b"x" * (MAX_MESSAGE_BYTES + 1))]
            for _ in range(20):
                assert status_of(lambda: list(stub.ScoreStream(iter(large))))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert sorted(answer.sequence for answer in other) == list(range(1, 101))
            assert [answer.sequence for answer in stub.ScoreStream(iter([message(1, b"text")]))] == [1]


def flip_a_byte(folder: Path) -> None:
    file = folder / "toxicity-en" / "2" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_off(folder: Path) -> None:
    file = max((folder / "perplexity-zh" / "1").iterdir(), key=lambda path: path.stat().st_size)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def name_another_digest(folder: Path) -> None:
    file = folder / "perplexity-en" / "1" / "model.toml"
    head, name, tail = file.read_text("utf-8").partition('sha256 = "')
    file.write_text(f"{head}{name}{'0' * 64}{tail[64:]}", "utf-8")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off, name_another_digest])
def test_a_damaged_model_is_refused_at_the_start_and_a_sound_one_serves(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    names = ("perplexity-en", "perplexity-zh", "toxicity-en")

    def copy() -> None:
        for name in names:
            shutil.copytree(ROOT / "models" / name, tmp_path / "models" / name, dirs_exist_ok=True)

    copy()
    damage(tmp_path / "models")
    status, out, err = dqs(tmp_path, "serve", "--port", "0", "--models", tmp_path / "models")

    assert status != 0
    assert out == "", "it never says that it serves"
    assert_one_sentence(err)
    assert "is not the file that model.toml names" in err
    if damage is name_another_digest:
        copy()
        with (
            ServerProcess(port=0, data_dir=tmp_path / "data", models=tmp_path / "models") as process,
            Client(process.address) as client,
        ):
            all_answered(client.score_batch([("a", ENGLISH)]), [Document("a", ENGLISH.encode())])


BACKWARDS = """
import time
_began, _since = time.time(), time.monotonic()
time.time = lambda: _began - 3600 * (time.monotonic() - _since)
time.time_ns = lambda: int(time.time() * 1e9)
time.sleep(0.01)
assert time.time() < _began - 30
"""
"""The substitute for a clock that is set back, which takes rights: Python's wall clock goes back an hour a second."""


def test_a_clock_that_goes_back_holds_nothing_up(redis: Redis, tmp_path: Path) -> None:
    wanted = documents(0, 300)

    def slowly() -> Iterator[Document]:
        for document in wanted:
            time.sleep(0.01)
            yield document

    with (
        ServerProcess(
            before=BACKWARDS, port=0, data_dir=tmp_path, redis_url=redis.url, redis_timeout_s=0.5,
            stream_max_age_s=0.5, stream_resume_s=0.5,
        ) as process,
        Client(process.address) as client,
    ):  # fmt: skip
        # The stream grows old some times, and is opened anew.
        all_answered(list(client.score(slowly(), policy="score-only")), wanted)
        redis.kill()
        degraded = client.score_batch(wanted[:50], policy="score-only", degrade=True)
        redis.start()
        # What was left alone for a while is asked again when it is over.
        assert eventually(lambda: finds_duplicates(client, "clock"))
        copies = client.score_batch(documents(0, 300, "copy"), policy="score-only")

    all_answered(degraded, wanted[:50])
    nothing_is_called_unique_in_vain(degraded)
    assert "duplicate_similarity" in degraded[0].missing
    assert [copy.duplicate_of for copy in copies] == [document.id for document in wanted]


def test_without_file_descriptors_new_clients_wait_or_fail_and_others_are_served(service: ServerProcess) -> None:
    process = psutil.Process(service.pid)
    wanted = documents(0, 300)
    # Channels of one process share a connection unless told not to.
    own = (("grpc.use_local_subchannel_pool", 1),)
    with Client(service.address) as client:
        client.score_batch(documents(1000, 1010), policy="score-only")
        before = process.num_fds()
        _, most = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (before + 10, most))
        channels = [grpc.insecure_channel(service.address, options=own) for _ in range(40)]
        info = server_info_pb2.GetServerInfoRequest()
        calls = [
            ScoringServiceStub(channel).GetServerInfo.future(info, timeout=10)  # type: ignore[no-untyped-call]
            for channel in channels
        ]
        all_answered(list(client.score(wanted, policy="score-only")), wanted)
        codes = [call.code() for call in calls]
        held = process.num_fds()
        for channel in channels:
            channel.close()

        refused = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
        assert 0 < codes.count(grpc.StatusCode.OK) <= 10
        assert set(codes) <= {grpc.StatusCode.OK} | refused
        assert held <= before + 10
        assert process.is_running()

        def comes_in() -> bool:
            with grpc.insecure_channel(service.address, options=own) as channel:
                stub = ScoringServiceStub(channel)  # type: ignore[no-untyped-call]
                try:
                    return bool(stub.GetServerInfo(info, timeout=5).models)
                except grpc.RpcError:
                    return False

        assert eventually(comes_in), "the limit is still as low"
        assert eventually(lambda: process.num_fds() <= before + 2)
        copies = client.score_batch(documents(0, 300, "copy"), policy="score-only")
    assert [copy.duplicate_of for copy in copies] == [document.id for document in wanted]


def test_a_server_that_may_open_hardly_any_file_does_not_start(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        "sys.argv = ['dqs', 'serve', '--port', '0', '--data-dir', sys.argv[1]]\n"
        "from dqs.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert_one_sentence(done.stderr)
