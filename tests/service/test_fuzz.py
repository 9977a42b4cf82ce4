"""Requests that are almost right: every one is answered or refused, and none hurts the server.

A mutation is made from a seed and a number, which stand in the message of a
failed test; `mutated(seed, number)` makes the same bytes again.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import pytest

from dqs.errors import DocumentError, DocumentErrorCode, DqsError
from dqs.server import wire
from dqs.server.codec import (
    Encoder,
    Limits,
    Piece,
    Request,
    parse_batch_request,
    parse_drop_corpus_request,
    parse_server_info_request,
    parse_stream_request,
)
from dqs.settings import load_settings
from dqs.v1 import corpus_pb2, server_info_pb2
from dqs.v1 import scoring_pb2 as pb
from tests.service.serving import CHINESE, ENGLISH, ServerProcess, raw_channel

LIMITS = Limits.of(load_settings(max_batch_documents=20))
NO_INDEX = pb.ScoreOptions(deduplication=pb.DEDUPLICATION_DISABLED)
SEQUENCE = 9
"""Of the valid stream messages; the numbers below are free for a message before."""
STREAM_ID = "0123456789abcdef"
IN_FLIGHT = 16
VARINT, FIXED_64, DELIMITED, START_GROUP, END_GROUP, FIXED_32 = range(6)
NUMBERS = (0, 1, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
STRINGS = (
    b"", b"x", b"\0", b"a\0b", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xf4\x90\x80\x80", b"\xe4\xb8",
    "﻿é‮".encode(), b"\n" * 50, b"x" * 600, b"x" * 70_000,
)  # fmt: skip
"""NULs, bytes that are not UTF-8, lone surrogates, control characters, lengths on both sides of limits."""


@dataclass
class Field:
    """A field of a message on the wire."""

    number: int
    kind: int
    value: bytes | list[Field]
    length: int | None = None
    """What stands as its length, where that is a lie."""

    def encode(self) -> bytes:
        value = self.value if isinstance(self.value, bytes) else b"".join(field.encode() for field in self.value)
        head = wire.tag(self.number, self.kind)
        if self.kind == DELIMITED:
            head += wire.varint(len(value) if self.length is None else self.length)
        return head + value


def fields_of(raw: bytes, nested: Mapping[int, Any]) -> list[Field]:
    """Takes a valid message apart.

    Args:
        raw: with fields of lengths and varints only, as all of our requests have.
        nested: which fields are messages, and which of theirs.
    """

    def varint(at: int) -> tuple[int, int]:
        number = shift = 0
        while raw[at] & 0x80:
            number |= (raw[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        return number | raw[at] << shift, at + 1

    fields = []
    at = 0
    while at < len(raw):
        tag, at = varint(at)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == VARINT:
            _, at = varint(at)
            fields.append(Field(number, kind, raw[start:at]))
        else:
            assert kind == DELIMITED
            size, start = varint(at)
            at = start + size
            part = raw[start:at]
            fields.append(Field(number, kind, fields_of(part, nested[number]) if number in nested else part))
    return fields


def valid_requests() -> list[tuple[bytes, dict[int, Any]]]:
    """Encoded requests of every method, and which of their fields are messages."""
    documents = [
        pb.Document(id="english", text=ENGLISH.encode(), language="en"),
        pb.Document(id="中文", text=CHINESE.encode(), source="a source"),
        pb.Document(id="empty"),
        pb.Document(id="broken", text=b"\xff\xfe"),
    ]
    options = pb.ScoreOptions(
        policy="default",
        corpus="fuzz",
        deduplication=pb.DEDUPLICATION_DISABLED,
        index_failure=pb.INDEX_FAILURE_DEGRADE,
        timings=True,
    )
    batch: dict[int, Any] = {1: {}, 2: {}}
    stream: dict[int, Any] = {1: {}, 3: {}}
    return [
        (pb.ScoreBatchRequest(options=options, documents=documents).SerializeToString(), batch),
        (pb.ScoreBatchRequest(options=NO_INDEX, documents=documents[:1] * 12).SerializeToString(), batch),
        (pb.ScoreStreamRequest(options=options, sequence=SEQUENCE, documents=documents).SerializeToString(), stream),
        (pb.ScoreStreamRequest(sequence=SEQUENCE, stream_id=STREAM_ID, acknowledged=3).SerializeToString(), stream),
        (pb.ScoreStreamRequest(sequence=SEQUENCE, documents=documents[:2]).SerializeToString(), stream),
        (corpus_pb2.DropCorpusRequest(corpus="fuzz").SerializeToString(), {}),
        (server_info_pb2.GetServerInfoRequest().SerializeToString(), {}),
    ]


VALID = valid_requests()


def mutated(seed: int, number: int) -> bytes:
    """A request made wrong in one to three ways."""
    chance = random.Random(seed << 32 | number)
    raw, nested = chance.choice(VALID)
    fields = fields_of(raw, nested)
    for _ in range(chance.randint(0, 2)):
        chance.choice(FIELD_MUTATIONS)(chance, fields)
    raw = b"".join(field.encode() for field in fields)
    if chance.random() < 0.5 or not fields:
        raw = chance.choice(BYTE_MUTATIONS)(chance, raw)
    return raw


def any_list(chance: random.Random, fields: list[Field]) -> list[Field]:
    """The message itself or one of those in it."""
    inner = [field.value for field in fields if isinstance(field.value, list)]
    return chance.choice([fields, *inner])


def lie_about_length(chance: random.Random, fields: list[Field]) -> None:
    for field in any_list(chance, fields)[:1]:
        field.length = chance.choice((*NUMBERS, chance.randrange(300)))


def change_wire_type(chance: random.Random, fields: list[Field]) -> None:
    inside = any_list(chance, fields)
    if inside:
        chance.choice(inside).kind = chance.randrange(8)


def repeat_field(chance: random.Random, fields: list[Field]) -> None:
    inside = any_list(chance, fields)
    if inside:
        inside[chance.randrange(len(inside)) : 0] = [chance.choice(inside)] * chance.choice((1, 2, 30))


def add_unknown_field(chance: random.Random, fields: list[Field]) -> None:
    number = chance.choice((0, chance.randrange(1, 8), 19_000, (1 << 29) - 1, 1 << 29, chance.randrange(1 << 34)))
    any_list(chance, fields).append(
        Field(number, chance.randrange(8), chance.randbytes(chance.choice((0, 1, 4, 8, 40))))
    )


def nest_deeply(chance: random.Random, fields: list[Field]) -> None:
    depth = chance.choice((1, 50, 99, 100, 101, 5_000))
    opened = wire.tag(chance.randrange(1, 100), START_GROUP) * depth
    closed = wire.tag(chance.randrange(1, 100), END_GROUP) * chance.choice((0, depth, depth + 1))
    any_list(chance, fields).append(Field(chance.randrange(1, 8), START_GROUP, opened + closed))


def put_huge_varint(chance: random.Random, fields: list[Field]) -> None:
    value = chance.choice(
        (wire.varint(chance.choice(NUMBERS)), b"\xff" * 9 + b"\x01", b"\xff" * 10 + b"\x01", b"\x80" * 30)
    )
    any_list(chance, fields).append(Field(chance.randrange(1, 8), VARINT, value))


def put_odd_string(chance: random.Random, fields: list[Field]) -> None:
    strings = [
        field for field in any_list(chance, fields) if isinstance(field.value, bytes) and field.kind == DELIMITED
    ]
    if strings:
        chance.choice(strings).value = chance.choice(STRINGS)


def flip_bits(chance: random.Random, raw: bytes) -> bytes:
    flipped = bytearray(raw)
    for _ in range(chance.randint(1, 8) if flipped else 0):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def cut(chance: random.Random, raw: bytes) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def splice(chance: random.Random, raw: bytes) -> bytes:
    other, _ = chance.choice(VALID)
    return raw[: chance.randrange(len(raw) + 1)] + other[chance.randrange(len(other) + 1) :]


def put_noise(chance: random.Random, raw: bytes) -> bytes:
    at = chance.randrange(len(raw) + 1)
    return raw[:at] + chance.randbytes(chance.randint(1, 40)) + raw[at + chance.randrange(20) :]


FIELD_MUTATIONS: tuple[Callable[[random.Random, list[Field]], None], ...] = (
    lie_about_length, change_wire_type, repeat_field, add_unknown_field, nest_deeply, put_huge_varint, put_odd_string,
    put_odd_string,
)  # fmt: skip
BYTE_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip_bits, cut, splice, put_noise)


PARSERS: tuple[Callable[[bytes], Any], ...] = (
    partial(parse_batch_request, limits=LIMITS),
    partial(parse_stream_request, limits=LIMITS),
    parse_drop_corpus_request,
    parse_server_info_request,
)


def test_taking_apart_and_putting_together_changes_nothing() -> None:
    for raw, nested in VALID:
        assert b"".join(field.encode() for field in fields_of(raw, nested)) == raw


def check(request: Request, encoder: Encoder) -> None:
    """What must hold for every request that the codec lets through."""
    documents = request.documents
    assert len(documents.ids) == len(documents.texts) == len(documents.languages) <= LIMITS.max_batch_documents
    assert request.text_bytes == sum(map(len, documents.texts))
    assert len(request.stream_id) in (0, *range(16, 65))
    assert request.stream_id.isascii()
    failure = Piece(0, len(documents), DocumentError(DocumentErrorCode.INTERNAL, "It failed."))
    answer = pb.ScoreStreamResponse.FromString(encoder.stream_response(request, [failure], request.acknowledged))
    assert [result.id for result in answer.scored.results] == documents.ids
    assert (answer.sequence, answer.acknowledged) == (request.sequence, request.acknowledged)


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_the_codec_takes_or_refuses_whatever_comes(count: int) -> None:
    seed = count
    encoder = Encoder([])
    outcomes: Counter[tuple[Any, bool]] = Counter()
    for number in range(count):
        raw = mutated(seed, number)
        for parse in PARSERS:
            try:
                parsed = parse(raw)
                if isinstance(parsed, Request):
                    check(parsed, encoder)
            except DqsError:
                outcomes[parse, False] += 1
            except Exception as error:
                pytest.fail(f"parser {PARSERS.index(parse)} of mutated({seed}, {number}): {error!r}")
            else:
                outcomes[parse, True] += 1
    # Mutations that are all refused, or all taken, would show nothing.
    for parse in PARSERS[:2]:
        assert min(outcomes[parse, taken] for taken in (False, True)) > count / 20, outcomes


@pytest.fixture(scope="module")
def whole_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the limits that ship, in a process of its own."""
    with ServerProcess(port=0, data_dir=tmp_path_factory.mktemp("fuzz")) as process:
        yield process


def status_of(call: Any, *, stream: bool) -> grpc.StatusCode:
    """How a call ends."""
    with contextlib.suppress(grpc.RpcError):
        list(call) if stream else call.result()
    code: grpc.StatusCode = call.code()
    return code


def score(channel: grpc.Channel, *texts: bytes) -> list[pb.Result]:
    """Results of a clean request."""
    documents = [pb.Document(id=str(i), text=text) for i, text in enumerate(texts)]
    raw = pb.ScoreBatchRequest(options=NO_INDEX, documents=documents).SerializeToString()
    answer = channel.unary_unary("/dqs.v1.ScoringService/ScoreBatch")(raw, timeout=120)
    return list(pb.ScoreBatchResponse.FromString(answer).scored.results)


@pytest.mark.parametrize("count", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_whatever_comes_over_a_socket_is_answered_or_refused(whole_server: ServerProcess, count: int) -> None:
    """Unary calls of every method, and streams whose first or second message is wrong."""
    seed = 17
    expected = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    # A stream whose name another connection takes, or that acknowledges what it has no answer to, ends early.
    expected_of_stream = {*expected, grpc.StatusCode.UNAVAILABLE}
    seen: Counter[grpc.StatusCode] = Counter()
    good = pb.ScoreStreamRequest(
        options=NO_INDEX, sequence=1, documents=[pb.Document(id="good", text=b"Good.")]
    ).SerializeToString()
    with raw_channel(whole_server.address) as channel:
        unary = [
            channel.unary_unary(f"/dqs.v1.{method}")
            for method in ("ScoringService/ScoreBatch", "ScoringService/GetServerInfo", "CorpusService/DropCorpus")
        ]
        stream = channel.stream_stream("/dqs.v1.ScoringService/ScoreStream")
        for start in range(0, count, IN_FLIGHT):
            calls: list[tuple[int, Any]] = []
            for number in range(start, min(start + IN_FLIGHT, count)):
                raw = mutated(seed, number)
                match number % 8:
                    case 0 | 1:
                        call: Any = stream(iter([raw]), timeout=120)
                    case 2 | 3:
                        call = stream(iter([good, raw]), timeout=120)
                    case 4 | 5 | 6:
                        call = unary[0].future(raw, timeout=120)
                    case _:
                        call = unary[1 + number // 8 % 2].future(raw, timeout=120)
                calls.append((number, call))
            for number, call in calls:
                is_stream = number % 8 < 4
                code = status_of(call, stream=is_stream)
                seen[code] += 1
                allowed = expected_of_stream if is_stream else expected
                assert code in allowed, f"mutated({seed}, {number}): {code.name}: {call.details()}"
        assert min(seen[code] for code in expected) > count / 20, seen
        (answer,) = score(channel, ENGLISH.encode())
        assert not answer.HasField("error")


def test_odd_texts_have_an_outcome_each(whole_server: ServerProcess) -> None:
    fine = {
        "empty": b"",
        "one character": b"x",
        "one Chinese character": "书".encode(),
        "one character outside the basic plane": "\U0001f600".encode(),
        "NUL": b"\0",
        "NULs": b"\0" * 1000,
        "NULs in a text": ENGLISH.replace(" ", "\0").encode(),
        "line breaks": b"\n" * 1000,
        "byte order mark": "\ufeff".encode(),
        "unassigned and private": "\uffff\ue000\U0010ffff".encode(),
        "combining marks": ("a" + "\u0301" * 1000).encode(),
        "a line of 10 MB": (b"all work and no play " * 500_000)[:10_000_000],
    }
    broken = {
        "not UTF-8": b"\xff\xfe",
        "high surrogate": b"\xed\xa0\x80",
        "low surrogate": b"\xed\xb0\x80",
        "surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
        "overlong": b"\xc0\xaf",
        "cut": "书".encode()[:2],
        "above the last code point": b"\xf4\x90\x80\x80",
        "Latin-1": "déjà vu".encode("latin-1"),
    }
    with raw_channel(whole_server.address) as channel:
        results = score(channel, *fine.values(), *broken.values(), ENGLISH.encode())
    by_name = dict(zip([*fine, *broken, "clean"], results, strict=True))
    for name in (*fine, "clean"):
        assert by_name[name].label in (1, 2, 3), name
        assert not by_name[name].HasField("error"), name
    for name in broken:
        assert by_name[name].error.code == pb.DOCUMENT_ERROR_CODE_INVALID_UTF8, name
        assert by_name[name].label == 0, name


@pytest.mark.parametrize("name", ["\0", "a\0b", "\ufeff", "x" * 512, "书" * 170, "\U0010ffff"])
def test_odd_ids_come_back_as_they_were(whole_server: ServerProcess, name: str) -> None:
    with raw_channel(whole_server.address) as channel:
        raw = pb.ScoreBatchRequest(documents=[pb.Document(id=name, text=ENGLISH.encode())]).SerializeToString()
        answer = channel.unary_unary("/dqs.v1.ScoringService/ScoreBatch")(raw, timeout=120)
    (result,) = pb.ScoreBatchResponse.FromString(answer).scored.results
    assert result.id == name
    assert not result.HasField("error")


@pytest.mark.parametrize("name", [b"\xed\xa0\x80", b"\xff", b"\xc0\x80"])
def test_an_id_that_is_not_utf8_is_refused_and_the_connection_goes_on(whole_server: ServerProcess, name: bytes) -> None:
    raw = Field(2, DELIMITED, [Field(1, DELIMITED, name), Field(2, DELIMITED, b"text")]).encode()
    with raw_channel(whole_server.address) as channel:
        call = channel.unary_unary("/dqs.v1.ScoringService/ScoreBatch").future(raw, timeout=120)
        assert status_of(call, stream=False) == grpc.StatusCode.INVALID_ARGUMENT
        (answer,) = score(channel, ENGLISH.encode())
        assert not answer.HasField("error")
