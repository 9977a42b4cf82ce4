"""What every scorer must hold to, with the models that ship."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import dqs.scorers
from dqs.data import Missing
from dqs.models import find_models, model_roots
from dqs.scorer import ScoreColumns, Scorer
from dqs.scorers import build_scorers, find_scorers
from dqs.text import TextBatch
from tests.unit.awkward import FIXED, INVALID_BYTES

PROSE = [
    "The bridge was closed for repairs, so the postman walked the long way round by the mill.\nNobody minded much.\n"
    "Letters came an hour late.\nThe miller's dog got used to him.\nIn spring the bridge opened again.",
    "大桥因维修关闭，邮递员只好绕道磨坊。\n好在没有人着急，信件晚一点到也无妨。\n磨坊主的狗渐渐认得他了。\n"
    "春天大桥重新通车。\n邮递员有时还是走老路。",
    "Die Brücke war wegen Reparaturen gesperrt, also ging der Briefträger den Umweg über die Mühle.",
    "Mixed 文本 with both scripts 在同一行里, and a number: 42.",
]
DOCUMENTS = [text.encode() for text in PROSE + FIXED] + INVALID_BYTES + [PROSE[0].encode() * 50, PROSE[1].encode() * 50]
ONNX_TOLERANCE = 1e-5


def run(scorers: Sequence[Scorer], documents: Sequence[bytes]) -> ScoreColumns:
    batch = TextBatch.from_bytes(documents)
    columns = ScoreColumns(len(batch))
    for scorer in scorers:
        scorer.score(batch, columns)
    return columns


@pytest.fixture(scope="module")
def scorers() -> list[Scorer]:
    return build_scorers(find_models(model_roots()))


@pytest.fixture(scope="module")
def columns(scorers: list[Scorer]) -> ScoreColumns:
    return run(scorers, DOCUMENTS)


def test_a_scorer_is_a_file_of_its_name() -> None:
    folder = Path(dqs.scorers.__file__).parent
    for name, scorer in find_scorers().items():
        assert (folder / f"{name}.py").is_file()
        assert scorer.__module__ == f"dqs.scorers.{name}"


def test_signals_have_names_of_their_own(scorers: list[Scorer]) -> None:
    names = [signal.name for scorer in scorers for signal in scorer.signals]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)
    assert all(signal.description and signal.unit for scorer in scorers for signal in scorer.signals)


def test_every_signal_has_a_value_or_a_reason_for_every_document(scorers: list[Scorer], columns: ScoreColumns) -> None:
    for scorer in scorers:
        for signal in scorer.signals:
            values, missing = columns.values[signal.name], columns.missing[signal.name]
            assert values.shape == missing.shape == (len(DOCUMENTS),)
            assert values.dtype == np.float32
            assert missing.dtype == np.uint8
            np.testing.assert_array_equal(np.isnan(values), missing != Missing.PRESENT, err_msg=signal.name)


def test_values_stay_in_their_range(scorers: list[Scorer], columns: ScoreColumns) -> None:
    for scorer in scorers:
        for signal in scorer.signals:
            present = columns.values[signal.name][~np.isnan(columns.values[signal.name])]
            assert (present >= signal.low).all(), signal.name
            assert (present <= signal.high).all(), signal.name
            assert math.isinf(signal.high) or present.size == 0 or np.isfinite(present).all(), signal.name


def test_an_empty_document_has_no_score_but_sizes(columns: ScoreColumns) -> None:
    empty = DOCUMENTS.index(b"")

    sizes = {name for name in columns.values if not np.isnan(columns.values[name][empty])}
    assert sizes == {"characters", "words", "lines"}
    assert columns.language[empty] == "und"


@pytest.mark.parametrize("size", [1, 7])
def test_scores_do_not_depend_on_how_batches_are_cut(scorers: list[Scorer], columns: ScoreColumns, size: int) -> None:
    parts = [run(scorers, DOCUMENTS[start : start + size]) for start in range(0, len(DOCUMENTS), size)]

    assert [language for part in parts for language in part.language] == columns.language
    for name, whole in columns.values.items():
        cut = np.concatenate([part.values[name] for part in parts])
        if name == "quality" or name.startswith("toxicity"):
            np.testing.assert_allclose(cut, whole, atol=ONNX_TOLERANCE)
        else:
            np.testing.assert_array_equal(cut, whole, err_msg=name)
        np.testing.assert_array_equal(np.concatenate([part.missing[name] for part in parts]), columns.missing[name])
    spans = [part.toxicity_span for part in parts]
    np.testing.assert_array_equal(np.concatenate([span for span in spans if span is not None]), columns.toxicity_span)


def test_both_languages_have_every_signal(columns: ScoreColumns) -> None:
    for document in (0, 1):
        missing = {name for name, codes in columns.missing.items() if codes[document] != Missing.PRESENT}
        # No Chinese source that may be used says what kind of toxic text a row is; English prose is not looked at.
        kinds = {name for name in columns.values if name.startswith("toxicity_")}
        assert missing == kinds, columns.language[document]
        reason = Missing.NO_MODEL if columns.language[document] == "zh" else Missing.NOT_LOOKED_AT
        assert {Missing(int(columns.missing[name][document])) for name in kinds} == {reason}


def test_a_language_without_a_model_says_so(columns: ScoreColumns) -> None:
    assert columns.language[2] == "de"
    for name in ("perplexity", "perplexity_percentile", "toxicity", "quality"):
        assert columns.missing[name][2] == Missing.NO_MODEL


def test_no_batch_at_all(scorers: list[Scorer]) -> None:
    columns = run(scorers, [])

    assert all(values.shape == (0,) for values in columns.values.values())


def test_unknown_scorers_are_refused_by_name() -> None:
    from dqs.errors import ConfigError

    with pytest.raises(ConfigError, match=r"there are: .*language"):
        build_scorers([], ["nonsense"])
