"""Perplexity against a language model written by hand, missing values, batch cuts, percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import kenlm
import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.models import ModelFolder, find_models, model_roots, write_model
from dqs.scorer import ScoreColumns
from dqs.scorers.perplexity import PerplexityModel, PerplexityScorer, Reference
from dqs.text import TextBatch
from dqs.text.ccnet import normalise_ccnet
from dqs.text.vocabulary import BYTE_TOKENS, SPACE_TOKEN
from tests.unit.awkward import texts

WORDS = ["the", "cat", "sat", "on", "mat", "~ca", "~t", ".", "中", "文"]
BIGRAMS = {("<s>", "the"): -0.3, ("the", "cat"): -0.4, ("cat", "sat"): -0.2, ("中", "文"): -0.1, (".", "</s>"): -0.05}
BACKOFF = -0.5
UNIGRAM = -1.5
END = -1.0

REFERENCE = {
    "tokens": [10.0, 100.0],
    "percents": [5.0, 50.0, 95.0],
    "log10_perplexity": [[1.0, 1.5, 2.5], [1.2, 1.5, 2.0]],
}


def write_arpa(path: Path) -> None:
    words = [*WORDS, *BYTE_TOKENS, SPACE_TOKEN]
    lines = ["\\data\\", f"ngram 1={len(words) + 3}", f"ngram 2={len(BIGRAMS)}", "", "\\1-grams:"]
    lines += ["-9\t<unk>\t0", f"0\t<s>\t{BACKOFF}", f"{END}\t</s>\t0"]
    lines += [f"{UNIGRAM}\t{word}\t{BACKOFF}" for word in words]
    lines += ["", "\\2-grams:", *(f"{score}\t{first} {second}" for (first, second), score in BIGRAMS.items())]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")


def by_hand(lines: Sequence[Sequence[str]]) -> float:
    """log10 P of lines of tokens under the bigram model."""
    total = 0.0
    for line in lines:
        for first, second in zip(["<s>", *line], [*line, "</s>"], strict=True):
            total += BIGRAMS.get((first, second), BACKOFF + (END if second == "</s>" else UNIGRAM))
    return total


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    root = tmp_path_factory.mktemp("models")
    place = root / "tiny" / "1"
    place.mkdir(parents=True)
    write_arpa(place / "tiny.arpa")
    (place / "tiny.vocabulary").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return write_model(
        root, name="tiny", version="1", kind="perplexity", languages=["en", "zh"], normaliser="dqs",
        files={"language_model": "tiny.arpa", "vocabulary": "tiny.vocabulary"},
        tables={"perplexity": {"minimum_tokens": 4, "reference": REFERENCE}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scorer(folder: ModelFolder) -> PerplexityScorer:
    return PerplexityScorer([folder])


def score(scorer: PerplexityScorer, documents: Sequence[bytes], languages: Sequence[str]) -> ScoreColumns:
    columns = ScoreColumns(size=len(documents), language=list(languages))
    scorer.score(TextBatch.from_bytes(documents), columns)
    return columns


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("The cat sat on the mat.", [["the", "cat", "sat", "on", "the", "mat", "."]]),
        ("the cat\n\nsat on.\n", [["the", "cat"], ["sat", "on", "."]]),
        ("cats on", [["~ca", "~t", "%73", "on"]]),
        ("中文 中文", [["中", "文", "%_", "中", "文"]]),
        ("é on", [["%c3", "%a9", "on"]]),
    ],
)
def test_perplexity_by_hand(scorer: PerplexityScorer, text: str, lines: list[list[str]]) -> None:
    columns = score(scorer, [text.encode()], ["en"])
    tokens = sum(len(line) + 1 for line in lines)
    assert columns.values["perplexity"][0] == pytest.approx(10 ** (-by_hand(lines) / tokens), rel=1e-5)


def test_no_token_is_unknown_to_the_model(folder: ModelFolder) -> None:
    model = kenlm.Model(str(folder.file("language_model")))
    assert all(token in model for token in (*WORDS, *BYTE_TOKENS, SPACE_TOKEN))


def test_missing_values_say_why(scorer: PerplexityScorer) -> None:
    documents = [b"the cat sat on", b"the", b"", b"\xff", b"der Hund sitzt auf der Matte"]
    columns = score(scorer, documents, ["en", "en", "zh", "en", "de"])
    expected = [Missing.PRESENT, Missing.TOO_SHORT, Missing.TOO_SHORT, Missing.TOO_SHORT, Missing.NO_MODEL]
    for name in ("perplexity", "perplexity_percentile"):
        assert columns.missing[name].tolist() == expected
        assert np.isnan(columns.values[name]).tolist() == [code != Missing.PRESENT for code in expected]


@given(st.lists(texts, min_size=1, max_size=6), st.data())
def test_cuts_of_the_batch_change_no_bit(folder: ModelFolder, documents: list[str], data: st.DataObject) -> None:
    scorer = PerplexityScorer([folder])
    encoded = [f"{text} the cat".encode() for text in documents]
    languages = data.draw(st.lists(st.sampled_from(["en", "zh", "de"]), min_size=len(encoded), max_size=len(encoded)))
    whole = score(scorer, encoded, languages)
    for at in range(len(encoded)):
        alone = score(scorer, [encoded[at]], [languages[at]])
        for name in ("perplexity", "perplexity_percentile"):
            assert alone.values[name].tobytes() == whole.values[name][at : at + 1].tobytes()
            assert alone.missing[name][0] == whole.missing[name][at]


@given(texts)
def test_ranges(folder: ModelFolder, text: str) -> None:
    columns = score(PerplexityScorer([folder]), [f"{text} the cat sat".encode()], ["zh"])
    assert 1 <= columns.values["perplexity"][0] < math.inf
    assert 0 <= columns.values["perplexity_percentile"][0] <= 100


def test_a_line_of_a_million_tokens_keeps_its_precision(scorer: PerplexityScorer) -> None:
    text = b"mat " * 1_000_000
    columns = score(scorer, [text], ["en"])
    assert columns.values["perplexity"][0] == pytest.approx(10 ** -(UNIGRAM + BACKOFF), rel=1e-3)


def test_percentiles_rise_with_perplexity_and_have_no_steps_in_length() -> None:
    reference = Reference.from_table(REFERENCE, "tiny@1")
    values = np.linspace(0, 6, 2001)
    for tokens in (1, 10, 31, 100, 10_000):
        percentiles = reference.percentile(values, np.full(values.size, tokens))
        assert (np.diff(percentiles) >= 0).all()
        assert (np.diff(percentiles[values < 3]) > 0).all()
        assert percentiles[0] > 0
        assert percentiles[-1] <= 100
        assert np.abs(np.diff(percentiles)).max() < 1
    lengths = np.arange(1, 5000)
    for value in (0.5, 1.1, 1.5, 1.9, 2.4, 3.0):
        percentiles = reference.percentile(np.full(lengths.size, value), lengths)
        assert np.abs(np.diff(percentiles)).max() < 5


def test_percentiles_at_the_knots() -> None:
    reference = Reference.from_table(REFERENCE, "tiny@1")
    assert reference.percentile(np.array([1.0, 1.5, 2.5]), np.array([10, 10, 10])) == pytest.approx([5, 50, 95])
    assert reference.percentile(np.array([1.1, 1.5, 2.25]), np.full(3, round(1000**0.5))) == pytest.approx(
        [5, 50, 95], abs=0.5
    )


@pytest.mark.parametrize(
    "table",
    [
        {},
        {**REFERENCE, "tokens": ["ten", "hundred"]},
        {**REFERENCE, "tokens": [100.0, 10.0]},
        {**REFERENCE, "percents": [0.0, 50.0, 95.0]},
        {**REFERENCE, "log10_perplexity": [[1.0, 1.5, 2.5]]},
        {**REFERENCE, "log10_perplexity": [[1.0, 1.5, 1.5], [1.2, 1.5, 2.0]]},
    ],
)
def test_a_reference_that_does_not_fit_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="tiny@1"):
        Reference.from_table(table, "tiny@1")


def test_broken_files_are_named(tmp_path: Path, folder: ModelFolder) -> None:
    place = tmp_path / "broken" / "1"
    place.mkdir(parents=True)
    (place / "en.bin").write_bytes(b"no model")
    (place / "en.vocabulary").write_bytes(b"\xff\n")

    def write(normaliser: str, model: Path, **more: str) -> ModelFolder:
        (place / "en.arpa").write_bytes(model.read_bytes())
        return write_model(
            tmp_path, name="broken", version="1", kind="perplexity", languages=["en"], normaliser=normaliser,
            files={"language_model": "en.arpa", **more},
        )  # fmt: skip

    with pytest.raises(ModelError, match="no KenLM model"):
        PerplexityModel(write("dqs", place / "en.bin"))
    arpa = folder.file("language_model")
    with pytest.raises(ModelError, match="'vocabulary'"):
        PerplexityModel(write("dqs", arpa))
    with pytest.raises(ModelError, match="no vocabulary in UTF-8"):
        PerplexityModel(write("dqs", arpa, vocabulary="en.vocabulary"))
    with pytest.raises(ModelError, match="no SentencePiece model"):
        PerplexityModel(write("ccnet", arpa, sentencepiece="en.bin"))
    with pytest.raises(ModelError, match="unknown normaliser 'moses'"):
        PerplexityModel(write("moses", arpa))


def test_the_first_model_of_a_language_serves(tmp_path: Path, folder: ModelFolder) -> None:
    place = tmp_path / "other" / "1"
    place.mkdir(parents=True)
    for role in ("language_model", "vocabulary"):
        (place / role).write_bytes(folder.file(role).read_bytes())
    other = write_model(
        tmp_path, name="other", version="1", kind="perplexity", languages=["en"], normaliser="dqs",
        files={"language_model": "language_model", "vocabulary": "vocabulary"},
        tables={"perplexity": {"minimum_tokens": 100}},
    )  # fmt: skip
    both = PerplexityScorer([other, folder])
    columns = score(both, [b"the cat sat on", b"the cat sat on"], ["en", "zh"])
    assert columns.missing["perplexity"].tolist() == [Missing.TOO_SHORT, Missing.PRESENT]


CORPUS = [
    "the cat sat on the mat",
    "a cat and a dog",
    "数据质量很重要",
    "中文文本和英文文本",
    "the dog ran",
    "good data, good models.",
]


@pytest.fixture(scope="module")
def ccnet_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`xx.sp.model` and a language model over its pieces, named as CCNet names them."""
    root = tmp_path_factory.mktemp("ccnet")
    place = root / "ccnet-xx" / "1"
    place.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_prefix=str(place / "xx.sp"), vocab_size=60, hard_vocab_limit=False,
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(place / "xx.sp.model"))
    words = [pieces.id_to_piece(at) for at in range(3, pieces.vocab_size())]
    lines = ["\\data\\", f"ngram 1={len(words) + 3}", "ngram 2=1", "", "\\1-grams:"]
    lines += ["-4\t<unk>\t0", "0\t<s>\t-0.5", "-1\t</s>\t0"]
    lines += [f"-{1 + at / 100}\t{word}\t-0.3" for at, word in enumerate(words)]
    lines += ["", "\\2-grams:", f"-0.5\t{words[0]} {words[1]}"]
    (place / "xx.arpa.bin").write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    return root


@pytest.mark.parametrize("normaliser", ["ccnet", "edugp", "raw"])
def test_a_ccnet_pair_serves_by_writing_a_model_toml(ccnet_pair: Path, normaliser: str) -> None:
    write_model(
        ccnet_pair, name="ccnet-xx", version="1", kind="perplexity", languages=["xx"], normaliser=normaliser,
        files={"language_model": "xx.arpa.bin", "sentencepiece": "xx.sp.model"},
    )  # fmt: skip
    (folder,) = find_models([ccnet_pair])
    text = "The cat sat on the mat,\nmore than 12 times。数据质量"
    columns = score(PerplexityScorer([folder]), [text.encode(), b"cat"], ["xx", "xx"])

    prepared = {
        "ccnet": normalise_ccnet(text),
        "edugp": "The cat sat on the mat,more than 00 times.数据质量",
        "raw": text,
    }[normaliser]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder.file("sentencepiece")))
    line = " ".join(pieces.encode(prepared, out_type=str))
    model = kenlm.Model(str(folder.file("language_model")))
    expected = 10 ** (-model.score(line) / (len(line.split()) + 1))
    assert columns.values["perplexity"][0] == pytest.approx(expected, rel=1e-6)
    assert columns.missing["perplexity"].tolist() == [Missing.PRESENT, Missing.TOO_SHORT]
    assert columns.missing["perplexity_percentile"].tolist() == [Missing.NO_MODEL, Missing.TOO_SHORT]


SHIPPED = [folder for folder in find_models(model_roots(), kind="perplexity") if folder.name.startswith("perplexity-")]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_models(folder: ModelFolder) -> None:
    folder.verify()
    assert folder.file("language_model").stat().st_size < 20e6
    assert (folder.path / "CARD.md").is_file()
    clean, noise = {
        "en": (
            "The committee met on Tuesday to discuss the annual report. Most members agreed that the figures were "
            "sound, although some of them asked for more detail about the costs of the new building.",
            "Tbe cornmittee rnet 0n Tuesclay t0 discnss tbe aunual rep0rt. M0st mernbers agreecl tbat tbe fignres",
        ),
        "zh": (
            "委员会星期二召开会议，讨论年度报告。多数委员认为数据可靠，但也有人希望进一步说明新大楼的费用。会议决定下个月再次讨论。",
            "费用委星大会开楼召多告讨二会，数员论度年报员期委会。数认靠也，据可但为人步说有一进望希的新议明下。会决个再月讨定次",
        ),
    }[folder.languages[0]]
    columns = score(PerplexityScorer([folder]), [clean.encode(), noise.encode()], [folder.languages[0]] * 2)
    good, bad = columns.values["perplexity_percentile"].tolist()
    assert good < 90 < bad
    assert columns.values["perplexity"][0] < columns.values["perplexity"][1]
