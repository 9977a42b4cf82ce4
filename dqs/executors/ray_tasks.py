"""Work cut into tasks that leave files behind: in Ray on this machine, on the nodes of a cluster, or in this process.

A task is a function of a module and one argument. It reads and writes files that all
nodes see, so nothing but its small result travels, and as many tasks are under way
at a time as there are workers. A task whose worker dies is started again; it must
be one that may run twice.

Ray Data is not used: `import ray.data` needs pandas, and where every stage goes from
files to files its blocks would only be copied through shared memory once more.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dqs.errors import ConfigError, DqsError
from dqs.executors.ray_start import RayFolder, join_cluster, start_here
from dqs.settings import MIB, prepare_ray, use_kernel_cache

_OBJECT_STORE_BYTES = 100 * MIB
_RESTARTS = 3
_WAITING = 2
"""Tasks per worker that are handed to Ray, so that none waits for the next."""

_Shared = TypeVar("_Shared")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Tasks:
    """Runs functions over items; close it at the end.

    Args:
        workers: tasks at a time; 0 runs them in this process, without Ray; None takes all cores, of this
            machine or of the cluster.
        address: `HOST:PORT` of a Ray cluster; None starts Ray on this machine.
        node_ip: address of this machine in the cluster, or None.
        data_dir: folder of compiled kernels on every node.

    Raises:
        ConfigError: Ray is not installed, does not start, or cannot be reached.
    """

    def __init__(self, workers: int | None, address: str | None, node_ip: str | None, data_dir: Path) -> None:
        self._workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self._data_dir = data_dir
        self._folder: RayFolder | None = None
        self._ray: Any = None
        if not self._workers:
            return
        prepare_ray(local=address is None)
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "Workers need Ray, which is not installed: pip install 'dqs[ray]', or give --workers 0."
            ) from error
        if ray.is_initialized():
            raise ConfigError("This process uses Ray already: run one job per process.")
        try:
            self._connect(ray, address, node_ip)
            if workers is None and address is not None:
                self._workers = max(1, self._cluster_cores())
        except BaseException:
            self.close()
            raise

    def _connect(self, ray: Any, address: str | None, node_ip: str | None) -> None:
        if address is not None:
            join_cluster(ray, address, node_ip)
        else:
            self._folder = RayFolder()
            start_here(ray, self._folder, num_cpus=self._workers, object_store_memory=_OBJECT_STORE_BYTES)
        self._ray = ray

    def _cluster_cores(self) -> int:
        return int(self._ray.cluster_resources().get("CPU", 1))

    def run(
        self, function: Callable[[_Shared, _Item], _Result], shared: _Shared, items: Sequence[_Item]
    ) -> Iterator[tuple[int, _Result]]:
        """Runs a function over all items.

        Args:
            function: of a module's top level; may run again for the same item.
            shared: its first argument, the same for all items.
            items: its second argument; small.

        Yields:
            Position of the item and its result, as they end.

        Raises:
            DqsError: the first that a task raised.
            ConfigError: a task's worker died again and again.
        """
        if self._ray is None or not items:
            for position, item in enumerate(items):
                yield position, function(shared, item)
            return
        from ray.exceptions import RayError, RayTaskError

        task = self._ray.remote(_run_task).options(num_cpus=1, max_retries=_RESTARTS)
        # Packed, because unpacking it imports numba, which must know the kernel cache before.
        packed = self._ray.put(pickle.dumps((function, shared)))
        waiting: dict[Any, int] = {}
        following = iter(enumerate(items))
        try:
            while True:
                while len(waiting) < self._workers * _WAITING:
                    numbered = next(following, None)
                    if numbered is None:
                        break
                    position, item = numbered
                    waiting[task.remote(self._data_dir, packed, pickle.dumps(item))] = position
                if not waiting:
                    return
                # With a limit, so that Ctrl-C is heard.
                ended, _ = self._ray.wait(list(waiting), num_returns=1, timeout=1.0)
                for reference in ended:
                    yield waiting.pop(reference), self._ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, DqsError):
                raise error.cause from None
            raise
        except RayError as error:
            raise ConfigError(
                f"A task's worker died {_RESTARTS + 1} times ({type(error).__name__}): give it more memory, or fewer "
                "--workers, and run again with --resume."
            ) from error
        finally:
            for reference in waiting:
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Ends the workers, and Ray where it was started here."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _run_task(data_dir: Path, packed: bytes, item: bytes) -> Any:
    use_kernel_cache(data_dir)
    function, shared = pickle.loads(packed)
    return function(shared, pickle.loads(item))
