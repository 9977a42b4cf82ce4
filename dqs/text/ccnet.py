"""Text normalisers of published KenLM models: the same strings as the programs that trained them.

| name    | what it does before SentencePiece                                        | lines end at     |
|---------|--------------------------------------------------------------------------|------------------|
| `ccnet` | strip, lower case, no accents, digits to 0, ASCII punctuation, no controls | LF (none is left) |
| `edugp` | strip, digits to 0, ASCII punctuation, no controls                       | LF (none is left) |
| `raw`   | nothing                                                                  | `str.splitlines` |

Control characters include LF, so `ccnet` and `edugp` glue lines without a space.

Source: `ccnet` is facebookresearch/cc_net@bda555b `text_normalizer.normalize` with its defaults;
`edugp` is `KenlmModel.from_pretrained` of the Hugging Face repository edugp/kenlm (no lower
case, accents kept); `raw` is datajuicer/data-juicer@1dc20a5 `perplexity_filter`. All three round
the perplexity to one decimal, which we leave to whoever displays it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

# As published; "１" is unreachable there, too, since digits are replaced before.
_PUNCTUATION: Final = str.maketrans(
    {
        "，": ",", "。": ".", "、": ",", "„": '"', "”": '"', "“": '"', "«": '"', "»": '"', "１": '"', "」": '"',
        "「": '"', "《": '"', "》": '"', "´": "'", "∶": ":", "：": ":", "？": "?", "！": "!", "（": "(", "）": ")",
        "；": ";", "–": "-", "—": " - ", "．": ". ", "～": "~", "’": "'", "…": "...", "━": "-", "〈": "<", "〉": ">",
        "【": "[", "】": "]", "％": "%", "►": "-",
    }
)  # fmt: skip
_CONTROLS: Final = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)))
_DIGIT: Final = re.compile(r"\d")


def normalise_ccnet(text: str) -> str:
    """Normalises as CCNet does before it tokenises a document."""
    decomposed = unicodedata.normalize("NFD", text.strip().lower())
    return _shared("".join(character for character in decomposed if unicodedata.category(character) != "Mn"))


def normalise_edugp(text: str) -> str:
    """Normalises as the models of edugp/kenlm do when loaded by `from_pretrained`."""
    return _shared(text.strip())


def normalise_raw(text: str) -> str:
    """Returns the text as it is."""
    return text


def _shared(text: str) -> str:
    return _DIGIT.sub("0", text).translate(_PUNCTUATION).translate(_CONTROLS)


def split_at_lf(text: str) -> list[str]:
    """Cuts tokenised text into the lines that CCNet and edugp score."""
    return text.split("\n")


NORMALISERS: Final[Mapping[str, tuple[Callable[[str], str], Callable[[str], list[str]]]]] = MappingProxyType(
    {
        "ccnet": (normalise_ccnet, split_at_lf),
        "edugp": (normalise_edugp, split_at_lf),
        "raw": (normalise_raw, str.splitlines),
    }
)
"""Name → what is done to the text, how its pieces (joined by spaces) are cut into lines."""
