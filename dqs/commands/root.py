"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

import dqs
from dqs.commands import corpus, dedup, models, policy, score, serve, settings, tokens, top, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Score text for language-model training: perplexity, toxicity, duplication, keep or drop.",
)
app.command()(serve.serve)
app.command()(score.score)
app.command()(dedup.dedup)
app.command()(top.top)
app.add_typer(corpus.app, name="corpus")
app.add_typer(tokens.app, name="tokens")
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(policy.app, name="policy")
app.command()(settings.settings)
app.command()(settings.warm)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dqs {dqs.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What stands before a command."""
