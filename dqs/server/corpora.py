"""CorpusService: drops corpora of the duplicate index.

Handlers are registered for raw bytes, as in `servicer`. Redis is called in a
thread of its own, because freeing a large corpus takes seconds, which neither
the event loop nor a scoring thread has to spare.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import grpc

from dqs.server import codec
from dqs.server.admission import Admission
from dqs.server.batcher import Batcher
from dqs.server.calls import Call, Gate
from dqs.server.status import Context
from dqs.v1 import corpus_pb2

if TYPE_CHECKING:
    from dqs.pipeline import Pipeline

SERVICE_NAME: str = corpus_pb2.DESCRIPTOR.services_by_name["CorpusService"].full_name


class CorpusServicer:
    """Handles the calls of one server.

    Args:
        pipeline: holds the index.
        batcher: scores what may still go into a corpus.
        admission: counts calls.
        gate: lets calls in.
    """

    def __init__(self, pipeline: Pipeline, batcher: Batcher, admission: Admission, gate: Gate) -> None:
        self._admission = admission
        self._gate = gate
        self._pipeline = pipeline
        self._batcher = batcher
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="dqs-corpus")

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers of every method, for raw bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME, {"DropCorpus": grpc.unary_unary_rpc_method_handler(self.drop_corpus)}
        )

    async def drop_corpus(self, raw: bytes, context: Context) -> bytes:
        """Answers a DropCorpusRequest."""
        return await self._gate.answer(context, "DropCorpus", partial(self._drop_corpus, raw))

    def close(self) -> None:
        """Ends the thread after the drop that it is at."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _drop_corpus(self, raw: bytes, call: Call) -> bytes:
        corpus = codec.parse_drop_corpus_request(raw)
        with self._admission.call(call.tenant):
            # A batch in a scoring thread goes on when its caller leaves, and would bring the corpus back.
            await self._batcher.settle(call.tenant.name, corpus)
            loop = asyncio.get_running_loop()
            drop = partial(self._pipeline.drop_corpus, corpus, tenant=call.tenant.name)
            await loop.run_in_executor(self._executor, drop)
        raw_response: bytes = corpus_pb2.DropCorpusResponse().SerializeToString()
        return raw_response
