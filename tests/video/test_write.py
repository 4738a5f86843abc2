"""What is written is read back: frames, sizes, timestamps, colors and pixel aspect."""

import io
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from helpers.clips import mean_difference, pattern, read_clip
from helpers.ffmpeg import ffmpeg_frames, probe
from vqtok.errors import UsageError
from vqtok.video import VideoWriter

MILLISECOND = Fraction(1, 1000)
IRREGULAR = [0, 40, 80, 200, 230, 300, 333, 400, 440, 900]


def write(target, frames, timestamps, fps=25, time_base=MILLISECOND, **options):
    height, width = frames.shape[1:3]
    settings = {"height": height, "width": width, "fps": fps, "time_base": time_base}
    with VideoWriter(target, **settings, **options) as writer:
        writer.write(frames[:5], timestamps[:5])
        writer.write(frames[5:], timestamps[5:])


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (51, 77)], ids=["even", "odd"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_frames_and_timestamps_are_read_back(tmp_path, suffix, size):
    path, frames = tmp_path / f"out{suffix}", pattern(10, *size)
    write(path, frames, IRREGULAR)
    read_frames, timestamps, clip = read_clip(path)
    assert read_frames.shape == frames.shape
    assert [t * clip.time_base for t in timestamps] == [t * MILLISECOND for t in IRREGULAR]
    assert mean_difference(read_frames, frames) < 3
    assert np.abs(read_frames.astype(int) - frames).mean() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("time_base", ["1/30000", "1001/30000", "1/90000", "1/1200000"])
def test_frame_rate_and_timestamps_survive_any_time_base(tmp_path, suffix, time_base):
    path, fps, tick = tmp_path / f"out{suffix}", Fraction(30000, 1001), Fraction(time_base)
    written = [round(t / fps / tick) + round(1.5 / tick) for t in range(10)]
    write(path, pattern(10), written, fps, tick)
    _, timestamps, clip = read_clip(path)
    assert clip.fps == pytest.approx(fps, rel=1e-5)
    tolerance = 0 if suffix in (".mp4", ".mov") else clip.time_base / 2
    for timestamp, expected in zip(timestamps, written, strict=True):
        assert abs(timestamp * clip.time_base - expected * tick) <= tolerance


def test_gif(tmp_path):
    frames = pattern(10)
    write(tmp_path / "out.gif", frames, list(range(0, 800, 80)), fps=Fraction(25, 2))
    read_frames, timestamps, clip = read_clip(tmp_path / "out.gif")
    assert timestamps == list(range(0, 80, 8)) and clip.time_base == Fraction(1, 100)
    assert mean_difference(read_frames, frames) < 3


@pytest.mark.parametrize("size", [(64, 96), (51, 77)], ids=["even", "odd"])
def test_ffv1_is_lossless(tmp_path, size):
    frames = noise(6, *size)
    write(tmp_path / "out.mkv", frames, IRREGULAR[:6], codec="ffv1")
    np.testing.assert_array_equal(read_clip(tmp_path / "out.mkv")[0], frames)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_colors_are_bt709_and_tagged_so(tmp_path, suffix):
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 120, 200)]
    frames = np.array(colors, np.uint8).repeat(64 * 64, 0).reshape(6, 64, 64, 3)
    path = tmp_path / f"out{suffix}"
    write(path, frames, IRREGULAR[:6])
    assert mean_difference(ffmpeg_frames(path, 6), frames) < 4
    assert probe(path).color_tags == ("tv", "bt709", "bt709", "bt709")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_pixel_aspect_is_kept(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write(path, pattern(6), IRREGULAR[:6], pixel_aspect=Fraction(4, 3))
    assert read_clip(path)[2].pixel_aspect == Fraction(4, 3)


def test_a_stream_is_written_to_a_pipe(tmp_path):
    with (
        (tmp_path / "out.mkv").open("wb") as file,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat,
    ):
        write(cat.stdin, pattern(10), IRREGULAR)
    frames, timestamps, _ = read_clip(tmp_path / "out.mkv")
    assert timestamps == IRREGULAR and len(frames) == 10


def test_a_closed_pipe_raises_an_os_error():
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as process:
        process.wait()
        with pytest.raises(OSError):
            write(process.stdin, noise(10, 128, 128), IRREGULAR, codec="ffv1")
        process.stdin = None


def test_a_binary_file_is_written_and_read():
    file = io.BytesIO()
    write(file, pattern(10), IRREGULAR)
    assert not file.closed
    file.seek(0)
    assert read_clip(file)[1] == IRREGULAR


def test_an_error_keeps_the_old_file_or_leaves_none(tmp_path):
    class Interrupted(BaseException):
        pass

    old, new = tmp_path / "old.mp4", tmp_path / "new.mp4"
    old.write_bytes(b"old")
    for path in (old, new):
        with (
            pytest.raises(Interrupted),
            VideoWriter(path, height=64, width=96, fps=25, time_base=MILLISECOND) as writer,
        ):
            writer.write(pattern(10), IRREGULAR)
            raise Interrupted
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.xyz", {}, "must end in one of .mp4"),
        ("out.mp4", {"codec": "divx"}, "choose one of h264"),
        ("out.gif", {"crf": 20}, "gif has no crf"),
        ("out.webm", {"codec": "h264"}, "webm cannot store h264; write to .mkv"),
        ("out.mkv", {"codec": "gif"}, "matroska cannot store gif; write to .gif"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, name, options, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / name, pattern(6), IRREGULAR[:6], **options)
    assert list(tmp_path.iterdir()) == []
