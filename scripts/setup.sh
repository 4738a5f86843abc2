#!/usr/bin/env bash
# Create .venv and install vqtok in it with the versions that were tested; safe to run again.
#
#     scripts/setup.sh [EXTRA]      # EXTRA: test or docs
#
# PYTHON=python3.12 chooses the Python that .venv is made with.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=$(grep '^torch==' scripts/constraints.txt)
pip() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint scripts/constraints.txt "$@"
}

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "== making .venv"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "vqtok needs Python 3.11 or newer: PYTHON=python3.12 $0" >&2; exit 1; }
    "${PYTHON:-python3}" -m venv --clear .venv
fi

# torch first and alone: on Linux, what PyPI calls torch brings gigabytes of CUDA along.
if .venv/bin/python -m pip freeze 2>/dev/null | grep -qE "^$torch(\+|$)"; then
    echo "== $torch is there"
elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    echo "== installing $torch for the CPU"
    pip "$torch+cpu" 2>/dev/null ||
        pip "$torch+cpu" --index-url https://download.pytorch.org/whl/cpu
else
    echo "== installing $torch"
    pip "$torch"
fi
echo "== installing vqtok${1:+ with the extra $1}"
pip hatchling hatch-fancy-pypi-readme editables
pip --no-build-isolation --editable ".${1:+[$1]}"
