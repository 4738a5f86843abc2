#!/usr/bin/env bash
# Build the source distribution and the wheel in dist/, check both, and use the wheel in empty
# environments. Nothing is uploaded; the last line is the command that would.
#
#     scripts/release.sh                  # tries the wheel with this Python
#     scripts/release.sh --matrix         # with the oldest and the newest of what is supported
#     scripts/release.sh --build          # builds and checks only
#
# PYTHON=python3.12 chooses the Python that builds and tries. scripts/try_wheel.sh says where
# PyTorch comes from.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
tools=.cache/release
case $#${1-} in
    0 | 1--matrix | 1--build) ;;
    *) echo "usage: $0 [--matrix | --build]" >&2; exit 2 ;;
esac
echo "== tools"
"$python" -m venv --clear $tools
$tools/bin/python -m pip install --quiet --disable-pip-version-check 'build>=1.2' 'twine>=6.1'
echo "== build"
rm -rf dist
$tools/bin/python -m build --outdir dist . > .cache/build.log ||
    { cat .cache/build.log >&2; exit 1; }
echo "== check"
$tools/bin/python -m twine check --strict dist/*
$tools/bin/python scripts/check_release.py dist
case ${1-} in
    --matrix)
        scripts/try_wheel.sh python3.11 lowest
        scripts/try_wheel.sh python3.13 highest ;;
    "") scripts/try_wheel.sh "$python" highest ;;
esac
next=$($tools/bin/python scripts/check_release.py dist --next)
echo "== done: $next"
