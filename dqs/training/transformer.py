"""Fine-tuning of a small transformer for toxicity, and its export for the second look.

The network is an encoder, the mean of its last layer over the tokens of a text,
and one linear layer: `toxic` and then attributes, all as log-odds. Where there is no encoder,
a network over characters (`dqs.training.characters`) is trained in its place. Of attributes
only annotated rows count. As for n-grams every source has an intercept of
its own that is thrown away. Token embeddings stay as they are.

Needs the extra `finetune` (torch, transformers), which serving never does. Runs on a
GPU where there is one. The exported weights are 8-bit integers per output
channel, multiplied by their scale when the graph is loaded: the file is a quarter as
large, the arithmetic stays that of float32, and so no answer depends on its batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModel

from dqs.errors import ConfigError
from dqs.inference.onnx_file import read_onnx
from dqs.inference.symbols import name_symbols
from dqs.scorers.toxicity import SECOND_LABEL
from dqs.training.characters import CharacterNetwork, read_characters
from dqs.training.toxicity import RECIPES, Recipe
from dqs.training.toxicity_data import ATTRIBUTE_COLUMNS, Rows, disguised_rows, identity_rows, read_data

_OPSET: Final = 17
_LEAST_WEIGHTS: Final = 1 << 14
"""Smaller tensors are not worth 8 bits."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a network is fine-tuned.

    Attributes:
        attributes: what it learns besides.
        source_rows: most rows taken of a source.
        rare_toxic: sources of which all toxic rows are taken besides.
        repeats: sources whose rows are taken several times, and how often.
        clean_source_rows: paragraphs taken of each clean source.
        clean_words: words of a paragraph, at most.
        identity_repeats: how often each neutral sentence about a group of people is taken.
        disguised_share: share of rows whose words are disguised.
        tokens: of a text, at most; longer ones are cut.
        batch_rows: texts in one step.
        epochs: passes over the rows.
        rate: highest learning rate of the network.
        intercept_rate: that of the sources' intercepts.
        attribute_weight: of the attributes' loss.
    """

    attributes: tuple[str, ...] = ("insult", "obscene", "threat", "identity_attack")
    source_rows: Mapping[str, int] = field(
        default_factory=lambda: {
            "davidson": 4000,
            "paradetox": 5000,
            "jigsaw_civil_comments_toxic_subset": 1500,
            "paradetox_cannot_rewrite": 1000,
            "toxic_spans_civil_comments": 12000,
            "tweeteval_hate_hateval2019": 5000,
            "wiki_talk_context_toxicity": 3000,
        }
    )
    rare_toxic: tuple[str, ...] = ("wiki_talk_context_toxicity",)
    repeats: Mapping[str, int] = field(default_factory=lambda: {"hatemoji_build": 3})
    clean_source_rows: int = 350
    clean_words: int = 50
    identity_repeats: int = 3
    disguised_share: float = 0.12
    tokens: int = 64
    batch_rows: int = 32
    epochs: float = 1.0
    rate: float = 6e-5
    intercept_rate: float = 3e-3
    attribute_weight: float = 0.3


CHARACTERS: Final = Plan(
    attributes=(),
    source_rows={},
    rare_toxic=(),
    repeats={},
    clean_source_rows=1200,
    identity_repeats=10,
    disguised_share=0.25,
    tokens=128,
    batch_rows=64,
    epochs=4.0,
    rate=1.5e-3,
)
"""The plan of a network over characters."""


class Network(torch.nn.Module):
    """An encoder, the mean over tokens, and a linear layer.

    Args:
        base: folder of a Hugging Face encoder: config.json, model.safetensors.
        outputs: numbers of the last layer.
    """

    def __init__(self, base: Path, outputs: int) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(base, add_pooling_layer=False, attn_implementation="sdpa")
        self.bert.embeddings.requires_grad_(False)
        self.head = torch.nn.Linear(self.bert.config.hidden_size, outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32[batch, outputs], of int64[batch, tokens] ids and mask."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        scores: torch.Tensor = self.head((hidden * mask).sum(1) / mask.sum(1))
        return scores


def fine_tune(
    base: Path | None,
    data: Path,
    output: Path,
    language: str = "en",
    *,
    start: Path | None = None,
    epochs: float | None = None,
    rate: float | None = None,
    plan: Plan | None = None,
    seed: int = 3,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Fine-tunes an encoder on the rows of the split `train` that may ship, and exports it.

    Args:
        base: folder of the encoder, with its tokenizer.json; None trains a network over characters from nothing.
        data: folder of `toxicity_<language>.parquet` and `clean_<language>.parquet`.
        output: folder for `model.onnx`, `tokenizer.json` and `classifier.json`, which `add_second_look` takes;
            `network.pt` is kept beside them.
        language: ISO 639-1 code.
        start: what to go on from: `network.pt` of an earlier run, or an exported graph, such as `second.onnx`
            of a model that ships.
        epochs: replaces that of the plan.
        rate: replaces that of the plan.
        plan: replaces the default plan.
        seed: of everything that is drawn.
        progress: is told how far it is.

    Raises:
        ConfigError: the data do not fit, or `base` is no such folder.
    """
    plan = plan or (Plan() if base else CHARACTERS)
    plan = replace(plan, epochs=epochs or plan.epochs, rate=rate or plan.rate)
    if base and (not (base / "config.json").is_file() or not (base / "tokenizer.json").is_file()):
        raise ConfigError(f"{base} has no config.json and tokenizer.json: give the folder of an encoder")
    rows, family = _training_rows(data, language, plan, seed)
    texts = [name_symbols(text.decode()) for text in rows.texts]
    torch.manual_seed(seed)
    network: torch.nn.Module
    if base:
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        network = Network(base, 1 + len(plan.attributes))
    else:
        tokenizer, characters, sounds = read_characters(texts)
        network = CharacterNetwork(characters, sounds, 1 + len(plan.attributes))
    ids = [_cut(encoding.ids, plan.tokens) for encoding in tokenizer.encode_batch(texts)]
    if start is not None:
        try:
            state = read_graph(start) if start.suffix == ".onnx" else torch.load(start, weights_only=True)
            network.load_state_dict(state)
        except (OSError, KeyError, RuntimeError, UnpicklingError) as error:
            raise ConfigError(
                f"{start} holds no network of this kind: give the network.pt of an earlier run, or the graph of one"
            ) from error
    _train(network, ids, rows, family, plan, seed, progress)
    output.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), output / "network.pt")
    tokenizer.save(str(output / "tokenizer.json"))
    export(network, output, plan)
    return output


def export(network: torch.nn.Module, output: Path, plan: Plan) -> None:
    """Writes `model.onnx` with 8-bit weights, and `classifier.json`."""
    network = network.cpu().eval()
    example = torch.ones((2, 8), dtype=torch.int64)
    wide = output / "wide.onnx"
    torch.onnx.export(
        network,
        (example, example),
        str(wide),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={
            "input_ids": {0: "batch", 1: "tokens"},
            "attention_mask": {0: "batch", 1: "tokens"},
            "logits": {0: "batch"},
        },
        opset_version=_OPSET,
        dynamo=False,
    )
    model = onnx.load(str(wide))
    narrow(model)
    onnx.save(model, str(output / "model.onnx"))
    wide.unlink()
    table: dict[str, Any] = {
        "task": "toxicity",
        "labels": [SECOND_LABEL, *plan.attributes],
        "main_label": SECOND_LABEL,
        "head": "multi_label",
        "output": "logits",
        "max_tokens": 512,
        "window_tokens": 192,
        "stride_tokens": 16,
        "max_windows": 8,
        "aggregation": "max",
        "pad_id": 0,
        "precision": "int8",
        "rows": 0,
        "tokens": 0,
        "alone": False,
        "inputs": {"ids": "input_ids", "mask": "attention_mask"},
    }
    (output / "classifier.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def narrow(model: onnx.ModelProto) -> None:
    """Stores large float32 matrices as int8 with a scale per last-axis channel; per row where they are looked up.

    The graph multiplies them out again; onnxruntime does so once, when it loads the graph.
    """
    looked_up = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    nodes = []
    kept = []
    for tensor in model.graph.initializer:
        size = math.prod(tensor.dims)
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or size < _LEAST_WEIGHTS:
            kept.append(tensor)
            continue
        weights = numpy_helper.to_array(tensor)
        axis = 1 if tensor.name in looked_up else 0
        scale = np.maximum(np.abs(weights).max(axis=axis, keepdims=True), 1e-12).astype(np.float32) / np.float32(127)
        whole = np.rint(weights / scale).astype(np.int8)
        kept.append(numpy_helper.from_array(whole, f"{tensor.name}_int8"))
        kept.append(numpy_helper.from_array(scale, f"{tensor.name}_scale"))
        wide = f"{tensor.name}_wide"
        nodes.append(helper.make_node("Cast", [f"{tensor.name}_int8"], [wide], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [wide, f"{tensor.name}_scale"], [tensor.name]))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    onnx.checker.check_model(model)


def read_graph(graph: Path) -> dict[str, torch.Tensor]:
    """The weights of an exported network by the names of its parameters; those of 8 bits are multiplied out.

    Raises:
        OSError: files of weights cannot be read.
        ModelError: the file is no graph.
    """
    read_onnx(graph)
    model = onnx.load(str(graph))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {
        name.removesuffix("_int8"): value * stored[f"{name.removesuffix('_int8')}_scale"]
        if name.endswith("_int8")
        else value
        for name, value in stored.items()
        if not name.endswith("_scale")
    }
    for node in model.graph.node:
        # The exporter turns the matrices of linear layers round and gives them numbers for names.
        if node.op_type == "MatMul" and node.input[1] in weights:
            layer = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{layer}.weight"] = weights.pop(node.input[1]).T
    return {name: torch.tensor(value) for name, value in weights.items()}


def _training_rows(data: Path, language: str, plan: Plan, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Rows in random order, and int64[n]: the intercept of each, 0 for those that have none."""
    rng = np.random.default_rng(seed)
    labelled, paragraphs = read_data(data, None, language, seed)
    labelled = labelled.take(labelled.ship & (labelled.splits == "train"))
    if paragraphs is None or not len(labelled):
        raise ConfigError(f"{data} needs labelled rows of the split train and clean text in {language!r}")
    recipe: Recipe = RECIPES.get(language, Recipe())
    chosen = np.zeros(len(labelled), dtype=np.bool_)
    for source in np.unique(labelled.sources).tolist():
        of_source = np.flatnonzero(labelled.sources == source)
        chosen[rng.permutation(of_source)[: plan.source_rows.get(source, of_source.size)]] = True
        if source in plan.rare_toxic:
            chosen[of_source[labelled.labels[of_source] == 1]] = True
    times = np.array([plan.repeats.get(source, 1) for source in labelled.sources.tolist()])
    labelled = labelled.pick(np.repeat(np.flatnonzero(chosen), times[chosen]))
    clean = np.zeros(len(paragraphs), dtype=np.bool_)
    for source in np.unique(paragraphs.sources[paragraphs.ship]).tolist():
        clean[rng.permutation(np.flatnonzero(paragraphs.sources == source))[: plan.clean_source_rows]] = True
    prose = paragraphs.take(clean)
    cut = [" ".join(text.decode().split()[: plan.clean_words]).encode() for text in prose.texts]
    prose = Rows(cut, prose.labels, prose.sources, prose.splits, prose.ship, prose.attributes)
    rows = Rows.join([labelled, prose, *[identity_rows(language)] * plan.identity_repeats])
    copies, copied = disguised_rows(rows, language, plan.disguised_share, seed)
    texts = list(rows.texts)
    for at, text in zip(copied.tolist(), copies.texts, strict=True):
        texts[at] = text
    families = [
        "" if at >= len(labelled) or source in recipe.reference_sources else recipe.same_intercept.get(source, source)
        for at, source in enumerate(rows.sources.tolist())
    ]
    numbers = {name: number for number, name in enumerate(sorted({"", *families}))}
    order = rng.permutation(len(rows))
    family = np.array([numbers[families[i]] for i in order.tolist()], dtype=np.int64)
    return replace(rows, texts=texts).pick(order), family


def _cut(ids: list[int], tokens: int) -> list[int]:
    return ids if len(ids) <= tokens else [*ids[: tokens - 1], ids[-1]]


def _batches(ids: list[list[int]], plan: Plan, rng: np.random.Generator) -> list[list[int]]:
    """Batches of texts of similar length, in random order."""
    order = rng.permutation(len(ids))
    batches: list[list[int]] = []
    stretch = plan.batch_rows * 64
    for at in range(0, len(ids), stretch):
        part = sorted(order[at : at + stretch].tolist(), key=lambda i: len(ids[i]))
        found = [part[i : i + plan.batch_rows] for i in range(0, len(part), plan.batch_rows)]
        batches += [found[i] for i in rng.permutation(len(found)).tolist()]
    return batches


def _train(
    network: torch.nn.Module,
    ids: list[list[int]],
    rows: Rows,
    family: NDArray[np.int64],
    plan: Plan,
    seed: int,
    progress: Callable[[str], None],
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device).train()
    intercepts = torch.nn.Parameter(torch.zeros(int(family.max()) + 1, device=device))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {"params": weights, "lr": plan.rate, "weight_decay": 0.01},
        {"params": [intercepts], "lr": plan.intercept_rate, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    columns = [list(ATTRIBUTE_COLUMNS).index(name) for name in plan.attributes]
    targets = np.concatenate([rows.labels[:, None], rows.attributes[:, columns]], axis=1).astype(np.float32)
    rng = np.random.default_rng(seed)
    batches = [batch for _ in range(math.ceil(plan.epochs)) for batch in _batches(ids, plan, rng)]
    batches = batches[: round(len(batches) * plan.epochs / math.ceil(plan.epochs))]
    loss_of = functional.binary_cross_entropy_with_logits
    begin, mean = time.monotonic(), 0.0
    for step, batch in enumerate(batches):
        factor = min(1.0, (step + 1) / 100) * max(0.02, 1 - step / len(batches))
        optimiser.param_groups[0]["lr"] = plan.rate * factor
        optimiser.param_groups[1]["lr"] = plan.intercept_rate * factor
        longest = max(len(ids[i]) for i in batch)
        inputs = torch.zeros((len(batch), longest), dtype=torch.int64)
        mask = torch.zeros_like(inputs)
        for row, i in enumerate(batch):
            inputs[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        scores = network(inputs.to(device), mask.to(device))
        target = torch.tensor(targets[batch], device=device)
        group = torch.tensor(family[batch], device=device)
        own = (group > 0).float()
        loss = loss_of(scores[:, 0] + intercepts[group] * own, target[:, 0])
        known = (target[:, 1:] >= 0).float()
        extra = loss_of(scores[:, 1:], target[:, 1:].clamp(min=0), reduction="none") * known
        loss = loss + plan.attribute_weight * extra.sum() / known.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        mean += (loss.item() - mean) * max(0.02, 1 / (step + 1))
        if step % 50 == 49 or step + 1 == len(batches):
            progress(f"step {step + 1} of {len(batches)}, loss {mean:.3f}, {time.monotonic() - begin:.0f} s")
