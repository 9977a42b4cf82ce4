"""What travels between a gateway and a scorer process: few contiguous arrays instead of many objects.

A batch goes as one buffer of text with offsets; its scores come back as one
matrix of signals and one of reasons for missing ones. Each array travels as one
block of memory that nothing has to walk through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dqs.data import Missing
from dqs.index.signature import SignatureParameters, Signatures
from dqs.pipeline import Scored
from dqs.scorer import ScoreColumns

Languages = tuple[tuple[str, ...], NDArray[np.uint16]]
"""The distinct codes, and uint16[n] that says which of them each document has."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedSignatures:
    """`Signatures` without their parameters, which both sides know."""

    shingles: NDArray[np.int32]
    text_hash: NDArray[np.uint64]
    bands: NDArray[np.uint32]
    sketch: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """`Scored` of n documents on its way.

    Attributes:
        values: float32[signals, n], the signals in the order that both sides agreed upon.
        missing: uint8[signals, n] of `Missing`.
        languages: code per document.
        toxicity_span: int32[n, 2], or None.
        valid: bool[n].
        signatures: None where not asked for.
        seconds: time spent per stage.
    """

    values: NDArray[np.float32]
    missing: NDArray[np.uint8]
    languages: Languages
    toxicity_span: NDArray[np.int32] | None
    valid: NDArray[np.bool_]
    signatures: PackedSignatures | None
    seconds: dict[str, float]


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


def unpack_languages(languages: Languages | None, size: int) -> list[str]:
    """The code of each of `size` documents."""
    if languages is None:
        return [""] * size
    table, numbers = languages
    return [table[number] for number in numbers.tolist()]


def pack(scored: Scored, signals: Sequence[str]) -> Packed:
    """Gathers the columns.

    Args:
        scored: what an executor in this process returned.
        signals: names of all signals, in the order that both sides agreed upon.
    """
    columns = scored.columns
    values = np.empty((len(signals), columns.size), dtype=np.float32)
    missing = np.empty(values.shape, dtype=np.uint8)
    for row, name in enumerate(signals):
        values[row] = columns.values[name]
        missing[row] = columns.missing[name]
    signed = scored.signatures
    return Packed(
        values=values,
        missing=missing,
        languages=pack_languages(columns.language) or (("",), np.zeros(columns.size, dtype=np.uint16)),
        toxicity_span=columns.toxicity_span,
        valid=scored.valid,
        signatures=None
        if signed is None
        else PackedSignatures(signed.shingles, signed.text_hash, signed.bands, signed.sketch),
        seconds=scored.seconds,
    )


def unpack(packed: Packed, signals: Sequence[str], parameters: SignatureParameters | None, replica: str) -> Scored:
    """The columns as the pipeline knows them, in memory of this process.

    Args:
        packed: what a scorer process returned; its arrays may lie in shared memory that is to be free again soon.
        signals: as for `pack`.
        parameters: of the signatures; None where there are none.
        replica: who scored.
    """
    values, missing = packed.values.copy(), packed.missing.copy()
    signed = None
    if packed.signatures is not None and parameters is not None:
        signed = Signatures(
            parameters,
            packed.signatures.shingles.copy(),
            packed.signatures.text_hash.copy(),
            packed.signatures.bands.copy(),
            packed.signatures.sketch.copy(),
        )
    columns = ScoreColumns(
        size=values.shape[1],
        values=dict(zip(signals, values, strict=True)),
        missing=dict(zip(signals, missing, strict=True)),
        language=unpack_languages(packed.languages, values.shape[1]),
        toxicity_span=None if packed.toxicity_span is None else packed.toxicity_span.copy(),
    )
    return Scored(columns, packed.valid.copy(), signed, packed.seconds, replica=replica)


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
        signed = Signatures(
            parameters,
            np.zeros(1, dtype=np.int32),
            np.zeros((1, 2), dtype=np.uint64),
            np.zeros((1, parameters.bands), dtype=np.uint32),
            np.zeros((1, parameters.sketch_bytes), dtype=np.uint8),
        )
    return Scored(columns, np.ones(1, dtype=np.bool_), signed)


def join(parts: Sequence[Scored]) -> Scored:
    """Scores of consecutive parts of a batch as those of the whole.

    Args:
        parts: at least one; all with the same signals.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
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
    signatures = None
    if len(signed) == len(parts):
        signatures = Signatures(
            signed[0].parameters,
            np.concatenate([one.shingles for one in signed]),
            np.concatenate([one.text_hash for one in signed]),
            np.concatenate([one.bands for one in signed]),
            np.concatenate([one.sketch for one in signed]),
        )
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
    return Scored(columns, valid, signatures, seconds, failed, parts[-1].replica)
