"""`dqs policy`: what policies there are, what they say, whether a file is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dqs.commands.options import Config, DataDir, Models, Policies, make_settings

if TYPE_CHECKING:
    from dqs.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, show and check policies.")


@app.command("list")
def list_policies(policies: Policies = None, config: Config = None) -> None:
    """List policies: name, version, rules, where it comes from, description."""
    settings = make_settings(config, policies=policies)
    from dqs.policy import find_policies
    from dqs.policy.files import read_policy

    for file in find_policies(settings.policies).values():
        policy = read_policy(file.path)
        origin = "shipped" if file.shipped else str(file.path)
        rules = len({rule.id for rule in policy.rules})
        print(f"{policy.label}\t{rules} rules\t{origin}\t{policy.description}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a policy.")], policies: Policies = None, config: Config = None
) -> None:
    """Print a policy's file: a starting point for one of your own."""
    settings = make_settings(config, policies=policies)
    from dqs.policy import find_policies, load_policy

    load_policy(name, settings.policies)
    print(find_policies(settings.policies)[name].path.read_text(encoding="utf-8"), end="")


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policy files.")],
    data_dir: DataDir = None,
    models: Models = None,
    config: Config = None,
) -> None:
    """Check policy files against the signals that are computed here."""
    settings = make_settings(config, data_dir=data_dir, models=models)
    from dqs.policy.files import read_policy

    signals = _signals(settings)
    for file in files:
        policy = read_policy(file, signals)
        print(f"{file}: {policy.label} is well-formed, with {len({rule.id for rule in policy.rules})} rules.")


def _signals(settings: Settings) -> set[str]:
    from dqs.executors.loading import choose_classifiers
    from dqs.models import find_models, model_roots
    from dqs.pipeline import DUPLICATE_SIGNALS
    from dqs.scorers import build_scorers

    models = find_models(model_roots(settings.models, settings.data_dir))
    scorers = build_scorers(choose_classifiers(models, settings.classifiers))
    return {signal.name for scorer in scorers for signal in (*scorer.signals, *DUPLICATE_SIGNALS)}
