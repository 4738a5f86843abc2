"""Memory does not grow with the length of the clip: peak memory of fresh processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.clips import pattern, write_clip
from helpers.tokenizers import save_staged_tokenizer, save_tokenizer

SHORT, LONG = 40, 480  # frames
HEIGHT, WIDTH = 192, 256
SLACK = 48  # MiB: the heap varies by about 12, and LONG frames of RGB would take 67

MEASURE = """
import re, sys
from pathlib import Path
from vqtok.cli import app
try:
    app()
finally:
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=sys.stderr)
"""


def peak(*arguments):
    """Return the peak memory of a vqtok command in MiB."""
    command = [sys.executable, "-c", MEASURE, *map(str, arguments), "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stderr.split()[-1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_clip(tmp_path):
    # A small network is fast, and its own memory does not hide that of the frames.
    tokenizer = "--tokenizer", save_tokenizer(tmp_path / "tokenizer.safetensors")
    staged = "--tokenizer", save_staged_tokenizer(tmp_path / "staged.safetensors")
    encode, decode, encode_at_psnr = [], [], []
    for frames in (SHORT, LONG):
        clip, tokens = tmp_path / f"{frames}.mp4", tmp_path / f"{frames}.safetensors"
        write_clip(clip, np.resize(pattern(24, HEIGHT, WIDTH), (frames, HEIGHT, WIDTH, 3)))
        encode.append(peak("encode", clip, "-o", tokens, *tokenizer))
        decoded = "-o", tmp_path / f"{frames}.decoded.mp4", "--crf", 51
        decode.append(peak("decode", tokens, *decoded, *tokenizer))
        tokens = tmp_path / f"{frames}.staged.safetensors"
        encode_at_psnr.append(peak("encode", clip, "-o", tokens, "--psnr", 25, *staged))
    assert encode[1] - encode[0] < SLACK
    assert encode_at_psnr[1] - encode_at_psnr[0] < SLACK
    assert decode[1] - decode[0] < SLACK
