"""Files that vqtok 0.1.0 wrote, and Python and commands written for it, work as they did.

The tokenizer files of 0.1.0 are tested in tests/model/test_checkpoint.py.
"""

import json

import av
import numpy as np
import pytest
import torch

import vqtok.tokens
from helpers import GOLDEN
from helpers.command import works
from vqtok import config

FILES = GOLDEN / "vqtok-0.1.0"
TOKENS = FILES / "tokens.safetensors"
DEFAULT = "ema-4x8x8-64k"  # of 0.1.0


def test_tokens_decode_to_the_same_video(tmp_path):
    video = tmp_path / "decoded.mkv"
    works(
        *("decode", TOKENS, "-o", video, "--codec", "ffv1"),
        *("--tokenizer", DEFAULT, "--dtype", "float32"),
    )
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 15
    found = np.stack(frames)[[0, 4, 14], ::2, ::2].astype(int)
    expected = np.load(FILES / "frames.npy")
    assert expected.std() > 40  # a picture
    assert np.abs(found - expected).max() <= 3


def test_stats_has_the_same_keys_and_values():
    def rounded(text):
        return json.loads(text, parse_float=lambda number: round(float(number), 9))

    expected = rounded((FILES / "stats.json").read_text())
    found = rounded(works("stats", TOKENS, "--json").stdout)
    for part in found["over_time"]:
        del part["kept"]  # newer
    changed = {key for key in expected if found.get(key) != expected[key]}
    assert changed <= {"verdict_reason"}  # which is prose


def test_the_settings_of_a_run_are_read():
    settings = config.read_json(FILES / "config.json")
    old = json.loads((FILES / "config.json").read_text())
    assert settings.model.intra_share == old["quantizer"]["absolute_share"] == 0.25
    assert settings.quantizer.init_from_data is old["quantizer"]["data_start"] is True
    assert settings.model.keyframe_interval == old["model"]["key_every"] == 32
    assert settings.train.init_clips == old["train"]["start_clips"] == 2
    assert settings.quantizer.stages == 0


def test_python_for_tensors_runs():
    """The example of the README of 0.1.0, with the name of its tokenizer."""
    tokenizer = vqtok.load(DEFAULT)
    video = torch.rand(1, 3, 17, 64, 96)
    indices = tokenizer.encode(video)
    assert indices.shape == (1, 5, 8, 12)
    assert indices.dtype == torch.int64
    decoded = tokenizer.decode(indices, frames=17)
    assert decoded.shape == video.shape
    assert decoded.min() >= 0 and decoded.max() <= 1
    parts = list(tokenizer.encode_stream(video.split(4, dim=2)))
    assert torch.equal(torch.cat(parts, 1), indices)


def test_python_for_token_files_runs(tmp_path):
    tokens = vqtok.tokens.read(TOKENS)
    assert (tokens.frames, tokens.height, tokens.width) == (15, 64, 114)
    assert tokens.indices.shape == (5, 8, 15)
    vqtok.tokens.write(tmp_path / "again.safetensors", tokens)
    assert (tmp_path / "again.safetensors").read_bytes() == TOKENS.read_bytes()


@pytest.mark.parametrize("training", [False, True])
def test_python_for_quantizers_runs(training):
    from vqtok.quantizers import (
        FSQ,
        LFQ,
        EMAVectorQuantizer,
        GumbelQuantize,
        VectorQuantizer2,
    )

    z = torch.randn(2, 6, 4, 8, 8)
    out, indices = FSQ([8, 8, 8, 5, 5, 5])(z)
    assert (out.shape, indices.shape) == (z.shape, (2, 4, 8, 8))
    for quantizer in (
        FSQ([8, 8, 8, 5, 5, 5]),
        LFQ(dim=6, codebook_size=64),
        VectorQuantizer2(64, 6, 0.25, revive_after=100),
        EMAVectorQuantizer(64, 6, 0.25, revive_after=100),
        GumbelQuantize(6, 6, 64),
    ):
        result = quantizer.train(training).quantize(z)
        assert result.z_q.shape == z.shape
        assert result.loss.ndim == 0 and isinstance(result.terms, dict)
        if not training:
            assert torch.equal(quantizer.restore(result.indices), result.z_q)
