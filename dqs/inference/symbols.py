"""Pictures among the letters, by name: networks whose tokens know no emoji know the words for them."""

from __future__ import annotations

import functools
import re
import unicodedata

_FIRST = 0x2000
"""Symbols below are letters' neighbours, such as the signs of degrees and of registered names."""
_MARKS = ("\ufe0f", "\u200d")
"""Say how a picture is drawn, and join pictures; they have no meaning of their own."""


def name_symbols(text: str) -> str:
    """Writes the Unicode name of every picture, in small letters, in its place, as words of their own."""
    return text if text.isascii() else _symbols().sub(_named, text)


def _named(match: re.Match[str]) -> str:
    character = match.group()
    return "" if character in _MARKS else f" {unicodedata.name(character, '').lower()} "


@functools.cache
def _symbols() -> re.Pattern[str]:
    """Matches one character of the categories So and Sk from `_FIRST` on, or one of `_MARKS`."""
    ranges: list[list[int]] = []
    for code in range(_FIRST, 0x110000):
        if unicodedata.category(chr(code)) in ("So", "Sk"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    listed = "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)
    return re.compile(f"[{listed}{''.join(_MARKS)}]")
