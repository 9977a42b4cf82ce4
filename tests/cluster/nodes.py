"""A Ray cluster of several nodes on this machine, in a process of its own, whose nodes can be killed.

    python -m tests.cluster.nodes

starts a head without processors and the node `gateway` without processors, prints
the cluster's address, and then does what it is told line by line on standard input:

    add NAME CPUS [GPUS]   starts a node; its GPUs exist for the scheduler only
    kill NAME         kill -9 of a node and of everything that runs on it
    stop-head         halts the head's server, as a machine that hangs does
    continue-head     lets it go on
    kill-head         kill -9 of the head's server
    quit
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

import psutil

GATEWAY = "gateway"
GATEWAY_IP = "127.0.0.9"
"""An address of its own, so that a gateway can say which of the nodes here is its own."""
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
"""Environment of whoever belongs to the cluster."""


class RayCluster:
    """The cluster, as tests see it.

    Args:
        nodes: processors of each node to begin with, by name.
    """

    def __init__(self, **nodes: int) -> None:
        self._nodes = nodes
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **AUTHENTICATION},
        )
        self.address = self._answer()
        for name, cpus in self._nodes.items():
            self.do(f"add {name} {cpus}")
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        below = psutil.Process(self._process.pid).children(recursive=True)
        with contextlib.suppress(AssertionError, OSError):
            self.do("quit")
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        kill_all(below)

    @property
    def pid(self) -> int:
        """Process that all others are below."""
        assert self._process is not None
        return self._process.pid

    def do(self, command: str) -> None:
        """Gives a command and waits until it is done."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            # Ray may say something of its own.
            if line.startswith("> "):
                return line.removeprefix("> ").strip()
        raise AssertionError(f"the cluster ended with {self._process.wait()}")


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """kill -9 of all of them that are still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def main() -> None:
    from ray.cluster_utils import Cluster

    # What only people look at is left out: it costs a small machine seconds.
    head_node_args = {"num_cpus": 0, "node_name": "head", "include_dashboard": False, "include_log_monitor": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head_node_args)
    nodes: dict[str, Any] = {GATEWAY: cluster.add_node(num_cpus=0, node_name=GATEWAY, node_ip_address=GATEWAY_IP)}

    def process_of(node: Any, kind: str) -> psutil.Process:
        return psutil.Process(node.all_processes[kind][0].process.pid)

    def add(name: str, cpus: str, gpus: str = "0") -> None:
        nodes[name] = cluster.add_node(num_cpus=int(cpus), num_gpus=int(gpus), node_name=name)

    def kill(name: str) -> None:
        raylet = process_of(nodes.pop(name), "raylet")
        below = raylet.children(recursive=True)
        kill_all([raylet, *below])

    head = process_of(cluster.head_node, "gcs_server")
    commands: dict[str, Callable[..., None]] = {
        "add": add, "kill": kill,
        "stop-head": head.suspend, "continue-head": head.resume, "kill-head": head.kill,
    }  # fmt: skip
    print(f"> {cluster.address}", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "quit":
            break
        commands[command](*arguments)
        print("> done", flush=True)
    print("> done", flush=True)
    below = psutil.Process().children(recursive=True)
    kill_all(below)
    psutil.wait_procs(below, timeout=10)
    # Ray's own goodbye would wait for what has been killed.
    os._exit(0)


if __name__ == "__main__":
    main()
