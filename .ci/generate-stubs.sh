#!/bin/sh
# Generates the stubs of proto/dqs/v1 into OUTPUT/dqs/v1.
#
#     .ci/generate-stubs.sh OUTPUT
#
# grpcio-tools is old on purpose: stubs made for protobuf 5 load with 5, 6 and 7.
# It needs protobuf 5, so it lives in an environment of its own, .venv-proto.
set -eu
output=${1:?usage: .ci/generate-stubs.sh OUTPUT}
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
tools="$root/.venv-proto"
if ! "$tools/bin/python" -c 'import grpc_tools' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet 'grpcio-tools==1.66.2' 'protobuf==5.29.6' 'setuptools==80.9.0'
fi
mkdir -p "$output"
"$tools/bin/python" -m grpc_tools.protoc -I "$root/proto" \
    --python_out="$output" --pyi_out="$output" --grpc_python_out="$output" \
    "$root"/proto/dqs/v1/*.proto
# Files without a service still get an empty service module.
rm -f "$output/dqs/v1/decision_pb2_grpc.py" "$output/dqs/v1/failure_pb2_grpc.py" \
    "$output/dqs/v1/server_info_pb2_grpc.py"
