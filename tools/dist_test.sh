#!/usr/bin/env bash
# bash tools/dist_test.sh CONFIG N [CHECKPOINT] [OPTIONS of tools/test.py]: evaluates a checkpoint on the GPUs of one node, one process each.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/tools/launch.sh"
if ! [[ "${2:-}" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash tools/dist_test.sh CONFIG N [CHECKPOINT] [OPTIONS of tools/test.py]" >&2
    exit 2
fi
config=$1 processes=$2
shift 2
run_torchrun test "$processes" "$config" "$@"
