"""The end of a server with workers: a stop signal, from a terminal too, lets what has been read finish."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import psutil
import pytest

from dqs import Client, Document
from dqs.client import Timeouts
from dqs.errors import DqsError, Unavailable
from tests.cluster.workers import wait_for, worker_processes
from tests.service.serving import ENGLISH, ServerProcess

DOCUMENTS = [Document(f"d{number}", f"{number} {ENGLISH}".encode() * 20) for number in range(200)]


def still_there(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "signals",
    ["Ctrl-C, which reaches every process", pytest.param("SIGTERM to the server", marks=pytest.mark.slow)],
)
def test_a_stop_lets_batches_finish_and_leaves_no_process(signals: str, tmp_path: Path) -> None:
    answered: list[int] = []
    refused: list[DqsError] = []

    def work() -> None:
        with Client(server.address, timeouts=Timeouts(retry_s=0.0)) as client:
            try:
                while True:
                    verdicts = client.score_batch(DOCUMENTS, corpus=None, policy="score-only")
                    assert all(verdict.error is None for verdict in verdicts)
                    answered.append(len(verdicts))
            except DqsError as error:
                refused.append(error)

    with ServerProcess(port=0, data_dir=tmp_path, workers=2, batch_bytes=128 << 10) as server:
        wait_for(lambda: len(worker_processes(server.pid)) == 2, "two workers")
        below = psutil.Process(server.pid).children(recursive=True)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answered) > 4, "load")
        if signals.startswith("SIGTERM"):
            psutil.Process(server.pid).terminate()
        else:
            for process in [psutil.Process(server.pid), *below]:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGINT)
        status = server.wait()
        for thread in threads:
            thread.join()
        wait_for(lambda: not still_there(below), "every process has ended", 30)

    assert status == 0
    assert set(answered) == {len(DOCUMENTS)}
    assert len(refused) == 4
    # New calls were refused; none that had been taken on was lost with a worker.
    assert all(isinstance(error, Unavailable) and "worker" not in error.message for error in refused)
