"""`dqs serve`: the gRPC service."""

from __future__ import annotations

from typing import Annotated

import typer

from dqs.commands.options import Config, DataDir, Models, Policies, Redis, announce_compiling, make_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 picks a free one.  [default: 50051]")] = None,
    data_dir: DataDir = None,
    models: Models = None,
    policies: Policies = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Serve scores over gRPC until stopped."""
    settings = make_settings(
        config, host=host, port=port, data_dir=data_dir, models=models, policies=policies, redis_url=redis
    )
    from dqs import app

    announce_compiling()
    app.serve(settings)
