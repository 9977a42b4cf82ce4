"""`dqs corpus`: the corpora of the duplicate index, made, looked at, exported, pruned and dropped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dqs.commands.options import Config, DataDir, Redis, default, make_settings, prepare_folders
from dqs.errors import ConfigError, CorpusNotFound, RequestError

if TYPE_CHECKING:
    from dqs.commands.corpora import Keeper

app = typer.Typer(
    no_args_is_help=True,
    help="Make, list, measure, export, import, prune and drop corpora: what duplicates are looked for in.\n\n"
    "Through a service with --server; without it directly in the Redis of --redis, or in the private one under "
    "--data-dir.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the corpus.")]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT[,...]", help="Ask this service, which must own the index; see --redis if left out."
    ),
]
TokenFile = Annotated[Path | None, typer.Option(help="File with the token to send to the service.")]
TlsCa = Annotated[Path | None, typer.Option(help="Authorities that the service's certificate is checked against, PEM.")]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate to show to the service, PEM.")]
TlsKey = Annotated[Path | None, typer.Option(help="Private key of that certificate, PEM.")]
TenantName = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        metavar="NAME",
        help="Whose corpora, without --server; a service knows it by the token." + default("default"),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
WindowDocuments = Annotated[
    int | None, typer.Option(min=0, help="Remember only so many kept documents, the latest; 0 for all.")
]
WindowDays = Annotated[float | None, typer.Option(min=0, help="Remember kept documents for so many days; 0 for ever.")]
WindowSeconds = Annotated[float | None, typer.Option(min=0, help="The same in seconds.")]
RetrySeconds = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Remember for so many seconds what was answered about a document that was not kept, so that a retry has "
        "the same answer; 0 for not at all.",
    ),
]
RetryDocuments = Annotated[
    int | None, typer.Option(min=1, help="Remember at most so many of these answers, the latest.")
]
LineSlots = Annotated[
    int | None, typer.Option(min=0, help="Remember the hashes of so many lines, at 4 bytes each; 0 for none.")
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the corpora are; see the options of the same names."""

    server: str | None
    token_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tenant: str | None
    redis: str | None
    data_dir: Path | None
    config: Path | None


@contextmanager
def _opened(place: Place) -> Iterator[Keeper]:
    """The corpora that the options name."""
    if place.server is not None and (place.redis is not None or place.tenant is not None):
        raise ConfigError(
            "A service has an index of its own and knows the tenant by the token: leave out --server, or --redis and "
            "--tenant."
        )
    settings = make_settings(
        place.config,
        data_dir=place.data_dir,
        redis_url=place.redis,
        server_token_file=place.token_file,
        server_ca=place.tls_ca,
        server_cert=place.tls_cert,
        server_key=place.tls_key,
    )
    if place.server is None:
        prepare_folders(settings, quiet=True)
    from dqs.commands.corpora import open_keeper

    with open_keeper(settings, place.server, place.tenant) as keeper:
        yield keeper


def _options(
    window_documents: int | None,
    window_days: float | None,
    window_seconds: float | None,
    retry_seconds: float | None,
    retry_documents: int | None,
    line_slots: int | None,
) -> dict[str, Any]:
    """Options of a corpus that were given, by the names of `CorpusOptions`."""
    if window_days is not None and window_seconds is not None:
        raise ConfigError("A window is given in days or in seconds: leave out --window-days or --window-seconds.")
    window_s = window_seconds if window_days is None else window_days * 86_400
    given = {
        "window_documents": window_documents,
        "window_s": window_s,
        "retry_s": retry_seconds,
        "retry_documents": retry_documents,
        "line_slots": line_slots,
    }
    return {name: value for name, value in given.items() if value is not None}


def _ask(question: str, yes: bool) -> None:
    """Asks a person at a terminal.

    Raises:
        RequestError: the answer is no.
        ConfigError: nobody is there to ask.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{question} Nobody is at a terminal to ask: add --yes if so.")
    # Standard output is for what a program may read.
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RequestError("Nothing was changed.")


@app.command()
def create(
    name: Name,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Estimated Jaccard similarity of shingles of five tokens from which documents are near-duplicates; "
            "cannot be changed later." + default("0.75")
        ),
    ] = None,
    normaliser: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="nfkc-lower/1, nfkc-lower-simplified/1 (traditional Chinese meets simplified) or lower/1; cannot be "
            "changed later." + default("nfkc-lower/1"),
        ),
    ] = None,
    window_documents: WindowDocuments = None,
    window_days: WindowDays = None,
    window_seconds: WindowSeconds = None,
    retry_seconds: RetrySeconds = None,
    retry_documents: RetryDocuments = None,
    line_slots: LineSlots = None,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Make a corpus. One that is there with the same parameters and options is left as it is.

    Corpora are also made by the first document that is scored into them, with the defaults.
    """
    options = _options(window_documents, window_days, window_seconds, retry_seconds, retry_documents, line_slots)
    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        created = keeper.create(name, threshold, normaliser, options)
        there = keeper.describe(name, measure=False)
    parameters = there.parameters
    print(
        f"{name}: {'made' if created else 'is there already'}, threshold {parameters.threshold:g}, "
        f"{parameters.bands} bands of {parameters.rows} rows, {parameters.normaliser}"
    )


@app.command()
def configure(
    name: Name,
    window_documents: WindowDocuments = None,
    window_days: WindowDays = None,
    window_seconds: WindowSeconds = None,
    retry_seconds: RetrySeconds = None,
    retry_documents: RetryDocuments = None,
    line_slots: LineSlots = None,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Change how long a corpus remembers. What is not named stays as it is.

    A running service takes up within some ten seconds what is changed in its Redis.
    """
    options = _options(window_documents, window_days, window_seconds, retry_seconds, retry_documents, line_slots)
    if not options:
        raise ConfigError("What is to change? Give one of the options that `dqs corpus configure --help` lists.")
    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        changed = keeper.configure(name, options)
    from dqs.commands.corpora import option_rows

    for label, value in option_rows(changed):
        print(f"{label}\t{value}")


@app.command("list")
def list_corpora(
    as_json: Json = False,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """List corpora: name, kept documents, bytes of memory in Redis (its estimate), when made."""
    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        entries = keeper.list()
    from dqs.commands.corpora import print_entries

    print_entries(entries, as_json=as_json)


@app.command()
def show(
    name: Name,
    as_json: Json = False,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Show one corpus: parameters, options, counters, hit rate, and where its memory goes.

    Hit rate: of the documents that were decided about, the share that repeats a kept one. Those that came again
    (retried, reused ids) and those of an import do not count. Bytes are estimates from a sample.
    """
    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        there = keeper.describe(name, measure=True)
    from dqs.commands.corpora import print_description

    print_description(there, as_json=as_json)


@app.command()
def find(
    name: Name,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of documents.")],
    as_json: Json = False,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Say what a corpus holds under some ids: kept, answered as a duplicate of which document, or nothing."""
    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        found = keeper.find(name, ids)
    from dqs.commands.corpora import print_found

    print_found(found, as_json=as_json)


@app.command()
def delete(
    name: Name,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Ids of documents; - reads them from stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with one id per line, UTF-8.")] = None,
    yes: Yes = False,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Delete documents from a corpus, and have Redis write its files anew, so that nothing of them stays on disk.

    Ids that the corpus does not know are passed over. Stop sending a document for scoring before deleting it.
    Directly in Redis, a running service may still name a document in answers that it is at.
    """
    ids = ids or []
    if ids and file is not None:
        raise ConfigError("Give ids or a --file that has them, not both.")
    if not ids and file is None:
        raise ConfigError("Which documents? Give their ids, or a --file that has them, one per line, or -.")
    from_stdin = ids == ["-"] or file == Path("-")
    from dqs.commands.corpora import Counting, read_ids, say_rewriting

    source = read_ids(None if from_stdin else file) if from_stdin or file is not None else iter(ids)
    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        documents = keeper.describe(name, measure=False).documents
        if not from_stdin:
            named = f"{len(ids):,} document(s)" if file is None else f"the documents named in {file}"
            _ask(f"Delete {named} from corpus {name}, which has {documents:,}?", yes)
        with Counting("deleting") as counting:
            known = keeper.delete(name, counting.over(source))
        rewriting = keeper.rewrite(name)
    print(f"{name}: {known:,} of {counting.count:,} ids were known and are deleted")
    say_rewriting(rewriting)


@app.command()
def drop(
    name: Name,
    yes: Yes = False,
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Drop a corpus with all its documents, and have Redis write its files anew. This cannot be undone.

    Stop scoring into it first: a document that comes later begins the corpus anew.
    """
    from dqs.commands.corpora import say_rewriting

    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper:
        found = [entry for entry in keeper.list() if entry.corpus == name]
        if found:
            _ask(f"Drop corpus {name} with {found[0].documents:,} documents?", yes)
        # Frees what a drop that was cut short has left, too.
        rewriting = keeper.drop(name)
    if not found:
        raise CorpusNotFound(f"There is no corpus {name}; `dqs corpus list` shows what there is.")
    print(f"{name}: dropped with {found[0].documents:,} documents")
    say_rewriting(rewriting)


@app.command("export")
def export_corpus(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file to write; must not exist.")],
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Write what a corpus holds of its documents into a Parquet file: ids, times, hashes, sketches; no text.

    Documents that stay meanwhile are all in the file; those that come or go may or may not be.
    """
    from dqs.commands.corpora import Counting, write_export

    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with _opened(place) as keeper, Counting("exporting") as counting:
        write_export(keeper, name, file, counting)
    print(f"{name}: {counting.count:,} documents are in {file}")


@app.command("import")
def import_corpus(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet file of `dqs corpus export`.")],
    server: Server = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tenant: TenantName = None,
    data_dir: DataDir = None,
    redis: Redis = None,
    config: Config = None,
) -> None:
    """Make a corpus of an exported one, with its parameters and options. The documents count as kept now.

    If it is cut short, the same command goes on.
    """
    from dqs.commands.corpora import Counting, read_export

    place = Place(server, token_file, tls_ca, tls_cert, tls_key, tenant, redis, data_dir, config)
    with (
        read_export(file) as (header, pieces),
        _opened(place) as keeper,
        Counting("importing", header.documents) as bar,
    ):
        done = keeper.import_(name, header, bar.over_pieces(pieces))
    print(f"{name}: {done.imported:,} documents imported, {done.known:,} were there already")
    if done.conflicts:
        print(
            f"dqs: {done.conflicts:,} documents were left out, because the corpus has their id with another text.",
            file=sys.stderr,
        )
