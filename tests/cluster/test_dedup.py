"""`dqs dedup` over real text with planted duplicates: its answers, its files, and runs that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqs.commands import dedup_tasks
from dqs.commands.deduplicating import LARGEST, Request, deduplicate
from dqs.errors import ConfigError
from dqs.index.embedded import EmbeddedRedis
from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import SignatureParameters, sign
from dqs.rows.readers import Fields
from dqs.settings import load_settings
from dqs.text import TextBatch
from tests.cluster.workers import wait_for
from tests.unit.test_offline import Answer, Collection, connected, expected

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "samples"
WAIT_S = 120.0
PART_ROWS = 64

Row = tuple[str, str]


def sentences(name: str) -> list[str]:
    lines = (SAMPLES / name).read_text(encoding="utf-8").splitlines()
    return [part for line in lines for part in str(json.loads(line)["text"]).split("\n") if len(part) > 20]


def edited(text: str, rng: random.Random, strength: float) -> str:
    """The text with some words, or characters of Chinese, in other order or gone."""
    pieces = text.split(" ") if " " in text[:200] else list(text)
    for _ in range(max(1, int(strength * len(pieces)))):
        at = rng.randrange(len(pieces) - 1)
        if rng.random() < 0.5:
            pieces[at], pieces[at + 1] = pieces[at + 1], pieces[at]
        else:
            del pieces[at]
    return (" " if " " in text[:200] else "").join(pieces)


def collection(name: str, seed: int, n: int) -> list[Row]:
    """Ids and texts of `n` documents, of which about half repeat others exactly, nearly or in part."""
    rng, known, rows = random.Random(seed), sentences(name), list[Row]()
    for number in range(n):
        kind = rng.random() if rows else 1.0
        id_, text = rng.choice(rows) if rows else ("", "")
        if kind < 0.15:
            text = f"  {text.upper()} "
        elif kind < 0.5 and len(text) > 20:
            text = edited(text, rng, rng.choice([0.01, 0.03, 0.1]))
        elif kind < 0.54:
            rows.append((id_, text if rng.random() < 0.5 else text + " again"))
            continue
        elif kind < 0.58:
            text = rng.choice(["", " \n", "short", "短文", "short"])
        else:
            # Few different sentences, so that unlike documents share passages, and bands fill up.
            text = " ".join(rng.sample(known, 6))
        rows.append((f"{name[:2]}-{number}", text))
    return rows


ENGLISH = collection("english.jsonl", 1, 220)
CHINESE = collection("chinese.jsonl", 2, 220)


def write_inputs(folder: Path) -> list[str]:
    """A JSONL file, with rows that are broken, and a Parquet file; returns their names."""
    lines = [json.dumps({"id": id_, "text": text, "n": n}, ensure_ascii=False) for n, (id_, text) in enumerate(ENGLISH)]
    lines.insert(40, "{broken")
    lines.insert(100, '{"id": "en-1"}')
    lines.insert(120, "")
    (folder / "en.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = pa.table({"id": [id_ for id_, _ in CHINESE], "text": [text for _, text in CHINESE]})
    pq.write_table(table, folder / "zh.parquet", row_group_size=50)
    return [str(folder / "en.jsonl"), str(folder / "zh.parquet")]


def request(inputs: list[str], output: Path, **more: Any) -> Request:
    whole = Request(
        inputs=inputs, output=str(output), method="first", threshold=None, normaliser="nfkc-lower/1", kept=None,
        dropped=None, fields=Fields(), resume=False, part_rows=PART_ROWS, workers=0, quiet=True,
    )  # fmt: skip
    return replace(whole, **more)


def run(inputs: list[str], output: Path, **more: Any) -> list[dict[str, Any]]:
    deduplicate(request(inputs, output, **more), load_settings())
    return verdicts(output)


def verdicts(output: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(output.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a finished run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def by_rules(rules: Callable[[Collection], list[Answer]], parameters: SignatureParameters) -> list[Answer]:
    """What the rules in plain Python say to the readable rows of both inputs."""
    rows = ENGLISH + CHINESE
    numbers = {id_: number for number, id_ in enumerate(dict.fromkeys(id_ for id_, _ in rows))}
    signatures = sign(TextBatch.from_bytes([text.encode() for _, text in rows]), parameters)
    return rules(Collection(np.array([numbers[id_] for id_, _ in rows]), signatures))


def as_answers(found: list[dict[str, Any]]) -> list[Answer]:
    """Verdicts of readable rows in the form of the rules."""
    answers: list[Answer] = []
    first: dict[str, int] = {}
    readable = [row for row in found if row["error"] is None or row["error"].startswith("ID_REUSED")]
    for number, row in enumerate(readable):
        first.setdefault(row["id"], number)
        if row["error"] is not None:
            assert row["keep"] is row["duplicate_of"] is row["similarity"] is row["exact"] is None
            answers.append(("reused", -1, 0.0, False, 0))
        elif row["keep"]:
            assert row["duplicate_of"] is row["similarity"] is None
            answers.append(("keep", -1, 0.0, row["exact"], row["bands_met"]))
        else:
            named = first[row["duplicate_of"]]
            answers.append(("duplicate", named, row["similarity"], row["exact"], row["bands_met"]))
    return answers


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize(("method", "rules"), [("first", expected), ("components", connected)])
def test_the_answers_are_those_of_the_rules(
    method: str,
    rules: Callable[[Collection], list[Answer]],
    threshold: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameters = SignatureParameters() if threshold is None else SignatureParameters.for_threshold(threshold)
    # Several tasks in every stage.
    monkeypatch.setattr(dedup_tasks, "UNIT_BYTES", 10_000)
    monkeypatch.setattr(dedup_tasks, "GROUP_ROWS", 100)
    found = run(write_inputs(tmp_path), tmp_path / "out", method=method, threshold=threshold)
    if method == "components":
        monkeypatch.setattr("tests.unit.test_offline.THRESHOLD", parameters.threshold)
    assert as_answers(found) == by_rules(rules, parameters)
    kinds = {(row["keep"], row["exact"], row["error"] is None) for row in found}
    assert kinds == {(True, False, True), (False, True, True), (False, False, True), (None, None, False)}


def test_the_answers_are_those_of_the_index(tmp_path: Path) -> None:
    found = run(write_inputs(tmp_path), tmp_path / "out")
    readable = [row for row in found if row["error"] is None or row["error"].startswith("ID_REUSED")]
    rows = ENGLISH + CHINESE
    parameters = SignatureParameters()
    with (
        EmbeddedRedis(tmp_path / "redis") as server,
        contextlib.closing(connect(server.url)) as client,
        contextlib.closing(DuplicateStore(client, parameters)) as store,
    ):
        for row, (id_, text) in zip(readable, rows, strict=True):
            signed = sign(TextBatch.from_bytes([text.encode()]), parameters)
            answer = store.check_and_insert("whole", [id_], signed, np.ones(1, dtype=np.bool_))
            assert answer.reused_id[0] == (row["error"] is not None)
            if not answer.reused_id[0]:
                online = (answer.duplicate_of[0], answer.similarity[0], answer.exact[0], answer.bands_met[0])
                similarity = np.float32(row["similarity"] or 0.0)
                assert online == (row["duplicate_of"], similarity, row["exact"], row["bands_met"])


def test_every_row_has_its_place_and_broken_ones_their_reason(tmp_path: Path) -> None:
    found = run(write_inputs(tmp_path), tmp_path / "out")
    english, chinese = found[: len(ENGLISH) + 2], found[len(ENGLISH) + 2 :]
    assert [row["file"] for row in english] == [str(tmp_path / "en.jsonl")] * len(english)
    assert [row["row"] for row in english] == [row for row in range(1, len(english) + 2) if row != 121]
    assert [row["row"] for row in chinese] == list(range(1, len(CHINESE) + 1))
    assert english[40]["error"] == "MALFORMED_ROW: The row is not valid JSON."
    assert english[40]["id"] == "en.jsonl:41"
    assert english[100]["error"] == "MALFORMED_ROW: The field 'text' is missing."
    assert [row["id"] for row in chinese] == [id_ for id_, _ in CHINESE]


def test_the_report_counts_the_verdicts(tmp_path: Path) -> None:
    found = run(write_inputs(tmp_path), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert not (tmp_path / "out" / "work").exists()
    ids = [row["id"] for row in found if row["error"] is None]
    assert len(ids) > len(set(ids))
    sizes: dict[str, int] = {}
    named: set[str] = set()
    for row in found:
        if row["error"] is None and row["id"] not in named:
            named.add(row["id"])
            head = row["id"] if row["keep"] else row["duplicate_of"]
            sizes[head] = sizes.get(head, 0) + 1
    assert report["documents"] == len(found)
    assert report["kept"] == sum(row["keep"] is True for row in found)
    assert report["errors"] == sum(row["error"] is not None for row in found)
    assert report["share_removed"] == sum(row["keep"] is False for row in found) / len(ids)
    assert report["exact"] + report["near"] == len(named) - len(sizes)
    assert sum(report["errors_by_code"].values()) == report["errors"]
    assert report["repeated_ids"]["kept"] + report["repeated_ids"]["dropped"] == len(ids) - len(named)
    for line in report["cluster_sizes"]:
        inside = [size for size in sizes.values() if line["from"] <= size <= line["to"]]
        assert (line["clusters"], line["documents"]) == (len(inside), sum(inside))
    assert sum(line["documents"] for line in report["cluster_sizes"]) == len(named)
    top = sorted((size for size in sizes.values() if size > 1), reverse=True)[:LARGEST]
    assert [cluster["documents"] for cluster in report["largest_clusters"]] == top
    assert all(sizes[cluster["id"]] == cluster["documents"] for cluster in report["largest_clusters"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_kept_and_dropped_rows_are_the_input_rows(kind: str, tmp_path: Path) -> None:
    inputs = [name for name in write_inputs(tmp_path) if name.endswith(kind)]
    places = {"kept": str(tmp_path / "kept"), "dropped": str(tmp_path / "dropped")}
    found = run(inputs, tmp_path / "out", **places)
    for name, keep in (("kept", True), ("dropped", False)):
        # What is kept is written once, though its id comes again.
        first = {row["id"]: row["row"] for row in reversed(found) if row["error"] is None}
        numbers = [row["row"] for row in found if row["keep"] is keep and (not keep or row["row"] == first[row["id"]])]
        assert len(numbers) < sum(row["keep"] is keep for row in found) or not keep
        parts = sorted((tmp_path / name).iterdir())
        assert [part.stem for part in parts] == [part.stem for part in sorted((tmp_path / "out").glob("part-*"))]
        if kind == "parquet":
            table = pa.concat_tables([pq.read_table(part) for part in parts])
            assert table.equals(pq.read_table(inputs[0]).take([number - 1 for number in numbers]))
        else:
            lines = Path(inputs[0]).read_bytes().splitlines(keepends=True)
            assert b"".join(part.read_bytes() for part in parts) == b"".join(lines[number - 1] for number in numbers)


def test_one_input_or_many_small_ones_give_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_tasks, "UNIT_BYTES", 3_000)
    lines = [json.dumps({"id": id_, "text": text}) for id_, text in ENGLISH]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    names = []
    for number, begin in enumerate(range(0, len(lines), 7)):
        names.append(str(tmp_path / f"{number:03d}.jsonl"))
        Path(names[-1]).write_text("\n".join(lines[begin : begin + 7]))
    (tmp_path / "empty.jsonl").write_text("")
    whole = run([str(tmp_path / "all.jsonl")], tmp_path / "one", part_rows=10_000)
    pieces = run([*names[:9], str(tmp_path / "empty.jsonl"), *names[9:]], tmp_path / "many")
    wanted = ("id", "keep", "duplicate_of", "similarity", "exact", "bands_met", "error")
    assert [[row[name] for name in wanted] for row in pieces] == [[row[name] for name in wanted] for row in whole]


def test_no_rows_at_all_make_an_empty_report(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert run([str(tmp_path / "empty.jsonl")], tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "report.json").read_text())["documents"] == 0


def test_a_folder_is_continued_with_the_same_inputs_and_parameters_only(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    before = run(inputs, tmp_path / "out")
    with pytest.raises(ConfigError, match="add --resume to continue it"):
        run(inputs, tmp_path / "out")
    assert run(inputs, tmp_path / "out", resume=True) == before
    for other in ({"threshold": 0.8}, {"method": "components"}, {"normaliser": "lower/1"}, {"part_rows": 65}):
        with pytest.raises(ConfigError, match=r"was started with other .*; give the same, or another folder\."):
            run(inputs, tmp_path / "out", resume=True, **other)
    with Path(inputs[0]).open("a") as file:
        file.write("{}\n")
    with pytest.raises(ConfigError, match="was started with other inputs"):
        run(inputs, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"output": "out.parquet"}, "must be a folder"),
        ({"inputs": ["-"]}, "can be read only once"),
        ({"threshold": 0.01}, "Give other parameters"),
        ({"normaliser": "none"}, "Give other parameters"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)[:1]
    with pytest.raises(ConfigError, match=sentence):
        deduplicate(replace(request(inputs, tmp_path / "out"), **change), load_settings())
    assert not (tmp_path / "out").exists()


class Cli:
    """Runs `dqs dedup` as a person does."""

    def __init__(self, inputs: list[str], output: Path, *options: str) -> None:
        self.output = output
        self.arguments = [*inputs, "--output", str(output), "--part-rows", str(PART_ROWS), *options]

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dqs.cli", "dedup", *self.arguments, *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        _, err = process.communicate(timeout=WAIT_S)
        return process.returncode, err.decode()

    def kill_at(self, files: int, *options: str) -> bool:
        """Kills it as soon as its folder has seen so many files; returns whether it was killed before its end."""
        process = self.start(*options)
        seen = set[Path]()
        begin_s = time.monotonic()
        while process.poll() is None and len(seen) < files:
            # A walk, because folders vanish while it goes on.
            seen.update(Path(place, name) for place, _, names in os.walk(self.output) for name in names)
            assert time.monotonic() < begin_s + WAIT_S
        process.kill()
        process.communicate()
        return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 10))])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    inputs = write_inputs(tmp_path)
    method = ("--method", rng.choice(["first", "components"]))
    whole = Cli(inputs, tmp_path / "whole", *method, "--workers", "0")
    status, said = whole.run()
    assert status == 1, said  # some rows are broken
    assert "removed" in said
    cli = Cli(inputs, tmp_path / "out", *method, "--workers", "0", "--resume")
    killed = sum(cli.kill_at(rng.randrange(1, 150)) for _ in range(2))
    assert killed == 2
    status, said = cli.run("--quiet")
    assert (status, said) == (1, "")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    cli = Cli(write_inputs(tmp_path), tmp_path / "out", "--workers", "0")
    process = cli.start()
    wait_for((tmp_path / "out" / "work" / "sign").exists, "the run has begun")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert said.decode().endswith("dqs: interrupted; the same command with --resume continues.\n")
    assert cli.run("--resume")[0] == 1


@pytest.mark.slow
def test_workers_that_are_killed_leave_what_one_process_would_have_written(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    kept = "--kept", str(tmp_path / "kept")
    run(inputs[:1], tmp_path / "whole", kept=str(tmp_path / "whole-kept"))
    cli = Cli(inputs[:1], tmp_path / "out", "--workers", "2", "--resume", *kept)
    assert cli.kill_at(40)
    status, said = cli.run()
    assert status == 1, said
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert contents(tmp_path / "kept") == contents(tmp_path / "whole-kept")


def fail_at_three(_: str, item: int) -> int:
    if item == 3:
        raise ConfigError("The third fails.")
    return item


def die_once(folder: str, item: int) -> int:
    try:
        Path(folder, str(item)).touch(exist_ok=False)
    except FileExistsError:
        return item
    os._exit(9)


def die_always(_: str, item: int) -> int:
    os._exit(item)


@pytest.mark.slow
def test_tasks_that_fail_end_with_a_sentence_and_dead_workers_are_made_up_for(tmp_path: Path) -> None:
    code = (
        "from contextlib import closing\n"
        "from dqs.errors import ConfigError\n"
        "from dqs.executors.ray_tasks import Tasks\n"
        "from dqs.settings import load_settings\n"
        "from tests.cluster import test_dedup as tasks\n"
        "with closing(Tasks(2, None, None, load_settings().data_dir)) as runner:\n"
        f"    print(sorted(runner.run(tasks.die_once, {str(tmp_path)!r}, [5, 6])))\n"
        "    for function in (tasks.fail_at_three, tasks.die_always):\n"
        "        try: print(list(runner.run(function, '', [1, 2, 3])))\n"
        "        except ConfigError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["[(0, 5), (1, 6)]", "The third fails."]
    assert lines[2].startswith("A task's worker died 4 times (WorkerCrashedError): ")
