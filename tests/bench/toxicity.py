"""How well the toxicity models find toxic text, and what they do to text that is not.

    python -m tests.bench.toxicity --data ../shared/data

Measures the models that ship beside the recipe that shipped before them, trained
on the same rows (kept in `--cache`). Rows of the splits train were trained on; the
splits dev chose; the splits test and the whole sources that may not ship are
measured here. Of clean text only documents count that no model is trained on.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from dqs.models import find_models, load_model, model_roots
from dqs.scorers.toxicity import ToxicityModel
from dqs.text import TextBatch
from dqs.text.ngrams import NgramShape
from dqs.training.disguise import DISGUISES
from dqs.training.toxicity import RECIPES, Recipe, score_rows, train_toxicity
from dqs.training.toxicity_data import (
    Rows,
    identity_test,
    read_clean_documents,
    read_paragraphs,
    read_rows,
)
from dqs.training.toxicity_figures import SourceFigures, source_figures
from tests.bench.report import emit, show

_LEAST_ROWS = 400
_SEED = 20_261_121
_FALSE_ALARMS = 0.005
_BINS = 10
_DISGUISED_WORDS = 0.4
_DISGUISED_ROWS = 400
"""Of each source, at most."""
_EVALUATED = {
    "en": (("test", ()),),
    # COLD has no test split here; ToxiRewriteCN and ChineseHarm-Bench are trained on by nobody.
    "zh": (("dev", ("cold",)), ("test", ("toxirewritecn",)), ("train", ("chineseharm_bench", "toxirewritecn"))),
}
_BEFORE = {
    "en": replace(
        RECIPES["en"],
        shape=NgramShape(word_sizes=2, character_sizes=(4,), bits=20, block_words=32),
        disguised_share=0.0,
        identity_repeats=0,
        register_share=0.0,
        identity_probability=1.0,
        discount=0.0,
        clean_share=0.9,
    ),
    "zh": replace(
        RECIPES["zh"],
        shape=NgramShape(word_sizes=3, character_sizes=(), bits=20, block_words=64),
        disguised_share=0.0,
        identity_repeats=0,
        register_share=0.0,
        identity_probability=1.0,
        discount=0.0,
        clean_share=0.8,
    ),
}
"""The recipes of the models toxicity-en@1 and toxicity-zh@1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of toxicity_*.parquet and clean_*.parquet")
    parser.add_argument("--models", type=Path, help="folder of models to measure; those that ship by default")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/bench-toxicity"), help="where models of the old recipe are kept"
    )
    parser.add_argument("--language", choices=sorted(RECIPES), action="append", help="both by default")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing of the second look")
    arguments = parser.parse_args()
    roots = model_roots(arguments.models)
    found = {language: folder for folder in find_models(roots, kind="toxicity") for language in folder.languages}
    figures = {}
    for language in arguments.language or sorted(RECIPES):
        models = {
            "before": ToxicityModel(_before(arguments.data, arguments.cache, language, _BEFORE[language])),
            "now": ToxicityModel(found[language]),
        }
        figures[language] = {"model": found[language].label} | measure(
            arguments.data, language, models, arguments.rounds
        )
    emit("toxicity", {"languages": figures})


def measure(data: Path, language: str, models: dict[str, ToxicityModel], rounds: int) -> dict[str, Any]:
    rows = evaluated_rows(data, language)
    clean = read_paragraphs(data / f"clean_{language}.parquet", language, _SEED, evaluation=True)
    scores = {name: [score_rows(model, part) for _, part in rows] for name, model in models.items()}
    prose = {name: score_rows(model, clean) for name, model in models.items()}
    limits = {name: float(np.quantile(found, 1 - _FALSE_ALARMS)) for name, found in prose.items()}
    result: dict[str, Any] = {"sources": _sources(rows, scores, limits, models), "limit": limits}
    for name in models:
        table = result["sources"][name]
        show(
            f"Toxicity, {language}, {name}; recall at {_FALSE_ALARMS:.1%} false alarms on clean paragraphs",
            ("rows", "number", "toxic", "AUC", "best macro-F1", "recall", "at threshold", "false alarms there"),
            [
                (
                    row["rows"], row["number"], f"{row['toxic_share']:.2f}", f"{row['auc']:.3f}",
                    f"{row['macro_f1']:.3f}", f"{row['recall']:.3f}", f"{row['recall_at_threshold']:.3f}",
                    f"{row['false_alarms']:.2%}",
                )
                for row in table
            ],
        )  # fmt: skip
        counted = [row for row in table if not row["rows"].endswith("(train)")]
        result[name] = {
            "mean_auc": float(np.mean([row["auc"] for row in counted])),
            "mean_recall": float(np.mean([row["recall"] for row in counted])),
            "clean_above_threshold": float((prose[name] > models[name].threshold).mean()),
        }
    model = models["now"]
    result["disguises"] = _disguises(rows, language, model, limits["now"])
    result["identities"] = {name: _identities(language, found) for name, found in models.items()}
    result["calibration"] = _calibration(rows, scores["now"], prose["now"], language)
    result["length"] = _length(data, language, model)
    result["cascade"] = _cascade(data, language, model, rounds)
    show(
        f"Toxicity, {language}, in short",
        ("figure", "before", "now"),
        [
            ("AUC, mean", *(f"{result[name]['mean_auc']:.3f}" for name in models)),
            ("recall, mean", *(f"{result[name]['mean_recall']:.3f}" for name in models)),
            ("identity gap", *(f"{result['identities'][name]['gap']:.3f}" for name in models)),
            (
                "clean paragraphs above the threshold",
                *(f"{result[name]['clean_above_threshold']:.2%}" for name in models),
            ),
        ],
    )
    return result


def evaluated_rows(data: Path, language: str) -> list[tuple[str, Rows]]:
    """The rows to measure, one source and split each: its name and its rows."""
    labelled = read_rows(data / f"toxicity_{language}.parquet", language)
    result = []
    for split, wanted in _EVALUATED[language]:
        chosen = labelled.take(labelled.splits == split)
        for source in np.unique(chosen.sources).tolist():
            part = chosen.take(chosen.sources == source)
            if len(part) >= _LEAST_ROWS and (not wanted or source in wanted):
                result.append((f"{source} ({split})", part))
    return result


def _sources(
    rows: list[tuple[str, Rows]],
    scores: dict[str, list[NDArray[np.float64]]],
    limits: dict[str, float],
    models: dict[str, ToxicityModel],
) -> dict[str, list[dict[str, Any]]]:
    result: dict[str, list[dict[str, Any]]] = {}
    for name, found in scores.items():
        for (label, part), probability in zip(rows, found, strict=True):
            figures: SourceFigures = source_figures(label, part.labels, probability, models[name].threshold)
            result.setdefault(name, []).append(
                {
                    "rows": label,
                    "number": figures.rows,
                    "toxic_share": figures.toxic_share,
                    "auc": figures.auc,
                    "macro_f1": figures.macro_f1,
                    "recall": float((probability[part.labels == 1] > limits[name]).mean()),
                    "recall_at_threshold": figures.recall,
                    "false_alarms": figures.false_alarms,
                }
            )
    return result


def _disguises(rows: list[tuple[str, Rows]], language: str, model: ToxicityModel, limit: float) -> dict[str, float]:
    """Recall on disguised toxic rows over the recall on the plain ones, by disguise."""
    toxic = Rows.join([part.take(part.labels == 1) for name, part in rows if not name.endswith("(train)")])
    chosen = np.zeros(len(toxic), dtype=np.bool_)
    rng = np.random.default_rng(_SEED)
    for source in np.unique(toxic.sources).tolist():
        chosen[rng.permutation(np.flatnonzero(toxic.sources == source))[:_DISGUISED_ROWS]] = True
    toxic = toxic.take(chosen)
    # Rows in which a disguise finds nothing to change say nothing about it.
    plain = score_rows(model, toxic) > limit
    result = {}
    for name, disguise in DISGUISES[language].items():
        rng = np.random.default_rng(_SEED)
        texts = [disguise(text.decode(), rng, _DISGUISED_WORDS).encode() for text in toxic.texts]
        changed = np.array([new != old for new, old in zip(texts, toxic.texts, strict=True)])
        hidden = score_rows(model, replace(toxic, texts=texts)) > limit
        result[name] = float(hidden[changed].mean() / plain[changed].mean()) if changed.any() else float("nan")
    show(
        f"Toxicity, {language}: recall kept where {_DISGUISED_WORDS:.0%} of the words are disguised",
        ("disguise", "recall kept"),
        [(name, f"{kept:.1%}") for name, kept in result.items()] + [("mean", f"{np.mean(list(result.values())):.1%}")],
    )
    return result


def _identities(language: str, model: ToxicityModel) -> dict[str, Any]:
    """Mean probability per group of people over neutral sentences."""
    terms, sentences, held_out = identity_test(language)
    texts = [sentence.replace("{}", term).encode() for term in terms for sentence in sentences]
    batch = TextBatch.from_bytes(texts)
    found = model.score(batch, np.arange(len(texts))).probability
    means = found.reshape(len(terms), len(sentences)).mean(axis=1)
    unseen = np.array([term in held_out for term in terms])
    return {
        "gap": float(means.max() - means.min()),
        "gap_unseen": float(means[unseen].max() - means[unseen].min()),
        "mean": float(means.mean()),
        "highest": float(means.max()),
    }


def _calibration(
    rows: list[tuple[str, Rows]], scores: list[NDArray[np.float64]], prose: NDArray[np.float64], language: str
) -> dict[str, Any]:
    """Expected calibration error of the measured rows, and of the mixture that probabilities assume."""
    parts = [(part, found) for (name, part), found in zip(rows, scores, strict=True) if "(train)" not in name]
    labels = np.concatenate([part.labels for part, _ in parts]).astype(np.float64)
    found = np.concatenate([probability for _, probability in parts])
    # Every source counts the same.
    even = np.concatenate([np.full(len(part), 1 / len(part)) for part, _ in parts])
    recipe: Recipe = RECIPES[language]
    toxic = labels == 1
    weights = np.where(
        toxic,
        even * recipe.toxic_share / even[toxic].sum(),
        even * (1 - recipe.toxic_share) * (1 - recipe.clean_share) / even[~toxic].sum(),
    )
    clean_weight = (1 - recipe.toxic_share) * recipe.clean_share / prose.size
    mixture = _reliability(
        np.append(found, prose),
        np.append(labels, np.zeros(prose.size)),
        np.append(weights, np.full(prose.size, clean_weight)),
    )
    rows_only = _reliability(found, labels, even)
    moved = np.concatenate([_with_share(probability, float(part.labels.mean())) for part, probability in parts])
    known = _reliability(moved, labels, even)
    show(
        f"Toxicity, {language}: reliability; the mixture of {recipe.toxic_share:.0%} toxic text, rough and clean prose",
        ("probability", "share of it", "mean |", "toxic #", "diagram"),
        [
            (
                f"{at / _BINS:.1f} to {(at + 1) / _BINS:.1f}", f"{weight:.3%}", f"{mean:.3f}", f"{share:.3f}",
                _bar(mean, share),
            )
            for at, (weight, mean, share) in enumerate(mixture["bins"])
            if weight
        ],
    )  # fmt: skip
    show(
        f"Toxicity, {language}: expected calibration error",
        ("rows", "error"),
        [
            ("mixture", f"{mixture['error']:.3f}"),
            ("measured rows alone, each source's share of toxic rows known", f"{known['error']:.3f}"),
            ("measured rows alone", f"{rows_only['error']:.3f}"),
        ],
    )
    return {"mixture": mixture, "rows_of_known_shares": known, "rows": rows_only}


def _bar(mean: float, share: float) -> str:
    """Twenty characters: the share of toxic rows as a bar, the mean probability as a mark that it should reach."""
    cells = list(("#" * round(20 * share)).ljust(20, "·"))
    cells[min(round(20 * mean), 19)] = "|"
    return "".join(cells)


def _with_share(probability: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Probabilities whose log-odds are moved by one number, so that their mean is `share`."""
    log_odds = logit(np.clip(probability, 1e-6, 1 - 1e-6))
    moved = brentq(lambda by: expit(log_odds + by).mean() - share, -30.0, 30.0)
    return np.asarray(expit(log_odds + moved))


def _reliability(
    found: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64]
) -> dict[str, Any]:
    at = np.minimum((found * _BINS).astype(np.int64), _BINS - 1)
    total = np.bincount(at, weights, _BINS) / weights.sum()
    safe = np.maximum(total * weights.sum(), 1e-12)
    mean = np.bincount(at, weights * found, _BINS) / safe
    share = np.bincount(at, weights * labels, _BINS) / safe
    bins = list(zip(total.tolist(), mean.tolist(), share.tolist(), strict=True))
    return {"error": float((total * np.abs(mean - share)).sum()), "bins": bins}


def _length(data: Path, language: str, model: ToxicityModel) -> dict[str, float]:
    """Share of clean texts above the threshold, by their length in characters."""
    whole = [text for text, _, _ in read_clean_documents(data, language, evaluation=True)]
    result = {}
    for characters in (300, 1000, 3000, 10_000):
        texts = [text[:characters].encode() for text in whole if len(text) >= characters][:4000]
        if texts:
            result[str(characters)] = float((_score_texts(model, texts) > model.threshold).mean())
    show(
        f"Toxicity, {language}: clean documents above the threshold, by length",
        ("characters", "share"),
        [(name, f"{share:.2%}") for name, share in result.items()],
    )
    return result


def _score_texts(model: ToxicityModel, texts: list[bytes]) -> NDArray[np.float32]:
    batch = TextBatch.from_bytes(texts)
    found = np.zeros(len(texts), dtype=np.float32)
    documents = np.flatnonzero(np.diff(batch.word_offsets) > 0)
    found[documents] = model.score(batch, documents).probability
    return found


def _cascade(data: Path, language: str, model: ToxicityModel, rounds: int) -> dict[str, Any]:
    """Time of the model on clean documents, with and without its second look."""
    texts = [text.encode() for text, _, _ in read_clean_documents(data, language, evaluation=True)]
    batches = []
    for at in range(0, len(texts), 400):
        batch = TextBatch.from_bytes(texts[at : at + 400])
        batches.append((batch, np.flatnonzero(np.diff(batch.word_offsets) > 0)))
    megabytes = sum(map(len, texts)) / 1e6
    seconds: dict[str, list[float]] = {"fast": [], "with": []}
    looked = 0
    for _ in range(rounds):
        for name, second in (("fast", False), ("with", True)):
            begin = time.perf_counter()
            found = [model.score(batch, documents, second_look=second) for batch, documents in batches]
            seconds[name].append(time.perf_counter() - begin)
            looked = sum(part.looked_at for part in found)
    median = {name: float(np.median(spent)) for name, spent in seconds.items()}
    ratio = float(np.median(np.divide(seconds["with"], seconds["fast"])))
    show(
        f"Toxicity, {language}: {megabytes:.1f} MB of clean text",
        ("fast model, ms/MB", "with the second look", "ratio", "windows looked at per MB"),
        [
            (
                f"{1000 * median['fast'] / megabytes:.1f}", f"{1000 * median['with'] / megabytes:.1f}",
                f"{ratio:.2f}", f"{looked / megabytes:.2f}",
            )
        ],
    )  # fmt: skip
    return {"fast_s": median["fast"], "with_s": median["with"], "ratio": ratio, "windows_per_mb": looked / megabytes}


def _before(data: Path, cache: Path, language: str, recipe: Recipe) -> Any:
    folder = cache / "before" / f"toxicity-{language}" / "1"
    if not (folder / "CARD.md").exists():
        train_toxicity(
            data,
            cache / "before",
            language,
            exclude_splits=("dev", "test") if language == "en" else ("dev",),
            seed=_SEED,
            recipe=recipe,
            card_figures=False,
            progress=lambda line: print(f"before, {language}: {line}", file=sys.stderr),
        )
    return load_model(folder)


if __name__ == "__main__":
    main()
