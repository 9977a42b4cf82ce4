"""A circuit breaker: what does not answer is left alone for a while, so that not everybody waits for it.

A failed call opens the circuit for as long as the call took, within bounds: a
server that hangs costs at most half of the time, one that refuses at once is
asked again soon. Then one caller tries; the others are refused until it
succeeds. Knows nothing of Redis.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MIN_OPEN_S = 0.1
MAX_OPEN_S = 5.0


class Circuit:
    """Says whether a server may be asked. Thread-safe.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until_s: float | None = None
        self._trying_since_s: float | None = None

    def would_admit(self) -> bool:
        """Whether somebody may ask now."""
        if self._open_until_s is None:
            return True
        now_s = self._clock()
        if now_s < self._open_until_s:
            return False
        # Who tries may never come back, so its turn ends.
        return self._trying_since_s is None or now_s >= self._trying_since_s + MAX_OPEN_S

    def admit(self) -> bool:
        """Whether the caller may ask; if so, it must call `succeed` or `fail` afterwards."""
        with self._lock:
            admitted = self.would_admit()
            if admitted and self._open_until_s is not None:
                self._trying_since_s = self._clock()
            return admitted

    def succeed(self) -> None:
        """An answer came."""
        if self._open_until_s is not None:
            with self._lock:
                self._open_until_s = self._trying_since_s = None

    def fail(self, took_s: float) -> None:
        """No answer came.

        Args:
            took_s: how long that took to find out.
        """
        with self._lock:
            self._open_until_s = self._clock() + min(max(took_s, MIN_OPEN_S), MAX_OPEN_S)
            self._trying_since_s = None
