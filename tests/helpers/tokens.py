"""Sample token files, and code counts of synthetic tokens."""

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np

from vqtok.codebook_stats.counts import CodeCounts
from vqtok.tokens import Tokens

SAMPLE = Tokens(
    indices=np.arange(3 * 8 * 12).reshape(3, 8, 12) % 64,
    frames=9,
    height=61,
    width=96,
    fps=Fraction(30000, 1001),
    time_base=Fraction(1, 30000),
    timestamps=[40 + 1001 * i for i in range(9)],
    pixel_aspect=Fraction(4, 3),
    codebook_size=64,
    quantizer="fsq",
    stride=(4, 8, 8),
    model="0123456789abcdef" * 4,
)


VARYING = [0, 33, 67, 100, 134, 234, 267, 301, 401]


def split_file(data):
    """Return the header, a dict, and the tensor bytes of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join_file(header, body):
    """Return the safetensors file of a header and tensor bytes."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def make_tokens(indices, codebook_size=16, quantizer="lfq", model="a" * 64, zero_code=False):
    """Return Tokens with these indices (t h w) or (t h w codebooks), at 25 fps."""
    t, h, w = indices.shape[:3]
    frames = 1 + 4 * (t - 1)
    return Tokens(
        indices=indices,
        frames=frames,
        height=8 * h,
        width=8 * w,
        fps=Fraction(25),
        time_base=Fraction(1, 25),
        timestamps=range(frames),
        pixel_aspect=Fraction(1),
        codebook_size=codebook_size,
        quantizer=quantizer,
        stride=(4, 8, 8),
        model=model,
        zero_code=zero_code,
    )


def count_codes(clips, **options):
    """Return the CodeCounts of clips, each an array of indices; options go to `make_tokens`."""
    counts = CodeCounts(make_tokens(clips[0], **options))
    for clip in clips:
        counts.add(make_tokens(clip, **options))
    return counts


def entropy(values):
    """Return the entropy in bits of a list of values, computed directly."""
    shares = [n / len(values) for n in Counter(values).values()]
    return -sum(p * math.log2(p) for p in shares)
