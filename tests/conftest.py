"""What every test shares: the kernel cache, and the way to the large data sets."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings as hypothesis_settings

from dqs.settings import load_settings, use_kernel_cache

if TYPE_CHECKING:
    from dqs.executors.ray_actors import RayExecutor

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports numba: the kernels that `make setup` compiled are used.
use_kernel_cache(load_settings().data_dir)

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start inherits that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis_settings.register_profile("dqs", deadline=None, max_examples=150, derandomize=True)
hypothesis_settings.load_profile("dqs")


_LONG_GROUPS = ("ray", "soak", "fuzz")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the groups that take minutes begin first, so that none is left for the end, alone on one core."""

    def rank(item: pytest.Item) -> int:
        group = item.get_closest_marker("xdist_group")
        return _LONG_GROUPS.index(group.args[0]) if group and group.args[0] in _LONG_GROUPS else len(_LONG_GROUPS)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of evaluation data; skips the test where it is not there."""
    folder = Path(os.environ.get("DQS_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("needs the evaluation data: set DQS_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def workers() -> Iterator[RayExecutor]:
    """Two Ray workers on this machine, three under load; for tests of the xdist group "ray"."""
    from dqs.executors.ray_actors import RayExecutor
    from tests.cluster.killing import build
    from tests.cluster.workers import all_ready, wait_for

    settings = load_settings(
        workers=2,
        max_workers=3,
        worker_cpus=0.5,
        worker_grow_bytes=1 << 20,
        worker_grow_s=0.5,
        worker_shrink_s=2.0,
        worker_batch_timeout_s=20.0,
    )
    with contextlib.closing(RayExecutor(settings, build)) as executor:
        wait_for(all_ready(executor), "two workers")
        yield executor
