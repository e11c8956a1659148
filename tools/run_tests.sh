#!/usr/bin/env bash
# Sets everything up and runs lint, types and tests. --full adds the slow tests (the quickstart among them).
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: bash tools/run_tests.sh [--full] [-- PYTEST ARGUMENTS]"
full=
while [ $# -gt 0 ]; do
    case "$1" in
    --full) full=1 ;;
    -h | --help) echo "$usage" && exit 0 ;;
    --) shift && break ;;
    *) echo "error: unknown argument $1; $usage" >&2 && exit 2 ;;
    esac
    shift
done
. tools/setup_env.sh
setup_env '[fast,test,export]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes of one thread each use two cores better than one process of two threads.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n "${TEST_PROCESSES:-2}" --dist loadfile --durations=10 \
    -m "not slow" "$@"
# Alone: they time whole commands, or start processes of their own.
[ -z "$full" ] || .venv/bin/python -m pytest -q --durations=10 -m slow "$@"
