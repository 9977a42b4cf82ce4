"""Ways in which people hide words from filters, done to texts on purpose.

Training sees some of them, so that a model knows the disguised forms; the
benchmark measures what each costs. Every function takes a text and a random
generator and returns the text with about `share` of its words or characters
changed. Knows nothing of models.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

_LEET: Final = {"a": "@4", "e": "3", "i": "1!", "o": "0", "s": "$5", "t": "7", "l": "1", "g": "9", "b": "8"}
_SYMBOLS: Final = "*.-_#|~"
_WORD = re.compile(r"[A-Za-z]{3,}")
_HAN = re.compile(r"[\u4e00-\u9fff]")

Disguise = Callable[[str, np.random.Generator, float], str]


def full_width(text: str, rng: np.random.Generator, share: float) -> str:
    """Writes Latin words in full-width letters."""

    def change(match: re.Match[str]) -> str:
        word = match.group()
        return "".join(chr(ord(letter) + 0xFEE0) for letter in word) if rng.random() < share else word

    return _WORD.sub(change, text)


def leet(text: str, rng: np.random.Generator, share: float) -> str:
    """Writes digits and symbols for one or two letters of Latin words."""

    def change(match: re.Match[str]) -> str:
        letters = list(match.group())
        places = [i for i, letter in enumerate(letters) if letter.lower() in _LEET]
        if not places or rng.random() >= share:
            return match.group()
        for i in rng.choice(places, size=min(len(places), int(rng.integers(1, 3))), replace=False):
            forms = _LEET[letters[i].lower()]
            letters[i] = forms[int(rng.integers(len(forms)))]
        return "".join(letters)

    return _WORD.sub(change, text)


def inserted_symbols(text: str, rng: np.random.Generator, share: float) -> str:
    """Puts a symbol into Latin words, between all letters of short ones at times, and between Han characters."""

    def in_word(match: re.Match[str]) -> str:
        word = match.group()
        if rng.random() >= share:
            return word
        symbol = _SYMBOLS[int(rng.integers(len(_SYMBOLS)))]
        if len(word) <= 6 and rng.random() < 0.3:
            return symbol.join(word)
        at = int(rng.integers(1, len(word)))
        return word[:at] + symbol + word[at:]

    def in_han(match: re.Match[str]) -> str:
        symbol = _SYMBOLS[int(rng.integers(len(_SYMBOLS)))]
        return match.group() + symbol if rng.random() < share * 0.5 else match.group()

    return _HAN.sub(in_han, _WORD.sub(in_word, text))


def masked_letter(text: str, rng: np.random.Generator, share: float) -> str:
    """Replaces one inner letter of Latin words by a star."""

    def change(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < 4 or rng.random() >= share:
            return word
        at = int(rng.integers(1, len(word) - 1))
        return word[:at] + "*" + word[at + 1 :]

    return _WORD.sub(change, text)


def doubled_letters(text: str, rng: np.random.Generator, share: float) -> str:
    """Stretches one letter of Latin words."""

    def change(match: re.Match[str]) -> str:
        word = match.group()
        if rng.random() >= share:
            return word
        at = int(rng.integers(1, len(word)))
        return word[:at] + word[at] * int(rng.integers(1, 4)) + word[at:]

    return _WORD.sub(change, text)
