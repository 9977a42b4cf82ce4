"""`dqs serve`: the gRPC service."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dqs.commands.options import Config, DataDir, Models, Policies, Redis, default, make_settings, prepare_folders

_WORKERS = "Workers"
_SECURITY = "Security"
_OPERATION = "Operation"


class LogFormat(StrEnum):
    """Forms of log lines."""

    TEXT = "text"
    JSON = "json"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind." + default("127.0.0.1"))] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 picks a free one." + default("50051"))] = None,
    data_dir: DataDir = None,
    models: Models = None,
    policies: Policies = None,
    redis: Redis = None,
    config: Config = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Ray actors that score; 0 scores in this process." + default("0"), rich_help_panel=_WORKERS),
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option(help="Ray actors that may score when text waits.", rich_help_panel=_WORKERS)
    ] = None,
    gpu_workers: Annotated[
        int | None, typer.Option(help="Ray actors on GPUs that score besides." + default("0"), rich_help_panel=_WORKERS)
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="A running Ray cluster; without it Ray starts here.", rich_help_panel=_WORKERS
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain to show, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Authorities that clients' certificates must come from, PEM.", rich_help_panel=_SECURITY),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="File of tenants and the hashes of their tokens; see `dqs tokens`.", rich_help_panel=_SECURITY
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure", help="Serve a public address without TLS and tokens all the same.", rich_help_panel=_SECURITY
        ),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(help="Port for health checks alone, without TLS and tokens.", rich_help_panel=_OPERATION),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for Prometheus metrics over HTTP.", rich_help_panel=_OPERATION)
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="Form of log lines." + default("text"), rich_help_panel=_OPERATION)
    ] = None,
) -> None:
    """Serve scores over gRPC until stopped.

    An address that other machines reach needs TLS, and tokens or client certificates.
    A stop signal lets open calls finish; a second one cuts them off. The exit status is
    3 where what scores was lost for good.
    """
    settings = make_settings(
        config,
        host=host,
        port=port,
        data_dir=data_dir,
        models=models,
        policies=policies,
        redis_url=redis,
        workers=workers,
        max_workers=max_workers,
        gpu_workers=gpu_workers,
        ray_address=ray_address,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens=tokens,
        insecure=insecure or None,
        health_port=health_port,
        metrics_port=metrics_port,
        log_format=None if log_format is None else log_format.value,
    )
    prepare_folders(settings, quiet=settings.log_format == "json")  # every line of standard error is JSON then
    from dqs import app

    app.serve(settings)
