"""Training of toxicity models: linear weights of hashed n-grams, and the ONNX graph that applies them.

The steps of `train_toxicity`:

1. Take the labelled rows and clean paragraphs whose column `ship` is true, without
   the excluded sources and splits. Clean paragraphs are negatives.
2. Fit a logistic regression (scikit-learn's averaged SGD) on n-gram counts divided by
   the root of their sum. Every source has an intercept of its own that is thrown away
   afterwards, so that the weights need not explain why one source is more toxic than another.
   Some of the weights that tell posts from clean prose are added.
3. Fit it again without some of the data, score what was left out window by window,
   and fit the calibration to these scores, mixed to the recipe's share of toxic text.
4. Change the weights as little as possible so that neutral sentences about groups of
   people stay below the recipe's probability.
5. Write the graph, model.toml and CARD.md.

Evaluation of a model on rows that it has not seen is here as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse
from sklearn.linear_model import LogisticRegression, SGDClassifier

from dqs.errors import ConfigError
from dqs.models import ModelFolder, write_model
from dqs.scorers.toxicity import GRAPH_INPUTS, GRAPH_OUTPUT, GRAPH_ROLE, SOUNDS_ROLE, ToxicityModel, ngram_check
from dqs.text import TextBatch
from dqs.text.ngrams import ROW_WIDTH, Ngrams, NgramShape, hash_ngrams, sound_table
from dqs.training.disguise import sound_classes
from dqs.training.neutral import hold_down
from dqs.training.toxicity_card import model_card
from dqs.training.toxicity_data import IDENTITY_SOURCE, Rows, disguised_rows, identity_rows, read_data
from dqs.training.toxicity_figures import SourceFigures, figures_by_source, source_figures

KIND: Final = "toxicity"
_GRAPH_FILE = "model.onnx"
_SOUNDS_FILE = "sounds.bin"
_OPSET = 17
_IR_VERSION = 8
_FOLDS = 5
_BATCH_BYTES = 1 << 20
_REGISTER_PENALTY = 1e-6


_SPACED = NgramShape(word_sizes=2, character_sizes=(4,), bits=20, block_words=32)
_UNSPACED = NgramShape(word_sizes=2, character_sizes=(), bits=20, block_words=64, sound_sizes=3, simplified=True)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between languages.

    Attributes:
        shape: which n-grams.
        penalty: weight of the L2 penalty.
        epochs: passes over the data.
        balance: a source of n rows weighs n^(1 - balance): 0 counts rows, 1 counts sources.
        same_intercept: source → the source with which it shares its intercept; for sources
            that hold one class only.
        reference_sources: sources without an intercept of their own, like clean text: their share of
            toxic rows is that of ordinary text.
        fitted_share: share of toxic documents at which the calibration is fitted; near a half, both
            classes count.
        toxic_share: share of toxic documents that the probability assumes; the fit is moved there.
        clean_share: share of clean paragraphs among the negatives of the calibration; the others are
            labelled rows.
        folds_by_source: the calibration sees scores of sources that were left out as a whole;
            otherwise of random rows that were left out.
        threshold: probability from which on the card and the default policy call a document toxic.
        disguised_share: share of the labelled rows that are trained on a second time with disguised words.
        identity_repeats: how often each neutral sentence about a group of people is trained on.
        identity_probability: such sentences are held at or below it, by the smallest change of weights.
        discount: log-odds are lowered by this times the logarithm of a document's number of windows.
        register_share: how much of the weights that tell posts from clean prose is added to those of toxicity.
    """

    shape: NgramShape = _SPACED
    penalty: float = 1e-5
    epochs: int = 6
    balance: float = 0.5
    same_intercept: Mapping[str, str] = field(default_factory=dict)
    reference_sources: tuple[str, ...] = ()
    fitted_share: float = 0.3
    toxic_share: float = 0.1
    clean_share: float = 0.75
    folds_by_source: bool = True
    threshold: float = 0.5
    disguised_share: float = 0.0
    identity_repeats: int = 0
    identity_probability: float = 1.0
    discount: float = 0.0
    register_share: float = 0.0


RECIPES: Final[Mapping[str, Recipe]] = {
    "en": Recipe(
        same_intercept={
            "paradetox_cannot_rewrite": "paradetox",
            "jigsaw_civil_comments_toxic_subset": "toxic_spans_civil_comments",
        },
        reference_sources=("wiki_talk_context_toxicity", "jigsaw_train_sample"),
        threshold=0.6,
        fitted_share=0.5,
        clean_share=0.9,
        disguised_share=0.2,
        identity_repeats=1,
        identity_probability=0.06,
        discount=0.5,
        register_share=0.12,
    ),
    "zh": Recipe(
        shape=_UNSPACED,
        penalty=2e-6,
        epochs=10,
        balance=0.0,
        clean_share=0.8,
        threshold=0.5,
        folds_by_source=False,
        disguised_share=0.2,
        identity_repeats=6,
        identity_probability=0.003,
        discount=0.4,
        register_share=0.17,
    ),
}


@dataclass(frozen=True, slots=True)
class ToxicityReport:
    """What `train_toxicity` did.

    Attributes:
        model: the folder that was written.
        trained: rows trained on per source, clean ones included.
        left_out: figures per source by models that were trained without the source.
        seen: figures per labelled source by models that were trained on other rows of it.
        threshold: the recommended probability.
        file_bytes: size of the graph.
    """

    model: ModelFolder
    trained: Mapping[str, int]
    left_out: tuple[SourceFigures, ...]
    seen: tuple[SourceFigures, ...]
    threshold: float
    file_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class LinearModel:
    """What the graph computes, in numpy.

    A window's score is the sum of its n-grams' weights over the root of their number;
    its probability is `1 / (1 + exp(-(scale * score + offset)))`.

    Attributes:
        weights: float32[2^bits].
        scale: of the calibration; positive.
        offset: of the calibration.
    """

    weights: NDArray[np.float32]
    scale: float = 1.0
    offset: float = 0.0


def train_toxicity(
    data: Path,
    output: Path,
    language: str,
    *,
    clean: Path | None = None,
    exclude_sources: Iterable[str] = (),
    exclude_splits: Iterable[str] = (),
    include_unshipped: bool = False,
    seed: int = 20_261_121,
    name: str | None = None,
    version: str = "1",
    recipe: Recipe | None = None,
    card_figures: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> ToxicityReport:
    """Trains the toxicity model of one language and writes its folder with CARD.md.

    Args:
        data: a parquet file of labelled rows (columns: `toxicity_data.COLUMNS`), or a folder with
            `toxicity_<language>.parquet` and `clean_<language>.parquet`.
        output: models folder; the model goes to `<output>/<name>/<version>`.
        language: ISO 639-1 code; `en` and `zh` have recipes of their own.
        clean: a parquet file of clean text (columns: `toxicity_data.CLEAN_COLUMNS`); None takes the one in the folder
            `data`, and no clean text if `data` is a file.
        exclude_sources: values of the column `source` to leave out, of either file.
        exclude_splits: values of the column `split` to leave out.
        include_unshipped: also take rows whose `ship` is false; such a model must stay private.
        seed: of everything that is drawn.
        name: model name, `toxicity-<language>` if None.
        version: model version.
        recipe: replaces the language's recipe.
        card_figures: false saves the training of models that only the card's tables need.
        progress: is told what is being done, one line each.

    Raises:
        ConfigError: the data do not fit.
    """
    recipe = recipe or RECIPES.get(language, Recipe())
    labelled, paragraphs = read_data(data, clean, language, seed)
    excluded, splits = frozenset(exclude_sources), frozenset(exclude_splits)
    absent = excluded.difference(labelled.sources.tolist(), paragraphs.sources.tolist() if paragraphs else ())
    if absent:
        raise ConfigError(f"{data} has no source {', '.join(sorted(absent))}: name sources that it holds")
    labelled = _allowed(labelled, excluded, splits, include_unshipped)
    paragraphs = _allowed(paragraphs, excluded, frozenset(), include_unshipped) if paragraphs else None
    if len(set(labelled.labels.tolist())) < 2:
        raise ConfigError(
            f"{data} holds no toxic or no other rows in {language} with `ship` true that are not excluded: "
            "both classes are needed"
        )
    corpus = _Corpus.build(labelled, paragraphs, recipe, language, seed)

    several = np.unique(corpus.family[~corpus.clean]).size > 1
    by_source = recipe.folds_by_source and several
    left_out = seen = None
    if several and (by_source or card_figures):
        left_out = _held_out(corpus, recipe, seed, by_source=True, progress=progress)
    if not by_source or card_figures:
        seen = _held_out(corpus, recipe, seed, by_source=False, progress=progress)
    unseen = left_out if by_source else seen
    assert unseen is not None  # one of the two was made above
    scale, offset = _calibrate(corpus, unseen, recipe)

    progress(f"training on {len(corpus.labels)} rows")
    weights = _fit(corpus, np.ones(corpus.labels.size, dtype=np.bool_), recipe, seed)
    sentences = identity_rows(language)
    if recipe.identity_probability < 1 and len(sentences):
        limit = (_log_odds(recipe.identity_probability) - offset) / scale
        weights = hold_down(weights, corpus.rows_of(sentences, recipe.shape), limit)
    model = LinearModel(weights, scale, offset)
    folder = write_toxicity_model(
        model,
        recipe,
        output,
        name=name or f"toxicity-{language}",
        version=version,
        language=language,
        training_data=corpus.describe(),
        sounds=corpus.sounds,
    )
    trained = {
        str(source): int((corpus.originals & (corpus.sources == source)).sum()) for source in np.unique(corpus.sources)
    }
    report = ToxicityReport(
        model=folder,
        trained=trained,
        left_out=() if left_out is None else _figures(corpus, left_out, scale, offset, recipe.threshold),
        seen=() if seen is None else _figures(corpus, seen, scale, offset, recipe.threshold, clean=False),
        threshold=recipe.threshold,
        file_bytes=folder.file(GRAPH_ROLE).stat().st_size,
    )
    note = f"Seed {seed}. Only rows that may feed a distributed model were used."
    if include_unshipped:
        note = f"Seed {seed}. Rows that must not feed a distributed model were used: keep this model to yourself."
    for what, names in (("Sources", sorted(excluded)), ("Splits", sorted(splits))):
        if names:
            note += f" {what} left out: {', '.join(names)}."
    card = model_card(
        label=folder.label,
        language=language,
        shape=recipe.shape,
        threshold=recipe.threshold,
        toxic_share=recipe.toxic_share,
        clean_share=recipe.clean_share,
        folds=_FOLDS,
        left_out=report.left_out,
        seen=report.seen,
        trained=trained,
        training_note=note,
    )
    (folder.path / "CARD.md").write_text(card, encoding="utf-8")
    return report


def evaluate_toxicity(model: ModelFolder, rows: Rows, threshold: float | None = None) -> list[SourceFigures]:
    """Scores rows by a model, whatever their language, and compares with their labels.

    Args:
        model: a folder of kind `toxicity`.
        rows: labelled rows or clean paragraphs (label 0).
        threshold: probability from which on a row counts as toxic; the model's own if None.

    Returns:
        Figures per source, by name. Rows without a word count as probability 0.

    Raises:
        ModelError: the model does not load.
    """
    loaded = ToxicityModel(model)
    limit = loaded.threshold if threshold is None else threshold
    return figures_by_source(rows, score_rows(loaded, rows), limit)


def score_rows(model: ToxicityModel, rows: Rows) -> NDArray[np.float64]:
    """Returns float64[n]: each row's probability under a model, 0 for rows without a word."""
    probability = np.zeros(len(rows))
    at = 0
    while at < len(rows):
        stop, size = at, 0
        while stop < len(rows) and size < _BATCH_BYTES:
            size += len(rows.texts[stop])
            stop += 1
        batch = TextBatch.from_bytes(rows.texts[at:stop])
        documents = np.flatnonzero(np.diff(batch.word_offsets) > 0)
        if documents.size:
            probability[at + documents] = model.score(batch, documents).probability
        at = stop
    return probability


def write_toxicity_model(
    model: LinearModel,
    recipe: Recipe,
    output: Path,
    *,
    name: str,
    version: str,
    language: str,
    training_data: Sequence[str] = (),
    sounds: NDArray[np.uint16] | None = None,
) -> ModelFolder:
    """Writes the graph and model.toml of a model.

    Args:
        model: weights and calibration.
        recipe: the n-grams and the threshold.
        output: models folder.
        name: model name.
        version: model version.
        language: ISO 639-1 code that it serves.
        training_data: one line per source.
        sounds: uint16[SOUNDS], where the n-grams have sounds.
    """
    place = output / name / version
    place.mkdir(parents=True, exist_ok=True)
    (place / _GRAPH_FILE).write_bytes(build_graph(model))
    shape = recipe.shape
    names = {GRAPH_ROLE: _GRAPH_FILE}
    if sounds is not None:
        (place / _SOUNDS_FILE).write_bytes(sounds.astype("<u2").tobytes())
        names[SOUNDS_ROLE] = _SOUNDS_FILE
    return write_model(
        output,
        name=name,
        version=version,
        kind=KIND,
        languages=[language],
        files=names,
        licence="Apache-2.0",
        training_data=training_data,
        tables={
            KIND: {
                "threshold": recipe.threshold,
                "discount": recipe.discount,
                "word_sizes": shape.word_sizes,
                "character_sizes": list(shape.character_sizes),
                "bits": shape.bits,
                "block_words": shape.block_words,
                "sound_sizes": shape.sound_sizes,
                "simplified": shape.simplified,
                "ngram_check": ngram_check(shape, None if sounds is None else sound_table(sounds)),
                "calibration": {
                    "kind": "logistic",
                    "scale": model.scale,
                    "offset": model.offset,
                    "toxic_share": recipe.toxic_share,
                    "clean_share": recipe.clean_share,
                },
            }
        },
    )


def build_graph(model: LinearModel) -> bytes:
    """Makes the ONNX graph of a linear model.

    Inputs are the fields of `dqs.text.ngrams.Ngrams` of the same names (`block_ngrams`
    as float32 with one 0 behind); the output `probability` is float32[windows].
    """
    # The padding id points at a last weight of zero.
    weights = np.append(model.weights, np.float32(0)).astype(np.float32)
    constants = {
        "weights": weights,
        "flat": np.array([-1], dtype=np.int64),
        "rows": np.array([-1, ROW_WIDTH], dtype=np.int64),
        "row_axis": np.array([1], dtype=np.int64),
        "zero": np.float32(0),
        "scale": np.float32(model.scale),
        "offset": np.float32(model.offset),
    }
    nodes = [
        # GatherElements copies plain values; onnxruntime's Gather calls memcpy for each and takes seven times as long.
        helper.make_node("Reshape", ["ngrams", "flat"], ["flat_ngrams"]),
        helper.make_node("GatherElements", ["weights", "flat_ngrams"], ["flat_weights"], axis=0),
        helper.make_node("Reshape", ["flat_weights", "rows"], ["row_weights"]),
        helper.make_node("ReduceSum", ["row_weights", "row_axis"], ["row_sums"], keepdims=0),
        helper.make_node("Mul", ["block_ngrams", "zero"], ["no_sums"]),
        helper.make_node(
            "ScatterElements", ["no_sums", "row_block", "row_sums"], ["block_sums"], axis=0, reduction="add"
        ),
        helper.make_node("Gather", ["block_sums", "window_first"], ["first_sums"], axis=0),
        helper.make_node("Gather", ["block_sums", "window_second"], ["second_sums"], axis=0),
        helper.make_node("Add", ["first_sums", "second_sums"], ["sums"]),
        helper.make_node("Gather", ["block_ngrams", "window_first"], ["first_ngrams"], axis=0),
        helper.make_node("Gather", ["block_ngrams", "window_second"], ["second_ngrams"], axis=0),
        helper.make_node("Add", ["first_ngrams", "second_ngrams"], ["ngrams_in_window"]),
        helper.make_node("Sqrt", ["ngrams_in_window"], ["norms"]),
        helper.make_node("Div", ["sums", "norms"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], [GRAPH_OUTPUT]),
    ]
    types: dict[str, tuple[int, list[str | int]]] = {
        "ngrams": (TensorProto.INT32, ["rows", ROW_WIDTH]),
        "row_block": (TensorProto.INT64, ["rows"]),
        "block_ngrams": (TensorProto.FLOAT, ["blocks_and_none"]),
        "window_first": (TensorProto.INT64, ["windows"]),
        "window_second": (TensorProto.INT64, ["windows"]),
    }
    graph = helper.make_graph(
        nodes,
        "toxicity",
        [helper.make_tensor_value_info(name, *types[name]) for name in GRAPH_INPUTS],
        [helper.make_tensor_value_info(GRAPH_OUTPUT, TensorProto.FLOAT, ["windows"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="dqs")
    proto.ir_version = _IR_VERSION
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def ngram_matrix(ngrams: Ngrams, shape: NgramShape) -> sparse.csr_matrix:
    """The rows that scikit-learn learns from: counts of n-grams over the root of their sum.

    Args:
        ngrams: n-grams of m documents.
        shape: the shape that they were made with.

    Returns:
        float64[m, 2^bits], sparse; a document is one row, however many windows it has.
    """
    ids = ngrams.ids.reshape(-1)
    ids = ids[ids != shape.padding]
    ends = np.concatenate(([0], np.cumsum(ngrams.block_ngrams)))[ngrams.block_offsets]
    totals = np.diff(ends)
    values = np.repeat(1.0 / np.sqrt(np.maximum(totals, 1)), totals)
    matrix = sparse.csr_matrix((values, ids, ends), shape=(totals.size, shape.padding))
    matrix.sum_duplicates()
    return matrix


def window_scores(ngrams: Ngrams, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """The largest score of each document's windows, by definition; NaN for a document without a word.

    Args:
        ngrams: n-grams of m documents.
        weights: floating[2^bits].

    Returns:
        float64[m], before the calibration.
    """
    rows = np.append(weights, 0.0)[ngrams.ids].sum(axis=1)
    sums = np.bincount(ngrams.row_block, rows, minlength=ngrams.block_ngrams.size + 1)
    counts = np.append(ngrams.block_ngrams, 0)
    first, second = ngrams.window_first, ngrams.window_second
    scores = (sums[first] + sums[second]) / np.sqrt(counts[first] + counts[second])
    result = np.full(ngrams.window_offsets.size - 1, np.nan)
    present = np.flatnonzero(np.diff(ngrams.window_offsets))
    if present.size:
        result[present] = np.maximum.reduceat(scores, ngrams.window_offsets[present])
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Corpus:
    """Everything to train on as arrays of n rows: labelled ones, clean ones, disguised copies of labelled ones.

    `origin` is the row that a copy is made from, and each other row itself. `family` is the name of the
    source with which a row shares its intercept; `group` is the index of that intercept, -1 for rows that
    have none.
    """

    matrix: sparse.csr_matrix
    ngrams: Ngrams
    labels: NDArray[np.int8]
    sources: NDArray[np.str_]
    clean: NDArray[np.bool_]
    family: NDArray[np.str_]
    group: NDArray[np.int64]
    origin: NDArray[np.int64]
    sounds: NDArray[np.uint16] | None

    @classmethod
    def build(cls, labelled: Rows, paragraphs: Rows | None, recipe: Recipe, language: str, seed: int) -> _Corpus:
        harmless = [] if paragraphs is None else [paragraphs]
        harmless += [identity_rows(language)] * recipe.identity_repeats
        copies, copied = disguised_rows(labelled, language, recipe.disguised_share, seed)
        rows = Rows.join([labelled, *harmless, copies])
        originals = len(rows) - len(copies)
        clean = np.zeros(len(rows), dtype=np.bool_)
        clean[len(labelled) : originals] = True
        sounds = sound_classes() if recipe.shape.sound_sizes else None
        batch = TextBatch.from_bytes(rows.texts)
        table = None if sounds is None else sound_table(sounds)
        ngrams = hash_ngrams(batch, np.arange(len(rows)), recipe.shape, table)
        sources = rows.sources
        family = np.array([recipe.same_intercept.get(source, source) for source in sources.tolist()])
        _, members = np.unique(family, return_inverse=True)
        group = members.astype(np.int64)
        group[clean | np.isin(sources, recipe.reference_sources)] = -1
        return cls(
            matrix=ngram_matrix(ngrams, recipe.shape),
            ngrams=ngrams,
            labels=rows.labels,
            sources=sources,
            clean=clean,
            family=family,
            group=group,
            origin=np.append(np.arange(originals), copied),
            sounds=sounds,
        )

    def rows_of(self, rows: Rows, shape: NgramShape) -> sparse.csr_matrix:
        """The rows that scikit-learn would learn from, of other texts."""
        table = None if self.sounds is None else sound_table(self.sounds)
        return ngram_matrix(hash_ngrams(TextBatch.from_bytes(rows.texts), np.arange(len(rows)), shape, table), shape)

    @property
    def originals(self) -> NDArray[np.bool_]:
        """bool[n]: rows that are no copies."""
        return np.equal(self.origin, np.arange(self.origin.size))

    def describe(self) -> list[str]:
        """One line per source, for model.toml."""
        return [
            f"{source}: {int((self.originals & (self.sources == source)).sum())} rows"
            + (" of clean text" if self.clean[self.sources == source].any() else "")
            for source in np.unique(self.sources).tolist()
        ]


def _fit(corpus: _Corpus, chosen: NDArray[np.bool_], recipe: Recipe, seed: int) -> NDArray[np.float32]:
    """Fits weights, float32[2^bits], to the chosen rows."""
    group = corpus.group[chosen]
    has_own = group >= 0
    # An intercept per source: a column of its own, dropped below.
    intercepts = sparse.csr_matrix(
        (np.ones(int(has_own.sum())), (np.flatnonzero(has_own), group[has_own])),
        shape=(group.size, int(corpus.group.max(initial=0)) + 1),
    )
    _, members, sizes = np.unique(group, return_inverse=True, return_counts=True)
    row_weights = sizes[members] ** -recipe.balance
    estimator = SGDClassifier(
        loss="log_loss", alpha=recipe.penalty, max_iter=recipe.epochs, tol=None, average=True, random_state=seed
    )
    estimator.fit(
        sparse.hstack([corpus.matrix[chosen], intercepts], format="csr"),
        corpus.labels[chosen],
        sample_weight=row_weights / row_weights.mean(),
    )
    weights = estimator.coef_[0, : corpus.matrix.shape[1]]
    if recipe.register_share:
        weights = weights + recipe.register_share * _fit_register(corpus, chosen, recipe, seed)
    return np.asarray(weights, dtype=np.float32)


def _fit_register(corpus: _Corpus, chosen: NDArray[np.bool_], recipe: Recipe, seed: int) -> NDArray[np.float64]:
    """Weights, float64[2^bits], that tell what people post, toxic or not, from clean prose; both count the same.

    The fit of toxicity cares for all of the clean text alike. Its few paragraphs that come near
    toxic text are what limits recall, and they read like prose all the same.
    """
    clean = corpus.clean[chosen]
    if clean.all() or not clean.any():
        return np.zeros(corpus.matrix.shape[1])
    _, members, sizes = np.unique(corpus.family[chosen][~clean], return_inverse=True, return_counts=True)
    weights = np.ones(clean.size)
    weights[~clean] = sizes[members] ** -0.5
    weights[~clean] *= clean.sum() / weights[~clean].sum()
    estimator = SGDClassifier(
        loss="log_loss", alpha=_REGISTER_PENALTY, max_iter=5, tol=None, average=True, random_state=seed
    ).fit(corpus.matrix[chosen], ~clean, sample_weight=weights)
    return np.asarray(estimator.coef_[0])


def _held_out(
    corpus: _Corpus, recipe: Recipe, seed: int, *, by_source: bool, progress: Callable[[str], None]
) -> NDArray[np.float64]:
    """Scores every row by a model that was trained without it: float64[n].

    With `by_source` without its whole source. Clean sources are always left out as a whole
    where there are several. NaN where a fold leaves one class only, or a row has no word.
    """
    rng = np.random.default_rng(seed)
    fold = rng.integers(0, _FOLDS, corpus.labels.size)
    for kind in (corpus.clean, ~corpus.clean):
        names, sizes = np.unique(corpus.family[kind], return_counts=True)
        if names.size >= 2 and (by_source or corpus.clean[kind].any()):
            # Large sources first: dealt in turn, the folds are of similar size.
            for at, family in enumerate(names[np.lexsort((names, -sizes))].tolist()):
                fold[kind & (corpus.family == family)] = at % _FOLDS
    # A row and its copies are left out together.
    fold = fold[corpus.origin]
    result = np.full(corpus.labels.size, np.nan)
    for at in range(_FOLDS):
        held = fold == at
        if not held.any() or len(set(corpus.labels[~held].tolist())) < 2:
            continue
        kind_name = "sources" if by_source else "rows"
        progress(f"training without fold {at + 1} of {_FOLDS} of the {kind_name}")
        result[held] = window_scores(corpus.ngrams, _fit(corpus, ~held, recipe, seed))[held]
    # Copies and sentences written for training are not what probabilities and figures are about.
    result[~corpus.originals | (corpus.sources == IDENTITY_SOURCE)] = np.nan
    return result


def _calibrate(corpus: _Corpus, scores: NDArray[np.float64], recipe: Recipe) -> tuple[float, float]:
    """Fits scale and offset to held-out scores, float64[n], NaN for rows that have none.

    Every source counts the same within its part: toxic rows, other labelled rows, clean paragraphs.
    """
    toxic = corpus.labels == 1
    clean_share = recipe.clean_share if corpus.clean.any() else 0.0
    parts = (
        (toxic, recipe.fitted_share),
        (~toxic & ~corpus.clean, (1 - recipe.fitted_share) * (1 - clean_share)),
        (~toxic & corpus.clean, (1 - recipe.fitted_share) * clean_share),
    )
    present = ~np.isnan(scores)
    weights = np.zeros(scores.size)
    for part, share in parts:
        names, members, sizes = np.unique(corpus.sources[part & present], return_inverse=True, return_counts=True)
        if names.size:
            weights[part & present] = share / (names.size * sizes[members])
    chosen = weights > 0
    if not (chosen & toxic).any() or not (chosen & ~toxic).any():
        raise ConfigError("there are too few rows to calibrate a toxicity model: give more of both classes")
    center, spread = float(scores[chosen].mean()), float(scores[chosen].std()) or 1.0
    regression = LogisticRegression(C=1e6, max_iter=1000)
    regression.fit(
        ((scores[chosen] - center) / spread).reshape(-1, 1),
        corpus.labels[chosen],
        sample_weight=weights[chosen] * chosen.sum() / weights.sum(),
    )
    scale = float(regression.coef_[0, 0]) / spread
    if scale <= 0:
        raise ConfigError("toxic rows score no higher than others: check that label 1 means toxic, or give more rows")
    moved = _log_odds(recipe.toxic_share) - _log_odds(recipe.fitted_share)
    return scale, float(regression.intercept_[0]) - scale * center + moved


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def _figures(
    corpus: _Corpus, scores: NDArray[np.float64], scale: float, offset: float, threshold: float, *, clean: bool = True
) -> tuple[SourceFigures, ...]:
    """Figures per source from held-out scores; sources that no fold scored are left out."""
    probability = 1.0 / (1.0 + np.exp(-(scale * scores + offset)))
    result = []
    for source in np.unique(corpus.sources if clean else corpus.sources[~corpus.clean]).tolist():
        chosen = (corpus.sources == source) & ~np.isnan(scores)
        if chosen.any():
            result.append(source_figures(source, corpus.labels[chosen], probability[chosen], threshold))
    return tuple(result)


def _allowed(rows: Rows, sources: frozenset[str], splits: frozenset[str], include_unshipped: bool) -> Rows:
    chosen = ~np.isin(rows.sources, sorted(sources)) & ~np.isin(rows.splits, sorted(splits))
    return rows.take(chosen if include_unshipped else chosen & rows.ship)
