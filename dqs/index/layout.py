"""How a corpus lies in Redis: names of keys, header, packed fields, records. Pure.

Per corpus five keys, all under one hash tag, so that a Redis Cluster keeps them on one node:

    header    hash: generation, parameters (JSON), options, number of buckets, counters
    records   hash: document number -> flags, time, text hash, keys, sketch, id of a kept document
    retries   hash: document number -> answer, time, text hash, id of another one, for some time
    buckets   hash: structure and bucket number -> 8-byte entries (3 bytes of a 32-bit key,
              document number); one set of buckets for ids, one for text hashes, one per band.
              Their number grows with the corpus by linear hashing (`grow.lua`); the lowest
              8 bits of a key are implied by its bucket, since there are never fewer than 256.
              Fields of one hash cost half of what keys of their own do, in memory and in time.
    lines     string: hashes of lines; see `dqs.index.lines`

and a set `dropped` of generations whose data are still being freed. A generation is part of
the names of all but the header: dropping a corpus removes its header in one step, and whatever
is freed later cannot be mistaken for the data of a new corpus of the same name.
The bytes of every value are described in `common.lua`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.errors import CorpusMismatch, RequestError
from dqs.index.connection import Packed
from dqs.index.signature import SHINGLE_TOKENS, SignatureParameters, Signatures

FORMAT_VERSION = 2
"""Of the layout in Redis; part of the header."""

FIRST_BUCKETS = 256
"""Buckets per structure of a new corpus; a power of two and at least 256, see above."""

MAX_BUCKETS = 1 << 24
"""From here on, some 10^9 documents, buckets grow longer instead of more."""

MAX_ID_BYTES = 1024
"""Longest document id, in UTF-8 bytes."""

MAX_NAME_BYTES = 256
"""Longest name of a corpus or tenant, in UTF-8 bytes."""

MAX_DOCUMENTS = (1 << 39) - 1
"""What five bytes can number, less a bit that tells kept documents from remembered answers."""

MAX_WINDOW_S = 10_000_000_000
"""Longest window of a corpus, some three hundred years."""

FIXED_STRUCTURES = 2
"""Sets of buckets before those of the bands: ids and text hashes."""

ENTRY_BYTES = 8
NUMBER_BYTES = 5
_ESCAPES = {ord(character): f"%{ord(character):02X}" for character in "%:{}"}

_FLAG_INSERT, _FLAG_SKETCH, _FLAG_EMPTY, _FLAG_UNCHECKED, _FLAG_REPLACE = 1, 2, 4, 8, 16
_HEAD = 5  # flags or answer, and the time
_FIXED = 21  # text hash, id key, lines seen
_RETRY_HEAD = _HEAD + _FIXED + NUMBER_BYTES + 7  # and the named number, bands met, three counts


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What may be changed of a corpus while it is in use.

    Attributes:
        window_documents: only so many kept documents are remembered, the latest; None = all.
        window_s: documents are remembered for so many seconds after they were kept; None = for ever.
        retry_s: for so many seconds the answer about a document that was not kept is remembered under
            its id, so that a retry has the same one; 0 = not at all. Kept documents are known anyway.
        retry_documents: at most so many of these answers are remembered, the latest.
        line_slots: hashes of lines that are remembered, at 4 bytes each; 0 = none.
    """

    window_documents: int | None = None
    window_s: float | None = None
    retry_s: float = 86_400.0
    retry_documents: int = 10_000_000
    line_slots: int = 1 << 22

    def __post_init__(self) -> None:
        for name, least, most, may_be_none in (
            ("window_documents", 1, MAX_DOCUMENTS, True),
            ("window_s", 1e-3, MAX_WINDOW_S, True),
            ("retry_s", 0, MAX_WINDOW_S, False),
            ("retry_documents", 1, MAX_DOCUMENTS, False),
        ):
            value = getattr(self, name)
            if not (may_be_none and value is None) and not least <= value <= most:
                left_out = ", or left out" if may_be_none else ""
                raise ValueError(f"{name} is {value}, must be in {least} to {most}{left_out}")
        if not 0 <= self.line_slots <= 1 << 28:
            raise ValueError(f"line_slots is {self.line_slots}, must be in 0 to {1 << 28}")

    @classmethod
    def read(cls, text: bytes | str) -> CorpusOptions:
        """The options of a header; names that this version does not know are ignored."""
        values = json.loads(text)
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    def write(self) -> str:
        """The options as a header holds them."""
        return json.dumps(asdict(self), sort_keys=True)


def write_parameters(parameters: SignatureParameters) -> str:
    """Parameters, and the format, as a header holds them."""
    head = {"format": FORMAT_VERSION, "shingle_tokens": SHINGLE_TOKENS, **asdict(parameters)}
    return json.dumps(head, sort_keys=True)


def is_of_this_format(stored: bytes | str) -> bool:
    """Whether a corpus with these parameters in its header lies in Redis as described above."""
    try:
        return bool(json.loads(stored)["format"] == FORMAT_VERSION)
    except (ValueError, KeyError, TypeError):
        return False


def read_parameters(corpus: str, stored: bytes | str) -> SignatureParameters:
    """The parameters in a header.

    Raises:
        CorpusMismatch: this version does not read corpora of that format.
    """
    try:
        values: dict[str, Any] = json.loads(stored)
        made_with = values.pop("format"), values.pop("shingle_tokens")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorpusMismatch(f"corpus {corpus} has a header that this version cannot read; drop it") from None
    if made_with != (FORMAT_VERSION, SHINGLE_TOKENS):
        raise CorpusMismatch(
            f"corpus {corpus} was made with format {made_with[0]}, shingle_tokens {made_with[1]} "
            f"(here {FORMAT_VERSION}, {SHINGLE_TOKENS}); use the version of dqs that made it, or drop it"
        )
    try:
        return SignatureParameters(**values)
    except (TypeError, ValueError) as error:
        raise CorpusMismatch(
            f"corpus {corpus} was made with parameters that this version cannot use ({error})"
        ) from None


def difference(stored: SignatureParameters, wanted: SignatureParameters) -> str:
    """The parameters that differ, with both values."""
    theirs, ours = asdict(stored), asdict(wanted)
    return ", ".join(f"{name} {theirs[name]} (here {ours[name]})" for name in theirs if theirs[name] != ours[name])


def corpus_base(tenant: str, corpus: str) -> str:
    """How the names of all keys of a corpus begin.

    Raises:
        RequestError: a name is empty or too long.
    """
    return f"dqs:{{{_key_name(tenant, 'tenant')}:{_key_name(corpus, 'corpus')}}}:"


def registry_key(tenant: str) -> str:
    """The set of names of a tenant's corpora."""
    return f"dqs:{{{_key_name(tenant, 'tenant')}}}:corpora"


def _key_name(name: str, what: str) -> str:
    """A name as part of a key; no two pairs of names share keys, and no name closes the hash tag."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= MAX_NAME_BYTES:
        raise RequestError(f"the name of a {what} needs 1 to {MAX_NAME_BYTES} bytes of valid Unicode")
    return name.translate(_ESCAPES)


def encoded_id(document: str) -> bytes:
    """An id as it is stored.

    Raises:
        RequestError: it is empty or too long.
    """
    # JSON may hold lone surrogates; an id is opaque, so they come back as they went in.
    encoded = document.encode("utf-8", "surrogatepass")
    if not encoded or len(encoded) > MAX_ID_BYTES:
        raise RequestError(f"a document id has {len(encoded)} bytes; give every document 1 to {MAX_ID_BYTES}")
    return encoded


def decoded_id(stored: bytes) -> str:
    """The id that `encoded_id` was given."""
    return stored.decode("utf-8", "surrogatepass")


def id_keys(ids: Sequence[bytes]) -> NDArray[np.uint32]:
    """uint32[n]: the keys of ids in their structure."""
    digests = b"".join([hashlib.blake2b(document, digest_size=4).digest() for document in ids])
    return np.frombuffer(digests, dtype="<u4")


def bucket_numbers(keys: NDArray[np.uint32], buckets: int) -> NDArray[np.uint32]:
    """The bucket of each key, by linear hashing (Litwin, VLDB 1980)."""
    power = 1 << (buckets.bit_length() - 1)
    numbers = keys & np.uint32(2 * power - 1)
    return np.where(numbers < buckets, numbers, numbers & np.uint32(power - 1))


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """n documents as `check_and_insert.lua` is given them.

    Attributes:
        ids: uint8[bytes], the ids end to end.
        id_offsets: int64[n + 1].
        id_keys: uint32[n].
        signatures: of the documents.
        flags: uint8[n]; what is to be done with each.
        lines_seen: uint8[n]; how many of its lines the corpus knows.
    """

    ids: NDArray[np.uint8]
    id_offsets: NDArray[np.int64]
    id_keys: NDArray[np.uint32]
    signatures: Signatures
    flags: NDArray[np.uint8]
    lines_seen: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        ids: Sequence[bytes],
        signatures: Signatures,
        insert: NDArray[np.bool_],
        lines_seen: NDArray[np.uint8],
        *,
        unchecked: bool = False,
        replace: bool = False,
    ) -> Submission:
        """Puts documents together.

        Args:
            ids: of `encoded_id`.
            signatures: of the documents.
            insert: bool[n]; whether what repeats nothing is kept.
            lines_seen: uint8[n].
            unchecked: keeps documents whatever they repeat.
            replace: documents take the place of others with their id.
        """
        offsets = np.array([0, *accumulate(map(len, ids))], dtype=np.int64)
        always = (_FLAG_UNCHECKED if unchecked else 0) | (_FLAG_REPLACE if replace else 0)
        flags = insert * np.uint8(_FLAG_INSERT) | np.uint8(always)
        return cls(
            np.frombuffer(b"".join(ids), dtype=np.uint8), offsets, id_keys(ids), signatures, flags, lines_seen
        )  # fmt: skip

    def pack(self, start: int, stop: int, buckets: int) -> Packed:
        """Some of the documents as arguments of a command: packed fields and id of each, then their buckets.

        Args:
            start: first document.
            stop: past the last one.
            buckets: of the corpus.
        """
        signed = self.signatures
        n = stop - start
        bands = signed.bands.shape[1]
        longest = 64 + _FIXED + 14 * (bands + FIXED_STRUCTURES) + signed.sketch.shape[1]
        buffer = np.empty(n * longest + int(self.id_offsets[stop] - self.id_offsets[start]), dtype=np.uint8)
        fields, end = _write_group(
            self.ids, self.id_offsets, self.id_keys, self.flags, self.lines_seen, signed.shingles, signed.text_hash,
            signed.bands, signed.sketch, start, stop, buckets, buffer,
        )  # fmt: skip
        return Packed(2 * n + fields, buffer[:end].tobytes())


@njit(cache=True, nogil=True)
def _write_length(length: int, out: NDArray[np.uint8], end: int) -> int:
    """Writes `$length CR LF`; returns where it ends."""
    digits = 1
    power = 10
    while length >= power:
        digits += 1
        power *= 10
    out[end] = 36
    for position in range(digits, 0, -1):
        out[end + position] = 48 + length % 10
        length //= 10
    out[end + digits + 1] = 13
    out[end + digits + 2] = 10
    return end + digits + 3


@njit(cache=True, nogil=True)
def _write_word(word: np.uint64, size: int, out: NDArray[np.uint8], end: int) -> int:
    """Writes a number, the lowest byte first; returns where it ends."""
    for position in range(size):
        out[end + position] = np.uint8(word & np.uint64(255))
        word >>= np.uint64(8)
    return end + size


@njit(cache=True, nogil=True)
def _write_bucket(structure: int, key: np.uint32, buckets: int, power: int, out: NDArray[np.uint8], end: int) -> int:
    """Writes the field of a key's bucket as an argument; returns where it ends."""
    number = np.int64(key) & (2 * power - 1)
    if number >= buckets:
        number &= power - 1
    end = _write_length(4, out, end)
    out[end] = structure
    out[end + 1] = (number >> 16) & 255
    out[end + 2] = (number >> 8) & 255
    out[end + 3] = number & 255
    out[end + 4] = 13
    out[end + 5] = 10
    return end + 6


@njit(cache=True, nogil=True)
def _write_group(
    ids: NDArray[np.uint8],
    id_offsets: NDArray[np.int64],
    id_keys: NDArray[np.uint32],
    flags: NDArray[np.uint8],
    lines_seen: NDArray[np.uint8],
    shingles: NDArray[np.int32],
    text_hash: NDArray[np.uint64],
    bands: NDArray[np.uint32],
    sketch: NDArray[np.uint8],
    start: int,
    stop: int,
    buckets: int,
    out: NDArray[np.uint8],
) -> tuple[int, int]:
    """Writes what `Submission.pack` says; returns how many buckets are named and where it ends."""
    width = 1 + _FIXED + 4 * bands.shape[1] + 2 + sketch.shape[1]
    end = 0
    for document in range(start, stop):
        end = _write_length(width, out, end)
        flag = flags[document]
        flag |= np.uint8(_FLAG_SKETCH) if shingles[document] > 0 else np.uint8(0)
        flag |= np.uint8(_FLAG_EMPTY) if not (text_hash[document, 0] or text_hash[document, 1]) else np.uint8(0)
        out[end] = flag
        end = _write_word(text_hash[document, 0], 8, out, end + 1)
        end = _write_word(text_hash[document, 1], 8, out, end)
        end = _write_word(np.uint64(id_keys[document]), 4, out, end)
        out[end] = lines_seen[document]
        end += 1
        for band in range(bands.shape[1]):
            end = _write_word(np.uint64(bands[document, band]), 4, out, end)
        filled = 0
        for column in range(sketch.shape[1]):
            value = sketch[document, column]
            out[end + 2 + column] = value
            # One bit for each of the four bins that is not empty.
            value = (value | (value >> 1)) & 0x55
            value = (value & 0x33) + ((value >> 2) & 0x33)
            filled += (value & 15) + (value >> 4)
        out[end] = filled >> 8
        out[end + 1] = filled & 255
        end += 2 + sketch.shape[1]
        out[end] = 13
        out[end + 1] = 10
        end = _write_length(id_offsets[document + 1] - id_offsets[document], out, end + 2)
        for position in range(id_offsets[document], id_offsets[document + 1]):
            out[end] = ids[position]
            end += 1
        out[end] = 13
        out[end + 1] = 10
        end += 2
    power = 1
    while 2 * power <= buckets:
        power *= 2
    fields = 0
    for document in range(start, stop):
        end = _write_bucket(0, id_keys[document], buckets, power, out, end)
        if shingles[document] > 0:
            for band in range(bands.shape[1]):
                end = _write_bucket(2 + band, bands[document, band], buckets, power, out, end)
            fields += 1 + bands.shape[1]
        else:
            text_key = np.uint32(text_hash[document, 0] & np.uint64(0xFFFFFFFF))
            end = _write_bucket(1, text_key, buckets, power, out, end)
            fields += 2
    return fields, end


EMPTY_BINS = bytes(sum((value >> shift) & 3 == 0 for shift in (0, 2, 4, 6)) for value in range(256))
"""For every byte of a sketch how many of its four bins are empty."""


def packed_words(words: Sequence[bytes]) -> bytes:
    """Arguments of a command in Redis's protocol."""
    return b"".join([b"$%d\r\n%s\r\n" % (len(word), word) for word in words])


def find_numbers(bucket: bytes | None, key: bytes) -> list[bytes]:
    """The numbers in a bucket that stand under a key.

    Args:
        bucket: its entries.
        key: the four bytes of the key, little-endian.
    """
    found: list[bytes] = []
    if not bucket:
        return found
    fingerprint = key[1:]
    at = bucket.find(fingerprint)
    while at >= 0:
        if at % ENTRY_BYTES == 0:
            found.append(bucket[at + 3 : at + ENTRY_BYTES])
            at = bucket.find(fingerprint, at + ENTRY_BYTES)
        else:
            at = bucket.find(fingerprint, at + 1)
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """A record or a retry, taken apart.

    Attributes:
        number: its document number, as it is stored.
        is_kept: whether it is a record.
        seconds: Unix time of the decision.
        text_hash: 16 bytes.
        id_key: 4 bytes.
        lines_seen: how many of its lines the corpus knew.
        bands: 4 bytes per band, or none.
        sketch: bytes, or none.
        id: as it is stored.
    """

    number: bytes
    is_kept: bool
    seconds: int
    text_hash: bytes
    id_key: bytes
    lines_seen: int
    bands: bytes
    sketch: bytes
    id: bytes

    @classmethod
    def of(cls, number: bytes, value: bytes, parameters: SignatureParameters) -> Stored:
        """Takes the value of a field of `records` or `retries` apart."""
        seconds = int.from_bytes(value[1:_HEAD], "big")
        text_hash, id_key, lines_seen = value[_HEAD : _HEAD + 16], value[_HEAD + 16 : _HEAD + 20], value[_HEAD + 20]
        at = _HEAD + _FIXED
        if number[0] >= 128:
            return cls(number, False, seconds, text_hash, id_key, lines_seen, b"", b"", value[_RETRY_HEAD:])
        if not value[0] & _FLAG_SKETCH:
            return cls(number, True, seconds, text_hash, id_key, lines_seen, b"", b"", value[at:])
        bands_end = at + 4 * parameters.bands
        sketch_end = bands_end + 2 + parameters.sketch_bytes
        return cls(
            number, True, seconds, text_hash, id_key, lines_seen,
            value[at:bands_end], value[bands_end + 2 : sketch_end], value[sketch_end:],
        )  # fmt: skip
