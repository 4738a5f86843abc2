#!/usr/bin/env bash
# Tokenize a real clip, decode it again and report on the codebook:
#
#     scripts/demo.sh [CLIP]        # without CLIP: the one that comes with the repository
set -euo pipefail
clip=$(realpath "${1:-$(dirname "$0")/demo.mp4}")
cd "$(dirname "$0")/.."
scripts/setup.sh
mkdir -p runs/demo
echo "== vqtok encode $clip -o runs/demo/tokens.safetensors"
.venv/bin/vqtok encode "$clip" -o runs/demo/tokens.safetensors --force
echo "== vqtok decode runs/demo/tokens.safetensors -o runs/demo/decoded.mp4"
.venv/bin/vqtok decode runs/demo/tokens.safetensors -o runs/demo/decoded.mp4 --force
echo "== vqtok stats runs/demo/tokens.safetensors"
.venv/bin/vqtok stats runs/demo/tokens.safetensors
echo "== done: compare $clip with runs/demo/decoded.mp4"
