"""The door of every call: who calls, under which id, and how it ends.

A handler passes through `Gate.answer`, which finds the tenant, gives the call an
id that logs carry, runs the handler's work and turns its errors into statuses.
It knows nothing of documents.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from dqs.server.status import Context, guarded
from dqs.server.tenants import ANYBODY, Tenant

REQUEST_ID_KEY = "x-request-id"
"""Metadata key under which a client may name its call; answers carry it too."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client.

    Attributes:
        method: name of the RPC, such as "ScoreBatch".
        tenant: who calls.
        request_id: names the call in logs and traces.
    """

    method: str
    tenant: Tenant
    request_id: str


class Gate:
    """Lets calls in."""

    async def answer(self, context: Context, method: str, work: Callable[[Call], Awaitable[Answer]]) -> Answer:
        """Runs a handler's work for a call; a `DqsError` that it raises becomes the call's status.

        Args:
            context: of the call.
            method: name of the RPC.
            work: the handler.
        """
        return await guarded(context, work(Call(method, ANYBODY, secrets.token_hex(8))))
