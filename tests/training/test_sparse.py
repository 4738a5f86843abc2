"""Videos of one color, and those in which little differs from the background, train sanely."""

import numpy as np
import pytest

from helpers.clips import write_clip
from helpers.command import TINY, works
from helpers.training import make_run, train_run
from vqtok.settings import QUANTIZERS

COLORS = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255), "red": (255, 0, 0)}


def dots(frames=17, size=64):
    """Return uint8 (t h w c): a white dot that moves over black."""
    clip = np.zeros((frames, size, size, 3), np.uint8)
    for t in range(frames):
        y, x = 8 + 2 * t, 4 + 3 * t
        clip[t, y : y + 4, x : x + 4] = 255
    return clip


def slides(frames=17, size=64):
    """Return uint8 (t h w c): lines of dark text on white."""
    clip = np.full((frames, size, size, 3), 255, np.uint8)
    clip[:, 8::16, 8:-8:3] = 30
    return clip


CONTENT = {"dots": dots, "slides": slides} | {
    name: lambda color=color: np.full((17, 64, 64, 3), color, np.uint8)
    for name, color in COLORS.items()
}


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_training_starts_with_a_small_loss_and_stays_there(tmp_path, kind, content):
    clip = write_clip(tmp_path / "clip.mkv", CONTENT[content](), codec="ffv1", pix_fmt="bgr0")
    run = make_run(tmp_path / "run", kind, "train.steps=10", sources=[clip])
    row = train_run(run)[-1]
    assert row["psnr"] > 12  # averaged over the first ten steps
    assert abs(row["loss"]) < 10


def train_command(tmp_path, content, *options):
    clip = write_clip(tmp_path / "clip.mkv", CONTENT[content](), codec="ffv1", pix_fmt="bgr0")
    result = works("train", "--data", clip, *TINY, *options)
    return result.stderr.decode().strip().splitlines()


def test_a_tokenizer_that_is_worse_than_block_averages_is_called_so(tmp_path):
    too_fast = ["learning_rate=0.5", "warmup=0", "ema_decay=0", "steps=3"]
    options = [f"--set=train.{setting}" for setting in too_fast]
    last_line = train_command(tmp_path, "slides", *options, "--out", tmp_path / "run")[-1]
    assert "reconstructions are worse than block averages" in last_line
    assert train_command(tmp_path, "slides", *options, "--quiet", "--out", tmp_path / "q") == []


def test_a_tokenizer_that_is_as_good_is_not(tmp_path):
    last_line = train_command(tmp_path, "black", "--set=train.steps=1", "--out", tmp_path / "run")[
        -1
    ]
    assert "is ready" in last_line
