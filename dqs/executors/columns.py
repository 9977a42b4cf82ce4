"""What travels between a gateway and a scorer process: one message there, one back.

A batch goes as one buffer of text with offsets; its scores come back as one
matrix of signals and one of reasons for missing ones. Both are bytes, a short
head as JSON and then the arrays one after the other, which both sides know the
types and shapes of: for Ray that is the kind of object that costs least, half
of what the same arrays cost one by one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dqs.data import Missing
from dqs.index.signature import SignatureParameters, Signatures
from dqs.pipeline import ModelSet, Scored
from dqs.scorer import ScoreColumns

Languages = tuple[tuple[str, ...], NDArray[np.uint16]]
"""The distinct codes, and uint16[n] that says which of them each document has."""

_ALIGNMENT = 8
"""Every array begins at a multiple of this many bytes, so that it can be used where it lies."""


class MixedModels(Exception):
    """Parts of a batch were scored with different models."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """n documents as they reach a scorer process.

    Attributes:
        token: names the life of the process that they are meant for.
        utf8: uint8[bytes], the texts end to end; read-only.
        byte_offsets: int64[n + 1].
        languages: what the caller says of each document, "" where it says nothing.
        signature: parameters of the signatures that are asked for; None asks for none.
        classifiers: names of the classifiers that are asked for; None asks for all.
    """

    token: str
    utf8: NDArray[np.uint8]
    byte_offsets: NDArray[np.int64]
    languages: list[str]
    signature: SignatureParameters | None
    classifiers: frozenset[str] | None = None


def encode_batch(
    token: str,
    utf8: NDArray[np.uint8],
    byte_offsets: NDArray[np.int64],
    languages: Languages | None,
    *,
    signature: SignatureParameters | None,
    classifiers: frozenset[str] | None = None,
) -> bytes:
    """A message that `decode_batch` reads; the arguments are the fields of `Batch`."""
    table, numbers = languages or ((), None)
    asked = None if signature is None else asdict(signature)
    head: dict[str, Any] = {
        "token": token,
        "documents": byte_offsets.size - 1,
        "languages": table,
        "signature": asked,
        "classifiers": None if classifiers is None else sorted(classifiers),
    }
    arrays: list[NDArray[Any]] = [byte_offsets]
    if numbers is not None:
        arrays.append(numbers)
    return _encode(head, [*arrays, utf8])


def decode_batch(message: bytes) -> Batch:
    """The batch of a message; its text is not copied."""
    reader = _Reader(message)
    head = reader.head
    n = head["documents"]
    # Read-only offsets are another type to numba, for which it would compile every kernel once more.
    byte_offsets = reader.take(np.int64, n + 1).copy()
    languages = unpack_languages((head["languages"], reader.take(np.uint16, n)) if head["languages"] else None, n)
    utf8 = reader.take(np.uint8, int(byte_offsets[-1]))
    signature = None if head["signature"] is None else SignatureParameters(**head["signature"])
    classifiers = None if head["classifiers"] is None else frozenset(head["classifiers"])
    return Batch(head["token"], utf8, byte_offsets, languages, signature, classifiers)


def pack_languages(languages: Sequence[str]) -> Languages | None:
    """Codes as a table and numbers into it; None where every one is "".

    Args:
        languages: code per document, of at most 65,536 distinct ones.
    """
    if not any(languages):
        return None
    table: dict[str, int] = {}
    numbers = np.fromiter(
        (table.setdefault(code, len(table)) for code in languages), dtype=np.uint16, count=len(languages)
    )
    return tuple(table), numbers


def unpack_languages(languages: tuple[Sequence[str], NDArray[np.uint16]] | None, size: int) -> list[str]:
    """The code of each of `size` documents."""
    if languages is None:
        return [""] * size
    table, numbers = languages
    return [table[number] for number in numbers.tolist()]


def encode_scores(scored: Scored, signals: Sequence[str]) -> bytes:
    """A message that `decode_scores` reads.

    Args:
        scored: what an executor in this process returned.
        signals: names of all signals, in the order that both sides agreed upon.
    """
    columns = scored.columns
    table, numbers = pack_languages(columns.language) or (("",), np.zeros(columns.size, dtype=np.uint16))
    span, signed = columns.toxicity_span, scored.signatures
    head = {
        "documents": columns.size,
        "languages": table,
        "span": span is not None,
        "signed": signed is not None,
        "seconds": scored.seconds,
        "models": "" if scored.models is None else scored.models.digest,
    }
    arrays: list[NDArray[Any]] = [columns.values[name] for name in signals]
    arrays += [columns.missing[name] for name in signals]
    arrays = [_joined(arrays[: len(signals)], np.float32), _joined(arrays[len(signals) :], np.uint8)]
    arrays += [numbers, scored.valid]
    if span is not None:
        arrays.append(span)
    if signed is not None:
        arrays += signed.columns
    return _encode(head, arrays)


def decode_scores(
    message: bytes,
    signals: Sequence[str],
    parameters: SignatureParameters | None,
    replica: str,
    models: Mapping[str, ModelSet],
) -> Scored:
    """The columns as the pipeline knows them.

    Args:
        message: what a scorer process returned.
        signals: as for `encode_scores`.
        parameters: of the signatures that were asked for; None where there were none.
        replica: who scored.
        models: by digest, all that a scorer process may answer with.
    """
    reader = _Reader(bytearray(message))  # its arrays can be written to
    head = reader.head
    n, count = head["documents"], len(signals)
    values = reader.take(np.float32, count, n)
    missing = reader.take(np.uint8, count, n)
    languages = unpack_languages((head["languages"], reader.take(np.uint16, n)), n)
    valid = reader.take(np.bool_, n)
    span = reader.take(np.int32, n, 2) if head["span"] else None
    signed = None
    if head["signed"] and parameters is not None:
        kinds = [(column.dtype, column.shape[1:]) for column in Signatures.empty(0, parameters).columns]
        signed = Signatures(parameters, *(reader.take(dtype, n, *shape) for dtype, shape in kinds))
    columns = ScoreColumns(
        size=n,
        values=dict(zip(signals, values, strict=True)),
        missing=dict(zip(signals, missing, strict=True)),
        language=languages,
        toxicity_span=span,
    )
    return Scored(columns, valid, signed, head["seconds"], replica=replica, models=models.get(head["models"]))


def _joined(columns: Sequence[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    return np.concatenate(columns, dtype=dtype) if columns else np.zeros(0, dtype=dtype)


def _encode(head: dict[str, Any], arrays: Sequence[NDArray[Any]]) -> bytes:
    """The length of the head, the head, and the arrays, each filled up to the alignment."""
    encoded = json.dumps(head).encode()
    pieces: list[Any] = [len(encoded).to_bytes(_ALIGNMENT, "little"), encoded, b"\0" * (-len(encoded) % _ALIGNMENT)]
    for array in arrays:
        pieces += (np.ascontiguousarray(array).data, b"\0" * (-array.nbytes % _ALIGNMENT))
    return b"".join(pieces)


class _Reader:
    """Takes a message of `_encode` apart; the arrays lie in the message's own memory."""

    def __init__(self, message: bytes | bytearray) -> None:
        size = int.from_bytes(message[:_ALIGNMENT], "little")
        self.head: dict[str, Any] = json.loads(message[_ALIGNMENT : _ALIGNMENT + size])
        self._message = message
        self._position = _ALIGNMENT + size + -size % _ALIGNMENT

    def take(self, dtype: DTypeLike, *shape: int) -> NDArray[Any]:
        """The next array."""
        size = math.prod(shape)
        array: NDArray[Any] = np.frombuffer(self._message, dtype, size, self._position).reshape(shape)
        self._position += array.nbytes + -array.nbytes % _ALIGNMENT
        return array


def blank(signals: Sequence[str], parameters: SignatureParameters | None) -> Scored:
    """One document of which nothing is known, in the form of scores.

    Args:
        signals: as for `pack`.
        parameters: of the signatures; None where there are none.
    """
    none = np.full(1, np.nan, dtype=np.float32)
    unavailable = np.full(1, Missing.UNAVAILABLE, dtype=np.uint8)
    columns = ScoreColumns(
        size=1,
        values=dict.fromkeys(signals, none),
        missing=dict.fromkeys(signals, unavailable),
        language=["und"],
        toxicity_span=np.full((1, 2), -1, dtype=np.int32),
    )
    signed = None
    if parameters is not None:
        signed = Signatures.empty(1, parameters)
    return Scored(columns, np.ones(1, dtype=np.bool_), signed)


def join(parts: Sequence[Scored]) -> Scored:
    """Scores of consecutive parts of a batch as those of the whole.

    Args:
        parts: at least one; all with the same signals.

    Raises:
        MixedModels: they were scored with different models.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    models = {part.models for part in parts if part.models is not None}
    if len(models) > 1:
        raise MixedModels
    columns = ScoreColumns(
        size=sum(part.columns.size for part in parts),
        values={name: np.concatenate([part.columns.values[name] for part in parts]) for name in first.columns.values},
        missing={
            name: np.concatenate([part.columns.missing[name] for part in parts]) for name in first.columns.missing
        },
        language=[code for part in parts for code in part.columns.language],
    )
    spans = [part.columns.toxicity_span for part in parts if part.columns.toxicity_span is not None]
    if len(spans) == len(parts):
        columns.toxicity_span = np.concatenate(spans)
    signed = [part.signatures for part in parts if part.signatures is not None]
    signatures = Signatures.join(signed) if len(signed) == len(parts) else None
    seconds: dict[str, float] = {}
    for part in parts:
        for stage, spent_s in part.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent_s
    failed = None
    if any(part.failed is not None for part in parts):
        failed = np.concatenate(
            [np.zeros(part.columns.size, dtype=np.bool_) if part.failed is None else part.failed for part in parts]
        )
    valid = np.concatenate([part.valid for part in parts])
    return Scored(columns, valid, signatures, seconds, failed, parts[-1].replica, next(iter(models), None))
