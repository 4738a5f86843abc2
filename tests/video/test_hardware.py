"""Decoding by hardware gives the same frames, and its absence changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.clips import clip_files
from vqtok.video import container, open_video

PHONE_CLIPS = ("phone_rotated_cut.mov", "talk_vfr_cut.mkv")


def assert_same_frames(first, second):
    for (frames, timestamps), (other_frames, other_timestamps) in zip(
        first.chunks(8), second.chunks(8), strict=True
    ):
        assert np.array_equal(frames, other_frames) and timestamps == other_timestamps


@pytest.mark.parametrize("hardware", ["cuda", "cuda:7", "videotoolbox", "none"])
@pytest.mark.parametrize("path", clip_files("dev", *PHONE_CLIPS))
def test_missing_hardware_changes_nothing(path, hardware):
    if hardware == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with (
        open_video(path, duration=0.5) as software,
        open_video(path, None, None, 0, 0.5, hardware) as clip,
    ):
        assert_same_frames(software, clip)
        assert clip.decoder == software.decoder == "h264 decoded in software"


def test_a_file_is_reopened_for_hardware_and_closed_before(make_clip, monkeypatch):
    path, opened, av_open = make_clip(), [], container.av.open

    def open_recorded(*args, hwaccel=None, **options):
        opened.append((hwaccel, av_open(*args, **options)))
        return opened[-1][1]

    monkeypatch.setattr(container, "hwdevices_available", lambda: ["made-up"])
    monkeypatch.setattr(container, "HWAccel", lambda *device: device)
    monkeypatch.setattr(container.av, "open", open_recorded)
    with open_video(path) as software, open_video(path, hardware="made-up:1") as clip:
        assert_same_frames(software, clip)
        devices = [device for device, _ in opened if device]
        assert devices == [("made-up", "1")]
        first = opened[[device for device, _ in opened].index(devices[0]) - 1][1]
        with pytest.raises(AssertionError, match="not open"):
            first.seek(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", clip_files("dev"))
def test_cuda_decodes_the_same_frames_as_software(path: Path):
    with (
        open_video(path, duration=0.5) as software,
        open_video(path, duration=0.5, hardware="cuda") as clip,
    ):
        for name in ("height", "width", "fps", "origin"):
            assert getattr(clip, name) == getattr(software, name)
        assert_same_frames(software, clip)
