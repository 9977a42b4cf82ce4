"""Traditional Chinese characters and their simplified forms, one for one."""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from dqs.text.unicode_tables import CODE_POINTS


@functools.cache
def simplified_characters() -> tuple[tuple[str, str], ...]:
    """Pairs of a traditional character and the simplified one that it is read as; see `simplified.toml`."""
    table = tomllib.loads(files("dqs.text").joinpath("simplified.toml").read_text("utf-8"))
    return tuple(zip(table["traditional"], table["simplified"], strict=True))


@functools.cache
def simplified_table() -> NDArray[np.uint32]:
    """uint32[0x110000]: the simplified form of a traditional character, every other code point as it is; shared."""
    table = np.arange(CODE_POINTS, dtype=np.uint32)
    for traditional, simplified in simplified_characters():
        table[ord(traditional)] = ord(simplified)
    return table
