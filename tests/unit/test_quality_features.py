"""Signs of prose, against plain Python on text written here."""

from __future__ import annotations

import numpy as np
import pytest

from dqs.text import TextBatch
from dqs.text.prose import FEATURES, prose_features

PROSE = (
    "The bridge was closed for repairs, so the postman walked the long way round by the mill.\n"
    "Nobody minded much, because the letters of that spring were all bills and the mill sold good bread."
)
MENU = "Home\nNews\nSport\nWeather\nLog in\nSubscribe\nContact"


def feature(text: str, name: str) -> float:
    return float(prose_features(TextBatch.from_bytes([text.encode()]))[0, FEATURES.index(name)])


def test_running_text_is_prose_and_a_menu_is_not() -> None:
    assert feature(PROSE, "prose_characters") == 1
    assert feature(PROSE, "menu_lines") == 0
    for name in ("menu_lines", "menu_characters", "menu_run_lines", "menu_head", "menu_tail"):
        assert feature(MENU, name) == 1
    assert feature(MENU, "longest_menu_run") == pytest.approx(np.log1p(7))


def test_a_menu_before_and_after_prose_stands_at_its_ends() -> None:
    page = f"{MENU}\n{PROSE}\n{PROSE}"

    assert feature(page, "menu_head") == 1
    assert feature(page, "menu_tail") == pytest.approx(2 / 6)
    assert feature(page, "menu_lines") == pytest.approx(7 / 11)
    assert feature(page, "menu_run_lines") == pytest.approx(7 / 11)


def test_wide_characters_take_two_columns() -> None:
    line = "春天大桥重新通车邮递员不再绕道镇上的人都说这一回修得又快又好谁也没有抱怨。"

    assert feature(line, "prose_characters") == 1
    assert feature(line, "line_columns") == pytest.approx(np.log(2 * len(line) - 1))


@pytest.mark.parametrize(
    ("text", "name", "count", "per"),
    [
        ('<p class="a">Bread</p> &amp; milk', "tags", 3, 30),
        ("caf\u00c3\u00b1 co\u00c3\u00a4te", "odd_latin", 4, 11),
        ("caf\u00c3\u00b1 co\u00c3\u00a4te", "odd_pairs", 2, 11),
        ("ca11 me n0w", "digit_edges", 3, 3),
        ("camelCase words Here", "inner_capitals", 1, 3),
        ("One. Two! Three?", "sentence_marks", 3, 3),
        ("红，黄、蓝；绿", "clause_marks", 3, 4),
        ("this is the bread", "function_words", 3, 4),
        ("bri d ge was clo s ed", "stray_letters", 2, 7),
        ("红 黄 蓝", "spaced_han", 2, 3),
        ("one two, bread milk salt flour sugar yeast", "content_runs", 6, 8),
        ("a " + "x" * 30, "long_words", 30, 31),
    ],
)
def test_shares_are_what_they_say(text: str, name: str, count: int, per: int) -> None:
    assert feature(text, name) == pytest.approx(count / per)


def test_cut_lines_end_in_an_ellipsis() -> None:
    assert feature("It was all...\nThe rest is here.\nAnd so…\nDone.", "cut_lines") == 0.5


def test_documents_do_not_touch_each_other() -> None:
    texts = [PROSE, "", MENU, " \n ", "红 黄 蓝", PROSE * 20]
    together = prose_features(TextBatch.from_bytes([text.encode() for text in texts]))
    for at, text in enumerate(texts):
        np.testing.assert_array_equal(together[at], prose_features(TextBatch.from_bytes([text.encode()]))[0])
    assert not together[1].any()
    assert not together[3].any()
    assert np.isfinite(together).all()


def test_shares_do_not_grow_with_length() -> None:
    names = ["prose_characters", "function_words", "sentence_marks", "clause_marks", "upper_case"]
    for name in names:
        assert feature("\n".join([PROSE] * 40), name) == pytest.approx(feature(PROSE, name), rel=0.02)
