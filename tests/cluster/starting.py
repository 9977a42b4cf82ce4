"""Starts workers on a cluster and says what became of them, as JSON.

    python -m tests.cluster.starting BUILDER SETTINGS

BUILDER is a function of `tests.cluster.killing`, or "" for the scorers that ship.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from pathlib import Path

from dqs.errors import ConfigError
from dqs.settings import load_settings, use_kernel_cache


def main(builder: str, values: str) -> None:
    logging.basicConfig()
    settings = load_settings(**json.loads(values))
    use_kernel_cache(settings.data_dir)
    from dqs.executors.ray_actors import RayExecutor
    from tests.cluster import killing
    from tests.cluster.workers import wait_for

    build = getattr(killing, builder) if builder else None
    if builder == "build_differing":
        build = functools.partial(killing.build_differing, Path(settings.data_dir))
    try:
        with contextlib.closing(RayExecutor(settings, build)) as executor:
            wanted = settings.workers + settings.gpu_workers
            wait_for(lambda: len(executor.status().replicas) == wanted, "all were asked for")
            wait_for(lambda: all(replica.ready for replica in executor.status().replicas), "each is ready or gone")
            print(json.dumps({"ready": [replica.name for replica in executor.status().replicas]}))
    except ConfigError as error:
        print(json.dumps({"error": error.message}))


if __name__ == "__main__":
    main(*sys.argv[1:])
