#!/usr/bin/env bash
# Run the tests and the benchmarks of a GPU, and write docs/figures-gpu.md:
#
#     scripts/bench_gpu.sh                                        # about half an hour
#     scripts/bench_gpu.sh --quick
#     scripts/bench_gpu.sh --device cpu --output runs/trial.md    # tries the script without a GPU
#
# Python is that of .venv, or PYTHON; it needs vqtok's dependencies, and pytest for the tests.
# Nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-$python}" scripts/bench_gpu.py "$@"
