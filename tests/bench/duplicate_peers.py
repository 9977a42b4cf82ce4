"""Which pairs of documents other libraries take for duplicates; runs in an environment of its own, without dqs.

    PYTHON duplicate_peers.py FOLDER en|zh THRESHOLD ...

Reads FOLDER/documents.parquet (text) and FOLDER/pairs.parquet (left, right: rows of the documents) and writes
FOLDER/predictions.json: per library and threshold a string of 0 and 1, one per pair. Each library is set up as its
users would at that threshold; a pair is positive if its documents share a band:

    datasketch   MinHashLSH(threshold) with 128 and with 256 permutations, everything else its default. It leaves
                 shingles to its user: five words (runs of `\\w` in lower case), in Chinese five characters
                 without white space. "+ estimate": and MinHash.jaccard reaches the threshold. "r": bands for
                 recall, weights (0.1, 0.9), as a user takes them who means to check the candidates.
                 "\\w": Chinese characters without punctuation, 256 permutations: what comes nearest to DQS's tokens.
    text-dedup   the defaults of its MinHash command (250 permutations, 5-grams, bands by its `optimal_param`).
                 It cuts text at every `\\W`, so a Chinese "word" is all that stands between two punctuation marks;
                 it has no setting for characters. "spaced": its user puts a space after every Chinese character.
    datatrove    MinhashDedupSignature on 5-grams of its own words (spaCy in English, jieba in Chinese), 14 x 8
                 at 0.7 as FineWeb has it, elsewhere the banding with 100 to 256 hashes whose (1 / bands) ** (1 / rows)
                 comes nearest to the threshold.

A document with too few tokens for a shingle is no one's duplicate, as in the libraries' own pipelines.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SHINGLE_TOKENS = 5
HAN = re.compile(r"([\u3400-\u9fff\uf900-\ufaff])")

Pairs = list[tuple[int, int]]


def shown(label: str, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The texts with their numbers, telling how far they are."""
    for number, text in enumerate(texts):
        if number % 500 == 0:
            print(f"\r  {label}: {number} of {len(texts)} documents   ", end="", file=sys.stderr, flush=True)
        yield number, text
    print("\r" + " " * 60, end="\r", file=sys.stderr)


def share_a_band(bands: Sequence[Sequence[Any] | None], pairs: Pairs) -> list[bool]:
    """Whether the bands of both documents agree anywhere; None is a document without shingles."""
    positive = []
    for left, right in pairs:
        a, b = bands[left], bands[right]
        positive.append(a is not None and b is not None and any(x == y for x, y in zip(a, b, strict=True)))
    return positive


class Predictions:
    """What is written in the end."""

    def __init__(self) -> None:
        self.positive: dict[str, dict[str, str]] = {}
        self.banding: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}

    def add(self, name: str, threshold: float, positive: Sequence[bool], bands: int, rows: int) -> None:
        """One library at one threshold."""
        self.positive.setdefault(name, {})[str(threshold)] = "".join("1" if one else "0" for one in positive)
        self.banding.setdefault(name, {})[str(threshold)] = f"{bands}x{rows}"


def run_datasketch(
    name: str,
    texts: list[str],
    pairs: Pairs,
    tokens_of: Callable[[str], list[str]],
    thresholds: list[float],
    permutations: int,
    into: Predictions,
) -> None:
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found]

    begin = time.perf_counter()
    signatures: list[Any] = []
    for _, text in shown(name, texts):
        tokens = tokens_of(text.lower())
        starts = range(len(tokens) - SHINGLE_TOKENS + 1)
        shingles = {" ".join(tokens[start : start + SHINGLE_TOKENS]).encode() for start in starts}
        signature = None
        if shingles:
            signature = MinHash(num_perm=permutations)
            signature.update_batch(sorted(shingles))
        signatures.append(signature)
    for threshold in thresholds:
        for recall, weights in ((False, (0.5, 0.5)), (True, (0.1, 0.9))):
            index = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
            for left in sorted({left for left, _ in pairs}):
                if signatures[left] is not None:
                    index.insert(left, signatures[left])
            found = {
                right: set(index.query(signatures[right])) if signatures[right] is not None else set()
                for right in {right for _, right in pairs}
            }
            met = [left in found[right] for left, right in pairs]
            alike = [
                one and signatures[left].jaccard(signatures[right]) >= threshold
                for one, (left, right) in zip(met, pairs, strict=True)
            ]
            if not recall:
                into.add(name, threshold, met, index.b, index.r)
            into.add(f"{name}{' r' if recall else ''} + estimate", threshold, alike, index.b, index.r)
    into.seconds[name] = time.perf_counter() - begin


def run_text_dedup(name: str, texts: list[str], pairs: Pairs, thresholds: list[float], into: Predictions) -> None:
    from text_dedup import minhash  # type: ignore[import-not-found]
    from text_dedup.utils import MinHashArgs, optimal_param, sha1_hash  # type: ignore[import-not-found]

    begin = time.perf_counter()
    defaults = MinHashArgs()
    bandings = [optimal_param(threshold, defaults.num_perm) for threshold in thresholds]
    ranges = [[(band * rows, (band + 1) * rows) for band in range(bands)] for bands, rows in bandings]
    # The types and the permutations that its command takes for 64 bits, its default.
    prime = np.uint64((1 << 61) - 1)
    generator = np.random.RandomState(defaults.seed)
    permutations = (
        generator.randint(1, prime, size=(defaults.num_perm,), dtype=np.uint64),
        generator.randint(0, prime, size=(defaults.num_perm,), dtype=np.uint64),
    )
    embed = functools.partial(
        minhash.embed_func,
        num_perm=defaults.num_perm,
        ngram_size=defaults.ngram,
        min_length=defaults.min_length,
        hashranges=[one for some in ranges for one in some],
        permutations=permutations,
        hash_func=functools.partial(sha1_hash, d=32),
        dtype=np.uint64,
        max_hash=np.uint32((1 << 32) - 1),
        modulo_prime=prime,
    )
    signatures: list[list[bytes] | None] = []
    for number, text in shown(name, texts):
        # The command takes shorter documents out before it signs.
        long_enough = len(minhash.NON_ALPHA.split(text.lower())) >= defaults.min_length
        signatures.append(embed(text, number)[minhash.SIGNATURE_COLUMN] if long_enough else None)
    start = 0
    for threshold, (bands, rows) in zip(thresholds, bandings, strict=True):
        part = [None if one is None else one[start : start + bands] for one in signatures]
        into.add(name, threshold, share_a_band(part, pairs), bands, rows)
        start += bands
    into.seconds[name] = time.perf_counter() - begin


def nearest_banding(threshold: float) -> tuple[int, int]:
    """Bands and rows for datatrove."""
    if threshold == 0.7:
        return 14, 8
    choices = [
        (abs((1 / bands) ** (1 / rows) - threshold), -bands * rows, bands, rows)
        for rows in range(2, 33)
        for bands in range(2, 129)
        if 100 <= bands * rows <= 256
    ]
    return min(choices)[2:]


def run_datatrove(texts: list[str], pairs: Pairs, language: str, thresholds: list[float], into: Predictions) -> None:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.typeshelper import Languages

    begin = time.perf_counter()
    code = {"en": Languages.english, "zh": Languages.mandarin_chinese}[language]
    bandings = [nearest_banding(threshold) for threshold in thresholds]
    signers = [
        MinhashDedupSignature(
            output_folder="/tmp",
            config=MinhashConfig(
                hash_config=HashConfig(precision=64), n_grams=SHINGLE_TOKENS, num_buckets=bands, hashes_per_bucket=rows
            ),
            language=code,
        )
        for bands, rows in bandings
    ]
    signatures: list[list[Any]] = [[] for _ in thresholds]
    for _, text in shown("datatrove", texts):
        shingles = signers[0].get_shingles(text)
        for signer, into_list in zip(signers, signatures, strict=True):
            into_list.append(signer.get_signature(shingles) if shingles.size else None)
    for threshold, (bands, rows), buckets in zip(thresholds, bandings, signatures, strict=True):
        into.add("datatrove", threshold, share_a_band(buckets, pairs), bands, rows)
    into.seconds["datatrove"] = time.perf_counter() - begin


def main(folder: Path, language: str, thresholds: list[float]) -> None:
    texts = pq.read_table(folder / "documents.parquet")["text"].to_pylist()
    table = pq.read_table(folder / "pairs.parquet")
    pairs: Pairs = list(zip(table["left"].to_pylist(), table["right"].to_pylist(), strict=True))
    predictions = Predictions()
    words: Callable[[str], list[str]] = re.compile(r"\w+").findall
    characters: Callable[[str], list[str]] = re.compile(r"\S").findall
    tokens_of = characters if language == "zh" else words
    for permutations in (128, 256):
        run_datasketch(f"datasketch {permutations}", texts, pairs, tokens_of, thresholds, permutations, predictions)
    if language == "zh":
        letters: Callable[[str], list[str]] = re.compile(r"\w").findall
        run_datasketch("datasketch \\w", texts, pairs, letters, thresholds, 256, predictions)
    run_text_dedup("text-dedup", texts, pairs, thresholds, predictions)
    if language == "zh":
        spaced = [HAN.sub(r"\1 ", text) for text in texts]
        run_text_dedup("text-dedup, spaced", spaced, pairs, thresholds, predictions)
    run_datatrove(texts, pairs, language, thresholds, predictions)
    result = {
        "predictions": predictions.positive,
        "banding": predictions.banding,
        "seconds": predictions.seconds,
        "versions": {name: importlib.metadata.version(name) for name in ("datasketch", "text-dedup", "datatrove")},
    }
    (folder / "predictions.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [float(threshold) for threshold in sys.argv[3:]])
