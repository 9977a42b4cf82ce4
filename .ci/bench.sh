#!/usr/bin/env bash
# Every figure of the README: tables on standard error, JSON under .cache/bench.
#
#   BIN=.venv/bin DATA=../shared/data .ci/bench.sh [speed|signature|index_store|duplicates|duplicate_pairs|dedup|toxicity|quality|perplexity|policy|service|gateway ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
data=${DATA:-../shared/data}
out=.cache/bench
if [ ! -d "$data" ]; then
  echo "The evaluation data is not at $data: set DQS_SHARED to the folder that holds data/." >&2
  exit 2
fi
mkdir -p "$out"

# Other libraries live beside us, never among us: their dependencies are not ours.
# text-dedup comes without its own: they include Spark and ONNX Runtime, which its MinHash never imports;
# of the rest it needs click-option-group, datasets and scipy.
peers=.venv-peers/bin/python
if ! "$peers" -c 'import datasketch, datatrove, redis, text_dedup.minhash' 2>/dev/null; then
  "${PYTHON:-python3}" -m venv .venv-peers
  "$peers" -m pip install --quiet --disable-pip-version-check \
    click-option-group==0.5.9 datasets==5.2.0 datasketch==2.0.0 datatrove==0.10.1 inscriptis==2.7.6 jieba==0.42.1 \
    nltk==3.10.4 pyarrow==26.0.1 redis==8.1.0 regex==2026.11.15 scipy==1.17.1 spacy==3.8.18 tldextract==5.4.0 \
    tokenizers==0.23.3 xxhash==3.8.2
  "$peers" -m pip install --quiet --disable-pip-version-check --no-deps text-dedup==0.4.0
fi

for benchmark in "${@:-speed signature index_store duplicates duplicate_pairs dedup toxicity quality perplexity policy service gateway}"; do
  for name in $benchmark; do
    arguments=(--data "$data")
    if [ "$name" = gateway ]; then
      arguments=()
    fi
    if [ "$name" = speed ]; then
      arguments+=(--grpc --peers "$peers")
    elif [ "$name" = duplicate_pairs ] || [ "$name" = index_store ]; then
      arguments+=(--peers "$peers")
    fi
    "$bin/python" -m "tests.bench.$name" "${arguments[@]}" >"$out/$name.json"
    echo "$out/$name.json" >&2
  done
done
