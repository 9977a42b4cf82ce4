"""Times datatrove on a JSONL file; runs in an environment of its own, without dqs.

Gopher quality and repetition filters and the MinHash signature, as FineWeb sets
them. Every document goes through every step, as it does in DQS: a filter that
answers early saves datatrove nothing that the next step would not cost.
"""

from __future__ import annotations

import json
import sys
import time


def main(path: str, language: str) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.typeshelper import Languages

    code = {"en": Languages.english, "zh": Languages.mandarin_chinese}[language]
    with open(path, encoding="utf-8") as stream:  # noqa: PTH123 - no dqs style in a foreign environment
        texts = [json.loads(line)["text"] for line in stream]
    documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
    quality = GopherQualityFilter(language=code)
    repetition = GopherRepetitionFilter(language=code)
    signature = MinhashDedupSignature(
        output_folder="/tmp",
        config=MinhashConfig(hash_config=HashConfig(precision=64), n_grams=5, num_buckets=14, hashes_per_bucket=8),
        language=code,
    )

    def run(some: list[Document]) -> dict[str, float]:
        seconds = {"quality": 0.0, "repetition": 0.0, "signature": 0.0}
        for document in some:
            begin = time.perf_counter()
            quality.filter(document)
            after_quality = time.perf_counter()
            repetition.filter(document)
            after_repetition = time.perf_counter()
            shingles = signature.get_shingles(document.text)
            if shingles.size:
                signature.get_signature(shingles)
            end = time.perf_counter()
            seconds["quality"] += after_quality - begin
            seconds["repetition"] += after_repetition - after_quality
            seconds["signature"] += end - after_repetition
        return seconds

    run(documents[:3])  # tokenisers load at first use
    seconds = run(documents)
    size = sum(len(text.encode()) for text in texts)
    total = sum(seconds.values())
    print(json.dumps({"bytes": size, "seconds": total, "mb_per_s": size / 1e6 / total, "stages_s": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
