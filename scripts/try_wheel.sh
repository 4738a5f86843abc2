#!/usr/bin/env bash
# Install the wheel in dist/ into an empty environment and use it there, outside of this folder:
#
#     scripts/try_wheel.sh python3.11 lowest      # the oldest dependencies that it allows
#     scripts/try_wheel.sh python3.13 highest     # the newest
#     scripts/try_wheel.sh python3.13 highest tests/tokens tests/model     # and run tests
#
# UV_TORCH_BACKEND=cpu takes PyTorch from download.pytorch.org: what PyPI calls torch brings
# gigabytes of CUDA along on Linux. UV_CACHE_DIR is where downloads are kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd -P)
if [ "$#" -lt 2 ] || ! [[ $2 =~ ^(lowest|highest)$ ]]; then
    echo "usage: $0 PYTHON lowest|highest [TESTS...]" >&2
    exit 2
fi
python=$1 versions=$2
shift 2
wheel=$(ls "$root"/dist/*.whl) || { echo "no wheel in dist/: run scripts/release.sh" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv=$(command -v uv) || {
    "$python" -m venv "$folder/uv"
    "$folder/uv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
    uv=$folder/uv/bin/uv
}
echo "== $("$python" --version), $versions versions"
"$python" -m venv --without-pip "$folder/env"
install() { "$uv" pip install --quiet --python "$folder/env/bin/python" "$@"; }
if [ "$versions" = lowest ]; then
    install --resolution lowest-direct -r "$root/pyproject.toml"
    install --no-deps "$wheel"
else
    install "$wheel"
fi
"$uv" pip check --quiet --python "$folder/env/bin/python"
cd "$folder"
env/bin/python -I "$root/scripts/try_wheel.py" "$root"
if [ "$#" -gt 0 ]; then
    install pytest hypothesis imageio-ffmpeg
    cd "$root"
    "$folder/env/bin/pytest" -p no:cacheprovider -m "not slow" "$@"
fi
