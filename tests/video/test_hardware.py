"""Decoding by hardware gives the same frames, and its absence changes nothing."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from helpers.clips import clip_files, pattern, read_clip, write_clip
from vqtok.video import container, open_video
from vqtok.video.cropping import Cropping
from vqtok.video.decode import Decoder
from vqtok.video.hardware import remaining_cropping

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


@pytest.fixture
def hardware(monkeypatch):
    """Make a device of every type, on which FFmpeg decodes in software.

    Returns the list of (type, index, options) of the device, or None, and the container it was
    opened for; there is one of each call of `av.open`.
    """
    opened, av_open = [], container.av.open

    def open_recorded(*args, hwaccel=None, **options):
        opened.append((hwaccel, av_open(*args, **options)))
        return opened[-1][1]

    monkeypatch.setattr("vqtok.video.hardware.hwdevices_available", lambda: ["made-up", "cuda"])
    monkeypatch.setattr("vqtok.video.hardware.HWAccel", lambda *device, **more: (*device, more))
    monkeypatch.setattr(container.av, "open", open_recorded)
    return opened


def test_a_file_is_reopened_for_hardware_and_closed_before(make_clip, hardware):
    path = make_clip()
    with open_video(path) as software, open_video(path, hardware="made-up:1") as clip:
        assert_same_frames(software, clip)
        devices = [device for device, _ in hardware if device]
        assert devices == [("made-up", "1", {})]
        first = hardware[[device for device, _ in hardware].index(devices[0]) - 1][1]
        with pytest.raises(AssertionError, match="not open"):
            first.seek(0)


@pytest.mark.parametrize("name, index", [("cuda", None), ("cuda:0", "0"), ("cuda:1", "1")])
def test_cuda_decodes_in_the_context_of_torch(name, index, make_clip, hardware, monkeypatch):
    events = []

    @contextmanager
    def device(name):
        events.append(f"enter {name}")
        yield
        events.append(f"leave {name}, {sum(bool(device) for device, _ in hardware)} opened")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: events.append(f"use {device}"))
    with open_video(make_clip(), hardware=name):
        assert events == [f"enter {name}", f"use {name}", f"leave {name}, 1 opened"]
        devices = [device for device, _ in hardware if device]
        assert devices == [("cuda", index, {"options": {"current_ctx": "1"}})]


def test_a_device_that_torch_does_not_have_decodes_nothing(make_clip, hardware, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with open_video(make_clip(), hardware="cuda:2") as clip:
        assert clip.decoder == "h264 decoded in software"
    assert not any(device for device, _ in hardware)


def test_a_device_that_cannot_be_opened_decodes_nothing(make_clip, hardware, monkeypatch):
    open_recorded = container.av.open

    def open_without_driver(*args, hwaccel=None, **options):
        if hwaccel:
            raise av.error.ExternalError(-542398533, "Generic error in an external library")
        return open_recorded(*args, **options)

    monkeypatch.setattr(container.av, "open", open_without_driver)
    with open_video(make_clip(frames=3), hardware="made-up") as clip:
        assert [len(frames) for frames, _ in clip.chunks(8)] == [3]


def test_hardware_frames_are_cropped_at_the_left_and_the_top(tmp_path, monkeypatch):
    cropping = {"x264-params": "crop-rect=4,2,6,8"}
    path = write_clip(tmp_path / "a.mp4", pattern(3), qp="0", **cropping)
    expected, timestamps, _ = read_clip(path)
    # If it must align rows, the software decoder leaves what is hidden at the left, too.
    monkeypatch.setattr(Decoder, "_set_codec_options", lambda self: None)
    assert read_clip(path)[0].shape == (3, 54, 90, 3) != expected.shape
    monkeypatch.setattr(Decoder, "_set_codec_options", lambda self: vars(self).update(_hardware=1))
    monkeypatch.setattr("vqtok.video.decode.is_from_hardware", lambda frame: True)
    frames, frame_timestamps, clip = read_clip(path)
    assert clip.decoder == "h264 decoded in hardware"
    assert np.array_equal(frames, expected) and frame_timestamps == timestamps


def test_hidden_rows_and_columns_of_hardware_frames():
    frame = av.VideoFrame(96, 64, "nv12")
    for height, width, expected in (
        (64, 96, Cropping()),
        (60, 94, Cropping(top=4, left=2)),
        (64, 90, Cropping(left=6)),
        (128, 192, Cropping()),  # the size has changed since
    ):
        assert remaining_cropping(frame, SimpleNamespace(height=height, width=width)) == expected


@pytest.mark.cuda
@pytest.mark.parametrize("path", clip_files("dev"))
def test_cuda_decodes_the_same_frames_as_software(path: Path):
    with (
        open_video(path, duration=0.5) as software,
        open_video(path, duration=0.5, hardware="cuda") as clip,
    ):
        for name in ("height", "width", "fps", "origin"):
            assert getattr(clip, name) == getattr(software, name)
        assert_same_frames(software, clip)
