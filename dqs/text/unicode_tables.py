"""Per-code-point tables that the kernels look up: character classes and NFKC folding.

Built from the interpreter's own `unicodedata`, so that kernels and plain
Python agree about every character. Knows nothing of documents.
"""

from __future__ import annotations

import enum
import functools
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CODE_POINTS = 0x110000

# Above these no code point has a decomposition, a case or a class that the tables hold.
_ASSIGNED = (range(0x0, 0x33480), range(0xE0000, 0xE01F0))

_HAN = ((0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_KANA = ((0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
_OTHER_UNSPACED = (
    (0x3105, 0x312F),
    (0x31A0, 0x31BF),
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
)

_FINAL_SIGMA_SOURCE = "\u03a3"


class CharClass(enum.IntFlag):
    """Bit flags of one code point.

    WORD is Python's notion of a word character: `c.isalnum() or c == "_"`.
    UNSPACED marks scripts written without spaces between words (Han, kana,
    bopomofo, Thai, Lao, Tibetan, Burmese, Khmer). Marks, controls, private-use
    and unassigned code points have no flag.
    """

    LETTER = 1
    DIGIT = 2
    PUNCTUATION = 4
    SYMBOL = 8
    SPACE = 16
    HAN = 32
    UNSPACED = 64
    WORD = 128


# Plain numbers, because the tables are built at every start and operations on flags take a microsecond each.
_SPACE, _WORD = int(CharClass.SPACE), int(CharClass.WORD)
_FLAGS_OF_CATEGORY = {
    "L": int(CharClass.LETTER),
    "N": int(CharClass.DIGIT),
    "P": int(CharClass.PUNCTUATION),
    "S": int(CharClass.SYMBOL),
}


@dataclass(frozen=True, slots=True, eq=False)
class UnicodeTables:
    """Lookup tables, all indexed by code point but `expansion`.

    Attributes:
        classes: uint8[0x110000] of `CharClass` flags.
        fold: uint32[0x110000]; the code point after NFKC and lower case where that is
            one code point, else the position of its expansion in `expansion`.
        fold_length: uint8[0x110000]; number of code points after folding.
        contextual: bool[0x110000]; true where folding depends on the neighbours
            (combining marks, conjoining jamo, capital sigma), so that a document
            that holds one is folded as a whole.
        expansion: uint32[n]; the folded forms longer than one code point, end to end.
    """

    classes: NDArray[np.uint8]
    fold: NDArray[np.uint32]
    fold_length: NDArray[np.uint8]
    contextual: NDArray[np.bool_]
    expansion: NDArray[np.uint32]


def fold_text(text: str) -> str:
    """NFKC, then lower case: the definition that the tables reproduce."""
    return unicodedata.normalize("NFKC", text).lower()


@functools.cache
def unicode_tables() -> UnicodeTables:
    """The tables of this interpreter's Unicode version; built once a process (about 0.3 s)."""
    classes = np.zeros(CODE_POINTS, dtype=np.uint8)
    fold = np.arange(CODE_POINTS, dtype=np.uint32)
    fold_length = np.ones(CODE_POINTS, dtype=np.uint8)
    contextual = np.zeros(CODE_POINTS, dtype=np.bool_)
    expansion: list[int] = []
    composing = _second_of_compositions()
    for block in _ASSIGNED:
        for code_point in block:
            character = chr(code_point)
            category = unicodedata.category(character)
            if category in ("Cn", "Cs"):
                continue
            classes[code_point] = _class_of(character, category)
            if unicodedata.combining(character) or code_point in composing:
                contextual[code_point] = True
                continue
            if unicodedata.is_normalized("NFKC", character) and character.lower() == character:
                continue
            normalized = unicodedata.normalize("NFKC", character)
            first = unicodedata.normalize("NFKD", character)[0]
            contextual[code_point] = (
                unicodedata.combining(first) != 0 or ord(first) in composing or _FINAL_SIGMA_SOURCE in normalized
            )
            folded = normalized.lower()
            if len(folded) == 1:
                fold[code_point] = ord(folded)
            else:
                fold[code_point] = len(expansion)
                fold_length[code_point] = len(folded)
                expansion.extend(map(ord, folded))
    for low, high in _HAN:
        _add_to_assigned(classes, low, high, CharClass.HAN | CharClass.UNSPACED)
    for low, high in _KANA + _OTHER_UNSPACED:
        _add_to_assigned(classes, low, high, CharClass.UNSPACED)
    return UnicodeTables(classes, fold, fold_length, contextual, np.array(expansion, dtype=np.uint32))


def _add_to_assigned(classes: NDArray[np.uint8], low: int, high: int, flags: CharClass) -> None:
    part = classes[low : high + 1]
    part[(part & CharClass.WORD) != 0] |= np.uint8(flags)


def _class_of(character: str, category: str) -> int:
    flags = _FLAGS_OF_CATEGORY.get(category[0], 0)
    if character.isspace():
        flags |= _SPACE
    if character.isalnum() or character == "_":
        flags |= _WORD
    return flags


@functools.cache
def lower_table() -> NDArray[np.uint32]:
    """uint32[0x110000]: every code point in lower case where that is one code point, else itself; shared."""
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    for block in _ASSIGNED:
        for code_point in block:
            lower = chr(code_point).lower()
            if len(lower) == 1:
                table[code_point] = ord(lower)
    return table


def _second_of_compositions() -> frozenset[int]:
    """Code points that may join the one before them under canonical composition."""
    seconds = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for block in _ASSIGNED:
        for code_point in block:
            decomposition = unicodedata.decomposition(chr(code_point))
            if decomposition and decomposition[0] != "<":
                parts = decomposition.split()
                if len(parts) == 2:
                    seconds.add(int(parts[1], 16))
    return frozenset(seconds)
