"""`dqs train`: makes the default models again, or models of one's own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dqs.commands.options import Config, DataDir, default, make_settings
from dqs.errors import ConfigError

if TYPE_CHECKING:
    from dqs.models import ModelFolder

app = typer.Typer(no_args_is_help=True, help="Train models from given data, with a fixed seed.")

Data = Annotated[Path, typer.Option(help="Parquet file, or the folder that holds it.")]
Language = Annotated[str, typer.Option(metavar="CODE", help="Language of the model: en, zh, …")]
Output = Annotated[
    Path | None, typer.Option(help="Folder of models to write to." + default("models in the data folder"))
]
ExcludeSource = Annotated[
    list[str] | None, typer.Option(metavar="SOURCE", help="Leave out rows of this source; may be given several times.")
]
DEFAULT_SEED = 20_261_121
"""The seed of the models that ship."""

Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Name = Annotated[str | None, typer.Option(help="Name of the model." + default("KIND-LANGUAGE"))]
Version = Annotated[str, typer.Option(help="Version of the model.")]


@app.command()
def perplexity(
    data: Data,
    language: Language,
    output: Output = None,
    exclude_source: ExcludeSource = None,
    seed: Seed = DEFAULT_SEED,
    name: Name = None,
    version: Version = "1",
    lmplz: Annotated[Path | None, typer.Option(help="KenLM's lmplz, with build_binary beside it.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="JSON of tests.bench.perplexity, to stand in the model's card.")
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Train a perplexity model from clean text: columns text, lang, source, domain, license, ship."""
    settings = make_settings(config, data_dir=data_dir)
    from dqs.training.perplexity import train_perplexity

    report = train_perplexity(
        data,
        output or settings.data_dir / "models",
        language,
        exclude_sources=exclude_source or (),
        seed=seed,
        lmplz=lmplz,
        figures=figures,
        name=name,
        version=version,
        progress=_say,
    )
    _done(report.model)


@app.command()
def toxicity(
    data: Data,
    language: Language,
    output: Output = None,
    clean: Annotated[
        Path | None, typer.Option(help="Parquet file of clean text; its paragraphs are not toxic.")
    ] = None,
    exclude_source: ExcludeSource = None,
    exclude_split: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT", help="Leave out rows of this split; may be given several times."),
    ] = None,
    seed: Seed = DEFAULT_SEED,
    second: Annotated[
        Path | None,
        typer.Option(help="Folder of `dqs train transformer`: it looks again at what the n-grams leave in doubt."),
    ] = None,
    name: Name = None,
    version: Version = "1",
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Train a toxicity model from labelled text: columns text, label, lang, source, split, ship."""
    settings = make_settings(config, data_dir=data_dir)
    with _extra("train"):
        from dqs.training.toxicity import train_toxicity

    output = output or settings.data_dir / "models"
    report = train_toxicity(
        data,
        output,
        language,
        clean=clean,
        exclude_sources=exclude_source or (),
        seed=seed,
        exclude_splits=exclude_split or (),
        name=name,
        version=version,
        progress=_say,
    )
    model = report.model
    if second is not None:
        from dqs.training.toxicity_second import add_second_look

        model = add_second_look(model, second, data, output, version=version, seed=seed, progress=_say)
    _done(model)


@app.command()
def transformer(
    base: Annotated[Path, typer.Option(help="Folder of a Hugging Face encoder, with its tokenizer.json.")],
    data: Data,
    language: Language,
    output: Annotated[Path, typer.Option(help="Folder for the exported network.")],
    start: Annotated[
        Path | None, typer.Option("--from", help="Go on from this: network.pt, or the graph (.onnx) of a model.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the rows; one by default.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-7, help="Highest learning rate; 6e-5 by default.")] = None,
    seed: Seed = 3,
) -> None:
    """Fine-tune an encoder for the second look of a toxicity model; needs torch, takes a GPU where there is one."""
    _fine_tune()(base, data, output, language, start=start, epochs=epochs, rate=rate, seed=seed, progress=_say)
    print(f"The exported network is in {output}; give it to `dqs train toxicity --second`.")


@app.command()
def characters(
    data: Data,
    language: Language,
    output: Annotated[Path, typer.Option(help="Folder for the exported network.")],
    seed: Seed = 3,
) -> None:
    """Train a network over characters, for the second look of a toxicity model where no encoder is; needs torch."""
    _fine_tune()(None, data, output, language, seed=seed, progress=_say)
    print(f"The exported network is in {output}; give it to `dqs train toxicity --second`.")


@app.command("second-look")
def second_look(
    model: Annotated[Path, typer.Argument(help="Folder of a toxicity model, such as models/toxicity-en/2.")],
    network: Annotated[Path, typer.Argument(help="Folder of `dqs train transformer` or `dqs train characters`.")],
    data: Annotated[Path, typer.Option(help="Folder of the parquet files, with rows of the split dev.")],
    version: Annotated[str, typer.Option(help="Version of the new model.")],
    output: Output = None,
    seed: Seed = DEFAULT_SEED,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Give a toxicity model another network for its second look; its n-grams stay."""
    settings = make_settings(config, data_dir=data_dir)
    from dqs.models import load_model

    with _extra("train"):
        from dqs.training.toxicity_second import add_second_look
    output = output or settings.data_dir / "models"
    folder = load_model(model)
    if (output / folder.name / version).exists():
        raise ConfigError(f"{folder.name}@{version} is in {output} already: give another --version.")
    _done(add_second_look(folder, network, data, output, version=version, seed=seed, progress=_say))


@app.command()
def quality(
    data: Annotated[Path, typer.Option(help="Folder of the parquet files.")],
    output: Output = None,
    folds: Annotated[
        Path | None,
        typer.Option(
            help="Where perplexity models without some sources are kept." + default("folds in the data folder")
        ),
    ] = None,
    seed: Seed = DEFAULT_SEED,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "quality",
    version: Version = "1",
    lmplz: Annotated[Path | None, typer.Option(help="KenLM's lmplz, with build_binary beside it.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Train the quality model of English and Chinese from clean, corrupted, noisy and web text."""
    settings = make_settings(config, data_dir=data_dir)
    with _extra("train"):
        from dqs.training.quality import train_quality

    report = train_quality(
        data,
        output or settings.data_dir / "models",
        folds or settings.data_dir / "folds",
        seed=seed,
        name=name,
        version=version,
        lmplz=lmplz,
        progress=_say,
    )
    _done(report.model)


def _fine_tune() -> Callable[..., Path]:
    with _extra("finetune"):
        from dqs.training.transformer import fine_tune
    return fine_tune


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Has an import that fails say which extra of the package brings it."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"Training needs {error.name}; run: pip install 'dqs[{name}]'.") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _done(model: ModelFolder) -> None:
    print(f"{model.label} is in {model.path}")
