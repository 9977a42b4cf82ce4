"""Ways in which people hide words from filters, done to texts on purpose.

Training sees some of them, so that a model knows the disguised forms; the
benchmark measures what each costs. Every disguise takes a text and a random
generator and returns the text with about `share` of its words or characters
changed. Sounds of Chinese characters are those of pypinyin. Knows nothing of models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dqs.text.ngrams import FIRST_SOUND, SOUNDS
from dqs.text.simplified import simplified_characters

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


def traditional(text: str, rng: np.random.Generator, share: float) -> str:
    """Writes all simplified characters as traditional ones, whatever the share."""
    return text.translate(_traditional_forms())


def homophones(text: str, rng: np.random.Generator, share: float) -> str:
    """Writes other common characters of the same sound."""

    def change(match: re.Match[str]) -> str:
        others = _same_sound().get(match.group(), "")
        return others[int(rng.integers(len(others)))] if others and rng.random() < share * 0.5 else match.group()

    return _HAN.sub(change, text)


def pinyin(text: str, rng: np.random.Generator, share: float) -> str:
    """Spells characters in Latin letters, at times by the first letter alone."""

    def change(match: re.Match[str]) -> str:
        if rng.random() >= share * 0.4:
            return match.group()
        spelled = syllable(match.group())
        return spelled[0] if rng.random() < 0.2 else spelled

    return _HAN.sub(change, text)


DISGUISES: Final[Mapping[str, Mapping[str, Disguise]]] = {
    "en": {
        "full_width": full_width,
        "leet": leet,
        "inserted_symbols": inserted_symbols,
        "masked_letter": masked_letter,
        "doubled_letters": doubled_letters,
    },
    "zh": {
        "full_width": full_width,
        "traditional": traditional,
        "inserted_symbols": inserted_symbols,
        "homophones": homophones,
        "pinyin": pinyin,
    },
}
"""By language and name."""


def syllable(character: str) -> str:
    """The Mandarin syllable of a character without its tone, `v` for ü; the character itself where it has none."""
    # Imported here, because English needs none of it.
    from pypinyin import Style, lazy_pinyin

    spelled: str = lazy_pinyin(character, style=Style.NORMAL, v_to_u=False)[0]
    return spelled if spelled.isascii() and spelled.isalpha() else character


def sound_classes() -> NDArray[np.uint16]:
    """uint16[SOUNDS]: class of each character from `FIRST_SOUND` on, equal for equal syllables; 0 for none.

    Classes are numbered in the order of their first character.
    """
    numbers: dict[str, int] = {}
    classes = np.zeros(SOUNDS, dtype=np.uint16)
    for at in range(SOUNDS):
        character = chr(FIRST_SOUND + at)
        spelled = syllable(character)
        if spelled != character:
            classes[at] = numbers.setdefault(spelled, len(numbers) + 1)
    return classes


@functools.cache
def _traditional_forms() -> dict[int, str]:
    forms: dict[int, str] = {}
    for old, new in simplified_characters():
        forms.setdefault(ord(new), old)
    return forms


@functools.cache
def _same_sound() -> dict[str, str]:
    """Of each common character the other common ones of its sound."""
    # The first level of GB 2312: the 3,755 characters in everyday use.
    common = bytes(byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for byte in (row, cell))
    groups: dict[str, list[str]] = {}
    for character in common.decode("gb2312", "ignore"):
        groups.setdefault(syllable(character), []).append(character)
    return {
        character: "".join(other for other in group if other != character)
        for group in groups.values()
        for character in group
    }
