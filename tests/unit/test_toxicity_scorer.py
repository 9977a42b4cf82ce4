"""The toxicity scorer on a small model made by hand: windows, spans, missing values, damaged folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqs.data import Missing
from dqs.errors import ModelError
from dqs.models import ModelFolder, load_model, write_model
from dqs.scorer import ScoreColumns
from dqs.scorers.toxicity import ToxicityModel, ToxicityScorer
from dqs.text import TextBatch
from dqs.text.ngrams import NgramShape, hash_ngrams
from dqs.training.toxicity import LinearModel, Recipe, build_graph, window_scores, write_toxicity_model
from tests.unit.awkward import raw_documents

SHAPE = NgramShape(word_sizes=2, character_sizes=(3,), bits=12, block_words=4)
RECIPE = Recipe(shape=SHAPE)
MODEL = LinearModel(np.random.default_rng(3).normal(size=1 << 12).astype(np.float32), scale=0.7, offset=-0.3)


def write(root: Path, language: str, model: LinearModel = MODEL, name: str | None = None) -> ModelFolder:
    return write_toxicity_model(
        model, RECIPE, root, name=name or f"toxicity-{language}", version="1", language=language
    )


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write(tmp_path_factory.mktemp("models"), "en")


@pytest.fixture(scope="module")
def scorer(english: ModelFolder) -> ToxicityScorer:
    return ToxicityScorer(models=[english])


def score(scorer: ToxicityScorer, texts: list[bytes], languages: list[str] | None = None) -> ScoreColumns:
    columns = ScoreColumns(len(texts), language=languages or ["en"] * len(texts))
    scorer.score(TextBatch.from_bytes(texts), columns)
    return columns


@given(documents=st.lists(raw_documents, min_size=1, max_size=6))
def test_the_graph_computes_what_its_definition_says(scorer: ToxicityScorer, documents: list[bytes]) -> None:
    columns = score(scorer, documents)
    batch = TextBatch.from_bytes(documents)
    scores = window_scores(hash_ngrams(batch, np.arange(len(documents)), SHAPE), MODEL.weights)
    expected = 1 / (1 + np.exp(-(MODEL.scale * scores + MODEL.offset)))
    np.testing.assert_allclose(columns.values["toxicity"], expected, atol=1e-5)


@given(documents=st.lists(raw_documents, min_size=1, max_size=6))
def test_neighbours_do_not_change_a_score(scorer: ToxicityScorer, documents: list[bytes]) -> None:
    together = score(scorer, documents)
    assert together.toxicity_span is not None
    for i, document in enumerate(documents):
        alone = score(scorer, [document])
        assert alone.toxicity_span is not None
        np.testing.assert_allclose(alone.values["toxicity"][0], together.values["toxicity"][i], atol=1e-5)
        np.testing.assert_array_equal(alone.toxicity_span[0], together.toxicity_span[i])


def one_word_model(word: str) -> LinearModel:
    """Only this word counts."""
    weights = np.zeros(1 << SHAPE.bits, dtype=np.float32)
    ids = hash_ngrams(TextBatch.from_bytes([word.encode()]), np.arange(1), SHAPE).ids
    weights[ids[ids != SHAPE.padding]] = 5
    return LinearModel(weights, scale=1.0, offset=-4.0)


@pytest.mark.parametrize(("word", "filler"), [("wretch", "calm blue river bank"), ("恶", "一条安静河")])
def test_the_span_is_the_worst_window(tmp_path: Path, word: str, filler: str) -> None:
    scorer = ToxicityScorer(models=[write(tmp_path, "en", one_word_model(word))])
    gap = " " if filler.isascii() else ""
    before, after = gap.join([filler] * 6), gap.join([filler] * 5)
    text = f"{before}{gap}{word}{gap}{after}"
    columns = score(scorer, [text.encode(), before.encode()])
    assert columns.toxicity_span is not None
    start, end = columns.toxicity_span[0]
    assert word in text[start:end]
    window = text[start:end]
    words = window.split() if gap else list(window)
    assert len(words) == 2 * SHAPE.block_words
    assert columns.values["toxicity"][0] > columns.values["toxicity"][1]


def test_short_documents_are_one_window(scorer: ToxicityScorer) -> None:
    text = "(one two three four five six)"
    columns = score(scorer, [text.encode()])
    assert columns.toxicity_span is not None
    assert columns.toxicity_span.tolist() == [[1, len(text) - 1]]
    assert columns.toxicity_span.dtype == np.int32


def test_spans_count_raw_code_points(scorer: ToxicityScorer) -> None:
    # One raw character folds to several, and several to one.
    texts = ["… ﬁne ½", "…cafe\u0301", "e\u0301 x y z ok, not far"]
    columns = score(scorer, [text.encode() for text in texts])
    assert columns.toxicity_span is not None
    spans = [text[slice(*span)] for text, span in zip(texts, columns.toxicity_span.tolist(), strict=True)]
    assert spans == ["ﬁne ½", "cafe\u0301", texts[2]]


def test_missing_values_say_why(scorer: ToxicityScorer) -> None:
    columns = score(
        scorer, [b"fine words", b"", b"?! ...", b"schoene Worte", b"fine words"], ["en", "und", "en", "de", "zh"]
    )
    assert columns.missing["toxicity"].tolist() == [
        Missing.PRESENT, Missing.TOO_SHORT, Missing.TOO_SHORT, Missing.NO_MODEL, Missing.NO_MODEL,
    ]  # fmt: skip
    assert np.isnan(columns.values["toxicity"]).tolist() == [False, True, True, True, True]
    assert columns.toxicity_span is not None
    assert columns.toxicity_span[1:].tolist() == [[-1, -1]] * 4


def test_no_model_at_all_is_no_failure() -> None:
    columns = score(ToxicityScorer(models=[]), [b"words", b""])
    assert columns.missing["toxicity"].tolist() == [Missing.NO_MODEL, Missing.TOO_SHORT]


def test_a_model_of_another_language_drops_in(tmp_path: Path) -> None:
    scorer = ToxicityScorer(models=[write(tmp_path, "en"), write(tmp_path, "de", one_word_model("schurke"))])
    columns = score(scorer, [b"Du Schurke!", b"Du Schurke!"], ["de", "en"])
    assert columns.values["toxicity"][0] > 0.9
    assert columns.values["toxicity"][0] != columns.values["toxicity"][1]


def test_two_models_of_one_language_are_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path, "en"), write(tmp_path, "en", name="mine")]
    with pytest.raises(ModelError, match="'en'"):
        ToxicityScorer(models=folders)


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "en")
    graph = folder.file("graph")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        load_model(folder.path).verify()


def rewrite(folder: ModelFolder, **changes: object) -> ModelFolder:
    table = {**folder.table("toxicity"), **changes}
    return write_model(
        folder.path.parent.parent,
        name=folder.name,
        version=folder.version,
        kind=folder.kind,
        languages=folder.languages,
        files={"graph": "model.onnx"},
        tables={"toxicity": {key: value for key, value in table.items() if value is not None}},
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ngram_check": "0" * 16}, "other n-gram kernels"),
        ({"block_words": 5}, "other n-gram kernels"),
        ({"bits": 99}, "does not describe its n-grams"),
        ({"word_sizes": None}, "does not describe its n-grams"),
        ({"threshold": None}, "threshold"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        ToxicityModel(rewrite(write(tmp_path, "en"), **changes))


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "en")
    folder.file("graph").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="does not load"):
        ToxicityModel(rewrite(folder))


def test_a_graph_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "en")
    graph = onnx.load_from_string(build_graph(MODEL))
    for node in graph.graph.node:
        node.output[:] = ["other" if name == "probability" else name for name in node.output]
    graph.graph.output[0].name = "other"
    folder.file("graph").write_bytes(graph.SerializeToString())
    with pytest.raises(ModelError, match="other inputs or outputs"):
        ToxicityModel(rewrite(folder))
