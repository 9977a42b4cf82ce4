"""ONNX Runtime sessions: where they run, on how many threads, with how much memory.

This is the only module that imports onnxruntime.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dqs.errors import ConfigError, ModelError
from dqs.inference.runtime import Provider, Runtime
from dqs.models import ModelFolder

__all__ = ["Provider", "Runtime", "Session", "TensorSpec", "check_packages"]

HALF_SUFFIX = "_half"
"""A file with the role `graph_half` is the graph of the role `graph` in half precision, for GPUs."""

_LOG = logging.getLogger(__name__)
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_PROVIDERS = {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}
_TYPES = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16,
    "tensor(double)": np.float64, "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8,
}  # fmt: skip
_UNKNOWN_OPERATOR = re.compile(
    r"(?:Fatal error: |implementation for |No Op registered for )([\w.:]+?)(?:\(-?\d+\)| |$)"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: its name.
        dtype: type of its numbers; None for what no array of numpy holds.
        shape: its sizes; None where a size is free.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...]


class Session:
    """One graph, loaded. Thread-safe.

    Args:
        folder: the model.
        role: which of its files is the graph.
        runtime: how it runs.

    Attributes:
        inputs: names of the graph's inputs.
        outputs: names of its outputs.
        input_specs: the inputs.
        output_specs: the outputs.
        provider: what computes it: `cpu`, `cuda` or `tensorrt`.

    Raises:
        ConfigError: both packages of ONNX Runtime are installed.
        ModelError: the graph does not load.
    """

    def __init__(self, folder: ModelFolder, role: str, runtime: Runtime) -> None:
        self._session = _open(folder, role, runtime)
        self.input_specs = tuple(_spec(node) for node in self._session.get_inputs())
        self.output_specs = tuple(_spec(node) for node in self._session.get_outputs())
        self.inputs = tuple(spec.name for spec in self.input_specs)
        self.outputs = tuple(spec.name for spec in self.output_specs)
        active = self._session.get_providers()
        self.provider = next(name for name in ("tensorrt", "cuda", "cpu") if _PROVIDERS[name] in active)

    def run(self, outputs: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the graph.

        Args:
            outputs: names of the outputs to compute.
            inputs: array per input name.
        """
        if self.provider == "cpu":
            return [np.asarray(value) for value in self._session.run(outputs, inputs)]
        # Bound to the device, so that nothing is copied but what goes in and what comes out.
        binding = self._session.io_binding()
        for name, value in inputs.items():
            on_device = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda", 0)
            binding.bind_ortvalue_input(name, on_device)
        for name in outputs:
            binding.bind_output(name, "cuda")
        self._session.run_with_iobinding(binding)
        return [np.asarray(value) for value in binding.copy_outputs_to_cpu()]


def check_packages() -> None:
    """Refuses two packages that write into one folder, of which the one installed last wins in part.

    Raises:
        ConfigError: `onnxruntime` and `onnxruntime-gpu` are both installed.
    """
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(package)
            found.append(package)
    if len(found) > 1:
        raise ConfigError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then install "
            "dqs[server] for processors or dqs[gpu] for GPUs."
        )


def _open(folder: ModelFolder, role: str, runtime: Runtime) -> Any:
    check_packages()
    wanted = _choose(runtime)
    if wanted != "cpu" and runtime.half and folder.has_file(role + HALF_SUFFIX):
        role += HALF_SUFFIX
    path = folder.file(role)
    options = onnxruntime.SessionOptions()
    # Batches are scored in parallel, not parts of one: more threads would only fight for cores.
    options.intra_op_num_threads = runtime.threads
    options.inter_op_num_threads = 1
    # Threads that wait for work in a loop take the core from the other batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena would keep the memory of the largest batch ever seen.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    if wanted != "cpu":
        # Without them onnxruntime finds only libraries that the system knows.
        with contextlib.suppress(Exception):
            onnxruntime.preload_dlls()
    try:
        # By its path, since a large graph keeps its weights in files beside it.
        session = onnxruntime.InferenceSession(str(path), options, providers=_provider_options(wanted, runtime))
    except Exception as error:  # onnxruntime raises classes of its own that share no other base
        raise ModelError(_why_not_loaded(path, folder.label, str(error))) from error
    if wanted != "cpu" and _PROVIDERS[wanted] not in session.get_providers():
        _warn(runtime.provider, _why_no_gpu())
    return session


def _choose(runtime: Runtime) -> str:
    """The provider to ask for: `cpu`, `cuda` or `tensorrt`."""
    if runtime.provider == "cpu":
        return "cpu"
    available = onnxruntime.get_available_providers()
    name = "cuda" if runtime.provider == "auto" else runtime.provider
    if _PROVIDERS[name] in available and _gpus() != 0:
        return name
    # A machine without a GPU is no reason for a warning where nobody asked for one.
    if runtime.provider != "auto" or _gpus() or _CUDA in available:
        _warn(runtime.provider, _why_no_gpu(name))
    return "cpu"


def _provider_options(wanted: str, runtime: Runtime) -> list[Any]:
    if wanted == "cpu":
        return [_CPU]
    memory = {} if runtime.gpu_memory_bytes is None else {"gpu_mem_limit": str(runtime.gpu_memory_bytes)}
    # The arena grows by what is asked for; by default it would double.
    cuda = (_CUDA, {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", **memory})
    if wanted == "cuda":
        return [cuda, _CPU]
    limit = {} if runtime.gpu_memory_bytes is None else {"trt_max_workspace_size": str(runtime.gpu_memory_bytes)}
    half = {"trt_fp16_enable": "1" if runtime.half else "0"}
    return [(_TENSORRT, {"device_id": "0", **half, **limit}), cuda, _CPU]


@functools.cache
def _gpus() -> int | None:
    """How many GPUs the driver shows to this process; None where it cannot say."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    try:
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except AttributeError:
        return None
    return count.value


def _why_no_gpu(name: str = "cuda") -> str:
    if _PROVIDERS[name] not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime knows no {_PROVIDERS[name]} (install dqs[gpu] in an environment of its own)"
    if _gpus() == 0:
        return "no NVIDIA driver shows a GPU to this process"
    return "libraries of CUDA, cuDNN or TensorRT that onnxruntime needs cannot be loaded"


@functools.cache
def _warn(provider: str, reason: str) -> None:
    """Once per process: every network falls back for the same reason."""
    _LOG.warning("The provider %s cannot be used, networks run on the processor: %s.", provider, reason)


def _spec(node: Any) -> TensorSpec:
    kind = _TYPES.get(node.type)
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, None if kind is None else np.dtype(kind), shape)


def _why_not_loaded(path: Path, label: str, error: str) -> str:
    begin = f"The graph {path} of the model {label} does not load: "
    line = error.partition("\n")[0]
    if "opset" in line and "support" in line:
        return begin + "its operator set is newer than the installed onnxruntime: export it with an older opset."
    if "IR version" in line:
        return begin + "its format is newer than the installed onnxruntime: export it with an older onnx."
    unknown = _UNKNOWN_OPERATOR.search(line)
    if unknown:
        return begin + f"the installed onnxruntime lacks the operator {unknown[1]}: export it without."
    if "External data" in line or "External initializer" in line:
        return begin + "a file of weights beside it is missing or cut off: restore it."
    return begin + "restore the file."
