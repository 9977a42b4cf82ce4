"""The folder that Ray writes into while it runs for one service alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "dqs-ray-"


class RayFolder:
    """A folder that only this user may enter, under the temporary one; made at once, gone after `remove`.

    Its path is short, because sockets lie in it. While its process lives, the folder is
    locked. One that nobody holds is what a killed service left behind; it is removed
    when the next folder is made.
    """

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir())
        for left in root.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        # A service that starts at this very moment may hold it to look whether we do.
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes it with all that lies in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else's, or held
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Empty is one that was made a moment ago, and will be locked in the next.
            if os.fstat(lock).st_uid == os.getuid() and any(folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
