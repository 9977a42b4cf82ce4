"""Options that several commands share, and the settings that they make."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dqs.settings import Settings


def default(text: str) -> str:
    """What the help says of a default that the settings know.

    Typer's own `show_default` would put it into parentheses too.

    Args:
        text: the default.
    """
    # The bracket is escaped, or it would be taken for markup.
    return rf" [dim]\[default: {text}][/dim]"


DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder for compiled kernels, the private Redis and imported models." + default("~/.local/share/dqs")
    ),
]
Models = Annotated[Path | None, typer.Option(help="Folder of models that is searched before all others.")]
Policies = Annotated[Path | None, typer.Option(help="Folder of policies that is searched before the shipped ones.")]
Redis = Annotated[str | None, typer.Option(metavar="URL", help="Redis or Valkey that keeps the duplicate index.")]
Config = Annotated[Path | None, typer.Option(help="Settings file; dqs.toml in this folder if there is one.")]


def make_settings(config: Path | None = None, **arguments: Any) -> Settings:
    """Settings from arguments, environment and file, ready for what compiles kernels to be imported.

    Args:
        config: settings file.
        **arguments: values that win; None means not given.

    Raises:
        ConfigError: a file cannot be read, or a name or value is not allowed.
    """
    from dqs.settings import load_settings, quiet_grpc, use_kernel_cache

    quiet_grpc()
    settings = load_settings(config, **arguments)
    use_kernel_cache(settings.data_dir)
    return settings


def prepare_folders(settings: Settings, *, quiet: bool = False) -> None:
    """Makes the folders that scoring writes to, and says if the first run compiles, lest it be taken for a hanging one.

    Args:
        settings: where the folders are.
        quiet: says nothing.

    Raises:
        ConfigError: a folder cannot be written.
    """
    from dqs.settings import check_folders, kernels_are_compiled

    check_folders(settings)
    if not quiet and not kernels_are_compiled():
        print("dqs: compiling kernels for this machine, once; this takes up to a minute.", file=sys.stderr)
