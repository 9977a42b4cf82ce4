"""`dqs corpus` as a person runs it: directly in Redis, in the private one, and through a service."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqs.index.redis_store import DuplicateStore, connect
from dqs.index.signature import sign
from dqs.server.tenants import new_token
from dqs.text import TextBatch
from tests.service.conftest import SMALL_LIMITS
from tests.service.serving import CHINESE, ENGLISH, LocalServer, Redis
from tests.service.test_cli_commands import WAIT_S, assert_one_sentence, dqs, dqs_here, environment
from tests.service.test_corpora import text_of

CORPUS = "语料 1"


def keep(url: str, corpus: str, documents: list[tuple[str, str]], tenant: str = "default") -> None:
    """Keeps documents, as scoring would."""
    with closing(DuplicateStore(connect(url), tenant=tenant)) as store:
        signatures = sign(TextBatch.from_bytes([text.encode() for _, text in documents]), store.parameters(corpus))
        everything = np.ones(len(documents), dtype=np.bool_)
        store.check_and_insert(corpus, [document for document, _ in documents], signatures, everything)


@pytest.fixture
def filled(redis: Redis) -> Redis:
    """An index with 602 documents of one corpus, a tenth of which are too short for a sketch."""
    documents = [(f"文{i}", text_of(i)) for i in range(600)]
    keep(redis.url, CORPUS, [("en", ENGLISH), ("zh", CHINESE), *documents, ("copy", ENGLISH)])
    return redis


@pytest.fixture(params=[pytest.param("redis", marks=pytest.mark.slow), "server"])
def place(request: pytest.FixtureRequest, filled: Redis) -> Iterator[list[str]]:
    """Options that name the index: in Redis, or through a service in front of it."""
    if request.param == "redis":
        yield ["--redis", filled.url]
        return
    with LocalServer(redis_url=filled.url, **SMALL_LIMITS) as server:
        yield ["--server", server.address]


def run(folder: Path, *arguments: object, status: int = 0) -> str:
    """Standard output of a command that ends with this status."""
    code, out, err = dqs_here(folder, "corpus", *arguments)
    assert code == status, err
    return out


def ask(folder: Path, *arguments: object) -> Any:
    """What a command prints as JSON."""
    return json.loads(run(folder, *arguments, "--json"))


def test_the_life_of_a_corpus(tmp_path: Path, place: list[str]) -> None:
    made = ("create", "neu 新", "--threshold", "0.8", "--normaliser", "lower/1", "--window-days", "2", *place)
    assert run(tmp_path, *made).startswith("neu 新: made, threshold 0.8, ")
    assert "is there already" in run(tmp_path, *made)
    code, out, err = dqs_here(tmp_path, "corpus", *made[:2], "--threshold", "0.9", *place)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "threshold 0.8 (here 0.9)" in err
    assert "window_s\tfor ever" in run(tmp_path, "configure", "neu 新", "--window-seconds", "0", *place)

    listed = ask(tmp_path, "list", *place)
    assert [(row["corpus"], row["documents"]) for row in listed] == [("neu 新", 0), (CORPUS, 602)]
    plain = run(tmp_path, "list", *place).splitlines()
    assert plain[1].split("\t")[:2] == [CORPUS, "602"]

    shown = ask(tmp_path, "show", CORPUS, *place)
    assert shown["parameters"]["threshold"] == 0.75
    assert (shown["documents"], shown["sketched"], shown["retries"]) == (602, 542, 1)
    assert shown["counters"]["hit_rate"] == 1 / 603
    parts = [shown["memory"][name] for name in ("lsh", "record", "id", "retries", "lines")]
    assert shown["memory"]["total"] == sum(parts)
    assert shown["memory"]["lsh_per_document_and_band"] > 8
    assert "hit rate\t0.17%" in run(tmp_path, "show", CORPUS, *place)

    found = ask(tmp_path, "find", CORPUS, "copy", "文0", "nobody", *place)
    assert [(row["state"], row["duplicate_of"]) for row in found] == [
        ("exact duplicate", "en"), ("kept", None), ("unknown", None),
    ]  # fmt: skip

    (tmp_path / "ids").write_text("\ufeff文0\r\n文1\n\nnobody\n", "utf-8")
    assert "2 of 3 ids were known" in run(tmp_path, "delete", CORPUS, "--file", "ids", "--yes", *place)
    assert "1 of 1 ids were known" in run(tmp_path, "delete", CORPUS, "zh", "-y", *place)
    assert [row["state"] for row in ask(tmp_path, "find", CORPUS, "文1", "zh", "en", *place)] == [
        "unknown", "unknown", "kept",
    ]  # fmt: skip

    code, out, err = dqs_here(tmp_path, "corpus", "drop", CORPUS, "-y", *place)
    assert (code, out) == (0, f"{CORPUS}: dropped with 599 documents\n")
    assert "append-only file" in err
    code, out, err = dqs_here(tmp_path, "corpus", "drop", CORPUS, *place)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert [row["corpus"] for row in ask(tmp_path, "list", *place)] == ["neu 新"]


@pytest.mark.slow
def test_an_export_goes_through_a_file_both_ways(tmp_path: Path, filled: Redis) -> None:
    with LocalServer(redis_url=filled.url, **SMALL_LIMITS) as server:
        direct, remote = ["--redis", filled.url], ["--server", server.address]
        for name, way in (("direct", direct), ("remote", remote)):
            assert "602 documents" in run(tmp_path, "export", CORPUS, f"{name}.parquet", *way)
        one, other = pq.read_table(tmp_path / "direct.parquet"), pq.read_table(tmp_path / "remote.parquet")
        assert "602 documents imported" in run(tmp_path, "import", "远", "direct.parquet", *remote)
        assert "602 documents imported" in run(tmp_path, "import", "近", "remote.parquet", *direct)
        code, out, err = dqs_here(tmp_path, "corpus", "import", "远", "remote.parquet", *direct)
        run(tmp_path, "export", "远", "again.parquet", *direct)
        run(tmp_path, "export", "远", "again.parquet", *direct, status=2)

    assert one.equals(other)
    assert one.schema.names == ["id", "seconds", "text_hash", "lines_seen", "bands", "sketch"]
    assert one["id"].to_pylist()[:3] == [b"en", b"zh", "文0".encode()]
    assert one["sketch"].null_count == one["bands"].null_count == 60
    assert abs(one["seconds"][0].as_py() - time.time()) < 300
    head = json.loads(one.schema.metadata[b"dqs.corpus"])
    assert (head["format"], head["corpus"], head["documents"]) == (1, CORPUS, 602)
    assert head["parameters"]["threshold"] == 0.75
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    again = pq.read_table(tmp_path / "again.parquet")
    without_times = [name for name in one.schema.names if name != "seconds"]
    assert again.select(without_times).equals(one.select(without_times))


@pytest.mark.slow
def test_a_broken_import_goes_on(tmp_path: Path, filled: Redis) -> None:
    way = ["--redis", filled.url]
    run(tmp_path, "export", CORPUS, "whole.parquet", *way)
    whole = pq.read_table(tmp_path / "whole.parquet")
    spoilt = whole["sketch"].to_pylist()
    spoilt[-1] = b"short"
    column = whole.schema.get_field_index("sketch")
    pq.write_table(whole.set_column(column, "sketch", pa.array(spoilt, pa.binary())), tmp_path / "spoilt.parquet")
    code, out, err = dqs_here(tmp_path, "corpus", "import", "neu", "spoilt.parquet", *way)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    done = run(tmp_path, "import", "neu", "whole.parquet", *way)
    # Pieces are of 256 documents; the last one was spoilt.
    assert done == "neu: 90 documents imported, 512 were there already\n"
    assert ask(tmp_path, "show", "neu", *way)["counters"]["imported"] == 602


@pytest.mark.parametrize("kind", ["missing", "text", "other"])
def test_what_is_no_export_is_refused(tmp_path: Path, redis: Redis, kind: str) -> None:
    if kind == "text":
        (tmp_path / "in.parquet").write_text("no Parquet")
    elif kind == "other":
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    code, out, err = dqs_here(tmp_path, "corpus", "import", "neu", "in.parquet", "--redis", redis.url)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "in.parquet" in err
    assert redis.key_names() == []


def test_an_export_that_fails_leaves_no_file(tmp_path: Path, redis: Redis) -> None:
    code, _, err = dqs_here(tmp_path, "corpus", "export", "none", "out.parquet", "--redis", redis.url)
    assert code == 2
    assert "there is no corpus none" in err
    keep(redis.url, "some", [("en", ENGLISH)])
    code, _, err = dqs_here(tmp_path, "corpus", "export", "some", "-", "--redis", redis.url)
    assert code == 2
    assert_one_sentence(err)
    code, _, err = dqs_here(tmp_path, "corpus", "export", "some", "no/folder.parquet", "--redis", redis.url)
    assert code == 2
    assert_one_sentence(err)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == []


def test_tenants_and_tokens(tmp_path: Path, redis: Redis) -> None:
    keep(redis.url, "alphas", [("en", ENGLISH)], tenant="alpha")
    keep(redis.url, "everybodys", [("en", ENGLISH)])
    tokens = tmp_path / "tokens.toml"
    (tmp_path / "token").write_text(new_token(tokens, "alpha"))
    (tmp_path / "token").chmod(0o600)
    with LocalServer(redis_url=redis.url, tokens=tokens, **SMALL_LIMITS) as server:
        remote = ["--server", server.address]
        with_token = ask(tmp_path, "list", *remote, "--token-file", "token")
        _, _, without = dqs_here(tmp_path, "corpus", "list", *remote)
        _, _, both = dqs_here(tmp_path, "corpus", "list", *remote, "--tenant", "alpha")
    assert [row["corpus"] for row in with_token] == ["alphas"]
    assert "--token-file" in without
    assert "leave out" in both
    assert [row["corpus"] for row in ask(tmp_path, "list", "--redis", redis.url, "--tenant", "alpha")] == ["alphas"]
    assert [row["corpus"] for row in ask(tmp_path, "list", "--redis", redis.url)] == ["everybodys"]


def test_the_private_redis_forgets_on_disk_before_it_ends(tmp_path: Path) -> None:
    code, out, err = dqs(tmp_path, "corpus", "create", "privat")
    assert (code, "made" in out) == (0, True), err
    name = b"privat"
    folder = tmp_path / "data" / "redis"
    held = [path for path in folder.rglob("*") if path.is_file() and name in path.read_bytes()]
    assert held != []
    code, _, err = dqs(tmp_path, "corpus", "drop", "privat", "--yes")
    assert code == 0, err
    assert not [path for path in folder.rglob("*") if path.is_file() and name in path.read_bytes()]
    code, out, err = dqs(tmp_path, "corpus", "list", "--json")
    assert (code, json.loads(out)) == (0, []), err


def test_a_person_is_asked_first(tmp_path: Path, filled: Redis) -> None:
    """Answers no, then yes, at a terminal."""
    said = []
    for answer in (b"n\n", b"y\n"):
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "wb", buffering=0) as keyboard:
            process = subprocess.Popen(
                [sys.executable, "-m", "dqs.cli", "corpus", "drop", CORPUS, "--redis", filled.url],
                stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment(tmp_path),
            )  # fmt: skip
            os.close(theirs)
            keyboard.write(answer)
            out, _ = process.communicate(timeout=WAIT_S)
            said.append((process.returncode, out.decode()))
    assert said == [(2, ""), (0, f"{CORPUS}: dropped with 602 documents\n")]


@pytest.mark.parametrize("arguments", [("drop", CORPUS), ("delete", CORPUS, "en")])
def test_nothing_goes_without_a_yes_where_nobody_can_be_asked(
    tmp_path: Path, filled: Redis, arguments: tuple[str, ...]
) -> None:
    code, out, err = dqs(tmp_path, "corpus", *arguments, "--redis", filled.url)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
    assert "--yes" in err
    assert ask(tmp_path, "show", CORPUS, "--redis", filled.url)["documents"] == 602


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "none"),
        ("find", "none", "a"),
        ("delete", "none", "a"),
        ("configure", "none", "--line-slots", "0"),
        ("configure", "none"),
        ("delete", "none"),
        ("delete", "none", "a", "--file", "ids"),
        ("create", "a", "--window-documents", "99999999999999999999"),
        ("create", "x" * 257),
        ("create", "a", "--threshold", "2"),
        ("create", "a", "--window-days", "1", "--window-seconds", "1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path: Path, redis: Redis, arguments: tuple[str, ...]) -> None:
    code, out, err = dqs_here(tmp_path, "corpus", *arguments, "--redis", redis.url)
    assert (code, out) == (2, "")
    assert_one_sentence(err)
