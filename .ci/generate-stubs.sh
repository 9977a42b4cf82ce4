#!/bin/sh
# Generates the stubs of proto/dqs/v1.
#
#     .ci/generate-stubs.sh            into dqs/v1
#     .ci/generate-stubs.sh FOLDER     into FOLDER/dqs/v1
#     .ci/generate-stubs.sh --check    compares with dqs/v1; exit status 1 where they differ
#
# grpcio-tools is old on purpose: stubs made for protobuf 5 load with 5, 6 and 7.
# It needs protobuf 5, so it lives in an environment of its own, .venv-proto.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
tools="$root/.venv-proto"
if ! "$tools/bin/python" -c 'import grpc_tools' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check \
        'grpcio-tools==1.66.2' 'protobuf==5.29.6' 'setuptools==80.9.0'
fi

generate() {
    mkdir -p "$1"
    "$tools/bin/python" -m grpc_tools.protoc -I "$root/proto" \
        --python_out="$1" --pyi_out="$1" --grpc_python_out="$1" "$root"/proto/dqs/v1/*.proto
    # Files without a service get an empty service module too.
    rm -f "$1/dqs/v1/decision_pb2_grpc.py" "$1/dqs/v1/failure_pb2_grpc.py" "$1/dqs/v1/server_info_pb2_grpc.py"
}

if [ "${1:-}" = --check ]; then
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    if ! diff -r -x __init__.py -x __pycache__ "$fresh/dqs/v1" "$root/dqs/v1"; then
        echo "dqs/v1 is not what proto/dqs/v1 gives: run make proto." >&2
        exit 1
    fi
else
    generate "${1:-$root}"
fi
