"""`dqs score` as a person runs it: a process, files, exit statuses, kills and interrupts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqs.server.tenants import new_token
from tests.service.serving import LocalServer, Redis, ServerProcess
from tests.service.test_cli_commands import dqs_here

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "samples"
WAIT_S = 120.0
COLUMNS = [
    "id", "label", "reasons", "explanations", "error", "language", "perplexity", "perplexity_percentile", "toxicity",
    "toxicity_span", "duplicate_of", "duplicate_similarity", "exact_duplicate",
]  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


class Cli:
    """Runs `dqs` in a folder of its own."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DQS_")}
        self.env = {**kept, "PYTHONPATH": str(ROOT), "DQS_DATA_DIR": str(data_dir), "COLUMNS": "100"}

    def start(self, *arguments: object, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dqs.cli", *map(str, arguments)],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )

    def run(self, *arguments: object, stdin: bytes = b"", **more: Any) -> tuple[int, bytes, str]:
        """In this process where no standard stream is needed: a new one loads for seconds what is loaded here."""
        if not stdin and not more and "-" not in arguments:
            ours = {name: value for name, value in self.env.items() if os.environ.get(name) != value}
            status, said, complaint = dqs_here(self.folder, *arguments, **ours)
            return status, said.encode(), complaint
        process = self.start(*arguments, stdin=subprocess.PIPE, **more)
        out, err = process.communicate(stdin, timeout=WAIT_S)
        return process.returncode, out, err.decode()

    def names(self) -> list[str]:
        """Every file there, hidden ones too."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def cli(tmp_path: Path, data_dir: Path) -> Cli:
    return Cli(tmp_path, data_dir)


def assert_one_sentence(err: str) -> None:
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("dqs: ")
    assert "Traceback" not in err


def test_scores_samples_of_both_languages(cli: Cli) -> None:
    english, chinese = SAMPLES / "english.jsonl", SAMPLES / "chinese.jsonl"
    status, out, err = cli.run("score", english, chinese, "-o", "out.parquet")
    assert (status, out) == (0, b""), err
    table = pq.read_table(cli.folder / "out.parquet")
    assert table.schema.names[: len(COLUMNS)] == COLUMNS
    assert table.schema.names[-2:] == ["file", "row"]
    assert table.schema.metadata[b"dqs.policy"].startswith(b"default@")
    rows = table.to_pylist()
    given = [json.loads(line) for path in (english, chinese) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in given]
    assert [(row["file"], row["row"]) for row in rows] == [
        (str(p), n) for p in (english, chinese) for n in range(1, 31)
    ]
    for row, expected in zip(rows, given, strict=True):
        assert row["language"] == expected["language"]
        assert row["error"] is None
        assert row["characters"] == len(expected["text"])
        assert (row["label"] == "drop") == bool(row["reasons"])
        assert len(row["reasons"]) == len(row["explanations"])
        assert not any(value != value for value in row.values() if isinstance(value, float))
    for language in ("en", "zh"):
        kept = [row["label"] == "keep" for row in rows if row["language"] == language]
        assert sum(kept) >= 24, f"{language}: clean samples are dropped"
    assert "60 rows, policy default@" in err
    assert "language zh" in err
    assert "scoring" not in err  # the bar is for terminals


def test_the_same_rows_from_every_kind_of_input_and_through_standard_streams(cli: Cli) -> None:
    lines = (SAMPLES / "demo.jsonl").read_bytes()
    rows = [json.loads(line) for line in lines.splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), cli.folder / "demo.parquet")
    (cli.folder / "demo.jsonl").write_bytes(lines)
    assert cli.run("score", "demo.jsonl", "-o", "a.jsonl", "--no-dedup")[0] == 0
    assert cli.run("score", "demo.parquet", "-o", "b.jsonl", "--no-dedup")[0] == 0
    status, out, _ = cli.run("score", "-", "-o", "-", "--no-dedup", stdin=lines)
    assert status == 0

    def scores(data: bytes) -> list[dict[str, Any]]:
        return [{**json.loads(line), "file": "", "row": 0} for line in data.splitlines()]

    first = scores((cli.folder / "a.jsonl").read_bytes())
    assert len(first) == len(rows)
    assert scores((cli.folder / "b.jsonl").read_bytes()) == first
    assert scores(out) == first
    assert {row["duplicate_similarity"] for row in first} == {None}


def test_duplicates_within_a_run_and_across_runs_of_one_corpus(cli: Cli) -> None:
    (cli.folder / "demo.jsonl").write_bytes((SAMPLES / "demo.jsonl").read_bytes())
    command = ("score", "demo.jsonl", "--policy", "score-only", "-o")
    assert cli.run(*command, "a.jsonl")[0] == 0
    assert cli.run(*command, "b.jsonl")[0] == 0
    first = {row["id"]: row for row in map(json.loads, (cli.folder / "a.jsonl").read_text().splitlines())}
    for language in ("en", "zh"):
        copy, near = first[f"{language}-backup-copied"], first[f"{language}-tides-again"]
        assert (copy["duplicate_of"], copy["exact_duplicate"]) == (f"{language}-tech-backup", True)
        assert near["duplicate_of"] == f"{language}-science-tides"
        assert 0.75 <= near["duplicate_similarity"] < 1
    # The corpus of a run is gone with it.
    assert (cli.folder / "b.jsonl").read_bytes() == (cli.folder / "a.jsonl").read_bytes()
    renamed = "".join(
        json.dumps({**json.loads(line), "id": f"again-{n}"}) + "\n"
        for n, line in enumerate((SAMPLES / "english.jsonl").read_text().splitlines())
    )
    (cli.folder / "again.jsonl").write_text(renamed)
    name = cli.folder.name
    assert (
        cli.run("score", SAMPLES / "english.jsonl", "-o", "c.jsonl", "--corpus", name, "--policy", "score-only")[0] == 0
    )
    assert cli.run("score", "again.jsonl", "-o", "d.jsonl", "--corpus", name, "--policy", "score-only")[0] == 0
    again = [json.loads(line) for line in (cli.folder / "d.jsonl").read_text().splitlines()]
    assert all(row["exact_duplicate"] for row in again)


def test_broken_rows_are_reported_and_the_rest_is_scored(cli: Cli) -> None:
    (cli.folder / "broken.jsonl").write_bytes((SAMPLES / "broken.jsonl").read_bytes())
    repeated = b'{"id": "good-en", "text": "Another text under an id that was taken by the first row of all."}\n'
    with (cli.folder / "broken.jsonl").open("ab") as file:
        file.write(repeated)
    status, _, err = cli.run(
        "score", "broken.jsonl", "-o", "out.jsonl", "--kept", "kept.jsonl", "--policy", "score-only"
    )
    assert status == 1
    rows = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
    codes = {row["row"]: row["error"].partition(":")[0] for row in rows if row["error"]}
    assert codes == {
        2: "MALFORMED_ROW", 3: "MALFORMED_ROW", 4: "MALFORMED_ROW", 5: "MALFORMED_ROW", 6: "MALFORMED_ROW",
        7: "INVALID_UTF8", 8: "INVALID_UTF8", 9: "INVALID_ID", 10: "INVALID_ID", 14: "ID_REUSED",
    }  # fmt: skip
    for row in rows:
        assert (row["label"] is None) == (row["error"] is not None)
        assert (row["reasons"] is None) == (row["error"] is not None)
    for number in codes:
        assert f"broken.jsonl:{number}: {codes[number]}" in err
    kept = (cli.folder / "kept.jsonl").read_bytes().splitlines()
    lines = (cli.folder / "broken.jsonl").read_bytes().splitlines()
    assert kept == [lines[0], lines[11], lines[12]]


def test_kept_and_dropped_parquet_rows_keep_all_their_columns(cli: Cli) -> None:
    rows = [json.loads(line) for line in (SAMPLES / "demo.jsonl").read_bytes().splitlines()]
    table = pa.Table.from_pylist([{**row, "tags": [row["id"]], "n": n} for n, row in enumerate(rows)])
    pq.write_table(table, cli.folder / "in.parquet")
    assert cli.run("score", "in.parquet", "-o", "s.parquet", "--kept", "k.parquet", "--dropped", "d.parquet")[0] == 0
    labels = pq.read_table(cli.folder / "s.parquet").column("label").to_pylist()
    assert {"keep", "drop"} <= set(labels)
    for name, label in (("k.parquet", "keep"), ("d.parquet", "drop")):
        expected = table.filter(pa.array([found == label for found in labels]))
        assert pq.read_table(cli.folder / name).equals(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["in.jsonl", "-o", "out.jsonl", "--policy", "defualt"], "no policy 'defualt'; there are: default, score-only"),
        (["in.jsonl", "-o", "out.jsonl", "--text-field", "txt"], "no field 'txt'; it has: text"),
        (["absent.jsonl", "-o", "out.jsonl"], "absent.jsonl cannot be read"),
        (["in.jsonl", "-o", "out.csv"], "unknown ending"),
        (["in.jsonl", "-o", "absent/out.jsonl"], "cannot be written: No such file or directory"),
        (["in.jsonl", "-o", "out.jsonl", "--resume"], "continues a folder of parts"),
        (["-", "-o", "parts", "--resume"], "cannot be read a second time"),
        (["in.jsonl", "-o", "out.jsonl", "--language", "English"], "no ISO 639-1 code"),
        (["in.jsonl", "-o", "out.jsonl", "--redis", "redis://127.0.0.1:1/0"], "Redis at redis://127.0.0.1:1/0"),
        (["in.jsonl", "-o", "out.jsonl", "--models", "broken"], "model"),
        (["in.jsonl", "-o", "out.jsonl", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_writes_nothing(cli: Cli, arguments: list[str], expected: str) -> None:
    (cli.folder / "in.jsonl").write_text('{"text": "A text."}\n')
    (cli.folder / "broken" / "m" / "1").mkdir(parents=True)
    (cli.folder / "broken" / "m" / "1" / "model.toml").write_text("name = ")
    before = cli.names()
    status, out, err = cli.run("score", *arguments)
    assert (status, out) == (2, b"")
    assert_one_sentence(err)
    assert expected in err
    assert cli.names() == before


def test_standard_input_without_the_field_is_refused(cli: Cli) -> None:
    status, out, err = cli.run("score", "-", "-o", "-", "--no-dedup", stdin=b'{"body": "x"}\n' * 3)
    assert (status, out) == (2, b"")
    assert_one_sentence(err)
    assert "has no field 'text'; it has: body" in err


@pytest.mark.parametrize(
    "output",
    ["out.parquet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("out.jsonl", "out.jsonl.zst")), "parts"],
)
def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(cli: Cli, output: str) -> None:
    rows = corpus(400)
    (cli.folder / "in.jsonl").write_text(rows)
    # A limit on the size of files stands in for a full disk: the write fails half-way.
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
    code = f"{limited} sys.argv[0] = 'dqs'; import dqs.cli; dqs.cli.main()"
    arguments = ["score", "in.jsonl", "-o", output, "--no-dedup"]
    env = {**cli.env, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cli.folder,
        env=env,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    err = done.stderr.decode()
    assert done.returncode == 2, err
    assert_one_sentence(err)
    assert "cannot be written: File too large" in err
    assert [name for name in cli.names() if "part-" in name or name.startswith((".out", "out"))] == []


def corpus(rows: int, seed: int = 1) -> str:
    """JSONL of recombined sample sentences, with exact and near copies of earlier rows throughout."""
    choice = random.Random(seed)
    texts = [
        [json.loads(line)["text"] for line in (SAMPLES / f"{name}.jsonl").read_text().splitlines()]
        for name in ("english", "chinese")
    ]
    made: list[str] = []
    for _ in range(rows):
        kind = choice.random()
        if made and kind < 0.15:
            text = choice.choice(made)
        elif made and kind < 0.35:
            words = list(choice.choice(made))
            words[choice.randrange(len(words))] = choice.choice("xy一二")
            text = "".join(words)
        else:
            some = choice.choice(texts)
            text = "\n".join(choice.sample(some, 3)) + f" {choice.random()}"
        made.append(text)
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in made)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def parts_done(folder: Path) -> int:
    """Complete parts, as the manifest tells."""
    path = folder / "manifest.json"
    return len(json.loads(path.read_text())["parts"]) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_half_file(cli: Cli, number: signal.Signals) -> None:
    (cli.folder / "in.jsonl").write_text(corpus(300))
    # Standard input that never ends keeps the run alive until it is stopped.
    process = cli.start("score", "in.jsonl", "-", "-o", "out.jsonl", stdin=subprocess.PIPE)
    wait_until((cli.folder / ".out.jsonl.partial").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert_one_sentence(err.decode())
    assert cli.names() == ["in.jsonl"]


@pytest.mark.parametrize("policy", ["default", pytest.param("score-only", marks=pytest.mark.slow)])
def test_a_killed_run_continues_with_the_identical_result(cli: Cli, policy: str) -> None:
    lines = corpus(1600, seed=2).splitlines(keepends=True)
    (cli.folder / "a.jsonl").write_text("".join(lines[:850]))
    (cli.folder / "b.jsonl").write_text("".join(lines[850:]))
    run = ("score", "a.jsonl", "b.jsonl", "--part-rows", 100, "--policy", policy, "--resume")
    killed = (*run, "-o", "killed", "--kept", "killed-kept")
    assert cli.run(*run, "-o", "whole", "--kept", "whole-kept")[0] == 0
    for parts in (3, 9):
        process = cli.start(*killed)
        wait_until(lambda parts=parts: parts_done(cli.folder / "killed") >= parts, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
    assert 9 <= parts_done(cli.folder / "killed") < 16
    status, _, err = cli.run(*killed)
    assert status == 0, err
    assert "Continuing behind" in err
    for kind in ("", "-kept"):
        expected = {path.name: path.read_bytes() for path in (cli.folder / f"whole{kind}").glob("part-*")}
        found = {path.name: path.read_bytes() for path in (cli.folder / f"killed{kind}").glob("part-*")}
        assert len(expected) == 16
        assert found == expected
    rows = pq.read_table(sorted((cli.folder / "killed").glob("part-*"))).to_pylist()
    assert [row["row"] for row in rows] == [*range(1, 851), *range(1, 751)]
    # Duplicates whose originals lie in parts that were written before a kill.
    across = [row for row in rows if row["file"] == "b.jsonl" and (row["duplicate_of"] or "").startswith("a.jsonl:")]
    assert len(across) > 20
    status, _, err = cli.run(*killed)
    assert (status, "is complete; there is nothing to do" in err) == (0, True)
    status, _, err = cli.run(*killed, "--language", "en")
    assert status == 2
    assert "started with other language" in err


def test_a_service_gives_the_answers_of_this_process(cli: Cli, server: ServerProcess) -> None:
    (cli.folder / "demo.jsonl").write_bytes(
        (SAMPLES / "demo.jsonl").read_bytes() + (SAMPLES / "broken.jsonl").read_bytes()
    )
    assert cli.run("score", "demo.jsonl", "-o", "here.parquet")[0] == 1
    status, _, err = cli.run("score", "demo.jsonl", "-o", "there.parquet", "--server", server.address)
    assert status == 1, err
    here, there = (pq.read_table(cli.folder / name) for name in ("here.parquet", "there.parquet"))
    assert here.schema.equals(there.schema)
    for name in here.schema.names:
        ours, theirs = here.column(name).to_pylist(), there.column(name).to_pylist()
        if pa.types.is_floating(here.schema.field(name).type):
            assert [value is None for value in theirs] == [value is None for value in ours], name
            numbers = [value for value in ours if value is not None]
            assert [value for value in theirs if value is not None] == pytest.approx(numbers, rel=1e-5, abs=1e-5), name
        elif name != "explanations":
            assert theirs == ours, name


@pytest.fixture
def emptied(redis: Redis, data_dir: Path) -> Iterator[ServerProcess]:
    """A service whose Redis holds nothing yet."""
    with ServerProcess(port=0, data_dir=data_dir, redis_url=redis.url, redis_timeout_s=1) as process:
        yield process


def test_a_run_through_a_service_leaves_no_corpus_behind(cli: Cli, emptied: ServerProcess, redis: Redis) -> None:
    (cli.folder / "demo.jsonl").write_bytes((SAMPLES / "demo.jsonl").read_bytes())
    command = ("score", "demo.jsonl", "--policy", "score-only", "--server", emptied.address, "-o")
    for output in ("file.jsonl", "parts"):
        status, _, err = cli.run(*command, output)
        assert status == 0, err
        assert redis.key_names() == []
    rows = [json.loads(line) for line in (cli.folder / "file.jsonl").read_text().splitlines()]
    assert any(row["exact_duplicate"] for row in rows)
    assert cli.run(*command, "named.jsonl", "--corpus", "named")[0] == 0
    assert redis.key_names() != []
    assert all("named" in key for key in redis.key_names() if key != "dqs:{default}:corpora")


@pytest.mark.parametrize("output", ["out.jsonl", "parts"])
def test_an_interrupted_run_leaves_no_corpus_in_a_service(
    cli: Cli, emptied: ServerProcess, redis: Redis, output: str
) -> None:
    (cli.folder / "in.jsonl").write_text(corpus(300))
    # Rows from standard input cannot be read again, so no later run could use the corpus.
    arguments = ("score", "in.jsonl", "-", "--policy", "score-only", "--server", emptied.address, "--part-rows", 100)
    process = cli.start(*arguments, "-o", output, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for _ in range(100):  # more rows than one message holds, so that documents leave
        process.stdin.write(corpus(30).encode())
        process.stdin.flush()
    wait_until(lambda: bool(redis.key_names()), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert_one_sentence(err.decode())
    assert redis.key_names() == []


def test_a_stopped_run_through_a_service_continues_in_its_corpus(
    cli: Cli, emptied: ServerProcess, redis: Redis
) -> None:
    (cli.folder / "in.jsonl").write_text(corpus(2400, seed=3))
    run = ("score", "in.jsonl", "--policy", "score-only", "--server", emptied.address, "--part-rows", 100, "--resume")
    status, _, err = cli.run(*run, "-o", "whole")
    assert status == 0, err
    for parts, number in ((3, signal.SIGKILL), (8, signal.SIGINT)):
        process = cli.start(*run, "-o", "stopped")
        wait_until(lambda parts=parts: parts_done(cli.folder / "stopped") >= parts, process)  # type: ignore[misc]
        process.send_signal(number)
        process.communicate(timeout=WAIT_S)
        assert redis.key_names() != []
    finished = parts_done(cli.folder / "stopped") * 100
    assert 800 <= finished < 2400
    status, _, err = cli.run(*run, "-o", "stopped")
    assert status == 0, err
    assert "Continuing behind" in err
    assert redis.key_names() == []

    names = ["row", "id", "label", "error", "duplicate_of", "exact_duplicate"]
    whole, stopped = (
        pq.read_table(sorted((cli.folder / name).glob("part-*")), columns=names).to_pylist()
        for name in ("whole", "stopped")
    )
    assert len(whole) == 2400
    # Of rows that were scored before they were cut off, the original may be another one.
    for expected, found in zip(whole, stopped, strict=True):
        assert {**found, "duplicate_of": None, "exact_duplicate": None} == {
            **expected,
            "duplicate_of": None,
            "exact_duplicate": None,
        }
        assert (found["duplicate_of"] is None) == (expected["duplicate_of"] is None)
    originals = {row["duplicate_of"] for row in stopped[finished:]}
    assert len(originals & {row["id"] for row in stopped[:300]}) > 20


def test_a_run_that_finished_no_part_begins_with_an_empty_corpus(
    cli: Cli, emptied: ServerProcess, redis: Redis
) -> None:
    (cli.folder / "in.jsonl").write_text(corpus(2400, seed=3))
    run = ("score", "in.jsonl", "--policy", "score-only", "--server", emptied.address, "--resume")
    process = cli.start(*run, "-o", "killed")
    wait_until(lambda: bool(redis.key_names()), process)
    process.kill()
    process.communicate()
    assert parts_done(cli.folder / "killed") == 0
    for output in ("killed", "whole"):
        status, _, err = cli.run(*run, "-o", output)
        assert status == 0, err
        assert "Continuing behind" not in err
        assert redis.key_names() == []
    killed, whole = (
        pq.read_table(cli.folder / name / "part-00000.parquet", columns=["id", "label", "duplicate_of"])
        for name in ("killed", "whole")
    )
    assert killed.equals(whole)


@pytest.mark.slow
def test_an_index_that_is_gone_at_the_end_is_said_and_no_more(cli: Cli, emptied: ServerProcess, redis: Redis) -> None:
    (cli.folder / "in.jsonl").write_text(corpus(300))
    process = cli.start("score", "in.jsonl", "-", "-o", "out.jsonl", "--server", emptied.address, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(corpus(3000).encode())
    process.stdin.flush()
    wait_until(lambda: bool(redis.key_names()), process)
    redis.kill()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT_S)
    redis.start()
    assert process.returncode == 130
    *warnings, first, second = err.decode().splitlines()
    assert all(line.startswith("dqs: No answer from ") for line in warnings), err
    assert first.startswith("dqs: the service could not be asked to drop this run's corpus run-")
    assert second.startswith("dqs: interrupted")


def test_a_service_too_old_to_drop_corpora_is_good_enough(cli: Cli, emptied: ServerProcess, redis: Redis) -> None:
    (cli.folder / "demo.jsonl").write_bytes((SAMPLES / "demo.jsonl").read_bytes())
    with OlderService(emptied.address) as address:
        status, _, err = cli.run("score", "demo.jsonl", "-o", "out.jsonl", "--server", address)
    assert status == 0, err
    assert "dqs:" not in err
    assert redis.key_names() != []


class OlderService:
    """Hands calls of ScoringService on to a service of today, and knows no other.

    Args:
        address: of that service.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        name = "dqs.v1.ScoringService"
        stream = self._channel.stream_stream(f"/{name}/ScoreStream")
        info = self._channel.unary_unary(f"/{name}/GetServerInfo")
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    name,
                    {
                        "ScoreStream": grpc.stream_stream_rpc_method_handler(lambda requests, _: stream(requests)),
                        "GetServerInfo": grpc.unary_unary_rpc_method_handler(lambda request, _: info(request)),
                    },
                ),
            )
        )
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> str:
        self._server.start()
        return self._address

    def __exit__(self, *error: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()


def test_a_service_that_is_not_there_is_one_sentence(cli: Cli) -> None:
    (cli.folder / "in.jsonl").write_text('{"text": "A text."}\n')
    status, _, err = cli.run("score", "in.jsonl", "-o", "out.jsonl", "--server", "127.0.0.1:1")
    assert status == 2
    warning, sentence = err.splitlines()
    assert warning.startswith("dqs: No answer from 127.0.0.1:1 (request ")
    assert_one_sentence(sentence)
    assert cli.names() == ["in.jsonl"]


def test_a_reader_who_leaves_ends_the_run_quietly(cli: Cli) -> None:
    rows = b"".join(json.dumps({"id": f"r{i}", "text": f"Row {i} of many."}).encode() + b"\n" for i in range(20_000))
    (cli.folder / "in.jsonl").write_bytes(rows)
    process = cli.start("score", "in.jsonl", "-o", "-", "--kept", "kept.jsonl", "--no-dedup")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b'{"id": "r0"')
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()

    assert process.wait(WAIT_S) == 141
    assert "roken pipe" not in err
    assert "Traceback" not in err
    assert cli.names() == ["in.jsonl"]


def test_the_answers_are_the_same_however_many_batches_are_scored_at_once(cli: Cli) -> None:
    # Every text comes three times, and the first is kept: a verdict depends on the order of the batches.
    texts = [f"The archive holds map number {i % 400} of a coast near {i % 400 * 7} islands." for i in range(1200)]
    random.Random(3).shuffle(texts)
    lines = (json.dumps({"id": f"r{i}", "text": text}) for i, text in enumerate(texts))
    (cli.folder / "in.jsonl").write_text("\n".join(lines))
    outputs = []
    cli.env["DQS_BATCH_DOCUMENTS"] = "20"
    for threads in (1, 4):
        cli.env["DQS_SCORE_THREADS"] = str(threads)
        status, _, err = cli.run("score", "in.jsonl", "-o", "out.jsonl", "--policy", "score-only")
        assert status == 0, err
        outputs.append((cli.folder / "out.jsonl").read_bytes())

    assert outputs[0] == outputs[1]
    assert sum(json.loads(line)["duplicate_of"] is not None for line in outputs[0].splitlines()) >= 800


def test_a_token_file_that_is_missing_and_options_that_do_not_fit_are_refused_at_once(cli: Cli) -> None:
    (cli.folder / "in.jsonl").write_text('{"text": "a"}\n')
    (cli.folder / "in.jsonl.gz").write_bytes(b"\x1f\x8b")
    for options, words in (
        (
            ("--server", "localhost:1", "--token-file", "none"),
            "token file none cannot be read (No such file or directory)",
        ),
        (("--server", "localhost:1", "--token-file", "."), "token file . cannot be read (Is a directory)"),
        (("--server", "localhost:1", "--token-file", "in.jsonl.gz"), "holds characters that no token has"),
        (("--server", "localhost:1", "--tls-ca", "none"), "authorities in none cannot be read"),
        (("--server", "localhost:1", "--workers", "2"), "leave out --server"),
        (("--server", ","), "No server is named"),
    ):
        status, _, err = cli.run("score", "in.jsonl", "-o", "out.jsonl", *options)
        assert status == 2, options
        assert_one_sentence(err)
        assert words in err

    (cli.folder / "token").write_text("secret-token\n")
    (cli.folder / "token").chmod(0o600)
    status, _, err = cli.run("score", "in.jsonl", "-o", "o.jsonl", "--server", "192.0.2.1:1", "--token-file", "token")
    assert status == 2
    assert_one_sentence(err)
    assert "in clear: give --tls-ca" in err
    assert "secret-token" not in err


def test_a_token_is_asked_for_by_option_and_kept_from_others(cli: Cli) -> None:
    (cli.folder / "in.jsonl").write_text('{"text": "a"}\n')
    token = cli.folder / "token"
    token.write_text(new_token(cli.folder / "tokens.toml", "alpha") + "\n")
    with LocalServer(tokens=cli.folder / "tokens.toml") as server:
        command = ("score", "in.jsonl", "-o", "out.jsonl", "--server", server.address, "--no-dedup")
        status, _, err = cli.run(*command)
        assert status == 2
        assert_one_sentence(err)
        assert "--token-file" in err
        for mode, warnings in ((0o600, []), (0o644, ["dqs: others may read token, which holds a token: run chmod"])):
            token.chmod(mode)
            status, _, err = cli.run(*command, "--token-file", "token")
            assert status == 0, err
            said = [line for line in err.splitlines() if line.startswith("dqs: ")]
            assert [line.partition(" 600")[0] for line in said] == warnings
        token.chmod(0o600)
        token.write_text("dqs_wrong")
        status, _, err = cli.run(*command, "--token-file", "token")
        assert status == 2
        assert_one_sentence(err)
        assert "The token is wrong" in err
