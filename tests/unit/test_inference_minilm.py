"""A real transformer: MiniLM-L6 as `tests.bench.export_minilm` exports it, against scores that torch gave."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dqs.inference.importing import Request, import_model
from dqs.inference.transformer import Transformer
from tests.conftest import ROOT

REFERENCE = ROOT / "tests" / "samples" / "minilm.json"


@pytest.fixture(scope="module")
def export() -> Path:
    folder = Path(os.environ.get("MINILM_EXPORT", ""))
    if not (folder / "model.onnx").is_file():
        pytest.skip("needs MiniLM: set MINILM_EXPORT to the folder that tests.bench.export_minilm wrote")
    return folder


@pytest.mark.parametrize(
    ("graph", "tolerance"), [("model.onnx", 1e-3), ("model_plain.onnx", 1e-3), ("model_fp16.onnx", 2e-2)]
)
def test_scores_are_those_of_torch(export: Path, tmp_path: Path, graph: str, tolerance: float) -> None:
    reference = json.loads(REFERENCE.read_text("utf-8"))
    imported = import_model(export, tmp_path, Request(name="minilm", graph=graph, languages=["en"]))
    model = Transformer(imported.folder)

    scores, spans = model.score_texts(reference["texts"])

    assert list(model.labels) == reference["labels"]
    assert imported.shape.head == "multi_label"
    np.testing.assert_allclose(scores, reference["scores"], atol=tolerance)
    assert spans.tolist() == [[0, len(text)] for text in reference["texts"]]
    parts = np.concatenate([model.score_texts([text])[0] for text in reference["texts"]])
    np.testing.assert_allclose(parts, scores, atol=1e-5)
