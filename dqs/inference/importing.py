"""Import of classifiers: a Hugging Face style export in, a model folder out.

    DIR/model.onnx or DIR/onnx/model.onnx     the graph, perhaps with files of weights beside it
    DIR/…/model_fp16.onnx                     the same in half precision, for GPUs, if there is one
    DIR/tokenizer.json
    DIR/config.json                           labels, kind of head, longest sequence
    DIR/tokenizer_config.json, DIR/README.md  read if they are there

Whatever can be read or tried out is not asked for. Nothing is left behind of an import that fails.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dqs.data import parse_language
from dqs.errors import ModelError
from dqs.inference.onnx_file import OnnxFile, read_onnx
from dqs.inference.sessions import HALF_SUFFIX, Runtime, Session, TensorSpec
from dqs.inference.tokens import TOKENIZER_ROLE
from dqs.inference.transformer import GRAPH_ROLE, TABLE, Aggregation, Head, Shape, Task, Transformer
from dqs.models import ModelFolder, check_names, load_model, write_model

KIND = "classifier"
DATA_ROLE = "graph_data"
CARD = "CARD.md"

_GRAPH = "model.onnx"
_HALF = "model_fp16.onnx"
_INPUTS = {
    "input_ids": "ids", "input": "ids", "attention_mask": "mask", "input_mask": "mask", "token_type_ids": "types",
    "segment_ids": "types", "position_ids": "positions",
}  # fmt: skip
_HEADS: dict[str, Head] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
_PAIR_LABELS = frozenset({"entailment", "contradiction", "not_entailment", "not_duplicate", "not_equivalent"})
_BEHIND_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "mpnet"})
"""Their position 0 is behind that of the padding token, so sequences are shorter than `max_position_embeddings`."""
_MOST_TOKENS = 512
_NO_LIMIT = 1_000_000
"""From here on `model_max_length` stands for no limit."""
_STRIDE_SHARE = 8
_TOXIC = re.compile(r"toxic|hate|offens|abus|rude|insult|harm|unsafe|有害|毒|辱骂|攻击|冒犯", re.IGNORECASE)
_NOT = re.compile(r"\b(non|not|no|un)[ _-]?|^(non|not|no)|无|非|不", re.IGNORECASE)
_GOOD = re.compile(r"quality|good|gold|high|clean|educational|keep|优|高质", re.IGNORECASE)
_TRIAL = (
    "The bridge was closed for repairs, so the postman walked the long way round by the mill.",
    "大桥因维修关闭，邮递员只好绕道磨坊。",
    "Short.",
    "Nobody minded much, for letters had always come an hour late, and the miller's dog got used to him in the end.",
)
_TRIAL_REPEATS = 20
_CUT_TOLERANCE = 1e-5
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True)
class Request:
    """What the user says; None and nothing where it is to be read.

    Attributes:
        name: of the model.
        version: of the model.
        task: what the main label is about.
        label: the main label.
        languages: ISO 639-1 codes that it serves; none for all.
        graph: file name of the graph within the export.
        window_tokens: tokens of a window, special ones included.
        aggregation: over windows.
    """

    name: str | None = None
    version: str | None = None
    task: Task = "custom"
    label: str | None = None
    languages: Sequence[str] = ()
    graph: str | None = None
    window_tokens: int | None = None
    aggregation: Aggregation | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import.

    Attributes:
        folder: the model, in place.
        shape: how it is used.
        found: what was read and tried, as pairs of a name and a value, for people.
    """

    folder: ModelFolder
    shape: Shape
    found: tuple[tuple[str, str], ...]


def import_model(
    source: Path,
    root: Path,
    request: Request | None = None,
    check: Callable[[ModelFolder], object] | None = None,
) -> Imported:
    """Makes a model folder of an export.

    Args:
        source: folder of the export.
        root: models folder to write into.
        request: what is not to be read.
        check: looks at the model before it is put in place, and raises what speaks against it.

    Raises:
        ModelError: the export is not complete, is not for single texts, does not run, or the version exists.
    """
    request = request or Request()
    if not source.is_dir():
        raise ModelError(f"{source} is no folder: give the folder of an export, with {_GRAPH} and tokenizer.json.")
    graph = _find_graph(source, request.graph)
    config = _read_json(source / "config.json", needed=True)
    tokenizer = source / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(
            f"{source} has no tokenizer.json: save the tokenizer once more with a fast tokenizer of transformers."
        )
    about = _about(source)
    name = request.name or _default_name(source, config)
    version = request.version or _next_version(root, name)
    check_names(name, version)
    place = root / name / version
    if place.exists():
        raise ModelError(f"The model {name}@{version} is in {root} already: give another --version, or remove it.")
    languages = _languages(request.languages, about.get("language", []))
    described = read_onnx(graph)
    with (
        tempfile.TemporaryDirectory(prefix=".import-", dir=root) as staging,
        _naming(source, folder := Path(staging) / name / version),
    ):
        folder.mkdir(parents=True)
        files = {GRAPH_ROLE: graph.name, **_copy_graph(graph, described, folder, DATA_ROLE)}
        half = graph.with_name(_HALF)
        if described.precision == "fp32" and graph.name == _GRAPH and half.is_file():
            beside = _copy_graph(half, read_onnx(half), folder, DATA_ROLE + HALF_SUFFIX)
            files |= {GRAPH_ROLE + HALF_SUFFIX: half.name, **beside}
        shutil.copyfile(tokenizer, folder / tokenizer.name)
        files[TOKENIZER_ROLE] = tokenizer.name

        def write(shape: Shape) -> ModelFolder:
            return write_model(
                Path(staging),
                name=name,
                version=version,
                kind=KIND,
                languages=languages,
                files=files,
                licence=about.get("license", [""])[0],
                tables={TABLE: shape.to_table()},
            )

        draft = write(Shape(("any",), "multi_label", _MOST_TOKENS, _MOST_TOKENS, 0, main_label="any"))
        shape = _read_shape(source, config, Session(draft, GRAPH_ROLE, Runtime()), described, request)
        shape = _try(write, shape, described)
        if GRAPH_ROLE + HALF_SUFFIX in files and not _halves_agree(write(shape)):
            for role in [role for role in files if HALF_SUFFIX in role]:
                (folder / files.pop(role)).unlink()
        written = write(shape)
        if check is not None:
            check(written)
        found = _found(written, shape, described, about)
        (folder / CARD).write_text(_card(written, shape, found), encoding="utf-8")
        place.parent.mkdir(exist_ok=True)
        try:
            folder.rename(place)
        except OSError as error:
            raise ModelError(f"Cannot write {place} ({error.strerror}): give another --version.") from error
    return Imported(load_model(place), shape, found)


@contextlib.contextmanager
def _naming(source: Path, folder: Path) -> Iterator[None]:
    """Has errors name the export in place of the folder that is gone when they are read."""
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).replace(str(folder), str(source))) from error


# What is in the export.


def _find_graph(source: Path, wanted: str | None) -> Path:
    places = [source, source / "onnx"]
    names = [wanted] if wanted else [_GRAPH]
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    there = sorted(path for place in places for path in place.glob("*.onnx"))
    if wanted is None and len(there) == 1:
        return there[0]
    if not there:
        raise ModelError(
            f"{source} holds no ONNX graph: export the model with `optimum-cli export onnx` or torch.onnx first."
        )
    shown = ", ".join(str(path.relative_to(source)) for path in there)
    raise ModelError(f"{source} has no {names[0]}: choose a graph with --graph, of: {shown}.")


def _copy_graph(graph: Path, described: OnnxFile, folder: Path, role: str) -> dict[str, str]:
    """Copies a graph and its files of weights; returns the latter by role."""
    files = {}
    for number, name in enumerate(described.external):
        if "/" in name or "\\" in name or name in ("", ".", "..") or name == graph.name:
            raise ModelError(f"The graph {graph} keeps weights in {name!r}: export it with its weights beside it.")
        if not (graph.parent / name).is_file():
            raise ModelError(f"The graph {graph} keeps weights in {name}, which is missing: copy it too.")
        shutil.copyfile(graph.parent / name, folder / name)
        files[f"{role}_{number}"] = name
    shutil.copyfile(graph, folder / graph.name)
    return files


def _read_json(path: Path, *, needed: bool = False) -> Mapping[str, Any]:
    if not path.is_file():
        if needed:
            raise ModelError(f"{path.parent} has no {path.name}: save the model's configuration there too.")
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no JSON that can be read: save it again.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is no JSON object: save it again.")
    return data


def _about(source: Path) -> dict[str, list[str]]:
    """`license` and `language` of the head of README.md, as far as they are there."""
    try:
        text = (source / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = {}
    for key in ("license", "language"):
        entry = re.search(rf"^{key}:[ \t]*(.*(?:\n[ \t]*- .*)*)", head[1], re.MULTILINE) if head else None
        values = re.findall(r"[\w.+-]*\w", re.sub(r"^[ \t]*- ", " ", entry[1], flags=re.MULTILINE)) if entry else []
        if values:
            found[key] = values
    return found


def _languages(given: Sequence[str], read: Sequence[str]) -> tuple[str, ...]:
    for code in given:
        if not parse_language(code):
            raise ModelError(f"{code!r} is no ISO 639-1 code of a language: give one such as en or zh.")
    codes = [parse_language(code) for code in given or read]
    return tuple(dict.fromkeys(code for code in codes if code))


def _default_name(source: Path, config: Mapping[str, Any]) -> str:
    given = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2] or source.resolve().name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-._")
    if not name:
        raise ModelError(f"No name can be made of {source.name!r}: give one with --name.")
    return name


def _next_version(root: Path, name: str) -> str:
    there = [path.name for path in (root / name).iterdir() if path.is_dir()] if (root / name).is_dir() else []
    numbers = [int(re.match(r"[0-9]*", version)[0] or 0) for version in there]  # type: ignore[index]
    return str(max(numbers, default=0) + 1)


# What the network is.


def _read_shape(
    source: Path, config: Mapping[str, Any], session: Session, described: OnnxFile, request: Request
) -> Shape:
    labels = _labels(config)
    _refuse_pairs(config, labels or ())
    inputs = _inputs(session)
    ids = inputs["ids"]
    if len(ids.shape) != 2:
        raise ModelError(f"The graph's input {ids.name} has {len(ids.shape)} dimensions instead of rows and tokens.")
    rows, tokens = (size or 0 for size in ids.shape)
    output = _output(session)
    width = output.shape[-1] if output.shape else None
    if width is None and labels is None:
        raise ModelError("Neither config.json (id2label) nor the graph says how many labels there are: add id2label.")
    labels = labels or tuple(f"LABEL_{label}" for label in range(width or 0))
    if width is not None and width != len(labels):
        raise ModelError(
            f"config.json names {len(labels)} labels but the graph gives {width} numbers: correct id2label."
        )
    most = _longest(source, config)
    if tokens:
        most = min(most, tokens)
    window = min(request.window_tokens or _MOST_TOKENS, most)
    return Shape(
        labels=labels,
        head=_head(config, len(labels)),
        max_tokens=most,
        window_tokens=window,
        stride_tokens=window // _STRIDE_SHARE,
        task=request.task,
        main_label=_main_label(request, labels),
        output=output.name,
        aggregation=request.aggregation or ("max" if request.task == "toxicity" else "mean"),
        pad_id=_pad_id(source, config),
        precision=described.precision,
        rows=rows,
        tokens=tokens,
        inputs={role: spec.name for role, spec in inputs.items()},
    )


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels by their numbers; None where config.json leaves them at their default."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels") or config.get("_num_labels")
        return tuple(f"LABEL_{label}" for label in range(count)) if isinstance(count, int) else None
    try:
        by_number = {int(number): str(label) for number, label in named.items()}
    except (AttributeError, ValueError) as error:
        raise ModelError("id2label in config.json does not map numbers to labels: correct it.") from error
    if sorted(by_number) != list(range(len(by_number))) or len(set(by_number.values())) != len(by_number):
        raise ModelError("id2label in config.json leaves out numbers or names a label twice: correct it.")
    return tuple(by_number[number] for number in range(len(by_number)))


def _refuse_pairs(config: Mapping[str, Any], labels: Sequence[str]) -> None:
    words = {label.lower().replace("-", "_").replace(" ", "_") for label in labels}
    activation = config.get("sentence_transformers")
    if words & _PAIR_LABELS or (isinstance(activation, dict) and "activation_fn" in activation):
        reason = f"its labels are {', '.join(labels)}" if words & _PAIR_LABELS else "it is a cross-encoder"
        raise ModelError(f"The model compares pairs of texts ({reason}), and documents come alone: take another one.")
    for architecture in config.get("architectures") or ():
        if "ForSequenceClassification" not in str(architecture) and "For" in str(architecture):
            raise ModelError(
                f"The model is a {architecture}, which gives no labels of texts: export a ForSequenceClassification."
            )


def _inputs(session: Session) -> dict[str, TensorSpec]:
    found: dict[str, TensorSpec] = {}
    for spec in session.input_specs:
        role = _INPUTS.get(spec.name)
        if role is None or role in found or spec.dtype is None:
            raise ModelError(
                f"The graph needs the input {spec.name}, which single texts do not give; DQS gives "
                "input_ids, attention_mask, token_type_ids and position_ids."
            )
        found[role] = spec
    if "ids" not in found:
        raise ModelError("The graph has no input input_ids: export it with the names of transformers.")
    return found


def _output(session: Session) -> TensorSpec:
    specs = {spec.name: spec for spec in session.output_specs}
    chosen = specs.get("logits") or (session.output_specs[0] if len(specs) == 1 else None)
    if chosen is None:
        raise ModelError(f"The graph has no output logits, only {', '.join(specs)}: export it with its head.")
    if len(chosen.shape) > 2:
        raise ModelError(
            f"The graph's output {chosen.name} has {len(chosen.shape)} dimensions, so it labels tokens instead of "
            "texts: export a model with a head for texts."
        )
    return chosen


def _head(config: Mapping[str, Any], labels: int) -> Head:
    problem = config.get("problem_type")
    if problem is None:
        # As transformers decides it.
        return "regression" if labels == 1 else "single_label"
    if problem not in _HEADS:
        raise ModelError(f"problem_type in config.json is {problem!r}; DQS knows: {', '.join(_HEADS)}.")
    if labels == 1 and problem == "single_label_classification":
        return "multi_label"  # one probability by itself
    return _HEADS[problem]


def _longest(source: Path, config: Mapping[str, Any]) -> int:
    limits = [_MOST_TOKENS]
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if isinstance(positions, int) and positions > 0:
        behind = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _BEHIND_PADDING else 0
        limits.append(positions - behind)
    stated = _read_json(source / "tokenizer_config.json").get("model_max_length")
    if isinstance(stated, int | float) and 0 < stated < _NO_LIMIT:
        limits.append(int(stated))
    return min(limits)


def _pad_id(source: Path, config: Mapping[str, Any]) -> int:
    for value in (config.get("pad_token_id"), _read_json(source / "tokenizer.json").get("padding")):
        if isinstance(value, int):
            return max(value, 0)
        if isinstance(value, dict) and isinstance(value.get("pad_id"), int):
            return int(value["pad_id"])
    return 0


def _main_label(request: Request, labels: Sequence[str]) -> str:
    if request.label is not None:
        if request.label not in labels:
            raise ModelError(f"The model has no label {request.label!r}; it has: {', '.join(labels)}.")
        return request.label
    if request.task == "custom" or len(labels) == 1:
        return labels[-1]
    pattern = _TOXIC if request.task == "toxicity" else _GOOD
    fitting = [label for label in labels if pattern.search(label) and not _NOT.search(label)]
    # Where one of them is exactly the task, further ones are its kinds.
    exact = [label for label in fitting if label.lower() in ("toxic", "toxicity", "quality")]
    if len(exact or fitting) != 1:
        raise ModelError(
            f"Which label is about {request.task} cannot be read: name it with --label, of: {', '.join(labels)}."
        )
    return (exact or fitting)[0]


# Whether it runs.


def _try(write: Callable[[Shape], ModelFolder], shape: Shape, described: OnnxFile) -> Shape:
    """Runs texts of all lengths; finds out whether a window's answer depends on others in its batch."""
    texts = [*_TRIAL, " ".join(_TRIAL * _TRIAL_REPEATS)]
    together, alone = _scores(Transformer(write(shape)), texts)
    if not np.isfinite(together).all():
        raise ModelError("The graph answers the trial batch with what is no number: export it in a higher precision.")
    # Such operators bring activations to 8 bits by the range of a whole batch.
    by_batch = any("DynamicQuantize" in operator for operator in described.operators)
    differs = bool(np.abs(together - alone).max() > _CUT_TOLERANCE)
    return replace(shape, alone=shape.rows != 1 and (by_batch or differs))


def _scores(model: Transformer, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    try:
        together, _ = model.score_texts(texts)
        alone = [model.score_texts([text])[0] for text in texts]
    except ModelError:
        raise
    except Exception as error:  # onnxruntime raises classes of its own that share no other base
        reason = str(error).partition("\n")[0][:300]
        raise ModelError(f"The graph does not run with texts of this tokenizer and length: {reason}") from error
    return together, cast(NDArray[np.float32], np.concatenate(alone))


def _halves_agree(folder: ModelFolder) -> bool:
    """Whether the graph in half precision answers as the other one does."""
    half = next(file for file in folder.files if file.role == GRAPH_ROLE + HALF_SUFFIX)
    files = tuple(replace(half, role=GRAPH_ROLE) if file.role == GRAPH_ROLE else file for file in folder.files)
    try:
        swapped, _ = Transformer(replace(folder, files=files)).score_texts(_TRIAL)
        whole, _ = Transformer(folder).score_texts(_TRIAL)
    except Exception:  # what does not run is left out, as what answers otherwise is
        return False
    return bool(np.abs(swapped - whole).max() <= _HALF_TOLERANCE)


# What is said of it.


def _found(
    folder: ModelFolder, shape: Shape, described: OnnxFile, about: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, str], ...]:
    size = sum((folder.path / file.name).stat().st_size for file in folder.files)
    batch = " x ".join(str(count) if count else "any" for count in (shape.rows, shape.tokens))
    domains = "".join(f", {domain} {version}" for domain, version in sorted(described.domains.items()))
    windows = f"{shape.window_tokens} tokens, {shape.stride_tokens} shared with the next, at most {shape.max_windows}"
    return (
        ("head", shape.head),
        ("labels", ", ".join(shape.labels)),
        ("main label", f"{shape.main_label} (task {shape.task})"),
        ("languages", ", ".join(folder.languages) or "all (the export names none; --language limits them)"),
        ("inputs", ", ".join(shape.inputs.values())),
        ("output", shape.output),
        ("batches", f"{batch} tokens" + (", one window at a time" if shape.alone else "")),
        ("windows", f"{windows}; {shape.aggregation} over windows"),
        ("precision", shape.precision + (", half for GPUs" if folder.has_file(GRAPH_ROLE + HALF_SUFFIX) else "")),
        ("opset", f"{described.opset}{domains}"),
        ("producer", described.producer or "not stated"),
        ("licence", about.get("license", ["not stated"])[0]),
        ("size", f"{size / 1e6:.1f} MB in {len(folder.files)} files"),
    )


def _card(folder: ModelFolder, shape: Shape, found: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(f"| {name} | {value.replace('|', '/')} |" for name, value in found)
    return f"""# {folder.label}

Imported with `dqs models import`. The table was read from the export and tried out; the rest is to be written by
whoever knows the model.

| | |
|---|---|
{rows}

## Training data

Not stated.

## Held-out results

None. `dqs models eval` does not measure imported models.

## What it must not be used for

Not stated. {"Values" if shape.head == "regression" else "Probabilities"} are as the network gives them, not calibrated.
"""
