"""What a duplicate index of a given size needs: bytes, nodes, documents a second, cost. Arithmetic, not a measurement.

    python -m tests.bench.index_sums --documents 1e8 1e9 1e10 --days 30

Every input is an option. The defaults are rounded from what `index_store` measures on
one node; the memory of a node, its headroom and the price are examples to be replaced.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from tests.bench.report import emit, show

_GB = 1e9
_KEYS = 2.0**32


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the sums start from; every field is an option of the command.

    Attributes:
        bands: structures of band keys, beside the one of ids.
        entry_bytes: per document and structure, 8 of the entry and the rest Redis's.
        text_hash_bytes: of a record.
        sketch_bytes: of a record.
        band_key_bytes: per band, of a record; deletion needs them.
        time_bytes: time, flags, id key and counts of a record.
        id_bytes: mean, of a record.
        record_overhead_bytes: Redis's, per record.
        append_bytes: of the append-only file per document, before it is rewritten.
        node_documents_s: documents a second of one Redis node, which uses one core.
        node_gb: memory of a node.
        headroom: part of a node's memory kept free for forks, replication buffers and fragmentation.
        replicas: of every node.
        days: in which all documents are to be taken in.
        price: per GB of memory and month, in any currency; an example.
        decider_documents_s: that the decider is fed with at most, for the memory of its window.
        window_s: how long the decider remembers its commits.
        commit_bytes: of a commit in the decider's memory: record, band keys and their index.
    """

    bands: int = 9
    entry_bytes: float = 11.6
    text_hash_bytes: float = 16.0
    sketch_bytes: float = 128.0
    band_key_bytes: float = 4.0
    time_bytes: float = 12.0
    id_bytes: float = 20.0
    record_overhead_bytes: float = 62.0
    append_bytes: float = 1900.0
    node_documents_s: float = 8_000.0
    node_gb: float = 64.0
    headroom: float = 0.4
    replicas: int = 1
    days: float = 30.0
    price: float = 3.0
    decider_documents_s: float = 100_000.0
    window_s: float = 60.0
    commit_bytes: float = 1000.0


def sums(documents: float, inputs: Inputs) -> dict[str, float]:
    """The figures for one size of corpus.

    Args:
        documents: kept ones.
        inputs: see there.

    Returns:
        One number per row of the table, its unit in the name.
    """
    bands_bytes = inputs.bands * inputs.entry_bytes
    lookup_bytes = inputs.entry_bytes
    record_bytes = (
        inputs.text_hash_bytes
        + inputs.sketch_bytes
        + inputs.bands * inputs.band_key_bytes
        + inputs.time_bytes
        + inputs.id_bytes
        + inputs.record_overhead_bytes
    )
    total_bytes = bands_bytes + lookup_bytes + record_bytes
    needed_s = documents / (inputs.days * 86_400)
    for_memory = math.ceil(documents * total_bytes / (inputs.node_gb * _GB * (1 - inputs.headroom)))
    for_speed = math.ceil(needed_s / inputs.node_documents_s)
    primaries = max(for_memory, for_speed)
    nodes = primaries * (1 + inputs.replicas)
    return {
        "bands, GB": documents * bands_bytes / _GB,
        "ids, GB": documents * lookup_bytes / _GB,
        "records, GB": documents * record_bytes / _GB,
        "all, GB": documents * total_bytes / _GB,
        "bytes per document": total_bytes,
        "append-only files before rewriting, GB": documents * inputs.append_bytes / _GB,
        "documents a second needed": needed_s,
        "primaries for memory": for_memory,
        "primaries for speed": for_speed,
        "nodes with replicas": nodes,
        "memory of all nodes, GB": nodes * inputs.node_gb,
        "hours to fill, one node": documents / inputs.node_documents_s / 3600,
        "hours to fill, all primaries, at best": documents
        / min(primaries * inputs.node_documents_s, inputs.decider_documents_s)
        / 3600,
        "strangers met per look-up": inputs.bands * documents / _KEYS,
        "decider's window, GB": min(inputs.decider_documents_s, documents)
        * inputs.window_s
        * inputs.commit_bytes
        / _GB,
        "cost a month (example price)": nodes * inputs.node_gb * inputs.price,
    }


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--documents", type=float, nargs="+", default=[1e8, 1e9, 1e10])
    defaults = Inputs()
    for field in fields(Inputs):
        default = getattr(defaults, field.name)
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(default), default=default)
    arguments: dict[str, Any] = vars(parser.parse_args())
    sizes: list[float] = arguments.pop("documents")
    inputs = Inputs(**arguments)
    if min(sizes) <= 0 or inputs.days <= 0 or not 0 <= inputs.headroom < 1:
        parser.error("give positive numbers of documents and days, and a headroom from 0 to below 1")
    found = {f"{size:g}": sums(size, inputs) for size in sizes}
    columns = list(found)
    rows = [[name, *(_shown(found[size][name]) for size in columns)] for name in found[columns[0]]]
    show("A duplicate index on paper", ["documents", *columns], rows)
    emit("index_sums", {"inputs": asdict(inputs), "sums": found})


if __name__ == "__main__":
    main()
