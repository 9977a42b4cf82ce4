"""A run of `dqs score`: read, score, write, with reading ahead in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

import dqs
from dqs.app import build_pipeline
from dqs.client import Client, Tls
from dqs.commands.display import Display
from dqs.commands.engines import Engine, LocalEngine, RemoteEngine, was_indexed
from dqs.errors import ConfigError, DqsError, Unauthenticated
from dqs.rows.manifest import Manifest, identify
from dqs.rows.outputs import FileOutputs, Folder, Outputs, PartOutputs, Targets, plan_targets, read_parts
from dqs.rows.readers import Cut, Fields, Rows, Source, check_language, check_sources, open_sources, read_rows
from dqs.rows.summary import Summary
from dqs.rows.table import score_schema, score_table
from dqs.settings import MIB, Settings

READ_AHEAD_BATCHES = 2
_LOOK_S = 0.2
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Request:
    """What `dqs score` was asked for; see its options."""

    inputs: Sequence[str]
    output: str
    server: str | None
    fields: Fields
    language: str
    policy: str
    corpus: str | None
    dedup: bool
    kept: str | None
    dropped: str | None
    resume: bool
    part_rows: int
    classifiers: frozenset[str] | None = None


def score_files(request: Request, settings: Settings) -> Summary:
    """Scores all inputs.

    Returns:
        Counts over all rows, those of a resumed run's earlier parts included.

    Raises:
        DqsError: nothing, or nothing more, could be written.
        KeyboardInterrupt: the run was interrupted; what was not complete is removed.
    """
    language = check_language(request.language) if request.language else ""
    if request.resume and "-" in request.inputs:
        raise ConfigError("Standard input cannot be read a second time, so --resume needs files.")
    sources = open_sources(request.inputs)
    targets = plan_targets(request.output, request.kept, request.dropped, sources)
    if request.resume and not targets.folder:
        raise ConfigError(f"--resume continues a folder of parts; {request.output} is a single file.")
    check_sources(sources, request.fields)
    with contextlib.ExitStack() as stack:
        manifest = None
        if targets.folder:
            folder = Path(targets.scores)
            stack.callback(Folder(folder).close)
            manifest = Manifest.load(folder)
            if manifest is not None and not request.resume:
                raise ConfigError(
                    f"The folder {folder} holds another run; add --resume to continue it or choose another."
                )
        corpus, private = _choose_corpus(request, manifest)
        engine = _open_engine(stack, request, settings, corpus, private, language)
        if targets.folder:
            run = {
                "dqs": dqs.__version__,
                "inputs": identify(sources) if all(source.regular for source in sources) else None,
                "part_rows": request.part_rows,
                "batch": [settings.batch_bytes, settings.batch_documents],
                "fields": [request.fields.text, request.fields.id, request.fields.language],
                "language": language,
                "corpus": request.corpus if request.dedup else None,
                "dedup": request.dedup,
                **({} if request.classifiers is None else {"classifiers": sorted(request.classifiers)}),
                "server": request.server is not None,
                "kept": targets.kept is not None,
                "dropped": targets.dropped is not None,
                **engine.identity,
            }
            if manifest is None:
                manifest = Manifest(run, corpus)
            else:
                manifest.check_same(run, Path(targets.scores))
        stack.callback(_forget, engine, manifest)
        return _run(request, settings, sources, targets, engine, manifest)


def _choose_corpus(request: Request, manifest: Manifest | None) -> tuple[str | None, bool]:
    """Name of the corpus, and whether it is this run's own."""
    if not request.dedup:
        return None, False
    if request.corpus is not None:
        return request.corpus, False
    if manifest is not None and manifest.corpus is not None:
        return manifest.corpus, True
    return f"run-{secrets.token_hex(8)}", True


def _open_engine(
    stack: contextlib.ExitStack,
    request: Request,
    settings: Settings,
    corpus: str | None,
    private: bool,
    language: str,
) -> Engine:
    if request.server is not None:
        stack.enter_context(client_speaks())
        client = stack.enter_context(connect_to_server(request.server, settings))
        try:
            return RemoteEngine(client, request.policy, corpus, private, language, request.classifiers)
        except Unauthenticated:
            if settings.server_token_file is not None:
                raise
            raise Unauthenticated(
                "The service asks for a token: give the file that holds it with --token-file."
            ) from None
    pipeline = stack.enter_context(build_pipeline(settings, dedup=request.dedup))
    return LocalEngine(pipeline, request.policy, corpus, private, language, request.classifiers)


class _Said(logging.Handler):
    """What the client logs, as sentences for the person at the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        # Looked up each time: while the bar is drawn, rich stands there.
        print(f"dqs: {' '.join(record.getMessage().split())}", file=sys.stderr)


@contextlib.contextmanager
def client_speaks() -> Iterator[None]:
    """Has the client's warnings printed."""
    logger, handler = logging.getLogger("dqs.client"), _Said()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def connect_to_server(server: str, settings: Settings) -> Client:
    """A client with the token and certificates of the settings."""
    tls = None
    if settings.server_ca is not None or settings.server_cert is not None or settings.server_key is not None:
        tls = Tls(ca=settings.server_ca, cert=settings.server_cert, key=settings.server_key)
    if settings.server_token_file is None:
        return Client(server, tls=tls)
    # Imported here, so that scoring without a service loads nothing of a server.
    from dqs.server.security import access_of_others

    path = settings.server_token_file.expanduser()

    def token() -> str:
        try:
            return path.read_text("ascii").strip()
        except OSError as error:
            raise ConfigError(f"The token file {path} cannot be read ({error.strerror}).") from None
        except UnicodeDecodeError:
            raise ConfigError(f"The token file {path} holds characters that no token has.") from None

    token()  # the first call is tried for some seconds; a missing file is said at once
    warning = access_of_others(path, "a token")
    if warning is not None:
        print(f"dqs: {warning}", file=sys.stderr)
    if tls is None:
        Client(server).close()  # raises what has nothing to do with the token
    try:
        return Client(server, tls=tls, token=token)
    except ConfigError:
        if tls is not None:
            raise
        raise ConfigError(
            f"The token would travel to {server} in clear: give --tls-ca, the authorities of the service's certificate."
        ) from None


def _forget(engine: Engine, manifest: Manifest | None) -> None:
    """Drops the private corpus at the end of a run, however it ended, unless `--resume` will need it."""
    if not engine.rebuilds and manifest is not None and manifest.may_continue:
        return
    try:
        engine.forget()
    except DqsError:
        # The run's own outcome counts. An index of ours that is gone has nothing left to drop.
        if isinstance(engine, RemoteEngine):
            print(
                f"dqs: the service could not be asked to drop this run's corpus {engine.corpus}; "
                "do it later with dqs corpus drop --server.",
                file=sys.stderr,
            )


def _run(
    request: Request,
    settings: Settings,
    sources: Sequence[Source],
    targets: Targets,
    engine: Engine,
    manifest: Manifest | None,
) -> Summary:
    cut = Cut(
        batch_bytes=settings.batch_bytes,
        batch_rows=settings.batch_documents,
        part_rows=request.part_rows if targets.folder else None,
        max_line_bytes=8 * settings.max_document_bytes + MIB,
    )
    schema = score_schema(engine.signals, engine.policy)
    summary = manifest.summary() if manifest is not None else Summary()
    with Display(sources) as display:
        if manifest is not None and manifest.complete:
            display.say(f"The run in {targets.scores} is complete; there is nothing to do.")
            display.finish(summary, engine.policy)
            return summary
        if manifest is not None and manifest.started:
            if manifest.parts:
                display.say(f"Continuing behind {summary.rows:,} rows in {len(manifest.parts)} parts.")
            _rebuild(engine, Path(targets.scores), manifest, sources, request.fields, cut)
        with contextlib.ExitStack() as stack:
            outputs: Outputs
            with uninterrupted():
                if manifest is not None:
                    outputs = PartOutputs(targets, schema, manifest, request.part_rows)
                else:
                    outputs = FileOutputs(targets, schema)
                stack.callback(_abort, outputs)
            start = manifest.end if manifest is not None else None
            batches = read_rows(sources, request.fields, cut, start, raw=targets.raw)
            answered = stack.enter_context(contextlib.closing(engine.answer(stack.enter_context(read_ahead(batches)))))
            for rows, answers in answered:
                table = score_table(rows, answers, schema)
                with uninterrupted():
                    outputs.write(rows, table)
                summary.add(table, rows.text_bytes)
                display.advance(rows, table.column("error").to_pylist())
            with uninterrupted():
                outputs.finish()
        display.finish(summary, engine.policy)
    return summary


def _abort(outputs: Outputs) -> None:
    with uninterrupted():
        outputs.abort()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts off Ctrl-C and SIGTERM: between opening a file and noting that it is open nobody could remove it.

    Raises:
        KeyboardInterrupt: at the end, where a signal came in between.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _rebuild(
    engine: Engine, folder: Path, manifest: Manifest, sources: Sequence[Source], fields: Fields, cut: Cut
) -> None:
    """Replays what finished parts put into the private corpus.

    The corpus itself is not trusted to have survived: it also holds rows behind the last
    complete part, whose verdicts would then name other documents than in an uninterrupted run.
    Signatures alone cost a small part of scoring.
    """
    index_dropped = isinstance(engine, LocalEngine) and engine.index_dropped

    def finished() -> Generator[tuple[Rows, list[bool]], None, None]:
        if not manifest.parts:
            return
        scored = _Rows(read_parts(folder, manifest.parts, ["id", "label", "duplicate_of"]))
        for rows in read_rows(sources, fields, cut):
            if scored.taken == manifest.end.count:
                return
            columns = scored.take(len(rows))
            if columns.column("id").to_pylist() != rows.ids:
                raise ConfigError(f"The parts in {folder} do not fit the inputs; choose another folder.")
            pairs = zip(columns.column("label").to_pylist(), columns.column("duplicate_of").to_pylist(), strict=True)
            yield rows, [was_indexed(label, duplicate_of, index_dropped) for label, duplicate_of in pairs]

    with contextlib.closing(finished()) as batches:
        engine.rebuild(batches)


class _Rows:
    """Hands out rows of record batches in slices of any size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.taken = 0
        self._batches = batches
        self._rest: pa.Table | None = None

    def take(self, rows: int) -> pa.Table:
        """The next `rows` rows, or fewer at the end."""
        while self._rest is None or self._rest.num_rows < rows:
            batch = next(self._batches, None)
            if batch is None:
                break
            table = pa.Table.from_batches([batch])
            self._rest = table if self._rest is None else pa.concat_tables([self._rest, table])
        if self._rest is None:
            raise ConfigError("The parts hold fewer rows than their manifest says; choose another folder.")
        head, self._rest = self._rest.slice(0, rows), self._rest.slice(rows)
        self.taken += head.num_rows
        return head


@contextlib.contextmanager
def read_ahead(items: Iterator[_Item], depth: int = READ_AHEAD_BATCHES) -> Iterator[Iterator[_Item]]:
    """Lets an iterator run in a thread, at most `depth` items ahead.

    Args:
        items: closed when the context ends, if it can be.
        depth: items that may wait.

    Yields:
        The same items in the same order; what `items` raises is raised behind the last of them.
    """
    waiting: queue.Queue[tuple[_Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(item: _Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error), timeout=_LOOK_S)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item, None):
                    return
            offer(None, None)
        except BaseException as error:  # raised again where the items are used
            offer(None, error)

    def handed_out() -> Iterator[_Item]:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    # A daemon: a read of standard input may never return.
    threading.Thread(target=work, name="reader", daemon=True).start()
    try:
        yield handed_out()
    finally:
        stopped.set()
