#!/usr/bin/env bash
# Set up .venv and run all checks: lint, format, types, tests. Arguments go to pytest, such as
# -m "not slow" to leave out the tests that take more than 5 s.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
echo "== ruff"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
echo "== mypy"
.venv/bin/mypy
echo "== pytest"
.venv/bin/python -m pytest "$@"
