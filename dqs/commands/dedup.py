"""`dqs dedup`: files in, a verdict per row and a report of the clusters out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dqs.commands.options import Config, DataDir, default, make_settings, prepare_folders
from dqs.errors import ConfigError


def dedup(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help=".jsonl, .jsonl.gz, .jsonl.zst or .parquet files.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder for the verdicts, part by part, and report.json.")
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="first: a row is dropped if it is like an earlier row that was kept; the answers of the service's "
            "index to the same rows one after the other. components: rows connected through others are one "
            "cluster, of which the earliest is kept.",
        ),
    ] = "first",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Estimated Jaccard similarity of shingles of five tokens from which rows are near-duplicates."
            + default("0.75")
        ),
    ] = None,
    normaliser: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="nfkc-lower/1, nfkc-lower-simplified/1 (traditional Chinese meets simplified) or lower/1.",
        ),
    ] = "nfkc-lower/1",
    kept: Annotated[str | None, typer.Option(help="Write kept input rows here, unchanged: a folder of parts.")] = None,
    dropped: Annotated[
        str | None, typer.Option(help="Write dropped input rows here, unchanged: a folder of parts.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    id_field: Annotated[str | None, typer.Option(help="Field of the id." + default("id, else FILE:ROW"))] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder --output where it was stopped.")
    ] = False,
    part_rows: Annotated[int, typer.Option(min=1, help="Most rows of a part.")] = 100_000,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray tasks at a time; 0 runs all in this process." + default("all cores")),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Ray cluster that does the work; it must see inputs and outputs under the same paths. "
            "One on this machine if left out.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no report.")] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Remove near-duplicates from files of any size, on this machine or a Ray cluster.

    The order of the inputs, and of the rows in them, decides which rows are kept.

    With `first`, a dropped row is itself like the kept row that it names.

    With `components`, A~B and B~C make one cluster of A, B and C even where A and C
    are unlike: more is dropped, and the row named, the earliest of the cluster, may
    be unlike the dropped one. Where more than 24 rows share a key, each is compared
    with the one before it only.

    A row whose id came before with the same text gets that row's answer again, and
    is not written to --kept a second time; with another text it is an error.

    A JSONL file is read by one task, a Parquet file by several, cut at row groups.
    OUT/work takes about 300 bytes of disk per row, and as much again for rows that
    are like others, until the job ends. Memory does not grow with the rows.

    Exit status 0: every row has a verdict; 1: some rows have errors; 2: the job
    failed, which --resume continues; 130: interrupted.
    """
    if method not in ("first", "components"):
        raise ConfigError(f"--method {method} is unknown; give first or components.")
    settings = make_settings(config, data_dir=data_dir, ray_address=ray_address)
    prepare_folders(settings, quiet=quiet)
    from dqs.commands.deduplicating import Request, deduplicate
    from dqs.rows.readers import Fields

    request = Request(
        inputs=inputs,
        output=output,
        method=method,
        threshold=threshold,
        normaliser=normaliser,
        kept=kept,
        dropped=dropped,
        fields=Fields(text_field, id_field or "id", id_asked=id_field is not None),
        resume=resume,
        part_rows=part_rows,
        workers=workers,
        quiet=quiet,
    )
    try:
        errors = deduplicate(request, settings)
    except KeyboardInterrupt:
        print("dqs: interrupted; the same command with --resume continues.", file=sys.stderr)
        raise
    if errors:
        raise typer.Exit(1)
