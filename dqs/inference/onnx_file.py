"""What an ONNX file says of itself without being loaded: opset, operators, type of weights, files beside it.

Only the few fields that an import needs are read, straight from the file's
protocol buffer encoding, so that neither onnx nor a copy in memory is needed.

Source: the message types in onnx/onnx.proto of ONNX; field numbers below are theirs.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dqs.errors import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_IR, _MODEL_PRODUCER, _MODEL_GRAPH, _MODEL_OPSET = 1, 2, 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_EXTERNAL = 1, 2, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_PRECISIONS = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 11: "fp64", 16: "bf16", 21: "int4", 22: "int4"}
_SMALL = ("int4", "int8")
_SMALL_SHARE = 0.1
"""Graphs with weights of 8 bits often keep their embeddings in 32."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What was read.

    Attributes:
        opset: version of ONNX's own operator set.
        domains: versions of further operator sets, by domain.
        producer: program that wrote the file, "" where it does not say.
        operators: names of the operators of the main graph, with their domain where it is not ONNX's own.
        external: names of the files that hold weights, relative to the graph, in alphabetical order.
        precision: of most weights: `fp32`, `fp16`, `bf16`, `fp64`, `int8`, `int4`.
    """

    opset: int
    domains: dict[str, int]
    producer: str
    operators: frozenset[str]
    external: tuple[str, ...]
    precision: str


def read_onnx(path: Path) -> OnnxFile:
    """Reads the file.

    Raises:
        ModelError: it cannot be read, or is no ONNX graph.
    """
    try:
        with path.open("rb") as stream:
            # Never closed by hand: views of it may outlive an error.
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(memoryview(content))
    except OSError as error:
        raise ModelError(f"The graph {path} cannot be read ({error.strerror}).") from error
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path} is no ONNX graph, or is cut off: export it again.") from error


def _read(model: memoryview) -> OnnxFile:
    opsets: dict[str, int] = {}
    producer = ""
    operators: set[str] = set()
    external: set[str] = set()
    elements: Counter[str] = Counter()
    graphs = 0
    for field, value in _fields(model):
        if field == _MODEL_PRODUCER:
            producer = _text(value)
        elif field == _MODEL_OPSET:
            entry = dict(_fields(_message(value)))
            opsets[_text(entry.get(_OPSET_DOMAIN, b""))] = int(entry.get(_OPSET_VERSION, 0))
        elif field == _MODEL_GRAPH:
            graphs += 1
            for inner, part in _fields(_message(value)):
                if inner == _GRAPH_NODE:
                    operators.add(_operator(_message(part)))
                elif inner == _GRAPH_INITIALIZER:
                    _read_tensor(_message(part), elements, external)
    if not graphs or not opsets:
        raise ValueError("no graph")
    return OnnxFile(
        opset=opsets.pop("", opsets.pop("ai.onnx", 0)),
        domains=opsets,
        producer=producer,
        operators=frozenset(operators),
        external=tuple(sorted(external)),
        precision=_precision(elements),
    )


def _operator(node: memoryview) -> str:
    name, domain = "", ""
    for field, value in _fields(node):
        if field == _NODE_OPERATOR:
            name = _text(value)
        elif field == _NODE_DOMAIN:
            domain = _text(value)
    return f"{domain}:{name}" if domain not in ("", "ai.onnx") else name


def _read_tensor(tensor: memoryview, elements: Counter[str], external: set[str]) -> None:
    size, kind = 1, 0
    for field, value in _fields(tensor):
        if field == _TENSOR_DIMS:
            for dim in _varints(value):
                size *= dim
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field == _TENSOR_EXTERNAL:
            entry = dict(_fields(_message(value)))
            if _text(entry.get(_ENTRY_KEY, b"")) == "location":
                external.add(_text(entry.get(_ENTRY_VALUE, b"")))
    if kind in _PRECISIONS:
        elements[_PRECISIONS[kind]] += size


def _precision(elements: Counter[str]) -> str:
    if not elements:
        return "fp32"
    small = max(_SMALL, key=lambda name: elements[name])
    if elements[small] > _SMALL_SHARE * elements.total():
        return small
    return elements.most_common(1)[0][0]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a message's fields: integers as they are, everything longer as its bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            number, at = _varint(message, at)
            yield field, number
            continue
        size = 8 if wire == _FIXED64 else 4
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire not in (_FIXED64, _FIXED32):
            raise ValueError("no such type on the wire")
        if at + size > len(message):
            raise ValueError("cut off")
        yield field, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no number")


def _varints(value: int | memoryview) -> Iterator[int]:
    """A repeated number: one by one, or packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _text(value: int | memoryview | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number where a text belongs")
    return bytes(value).decode("utf-8")
