"""What every test shares: the kernel cache, and the way to the large data sets."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


_RAY = (
    "tests/cluster/test_nodes.py",
    "tests/cluster/test_stop.py",
    "tests/cluster/test_workers.py",
    "tests/contract/test_executors.py",
    "tests/service/test_promotion.py",
    "tests/cluster/test_dedup.py::test_workers_that_are_killed",
    "tests/cluster/test_dedup.py::test_tasks_that_fail",
)
"""Tests that start workers: one after the other, for two clusters at a time are too much for a small machine."""
_LONG = (*_RAY, "tests/service/test_fuzz.py", "tests/service/test_soak.py", "tests/service/test_cli_score.py")
"""What takes longest begins first, so that none is left for the end, alone on one core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by when they are to begin."""

    def rank(item: pytest.Item) -> int:
        places = [place for place, name in enumerate(_LONG) if item.nodeid.startswith(name)]
        return places[0] if places else len(_LONG) + item.nodeid.startswith("tests/unit/")

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hands out whole files, so that what their tests share is started once; and one worker gets all with Ray.

    Groups by mark would do, but from pytest 9.2 on pytest-xdist 3.8 does not see them, and says nothing.
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "Ray" if nodeid.startswith(_RAY) else nodeid.partition("::")[0]

    if config.getvalue("dist") != "loadgroup":
        return None
    # In the order of the tests, not those with many tests first.
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of evaluation data; skips the test where it is not there."""
    folder = Path(os.environ.get("DQS_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("needs the evaluation data: set DQS_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def workers() -> Iterator[RayExecutor]:
    """Two Ray workers on this machine, three under load; for the tests of `_RAY`."""
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
