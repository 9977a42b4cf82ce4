"""How a passage is written: case, marks and signs that tell what people post from edited prose. Knows no threshold."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

MANNERS = ("starts_upper", "starts_lower", "upper_share", "titles", "marks", "commas", "handles", "emoji")
"""Names of the columns of `measure_manner`, in order."""

_A, _Z, _CASE = ord("A"), ord("Z"), ord("a") - ord("A")
_SPACE, _LINE, _RETURN, _TAB = ord(" "), ord("\n"), ord("\r"), ord("\t")
_EXCLAMATION, _QUESTION, _WIDE_EXCLAMATION, _WIDE_QUESTION = map(ord, "!?！？")
_COMMA, _AT, _NUMBER = map(ord, ",@#")
_SIGNS, _PAST_SIGNS, _PICTURES = 0x2600, 0x2800, 0x1F000


@njit(cache=True, nogil=True)
def measure_manner(
    codepoints: NDArray[np.uint32], start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Measures k passages.

    Args:
        codepoints: uint32; the texts, one behind the other.
        start: int64[k]; index of each passage's first code point.
        end: int64[k]; index past its last.

    Returns:
        float32[k, len(MANNERS)]: whether the first character is a capital, whether it is a small letter (0 or 1);
        share of capitals among the characters; share of words that begin with a capital, the first word left out;
        then the natural logarithm of one plus the number of exclamation and question marks, of commas, of the signs
        @ and #, of emoji. Letters are those of ASCII.
    """
    found = np.zeros((start.size, 8), dtype=np.float32)
    for k in range(start.size):
        words = titles = capitals = marks = commas = handles = emoji = 0
        inside = False
        for at in range(start[k], end[k]):
            code = codepoints[at]
            if code in (_SPACE, _LINE, _RETURN, _TAB):
                inside = False
                continue
            upper = _A <= code <= _Z
            if not inside:
                if words == 0:
                    found[k, 0] = upper
                    found[k, 1] = _A + _CASE <= code <= _Z + _CASE
                elif upper:
                    titles += 1
                words += 1
                inside = True
            if upper:
                capitals += 1
            elif code in (_EXCLAMATION, _QUESTION, _WIDE_EXCLAMATION, _WIDE_QUESTION):
                marks += 1
            elif code == _COMMA:
                commas += 1
            elif code in (_AT, _NUMBER):
                handles += 1
            elif code >= _PICTURES or _SIGNS <= code < _PAST_SIGNS:
                emoji += 1
        found[k, 2] = capitals / max(end[k] - start[k], 1)
        found[k, 3] = titles / max(words - 1, 1)
        found[k, 4] = math.log1p(marks)
        found[k, 5] = math.log1p(commas)
        found[k, 6] = math.log1p(handles)
        found[k, 7] = math.log1p(emoji)
    return found
