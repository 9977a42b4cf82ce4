"""Networks on a GPU against the processor; skipped where none can be reached."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dqs.inference import sessions
from dqs.inference.importing import Request, import_model
from dqs.inference.sessions import Runtime
from dqs.inference.transformer import Transformer
from dqs.models import ModelFolder
from tests.conftest import ROOT
from tests.unit.networks import write_folder
from tests.unit.test_inference_transformer import TEXTS

TOLERANCE = 1e-3
THRESHOLD = 0.5
HALF_TOLERANCE = 2e-2
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    if not sessions._gpus():
        pytest.skip("no CUDA device can be reached from here")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the installed onnxruntime knows no CUDA: install dqs[gpu] in an environment of its own")


@pytest.fixture
def minilm(tmp_path: Path) -> ModelFolder:
    source = Path(os.environ.get("MINILM_EXPORT", ""))
    if not (source / "model.onnx").is_file():
        pytest.skip("needs MiniLM: set MINILM_EXPORT to the folder that tests.bench.export_minilm wrote")
    return import_model(source, tmp_path, Request(name="minilm", languages=["en"])).folder


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_answers_are_those_of_the_processor(tmp_path: Path, provider: sessions.Provider) -> None:
    folder = write_folder(tmp_path)
    there = Transformer(folder, Runtime(provider, gpu_memory_bytes=512 * MIB))

    assert there.provider == "cuda"
    np.testing.assert_allclose(there.score_texts(TEXTS)[0], Transformer(folder).score_texts(TEXTS)[0], atol=TOLERANCE)


def test_a_real_transformer_and_its_speed(minilm: ModelFolder) -> None:
    texts = [text for text in json.loads((ROOT / "tests/samples/minilm.json").read_text("utf-8"))["texts"] if text]
    here, there = Transformer(minilm), Transformer(minilm, Runtime("cuda", half=False))
    half = Transformer(minilm, Runtime("cuda"))
    expected = here.score_texts(texts)[0]

    found = there.score_texts(texts)[0]

    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    clear = np.abs(expected - THRESHOLD) > TOLERANCE
    np.testing.assert_array_equal((found > THRESHOLD)[clear], (expected > THRESHOLD)[clear])
    np.testing.assert_allclose(half.score_texts(texts)[0], expected, atol=HALF_TOLERANCE)
    for name, model, times in (("processor", here, 4), ("GPU", there, 400), ("GPU, half", half, 400)):
        many = texts * times
        begin = time.perf_counter()
        model.score_texts(many)
        print(f"{name}: {len(many) / (time.perf_counter() - begin):.1f} documents a second")
