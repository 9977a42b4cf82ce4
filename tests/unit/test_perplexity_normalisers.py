"""Normalisers of published models: golden vectors of what their programs return."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given

from dqs.text.ccnet import NORMALISERS, normalise_ccnet, normalise_edugp, normalise_raw
from tests.unit.awkward import texts

# text, ccnet, edugp
GOLDEN = [
    ("line one\nline two", "line oneline two", "line oneline two"),
    ("  Café №9 Ünïcode  ", "cafe №0 unicode", "Café №0 Ünïcode"),
    ("你好，世界。（测试）！", "你好,世界.(测试)!", "你好,世界.(测试)!"),
    ("【第１章】《书》「引」", '[第0章]"书""引"', '[第0章]"书""引"'),
    ("“double” ‘single’ … — –", "\"double\" ‘single' ...  -  -", "\"double\" ‘single' ...  -  -"),
    ("٣ ３ ½ ²", "0 0 ½ ²", "0 0 ½ ²"),
    ("A\tB\x00C\x7fD\x85E\xa0F", "abcde\xa0f", "ABCDE\xa0F"),
    ("İSTANBUL ΣΑΣ", "istanbul σας", "İSTANBUL ΣΑΣ"),
    ("각 が", "각 か", "각 が"),
    ("a．b～c：d∶e；f？g％h►i━j〈k〉", "a. b~c:d:e;f?g%h-i-j<k>", "a. b~c:d:e;f?g%h-i-j<k>"),
    ("„low“ «guillemets» ´acute´", "\"low\" \"guillemets\" 'acute'", "\"low\" \"guillemets\" 'acute'"),
    ("   ", "", ""),
    ("", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ccnet", "edugp"), GOLDEN)
def test_golden_vectors(text: str, ccnet: str, edugp: str) -> None:
    # NFD takes Hangul apart and CCNet leaves it so.
    assert normalise_ccnet(text) == unicodedata.normalize("NFD", ccnet)
    assert normalise_edugp(text) == edugp
    assert normalise_raw(text) == text


def test_lines_are_glued_and_raw_keeps_them() -> None:
    text = "one\ntwo\u2028three"
    for name, lines in (("ccnet", 1), ("edugp", 1), ("raw", 3)):
        normalise, split = NORMALISERS[name]
        assert len(split(normalise(text))) == lines


@given(texts)
def test_what_never_survives(text: str) -> None:
    for normalise in (normalise_ccnet, normalise_edugp):
        out = normalise(text)
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]|[1-9]|[，。（）“”…—►]", out)
    assert not any(unicodedata.category(character) == "Mn" for character in normalise_ccnet(text))
