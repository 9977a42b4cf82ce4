"""The pipeline with real scorers, real models and a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dqs.app import build_pipeline, warm
from dqs.data import Document, Label, Missing
from dqs.errors import DocumentErrorCode, IndexUnavailable, PolicyError
from dqs.pipeline import Pipeline
from dqs.settings import load_settings

ENGLISH = (
    "The museum keeps its oldest maps in a cool, dark room on the second floor. Visitors may look at them on "
    "request, and a guide explains how surveyors drew the coast before there were accurate clocks. Most people "
    "are surprised by how little the harbour has changed since then."
)
CHINESE = (
    "博物馆把最古老的地图存放在二楼一间阴凉的房间里。参观者可以提出申请后观看，讲解员会说明在没有精确钟表的年代，"
    "测量员是怎样画出海岸线的。大多数人都会惊讶，这座港口从那时到现在变化竟然这么小。"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with build_pipeline(load_settings(data_dir=tmp_path_factory.mktemp("data"))) as pipeline:
        warm(pipeline)
        yield pipeline


def test_both_languages_are_scored_and_kept(pipeline: Pipeline) -> None:
    results = pipeline.run([Document("en", ENGLISH.encode()), Document("zh", CHINESE.encode())], corpus="kept")

    for i, language in enumerate(("en", "zh")):
        verdict = results.verdict(i)
        assert verdict.label == Label.KEEP, verdict.reasons
        assert verdict.language == language
        # Only the English model says what kind of toxic text it is, where its network looks, which prose is not worth.
        kinds = {signal.name for signal in pipeline.signals if signal.name.startswith("toxicity_")}
        expected = {"short_line_share", "terminated_line_share", "ellipsis_line_share"}
        assert set(verdict.missing) == expected | kinds
        assert verdict.missing["toxicity_threat"] == (Missing.NO_MODEL if language == "zh" else Missing.NOT_LOOKED_AT)
        assert verdict.signals["duplicate_similarity"] == 0
        assert verdict.toxicity_span is not None
    assert set(results.columns.values) == {signal.name for signal in pipeline.signals}


def test_one_bad_document_never_fails_its_neighbours(pipeline: Pipeline) -> None:
    documents = [
        Document("good", ENGLISH.encode()),
        Document("bytes", b"caf\xe9"),
        Document("long", b"x" * (pipeline.max_document_bytes + 1)),
        Document("", CHINESE.encode()),
        Document("i" * 600, CHINESE.encode()),
        Document("\ud800", CHINESE.encode()),
        Document("klingon", ENGLISH.encode(), "klingon"),
        Document("no code", ENGLISH.encode(), "xx"),
        Document("also good", CHINESE.encode()),
    ]
    results = pipeline.run(documents, corpus="neighbours")

    codes = [error.code if error else None for error in results.errors]
    assert codes == [
        None,
        DocumentErrorCode.INVALID_UTF8,
        DocumentErrorCode.TOO_LARGE,
        DocumentErrorCode.INVALID_ID,
        DocumentErrorCode.INVALID_ID,
        DocumentErrorCode.INVALID_ID,
        DocumentErrorCode.INVALID_LANGUAGE,
        DocumentErrorCode.INVALID_LANGUAGE,
        None,
    ]
    assert [label != Label.UNSPECIFIED for label in results.labels] == [code is None for code in codes]
    assert all(error is None or ENGLISH[:10] not in error.message for error in results.errors)


def test_languages_are_known_by_any_spelling_of_their_code(pipeline: Pipeline) -> None:
    codes = ["en", "EN", "en-US", "zh_Hans", "und", ""]
    documents = [Document(str(i), ENGLISH.encode(), code) for i, code in enumerate(codes)]
    assert pipeline.run(documents, corpus=None).columns.language == ["en", "en", "en", "zh", "en", "en"]


def test_duplicates_name_the_document_that_was_kept(pipeline: Pipeline) -> None:
    near = ENGLISH.replace("second floor", "third floor")
    documents = [
        Document("first", ENGLISH.encode()),
        Document("exact", ENGLISH.upper().encode()),
        Document("near", near.encode()),
        Document("erstes", CHINESE.encode()),
        Document("zh exact", CHINESE.replace("。", "。 ").encode()),
        Document("zh near", CHINESE.replace("二楼", "三楼").encode()),
    ]
    results = pipeline.run(documents, corpus="duplicates")

    assert results.duplicate_of[:3] == [None, "first", "first"]
    assert results.duplicate_of[5] == "erstes"
    assert results.columns.values["exact_duplicate"][:3].tolist() == [0, 1, 0]
    assert [Label(int(label)) for label in results.labels[:3]] == [Label.KEEP, Label.DROP, Label.DROP]
    assert {reason.rule for reason in results.reasons[1]} >= {"exact_duplicate", "near_duplicate"}


def test_asking_again_gives_the_same_answer(pipeline: Pipeline) -> None:
    documents = [Document("a", ENGLISH.encode()), Document("b", ENGLISH.encode())]
    first = pipeline.run(documents, corpus="again")
    second = pipeline.run(documents, corpus="again")

    assert first.labels.tolist() == second.labels.tolist() == [Label.KEEP, Label.DROP]
    assert first.duplicate_of == second.duplicate_of == [None, "a"]


def test_an_id_under_which_the_corpus_has_another_text_is_an_error(pipeline: Pipeline) -> None:
    pipeline.run([Document("same", ENGLISH.encode())], corpus="reused")
    results = pipeline.run([Document("same", CHINESE.encode()), Document("new", CHINESE.encode())], corpus="reused")

    assert results.errors[0] is not None
    assert results.errors[0].code == DocumentErrorCode.ID_REUSED
    assert results.errors[1] is None


def test_what_another_rule_drops_is_not_remembered(pipeline: Pipeline) -> None:
    spam = "buy cheap watches now " * 60
    dropped = pipeline.run([Document("spam", spam.encode())], corpus="dropped")
    again = pipeline.run([Document("spam again", spam.encode())], corpus="dropped")

    assert dropped.labels.tolist() == again.labels.tolist() == [Label.DROP]
    assert again.duplicate_of == [None]


def test_score_only_keeps_everything_and_remembers_it(pipeline: Pipeline) -> None:
    spam = "buy cheap watches now " * 60
    results = pipeline.run(
        [Document("one", spam.encode()), Document("two", spam.encode())], policy="score-only", corpus="scores"
    )

    assert results.labels.tolist() == [Label.KEEP, Label.KEEP]
    assert results.duplicate_of == [None, "one"]


def test_without_a_corpus_duplication_is_not_asked(pipeline: Pipeline) -> None:
    results = pipeline.run([Document("a", ENGLISH.encode()), Document("b", ENGLISH.encode())], corpus=None)

    assert results.labels.tolist() == [Label.KEEP, Label.KEEP]
    assert (results.columns.missing["duplicate_similarity"] == Missing.NOT_ASKED).all()
    assert np.isnan(results.columns.values["exact_duplicate"]).all()


def test_a_language_without_model_is_dropped_with_that_reason(pipeline: Pipeline) -> None:
    german = "Das Museum bewahrt seine ältesten Karten in einem kühlen, dunklen Raum im zweiten Stock auf."
    results = pipeline.run([Document("de", german.encode())], corpus=None)

    assert results.labels.tolist() == [Label.DROP]
    assert [reason.rule for reason in results.reasons[0]] == ["unsupported_language"]


def test_the_callers_language_wins(pipeline: Pipeline) -> None:
    results = pipeline.run([Document("x", ENGLISH.encode(), language="zh")], corpus=None)

    assert results.columns.language == ["zh"]


def test_unknown_policies_are_refused_by_name(pipeline: Pipeline) -> None:
    with pytest.raises(PolicyError, match="default, score-only"):
        pipeline.run([], policy="nonsense")


def test_dropping_a_corpus_forgets_it(pipeline: Pipeline) -> None:
    pipeline.run([Document("a", ENGLISH.encode())], corpus="forget")
    pipeline.drop_corpus("forget")

    assert pipeline.run([Document("b", ENGLISH.encode())], corpus="forget").duplicate_of == [None]


def test_no_documents(pipeline: Pipeline) -> None:
    assert len(pipeline.run([])) == 0


def test_without_an_index_duplication_is_refused(tmp_path: Path) -> None:
    with build_pipeline(load_settings(data_dir=tmp_path), dedup=False) as pipeline:
        assert pipeline.run([Document("a", ENGLISH.encode())], corpus=None).labels.tolist() == [Label.KEEP]
        with pytest.raises(IndexUnavailable, match="without a duplicate index"):
            pipeline.run([Document("a", ENGLISH.encode())])
        assert not (tmp_path / "redis").exists()


def test_a_lost_index_fails_or_degrades_as_asked(tmp_path: Path) -> None:
    from dqs.index.embedded import EmbeddedRedis

    with EmbeddedRedis(tmp_path / "redis") as server:
        settings = load_settings(data_dir=tmp_path / "data", redis_url=server.url, redis_timeout_s=0.5)
        with build_pipeline(settings) as pipeline:
            documents = [Document("a", ENGLISH.encode())]
            assert pipeline.run(documents).labels.tolist() == [Label.KEEP]
            server.close()

            with pytest.raises(IndexUnavailable):
                pipeline.run(documents)
            results = pipeline.run(documents, degrade=True)
            assert (results.columns.missing["duplicate_similarity"] == Missing.UNAVAILABLE).all()
            assert results.labels.tolist() == [Label.REVIEW]
