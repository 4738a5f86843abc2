"""What is written is read back: frames, sizes, timestamps, colors and pixel aspect."""

import io
import subprocess
import time
from fractions import Fraction

import numpy as np
import pytest

from helpers.clips import mean_difference, pattern, read_clip
from helpers.ffmpeg import ffmpeg_frames, probe, run_ffmpeg
from helpers.roundtrip import LosslessTokenizer
from vqtok.errors import UsageError, VqtokError
from vqtok.pipeline.clip import decode_clip
from vqtok.tokens import Tokens
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


CLOCKS = [
    *("1/1000000000", "1/1000000", "1/90000", "1001/30000", "1/25"),
    *("2/1", "3/7", "1/2147483647", "2147483647/2147483646"),
]
# The times of the frames, in seconds; written as the nearest ticks, at least one tick apart.
PAUSES = {
    "pause": [0, 0.04, 0.08, 3.5],
    "hour": [0, 0.04, 0.08, 3600],
    "month": [0, 0.04, 2.6e6, 2.6e6 + 0.04],
    "late": [5000, 5000.04, 5000.08],
}


def ticks(seconds, time_base):
    written = []
    for second in seconds:
        written.append(max([round(second / time_base), *(last + 1 for last in written[-1:])]))
    return written


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("clock", CLOCKS)
def test_long_pauses_keep_their_length_on_any_clock(tmp_path, clock, pause, suffix):
    path, time_base = tmp_path / f"out{suffix}", Fraction(clock)
    written = ticks(PAUSES[pause], time_base)
    max_gap = max(np.diff(written).tolist())
    fps = (len(written) / (time_base * (written[-1] - written[0]))).limit_denominator(10**6)
    write(path, pattern(len(written), 16, 16), written, fps, time_base, max_gap=max_gap)
    exact = max_gap * time_base.numerator < 2**31 - 2 and time_base.denominator <= 10**9
    tolerance = 0 if exact else max(Fraction(1, 10**9), max_gap * time_base / 10**9)
    if suffix in (".mkv", ".webm"):
        tolerance = Fraction(501, 10**6)
    for actual, expected in zip(probe(path).seconds, written, strict=True):
        assert abs(actual - expected * time_base) <= tolerance


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_tokens_with_a_long_pause_are_decoded_to_their_times(tmp_path, suffix):
    nanoseconds = [0, 40_000_000, 80_000_000, 3_500_000_000]
    tokens = Tokens(
        indices=np.zeros((4, 16, 16), np.uint8),
        frames=4,
        height=16,
        width=16,
        fps=Fraction(30),
        time_base=Fraction(1, 10**9),
        timestamps=nanoseconds,
        pixel_aspect=Fraction(1),
        codebook_size=LosslessTokenizer.codebook_size,
        quantizer=LosslessTokenizer.kind,
        stride=LosslessTokenizer.stride,
        model=LosslessTokenizer.fingerprint,
    )
    decode_clip(tokens, LosslessTokenizer(), tmp_path / f"out{suffix}")
    expected = [Fraction(time, 10**9) for time in nanoseconds]
    assert probe(tmp_path / f"out{suffix}").seconds == expected


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("fps", ["1/86400", "1/10", "1000003/7"])
@pytest.mark.parametrize("clock", ["1/1000000000", "1/25"])
def test_any_frame_rate_is_written_on_any_clock(tmp_path, clock, fps, suffix):
    path, time_base = tmp_path / f"out{suffix}", Fraction(clock)
    written = ticks([0, 0.04, 0.08, 0.12], time_base)
    write(path, pattern(4, 16, 16), written, Fraction(fps), time_base)
    for actual, expected in zip(probe(path).seconds, written, strict=True):
        assert abs(actual - expected * time_base) <= Fraction(1, 10**4)


def test_times_that_mp4_cannot_store_are_refused(tmp_path):
    nanosecond = Fraction(1, 10**9)
    close = [0, 1, 10**15, 10**15 + 1]
    with pytest.raises(VqtokError, match=r"shortest and the longest time .* write to .mkv"):
        write(tmp_path / "out.mp4", pattern(4), close, 1, nanosecond, max_gap=10**15)
    with pytest.raises(VqtokError, match=r"shortest and the longest time .* write to .mkv"):
        write(tmp_path / "out.mp4", pattern(4), [0, 1, 2, 10**10], 25, nanosecond)  # no max_gap
    with pytest.raises(VqtokError, match=r"mp4 cannot show a frame for 3.2e\+09 s"):
        write(tmp_path / "out.mp4", pattern(2), [0, 1], Fraction(1, 3_200_000_000), nanosecond)
    for suffix in (".mkv", ".webm", ".gif"):
        with pytest.raises(VqtokError, match=r"cannot store a frame at 4.952e\+27 s"):
            write(tmp_path / f"out{suffix}", pattern(1), [2**61], 25, Fraction(2**31 - 1))
    assert list(tmp_path.iterdir()) == []


def test_gif(tmp_path):
    frames = pattern(10)
    write(tmp_path / "out.gif", frames, list(range(0, 800, 80)), fps=Fraction(25, 2))
    read_frames, timestamps, clip = read_clip(tmp_path / "out.gif")
    assert timestamps == list(range(0, 80, 8)) and clip.time_base == Fraction(1, 100)
    assert mean_difference(read_frames, frames) < 3


@pytest.mark.parametrize(
    ("suffixes", "rate", "ticks", "shown", "note"),
    [
        ((".mkv", ".webm"), 20000, [0, 1, 2, 3, 4], [0], "frame lasts 0.001 s or more"),
        ((".mkv", ".webm"), 10000, [0, 4, 5, 14, 16, 24, 30], [0, 1, 2, 3], "0.001 s or more"),
        ((".mkv", ".webm"), 2000, [1, 3, 5, 7, 9], [1, 2, 3, 4, 5], None),
        ((".gif",), 100, [0, 1, 2, 3, 4], [0, 20, 40], "a gif frame lasts 0.02 s or more"),
        ((".mp4", ".mov"), 20000, [0, 20, 21], [0, 1, 1.05], None),
    ],
)
def test_frames_that_come_too_soon_are_dropped(tmp_path, suffixes, rate, ticks, shown, note):
    """shown: in milliseconds, as rounded by the container."""
    for suffix in suffixes:
        path, frames = tmp_path / f"out{suffix}", pattern(len(ticks))
        options = {"height": frames.shape[1], "width": frames.shape[2], "fps": rate}
        with VideoWriter(path, time_base=Fraction(1, rate), **options) as writer:
            writer.write(frames, ticks)
        assert [float(1000 * second) for second in probe(path).seconds] == shown
        dropped = f"{len(ticks) - len(shown)} frames dropped: "
        assert [n.startswith(dropped) and note in n for n in writer.notes] == [True] * bool(note)


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


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", None])
def test_equal_frames_give_equal_bytes(tmp_path, suffix):
    """With audio too, and to a pipe, at another time of day."""
    frames, audio = pattern(1 if suffix == ".png" else 10), None
    if suffix not in (".gif", ".png"):
        audio = tmp_path / "audio.mka"
        codec = "libopus" if suffix == ".webm" else "aac"
        run_ffmpeg("-f", "lavfi", "-i", "sine=duration=0.5", "-c:a", codec, audio)
    contents = []
    for seconds in 0, 1.1:
        time.sleep(seconds)
        target = tmp_path / f"out{suffix}" if suffix else io.BytesIO()
        write(target, frames, IRREGULAR[: len(frames)], audio_from=audio)
        contents.append(target.read_bytes() if suffix else target.getvalue())
    assert contents[0] == contents[1]


def test_a_closed_pipe_raises_an_os_error():
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as process:
        process.wait()
        with pytest.raises(OSError):
            write(process.stdin, noise(10, 128, 128), IRREGULAR, codec="ffv1")
        process.stdin = None


def test_a_size_that_the_codec_refuses_is_named(tmp_path):
    for name, codec, size in (("a.mkv", "ffv1", (2, 1)), ("a.mp4", "h264", (16, 20000))):
        message = f"{name} cannot store frames of {size[0]}x{size[1]}"
        with pytest.raises(UsageError, match=message):
            write(tmp_path / name, noise(1, *size), [0], codec=codec)


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
        ("out.mov", {"codec": "vp9"}, "mov cannot store vp9; write to .mkv"),
        ("out.gif", {"audio_from": "a.mp4"}, "a gif has no audio; write to .mkv"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, name, options, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / name, pattern(6), IRREGULAR[:6], **options)
    assert list(tmp_path.iterdir()) == []
