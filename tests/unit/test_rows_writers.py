"""Writing rows: what a reader gets back, and that nothing half-written ever carries the final name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqs.data import Label, Missing, Reason
from dqs.errors import ConfigError, DocumentError, DocumentErrorCode
from dqs.rows.manifest import Manifest, Part, identify
from dqs.rows.outputs import FileOutputs, Folder, PartOutputs, Targets, plan_targets, read_parts
from dqs.rows.readers import Position, Rows, open_sources
from dqs.rows.summary import Summary
from dqs.rows.table import Answers, score_schema, score_table
from dqs.rows.writers import AtomicFile, open_table

SIGNALS = ["perplexity", "toxicity", "words", "duplicate_similarity", "exact_duplicate"]
SCHEMA = score_schema(SIGNALS, "default@1")


def three_rows() -> tuple[Rows, pa.RecordBatch]:
    """A kept Chinese row, a broken one, a dropped English one."""
    rows = Rows(0, "folder/a.jsonl", lines=['{"text": "好"}'.encode(), b"{", b'{"text": "bad"}'])
    rows.add(1, "甲", "好".encode(), "zh", None)
    rows.add(3, "a.jsonl:3", b"", "", DocumentError(DocumentErrorCode.MALFORMED_ROW, "The row is not valid JSON."))
    rows.add(4, "b", b"bad", "", None)
    answers = Answers(
        labels=np.array([Label.KEEP, Label.DROP], np.int8),
        reasons=[(), (Reason("toxic", "toxicity", 0.75, ">", 0.5),)],
        languages=["zh", "en"],
        signals={
            "perplexity": np.array([np.nan, 123.456], np.float32),
            "toxicity": np.array([0.1, 0.75], np.float32),
            "words": np.array([1, 2], np.float32),
            "duplicate_similarity": np.array([0, np.inf], np.float32),
            "exact_duplicate": np.array([0, 1], np.float32),
        },
        missing={
            "perplexity": np.array([Missing.TOO_SHORT, 0], np.uint8),
            "toxicity": np.array([0, 0], np.uint8),
            "duplicate_similarity": np.array([Missing.NOT_ASKED, Missing.UNAVAILABLE], np.uint8),
        },
        toxicity_span=np.array([[-1, -1], [0, 3]], np.int32),
        duplicate_of=[None, "甲"],
        errors=[None, None],
    )
    return rows, score_table(rows, answers, SCHEMA)


def test_a_scored_table_has_nulls_and_never_nan() -> None:
    _, table = three_rows()
    first, broken, last = table.to_pylist()
    assert broken.pop("error") == "MALFORMED_ROW: The row is not valid JSON."
    assert {name for name, value in broken.items() if value is not None} == {"id", "file", "row"}
    assert first["label"] == "keep"
    assert first["perplexity"] is None
    assert first["reasons"] == []
    assert last["reasons"] == ["toxic"]
    assert last["explanations"] == ["toxic: toxicity 0.75 > 0.5"]
    assert last["duplicate_similarity"] is None  # not finite
    assert last["exact_duplicate"] is True
    assert first["toxicity_span"] is None
    assert last["toxicity_span"] == [0, 3]
    assert dict(first["missing"]) == {"perplexity": "too_short", "duplicate_similarity": "not_asked"}
    assert dict(last["missing"]) == {"duplicate_similarity": "unavailable"}
    assert [row["row"] for row in table.to_pylist()] == [1, 3, 4]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.zst"])
def test_jsonl_holds_what_parquet_holds(tmp_path: Path, name: str) -> None:
    _, table = three_rows()
    writer = open_table(str(tmp_path / name), SCHEMA)
    writer.write(table)
    writer.commit()
    data = (tmp_path / name).read_bytes()
    if name.endswith(".zst"):
        data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    lines = data.decode().splitlines()
    assert '"toxicity": 0.1,' in lines[0]  # the shortest number that is the same float32
    assert '"id": "甲"' in lines[0]
    back = pa.Table.from_pylist([json.loads(line) for line in lines], schema=SCHEMA)
    assert back.equals(pa.Table.from_batches([table]))


def targets(folder: Path, *, parts: bool = False) -> Targets:
    if parts:
        return Targets(str(folder / "scores"), str(folder / "kept"), str(folder / "dropped"), True, None)
    return Targets(str(folder / "s.parquet"), str(folder / "k.jsonl"), str(folder / "d.jsonl"), False, None)


def test_kept_and_dropped_rows_are_written_as_they_were(tmp_path: Path) -> None:
    outputs = FileOutputs(targets(tmp_path), SCHEMA)
    outputs.write(*three_rows())
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    outputs.finish()
    outputs.abort()
    assert (tmp_path / "k.jsonl").read_text() == '{"text": "好"}\n'
    assert (tmp_path / "d.jsonl").read_text() == '{"text": "bad"}\n'
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "k.jsonl", "s.parquet"]


def test_an_aborted_run_leaves_nothing_and_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("older")
    outputs = FileOutputs(targets(tmp_path), SCHEMA)
    outputs.write(*three_rows())
    outputs.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]
    assert (tmp_path / "s.parquet").read_text() == "older"


def test_two_runs_may_not_write_one_file(tmp_path: Path) -> None:
    first = AtomicFile(tmp_path / "x")
    with pytest.raises(ConfigError, match="is being written by another process"):
        AtomicFile(tmp_path / "x")
    first.abort()
    AtomicFile(tmp_path / "x").abort()


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").write_text("half of something much longer")
    file = AtomicFile(tmp_path / "x")
    file.file.write(b"whole")
    file.commit()
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^Output .* cannot be written: Not a directory\.$"):
        open_table(str(tmp_path / "file" / "x.jsonl"), SCHEMA)


def test_parts_and_manifest(tmp_path: Path) -> None:
    where = targets(tmp_path, parts=True)
    manifest = Manifest({"policy": "default@1"}, "run-1")
    outputs = PartOutputs(where, SCHEMA, manifest, part_rows=3)
    outputs.write(*three_rows())
    loaded = Manifest.load(tmp_path / "scores")
    assert loaded is not None
    assert (loaded.end, loaded.complete, loaded.corpus) == (Position(0, 4, 3), False, "run-1")
    outputs.write(*three_rows())
    outputs.finish()
    loaded = Manifest.load(tmp_path / "scores")
    assert loaded is not None
    assert loaded.complete
    total = loaded.summary()
    assert (total.rows, total.errors, dict(total.labels)) == (6, 2, {"keep": 2, "drop": 2})
    assert dict(total.rules) == {"toxic": 2}
    assert Summary.from_json(json.loads(json.dumps(total.as_json()))) == total
    parts = read_parts(tmp_path / "scores", loaded.parts, ["row"])
    assert [row for batch in parts for row in batch.column("row").to_pylist()] == [1, 3, 4] * 2
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["part-00000.jsonl", "part-00001.jsonl"]


def test_a_resumed_run_must_be_the_same_run(tmp_path: Path) -> None:
    manifest = Manifest({"policy": "default@1", "language": ""}, None)
    manifest.check_same({"policy": "default@1", "language": ""}, tmp_path)
    with pytest.raises(ConfigError, match="started with other language, models;"):
        manifest.check_same({"policy": "default@1", "language": "en", "models": []}, tmp_path)


def test_a_damaged_manifest_or_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "run": {}')
    with pytest.raises(ConfigError, match="cannot be read"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="is of format 99"):
        Manifest.load(tmp_path)
    pq.write_table(pa.table({"row": [1]}), tmp_path / "part-00000.parquet")
    part = Part("part-00000.parquet", Position(0, 2, 2), Summary(rows=2))
    with pytest.raises(ConfigError, match="is not the file that the manifest describes"):
        list(read_parts(tmp_path, [part], ["row"]))


def test_parts_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    where = targets(tmp_path, parts=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "part-00007.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds parts of another run"):
        PartOutputs(where, SCHEMA, Manifest({}, None), 3)


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    with pytest.raises(ConfigError, match="is being written by another process"):
        Folder(tmp_path / "out")
    folder.close()
    Folder(tmp_path / "out").close()


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    before = identify(open_sources([str(path)]))
    assert identify(open_sources([str(path)])) == before
    path.write_text('{"text": "b"}\n')
    assert identify(open_sources([str(path)])) != before


def test_names_of_outputs_are_checked_before_any_work(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text('{"text": "a"}\n')
    pq.write_table(pa.table({"text": ["a"]}), table)
    pq.write_table(pa.table({"text": ["a"], "more": [1]}), tmp_path / "b.parquet")
    jsonl, parquet = open_sources([str(lines)]), open_sources([str(table)])
    cases = [
        (("o.csv", None, None, jsonl), "unknown ending"),
        (("o.parquet", "o.parquet", None, jsonl), "have the same name"),
        ((str(lines), None, None, jsonl), "have the same name"),
        (("o.jsonl", "k.parquet", None, jsonl), "its ending must be .jsonl"),
        (("o.jsonl", "k.jsonl", None, parquet), "its ending must be .parquet"),
        (("o.jsonl", None, "d.jsonl", [*jsonl, *parquet]), "not both"),
        (("o.jsonl", None, "d.parquet", open_sources([str(table), str(tmp_path / "b.parquet")])), "other columns"),
        (("folder", "k.jsonl", None, jsonl), "must be a folder"),
    ]
    for arguments, expected in cases:
        with pytest.raises(ConfigError) as caught:
            plan_targets(*arguments)
        assert expected in caught.value.message
    assert plan_targets("folder", "kept/", None, jsonl).folder
    assert not plan_targets("-", None, None, jsonl).folder
