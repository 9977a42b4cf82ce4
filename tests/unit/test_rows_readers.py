"""Reading rows: every kind of file, every kind of broken row, and batches that are cut the same way again."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqs.errors import ConfigError
from dqs.rows.readers import Cut, Fields, Position, Rows, Source, check_sources, open_sources, read_rows

SAMPLES = Path(__file__).parent.parent / "samples"
TEXTS = ["one two three", "四五六。", "", "seven\neight", "九" * 50]


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def read(paths: list[Path], fields: Fields | None = None, cut: Cut | None = None, **more: Any) -> list[Rows]:
    sources = open_sources([str(path) for path in paths])
    check_sources(sources, fields or Fields())
    return list(read_rows(sources, fields or Fields(), cut or Cut(), **more))


def errors_of(batches: list[Rows]) -> dict[int, str]:
    return {
        number: f"{error.code}: {error.message}"
        for rows in batches
        for number, error in zip(rows.numbers, rows.errors, strict=True)
        if error is not None
    }


def write(path: Path, data: bytes) -> Path:
    with pa.OSFile(str(path), "wb") as file:
        if path.suffix == ".gz":
            file.write(gzip.compress(data))
        elif path.suffix == ".zst":
            with pa.CompressedOutputStream(file, "zstd") as packed:
                packed.write(data)
        else:
            file.write(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, lines_of([{"text": text, "id": f"d{i}"} for i, text in enumerate(TEXTS)]))
    (rows,) = read([path], raw=True)
    assert rows.texts == [text.encode() for text in TEXTS]
    assert rows.ids == ["d0", "d1", "d2", "d3", "d4"]
    assert rows.numbers == [1, 2, 3, 4, 5]
    assert rows.errors == [None] * 5
    assert b"\n".join(rows.lines) + b"\n" == lines_of([{"text": t, "id": f"d{i}"} for i, t in enumerate(TEXTS)])


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_parquet_of_every_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([text or None for text in TEXTS]).cast(kind)
    pq.write_table(pa.table({"text": column, "id": [1, 2, 3, 4, 5], "rest": [0.5] * 5}), path, row_group_size=2)
    batches = read([path], raw=True)
    assert [text for rows in batches for text in rows.texts] == [text.encode() for text in TEXTS]
    assert [id_ for rows in batches for id_ in rows.ids] == ["1", "2", "3", "4", "5"]
    assert errors_of(batches) == {3: "MALFORMED_ROW: The field 'text' is null."}
    raw = pa.Table.from_batches([rows.table for rows in batches])
    assert raw.equals(pq.read_table(path))


def test_parquet_text_that_is_not_utf8_is_left_to_the_scorer(tmp_path: Path) -> None:
    data = pa.py_buffer(b"good\xff\xfe")
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 4, 6)))
    column = pa.StringArray.from_buffers(2, offsets, data)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    (rows,) = read([tmp_path / "a.parquet"])
    assert rows.texts == [b"good", b"\xff\xfe"]


def test_broken_rows_are_named_and_stop_nothing() -> None:
    batches = read([SAMPLES / "broken.jsonl"])
    assert errors_of(batches) == {
        2: "MALFORMED_ROW: The row is not valid JSON.",
        3: "MALFORMED_ROW: The row is not a JSON object.",
        4: "MALFORMED_ROW: The field 'text' is missing.",
        5: "MALFORMED_ROW: The field 'text' is not a string.",
        6: "MALFORMED_ROW: The field 'text' is not a string.",
        7: "INVALID_UTF8: The row is not valid UTF-8.",
        8: "INVALID_UTF8: The text holds a lone surrogate, which is no character.",
        9: "INVALID_ID: The id is neither a string nor a whole number.",
    }
    (rows,) = batches
    assert rows.ids[0] == "good-en"
    assert rows.ids[3] == "no-text"
    assert rows.ids[-2:] == ["broken.jsonl:12", "good-zh"]
    assert 11 not in rows.numbers  # a blank line is no row
    assert [document.id for document in rows.documents()] == ["good-en", "", "broken.jsonl:12", "good-zh"]


@pytest.mark.parametrize("line", [b"[" * 100_000, b"1" * 10_000, b'{"text": "x", "text": 1}', b"\x00", b"nul"])
def test_hostile_json_is_a_broken_row(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path / "a.jsonl", line + b"\n" + lines_of([{"text": "fine"}]))
    batches = read([path])
    assert list(errors_of(batches)) == [1]
    assert batches[0].texts[1] == b"fine"


def test_a_byte_order_mark_and_windows_line_ends_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    (rows,) = read([path])
    assert rows.texts == [b"a", b"b"]


def test_a_line_over_the_limit_is_not_held(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines_of([{"text": "x" * 5000}, {"text": "small"}]))
    (rows,) = read([path], cut=Cut(max_line_bytes=100))
    assert errors_of([rows]) == {1: "TOO_LARGE: The row has more than 100 bytes; split it."}
    assert rows.texts == [b"", b"small"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_cut_off_archive_ends_with_an_error_row(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{i} " + "text " * (i % 50)} for i in range(20_000)]
    path = write(tmp_path / name, lines_of(rows))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    batches = read([path])
    (where, message), *others = errors_of(batches).items()
    assert others == []
    assert where == batches[-1].numbers[-1] > 1
    assert message.startswith("MALFORMED_ROW: From this row on the input cannot be read")


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{i} " * 200 for i in range(300)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False, write_page_checksum=True)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = group.data_page_offset + group.total_compressed_size // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    batches = read([path])
    assert [number for rows in batches for number in rows.numbers] == list(range(1, 301))
    broken = errors_of(batches)
    assert set(broken) <= set(range(101, 201))
    assert "row group cannot be read" in broken[200]
    assert batches[-1].texts[-1] == texts[-1].encode()


def test_languages_of_rows(tmp_path: Path) -> None:
    codes = ["en", "zh-CN", "ZH_TW", None, "", "und", "English", 7]
    path = write(tmp_path / "a.jsonl", lines_of([{"text": "x", "lang": code} for code in codes]))
    (rows,) = read([path], Fields(language="lang"))
    assert rows.languages == ["en", "zh", "zh", "", "", "", "", ""]
    assert list(errors_of([rows])) == [7, 8]
    assert [document.language for document in rows.documents("de")] == ["en", "zh", "zh", "de", "de", "de"]


def test_default_ids_of_files_with_one_name_differ(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.jsonl", lines_of([{"text": folder}]))
    first, second = read([tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"])
    assert first.ids != second.ids
    (alone,) = read([tmp_path / "a" / "x.jsonl"])
    assert alone.ids == ["x.jsonl:1"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (Fields(text="txt"), "has no field 'txt'; it has: id, text. Name one with --text-field."),
        (Fields(id="key", id_asked=True), "has no field 'key'; it has: id, text. Name one with --id-field."),
        (Fields(language="lang"), "has no field 'lang'; it has: id, text. Name one with --language-field."),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_wrong_field_name_is_refused_before_any_work(
    tmp_path: Path, name: str, fields: Fields, expected: str
) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), path)
    else:
        write(path, lines_of([{"id": "x", "text": "y"}]))
    with pytest.raises(ConfigError) as caught:
        check_sources(open_sources([str(path)]), fields)
    assert expected in caught.value.message


def test_inputs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "no.parquet").write_text("not parquet")
    (tmp_path / "no.jsonl.gz").write_text("not gzip")
    pq.write_table(pa.table({"text": [1.5]}), tmp_path / "numbers.parquet")
    cases = {
        "absent.jsonl": "cannot be read: No such file",
        "a.csv": "unknown ending; known are: .jsonl",
        "no.parquet": "is no readable Parquet file",
        "no.jsonl.gz": "cannot be read",
        "numbers.parquet": "the column 'text' holds double, not strings",
        ".": "is a folder",
    }
    for name, expected in cases.items():
        with pytest.raises(ConfigError) as caught:
            check_sources(open_sources([str(tmp_path / name)]), Fields())
        assert expected in caught.value.message, name
    with pytest.raises(ConfigError, match="given twice"):
        open_sources(["-", "-"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(1, 100),
    st.sampled_from(["jsonl", "parquet"]),
)
def test_a_run_that_starts_at_a_part_boundary_sees_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    part_rows: int,
    batch_rows: int,
    batch_bytes: int,
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    half = len(sizes) // 2
    sources = []
    for name, some in (("a", sizes[:half]), ("b", sizes[half:])):
        path = folder / f"{name}.{kind}"
        if kind == "parquet":
            texts = pa.array(["x" * size for size in some], pa.string())
            pq.write_table(pa.table({"text": texts}), path, row_group_size=5)
        else:
            write(path, lines_of([{"text": "x" * size} for size in some]))
        sources.append(Source(str(path), path.name, kind, None))
    cut = Cut(batch_bytes=batch_bytes, batch_rows=batch_rows, part_rows=part_rows)
    batches = list(read_rows(sources, Fields(), cut))
    assert sum(map(len, batches)) == len(sizes)
    count = 0
    for at, rows in enumerate(batches):
        assert count // part_rows == (count + len(rows) - 1) // part_rows
        assert len(rows) <= batch_rows
        count += len(rows)
        if count % part_rows == 0:
            again = list(read_rows(sources, Fields(), cut, Position(rows.source, rows.numbers[-1], count)))
            assert [(r.ids, r.texts) for r in again] == [(r.ids, r.texts) for r in batches[at + 1 :]]


def test_a_name_that_is_not_utf8_gives_valid_ids(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_bytes(lines_of([{"text": "one"}]))
    (rows,) = read([path])
    assert rows.ids == [r"caf\xe9.jsonl:1"]


@pytest.mark.parametrize(
    ("code", "fits"), [("en", True), ("zh-Hans", True), ("und", True), ("eng", False), ("e", False)]
)
def test_only_two_letter_codes_name_a_language(tmp_path: Path, code: str, fits: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of([{"text": "one", "l": code}]))
    assert bool(errors_of(read([path], Fields(language="l")))) == (not fits)
