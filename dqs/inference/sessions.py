"""ONNX Runtime sessions: where they run, on how many threads, with how much memory.

This is the only module that imports onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dqs.errors import ModelError
from dqs.models import ModelFolder

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """How networks run in this process.

    Attributes:
        provider: what computes them; `auto` takes the best that this machine has.
        threads: threads inside one run.
    """

    provider: Provider = "cpu"
    threads: int = 1


class Session:
    """One graph, loaded. Thread-safe.

    Args:
        folder: the model.
        role: which of its files is the graph.
        runtime: how it runs.

    Attributes:
        inputs: names of the graph's inputs.
        outputs: names of its outputs.

    Raises:
        ModelError: the graph does not load.
    """

    def __init__(self, folder: ModelFolder, role: str, runtime: Runtime) -> None:
        options = onnxruntime.SessionOptions()
        # Batches are scored in parallel, not parts of one: more threads would only fight for cores.
        options.intra_op_num_threads = runtime.threads
        options.inter_op_num_threads = 1
        # The arena would keep the memory of the largest batch ever seen.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        path = folder.file(role)
        try:
            self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own that share no other base
            raise ModelError(
                f"The graph {path} of the model {folder.label} does not load: restore the file."
            ) from error
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, outputs: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the graph.

        Args:
            outputs: names of the outputs to compute.
            inputs: array per input name.
        """
        return [np.asarray(value) for value in self._session.run(outputs, inputs)]
