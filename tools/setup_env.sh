# Sourced by quickstart.sh and run_tests.sh: makes .venv with the pinned packages. Changes nothing outside the clone.
# shellcheck shell=bash

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "error: no Python 3.11 or 3.12 found; install one or name it: PYTHON=/path/to/python3.12 bash $0" >&2
    return 1
}

install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    # Without an NVIDIA driver the CUDA build is gigabytes of libraries that nothing can use.
    if [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then
        if .venv/bin/pip install -q --retries 0 --timeout 15 "torch==$version" \
            --index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" 2>/dev/null; then
            return 0
        fi
        echo "(PyTorch's own index of CPU builds was not reached; taking torch from the default package index)"
    fi
    .venv/bin/pip install -q "torch==$version"
}

# setup_env EXTRAS: '[fast]' or '[fast,test,export]'
setup_env() {
    local extras=$1 python stamp want
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    # its Python has been removed or replaced: nothing in it works
    if [ -L .venv/bin/python ] && [ ! -e .venv/bin/python ]; then rm -rf .venv; fi
    # pip comes last: without it the environment is one whose making was interrupted, and is made over
    if [ ! -x .venv/bin/pip ]; then
        python=$(find_python) || exit 1
        if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            echo "error: $python has no venv module; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2
            exit 1
        fi
        echo "creating .venv with $("$python" --version)"
        "$python" -m venv .venv || exit 1
    fi
    want=$(cat setup.py constraints.txt tools/setup_env.sh | cksum)
    stamp=.venv/.spark_seg${extras//[\[\]]/_}
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        echo "installing packages (minutes the first time)"
        if ! .venv/bin/python -c 'import sys, torch; sys.exit(torch.__version__.split("+")[0] != sys.argv[1])' \
            "$(sed -n 's/^torch==//p' constraints.txt)" 2>/dev/null; then
            install_torch || { echo "error: torch could not be installed" >&2; exit 1; }
        fi
        .venv/bin/pip install -q -c constraints.txt -e ".${extras}" ||
            { echo "error: the packages could not be installed" >&2; exit 1; }
        echo "$want" >"$stamp"
    fi
}
