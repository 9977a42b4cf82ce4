"""DQS scores text for people who build language models: keep or drop, with the reasons.

    from dqs import Client, Document

    with Client("localhost:50051") as client:
        for verdict in client.score(["One text.", "另一段文字。"]):
            print(verdict.id, verdict.label.name, verdict.reasons)

Importing this package loads nothing but the nouns of `dqs.data`; the clients,
which need grpcio and protobuf, are loaded when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dqs.data import Document, Label, Missing, Reason, Verdict

if TYPE_CHECKING:
    from dqs.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Document", "Label", "Missing", "Reason", "Verdict", "__version__"]


def __getattr__(name: str) -> Any:
    """Loads what is not needed by everybody when it is first named."""
    if name in ("AsyncClient", "Client"):
        from dqs import client

        return getattr(client, name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("dqs")
        except PackageNotFoundError:
            found = "0+unknown"  # a source tree that was never installed
        # Kept: it is read from a file, and a server that has no descriptor left is still asked for it.
        globals()["__version__"] = found
        return found
    raise AttributeError(f"module 'dqs' has no attribute {name!r}")
