"""MiniLM-L6 through our runtime, beside the same model in plain PyTorch.

    python -m tests.bench.classifier --data DIR --export OUT [--peers PYTHON --weights MODEL]

OUT is what `tests.bench.export_minilm` wrote, MODEL the folder it was made
from. Texts are rows of the shared data that fit into one window of 512 tokens,
so that both sides read the same. Rounds alternate; each side's best counts.
Also says how much of what runs is padding, over whole documents of all lengths.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.inference.importing import Request, import_model
from dqs.inference.sessions import Runtime
from dqs.inference.transformer import Transformer
from tests.bench.report import emit, show

_FILES = ("clean_en.parquet", "toxicity_en.parquet", "noisy_text.parquet")
_GRAPHS = {"fp32": "model.onnx", "fp32, not fused": "model_plain.onnx", "int8": "model_quantized.onnx"}
_SEED = 20_261_122
_WINDOW = 512
_PADDING_DOCUMENTS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the shared data")
    parser.add_argument("--export", type=Path, required=True, help="folder that export_minilm wrote")
    parser.add_argument("--peers", help="python with torch and transformers")
    parser.add_argument("--weights", type=Path, help="folder that the export was made from, for the peer")
    parser.add_argument("--files", nargs="+", default=_FILES, help="files of the shared data that rows come from")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    texts = sample(options.data, options.files, options.documents * 4)
    with tempfile.TemporaryDirectory() as scratch:
        models = load(options.export, Path(scratch), options.threads)
        whole = models["fp32"]
        padding = padding_share(whole, texts)
        fitting = [text for text in texts if fits(whole, text)][: options.documents]
        peer = Peer(options, fitting, Path(scratch)) if options.peers else None
        figures = measure(models, fitting, peer, options.rounds)
    figures |= {
        "files": list(options.files),
        "documents": len(fitting),
        "characters": sum(map(len, fitting)),
        "threads": options.threads,
    }
    rows = [
        (name, one["documents_per_s"], one.get("times_torch", "-"), one.get("greatest_difference", "-"))
        for name, one in figures["runs"].items()
    ]
    title = f"MiniLM-L6, {len(fitting)} documents, {options.threads} threads, best of {options.rounds} rounds"
    show(title, ("", "documents/s", "times torch", "greatest difference"), rows)
    show("Padding", ("documents", "share"), [(name, f"{share:.1%}") for name, share in padding.items()])
    emit("classifier", figures | {"padding": padding})


def sample(data: Path, files: Sequence[str], count: int) -> list[str]:
    """Rows of several files, mixed."""
    random = np.random.default_rng(_SEED)
    texts: list[str] = []
    for name in files:
        table = pq.read_table(data / name, columns=["text", "lang"]).to_pydict()
        english = [text for text, lang in zip(table["text"], table["lang"], strict=True) if lang == "en" and text]
        texts += [english[at] for at in random.permutation(len(english))[: count // len(files)].tolist()]
    return [texts[at] for at in random.permutation(len(texts)).tolist()]


def load(export: Path, root: Path, threads: int) -> dict[str, Transformer]:
    """The graphs of the export as they are imported."""
    models: dict[str, Transformer] = {}
    for name, graph in _GRAPHS.items():
        if (export / graph).is_file():
            version = str(len(models) + 1)
            request = Request(name="minilm", version=version, languages=["en"], graph=graph, window_tokens=_WINDOW)
            imported = import_model(export, root, request)
            models[name] = Transformer(imported.folder, Runtime(threads=threads))
    return models


def fits(model: Transformer, text: str) -> bool:
    return len(model.windows([text])) == 1


def padding_share(model: Transformer, texts: list[str]) -> dict[str, float]:
    """Padding of what runs, for batches of documents as they are scored, and one by one in the order of the data."""
    shares = {}
    for name, size in (("as batches of the service", _PADDING_DOCUMENTS), ("32 at a time", 32)):
        cells = tokens = 0
        for start in range(0, len(texts), size):
            lengths = model.windows(texts[start : start + size]).length + model.special_tokens
            for run in model.runs(lengths - model.special_tokens):
                cells += run.size * int(lengths[run].max())
                tokens += int(lengths[run].sum())
        shares[name] = 1 - tokens / cells
    cells = tokens = 0
    lengths = np.minimum([int(model.windows([text]).length.sum()) + model.special_tokens for text in texts], _WINDOW)
    for start in range(0, len(texts), 32):
        part = lengths[start : start + 32]
        cells += part.size * int(part.max())
        tokens += int(part.sum())
    return shares | {"in order, 32 at a time, padded to the longest (the peer's way)": 1 - tokens / cells}


class Peer:
    """The process that runs torch."""

    def __init__(self, options: argparse.Namespace, texts: list[str], scratch: Path) -> None:
        (scratch / "texts.json").write_text(json.dumps(texts), "utf-8")
        self._scores = scratch / "scores.npy"
        self._process = subprocess.Popen(
            [options.peers, "-W", "ignore", "-m", "tests.bench.classifier_peer"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        task = {
            "texts": str(scratch / "texts.json"), "weights": str(options.weights), "threads": options.threads,
            "scores": str(self._scores),
        }  # fmt: skip
        self.versions = self._ask(json.dumps(task))

    def run(self) -> float:
        """Seconds of one round."""
        return float(self._ask("go")["seconds"])

    def scores(self) -> NDArray[np.float32]:
        """Scores of the last round."""
        found: NDArray[np.float32] = np.load(self._scores)
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the peer ended: run tests.bench.classifier_peer by hand to see why")
        found: dict[str, Any] = json.loads(answer)
        return found


def measure(models: dict[str, Transformer], texts: list[str], peer: Peer | None, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {}
    scores: dict[str, NDArray[np.float32]] = {}
    for model in models.values():
        model.score_texts(texts[:32])
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        if peer is not None:
            seconds.setdefault("torch", []).append(peer.run())
        for name, model in models.items():
            begin = time.perf_counter()
            scores[name], _ = model.score_texts(texts)
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
    if peer is not None:
        scores["torch"] = peer.scores()
        peer.close()
    reference = scores["torch" if peer is not None else "fp32"]
    runs: dict[str, Any] = {}
    for name, taken in seconds.items():
        runs[name] = {"documents_per_s": len(texts) / min(taken), "seconds": taken}
        if peer is not None:
            runs[name]["times_torch"] = min(seconds["torch"]) / min(taken)
            # Of the two that ran one after the other.
            runs[name]["times_torch_by_round"] = [a / b for a, b in zip(seconds["torch"], taken, strict=True)]
        runs[name]["greatest_difference"] = float(np.abs(scores[name] - reference).max())
    return {"runs": runs, "peer": peer.versions if peer is not None else None}


if __name__ == "__main__":
    main()
