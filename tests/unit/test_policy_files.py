"""Policy files: what is read, what is refused with which sentence, and the shipped presets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqs.data import Label, Missing
from dqs.errors import PolicyError
from dqs.policy import find_policies, load_policies, load_policy, parse_policy
from dqs.scorer import ScoreColumns

GOOD = """
name = "mine"
version = 3
description = "For tests."

[missing]
too_short = "drop"

[[rules]]
id = "toxic"
signal = "toxicity"
operator = ">"
threshold = {en = 0.9, zh = 0.8}
min_characters = 100

[[rules]]
id = "short"
signal = "characters"
operator = "<"
threshold = 20
languages = ["en"]
label = "review"
missing = {too_short = "pass", no_model = "review"}
"""


def test_reads_every_field() -> None:
    policy = parse_policy(GOOD, "mine.toml", {"toxicity", "characters"})
    assert policy.label == "mine@3"
    assert not policy.index_dropped
    assert policy.signals == {"toxicity", "characters"}
    english, chinese, short = policy.rules
    assert (english.id, english.threshold, english.languages) == ("toxic", 0.9, frozenset({"en"}))
    assert (chinese.id, chinese.threshold, chinese.languages) == ("toxic", 0.8, frozenset({"zh"}))
    assert english.missing[Missing.TOO_SHORT] == Label.DROP
    assert (english.min_characters, chinese.min_characters, short.min_characters) == (100, 100, 0)
    assert short.label == Label.REVIEW
    assert short.missing[Missing.TOO_SHORT] == Label.KEEP
    assert short.missing[Missing.NO_MODEL] == Label.REVIEW
    assert short.missing[Missing.UNAVAILABLE] == Label.REVIEW


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            '"toxicity"',
            '"toxicty"',
            "rule 'toxic': unknown signal 'toxicty'; allowed are: characters, toxicity",
        ),
        ('">"', '"=="', "rule 'toxic': unknown operator '=='; allowed are: < <= > >="),
        (
            "label =",
            "lable =",
            "rule 'short': unknown field 'lable'; allowed are: id, signal",
        ),
        (
            '"review"\nmissing',
            '"maybe"\nmissing',
            "unknown label 'maybe'; allowed are: drop, review",
        ),
        ('id = "short"', 'id = "toxic"', "rule 'toxic' stands twice"),
        ('id = "short"\n', "", "rule 2: the field 'id' is missing"),
        ('id = "short"', 'id = "Too Short"', "id must be lower-case"),
        ("threshold = 20", 'threshold = "20"', "threshold must be a finite number"),
        ("threshold = 20", "threshold = nan", "threshold must be a finite number"),
        ("threshold = 20", "threshold = true", "threshold must be a finite number"),
        ("threshold = 20", "threshold = {en = 20}", "not both"),
        ("{en = 0.9, zh = 0.8}", "{}", "empty table"),
        ("min_characters = 100", "min_characters = -1", "min_characters must be a whole number"),
        ('languages = ["en"]', 'languages = ["eng"]', "no ISO 639-1 code"),
        ("{en = 0.9, zh = 0.8}", "{English = 0.9}", "'English' is no ISO 639-1 code"),
        ('["en"]', '"en"', "languages must be a list"),
        ('["en"]', "[]", "languages must be a list"),
        (
            'no_model = "review"',
            'no_model = "keep"',
            "missing.no_model = 'keep'; allowed are: pass, review, drop",
        ),
        (
            'no_model = "review"',
            'lost = "review"',
            "unknown missing code 'lost'; allowed are: too_short",
        ),
        ('too_short = "drop"', "too_short = 1", "allowed are: pass, review, drop"),
        ("version = 3", "version = 0", "version must be a whole number from 1"),
        ("version = 3", 'version = "3"', "version must be a whole number from 1"),
        ("version = 3", "", "the field 'version' is missing"),
        ('name = "mine"', 'name = "../mine"', "name must be lower-case"),
        (
            "version = 3",
            "version = 3\nauthor = 1",
            "unknown field 'author'; allowed are: name, version",
        ),
        ("version = 3", "version = ", "not valid TOML"),
        (
            "version = 3",
            "version = 3\nindex_dropped = 1",
            "index_dropped must be true or false",
        ),
    ],
)
def test_refuses_with_a_sentence_that_names_the_place(old: str, new: str, expected: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(PolicyError) as caught:
        parse_policy(GOOD.replace(old, new, 1), "mine.toml", {"toxicity", "characters"})
    assert caught.value.message.startswith("mine.toml")
    assert expected in caught.value.message
    assert "\n" not in caught.value.message.removesuffix("\n")


def test_user_directory_comes_before_the_presets(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text('name = "default"\nversion = 7\n')
    assert load_policy("default", tmp_path).version == 7
    assert load_policy("default").version != 7
    assert not find_policies(tmp_path)["default"].shipped
    assert find_policies()["default"].shipped


def test_an_unknown_policy_names_those_that_exist() -> None:
    with pytest.raises(PolicyError, match="no policy 'defualt'; there are: default, score-only"):
        load_policy("defualt")


def test_a_path_is_no_policy_name(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "x.toml").write_text('name = "x"\nversion = 1\n')
    with pytest.raises(PolicyError, match="there is no policy"):
        load_policy("../x", tmp_path / "inner")


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="does not exist"):
        load_policies(tmp_path / "absent")


def test_a_file_must_be_named_after_its_policy(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('name = "mine"\nversion = 1\n')
    with pytest.raises(PolicyError, match=r"must equal the file's name"):
        load_policy("other", tmp_path)


def test_an_unreadable_file_is_a_policy_error(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy("bad", tmp_path)


def scores(**signals: float | Missing) -> ScoreColumns:
    columns = ScoreColumns(1)
    for name, cell in signals.items():
        missing = cell if isinstance(cell, Missing) else Missing.PRESENT
        value = np.nan if isinstance(cell, Missing) else cell
        columns.put(name, np.array([value], np.float32), np.array([missing], np.uint8))
    return columns


GOOD_PROSE = {
    "characters": 900.0,
    "letter_share": 0.8,
    "punctuation_share": 0.05,
    "han_share": 0.85,
    "mean_word_length": 4.7,
    "perplexity_percentile": 50.0,
    "toxicity": 0.01,
    "duplicate_similarity": 0.0,
    "exact_duplicate": 0.0,
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_default_keeps_good_prose_and_passes_what_is_too_short(language: str) -> None:
    policy = load_policies()["default"]
    assert policy.rules
    for change in (
        {},
        {"perplexity_percentile": Missing.TOO_SHORT, "toxicity": Missing.TOO_SHORT},
    ):
        columns = scores(**{**GOOD_PROSE, **change})
        columns.language = [language]
        decision = policy.decide(columns)
        assert list(decision.reasons) == [()]
        assert decision.labels.tolist() == [Label.KEEP]


@pytest.mark.parametrize("language", ["de", "und"])
def test_default_gives_an_unsupported_language_exactly_that_reason(
    language: str,
) -> None:
    columns = scores(
        **{
            **GOOD_PROSE,
            "perplexity": Missing.NO_MODEL,
            "perplexity_percentile": Missing.NO_MODEL,
            "toxicity": Missing.NO_MODEL,
            "letter_share": 0.1,
        }
    )
    columns.language = [language]
    decision = load_policy("default").decide(columns)
    assert decision.labels.tolist() == [Label.DROP]
    assert [reason.rule for reason in decision.reasons[0]] == ["unsupported_language"]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"duplicate_similarity": 0.9}, "near_duplicate"),
        ({"toxicity": 1.0}, "toxic"),
        ({"perplexity_percentile": 100.0}, "unnatural_text"),
        ({"duplicate_10gram_share": 0.9}, "repeated_10gram"),
    ],
)
def test_default_drops_in_both_languages(language: str, change: dict[str, float], rule: str) -> None:
    columns = scores(**{**GOOD_PROSE, **change})
    columns.language = [language]
    decision = load_policy("default").decide(columns)
    assert decision.labels.tolist() == [Label.DROP]
    assert [reason.rule for reason in decision.reasons[0]] == [rule]


def test_score_only_keeps_and_indexes_everything() -> None:
    policy = load_policy("score-only")
    assert policy.rules == ()
    assert policy.index_dropped
