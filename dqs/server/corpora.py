"""CorpusService: makes, describes, exports, imports, prunes and drops corpora of the duplicate index.

Handlers are registered for raw bytes, as in `servicer`; `corpus_codec` parses them. Redis is
called in a thread of its own, because freeing a large corpus takes seconds, which neither
the event loop nor a scoring thread has to spare. What is long is done in pieces there, so that
calls take turns. In between, that thread forgets what has left the windows of corpora that
nobody uses, and has Redis write its files anew where it could not at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

import dqs
from dqs.errors import CorpusMismatch, DqsError, IndexUnavailable, RequestError
from dqs.index.corpora import DELETE_IDS, Corpora, FileRewrite, Rewriting
from dqs.server import codec, corpus_codec
from dqs.server.admission import Account, Admission
from dqs.server.batcher import Batcher
from dqs.server.calls import Call, Gate
from dqs.server.codec import Limits
from dqs.server.corpus_codec import corpus_name, parse
from dqs.server.status import Context, incident
from dqs.server.tenants import ANYBODY
from dqs.v1 import corpus_pb2

if TYPE_CHECKING:
    from dqs.pipeline import Pipeline

SERVICE_NAME: str = corpus_pb2.DESCRIPTOR.services_by_name["CorpusService"].full_name
EXPIRE_EVERY_S = 10.0
"""How often corpora that are not in use forget what has left their windows."""
EXPIRE_ROUND_S = 1.0
"""Longest time that one round of this takes; the next one goes on where it ended."""
EXPIRE_DOCUMENTS = 1024
"""Documents of one corpus looked at before another one, or a call, has its turn."""
_IMPORT_BYTES = 256 << 10
"""What the next message of an import is taken to have before it is read."""

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class CorpusServicer:
    """Handles the calls of one server.

    Args:
        pipeline: holds the index.
        batcher: scores what may still go into a corpus.
        admission: counts calls.
        gate: lets calls in.
        limits: what requests must keep to.
        tenants: names all whose corpora are looked after.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        batcher: Batcher,
        admission: Admission,
        gate: Gate,
        limits: Limits,
        tenants: Callable[[], Iterable[str]],
    ) -> None:
        self._admission = admission
        self._gate = gate
        self._limits = limits
        self._pipeline = pipeline
        self._batcher = batcher
        self._tenants = tenants
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="dqs-corpus")
        self._expiry: asyncio.Task[None] | None = None
        self._expired_last: tuple[str, str] = ("", "")
        self._rewrites_later = False
        """Whether the index is to write its files anew once more."""

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers of every method, for raw bytes."""
        unary: dict[str, Callable[[bytes, Call], Awaitable[bytes]]] = {
            "CreateCorpus": self._create,
            "ConfigureCorpus": self._configure,
            "ListCorpora": self._list,
            "GetCorpus": self._get,
            "DropCorpus": self._drop,
            "FindDocuments": self._find,
            "DeleteDocuments": self._delete,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._answering(name, work)) for name, work in unary.items()
        }
        handlers["ExportCorpus"] = grpc.unary_stream_rpc_method_handler(self.export_corpus)
        handlers["ImportCorpus"] = grpc.stream_unary_rpc_method_handler(self.import_corpus)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)

    async def export_corpus(self, raw: bytes, context: Context) -> None:
        """Answers an ExportCorpusRequest with as many responses as there are pieces."""
        await self._gate.answer(context, "ExportCorpus", partial(self._export, raw, context))

    async def import_corpus(self, _requests: Any, context: Context) -> bytes:
        """Answers ImportCorpusRequests when the last one has come."""
        return await self._gate.answer(context, "ImportCorpus", partial(self._import, context))

    def start(self) -> None:
        """Begins to forget what has left windows."""
        self._expiry = asyncio.get_running_loop().create_task(self._expire())

    def close(self) -> None:
        """Ends the thread after what it is at."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _answering(
        self, method: str, work: Callable[[bytes, Call], Awaitable[bytes]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def counted(raw: bytes, call: Call) -> bytes:
            with self._admission.call(call.tenant):
                return await work(raw, call)

        async def answer(raw: bytes, context: Context) -> bytes:
            return await self._gate.answer(context, method, partial(counted, raw))

        return answer

    def _corpora(self, tenant: str) -> Corpora:
        """The corpora of a tenant.

        Raises:
            IndexUnavailable: there is no index.
        """
        return Corpora(self._pipeline.index().of(tenant))

    async def _do(self, work: Callable[..., Answer], *arguments: Any, **named: Any) -> Answer:
        """Runs what asks Redis in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(work, *arguments, **named))

    async def _create(self, raw: bytes, call: Call) -> bytes:
        message = parse(corpus_pb2.CreateCorpusRequest, raw)
        corpus = corpus_name(message)
        corpora = self._corpora(call.tenant.name)
        created = await self._do(
            corpora.create,
            corpus,
            threshold=message.threshold if message.HasField("threshold") else None,
            normaliser=message.normaliser or None,
            options=corpus_codec.decode_changes(message.options),
        )
        there = await self._do(corpora.describe, corpus, measure=False)
        return _encoded(
            corpus_pb2.CreateCorpusResponse(
                created=created,
                parameters=corpus_codec.encode_parameters(there.parameters),
                options=corpus_codec.encode_options(there.options),
            )
        )

    async def _configure(self, raw: bytes, call: Call) -> bytes:
        message = parse(corpus_pb2.ConfigureCorpusRequest, raw)
        corpora = self._corpora(call.tenant.name)
        options = await self._do(corpora.configure, corpus_name(message), corpus_codec.decode_changes(message.options))
        return _encoded(corpus_pb2.ConfigureCorpusResponse(options=corpus_codec.encode_options(options)))

    async def _list(self, raw: bytes, call: Call) -> bytes:
        parse(corpus_pb2.ListCorporaRequest, raw)
        entries = await self._do(self._corpora(call.tenant.name).list)
        return _encoded(corpus_pb2.ListCorporaResponse(corpora=map(corpus_codec.encode_entry, entries)))

    async def _get(self, raw: bytes, call: Call) -> bytes:
        message = parse(corpus_pb2.GetCorpusRequest, raw)
        corpora = self._corpora(call.tenant.name)
        there = await self._do(corpora.describe, corpus_name(message), measure=message.measure)
        return _encoded(corpus_codec.encode_description(there))

    async def _drop(self, raw: bytes, call: Call) -> bytes:
        corpus = codec.parse_drop_corpus_request(raw)
        rewrites = parse(corpus_pb2.DropCorpusRequest, raw).rewrite_files
        corpora = self._corpora(call.tenant.name)
        # A batch in a scoring thread goes on when its caller leaves, and would bring the corpus back.
        await self._batcher.settle(call.tenant.name, corpus)
        await self._do(corpora.drop, corpus)
        rewriting = await self._rewrite(corpora) if rewrites else None
        return _encoded(corpus_pb2.DropCorpusResponse(**corpus_codec.encode_rewriting(rewriting)))

    async def _find(self, raw: bytes, call: Call) -> bytes:
        message = parse(corpus_pb2.FindDocumentsRequest, raw)
        corpus, ids = corpus_name(message), self._ids(message)
        found = await self._do(self._corpora(call.tenant.name).find, corpus, ids)
        return _encoded(corpus_pb2.FindDocumentsResponse(documents=map(corpus_codec.encode_found, found)))

    async def _delete(self, raw: bytes, call: Call) -> bytes:
        message = parse(corpus_pb2.DeleteDocumentsRequest, raw)
        corpus, ids = corpus_name(message), self._ids(message)
        corpora = self._corpora(call.tenant.name)
        # Before, because what is being scored would bring the documents back.
        await self._batcher.settle(call.tenant.name, corpus)
        known = 0
        for start in range(0, len(ids), DELETE_IDS):
            known += await self._do(corpora.delete, corpus, ids[start : start + DELETE_IDS])
        # And after, because what was looked up meanwhile may name them.
        await self._batcher.settle(call.tenant.name, corpus)
        rewriting = await self._rewrite(corpora) if message.rewrite_files else None
        return _encoded(corpus_pb2.DeleteDocumentsResponse(known=known, **corpus_codec.encode_rewriting(rewriting)))

    async def _rewrite(self, corpora: Corpora) -> Rewriting:
        """Has the index write its files anew; later, if it is at it."""
        rewriting = await self._do(corpora.rewrite_files)
        self._rewrites_later = rewriting.outcome == FileRewrite.BUSY
        return Rewriting(rewriting.outcome) if self._rewrites_later else rewriting

    def _ids(self, message: corpus_pb2.FindDocumentsRequest | corpus_pb2.DeleteDocumentsRequest) -> list[str]:
        ids = list(message.ids)
        if len(ids) > self._limits.max_batch_documents:
            raise RequestError(
                f"The message has {len(ids)} ids and at most {self._limits.max_batch_documents} are allowed: "
                "send them in several.",
                field="ids",
            )
        return ids

    async def _export(self, raw: bytes, context: Context, call: Call) -> None:
        corpus = corpus_name(parse(corpus_pb2.ExportCorpusRequest, raw))
        with self._admission.stream(call.tenant):
            export = await self._do(self._corpora(call.tenant.name).export, corpus)
            header = corpus_codec.encode_header(export.header, dqs.__version__)
            await context.write(_encoded(corpus_pb2.ExportCorpusResponse(header=header)))
            # gRPC takes a piece when the client has room for it, so no more than one is held here.
            while (piece := await self._do(export.read)) is not None:
                if len(piece):
                    documents = corpus_codec.encode_documents(piece)
                    await context.write(_encoded(corpus_pb2.ExportCorpusResponse(documents=documents)))

    async def _import(self, context: Context, call: Call) -> bytes:
        with self._admission.stream(call.tenant) as account:
            raw = await self._read(context, account)
            first = None if raw is None else parse(corpus_pb2.ImportCorpusRequest, raw)
            if first is None or first.WhichOneof("piece") != "header":
                raise RequestError("The first message of an import has no header: send it before the documents.")
            corpus = corpus_name(first.header)
            header = corpus_codec.decode_header(corpus, first.header.exported)
            filling = await self._do(self._corpora(call.tenant.name).import_, corpus, header)
            sent = 0
            while True:
                raw = await self._read(context, account)
                message = None if raw is None else parse(corpus_pb2.ImportCorpusRequest, raw)
                if raw is None or message is None:
                    raise RequestError("The import ended without its last message: send it again.")
                if message.WhichOneof("piece") == "end":
                    break
                if message.WhichOneof("piece") != "documents":
                    raise RequestError("Only the first message of an import has a header.", field="header")
                documents = corpus_codec.decode_documents(message.documents, header.parameters)
                sent += len(documents)
                size = (len(raw), max(1, len(documents)))
                account.take(*size)
                try:
                    await self._do(filling.write, documents)
                finally:
                    account.give_back(*size)
            if message.end.documents != sent:
                raise RequestError(
                    f"The import had {sent} documents and should have {message.end.documents}: send it again.",
                    field="end",
                )
            done = await self._do(filling.finish)
        return _encoded(
            corpus_pb2.ImportCorpusResponse(imported=done.imported, known=done.known, conflicts=done.conflicts)
        )

    async def _read(self, context: Context, account: Account) -> bytes | None:
        """The next message of an import, once there is room for one; None at the end."""
        room = await account.reserve(min(_IMPORT_BYTES, account.budget.max_bytes // 8), 1)
        try:
            raw = await context.read()
        finally:
            room.release()
        return None if raw is grpc.aio.EOF else raw

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            try:
                if self._rewrites_later:
                    await self._rewrite(self._corpora(ANYBODY.name))
                await self._expire_round()
            except IndexUnavailable:
                pass  # whoever needs the index is told
            except Exception as error:  # the task must not end of it
                incident(error)

    async def _expire_round(self) -> None:
        """Has corpora forget what has left their windows, each a little, for a while at most."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + EXPIRE_ROUND_S
        waiting: list[tuple[str, str]] = []
        for tenant in sorted(self._tenants()):
            waiting += [(tenant, corpus) for corpus in await self._do(self._corpora(tenant).names)]
        # Those that had no turn in the last round come first.
        begin = next((place for place, one in enumerate(waiting) if one > self._expired_last), 0)
        waiting = waiting[begin:] + waiting[:begin]
        while waiting:
            again = []
            for one in waiting:
                if loop.time() >= end_s:
                    return
                if await self._do(self._forget, *one):
                    again.append(one)
                self._expired_last = one
            waiting = again

    def _forget(self, tenant: str, corpus: str) -> bool:
        """Has a corpus forget a little; whether it may have more to forget."""
        store = self._pipeline.index().of(tenant)
        try:
            # Read anew each time: another process may have changed the windows.
            if store.read_layout(corpus) is None:
                return False
            return store.expire(corpus, EXPIRE_DOCUMENTS) >= EXPIRE_DOCUMENTS
        except CorpusMismatch:  # of another version, which looks after it
            return False
        except IndexUnavailable:
            raise
        except DqsError as error:
            _log.warning("a corpus cannot be looked after: %s", error.message)
            return False


def _encoded(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
