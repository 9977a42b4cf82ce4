"""How networks run: plain values that travel to the processes that run them. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dqs.settings import Settings

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """How networks run in this process.

    Attributes:
        provider: what computes them; `auto` takes the best that this machine has.
        threads: threads inside one run, and of tokenisation.
        gpu_memory_bytes: most memory of the GPU that each network may take; None for no limit.
        half: whether a GPU computes in half precision where the model has a graph for that, and in TensorRT.
    """

    provider: Provider = "cpu"
    threads: int = 1
    gpu_memory_bytes: int | None = None
    half: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Runtime:
        """What the settings say of it."""
        return cls(settings.provider, settings.onnx_threads, settings.gpu_memory_bytes)
