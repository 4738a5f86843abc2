"""`vqtok decode`: the decoded video, pipes, and tokens that are damaged or of another tokenizer."""

import io
import re
from dataclasses import replace

import av
import numpy as np
import pytest

from helpers import DEMO
from helpers.command import fails, file_names, in_subprocess, works
from vqtok.tokens import read_tokens
from vqtok.tokens.io import tokens_to_bytes
from vqtok.video import open_video


def test_encode_and_decode_work_in_a_pipe(clip):
    tokens = works("encode", "-", run=in_subprocess, stdin=clip.read_bytes()).stdout
    assert tokens == works("encode", clip).stdout
    decoded = works("decode", "-", "-o", "-", "--quiet", run=in_subprocess, stdin=tokens)
    assert decoded.stdout[:4] == b"\x1aE\xdf\xa3"  # Matroska
    assert decoded.stderr == b""


def test_the_decoded_video_has_the_size_and_times_of_the_clip(clip, tmp_path):
    tokens = works("encode", clip).stdout
    works("decode", "-", "-o", tmp_path / "decoded.mp4", stdin=tokens)
    with av.open(str(tmp_path / "decoded.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(f.height, f.width) for f in frames] == [(64, 96)] * 14
    assert [float(f.time) for f in frames] == pytest.approx([t / 25 for t in range(14)])


def test_the_decoded_video_looks_like_the_clip(tmp_path):
    """Catches swapped channels, flipped pictures and flat colors, not fine quality."""
    decoded = tmp_path / "decoded.mkv"
    tokens = works("encode", DEMO, "--size", 128, "--duration", 0.4).stdout
    works("decode", "-", "-o", decoded, "--codec", "ffv1", stdin=tokens)
    with open_video(DEMO, size=128) as one, open_video(decoded) as two:
        (before, _), (after, _) = (next(clip.chunks(12)) for clip in (one, two))
    assert before.shape == after.shape
    assert np.abs(before.astype(float) - after).mean() < 10
    assert np.abs(before.mean((0, 1, 2)) - after.mean((0, 1, 2))).max() < 4


def test_verbose_prints_timings(clip, tmp_path, tiny):
    tokens = works("encode", clip, *tiny).stdout
    args = "decode", "-", "-o", tmp_path / "decoded.mkv", "--verbose", *tiny
    stderr = works(*args, stdin=tokens).stderr.decode()
    assert re.search(r"decoded.mkv: model \d+%, writing \d+% of \d+\.\d s", stderr)


@pytest.mark.parametrize("damage", ["truncated", "edited", "other"])
def test_damaged_tokens_are_refused(damage, clip, tmp_path, tiny):
    tokens = works("encode", clip, *tiny).stdout
    data = {
        "truncated": tokens[:-10],
        "edited": tokens.replace(b'"frames": "14"', b'"frames": "94"'),
        "other": b"x" * 200,
    }[damage]
    fails(1, "the video again", "decode", "-", "-o", tmp_path / "b.mp4", *tiny, stdin=data)
    assert file_names(tmp_path) == ["clip.mp4"]


def test_tokens_of_another_tokenizer_are_refused(clip, tmp_path, tiny):
    path = tmp_path / "t.safetensors"
    works("encode", clip, "-o", path, *tiny)
    message = f"{path}: these tokens were made by another tokenizer (fsq"
    assert "--tokenizer" in fails(1, message, "decode", path, "-o", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_nothing_is_written_of_a_clip_that_no_container_can_hold(clip, tiny):
    tokens = read_tokens(io.BytesIO(works("encode", clip, *tiny).stdout))
    late = tokens_to_bytes(replace(tokens, timestamps=range(2**61, 2**61 + tokens.frames)))
    fails(1, "matroska cannot store a frame at", "decode", "-", "-o", "-", *tiny, stdin=late)
