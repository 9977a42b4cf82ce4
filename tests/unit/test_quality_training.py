"""Training of a small quality model on generated sentences, and the scorer that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from dqs.data import Missing
from dqs.errors import ConfigError, ModelError
from dqs.models import ModelFolder, load_model, write_model
from dqs.scorer import ScoreColumns
from dqs.scorers.quality import FEATURE_NAMES, KIND, QualityModel, QualityScorer, feature_check
from dqs.scorers.statistics import StatisticsScorer
from dqs.text import TextBatch
from dqs.training.quality import Recipe, build_graph, calibration_error, train_quality
from dqs.training.quality_data import UNLABELLED, read_rows

_WORDS = {
    "en": ("the old mill", "a quiet river", "our small garden", "stands near", "belongs to", "was built for",
           "the village", "my neighbour", "those children"),
    "zh": ("村里的老磨坊", "安静的小河", "我们的花园", "就在", "一直属于", "当年留给了", "这个村子",
           "我的邻居", "那些孩子"),
}  # fmt: skip
_RECIPE = Recipe(trees=20, leaf_rows=5)


def sentences(language: str, count: int, rng: np.random.Generator) -> str:
    words = _WORDS[language]
    gap, stop = (" ", ". ") if language == "en" else ("", "。")
    return (
        stop.join(gap.join(words[3 * part + int(rng.integers(3))] for part in (0, 1, 2, 1, 2)) for _ in range(count))
        + stop.strip()
    )


def menu(language: str, rng: np.random.Generator) -> str:
    entries = (
        ("Home", "Log in", "Share this", "News", "Next >>") if language == "en" else ("首页", "登录", "分享", "新闻")
    )
    return "\n".join(entries[int(at)] for at in rng.integers(0, len(entries), 20))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(4)
    corrupted: dict[str, list[Any]] = {name: [] for name in ("text", "label", "kind", "lang", "source", "pair_id")}
    web: dict[str, list[Any]] = {
        name: [] for name in ("text", "label", "kind", "page_id", "lang", "source", "domain", "license")
    }
    noisy: dict[str, list[Any]] = {name: [] for name in ("text", "lang", "source", "kind", "license")}
    for language in ("en", "zh"):
        clean: dict[str, list[Any]] = {name: [] for name in ("text", "lang", "source", "domain", "license", "ship")}
        for at in range(120):
            source = f"{language}_{('book', 'paper', 'letters', 'secret')[at % 4]}"
            text = "\n".join(sentences(language, 5, rng) for _ in range(4))
            ship = "secret" not in source
            row = (text, language, source, source, "CC0-1.0" if ship else "CC-BY-NC-4.0", ship)
            for name, value in zip(clean, row, strict=True):
                clean[name].append(value)
            for label, kind, shown in ((1, "clean", text), (0, "nav_menu", menu(language, rng))):
                row_corrupted = (shown, label, kind, language, source, str(at))
                for name, value in zip(corrupted, row_corrupted, strict=True):
                    corrupted[name].append(value)
        pq.write_table(pa.table(clean), folder / f"clean_{language}.parquet")
        for at in range(24):
            article = "\n".join(sentences(language, 4, rng) for _ in range(3))
            for label, text in ((1, article), (0, f"{menu(language, rng)}\n{article}\n{menu(language, rng)}")):
                licence = "GPL-3.0" if at % 4 == 3 else "MIT"
                page = (text, label, "page", f"p{at}", language, "pages", f"{at % 6}.example", licence)
                for name, value in zip(web, page, strict=True):
                    web[name].append(value)
            row_noisy = (
                menu(language, rng).replace("\n", " "),
                language,
                "phone",
                ("sms_spam", "sms_ham")[at % 2],
                "MIT",
            )
            for name, value in zip(noisy, row_noisy, strict=True):
                noisy[name].append(value)
    pq.write_table(pa.table(corrupted), folder / "quality_synthetic_corruptions.parquet")
    pq.write_table(pa.table(web), folder / "web_raw_vs_gold.parquet")
    pq.write_table(pa.table(noisy), folder / "noisy_text.parquet")
    return folder


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The perplexity models that ship stand for those of the folds: lmplz is not everywhere."""
    root = tmp_path_factory.mktemp("folds")
    shipped = Path(__file__).resolve().parents[2] / "models"
    for number in (1, 2, 3):
        place = root / f"{number}-of-3"
        place.mkdir()
        for language in ("en", "zh"):
            (place / f"perplexity-{language}").symlink_to(shipped / f"perplexity-{language}")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, folds: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    report = train_quality(data, tmp_path_factory.mktemp("models"), folds, recipe=_RECIPE)
    assert report.figures["web"]["all"] > 0.9
    assert min(report.figures["corruptions"].values()) > 0.95
    assert not any("secret" in source for source in report.trained)
    return report.model


def scored(folder: ModelFolder, texts: list[str], languages: list[str]) -> ScoreColumns:
    batch = TextBatch.from_bytes([text.encode() for text in texts])
    columns = ScoreColumns(len(batch), language=languages)
    StatisticsScorer().score(batch, columns)
    QualityScorer([folder]).score(batch, columns)
    return columns


def test_prose_scores_above_menus_in_both_languages(trained: ModelFolder) -> None:
    rng = np.random.default_rng(9)
    texts = [sentences("en", 8, rng), menu("en", rng), sentences("zh", 8, rng), menu("zh", rng)]
    quality = scored(trained, texts, ["en", "en", "zh", "zh"]).values["quality"]

    assert quality[0] > 0.5 > quality[1]
    assert quality[2] > 0.5 > quality[3]


def test_what_has_no_score_says_why(trained: ModelFolder) -> None:
    columns = scored(trained, ["", "Too short.", "Ein Satz auf Deutsch. " * 5], ["en", "en", "de"])

    assert columns.missing["quality"].tolist() == [Missing.TOO_SHORT, Missing.TOO_SHORT, Missing.NO_MODEL]
    assert np.isnan(columns.values["quality"]).all()


def test_the_same_seed_gives_the_same_files(trained: ModelFolder, data: Path, folds: Path, tmp_path: Path) -> None:
    again = train_quality(data, tmp_path, folds, recipe=_RECIPE).model

    assert again.digest == trained.digest
    assert (again.path / "CARD.md").read_bytes() == (trained.path / "CARD.md").read_bytes()


def test_the_graph_equals_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(600, len(FEATURE_NAMES))).astype(np.float32)
    labels = (features[:, 0] * features[:, 5] + features[:, 9] > 0).astype(int)
    estimator = HistGradientBoostingClassifier(max_iter=30, early_stopping=False, random_state=0).fit(features, labels)
    place = tmp_path / "tiny" / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(build_graph(estimator, scale=0.7, offset=0.2))
    folder = write_model(
        tmp_path, name="tiny", version="1", kind=KIND, languages=["en"], files={"graph": "model.onnx"},
        tables={KIND: {"minimum_words": 3, "feature_check": feature_check()}},
    )  # fmt: skip
    expected = 1 / (1 + np.exp(-(0.7 * estimator.decision_function(features) + 0.2)))

    np.testing.assert_allclose(QualityModel(folder).score(features), expected, atol=1e-5)


def test_only_what_may_ship_is_trained_on(data: Path) -> None:
    rows = read_rows(data, seed=1)

    assert not rows.train[np.char.find(rows.licences, "GPL") >= 0].any()
    assert not rows.train[np.char.find(rows.sources, "secret") >= 0].any()
    assert not rows.train[rows.labels == UNLABELLED].any()
    assert set(rows.kinds[rows.labels == UNLABELLED].tolist()) == {"sms_ham"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("feature_check", "0" * 16, "other measures"), ("minimum_words", 0, "minimum_words")],
)
def test_a_model_that_does_not_fit_is_refused(
    trained: ModelFolder, tmp_path: Path, key: str, value: object, said: str
) -> None:
    place = tmp_path / "odd" / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(trained.file("graph").read_bytes())
    table = {**trained.table(KIND), key: value}
    write_model(
        tmp_path, name="odd", version="1", kind=KIND, languages=["en"], files={"graph": "model.onnx"},
        tables={KIND: table},
    )  # fmt: skip
    with pytest.raises(ModelError, match=said):
        QualityScorer([load_model(place)])


def test_two_models_for_one_language_are_refused(trained: ModelFolder) -> None:
    with pytest.raises(ModelError, match="both score quality"):
        QualityScorer([trained, trained])


def test_a_missing_file_is_refused(tmp_path: Path, folds: Path) -> None:
    with pytest.raises(ConfigError, match=r"clean_en\.parquet"):
        train_quality(tmp_path, tmp_path, folds)


def test_calibration_error_is_the_gap_between_probability_and_share() -> None:
    labels = np.array([0, 0, 1, 1], dtype=np.int8)

    assert calibration_error(labels, np.array([0.25, 0.25, 0.75, 0.75])) == pytest.approx(0.25)
    assert calibration_error(labels, np.array([0.5, 0.5, 0.5, 0.5])) == 0
