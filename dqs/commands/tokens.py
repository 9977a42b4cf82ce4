"""`dqs tokens`: the tokens that tenants call a service with."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from dqs.commands.options import Config, make_settings
from dqs.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens of a service's tenants.")

File = Annotated[Path | None, typer.Option(help="File of tokens; the setting `tokens` if not given.")]


def _path(file: Path | None, config: Path | None) -> Path:
    path = make_settings(config, tokens=file).tokens
    if path is None:
        raise ConfigError("Which file of tokens? Give --file, or set `tokens` in dqs.toml.")
    return path.expanduser()


@app.command()
def new(
    tenant: Annotated[str, typer.Argument(help="Who gets the token; made if there is no such tenant.")],
    file: File = None,
    expires_days: Annotated[int | None, typer.Option(min=1, help="Days until it ends; never if not given.")] = None,
    config: Config = None,
) -> None:
    """Make a token, put its hash into the file, and print the token.

    It is printed once and kept nowhere. A tenant may have two valid ones, so that it can
    change over before the old one is revoked. A running service takes it within 3 seconds.
    """
    from dqs.server.tenants import new_token

    path = _path(file, config)
    ends = None
    if expires_days is not None:
        try:
            ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=expires_days)
        except OverflowError:
            raise ConfigError("There is no such day: give fewer --expires-days.") from None
    print(new_token(path, tenant, ends))
    print(f"dqs: this token of tenant {tenant} is shown once; its hash is in {path}.", file=sys.stderr)


@app.command("list")
def list_tokens(file: File = None, config: Config = None) -> None:
    """List tokens: tenant, id, when made, when it ends, whether it is valid."""
    from dqs.server.tenants import load_tokens

    for token in load_tokens(_path(file, config)).tokens:
        made = "-" if token.created is None else token.created.isoformat()
        ends = "never" if token.expires is None else token.expires.isoformat()
        print(f"{token.tenant.name}\t{token.id}\t{made}\t{ends}\t{'valid' if token.is_valid() else 'expired'}")


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, as `dqs tokens list` shows it.")],
    file: File = None,
    config: Config = None,
) -> None:
    """Take a token out of the file. A running service refuses it, and ends its calls, within 3 seconds."""
    from dqs.server.tenants import revoke_token

    token = revoke_token(_path(file, config), token_id)
    print(f"{token.tenant.name}: token {token.id} is revoked.")
