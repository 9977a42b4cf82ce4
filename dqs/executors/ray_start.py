"""How Ray is started for one process alone, or a cluster joined, and the folder that Ray writes into."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dqs.errors import ConfigError

_PREFIX = "dqs-ray-"
_CONNECT_S = 5.0


def start_here(ray: Any, folder: RayFolder, **arguments: Any) -> None:
    """Starts Ray on this machine for this process.

    Args:
        ray: the module.
        folder: that it writes into.
        **arguments: more ones of `ray.init`.

    Raises:
        ConfigError: it does not start.
    """
    arguments |= {
        "address": "local",
        "include_dashboard": False,
        # Ray opens its folder to everybody, so it lies in one that is closed to them.
        "_temp_dir": str(folder.path / "r"),
    }
    try:
        _init(ray, arguments)
    except (RuntimeError, ValueError, ConnectionError, OSError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"Ray does not start on this machine: {said}.") from error


def join_cluster(ray: Any, address: str, node_ip: str | None) -> None:
    """Joins a cluster through the Ray node of this machine.

    Args:
        ray: the module.
        address: `HOST:PORT` of its head.
        node_ip: address of the node, where this machine runs several; else None.

    Raises:
        ConfigError: nobody answers there, or no node of that cluster is here.
    """
    _check_address(address)
    arguments: dict[str, Any] = {"address": address}
    if node_ip is not None:
        arguments["_node_ip_address"] = node_ip
    try:
        _init(ray, arguments)
    except (RuntimeError, ValueError, ConnectionError, OSError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{said}: start a Ray node of that cluster on this machine, and give this process the cluster's "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN."
        ) from error


def _init(ray: Any, arguments: dict[str, Any]) -> None:
    from ray._private import worker

    # Ray would print what it has to say, raised errors included, on standard output.
    worker._worker_logs_enabled = False
    with _signals_kept():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)


def _check_address(address: str) -> None:
    """Finds out at once that nobody is there, for which Ray itself takes a quarter of an hour.

    Raises:
        ConfigError: the address has another form, or nobody answers.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            pass
    except ValueError:
        raise ConfigError(f"The address of a Ray cluster is HOST:PORT of its head; {address!r} is not.") from None
    except OSError as error:
        raise ConfigError(f"There is no Ray cluster at {address} ({error.strerror or error}).") from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Puts the signal handlers back that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit:
        # Ray's own answer to SIGTERM while it starts; whoever handled that before has another.
        if callable(former := before[signal.SIGTERM]):
            former(signal.SIGTERM, None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
