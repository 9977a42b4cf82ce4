"""MiniLM in plain PyTorch, as a user would score texts with it; runs in an environment of its own, without dqs.

Reads lines: first the path of a JSON file with texts, the folder of the export and of the weights, and the number of
threads; then one line per round, which it answers with its seconds. Texts run in their order, 32 at a time, padded to
the longest of them, in float32. Scores of the first round go to a file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_BATCH = 32
_MOST_TOKENS = 512


def main() -> None:
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from tests.bench.export_minilm import build

    task = json.loads(sys.stdin.readline())
    texts = json.loads(Path(task["texts"]).read_text("utf-8"))
    torch.set_num_threads(task["threads"])
    tokenizer = AutoTokenizer.from_pretrained(task["weights"])
    # As transformers itself advises for the processor; the export is made from the slower form.
    network = build(Path(task["weights"]), attention="sdpa")

    def run(some: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        found = []
        with torch.inference_mode():
            for start in range(0, len(some), _BATCH):
                encoded = tokenizer(
                    some[start : start + _BATCH], padding=True, truncation=True, max_length=_MOST_TOKENS,
                    return_tensors="pt",
                )  # fmt: skip
                logits = network(encoded["input_ids"], encoded["attention_mask"])
                found.append(torch.sigmoid(logits).numpy())
        return np.concatenate(found)

    run(texts[:_BATCH])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        scores = run(texts)
        seconds = time.perf_counter() - begin
        np.save(task["scores"], scores)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
