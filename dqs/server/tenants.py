"""Tenants: who calls, and what each may hold. Knows nothing of gRPC."""

from __future__ import annotations

from dataclasses import dataclass

from dqs.pipeline import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose documents, corpora and budgets are apart from those of others.

    Attributes:
        name: part of the names of its corpora in the index.
        max_pending_bytes: text of its that may wait; None for the setting `tenant_max_pending_bytes`.
        max_pending_documents: documents of its that may wait; None for the setting.
        max_streams: streams of its that may be open; None for the setting.
    """

    name: str
    max_pending_bytes: int | None = None
    max_pending_documents: int | None = None
    max_streams: int | None = None


ANYBODY = Tenant(DEFAULT_TENANT)
"""Who calls a server that asks for no token."""
