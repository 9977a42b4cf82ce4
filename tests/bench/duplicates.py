"""How well the duplicate index finds near-duplicates, against truth recomputed from the text.

    python -m tests.bench.duplicates --data ../shared/data

Puts a stream of documents through the index in file order, keeping everything
that is no duplicate, as the policy `score-only` does. Truth is the Jaccard
similarity of the sets of five tokens, in plain Python and without the kernels
under test: of the documents for which an earlier kept document has similarity
0.8 or more, how many are hits, and does each hit name a document that is like it?
Cluster ids in the files are not used: the streams hold natural near-duplicates.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.bench.report import emit, show

LIKE = 0.8
"""A document with an earlier kept one of this similarity must be a hit."""

UNLIKE = 0.5
"""A hit that names a document below this similarity is wrong."""

_BATCH_DOCUMENTS = 256

# Han, kana, Thai, Lao, Khmer, Myanmar: by block, apart from the table that the text core builds.
_UNSPACED = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)

Shingles = NDArray[np.int64]


def tokens(text: str) -> list[str]:
    """Tokens by the index's definition, in plain Python."""
    folded = unicodedata.normalize("NFKC", text).lower()
    characters = [character for character in folded if character.isalnum() or character == "_"]
    unspaced = sum(_UNSPACED.match(character) is not None for character in characters)
    if characters and unspaced >= 0.2 * len(characters):
        return characters
    return re.findall(r"\w+", folded)


def shingle_set(text: str) -> Shingles:
    """Sorted distinct shingles of five tokens; Python's own tuple hash stands for each."""
    words = tokens(text)
    hashes = [hash(tuple(words[start : start + 5])) for start in range(len(words) - 4)]
    return np.unique(np.array(hashes, dtype=np.int64))


def jaccard(a: Shingles, b: Shingles) -> float:
    """Jaccard similarity; 0 where a set is empty."""
    if not a.size or not b.size:
        return 0.0
    common = np.intersect1d(a, b, assume_unique=True).size
    return float(common / (a.size + b.size - common))


class KeptShingles:
    """Kept documents by their rarest shingles.

    Two sets with similarity s share more than (1 - s) of neither's elements, so a pair at or
    above `LIKE` has a shingle in common among the rarest fifth of each (prefix filtering).
    """

    def __init__(self, sets: Sequence[Shingles]) -> None:
        counts: Counter[int] = Counter()
        for shingles in sets:
            counts.update(shingles.tolist())
        self._sets = sets
        self._prefixes = [self._prefix(shingles, counts) for shingles in sets]
        self._kept: defaultdict[int, list[int]] = defaultdict(list)

    @staticmethod
    def _prefix(shingles: Shingles, counts: Counter[int]) -> list[int]:
        ordered = sorted(shingles.tolist(), key=lambda shingle: (counts[shingle], shingle))
        return ordered[: len(ordered) - ceil(LIKE * len(ordered)) + 1]

    def has_like(self, document: int) -> bool:
        """Whether a kept document has similarity `LIKE` or more."""
        candidates = {kept for shingle in self._prefixes[document] for kept in self._kept.get(shingle, ())}
        return any(jaccard(self._sets[document], self._sets[kept]) >= LIKE for kept in candidates)

    def keep(self, document: int) -> None:
        """Remembers a document."""
        for shingle in self._prefixes[document]:
            self._kept[shingle].append(document)


@dataclass(slots=True)
class Answers:
    """What the index said of a stream."""

    duplicate_of: list[int | None]
    similarity: NDArray[np.float32]
    exact: NDArray[np.bool_]
    documents_per_s: float
    bytes_per_document: float


def ask_index(texts: Sequence[str], threshold: float | None) -> Answers:
    """Puts texts through an index of its own, in order."""
    from dqs.index.embedded import EmbeddedRedis
    from dqs.index.redis_store import DuplicateStore, connect
    from dqs.index.signature import SignatureParameters, sign
    from dqs.text import TextBatch

    parameters = SignatureParameters() if threshold is None else SignatureParameters.for_threshold(threshold)
    sign(TextBatch.from_bytes([b"compile the kernels"]), parameters)
    duplicate_of: list[int | None] = []
    similarity, exact = [], []
    with (
        tempfile.TemporaryDirectory(prefix="dqs-bench-") as folder,
        EmbeddedRedis(Path(folder)) as server,
        closing(connect(server.url)) as client,
        closing(DuplicateStore(client, parameters)) as store,
    ):
        memory_before = int(client.info("memory")["used_memory"])
        seconds = 0.0
        for start in range(0, len(texts), _BATCH_DOCUMENTS):
            part = texts[start : start + _BATCH_DOCUMENTS]
            signatures = sign(TextBatch.from_bytes([text.encode() for text in part]), parameters)
            ids = [str(start + position) for position in range(len(part))]
            begin = time.perf_counter()
            found = store.check_and_insert("bench", ids, signatures, np.ones(len(part), dtype=np.bool_))
            seconds += time.perf_counter() - begin
            duplicate_of.extend(None if name is None else int(name) for name in found.duplicate_of)
            similarity.append(found.similarity)
            exact.append(found.exact)
        used = int(client.info("memory")["used_memory"]) - memory_before
        kept = store.documents("bench")
    return Answers(
        duplicate_of, np.concatenate(similarity), np.concatenate(exact), len(texts) / seconds, used / max(kept, 1)
    )


def evaluate(texts: Sequence[str], answers: Answers) -> dict[str, Any]:
    """Compares the index's answers with the truth."""
    sets = []
    for document, text in enumerate(texts):
        if document % 1000 == 0:
            print(f"\r  truth: {document} of {len(texts)} documents", end="", file=sys.stderr, flush=True)
        sets.append(shingle_set(text))
    kept_shingles = KeptShingles(sets)
    normalised = [" ".join(unicodedata.normalize("NFKC", text).lower().split()) for text in texts]
    kept_texts: set[str] = set()
    like = like_found = copies = copies_found = hits = unlike = 0
    errors = []
    for document, named in enumerate(answers.duplicate_of):
        if document % 1000 == 0:
            print(f"\r  pairs: {document} of {len(texts)} documents", end="", file=sys.stderr, flush=True)
        if normalised[document] and normalised[document] in kept_texts:
            copies += 1
            copies_found += bool(answers.exact[document])
        if kept_shingles.has_like(document):
            like += 1
            like_found += named is not None
        if named is None:
            kept_shingles.keep(document)
            kept_texts.add(normalised[document])
            continue
        hits += 1
        true = 1.0 if answers.exact[document] else jaccard(sets[document], sets[named])
        unlike += true < UNLIKE
        if not answers.exact[document]:
            errors.append(float(answers.similarity[document]) - true)
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return {
        "documents": len(texts),
        "hits": hits,
        "with_like_kept": like,
        "recall": like_found / like if like else None,
        "copies": copies,
        "copies_found_exact": copies_found,
        "hits_named_below_0.5": unlike,
        "estimate_error_mean": float(np.mean(errors)) if errors else None,
        "estimate_error_rms": float(np.sqrt(np.mean(np.square(errors)))) if errors else None,
        "index_documents_per_s": answers.documents_per_s,
        "index_bytes_per_document": answers.bytes_per_document,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Recall and precision of the duplicate index on document streams.")
    parser.add_argument("--data", type=Path, required=True, help="folder with dup_stream_<name>.parquet")
    parser.add_argument("--files", nargs="+", default=["en", "zh"], help="names of the streams")
    parser.add_argument("--documents", type=int, help="take only the first so many of each")
    parser.add_argument("--threshold", type=float, help="similarity that counts as a duplicate (default: DQS's)")
    arguments = parser.parse_args()
    figures = {}
    for name in arguments.files:
        table = pq.read_table(arguments.data / f"dup_stream_{name}.parquet", columns=["text"])
        texts = table["text"].to_pylist()[: arguments.documents]
        figures[name] = evaluate(texts, ask_index(texts, arguments.threshold))
    rows = next(iter(figures.values()))
    show(
        "Duplicate index on streams in file order",
        ["", *figures],
        [[row, *(figures[name][row] for name in figures)] for row in rows],
    )
    emit("duplicates", {"threshold": arguments.threshold, "streams": figures})


if __name__ == "__main__":
    main()
