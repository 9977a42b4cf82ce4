"""`dqs score`: files in, scores and verdicts out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dqs.commands.options import Config, DataDir, Models, Policies, Redis, announce_compiling, make_settings


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
        typer.Option(metavar="HOST:PORT", help="Score through this service; in this process if left out."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    id_field: Annotated[
        str | None, typer.Option(help="Field of the id.  [default: id, else FILE:ROW]", show_default=False)
    ] = None,
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
    130: interrupted.
    """
    settings = make_settings(config, data_dir=data_dir, models=models, policies=policies, redis_url=redis)
    from dqs.commands.scoring import Request, score_files
    from dqs.rows.readers import Fields

    if server is None:
        announce_compiling()
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
    )
    try:
        summary = score_files(request, settings)
    except KeyboardInterrupt:
        print("dqs: interrupted; what was not complete has been removed.", file=sys.stderr)
        raise
    if summary.errors:
        raise typer.Exit(1)
