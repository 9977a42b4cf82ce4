"""Transformers that classify texts: an exported graph, its tokenizer, and how the two are used.

A text becomes one or more windows of tokens; windows of about the same length
run together; a text's answer is the greatest or the mean of its windows'. How
batches are cut changes an answer by less than 1e-5.

The table of model.toml that describes such a model:

    [classifier]
    task = "custom"                 # or "toxicity", "quality": which way its main label points
    labels = ["fine", "rude"]       # in the order of the graph's output
    main_label = "rude"             # decides the span; the one that a task is about
    head = "single_label"           # or "multi_label", "regression"
    output = "logits"
    max_tokens = 512                # of one sequence of the graph, special tokens included
    window_tokens = 256             # of one window, special tokens included
    stride_tokens = 32              # that a window shares with the next one
    max_windows = 64                # of one text, spread evenly over it; 0 for all
    aggregation = "max"             # over windows, label by label; or "mean"
    pad_id = 0
    precision = "fp32"              # of the weights: "fp16", "int8", …
    rows = 0                        # of a batch, where the graph takes no other number; else 0
    tokens = 0                      # of a sequence, likewise
    alone = false                   # true where a window's answer depends on others in its batch
    range = [0.0, 1.0]              # of the values of a regression, which are cut off there

    [classifier.inputs]             # names in the graph; only ids must be there
    ids = "input_ids"
    mask = "attention_mask"
    types = "token_type_ids"
    positions = "position_ids"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from dqs.errors import ModelError
from dqs.inference.sessions import Runtime, Session, TensorSpec
from dqs.inference.tokens import Tokenizer, Windows
from dqs.models import ModelFolder
from dqs.text import TextBatch

Head = Literal["single_label", "multi_label", "regression"]
Aggregation = Literal["max", "mean"]
Task = Literal["toxicity", "quality", "custom"]

TABLE: Final = "classifier"
GRAPH_ROLE: Final = "graph"
HEADS: Final = ("single_label", "multi_label", "regression")
AGGREGATIONS: Final = ("max", "mean")
TASKS: Final = ("toxicity", "quality", "custom")
INPUTS: Final = ("ids", "mask", "types", "positions")

_CPU_RUN_TOKENS = 2048
"""Larger batches leave the caches of a core, smaller ones pay for each call."""
_GPU_RUN_TOKENS = 65_536
_PADDING_SHARE = 0.15
_MAX_WINDOWS = 64
_CPU = Runtime()


@dataclass(frozen=True, slots=True)
class Shape:
    """What `[classifier]` says; see this module's beginning for the meaning of each key."""

    labels: tuple[str, ...]
    head: Head
    max_tokens: int
    window_tokens: int
    stride_tokens: int
    task: Task = "custom"
    main_label: str = ""
    output: str = "logits"
    max_windows: int = _MAX_WINDOWS
    aggregation: Aggregation = "max"
    pad_id: int = 0
    precision: str = "fp32"
    rows: int = 0
    tokens: int = 0
    alone: bool = False
    range: tuple[float, float] = (-math.inf, math.inf)
    inputs: Mapping[str, str] = field(default_factory=lambda: {"ids": "input_ids", "mask": "attention_mask"})

    @property
    def main(self) -> int:
        """Index of the main label."""
        return self.labels.index(self.main_label)

    def to_table(self) -> dict[str, Any]:
        """As `[classifier]` of model.toml."""
        table: dict[str, Any] = {
            "task": self.task, "labels": list(self.labels), "main_label": self.main_label, "head": self.head,
            "output": self.output, "max_tokens": self.max_tokens, "window_tokens": self.window_tokens,
            "stride_tokens": self.stride_tokens, "max_windows": self.max_windows, "aggregation": self.aggregation,
            "pad_id": self.pad_id, "precision": self.precision, "rows": self.rows, "tokens": self.tokens,
            "alone": self.alone,
        }  # fmt: skip
        if self.head == "regression" and all(map(math.isfinite, self.range)):
            table["range"] = list(self.range)
        table["inputs"] = dict(self.inputs)
        return table


def read_shape(folder: ModelFolder) -> Shape:
    """Reads `[classifier]`.

    Raises:
        ModelError: a key is missing, or its value is of another type, out of range or does not fit another one.
    """
    table = folder.table(TABLE)

    def refuse(key: str, rule: str) -> ModelError:
        return ModelError(f"The model {folder.label}: {key} in [{TABLE}] of its model.toml must be {rule}.")

    def number(key: str, low: int, default: int | None = None) -> int:
        value = table.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise refuse(key, f"a whole number from {low} on")
        return value

    def choice(key: str, allowed: Sequence[str], default: str | None = None) -> Any:
        value = table.get(key, default)
        if value not in allowed:
            raise refuse(key, f"one of {', '.join(allowed)}")
        return value

    def text(key: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            raise refuse(key, "a text")
        return value

    labels = table.get("labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise refuse("labels", "a list of texts")
    if len(set(labels)) != len(labels):
        raise refuse("labels", "a list of different texts")
    main_label = text("main_label", labels[-1])
    if main_label not in labels:
        raise refuse("main_label", "one of labels")
    inputs = table.get("inputs", {"ids": "input_ids", "mask": "attention_mask"})
    if not isinstance(inputs, dict) or "ids" not in inputs or not set(inputs) <= set(INPUTS):
        raise refuse("inputs", f"a table with ids and perhaps {', '.join(INPUTS[1:])}")
    limits = table.get("range", [-math.inf, math.inf])
    if (
        not isinstance(limits, list)
        or len(limits) != 2
        or not all(isinstance(limit, int | float) for limit in limits)
        or not limits[0] < limits[1]
    ):
        raise refuse("range", "two numbers, the smaller one first")
    alone = table.get("alone", False)
    if not isinstance(alone, bool):
        raise refuse("alone", "true or false")
    max_tokens = number("max_tokens", 3)
    shape = Shape(
        labels=tuple(labels),
        head=choice("head", HEADS),
        max_tokens=max_tokens,
        window_tokens=number("window_tokens", 3, max_tokens),
        stride_tokens=number("stride_tokens", 0, 0),
        task=choice("task", TASKS, "custom"),
        main_label=main_label,
        output=text("output", "logits"),
        max_windows=number("max_windows", 0, _MAX_WINDOWS),
        aggregation=choice("aggregation", AGGREGATIONS, "max"),
        pad_id=number("pad_id", 0, 0),
        precision=text("precision", "fp32"),
        rows=number("rows", 0, 0),
        tokens=number("tokens", 0, 0),
        alone=alone,
        range=(float(limits[0]), float(limits[1])),
        inputs={str(key): str(value) for key, value in inputs.items()},
    )
    if shape.head == "single_label" and len(labels) == 1:
        raise refuse("head", "multi_label or regression, since there is one label")
    if shape.window_tokens > (shape.tokens or max_tokens):
        raise refuse("window_tokens", f"at most {shape.tokens or max_tokens}, as long as a sequence of the graph")
    return shape


class Transformer:
    """One model folder, loaded. Thread-safe.

    Args:
        folder: the model.
        runtime: how its graph runs.
        run_tokens: tokens that run together, padding included; None for what suits the provider.
        graph_role: which of the model's files is the graph.

    Attributes:
        labels: what the columns of the scores are.
        languages: ISO 639-1 codes that it serves.
        shape: what model.toml says of it.
        special_tokens: how many of the tokens of every window are special ones.
        provider: what computes it: `cpu`, `cuda` or `tensorrt`.

    Raises:
        ModelError: model.toml, graph and tokenizer do not load or do not fit each other.
    """

    def __init__(
        self,
        folder: ModelFolder,
        runtime: Runtime = _CPU,
        *,
        run_tokens: int | None = None,
        graph_role: str = GRAPH_ROLE,
    ) -> None:
        self.shape = read_shape(folder)
        self.labels = self.shape.labels
        self.languages = frozenset(folder.languages)
        self._label = folder.label
        self._tokenizer = Tokenizer(folder, runtime.threads)
        self._session = Session(folder, graph_role, runtime)
        self.special_tokens = self._tokenizer.special_tokens
        self.provider = self._session.provider
        self._run_tokens = run_tokens or (_CPU_RUN_TOKENS if self.provider == "cpu" else _GPU_RUN_TOKENS)
        self._capacity = self.shape.window_tokens - self.special_tokens
        if self._capacity <= self.shape.stride_tokens:
            raise ModelError(
                f"The model {folder.label}: stride_tokens in [{TABLE}] of its model.toml must be less than the "
                f"{self._capacity} tokens that a window has room for."
            )
        self._inputs = _match_inputs(folder, self.shape, self._session)
        _check_output(folder, self.shape, self._session)
        self._check_vocabulary(folder)

    def _check_vocabulary(self, folder: ModelFolder) -> None:
        """Has the graph look up the last token, which else fails when a text first holds it."""
        last = np.array([self._tokenizer.last_id], dtype=np.int32)
        one = np.ones(1, dtype=np.int64)
        window = Windows(last, np.array([0, 1]), np.zeros(1, dtype=np.int64), one, np.zeros((1, 2), dtype=np.int32))
        try:
            self._run(window, np.zeros(1, dtype=np.int64))
        except ModelError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own that share no other base
            raise ModelError(
                f"The tokenizer of the model {folder.label} knows tokens up to {last[0]}, its graph does not run on "
                "that one: export graph and tokenizer of the same model."
            ) from error

    def score_texts(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scores whole texts.

        Args:
            texts: the texts; an empty one has a score too, which means nothing.

        Returns:
            float32[n, labels]: probability per label, 0 to 1, or the value of a regression; NaN where
            the network's answer is no number. int32[n, 2]: first and past-the-last code point of the
            window in which the main label is greatest.
        """
        windows = self.windows(texts)
        per_window = self.score_windows(windows)
        scores = _aggregate(per_window, windows.window_offsets, self.shape.aggregation)
        return scores, windows.span[_deciding(per_window[:, self.shape.main], windows.window_offsets)]

    def score_documents(
        self, batch: TextBatch, documents: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scores documents of a batch as `score_texts` does.

        Args:
            batch: the texts.
            documents: int64[n]; indices into the batch.
        """
        return self.score_texts([batch.text(document) for document in documents.tolist()])

    def windows(self, texts: Sequence[str], *, spans: bool = True) -> Windows:
        """Tokenises texts and cuts them into windows, as model.toml says.

        Args:
            texts: the texts.
            spans: whether the code points of the windows are wanted.
        """
        shape = self.shape
        return self._tokenizer.windows(texts, self._capacity, shape.stride_tokens, most=shape.max_windows, spans=spans)

    def score_windows(self, windows: Windows) -> NDArray[np.float32]:
        """Runs the graph: float32[windows, labels], probabilities or values."""
        logits = np.empty((len(windows), len(self.labels)), dtype=np.float32)
        for rows in self.runs(windows.length):
            logits[rows] = self._run(windows, rows)
        return _activate(logits, self.shape)

    def runs(self, lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cuts windows into runs: those of about the same length together.

        Args:
            lengths: int64[windows]; tokens of each, special ones not counted.

        Yields:
            int64[rows]; the windows of one run, the shortest first.
        """
        order = np.argsort(lengths, kind="stable")
        if self.shape.alone:
            yield from order[:, None]
            return
        if self.shape.rows:
            yield from np.array_split(order, range(self.shape.rows, order.size, self.shape.rows)) if order.size else ()
            return
        sizes = lengths[order] + self.special_tokens
        begin, filled = 0, 0
        # Longer ones make all rows longer.
        for at, size in enumerate(sizes.tolist()):
            cells = (at + 1 - begin) * (self.shape.tokens or size)
            padding = 0 if self.shape.tokens else cells - filled - size
            if at > begin and (cells > self._run_tokens or padding > _PADDING_SHARE * cells):
                yield order[begin:at]
                begin, filled = at, 0
            filled += size
        if order.size:
            yield order[begin:]

    def _run(self, windows: Windows, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        # Graphs of fixed shape want whole batches; a window that is there twice changes nothing.
        padded = chosen if not self.shape.rows else np.resize(chosen, self.shape.rows)
        lengths = windows.length[padded]
        specials = self._tokenizer.prefix.size, self._tokenizer.suffix.size
        longest = self.shape.tokens or int(lengths.max()) + sum(specials)
        ids = np.full((padded.size, longest), self.shape.pad_id, dtype=np.int32)
        place = np.arange(longest, dtype=np.int64)
        body = place - specials[0]
        inside = (body >= 0) & (body < lengths[:, None])
        ids[inside] = windows.ids[(windows.first[padded][:, None] + body)[inside]]
        ids[:, : specials[0]] = self._tokenizer.prefix
        after = place - specials[0] - lengths[:, None]
        behind = (after >= 0) & (after < specials[1])
        ids[behind] = np.tile(self._tokenizer.suffix, padded.size)
        mask = after < specials[1]
        columns = {"ids": ids, "mask": mask, "types": np.zeros_like(ids), "positions": np.where(mask, place, 0)}
        feed = {spec.name: columns[role].astype(spec.dtype) for role, spec in self._inputs.items()}
        (logits,) = self._session.run([self.shape.output], feed)
        if logits.size != padded.size * len(self.labels):
            raise _other_width(self._label, len(self.labels), logits.size // padded.size)
        return np.asarray(logits[: chosen.size], dtype=np.float32).reshape(chosen.size, len(self.labels))


def _match_inputs(folder: ModelFolder, shape: Shape, session: Session) -> dict[str, TensorSpec]:
    specs = {spec.name: spec for spec in session.input_specs}
    given = dict(shape.inputs)
    missing = sorted(set(given.values()) - set(specs))
    unknown = sorted(set(specs) - set(given.values()))
    if missing or unknown or any(specs[name].dtype is None for name in given.values()):
        raise ModelError(
            f"The graph of the model {folder.label} takes {', '.join(sorted(specs))}, its model.toml names "
            f"{', '.join(sorted(given.values()))}: make them equal."
        )
    ids = specs[given["ids"]]
    if len(ids.shape) != 2 or (ids.shape[0] or 0, ids.shape[1] or 0) != (shape.rows, shape.tokens):
        wanted = " x ".join("any" if size is None else str(size) for size in ids.shape)
        raise ModelError(
            f"The graph of the model {folder.label} takes batches of {wanted} tokens: write that as rows and tokens "
            f"into [{TABLE}] of its model.toml, 0 for any."
        )
    return {role: specs[name] for role, name in given.items()}


def _check_output(folder: ModelFolder, shape: Shape, session: Session) -> None:
    specs = {spec.name: spec for spec in session.output_specs}
    if shape.output not in specs:
        raise ModelError(
            f"The graph of the model {folder.label} has no output {shape.output!r}; it has: {', '.join(specs)}."
        )
    width = specs[shape.output].shape[-1] if len(specs[shape.output].shape) == 2 else None
    if width is not None and width != len(shape.labels):
        raise _other_width(folder.label, len(shape.labels), width)


def _other_width(label: str, labels: int, width: int) -> ModelError:
    return ModelError(
        f"The model {label} names {labels} labels but its graph gives {width} numbers: write one label for each of "
        "them, in their order."
    )


def _activate(logits: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    if shape.head == "regression":
        return np.clip(logits, np.float32(shape.range[0]), np.float32(shape.range[1]))
    wide = logits.astype(np.float64)
    if shape.head == "multi_label":
        # By tanh, which does not overflow.
        return cast(NDArray[np.float32], (0.5 + 0.5 * np.tanh(0.5 * wide)).astype(np.float32))
    wide = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
    return cast(NDArray[np.float32], (wide / wide.sum(axis=1, keepdims=True)).astype(np.float32))


def _aggregate(
    scores: NDArray[np.float32], window_offsets: NDArray[np.int64], aggregation: Aggregation
) -> NDArray[np.float32]:
    if window_offsets.size == 1:
        return scores
    if aggregation == "max":
        return cast(NDArray[np.float32], np.maximum.reduceat(scores, window_offsets[:-1], axis=0))
    sums = np.add.reduceat(scores.astype(np.float64), window_offsets[:-1], axis=0)
    return cast(NDArray[np.float32], (sums / np.diff(window_offsets)[:, None]).astype(np.float32))


def _deciding(main: NDArray[np.float32], window_offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The window of each text in which the main label is greatest; of equals the first."""
    text = np.repeat(np.arange(window_offsets.size - 1), np.diff(window_offsets))
    # By text, then from the greatest on, then from the first on.
    order = np.lexsort((-main, text))
    return order[window_offsets[:-1]]


__all__ = ["GRAPH_ROLE", "TABLE", "Shape", "Task", "Transformer", "read_shape"]
