"""`dqs models`: what models there are and whether their files are whole."""

from __future__ import annotations

import typer

from dqs.commands.options import Config, DataDir, Models, make_settings

app = typer.Typer(no_args_is_help=True, help="List, verify and measure models.")


@app.command("list")
def list_models(models: Models = None, data_dir: DataDir = None, config: Config = None) -> None:
    """List models: name, version, kind, languages, size, folder."""
    settings = make_settings(config, models=models, data_dir=data_dir)
    from dqs.models import find_models, model_roots

    for model in find_models(model_roots(settings.models, settings.data_dir)):
        size = sum((model.path / file.name).stat().st_size for file in model.files)
        print(f"{model.label}\t{model.kind}\t{','.join(model.languages)}\t{size / 1e6:.1f} MB\t{model.path}")


@app.command()
def verify(models: Models = None, data_dir: DataDir = None, config: Config = None) -> None:
    """Compare every model file with its digest."""
    settings = make_settings(config, models=models, data_dir=data_dir)
    from dqs.models import find_models, model_roots

    for model in find_models(model_roots(settings.models, settings.data_dir)):
        model.verify()
        print(f"{model.label}: {len(model.files)} files are whole.")
