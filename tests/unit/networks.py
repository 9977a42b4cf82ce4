"""Tiny classifiers for tests: a tokenizer of whole words, and a graph that averages embeddings.

The logit of a label is the mean over a window's tokens, special ones included,
of a number that `WORDS` gives each word, times `SCALE`. So what a graph must
answer can be computed by hand: see `expected_logits`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import models, normalizers, pre_tokenizers, processors

from dqs.inference.transformer import Shape, Transformer
from dqs.models import ModelFolder, write_model

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("good", "fine", "plain", "word", "bad", "vile", "好", "坏")
HIDDEN = 8
SCALE = 6.0
OPSET = 17
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def embeddings(labels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Table float32[words, hidden] and head float32[hidden, labels]."""
    random = np.random.default_rng(7)
    table = random.normal(0, 1, (len(SPECIALS) + len(WORDS), HIDDEN)).astype(np.float32)
    head = random.normal(0, SCALE, (HIDDEN, labels)).astype(np.float32)
    # The last label likes "bad" and "vile" and nothing else.
    table[:, 0] = 0
    table[len(SPECIALS) + WORDS.index("bad"), 0] = 1
    table[len(SPECIALS) + WORDS.index("vile"), 0] = 2
    head[:, -1] = 0
    head[0, -1] = SCALE
    return table, head


def expected_logits(words: Sequence[str], labels: int) -> NDArray[np.float64]:
    """What the graph answers to one window of these words."""
    table, head = embeddings(labels)
    known = [*SPECIALS, *WORDS]
    ids = [known.index(word) if word in known else 1 for word in ("[CLS]", *words, "[SEP]")]
    mean: NDArray[np.float64] = table[ids].astype(np.float64).mean(axis=0) @ head.astype(np.float64)
    return mean


def write_tokenizer(path: Path, *, truncation: int | None = 4) -> None:
    """A tokenizer.json; it cuts off and fills up as exports often do, which must not matter."""
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    if truncation:
        tokenizer.enable_truncation(truncation)
        tokenizer.enable_padding(length=truncation)
    tokenizer.save(str(path))


def write_graph(
    path: Path,
    *,
    labels: int = 2,
    precision: str = "fp32",
    rows: int | str = "rows",
    tokens: int | str = "tokens",
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    outputs: Sequence[str] = ("logits",),
    shards: bool = False,
    opset: int = OPSET,
    operator: tuple[str, str] = ("", "Identity"),
    free_width: bool = False,
    factor: float = 1.0,
) -> None:
    """A graph.

    Args:
        path: where to.
        labels: numbers that it gives per text.
        precision: `fp32`, `fp16`, or `int8` (activations by the range of a whole batch).
        rows: of a batch; a text for any number.
        tokens: of a sequence, likewise.
        inputs: names of the inputs.
        outputs: names of the outputs.
        shards: keeps every tensor in a file of its own beside the graph.
        opset: that it claims to need.
        operator: domain and name of the operator between head and output.
        free_width: leaves the number of labels open.
        factor: that the head is multiplied by.
    """
    table, head = embeddings(labels)
    kind = FLOATS.get(precision, TensorProto.FLOAT)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = [
        numpy_helper.from_array(table.astype(dtype), "table"),
        numpy_helper.from_array((head * np.float32(factor)).astype(dtype), "head"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "two"),
    ]
    mask = "attention_mask" if "attention_mask" in inputs else "input_ids"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows_of_table"]),
        helper.make_node("Cast", [mask], ["seen"], to=kind),
        helper.make_node("Unsqueeze", ["seen", "two"], ["column"]),
        helper.make_node("Mul", ["rows_of_table", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["seen", "one"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["raw"]),
        helper.make_node(operator[1], ["raw"], ["checked"], domain=operator[0]),
    ]
    if free_width:
        # What is left of the columns is known only when it runs.
        constants.append(numpy_helper.from_array(np.ones(labels, dtype=np.bool_), "all"))
        nodes[-1].output[0] = "wide"
        nodes.append(helper.make_node("Compress", ["wide", "all"], ["checked"], axis=1))
    for output in outputs:
        nodes.append(helper.make_node("Cast", ["checked"], [output], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [rows, tokens]) for name in inputs],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, "width" if free_width else labels])
            for name in outputs
        ],
        constants,
    )
    opsets = [helper.make_opsetid("", opset)]
    if operator[0]:
        opsets.append(helper.make_opsetid(operator[0], 1))
    model = helper.make_model(graph, opset_imports=opsets, producer_name="tests", ir_version=9)
    if shards:
        onnx.save_model(
            model, str(path), save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=50,
            convert_attribute=False,
        )  # fmt: skip
    else:
        onnx.save_model(model, str(path))
    if precision == "int8":
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, reduce_range=True)


def write_export(folder: Path, *, config: dict[str, Any] | None = None, **graph: Any) -> Path:
    """A Hugging Face style export; `config` is put over what its config.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / "model.onnx", **graph)
    write_tokenizer(folder / "tokenizer.json")
    names = ["fine", "rude"] if graph.get("labels", 2) == 2 else [f"l{at}" for at in range(graph["labels"])]
    values = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(at): name for at, name in enumerate(names)},
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "problem_type": "single_label_classification",
    } | (config or {})
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), "utf-8")
    return folder


def write_folder(root: Path, name: str = "tiny", version: str = "1", **graph: Any) -> ModelFolder:
    """A model folder; keys of `Shape` go there, all others to `write_graph`."""
    fields = {key: graph.pop(key) for key in list(graph) if key in Shape.__dataclass_fields__ and key not in _OF_GRAPH}
    languages = graph.pop("languages", ["en", "zh"])
    folder = root / name / version
    folder.mkdir(parents=True)
    labels = tuple(fields.pop("labels", ("fine", "rude")))
    write_graph(folder / "model.onnx", labels=len(labels), **graph)
    write_tokenizer(folder / "tokenizer.json")
    defaults: dict[str, Any] = {"head": "multi_label", "max_tokens": 16, "window_tokens": 8, "stride_tokens": 2}
    shape = Shape(
        labels=labels,
        main_label=fields.pop("main_label", labels[-1]),
        rows=graph.get("rows", 0) if isinstance(graph.get("rows", 0), int) else 0,
        tokens=graph.get("tokens", 0) if isinstance(graph.get("tokens", 0), int) else 0,
        inputs={"ids": "input_ids", "mask": "attention_mask"},
        **(defaults | fields),
    )
    shards = sorted(path.name for path in folder.iterdir() if path.name not in ("model.onnx", "tokenizer.json"))
    files = {"graph": "model.onnx", "tokenizer": "tokenizer.json"}
    return write_model(
        root, name=name, version=version, kind="classifier", languages=languages,
        files=files | {f"graph_data_{at}": shard for at, shard in enumerate(shards)},
        tables={"classifier": shape.to_table()},
    )  # fmt: skip


def write_loaded(root: Path, **graph: Any) -> Transformer:
    """The same, loaded."""
    return Transformer(write_folder(root, **graph))


_OF_GRAPH = frozenset({"precision", "rows", "tokens", "inputs"})
