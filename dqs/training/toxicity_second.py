"""The second look of a toxicity model: which windows a transformer sees, and what both models say together.

Begins with a model of n-grams (`dqs.training.toxicity`) and a transformer that was
fine-tuned and exported elsewhere, and writes the two as one model folder:

1. Fit n-gram weights that tell what people post from edited prose.
2. Choose limits so that of clean documents no more windows a megabyte are looked at
   than the plan allows, one for documents of one window, one for longer ones.
3. Fit a logistic regression on both models' log-odds to the windows of rows for
   development and of clean text that pass the limits.
4. Fit each attribute's log-odds to the toxic rows for development that have it annotated.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression, SGDClassifier

from dqs.errors import ConfigError
from dqs.inference.symbols import name_symbols
from dqs.inference.tokens import TOKENIZER_ROLE
from dqs.inference.transformer import TABLE, Transformer
from dqs.models import ModelFolder, write_model
from dqs.scorers.toxicity import (
    GRAPH_ROLE,
    ROUGH_ROLE,
    SECOND_LABEL,
    SECOND_ROLE,
    SOUNDS_ROLE,
    ToxicityModel,
)
from dqs.text import TextBatch
from dqs.text.ngrams import Ngrams, NgramShape, hash_ngrams
from dqs.training.toxicity import KIND, LinearModel, build_graph, ngram_matrix
from dqs.training.toxicity_data import ATTRIBUTE_COLUMNS, Rows, read_clean_documents, read_data

_ROUGH_FILE: Final = "rough.onnx"
_SECOND_FILE: Final = "second.onnx"
_TOKENIZER_FILE: Final = "tokenizer.json"
_WEIGHTS_ROLE: Final = "second_data"
_WEIGHTS_FILE: Final = "second.bin"
_LARGE_BYTES: Final = 4 << 20
"""Larger tensors lie in a file of their own, for hosts of repositories dislike large files."""
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is looked at again, and how the limits are found.

    Attributes:
        low: probability by n-grams below which no window is looked at.
        short_per_mb: windows looked at per megabyte of clean text, in documents of one window.
        long_per_mb: the same in longer documents.
        most_windows: windows looked at in one document, at most.
        source_windows: clean windows per source that the weights of posts against prose are fitted to.
        penalty: weight of their L2 penalty.
        toxic_share: share of toxic text that probabilities assume.
        clean_share: share of clean prose in the rest; the other is posts that are not toxic.
        adversarial: sources whose rows were written to fool classifiers.
    """

    low: float = 0.06
    short_per_mb: float = 0.3
    long_per_mb: float = 0.05
    most_windows: int = 4
    source_windows: int = 9000
    penalty: float = 1e-6
    toxic_share: float = 0.1
    clean_share: float = 0.9
    adversarial: tuple[str, ...] = ("dynahate", "hatemoji_build")


def add_second_look(
    folder: ModelFolder,
    export: Path,
    data: Path,
    output: Path,
    *,
    version: str,
    plan: Plan | None = None,
    seed: int = 20_261_121,
    progress: Callable[[str], None] = lambda _: None,
) -> ModelFolder:
    """Writes a model that is `folder` with a transformer behind it.

    Args:
        folder: a model of n-grams that was trained without the splits dev and test.
        export: folder with `model.onnx`, `tokenizer.json` and `classifier.json`, which is the table
            `[classifier]` of model.toml; labels are `toxic` and then attributes.
        data: folder of `toxicity_<language>.parquet` and `clean_<language>.parquet`.
        output: models folder to write to.
        version: of the new model.
        plan: replaces the default plan.
        seed: of everything that is drawn.
        progress: is told what is being done, one line each.

    Raises:
        ConfigError: the export lacks a file, or there are no rows for development.
        ModelError: a model does not load.
    """
    plan = plan or Plan()
    (language,) = folder.languages
    place = output / folder.name / version
    place.mkdir(parents=True, exist_ok=True)
    files = {role: folder.file(role) for role in (GRAPH_ROLE, SOUNDS_ROLE) if folder.has_file(role)}
    for role, name, target in (
        (SECOND_ROLE, "model.onnx", _SECOND_FILE),
        (TOKENIZER_ROLE, _TOKENIZER_FILE, _TOKENIZER_FILE),
    ):
        if not (export / name).is_file():
            raise ConfigError(f"{export} has no {name}: export the transformer again")
        if role == SECOND_ROLE:
            _copy_graph(export / name, place)
            files[_WEIGHTS_ROLE] = place / _WEIGHTS_FILE
        else:
            shutil.copyfile(export / name, place / target)
        files[role] = place / target
    for path in files.values():
        if path.parent != place:
            shutil.copyfile(path, place / path.name)
    classifier = json.loads((export / "classifier.json").read_text("utf-8"))

    first = ToxicityModel(folder)
    labelled, paragraphs = read_data(data, None, language, seed)
    posts = labelled.take(labelled.ship & (labelled.splits == "train"))
    dev = labelled.take(labelled.ship & (labelled.splits == "dev"))
    if paragraphs is None or not len(dev):
        raise ConfigError(f"{data} needs clean text and rows of the split dev in {language!r}")
    progress("telling posts from prose")
    clean = read_clean_documents(data, language, evaluation=False)
    # Limits come from documents that the weights do not know.
    known, unknown = clean[0::2], clean[1::2]
    rough = _fit_rough(posts, known, first, plan, seed)
    (place / _ROUGH_FILE).write_bytes(build_graph(rough))
    files[ROUGH_ROLE] = place / _ROUGH_FILE

    table: dict[str, Any] = dict(folder.table(KIND))
    neutral = {"low": 1.0, "rough_short": 1.0, "rough_long": 1.0, "most_windows": plan.most_windows}
    neutral |= {"first_scale": 1.0, "second_scale": 0.0, "offset": 0.0}
    names = [label for label in classifier["labels"] if label != SECOND_LABEL]
    attributes = {name: {"scale": 1.0, "offset": 0.0, "base": 0.0} for name in names}

    def written(second: dict[str, Any]) -> ModelFolder:
        return write_model(
            output,
            name=folder.name,
            version=version,
            kind=KIND,
            languages=folder.languages,
            files={role: path.name for role, path in files.items()},
            licence=folder.licence,
            training_data=folder.training_data,
            tables={KIND: {**table, "second": second}, TABLE: classifier},
        )

    draft = written({**neutral, "attributes": attributes})
    network = Transformer(draft, graph_role=SECOND_ROLE)
    progress("choosing what to look at again")
    short, long = _limits(unknown, first, rough, plan)
    progress("fitting both models together")
    chosen = _Looked.of(dev, first, rough, plan.low, short)
    prose = _Looked.of(paragraphs.take(paragraphs.ship), first, rough, plan.low, short)
    log_odds = np.concatenate([_second(network, chosen), _second(network, prose)])
    mixed = _stack(chosen, prose, log_odds[:, 0], plan)
    at_dev = log_odds[: chosen.first.size, 1:]
    for column, name in enumerate(names):
        annotated = chosen.rows.attributes[:, list(ATTRIBUTE_COLUMNS).index(name)]
        attributes[name] = _fit_attribute(at_dev[:, column], annotated, chosen.rows.labels)
    limits = {"low": plan.low, "rough_short": short, "rough_long": long, "most_windows": plan.most_windows}
    model = written({**limits, **mixed, "attributes": attributes})
    _add_to_card(folder.path / "CARD.md", place / "CARD.md", plan, names)
    return model


def _copy_graph(graph: Path, place: Path) -> None:
    """Writes the graph with its largest tensors in `_WEIGHTS_FILE` beside it."""
    (place / _WEIGHTS_FILE).unlink(missing_ok=True)  # onnx appends
    onnx.save_model(
        onnx.load(str(graph)),
        str(place / _SECOND_FILE),
        save_as_external_data=True,
        location=_WEIGHTS_FILE,
        size_threshold=_LARGE_BYTES,
    )
    (place / _WEIGHTS_FILE).chmod(0o644)  # onnx keeps it to its writer


def _add_to_card(card: Path, target: Path, plan: Plan, attributes: list[str]) -> None:
    """Writes the card of the n-grams with a chapter about the second look in front of the figures."""
    told = textwrap.fill(
        f"A transformer looks again at windows whose n-grams give a probability of {plan.low:g} or more and which read "
        "like what people post rather than like edited prose, at most "
        f"{plan.most_windows} of a document. Their probability is that of a logistic regression on the log-odds of "
        f"both, fitted to rows of the splits dev. Limits are chosen so that of a megabyte of clean text about "
        f"{plan.short_per_mb:g} windows in short documents and {plan.long_per_mb:g} in long ones are looked at. "
        f"Of toxic text it also says: {', '.join(attributes)}; other languages and attributes lack labels that may be "
        "used. The figures below are those of the n-grams alone.",
        110,
    )
    text = card.read_text("utf-8") if card.is_file() else "## What it must not be used for\n"
    before, heading, after = text.partition(
        "## Held-out results" if "## Held-out results" in text else "## Training data"
    )
    target.write_text(f"{before}## The second look\n\n{told}\n\n{heading}{after}", encoding="utf-8")


@dataclass(frozen=True, slots=True, eq=False)
class _Looked:
    """Rows whose worst window passes the limits.

    `first` holds the log-odds by n-grams of that window, `texts` the window itself, and `weight` one over
    the rows of the row's source, those that do not pass included, times the number of sources;
    `toxic_part` is the share of toxic rows among all by these weights.
    """

    rows: Rows
    first: NDArray[np.float64]
    texts: list[bytes]
    weight: NDArray[np.float64]
    toxic_part: float

    @classmethod
    def of(cls, rows: Rows, model: ToxicityModel, rough: LinearModel, low: float, limit: float) -> _Looked:
        batch = TextBatch.from_bytes(rows.texts)
        documents = np.flatnonzero(np.diff(batch.word_offsets) > 0)
        found = model.score(batch, documents)
        ngrams = hash_ngrams(batch, documents, model.shape, model.sounds)
        windows = np.diff(ngrams.window_offsets)
        roughness = np.full(documents.size, -np.inf)
        for i, value in enumerate(np.split(_window_values(ngrams, rough), ngrams.window_offsets[1:-1])):
            roughness[i] = value.max(initial=0)
        passed = (found.probability >= low) & (roughness >= limit) & (windows >= 1)
        chosen = np.zeros(len(rows), dtype=np.bool_)
        chosen[documents[passed]] = True
        kept = rows.take(chosen)
        spans = found.span[passed]
        texts = [
            text.decode()[begin:end].encode() for text, (begin, end) in zip(kept.texts, spans.tolist(), strict=True)
        ]
        _, members, sizes = np.unique(rows.sources, return_inverse=True, return_counts=True)
        weight = 1.0 / (sizes.size * sizes[members])
        return cls(
            kept, _log_odds(found.probability[passed]), texts, weight[chosen], float(weight[rows.labels == 1].sum())
        )


def _second(network: Transformer, looked: _Looked) -> NDArray[np.float64]:
    """float64[k, labels]: the transformer's log-odds."""
    scores, _ = network.score_texts([name_symbols(text.decode()) for text in looked.texts])
    return _log_odds(scores)


def _log_odds(probability: NDArray[np.float32]) -> NDArray[np.float64]:
    kept = np.clip(probability.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.log(kept) - np.log1p(-kept)


def _fit_rough(
    posts: Rows, clean: list[tuple[str, str, bool]], model: ToxicityModel, plan: Plan, seed: int
) -> LinearModel:
    """Weights that are high for posts and low for windows of clean documents that may ship."""
    rng = np.random.default_rng(seed)
    words = 2 * model.shape.block_words - 4
    windows: dict[str, list[str]] = {}
    for text, source, ship in clean:
        if ship:
            found = text.split()
            windows.setdefault(source, []).extend(
                " ".join(found[at : at + words]) for at in range(0, len(found), words)
            )
    prose = [
        found[i].encode()
        for _, found in sorted(windows.items())
        for i in rng.permutation(len(found))[: plan.source_windows]
    ]
    matrix = sparse.vstack([_matrix(prose, model.shape), _matrix(posts.texts, model.shape)], format="csr")
    labels = np.append(np.zeros(len(prose), dtype=np.int8), np.ones(len(posts), dtype=np.int8))
    estimator = SGDClassifier(
        loss="log_loss", alpha=plan.penalty, max_iter=5, tol=None, average=True, random_state=seed
    ).fit(matrix, labels)
    # Limits are probabilities: their scale only has to leave room between them.
    return LinearModel(estimator.coef_[0].astype(np.float32), 1.0, float(estimator.intercept_[0]))


def _matrix(texts: list[bytes], shape: NgramShape) -> sparse.csr_matrix:
    batch = TextBatch.from_bytes(texts)
    return ngram_matrix(hash_ngrams(batch, np.arange(len(texts)), shape), shape)


def _window_values(ngrams: Ngrams, rough: LinearModel) -> NDArray[np.float64]:
    """float64[windows]: probability that each reads like a post."""
    sums = np.bincount(
        ngrams.row_block, np.append(rough.weights, 0.0)[ngrams.ids].sum(axis=1), minlength=ngrams.block_ngrams.size + 1
    )
    counts = np.append(ngrams.block_ngrams, 0)
    first, second = ngrams.window_first, ngrams.window_second
    scores = (sums[first] + sums[second]) / np.sqrt(counts[first] + counts[second])
    return np.asarray(1.0 / (1.0 + np.exp(-(rough.scale * scores + rough.offset))))


def _limits(
    clean: list[tuple[str, str, bool]], model: ToxicityModel, rough: LinearModel, plan: Plan
) -> tuple[float, float]:
    """The limits for documents of one window and for longer ones."""
    unseen = [text.encode() for text, _, _ in clean]
    batch = TextBatch.from_bytes(unseen)
    documents = np.flatnonzero(np.diff(batch.word_offsets) > 0)
    ngrams = hash_ngrams(batch, documents, model.shape, model.sounds)
    candidate = model.score_windows(ngrams) >= plan.low
    value = _window_values(ngrams, rough)
    alone = np.repeat(np.diff(ngrams.window_offsets) == 1, np.diff(ngrams.window_offsets))
    megabytes = sum(map(len, unseen)) / 1e6

    def limit(part: NDArray[np.bool_], per_mb: float) -> float:
        found = np.sort(value[part & candidate])[::-1]
        most = int(per_mb * megabytes)
        return float(found[most]) if most < found.size else 0.5

    return limit(alone, plan.short_per_mb), limit(~alone, plan.long_per_mb)


def _stack(chosen: _Looked, prose: _Looked, second: NDArray[np.float64], plan: Plan) -> dict[str, float]:
    """Weights of both models' log-odds, fitted to the plan's mixture; every source counts the same in its part."""
    labels = np.append(chosen.rows.labels, prose.rows.labels)
    toxic = chosen.rows.labels == 1
    posts_share = (1 - plan.toxic_share) * (1 - plan.clean_share)
    # Of each source's rows some are toxic: both parts together have to have their shares of the mixture.
    toxic_scale = plan.toxic_share / max(chosen.toxic_part, _LEAST)
    posts_scale = posts_share / max(1 - chosen.toxic_part, _LEAST)
    weights = np.concatenate(
        [
            chosen.weight * np.where(toxic, toxic_scale, posts_scale),
            prose.weight * (1 - plan.toxic_share) * plan.clean_share,
        ]
    )
    values = np.stack([np.append(chosen.first, prose.first), second], axis=1)
    sources = np.append(chosen.rows.sources, np.full(len(prose.rows), ""))
    weights *= labels.size / weights.sum()
    # Sources mean different things by toxic: an intercept of each one's own keeps that out of the weights. Rows that
    # people wrote to fool a classifier would have n-grams count for nothing.
    natural = ~np.isin(sources, plan.adversarial)
    _, members = np.unique(sources[natural], return_inverse=True)
    own = np.eye(members.max() + 1)[members]
    within = LogisticRegression(C=100.0, max_iter=2000).fit(
        np.hstack([values[natural], own]), labels[natural], sample_weight=weights[natural]
    )
    mixed = values @ within.coef_[0, :2]
    regression = LogisticRegression(C=1e6, max_iter=1000).fit(mixed[:, None], labels, sample_weight=weights)
    first_scale, second_scale = (within.coef_[0, :2] * regression.coef_[0, 0]).tolist()
    return {"first_scale": first_scale, "second_scale": second_scale, "offset": float(regression.intercept_[0])}


def _fit_attribute(
    log_odds: NDArray[np.float64], known: NDArray[np.int8], labels: NDArray[np.int8]
) -> dict[str, float]:
    """Scale and offset that turn log-odds into the share of toxic text with the attribute, and that share itself."""
    chosen = (labels == 1) & (known >= 0)
    has = known[chosen] == 1
    if has.sum() < 20 or (~has).sum() < 20:
        raise ConfigError("there are too few annotated toxic rows of the split dev to fit an attribute: leave it out")
    regression = LogisticRegression(C=1e6, max_iter=1000).fit(log_odds[chosen].reshape(-1, 1), has)
    return {
        "scale": float(regression.coef_[0, 0]),
        "offset": float(regression.intercept_[0]),
        "base": float(has.mean()),
    }
