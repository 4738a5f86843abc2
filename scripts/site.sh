#!/usr/bin/env bash
# Build the documentation site in site/; with `serve`, show it while its pages are edited.
#
#     scripts/site.sh [serve]
#
# Needs the extra `docs`: scripts/setup.sh docs
set -euo pipefail
cd "$(dirname "$0")/.."
export NO_MKDOCS_2_WARNING=1  # the theme advertises its successor
python=${PYTHON:-.venv/bin/python}
exec "$python" -m mkdocs "${1:-build}" --config-file scripts/site/mkdocs.yml
