"""`dqs score`: files in, scores and verdicts out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dqs.commands.options import Config, DataDir, Models, Policies, Redis, default, make_settings, prepare_folders
from dqs.errors import ConfigError

_NOBODY_READS = 128 + 13
"""What a shell reports of a program that SIGPIPE has ended."""


def score(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help=".jsonl, .jsonl.gz, .jsonl.zst, .parquet, or - for JSONL on stdin."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help=".parquet, .jsonl, .jsonl.zst, - for JSONL on stdout, or a folder for parts."
        ),
    ],
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT[,...]",
            help="Score through this service, and through the next of several where one fails; "
            "in this process if left out.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token to send to the service; read before each call.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Authorities that the service's certificate is checked against, PEM.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate to show to the service, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of that certificate, PEM.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Score in this many Ray actors; with 0 in this process." + default("0"))
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ray cluster of the actors; one on this machine if left out."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    id_field: Annotated[str | None, typer.Option(help="Field of the id." + default("id, else FILE:ROW"))] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="Language of every text, such as en or zh; detected if left out.")
    ] = "",
    language_field: Annotated[str | None, typer.Option(help="Field of each text's language.")] = None,
    policy: Annotated[str, typer.Option(help="Policy that decides; see `dqs policy list`.")] = "default",
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Corpus to look for duplicates in and to add to, kept for later runs; "
            "if left out, one for this run alone, dropped at its end."
        ),
    ] = None,
    classifiers: Annotated[
        str | None,
        typer.Option(metavar="NAME[,...]", help="Classifiers to run, or none." + default("all")),
    ] = None,
    no_dedup: Annotated[bool, typer.Option("--no-dedup", help="Look for no duplicates.")] = False,
    kept: Annotated[str | None, typer.Option(help="Write kept input rows here, unchanged.")] = None,
    dropped: Annotated[str | None, typer.Option(help="Write dropped input rows here, unchanged.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder --output behind its last complete part.")
    ] = False,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part in a folder.")] = 20_000,
    data_dir: DataDir = None,
    models: Models = None,
    policies: Policies = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Score files of rows: one row out for every row in, in their order.

    Exit status 0: every row was scored; 1: some rows have errors; 2: nothing was written;
    130: interrupted; 141: nobody reads standard output any more.
    """
    if server is not None and (workers or ray_address is not None):
        raise ConfigError(
            "The service scores with workers of its own: leave out --server, or --workers and --ray-address."
        )
    if server is not None and (models is not None or policies is not None or redis is not None):
        raise ConfigError(
            "The service scores with models, policies and an index of its own: leave out --server, or --models, "
            "--policies and --redis."
        )
    settings = make_settings(
        config,
        data_dir=data_dir,
        models=models,
        policies=policies,
        redis_url=redis,
        workers=workers,
        ray_address=ray_address,
        server_token_file=token_file,
        server_ca=tls_ca,
        server_cert=tls_cert,
        server_key=tls_key,
    )
    if server is None:
        prepare_folders(settings)
    from dqs.commands.scoring import Request, score_files
    from dqs.rows.readers import Fields

    request = Request(
        inputs=inputs,
        output=output,
        server=server,
        fields=Fields(text_field, id_field or "id", language_field, id_asked=id_field is not None),
        language=language,
        policy=policy,
        corpus=corpus,
        dedup=not no_dedup,
        kept=kept,
        dropped=dropped,
        resume=resume,
        part_rows=part_rows,
        classifiers=_chosen(classifiers),
    )
    try:
        summary = score_files(request, settings)
    except KeyboardInterrupt:
        print("dqs: interrupted; what was not complete has been removed.", file=sys.stderr)
        raise
    except BrokenPipeError:
        # Python flushes standard output at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_NOBODY_READS) from None
    if summary.errors:
        raise typer.Exit(1)


def _chosen(classifiers: str | None) -> frozenset[str] | None:
    """The names in an option that parts them by commas; None where it is left out."""
    if classifiers is None:
        return None
    return frozenset(name for part in classifiers.split(",") if (name := part.strip()) not in ("", "none"))
