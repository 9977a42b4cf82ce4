"""Training of the quality model: boosted trees on measures of text, and the ONNX graph that applies them.

The steps of `train_quality`:

1. Perplexity models that have not seen a part of the clean sources (folds) score that
   part, so that a percentile means the same in training as on new text.
2. Boosted trees (scikit-learn) are fitted without a fold of sources and sites and score
   it; from these scores come the held-out figures and the calibration.
3. The trees of the graph are fitted to every row that may be shipped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dqs.errors import ConfigError
from dqs.models import ModelFolder, load_model, write_model
from dqs.scorer import ScoreColumns
from dqs.scorers.perplexity import PerplexityScorer
from dqs.scorers.quality import (
    FEATURE_NAMES,
    GRAPH_INPUT,
    GRAPH_OUTPUT,
    GRAPH_ROLE,
    KIND,
    feature_check,
    quality_features,
)
from dqs.scorers.statistics import StatisticsScorer
from dqs.text import TextBatch
from dqs.training.quality_card import model_card
from dqs.training.quality_data import LANGUAGES, Rows, deal_sources, read_rows, shipped_sources

FOLDS: Final = 3
MINIMUM_WORDS: Final = 10
LENGTH_BANDS: Final = (0, 300, 1000, 4000)
"""Lower ends of the bands of bytes in which clean text is compared."""
_GRAPH_FILE = "model.onnx"
_OPSET = 17
_TREE_OPSET = 3
_IR_VERSION = 8
_BATCH_DOCUMENTS = 500
_PART_WEIGHTS: Final = {"corruptions": 1.0, "web": 12.0, "noisy": 1.0, "clean": 0.5}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the trees are grown.

    Attributes:
        trees: their number.
        leaves: most leaves of one.
        learning_rate: share of each tree's answer that is added.
        leaf_rows: fewest rows in a leaf.
        penalty: weight of the L2 penalty on leaves.
    """

    trees: int = 200
    leaves: int = 16
    learning_rate: float = 0.08
    leaf_rows: int = 40
    penalty: float = 5.0


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What `train_quality` did.

    Attributes:
        model: the folder that was written.
        figures: held-out figures, see `held_out_figures`.
        trained: rows trained on per source.
        file_bytes: size of the graph.
    """

    model: ModelFolder
    figures: Mapping[str, Any]
    trained: Mapping[str, int]
    file_bytes: int


def train_quality(
    data: Path,
    output: Path,
    folds: Path,
    *,
    seed: int = 20_261_121,
    name: str = "quality",
    version: str = "1",
    recipe: Recipe = Recipe(),
    lmplz: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> QualityReport:
    """Trains the quality model of English and Chinese and writes its folder with CARD.md.

    Args:
        data: folder with the parquet files that `quality_data.read_rows` names.
        output: models folder; the model goes to `<output>/<name>/<version>`.
        folds: folder of the perplexity models of the folds, `<k>-of-3/perplexity-<language>`; those
            that it does not hold are trained and kept there.
        seed: of everything that is drawn.
        name: model name.
        version: model version.
        recipe: how the trees are grown.
        lmplz: KenLM's program, for perplexity models that are not there.
        progress: is told what is being done, one line each.

    Raises:
        ConfigError: the data do not fit.
        ModelError: a perplexity model does not load.
    """
    rows = read_rows(data, seed)
    dealt = {language: deal_sources(data, language, FOLDS) for language in LANGUAGES}
    fold = _deal_rows(rows, dealt)
    progress(f"measuring {len(rows)} texts")
    features = _measure(rows, fold, data, folds, dealt, seed, lmplz, progress)
    raw = np.full(len(rows), np.nan)
    for number in range(FOLDS):
        progress(f"training without fold {number + 1} of {FOLDS}")
        estimator = _fit(rows, features, rows.train & (fold != number), recipe, seed)
        held = fold == number
        raw[held] = estimator.decision_function(features[held])
    scale, offset = _calibrate(rows, raw)
    figures = held_out_figures(rows, 1 / (1 + np.exp(-(scale * raw + offset))))
    progress(f"training on {int(rows.train.sum())} rows")
    estimator = _fit(rows, features, rows.train, recipe, seed)
    place = output / name / version
    place.mkdir(parents=True, exist_ok=True)
    (place / _GRAPH_FILE).write_bytes(build_graph(estimator, scale, offset))
    sources, sizes = np.unique(rows.sources[rows.train], return_counts=True)
    trained = dict(zip(sources.tolist(), sizes.tolist(), strict=True))
    stated = {source: _licence(rows, source) for source in trained}
    folder = write_model(
        output,
        name=name,
        version=version,
        kind=KIND,
        languages=LANGUAGES,
        files={GRAPH_ROLE: _GRAPH_FILE},
        licence="Apache-2.0 (splits on statistics of texts; the texts keep the licences below)",
        training_data=[f"{source}: {trained[source]} rows, {stated[source]}" for source in trained],
        tables={
            KIND: {
                "minimum_words": MINIMUM_WORDS,
                "feature_check": feature_check(),
                "features": list(FEATURE_NAMES),
                "calibration": {"kind": "logistic", "scale": scale, "offset": offset, "good_share": 0.5},
            }
        },
    )
    card = model_card(folder.label, figures, trained, stated, seed, recipe.trees, recipe.leaves, MINIMUM_WORDS)
    (folder.path / "CARD.md").write_text(card, encoding="utf-8")
    return QualityReport(folder, figures, trained, folder.file(GRAPH_ROLE).stat().st_size)


def held_out_figures(rows: Rows, probability: NDArray[np.float64]) -> dict[str, Any]:
    """Compares probabilities of rows that training did not see with their labels.

    Args:
        rows: the rows.
        probability: float64[n].

    Returns:
        AUC of corrupted against clean per language, and per kind against all clean rows of the
        language; AUC of raw pages against articles, all and per source; calibration error (ECE,
        ten bins, by language); mean probability of clean text per language and band of length,
        and of every clean source and noisy kind.
    """

    def auc(chosen: NDArray[np.bool_]) -> float:
        return float(roc_auc_score(rows.labels[chosen], probability[chosen]))

    def mean(chosen: NDArray[np.bool_]) -> float:
        return float(probability[chosen].mean())

    lengths = np.array([len(text) for text in rows.texts])
    result: dict[str, Any] = {"corruptions": {}, "kinds": {}, "ece": {}, "clean_by_bytes": {}, "clean_sources": {},
                              "noisy": {}, "web": {}}  # fmt: skip
    web = (rows.parts == "web") & rows.train
    if len(set(rows.labels[web].tolist())) == 2:
        result["web"]["all"] = auc(web)
        for source in np.unique(rows.sources[web]).tolist():
            result["web"][source] = auc(web & (rows.sources == source))
    for language in LANGUAGES:
        own = rows.languages == language
        pairs = own & (rows.parts == "corruptions") & rows.train
        good = pairs & (rows.labels == 1)
        if len(set(rows.labels[pairs].tolist())) == 2:
            result["corruptions"][language] = auc(pairs)
            result["kinds"][language] = {
                kind: auc(good | (pairs & (rows.kinds == kind)))
                for kind in np.unique(rows.kinds[pairs & (rows.labels == 0)]).tolist()
            }
        result["ece"][language] = calibration_error(rows.labels[pairs], probability[pairs])
        clean = own & (rows.parts == "clean")
        result["clean_by_bytes"][language] = {
            str(low): mean(clean & (lengths >= low) & (lengths < high))
            for low, high in zip(LENGTH_BANDS, (*LENGTH_BANDS[1:], np.inf), strict=True)
            if (clean & (lengths >= low) & (lengths < high)).any()
        }
        for part, name in (("clean", "clean_sources"), ("noisy", "noisy")):
            values = rows.sources if part == "clean" else rows.kinds
            chosen = own & (rows.parts == part)
            result[name][language] = {
                value: mean(chosen & (values == value)) for value in np.unique(values[chosen]).tolist()
            }
    return result


def calibration_error(labels: NDArray[np.int8], probability: NDArray[np.float64], bins: int = 10) -> float:
    """Mean distance between probability and share of good rows over bins of equal width, weighted by rows (ECE)."""
    at = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = [abs(probability[at == b].mean() - labels[at == b].mean()) * (at == b).mean() for b in np.unique(at)]
    return float(np.sum(gaps))


def build_graph(estimator: HistGradientBoostingClassifier, scale: float, offset: float) -> bytes:
    """Makes the ONNX graph of fitted trees: float32[n, features] in, `probability` float32[n, 1] out.

    Args:
        estimator: fitted to features without NaN.
        scale: of the calibration; leaves are multiplied by it.
        offset: of the calibration.
    """
    nodes: dict[str, list[Any]] = {
        key: [] for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree, (predictor,) in enumerate(estimator._predictors):
        for at, node in enumerate(predictor.nodes):
            is_leaf = bool(node["is_leaf"])
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(at)
            nodes["featureids"].append(0 if is_leaf else int(node["feature_idx"]))
            nodes["values"].append(0.0 if is_leaf else _float32_below(float(node["num_threshold"])))
            nodes["modes"].append("LEAF" if is_leaf else "BRANCH_LEQ")
            nodes["truenodeids"].append(0 if is_leaf else int(node["left"]))
            nodes["falsenodeids"].append(0 if is_leaf else int(node["right"]))
            if is_leaf:
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(at)
                leaves["ids"].append(0)
                leaves["weights"].append(scale * float(node["value"]))
    base = scale * float(np.ravel(estimator._baseline_prediction)[0]) + offset
    attributes: dict[str, Any] = {f"nodes_{key}": values for key, values in nodes.items()}
    attributes |= {f"target_{key}": values for key, values in leaves.items()}
    graph = helper.make_graph(
        [
            helper.make_node(
                "TreeEnsembleRegressor", [GRAPH_INPUT], ["sums"], domain="ai.onnx.ml", n_targets=1, **attributes
            ),
            helper.make_node("Add", ["sums", "base"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], [GRAPH_OUTPUT]),
        ],
        KIND,
        [helper.make_tensor_value_info(GRAPH_INPUT, TensorProto.FLOAT, ["documents", len(FEATURE_NAMES)])],
        [helper.make_tensor_value_info(GRAPH_OUTPUT, TensorProto.FLOAT, ["documents", 1])],
        [numpy_helper.from_array(np.array([base], dtype=np.float32), "base")],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _TREE_OPSET)]
    proto = helper.make_model(graph, opset_imports=opsets, producer_name="dqs")
    proto.ir_version = _IR_VERSION
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _float32_below(threshold: float) -> float:
    """The largest float32 that is not above a threshold: the same float32 values lie on the same side of it."""
    rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if rounded > threshold else rounded)


def _deal_rows(rows: Rows, dealt: Mapping[str, Sequence[Sequence[str]]]) -> NDArray[np.int64]:
    """Fold of each row: that of its clean source, or one by the name of its group."""
    known = {
        source: number for language in LANGUAGES for number, sources in enumerate(dealt[language]) for source in sources
    }
    return np.array(
        [known.get(group, zlib.crc32(group.encode()) % FOLDS) for group in rows.groups.tolist()], dtype=np.int64
    )


def _measure(
    rows: Rows,
    fold: NDArray[np.int64],
    data: Path,
    folds: Path,
    dealt: Mapping[str, Sequence[Sequence[str]]],
    seed: int,
    lmplz: Path | None,
    progress: Callable[[str], None],
) -> NDArray[np.float32]:
    """Features of every row, float32[n, features], with the perplexity model of its fold."""
    features = np.empty((len(rows), len(FEATURE_NAMES)), dtype=np.float32)
    statistics = StatisticsScorer()
    for number in range(FOLDS):
        models = []
        for language in LANGUAGES:
            root = folds / f"{number + 1}-of-{FOLDS}"
            place = root / f"perplexity-{language}" / "1"
            if not place.is_dir():
                from dqs.training.perplexity import train_perplexity

                excluded = sorted(shipped_sources(data, language).intersection(dealt[language][number]))
                progress(f"training perplexity without fold {number + 1} of {FOLDS}, {language}")
                train_perplexity(data, root, language, exclude_sources=excluded, seed=seed, lmplz=lmplz)
            models.append(load_model(place))
        perplexity = PerplexityScorer(models)
        members = np.flatnonzero(fold == number)
        for start in range(0, members.size, _BATCH_DOCUMENTS):
            part = members[start : start + _BATCH_DOCUMENTS]
            batch = TextBatch.from_bytes([rows.texts[at] for at in part.tolist()])
            columns = ScoreColumns(part.size, language=rows.languages[part].tolist())
            statistics.score(batch, columns)
            perplexity.score(batch, columns)
            features[part] = quality_features(batch, columns)
    return features


def _fit(
    rows: Rows, features: NDArray[np.float32], chosen: NDArray[np.bool_], recipe: Recipe, seed: int
) -> HistGradientBoostingClassifier:
    if len(set(rows.labels[chosen].tolist())) < 2:
        raise ConfigError("there are too few sources for a quality model: every fold needs good and bad text")
    weights = np.array([_PART_WEIGHTS[part] for part in rows.parts[chosen].tolist()])
    estimator = HistGradientBoostingClassifier(
        max_iter=recipe.trees,
        max_leaf_nodes=recipe.leaves,
        learning_rate=recipe.learning_rate,
        min_samples_leaf=recipe.leaf_rows,
        l2_regularization=recipe.penalty,
        early_stopping=False,
        random_state=seed,
    )
    estimator.fit(features[chosen], rows.labels[chosen], sample_weight=weights)
    return estimator


def _calibrate(rows: Rows, raw: NDArray[np.float64]) -> tuple[float, float]:
    """Scale and offset for held-out log-odds, float64[n], where good and bad text weigh the same."""
    chosen = rows.train
    labels = rows.labels[chosen]
    weights = np.array([_PART_WEIGHTS[part] for part in rows.parts[chosen].tolist()])
    for label in (0, 1):
        weights[labels == label] /= weights[labels == label].sum()
    regression = LogisticRegression(C=1e6, max_iter=1000)
    regression.fit(raw[chosen].reshape(-1, 1), labels, sample_weight=weights * chosen.sum() / 2)
    scale = float(regression.coef_[0, 0])
    if scale <= 0:
        raise ConfigError("good text scores no higher than bad text: check that label 1 means good, or give more rows")
    return scale, float(regression.intercept_[0])


def _licence(rows: Rows, source: str) -> str:
    stated = sorted(set(rows.licences[rows.sources == source].tolist()) - {""})
    return "; ".join(stated) or "licence of the clean source"
