#!/usr/bin/env bash
# Create .venv and install vqtok in it with the versions that were tested; safe to run again.
#
#     scripts/setup.sh [EXTRA]      # EXTRA: test
#
# PYTHON=python3.12 chooses the Python that .venv is made with.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || { echo "== making .venv"; "${PYTHON:-python3}" -m venv .venv; }
pip() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' scripts/constraints.txt)

# torch first and alone: on Linux, what PyPI calls torch brings gigabytes of CUDA along.
if .venv/bin/python -c 'import torch' 2>/dev/null; then
    echo "== torch is there"
elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    echo "== installing $torch for the CPU"
    pip "$torch+cpu" 2>/dev/null ||
        pip "$torch+cpu" --index-url https://download.pytorch.org/whl/cpu
else
    echo "== installing $torch"
    pip "$torch"
fi
echo "== installing vqtok${1:+ with the extra $1}"
pip --constraint scripts/constraints.txt --editable ".${1:+[$1]}"
