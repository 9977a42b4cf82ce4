"""The second look of a toxicity model: which windows a transformer sees, and what both models say together.

Begins with a model of n-grams (`dqs.training.toxicity`) and a transformer that was
fine-tuned and exported elsewhere, and writes the two as one model folder:

1. Fit n-gram weights that tell what people post from edited prose.
2. Fit a logistic regression on these, on the n-grams' log-odds of toxicity and on how a
   passage is written, which tells posts from documents of one window.
3. Choose limits of its log-odds so that of clean documents no more windows a megabyte are
   looked at than the plan allows, one for documents of one window, one for longer ones.
4. Fit a logistic regression on both models' log-odds to the windows of rows for
   development and of clean text that pass the limits.
5. Fit each attribute's log-odds to toxic rows that have it annotated, of sources where some
   have it and some have it not: rows for development, and those of the split train where a
   source has no others.
"""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression, SGDClassifier

from dqs.errors import ConfigError
from dqs.inference.tokens import TOKENIZER_ROLE
from dqs.inference.transformer import TABLE
from dqs.models import ModelFolder, write_model
from dqs.scorers.toxicity import (
    GRAPH_ROLE,
    POST_ROLE,
    SECOND_LABEL,
    SECOND_ROLE,
    SIGNS,
    SOUNDS_ROLE,
    SecondLook,
    ToxicityModel,
    log_odds_of,
)
from dqs.text import TextBatch
from dqs.text.ngrams import hash_ngrams
from dqs.training.toxicity import KIND, LinearModel, build_graph, ngram_matrix
from dqs.training.toxicity_data import ATTRIBUTE_COLUMNS, Rows, read_clean_documents, read_data

_POST_FILE: Final = "post.onnx"
_SECOND_FILE: Final = "second.onnx"
_TOKENIZER_FILE: Final = "tokenizer.json"
_WEIGHTS_ROLE: Final = "second_data"
_WEIGHTS_FILE: Final = "second.bin"
_LARGE_BYTES: Final = 4 << 20
"""Larger tensors lie in a file of their own, for hosts of repositories dislike large files."""
_LEAST = 1e-6
_FAR: Final = 1e9
_LEAST_WINDOWS: Final = 200
_LEAST_ANNOTATED: Final = 20
_BATCH_TEXTS: Final = 2000
_POST_SCALE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is looked at again, and how the limits are found.

    Attributes:
        low_short: probability by n-grams below which no window is looked at in documents of one window.
        low_long: the same in longer documents.
        short_per_mb: windows looked at per megabyte of clean text, in documents of one window.
        long_per_mb: the same in longer documents.
        most_windows: windows looked at in one document, at most.
        source_windows: clean windows per source that the weights of posts against prose are fitted to.
        penalty: weight of their L2 penalty.
        rewritten: sources whose text is not written as it was posted: case and marks are not learnt from them.
        toxic_share: share of toxic text that probabilities assume.
        clean_share: share of clean prose in the rest; the other is posts that are not toxic.
        adversarial: sources whose rows were written to fool classifiers.
        mixed: attributes whose log-odds count beside those of toxicity; what sources call toxic is often one of them.
        attribute_rows: toxic rows of a source that attributes are fitted to, at most.
        sureness: what the log-odds of both are multiplied by after that, for text of unknown sources is told apart
            worse than that of the rows for development. Chosen on rows that may not ship.
        lean: what is added to them then.
    """

    low_short: float = 0.002
    low_long: float = 0.3
    short_per_mb: float = 0.5
    long_per_mb: float = 0.05
    most_windows: int = 4
    source_windows: int = 9000
    penalty: float = 1e-6
    rewritten: tuple[str, ...] = ("paradetox", "paradetox_cannot_rewrite")
    toxic_share: float = 0.1
    clean_share: float = 0.9
    adversarial: tuple[str, ...] = ("dynahate", "hatemoji_build")
    mixed: tuple[str, ...] = ("identity_attack",)
    attribute_rows: int = 1500
    sureness: float = 1.0
    lean: float = 0.0


PLANS: Final[Mapping[str, Plan]] = {
    "en": Plan(),
    # A look costs next to nothing: the network is a small one over characters.
    "zh": Plan(low_short=0.015, low_long=0.05, short_per_mb=20.0, long_per_mb=5.0, sureness=0.7, lean=-0.4),
}


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
        plan: replaces the language's plan.
        seed: of everything that is drawn.
        progress: is told what is being done, one line each.

    Raises:
        ConfigError: the export lacks a file, or there are no rows for development.
        ModelError: a model does not load.
    """
    if folder.kind != KIND or len(folder.languages) != 1:
        raise ConfigError(f"{folder.label} is no toxicity model of one language: give the folder of one")
    for name in ("model.onnx", _TOKENIZER_FILE, "classifier.json"):
        if not (export / name).is_file():
            raise ConfigError(f"{export} has no {name}: export the network again")
    (language,) = folder.languages
    plan = plan or PLANS.get(language, Plan())
    place = output / folder.name / version
    place.mkdir(parents=True, exist_ok=True)
    files = {role: folder.file(role) for role in (GRAPH_ROLE, SOUNDS_ROLE) if folder.has_file(role)}
    for role, name, target in (
        (SECOND_ROLE, "model.onnx", _SECOND_FILE),
        (TOKENIZER_ROLE, _TOKENIZER_FILE, _TOKENIZER_FILE),
    ):
        if role == SECOND_ROLE:
            _copy_graph(export / name, place)
            if (place / _WEIGHTS_FILE).exists():
                files[_WEIGHTS_ROLE] = place / _WEIGHTS_FILE
        else:
            shutil.copyfile(export / name, place / target)
        files[role] = place / target
    for path in files.values():
        if path.parent != place:
            shutil.copyfile(path, place / path.name)
    classifier = json.loads((export / "classifier.json").read_text("utf-8"))

    labelled, paragraphs = read_data(data, None, language, seed)
    posts = labelled.take(labelled.ship & (labelled.splits == "train"))
    dev = labelled.take(labelled.ship & (labelled.splits == "dev"))
    if paragraphs is None or not len(dev):
        raise ConfigError(f"{data} needs clean text and rows of the split dev in {language!r}")
    table: dict[str, Any] = dict(folder.table(KIND))
    names = [label for label in classifier["labels"] if label != SECOND_LABEL]
    # Neutral until each part is fitted: the model as it stands measures what the next part is fitted to.
    second: dict[str, Any] = {"low_short": plan.low_short, "low_long": plan.low_long, "limit_short": -_FAR}
    second |= {"limit_long": -_FAR, "most_windows": plan.most_windows, "signs": dict.fromkeys(SIGNS, 0.0)}
    second |= {"first_scale": 1.0, "offset": 0.0, "scales": {}}
    second["attributes"] = {name: {"scale": 1.0, "offset": 0.0} for name in names}

    def written() -> ModelFolder:
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

    progress("telling posts from prose")
    clean = read_clean_documents(data, language, evaluation=False)
    # What comes after is fitted to text that these weights do not know.
    known, unknown = clean[0::2], [text.encode() for text, _, _ in clean[1::2]]
    odd = np.arange(len(posts)) % 2 == 1
    first = ToxicityModel(folder)
    weights = _fit_posts(posts.take(~odd), known, first, plan, seed)
    (place / _POST_FILE).write_bytes(build_graph(weights))
    files[POST_ROLE] = place / _POST_FILE

    progress("choosing what to look at again")
    draft = ToxicityModel(written())
    prose = _Windows.of(unknown, draft, plan)
    natural = posts.take(odd & ~np.isin(posts.sources, plan.rewritten))
    signs = _fit_signs(prose, _Windows.of(natural.texts, draft, plan))
    second["signs"] = dict(zip(SIGNS, signs.tolist(), strict=True))
    megabytes = sum(map(len, unknown)) / 1e6
    for length, long, per_mb in (("short", False, plan.short_per_mb), ("long", True, plan.long_per_mb)):
        found = np.sort(prose.signs[prose.is_long == long] @ signs)[::-1]
        most = int(per_mb * megabytes)
        second[f"limit_{length}"] = float(found[most]) if most < found.size else -_FAR

    progress("fitting both models together")
    draft = ToxicityModel(written())
    chosen = _Looked.of(dev, draft)
    mixed = [SECOND_LABEL, *(name for name in names if name in plan.mixed)]
    columns = [classifier["labels"].index(label) for label in mixed]
    prose_windows = _Looked.of(paragraphs.take(paragraphs.ship), draft)
    second["first_scale"], *scales, second["offset"] = _stack(chosen, prose_windows, columns, plan)
    second["scales"] = dict(zip(mixed, scales, strict=True))
    if names:
        toxic = Rows.join(
            [part.take(part.labels == 1) for part in (dev, posts.take(~np.isin(posts.sources, dev.sources)))]
        )
        told, log_odds = _first_windows(_some_of_each(toxic, plan, seed), draft)
        for column, name in enumerate(names):
            annotated = told.attributes[:, list(ATTRIBUTE_COLUMNS).index(name)]
            second["attributes"][name] = _fit_attribute(log_odds[:, 1 + column], annotated, told.sources)
    model = written()
    _add_to_card(folder.path / "CARD.md", place / "CARD.md", plan, mixed, names)
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
    if (place / _WEIGHTS_FILE).exists():
        (place / _WEIGHTS_FILE).chmod(0o644)  # onnx keeps it to its writer


def _add_to_card(card: Path, target: Path, plan: Plan, mixed: list[str], attributes: list[str]) -> None:
    """Writes the card of the n-grams with a chapter about the second look in front of the figures."""
    told = textwrap.fill(
        f"A network looks again at windows whose n-grams give a probability of {plan.low_short:g} or more "
        f"({plan.low_long:g} in documents of more than one window) and which are written like what people post rather "
        f"than like edited prose, at most {plan.most_windows} of a document. Their probability is that of a logistic "
        f"regression on the log-odds of both ({', '.join(mixed)}), fitted to rows of the splits dev. "
        "Limits are chosen so that of a megabyte "
        f"of clean text about {plan.short_per_mb:g} windows in short documents and {plan.long_per_mb:g} in long ones "
        "are looked at. "
        + (f"Of toxic text it also says: {', '.join(attributes)}. " if attributes else "")
        + "Other attributes lack labels that may be used. The figures below are those of the n-grams alone.",
        110,
    )
    text = card.read_text("utf-8") if card.is_file() else "## What it must not be used for\n"
    # A second look that the model had before is replaced.
    text = re.sub(r"## The second look\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    before, heading, after = text.partition(
        "## Held-out results" if "## Held-out results" in text else "## Training data"
    )
    target.write_text(f"{before}## The second look\n\n{told}\n\n{heading}{after}", encoding="utf-8")


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """The windows of texts that the n-grams leave in doubt.

    `is_long` says whether their text has more than one window; `signs` has a row for each, columns as in `SIGNS`.
    """

    is_long: NDArray[np.bool_]
    signs: NDArray[np.float64]

    @classmethod
    def of(cls, texts: list[bytes], model: ToxicityModel, plan: Plan) -> _Windows:
        parts = []
        for batch, documents in _batches(texts):
            ngrams = hash_ngrams(batch, documents, model.shape, model.sounds)
            probability = model.score_windows(ngrams)
            windows = np.diff(ngrams.window_offsets)
            is_long = np.repeat(windows, windows) > 1
            found = np.flatnonzero(probability >= np.where(is_long, plan.low_long, plan.low_short))
            signs = _second(model).signs(batch, documents, ngrams, probability, found)
            parts.append((is_long[found], signs))
        return cls(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


@dataclass(frozen=True, slots=True, eq=False)
class _Looked:
    """The windows of rows that a model looks at again.

    `rows` has the row of each window; `first` holds its log-odds by n-grams, `second` the network's, a column for
    each label; `weight` is one over the number of rows of the row's source, those that are not looked at included,
    times the number of sources; `toxic_part` is the share of toxic rows among all by these weights.
    """

    rows: Rows
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    weight: NDArray[np.float64]
    toxic_part: float

    @classmethod
    def of(cls, rows: Rows, model: ToxicityModel) -> _Looked:
        parts = []
        begin = 0
        for batch, documents in _batches(rows.texts):
            ngrams = hash_ngrams(batch, documents, model.shape, model.sounds)
            probability = model.score_windows(ngrams)
            windows, _ = _second(model).choose(batch, documents, ngrams, probability)
            document = documents[np.searchsorted(ngrams.window_offsets, windows, side="right") - 1]
            second = _second(model).look(batch, documents, ngrams, windows)
            parts.append((begin + document, log_odds_of(probability[windows]), second))
            begin += len(batch)
        of_row, first, second = (np.concatenate([part[at] for part in parts]) for at in range(3))
        _, members, sizes = np.unique(rows.sources, return_inverse=True, return_counts=True)
        weight = 1.0 / (sizes.size * sizes[members])
        toxic_part = float(weight[rows.labels == 1].sum())
        return cls(rows.pick(of_row), first, second, weight[of_row], toxic_part)


def _second(model: ToxicityModel) -> SecondLook:
    assert model.second is not None  # every draft has one
    return model.second


def _batches(texts: list[bytes]) -> Iterator[tuple[TextBatch, NDArray[np.int64]]]:
    """Batches of texts in their order, and the indices of those that have a word."""
    for at in range(0, len(texts), _BATCH_TEXTS):
        batch = TextBatch.from_bytes(texts[at : at + _BATCH_TEXTS])
        yield batch, np.flatnonzero(np.diff(batch.word_offsets) > 0)


def _fit_posts(
    posts: Rows, clean: list[tuple[str, str, bool]], model: ToxicityModel, plan: Plan, seed: int
) -> LinearModel:
    """Weights that are high for posts and low for windows of clean documents that may ship."""
    rng = np.random.default_rng(seed)
    words = 2 * model.shape.block_words - 4
    spaced = bool(model.shape.character_sizes)
    windows: dict[str, list[str]] = {}
    for text, source, ship in clean:
        if ship:
            # Where words are not parted by spaces, a character counts as one.
            found, glue = (text.split(), " ") if spaced else (list(text), "")
            windows.setdefault(source, []).extend(
                glue.join(found[at : at + words]) for at in range(0, len(found), words)
            )
    prose = [
        found[i].encode()
        for _, found in sorted(windows.items())
        for i in rng.permutation(len(found))[: plan.source_windows]
    ]
    matrix = sparse.vstack([_matrix(prose, model), _matrix(posts.texts, model)], format="csr")
    labels = np.append(np.zeros(len(prose), dtype=np.int8), np.ones(len(posts), dtype=np.int8))
    estimator = SGDClassifier(
        loss="log_loss", alpha=plan.penalty, max_iter=5, tol=None, average=True, random_state=seed
    ).fit(matrix, labels)
    # The scale keeps log-odds within what a float32 probability tells apart.
    return LinearModel(estimator.coef_[0].astype(np.float32), _POST_SCALE, _POST_SCALE * float(estimator.intercept_[0]))


def _matrix(texts: list[bytes], model: ToxicityModel) -> sparse.csr_matrix:
    batch = TextBatch.from_bytes(texts)
    return ngram_matrix(hash_ngrams(batch, np.arange(len(texts)), model.shape, model.sounds), model.shape)


def _fit_signs(prose: _Windows, posts: _Windows) -> NDArray[np.float64]:
    """float64[len(SIGNS)]: weights that are high for posts and low for short documents of clean prose."""
    short = ~prose.is_long if (~prose.is_long).sum() >= _LEAST_WINDOWS else np.ones(prose.is_long.size, dtype=np.bool_)
    values = np.concatenate([prose.signs[short], posts.signs])
    labels = np.append(np.zeros(int(short.sum())), np.ones(len(posts.signs)))
    if len(set(labels.tolist())) < 2:
        raise ConfigError("there is too little clean or labelled text that the n-grams leave in doubt: give more")
    spread = np.maximum(values.std(axis=0), 1e-6)
    regression = LogisticRegression(C=1.0, max_iter=2000, class_weight="balanced").fit(values / spread, labels)
    return np.asarray(regression.coef_[0] / spread)


def _stack(chosen: _Looked, prose: _Looked, columns: list[int], plan: Plan) -> list[float]:
    """Weights of both models' log-odds, the network's in `columns`, and an offset, fitted to the plan's mixture.

    Every source counts the same in its part.
    """
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
    second = np.concatenate([chosen.second[:, columns], prose.second[:, columns]])
    values = np.column_stack([np.append(chosen.first, prose.first), second])
    count = values.shape[1]
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
    mixed = values @ within.coef_[0, :count]
    regression = LogisticRegression(C=1e6, max_iter=1000).fit(mixed[:, None], labels, sample_weight=weights)
    scales = within.coef_[0, :count] * regression.coef_[0, 0] * plan.sureness
    return [*scales.tolist(), float(regression.intercept_[0]) * plan.sureness + plan.lean]


def _some_of_each(rows: Rows, plan: Plan, seed: int) -> Rows:
    """At most `attribute_rows` rows of each source, in their order."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(rows.sources == source))[: plan.attribute_rows]
        for source in np.unique(rows.sources).tolist()
    ]
    return rows.pick(np.sort(np.concatenate(drawn)))


def _first_windows(rows: Rows, model: ToxicityModel) -> tuple[Rows, NDArray[np.float64]]:
    """The rows that have a word, and the network's log-odds of their first windows, float64[rows, labels]."""
    kept, log_odds = [], []
    begin = 0
    for batch, documents in _batches(rows.texts):
        ngrams = hash_ngrams(batch, documents, model.shape, model.sounds)
        log_odds.append(_second(model).look(batch, documents, ngrams, ngrams.window_offsets[:-1]))
        kept.append(begin + documents)
        begin += len(batch)
    return rows.pick(np.concatenate(kept)), np.concatenate(log_odds)


def _fit_attribute(
    log_odds: NDArray[np.float64], known: NDArray[np.int8], sources: NDArray[np.str_]
) -> dict[str, float]:
    """Scale and offset that turn log-odds into the share of toxic text with the attribute.

    Every source counts the same in which at least `_LEAST_ANNOTATED` rows have it and as many have it not: others
    say by their choice of rows what they have.
    """
    fitting = [
        source
        for source in np.unique(sources).tolist()
        if min(((sources == source) & (known == value)).sum() for value in (0, 1)) >= _LEAST_ANNOTATED
    ]
    if not fitting:
        raise ConfigError("there are too few annotated toxic rows to fit an attribute: leave it out")
    chosen = np.isin(sources, fitting) & (known >= 0)
    _, members, sizes = np.unique(sources[chosen], return_inverse=True, return_counts=True)
    weights = chosen.sum() / (sizes.size * sizes[members])
    has = known[chosen] == 1
    regression = LogisticRegression(C=1e6, max_iter=1000).fit(
        log_odds[chosen].reshape(-1, 1), has, sample_weight=weights
    )
    return {
        "scale": float(regression.coef_[0, 0]),
        "offset": float(regression.intercept_[0]),
    }
