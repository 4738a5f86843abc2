"""The commands on a GPU."""

import json

import numpy as np
import pytest

from helpers.clips import pattern, read_clip, write_clip
from helpers.command import TINY, works
from vqtok.tokens import read_tokens

pytestmark = pytest.mark.cuda
DEVICE = "cuda"


@pytest.fixture
def clips(tmp_path):
    """A folder of clips of two sizes."""
    (tmp_path / "clips").mkdir()
    for i, (frames, height, width) in enumerate([(30, 64, 96), (9, 48, 64), (21, 64, 96)]):
        write_clip(tmp_path / "clips" / f"{i}.mp4", pattern(frames, height, width))
    return tmp_path / "clips"


def encode(clips, folder, *options):
    """Return the indices of each clip."""
    works("encode", clips, "-o", folder, "--dtype", "float32", "--quiet", *options)
    return [read_tokens(path).indices for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("rate", [(), ("--tokens", 0.5)], ids=["all", "half"])
def test_tokens_are_the_same_on_every_run_and_nearly_those_of_the_cpu(
    clips, tmp_path, staged, rate
):
    options = ("--device", DEVICE, *staged, *rate)
    first = encode(clips, tmp_path / "first", *options)
    second = encode(clips, tmp_path / "second", *options, "--jobs", 3)
    for indices, again in zip(first, second, strict=True):
        assert np.array_equal(indices, again)
    if not rate:
        cpu = encode(clips, tmp_path / "cpu", "--device", "cpu", *staged)
        for indices, expected in zip(first, cpu, strict=True):
            assert (indices == expected).mean() > 0.9


def test_decoded_frames_are_nearly_those_of_the_cpu(clips, tmp_path, staged):
    encode(clips, tmp_path / "tokens", "--device", "cpu", *staged)
    for device in ("cpu", DEVICE):
        options = ("--device", device, "--dtype", "float32", "--codec", "ffv1", "--jobs", 2)
        works("decode", tmp_path / "tokens", "-o", tmp_path / device, *options, *staged)
    for path in (tmp_path / "cpu").iterdir():
        expected, timestamps, _ = read_clip(path)
        frames, gpu_timestamps, _ = read_clip(tmp_path / DEVICE / path.name)
        assert timestamps == gpu_timestamps
        assert np.abs(frames - expected.astype(float)).max() <= 2


def test_eval_measures_on_the_device(clips, tiny):
    options = ("--dtype", "float32", "--json", *tiny)
    figures = [
        json.loads(works("eval", clips, "--device", device, *options).stdout)["clips"]
        for device in ("cpu", DEVICE)
    ]
    for cpu, gpu in zip(*figures, strict=True):
        assert gpu["psnr"] == pytest.approx(cpu["psnr"], abs=0.1)
        assert gpu["ssim"] == pytest.approx(cpu["ssim"], abs=0.01)
        assert gpu["encode_fps"] > 0 and gpu["decode_fps"] > 0


@pytest.mark.parametrize("quantizer", ["ema", "fsq", "lfq", "gumbel", "vq2"])
def test_a_run_is_trained_and_resumed(quantizer, clips, tmp_path):
    options = ("--device", DEVICE, "--quiet")
    settings = ("--quantizer", quantizer, *TINY, "--set", "train.steps=4")
    works("train", "--data", clips, *settings, "--out", tmp_path / "run", "--steps", 2, *options)
    works("train", "--data", clips, "--resume", tmp_path / "run", *options)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 4 and np.isfinite(rows[-1]["loss"])
