"""TextBatch: a batch of documents as arrays, decoded and segmented once for every scorer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dqs.text import kernels
from dqs.text.unicode_tables import CharClass, UnicodeTables, unicode_tables

__all__ = ["CharClass", "TextBatch"]


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """A batch of n documents as columns; read-only by convention.

    Every `*_offsets` is int64[n + 1]: document i owns the entries from
    `offsets[i]` up to and without `offsets[i + 1]`. Documents that are not
    valid UTF-8 own nothing but their bytes.

    Attributes:
        utf8: uint8[bytes]; the documents end to end.
        byte_offsets: into `utf8`.
        valid: bool[n]; false where the bytes are not UTF-8 (overlong forms and surrogates included).
        codepoints: uint32[characters].
        codepoint_offsets: into `codepoints` and `classes`.
        classes: uint8[characters] of `CharClass` flags.
        folded: uint32[folded characters]; each document after NFKC and lower case.
        folded_offsets: into `folded`, `folded_classes` and `folded_origin`.
        folded_classes: uint8[folded characters] of `CharClass` flags.
        folded_origin: int32[folded characters]; which code point of its document, counted
            from 0, a folded one comes from; never decreases within a document.
        line_offsets: into `line_start` and `line_end`.
        line_start: int64[lines]; first code point of the line in `codepoints`.
        line_end: int64[lines]; past its last one, without the line break. Lines end at LF
            or CR LF; no empty line follows the last break, and an empty text has no line.
        word_offsets: into `word_start`, `word_end` and `word_hash`.
        word_start: int64[words]; first code point of the word in `folded`.
        word_end: int64[words]; past its last one. A word is one word character of a
            script without spaces, or a maximal run of other word characters.
        word_hash: uint64[words]; equal for equal folded words.
    """

    utf8: NDArray[np.uint8]
    byte_offsets: NDArray[np.int64]
    valid: NDArray[np.bool_]
    codepoints: NDArray[np.uint32]
    codepoint_offsets: NDArray[np.int64]
    classes: NDArray[np.uint8]
    folded: NDArray[np.uint32]
    folded_offsets: NDArray[np.int64]
    folded_classes: NDArray[np.uint8]
    folded_origin: NDArray[np.int32]
    line_offsets: NDArray[np.int64]
    line_start: NDArray[np.int64]
    line_end: NDArray[np.int64]
    word_offsets: NDArray[np.int64]
    word_start: NDArray[np.int64]
    word_end: NDArray[np.int64]
    word_hash: NDArray[np.uint64]

    def __len__(self) -> int:
        return int(self.valid.size)

    @classmethod
    def from_bytes(cls, texts: Sequence[bytes]) -> TextBatch:
        """Builds the columns from one UTF-8 byte string per document."""
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        byte_offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=byte_offsets[1:])
        return cls.from_buffer(np.frombuffer(b"".join(texts), dtype=np.uint8), byte_offsets)

    @classmethod
    def from_buffer(cls, utf8: NDArray[np.uint8], byte_offsets: NDArray[np.int64]) -> TextBatch:
        """Builds the columns from documents that already lie end to end.

        Args:
            utf8: uint8[bytes].
            byte_offsets: int64[n + 1], not decreasing, from 0 to `utf8.size`.
        """
        tables = unicode_tables()
        n = byte_offsets.size - 1
        # One constness, one compiled kernel, whatever buffer the caller has.
        utf8 = utf8.view()
        utf8.flags.writeable = False
        # Upper bounds: pages that stay unused are never touched, so they cost no memory.
        codepoints = np.empty(utf8.size, dtype=np.uint32)
        classes = np.empty(utf8.size, dtype=np.uint8)
        codepoint_offsets = np.empty(n + 1, dtype=np.int64)
        valid = np.empty(n, dtype=np.bool_)
        contextual = np.empty(n, dtype=np.bool_)
        folded_lengths = np.empty(n, dtype=np.int64)
        kernels.decode(
            utf8, byte_offsets, tables.classes, tables.fold_length, tables.contextual,
            codepoints, classes, codepoint_offsets, valid, contextual, folded_lengths,
        )  # fmt: skip
        codepoints = codepoints[: codepoint_offsets[-1]]
        classes = classes[: codepoint_offsets[-1]]

        special = _fold_contextual(codepoints, codepoint_offsets, np.flatnonzero(contextual))
        for document, (text, _) in special.items():
            folded_lengths[document] = text.size
        folded_offsets = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(folded_lengths, out=folded_offsets[1:])
        folded = np.empty(folded_offsets[-1], dtype=np.uint32)
        folded_classes = np.empty(folded.size, dtype=np.uint8)
        folded_origin = np.empty(folded.size, dtype=np.int32)
        kernels.fold(
            codepoints, codepoint_offsets, contextual, tables.classes, tables.fold, tables.fold_length,
            tables.expansion, folded, folded_classes, folded_origin, folded_offsets,
        )  # fmt: skip
        for document, (text, origin) in special.items():
            place = slice(folded_offsets[document], folded_offsets[document + 1])
            folded[place] = text
            folded_classes[place] = tables.classes[text]
            folded_origin[place] = origin

        line_start = np.empty(int(np.count_nonzero(codepoints == 10)) + n, dtype=np.int64)
        line_end = np.empty_like(line_start)
        line_offsets = np.empty(n + 1, dtype=np.int64)
        kernels.split_lines(codepoints, codepoint_offsets, line_start, line_end, line_offsets)
        word_start = np.empty(folded.size, dtype=np.int64)
        word_end = np.empty(folded.size, dtype=np.int64)
        word_hash = np.empty(folded.size, dtype=np.uint64)
        word_offsets = np.empty(n + 1, dtype=np.int64)
        kernels.split_words(folded, folded_classes, folded_offsets, word_start, word_end, word_hash, word_offsets)
        words = word_offsets[-1]
        return cls(
            utf8=utf8, byte_offsets=byte_offsets, valid=valid,
            codepoints=codepoints, codepoint_offsets=codepoint_offsets, classes=classes,
            folded=folded, folded_offsets=folded_offsets, folded_classes=folded_classes, folded_origin=folded_origin,
            line_offsets=line_offsets, line_start=line_start[: line_offsets[-1]], line_end=line_end[: line_offsets[-1]],
            word_offsets=word_offsets, word_start=word_start[:words], word_end=word_end[:words],
            word_hash=word_hash[:words],
        )  # fmt: skip

    def text(self, document: int) -> str:
        """The text of one document; "" where it is not valid. For tests and slow paths only."""
        if not self.valid[document]:
            return ""
        part = self.utf8[self.byte_offsets[document] : self.byte_offsets[document + 1]]
        return part.tobytes().decode("utf-8")


def _fold_contextual(
    codepoints: NDArray[np.uint32], codepoint_offsets: NDArray[np.int64], documents: NDArray[np.int64]
) -> dict[int, tuple[NDArray[np.uint32], NDArray[np.int32]]]:
    """Folds documents in which neighbours matter; per document, folded code points and their origins."""
    folded = {}
    for document in documents.tolist():
        part = codepoints[codepoint_offsets[document] : codepoint_offsets[document + 1]]
        folded[document] = _fold_one(part.tobytes().decode("utf-32-le"))
    return folded


def _fold_one(text: str) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    # Composition never crosses the front of a segment, so segments normalise one by one.
    normalized: list[str] = []
    origins: list[int] = []
    for match in _segments().finditer(text):
        piece = unicodedata.normalize("NFKC", match[0])
        normalized.append(piece)
        origins.extend([match.start()] * len(piece))
    whole = "".join(normalized)
    lower = whole.lower()
    if len(lower) != len(whole):
        origins = [origin for origin, character in zip(origins, whole, strict=True) for _ in character.lower()]
    return np.frombuffer(lower.encode("utf-32-le"), dtype=np.uint32), np.array(origins, dtype=np.int32)


@cache
def _segments() -> re.Pattern[str]:
    """Matches one character and all that may combine with it."""
    return re.compile(f"(?s).[{_character_class(unicode_tables())}]*")


def _character_class(tables: UnicodeTables) -> str:
    # Capital sigma is contextual for its case only: it starts a segment like any letter.
    members = np.flatnonzero(tables.contextual)
    members = members[members != 0x3A3]
    breaks = np.flatnonzero(np.diff(members) != 1)
    firsts = members[np.concatenate(([0], breaks + 1))]
    lasts = members[np.concatenate((breaks, [members.size - 1]))]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(firsts, lasts, strict=True))
