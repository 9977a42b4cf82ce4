#!/usr/bin/env bash
# Builds KenLM's training programs (lmplz, build_binary, query) from KenLM's own source distribution.
# Serving never needs them; `dqs train perplexity` does.
#
#   .ci/build-kenlm.sh DESTINATION [SDIST]
#
# DESTINATION/bin receives the three programs. SDIST is a kenlm-*.tar.gz that is already here; without it
# the one pinned below is fetched with pip.
# Needs: a C++ compiler, cmake, make, and the Boost headers and libraries
# (Debian: libboost-program-options-dev libboost-system-dev libboost-thread-dev libboost-test-dev zlib1g-dev).
set -euo pipefail

version=0.3.0
destination=${1:?usage: .ci/build-kenlm.sh DESTINATION [SDIST]}
sdist=${2:-}
python=${PYTHON:-python3}

command -v cmake >/dev/null || { echo "cmake is missing: install it (Debian: apt-get install cmake)" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "$sdist" ]; then
  # Only kenlm itself as source: `--no-binary :all:` would build cmake, too.
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary kenlm \
    --dest "$work" "kenlm==$version"
  sdist=$work/kenlm-$version.tar.gz
fi
tar -xzf "$sdist" -C "$work"

log=$work/build.log
if ! { cmake -S "$work/kenlm-$version" -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
         -DCMAKE_POLICY_VERSION_MINIMUM=3.5 \
       && cmake --build "$work/build" --parallel "$(nproc)" --target lmplz build_binary query; } >"$log" 2>&1
then
  tail -n 30 "$log" >&2
  echo "KenLM did not build: the lines above say why; a missing Boost is the usual cause" >&2
  exit 1
fi

mkdir -p "$destination/bin"
for program in lmplz build_binary query; do
  install -m 755 "$(find "$work/build" -type f -name "$program" | head -n 1)" "$destination/bin/$program"
done
echo "built lmplz, build_binary and query in $destination/bin"
