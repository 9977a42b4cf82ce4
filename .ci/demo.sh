#!/usr/bin/env bash
# Starts a service with its defaults on a free port, sends it a bilingual sample through gRPC,
# prints the verdicts, and stops it again. Leaves nothing behind.
#
#   BIN=.venv/bin .ci/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
work=$(mktemp -d)
service=

stop() {
  if [ -n "$service" ]; then
    kill "$service" 2>/dev/null || true
    wait "$service" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap stop EXIT

# The data directory is the demo's own; kernels that `make setup` compiled are used where they lie.
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-${DQS_DATA_DIR:-$HOME/.local/share/dqs}/kernels}
export DQS_DATA_DIR=$work/data

"$bin/dqs" serve --port 0 >"$work/address" 2>"$work/log" &
service=$!
echo "Starting a service …"
until grep -q '^dqs serves on ' "$work/address"; do
  if ! kill -0 "$service" 2>/dev/null; then
    cat "$work/log" >&2
    exit 1
  fi
  sleep 0.1
done
address=$(sed -n 's/^dqs serves on //p' "$work/address")

echo "Scoring tests/samples/demo.jsonl through $address …"
echo
"$bin/dqs" score tests/samples/demo.jsonl --server "$address" --output "$work/scores.jsonl" 2>"$work/summary"
"$bin/python" - "$work/scores.jsonl" <<'PYTHON'
import json
import sys

print(f"{'id':<18} {'lang':<5} {'perpl. pct':>10} {'toxicity':>9}  {'label':<7} reasons")
with open(sys.argv[1], encoding="utf-8") as file:
    for row in map(json.loads, file):
        shown = ["–" if row[name] is None else format(row[name], f) for name, f in
                 (("perplexity_percentile", ".0f"), ("toxicity", ".2f"))]
        rules = row["reasons"]
        why = ", ".join(rules[:3]) + (f" and {len(rules) - 3} more" if len(rules) > 3 else "")
        why += f" (of {row['duplicate_of']})" if row["duplicate_of"] else ""
        print(f"{row['id']:<18} {row['language']:<5} {shown[0]:>10} {shown[1]:>9}  {row['label']:<7} {why}")
PYTHON
echo
cat "$work/summary"
