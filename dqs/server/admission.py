"""How much text may be in the service: one budget over all calls, one window per stream.

Both count what has been taken in and not yet answered. They live on the event
loop and need no lock.
"""

from __future__ import annotations

import asyncio


class Room:
    """A bound on documents and bytes of text that are held at a time.

    Args:
        max_bytes: bound on bytes of text.
        max_documents: bound on documents; None where only bytes count.
    """

    def __init__(self, max_bytes: int, max_documents: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._max_documents = max_documents
        self._free = asyncio.Event()
        self._free.set()
        self.text_bytes = 0
        self.documents = 0

    def fits(self, text_bytes: int) -> bool:
        """Whether that much more text stays within the bound; anything fits where nothing is held."""
        return self.text_bytes == 0 or self.text_bytes + text_bytes <= self._max_bytes

    async def free(self) -> None:
        """Waits until less than the bound is held.

        What is taken next may exceed the bound, because the size of a message
        is not known before it is read: by one message for each who waits.
        """
        while not self._free.is_set():
            await self._free.wait()

    def take(self, text_bytes: int, documents: int) -> None:
        """Counts what has been taken in."""
        self.text_bytes += text_bytes
        self.documents += documents
        if self._is_full():
            self._free.clear()

    def give_back(self, text_bytes: int, documents: int) -> None:
        """Counts what has left."""
        self.text_bytes -= text_bytes
        self.documents -= documents
        if not self._is_full():
            self._free.set()

    def _is_full(self) -> bool:
        return self.text_bytes >= self._max_bytes or (
            self._max_documents is not None and self.documents >= self._max_documents
        )
