"""`dqs models`: what models there are, whether their files are whole, how they do on given data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dqs.commands.options import Config, DataDir, Models, make_settings
from dqs.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from dqs.models import ModelFolder
    from dqs.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, verify and measure models.")


def _found(settings: Settings) -> list[ModelFolder]:
    from dqs.models import find_models, model_roots

    return find_models(model_roots(settings.models, settings.data_dir))


@app.command("list")
def list_models(models: Models = None, data_dir: DataDir = None, config: Config = None) -> None:
    """List models: name, version, kind, languages, size, folder."""
    for model in _found(make_settings(config, models=models, data_dir=data_dir)):
        size = sum((model.path / file.name).stat().st_size for file in model.files)
        print(f"{model.label}\t{model.kind}\t{','.join(model.languages)}\t{size / 1e6:.1f} MB\t{model.path}")


@app.command()
def verify(models: Models = None, data_dir: DataDir = None, config: Config = None) -> None:
    """Compare every model file with its digest."""
    for model in _found(make_settings(config, models=models, data_dir=data_dir)):
        model.verify()
        print(f"{model.label}: {len(model.files)} files are whole.")


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
