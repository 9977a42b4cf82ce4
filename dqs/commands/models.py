"""`dqs models`: what models there are, whether their files are whole, how they do on given data; import of others."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dqs.commands.options import Config, DataDir, Models, make_settings, prepare_folders
from dqs.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from dqs.inference.importing import Imported
    from dqs.models import ModelFolder
    from dqs.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, verify, measure, import and promote models.")


def _found(settings: Settings) -> list[ModelFolder]:
    from dqs.models import find_models, model_roots

    return find_models(model_roots(settings.models, settings.data_dir))


@app.command("list")
def list_models(
    every: Annotated[bool, typer.Option("--all", help="Versions too that do not serve.")] = False,
    models: Models = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """List models that serve: name, version, kind, languages, size, whether they were promoted, folder."""
    settings = make_settings(config, models=models, data_dir=data_dir)
    from dqs.models import find_models, find_versions, model_roots
    from dqs.promoted import promoted_versions

    roots = model_roots(settings.models, settings.data_dir)
    promoted, serving = promoted_versions(roots), find_models(roots)
    shown = find_versions(roots) if every else serving
    for model in shown:
        paths = [model.path / file.name for file in model.files]
        absent = [path.name for path in paths if not path.is_file()]
        size = sum(path.stat().st_size for path in paths if path.name not in absent)
        state = "serves" if model.path in {one.path for one in serving} else "-"
        if state == "serves" and model.name in promoted:
            state = "serves, promoted"
        if absent:
            state += f", lacks {', '.join(absent)}"
        languages = ",".join(model.languages)
        print(f"{model.label}\t{model.kind}\t{languages}\t{size / 1e6:.1f} MB\t{state}\t{model.path}")


@app.command("promote")
def promote_model(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    version: Annotated[str | None, typer.Argument(help="Version that is to serve; none with --latest.")] = None,
    latest: Annotated[
        bool, typer.Option("--latest", help="Have the highest version serve again, whichever that is.")
    ] = False,
    new_signals: Annotated[
        bool,
        typer.Option(
            "--new-signals", help="Even if the signals change; services that run take it when they start again."
        ),
    ] = False,
    models: Models = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Have a version of a model serve, here and in services that run on the same models folders.

    It is verified, loaded beside all others and tried on a batch first; where it fails, nothing changes.
    """
    if (version is None) != latest:
        raise ConfigError("Say which version is to serve, or --latest.")
    settings = make_settings(config, models=models, data_dir=data_dir)
    from dqs.models import model_roots
    from dqs.promoted import first_writable, promote

    before, after = _versions_around(settings, name, version)
    if new := version or after.get(name):
        prepare_folders(settings)
        _try(settings, before, after, new_signals=new_signals)
    candidates = model_roots(settings.models, settings.data_dir, missing=True)
    root = first_writable(candidates)
    promote(root, candidates[: candidates.index(root)], name, version)
    print(f"{name}: {before.get(name, 'none')} -> {new or 'none'}, written to {root}.")


def _versions_around(settings: Settings, name: str, version: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """Model name -> version of all that serve before and after a promotion.

    Raises:
        ModelError: there is no such model.
    """
    from dqs.models import find_models, model_roots
    from dqs.promoted import promoted_versions

    roots = model_roots(settings.models, settings.data_dir)
    promoted = promoted_versions(roots)
    promoted.pop(name, None)
    after = {model.name: model.version for model in find_models(roots, promoted=promoted)}
    try:
        before = {model.name: model.version for model in find_models(roots)}
    except ModelError:
        before = {}  # what was promoted before is gone, which this promotion may put right
    if name not in after and version is None:
        raise ModelError(f"There is no model {name!r}; there are: {', '.join(sorted(after)) or 'none'}.")
    return before, after if version is None else {**after, name: version}


def _try(settings: Settings, before: dict[str, str], after: dict[str, str], *, new_signals: bool) -> None:
    """Loads models as a service would, and has a batch pass through them.

    Raises:
        ModelError: they do not serve, or answer other signals than those before.
    """
    import functools

    from dqs.executors.inline import start_loading
    from dqs.executors.loading import check_signals, load_scorers, slow_models

    load, timeout_s = (
        functools.partial(load_scorers, settings.models, settings.data_dir),
        settings.worker_start_timeout_s,
    )
    try:
        new = start_loading(load, after).result(timeout_s)
    except TimeoutError:
        raise slow_models(timeout_s) from None
    if before and not new_signals:
        try:
            old = start_loading(load, before).result(timeout_s)
        except (ModelError, TimeoutError):
            return  # nothing serves with these, so nothing depends on them
        remedy = "promote them with --new-signals, and start services that run again to have them serve"
        check_signals(old.signals, new.signals, remedy)


@app.command()
def verify(
    every: Annotated[bool, typer.Option("--all", help="Versions too that do not serve.")] = False,
    models: Models = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Compare the files of models that serve with their digests."""
    settings = make_settings(config, models=models, data_dir=data_dir)
    from dqs.models import find_versions, model_roots

    found = find_versions(model_roots(settings.models, settings.data_dir)) if every else _found(settings)
    damaged = []
    for model in found:
        try:
            model.verify()
        except ModelError as error:
            damaged.append(error)
        else:
            print(f"{model.label}: {len(model.files)} files are whole.", flush=True)
    if damaged:
        raise ModelError("; ".join(map(str, damaged)))


class Task(StrEnum):
    """What the main label of a classifier is about."""

    TOXICITY = "toxicity"
    QUALITY = "quality"
    CUSTOM = "custom"


class Aggregation(StrEnum):
    """What windows of a document make of it."""

    MAX = "max"
    MEAN = "mean"


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="Folder of an export: model.onnx (or onnx/model.onnx), tokenizer.json, config.json.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model; that of the folder if not given.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; the next number if not given.")] = None,
    task: Annotated[Task, typer.Option(help="What its main label is about.")] = Task.CUSTOM,
    label: Annotated[str | None, typer.Option(help="Its main label, where that cannot be read.")] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language that it serves, as en or zh; may be repeated.")
    ] = None,
    graph: Annotated[str | None, typer.Option(help="File of the graph, such as model_quantized.onnx.")] = None,
    window_tokens: Annotated[int | None, typer.Option(min=16, help="Tokens of a window over long documents.")] = None,
    aggregation: Annotated[
        Aggregation | None, typer.Option(help="Of windows; max for toxicity, else mean if not given.")
    ] = None,
    models: Models = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Import a classifier of texts from a Hugging Face style export.

    Labels, lengths and shapes are read from the export and tried out. The model is written
    to the first models folder that can be written, and serves from the next start on.
    """
    settings = make_settings(config, models=models, data_dir=data_dir)
    from dqs.inference.importing import Request, import_model
    from dqs.models import find_models, model_roots, writable_root

    root = writable_root(settings.models, settings.data_dir)
    others = find_models(model_roots(settings.models, settings.data_dir))
    request = Request(
        name=name, version=version, task=task.value, label=label, languages=tuple(language or ()), graph=graph,
        window_tokens=window_tokens, aggregation=None if aggregation is None else aggregation.value,
    )  # fmt: skip
    print("dqs: reading the export and running a trial batch.", file=sys.stderr)
    imported = import_model(source, root, request, functools.partial(_check_signals, others))
    _show(imported)
    serving = {model.name: model for model in find_models(model_roots(settings.models, settings.data_dir))}
    chosen = serving[imported.folder.name]
    if chosen.path.resolve() != imported.folder.path.resolve():
        print(f"dqs: {chosen.label} in {chosen.path} comes first and is what serves.", file=sys.stderr)


def _check_signals(others: Sequence[ModelFolder], model: ModelFolder) -> None:
    """Refuses a model that would keep the service from starting, or take the place of one of another kind."""
    from dqs.pipeline import DUPLICATE_SIGNALS
    from dqs.scorers import find_scorers
    from dqs.scorers.classifier import model_signals
    from dqs.scorers.toxicity import ATTRIBUTES

    owners = {signal.name: "the signals that are computed already" for signal in DUPLICATE_SIGNALS}
    owners |= dict.fromkeys(("toxicity", *(f"toxicity_{name}" for name in ATTRIBUTES)), "the scorer toxicity")
    for name, scorer in find_scorers().items():
        owners |= {signal.name: f"the scorer {name}" for signal in getattr(scorer, "signals", ())}
    for other in others:
        if other.name == model.name and other.kind != model.kind:
            raise ModelError(
                f"{other.label} is a model of kind {other.kind}, whose place the import would take: give another "
                "--name."
            )
        if other.kind == "classifier" and other.name != model.name:
            owners |= {signal.name: f"the model {other.label}" for signal in model_signals(other)}
    for signal in model_signals(model):
        if signal.name in owners:
            raise ModelError(
                f"The signal {signal.name} of the model {model.label} is one of {owners[signal.name]}: give another "
                "--name."
            )


def _show(imported: Imported) -> None:
    from rich.console import Console
    from rich.table import Table

    from dqs.scorers.classifier import model_signals

    table = Table(show_header=False)
    for found in imported.found:
        table.add_row(*found)
    for number, signal in enumerate(model_signals(imported.folder)):
        table.add_row("signals" if number == 0 else "", f"{signal.name} ({signal.unit}, {signal.direction.value})")
    console = Console(highlight=False, soft_wrap=False)
    console.print(table)
    print(f"{imported.folder.label} is in {imported.folder.path}; write down in its CARD.md what you know of it.")


@app.command("eval")
def evaluate(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Parquet file. Perplexity: text, lang, perhaps source or kind, pair_id and label (1 clean, "
            "0 corrupted). Toxicity: text, label (1 toxic), lang, source, split, ship."
        ),
    ],
    models: Models = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Measure a model on given data and print a table, tab-separated.

    Figures on data that the model was trained on say little: train it again with
    --exclude-source and measure it on what was left out.
    """
    found = {model.name: model for model in _found(make_settings(config, models=models, data_dir=data_dir))}
    if name not in found:
        raise ModelError(f"There is no model {name!r}; there are: {', '.join(sorted(found)) or 'none'}.")
    model = found[name]
    model.verify()
    rows = _figures(model, data)
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(_cell(value) for value in row.values()))


def _figures(model: ModelFolder, data: Path) -> list[dict[str, Any]]:
    if model.kind == "perplexity":
        from dqs.training.perplexity_evaluation import evaluate_perplexity

        return [asdict(figures) for figures in evaluate_perplexity(model, data)]
    if model.kind == "toxicity":
        try:
            from dqs.training.toxicity import evaluate_toxicity
            from dqs.training.toxicity_data import read_rows
        except ImportError as error:
            raise ConfigError(f"Measuring needs {error.name}; run: pip install 'dqs[train]'.") from None
        return [
            {"language": language, **asdict(figures)}
            for language in model.languages
            for figures in evaluate_toxicity(model, read_rows(data, language))
        ]
    raise ModelError(f"Nothing measures models of the kind {model.kind!r}.")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return str(value)
