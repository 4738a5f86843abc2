"""Frames, sizes, timestamps and colors are read as a player shows them."""

import csv
import gc
import io
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from helpers.clips import clip_files, mean_difference, pattern, read_clip, write_clip
from helpers.ffmpeg import run_ffmpeg
from vqtok.errors import UsageError, VqtokError
from vqtok.video import VideoWriter, open_video, read_window
from vqtok.video.decode import Decoder


def manifest(path):
    """Return the row of a real clip in its MANIFEST.csv."""
    name = f"{path.parent.name}/{path.name}"
    with (path.parents[1] / "MANIFEST.csv").open(newline="") as file:
        return next(row for row in csv.DictReader(file) if row["path"] == name)


# Real clips


@pytest.mark.parametrize("path", clip_files("dev"))
def test_every_frame_of_a_real_clip_is_read(path):
    expected = manifest(path)
    timestamps = []
    with open_video(path, size=16) as clip:
        for chunk, chunk_timestamps in clip.chunks(16):
            assert chunk.shape == (len(chunk_timestamps), clip.height, clip.width, 3)
            assert chunk.dtype == np.uint8 and chunk.flags.c_contiguous
            timestamps += chunk_timestamps
    assert len(timestamps) == int(expected["frames"])
    assert (np.diff(timestamps) > 0).all()
    assert clip.fps == Fraction(expected["fps"])
    assert clip.notes == []


@pytest.mark.parametrize("path", clip_files("dev"))
def test_seek_returns_the_frames_of_a_sequential_read(path):
    with open_video(path, size=16) as clip:
        frames, timestamps = next(clip.chunks(24))
    start = float(timestamps[12 if len(timestamps) > 12 else 3] * clip.time_base)
    with open_video(path, size=16, start=start) as clip:
        window, window_timestamps = next(clip.chunks(3))
    first = timestamps.index(window_timestamps[0])
    assert window_timestamps == timestamps[first : first + 3]
    np.testing.assert_array_equal(window, frames[first : first + 3])


@pytest.mark.parametrize("path", clip_files("bad"))
def test_a_bad_file_is_read_with_notes_or_refused_in_one_sentence(path):
    try:
        with open_video(path, size=32) as clip:
            assert sum(len(chunk) for chunk, _ in clip.chunks(8)) > 0
            assert all("{" not in note for note in clip.notes)
    except VqtokError as error:
        assert path.name in str(error) and "\n" not in str(error)


NOTES = {
    "alpha_vp9.webm": "alpha channel dropped",
    "corrupted_decord.mp4": "1 damaged frame skipped",
    "trunc_mid_gop.mp4": "the file is truncated",
    "raw_no_timestamps.264": "no timestamps in the file: assuming 25 frames/s",
    "raw_annexb_no_pts.264": "no timestamps in the file: assuming 25 frames/s",
    "res_change_midstream.ts": "38 frames of another size scaled to the size of the first",
    "res_change_nvidia.h264": "47 frames of another size scaled to the size of the first",
}


@pytest.mark.parametrize("path", clip_files("bad", *NOTES))
def test_losses_are_noted(path):
    assert NOTES[path.name] in read_clip(path, size=32)[2].notes


# Synthetic clips


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"no video\n" * 99, "is not a video"),
        ("folder.mp4", ..., "is a directory"),
    ],
)
def test_a_file_that_is_not_a_video_is_refused_with_its_name_and_the_reason(
    tmp_path, name, content, reason
):
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(VqtokError, match=f"{name}.*{reason}"), open_video(path):
        pass


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_is_applied(make_clip, rotation):
    path = make_clip("phone.mp4", rotation=rotation, height=48, width=96)
    frames, _, clip = read_clip(path)
    upright = np.rot90(pattern(17, 48, 96), rotation // 90, axes=(1, 2))
    assert frames.shape == upright.shape == (17, clip.height, clip.width, 3)
    assert np.abs(frames.astype(int) - upright).mean() < 6


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("ffv1", "gray"),
        ("ffv1", "yuv420p10le"),
        ("ffv1", "yuv444p"),
        ("ffv1", "yuv422p"),
        ("ffv1", "gbrp10le"),
        ("ffv1", "bgra"),
        ("libx264", "yuvj420p"),
        ("libvpx-vp9", "yuv420p"),
    ],
)
def test_pixel_formats(make_clip, codec, pix_fmt):
    frames, _, clip = read_clip(make_clip("clip.mkv", codec=codec, pix_fmt=pix_fmt))
    expected = pattern()
    if pix_fmt == "gray":
        luma = expected @ np.array([0.299, 0.587, 0.114])
        expected = np.repeat(luma, 3).reshape(expected.shape)
    assert mean_difference(frames, expected) < 3
    assert clip.notes == []


@pytest.mark.parametrize("color_range", ["MPEG", "JPEG"])
@pytest.mark.parametrize(("matrix", "tag"), [("ITU709", 1), ("SMPTE170M", 6), ("BT2020", 9)])
def test_color_matrix_and_range_are_applied(tmp_path, matrix, tag, color_range):
    rgb = np.zeros((64, 64, 3), np.uint8) + np.array([200, 60, 30], np.uint8)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", 25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace = tag
        stream.codec_context.color_range = {"MPEG": 1, "JPEG": 2}[color_range]
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv444p", dst_colorspace=matrix, dst_color_range=color_range
        )
        container.mux([*stream.encode(frame), *stream.encode()])
    assert mean_difference(read_clip(tmp_path / "clip.mp4")[0], rgb[None]) < 3


def test_alpha_is_dropped_with_a_note(tmp_path):
    rgb = pattern(3)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 100)], -1)
    path = write_clip(tmp_path / "logo.mkv", rgba, codec="ffv1", pix_fmt="bgra")
    frames, _, clip = read_clip(path)
    np.testing.assert_array_equal(frames, rgb)
    assert clip.notes == ["alpha channel dropped"]


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    rgb = pattern(1)[0]
    av.VideoFrame.from_ndarray(rgb, format="rgb24").save(str(tmp_path / "still.png"))
    frames, timestamps, clip = read_clip(tmp_path / "still.png")
    np.testing.assert_array_equal(frames[0], rgb)
    assert timestamps == [0] and clip.notes == []


@pytest.mark.parametrize("size", [32, 33, 100])
def test_size_is_the_short_side(make_clip, size):
    frames, _, clip = read_clip(make_clip(height=64, width=98), size=size)
    assert frames.shape[1:3] == (clip.height, clip.width) == (size, (98 * size + 32) // 64)


def test_start_and_duration_keep_the_timestamps(make_clip):
    path = make_clip("clip.mkv", times=[0, 40, 80, 200, 230, 300, 900], frames=7)
    all_frames, all_timestamps, _ = read_clip(path)
    for start, duration, expected in [
        (0.08, None, [2, 3, 4, 5, 6]),
        (0.05, 0.18, [2, 3]),
        (0, 0.1, [0, 1, 2]),
    ]:
        frames, timestamps, _ = read_clip(path, start=start, duration=duration)
        assert timestamps == [all_timestamps[i] for i in expected]
        np.testing.assert_array_equal(frames, all_frames[expected])
    with pytest.raises(VqtokError, match="in the requested time range"), open_video(path, start=5):
        pass


def test_resampling_takes_the_frame_shown_at_each_instant(make_clip):
    path = make_clip("clip.mkv", times=[0, 40, 80, 200, 240], frames=5)
    all_frames, _, _ = read_clip(path)
    frames, timestamps, clip = read_clip(path, fps=Fraction(50))
    assert (clip.fps, clip.time_base) == (50, Fraction(1, 50))
    assert timestamps == list(range(14))
    np.testing.assert_array_equal(frames, all_frames[[0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4]])


def test_resampling_shows_the_last_frame_until_it_ends(tmp_path, make_clip):
    clip = make_clip("clip.mkv", times=[0, 1000, 2000, 10000], frames=4)
    slides = tmp_path / "slides.mp4"
    run_ffmpeg("-i", clip, "-c", "copy", slides)
    for path in clip, slides:
        _, timestamps, _ = read_clip(path, fps=Fraction(10))
        assert timestamps == list(range(101))  # the last frame lasts 0.04 s
    _, timestamps, _ = read_clip(clip, fps=Fraction(10), duration=5)
    assert timestamps == list(range(50))


@pytest.mark.parametrize("fps", ["25", "30000/1001", "24", "60"])
def test_resampling_to_the_same_rate_changes_nothing(make_clip, fps):
    path = make_clip("clip.mkv", fps=fps)
    all_frames, _, clip = read_clip(path)
    frames, *_ = read_clip(path, fps=clip.fps)
    np.testing.assert_array_equal(frames, all_frames)


@pytest.mark.parametrize("fps", [10, 25, 60, 240])
def test_a_still_is_one_frame_at_any_rate(tmp_path, make_still, fps):
    make_still(tmp_path / "still.png")
    frames, timestamps, _ = read_clip(tmp_path / "still.png", fps=Fraction(fps))
    assert len(frames) == 1 and timestamps == [0]


def test_a_long_gap_is_not_filled_with_frames_without_end(tmp_path):
    """A frame lasts 10^6 s; without a frame rate it is one frame."""
    gap = write_clip(tmp_path / "gap.mkv", pattern(2, 16, 16), times=[0, 10**9])
    assert read_clip(gap)[1] == [0, 10**9]
    message = r"gap\.mkv: a frame would be repeated 2\.4e\+07 times at this fps"
    with pytest.raises(VqtokError, match=message):
        read_clip(gap, fps=Fraction(24))
    assert len(read_clip(gap, fps=Fraction(1, 1000))[0]) == 1001


@pytest.mark.parametrize(("shape", "size"), [((2, 3000), 64), ((3000, 2), 64), ((16, 16), 2**31)])
def test_frames_that_would_be_too_large_are_refused(tmp_path, shape, size):
    path = tmp_path / "long.png"
    tick = Fraction(1, 25)
    with VideoWriter(path, height=shape[0], width=shape[1], fps=25, time_base=tick) as writer:
        writer.write(pattern(1, *shape), [0])
    with pytest.raises(UsageError, match=r"are too large: choose a smaller size"):
        read_clip(path, size=size)


@pytest.mark.parametrize("pix_fmt", ["yaf32le", "yaf32be", "gray32le", "y210be"])
def test_pixel_formats_that_ffmpeg_cannot_convert_are_refused(make_clip, monkeypatch, pix_fmt):
    """For some of them, it would abort the process."""
    frame = av.VideoFrame(16, 16, pix_fmt)
    monkeypatch.setattr(Decoder, "frames", lambda _: iter([frame]))
    path = make_clip()
    with pytest.raises(VqtokError, match=f"{path}: FFmpeg cannot convert its .* \\({pix_fmt}, "):
        read_clip(path)


def test_a_cover_picture_is_not_a_video(tmp_path, make_still):
    make_still(tmp_path / "cover.png")
    tone, cover = ["-f", "lavfi", "-i", "sine=duration=1"], ["-i", tmp_path / "cover.png"]
    as_cover = ["-c:v", "copy", "-disposition:v:0", "attached_pic"]
    song = tmp_path / "song.m4a"
    run_ffmpeg(*tone, *cover, "-map", "0", "-map", "1", *as_cover, "-c:a", "aac", song)
    with pytest.raises(VqtokError, match=r"song\.m4a has a cover picture but no video"):
        read_clip(song)
    # Where there is a video too, it is read, whatever comes first.
    video = tmp_path / "video.mp4"
    both = ["-map", "1", "-map", "0", *as_cover, "-c:v:1", "libx264"]
    source = ["-f", "lavfi", "-i", "testsrc2=size=32x32:rate=25:duration=0.4"]
    run_ffmpeg(*source, *cover, *both, video)
    frames, *_ = read_clip(video)
    assert frames.shape == (10, 32, 32, 3)


def test_backward_timestamps_are_repaired(tmp_path, make_clip):
    first, second = make_clip("a.ts").read_bytes(), make_clip("b.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second)
    frames, timestamps, clip = read_clip(tmp_path / "joined.ts")
    assert len(frames) == 34
    assert np.diff(timestamps).tolist() == [3600] * 33
    assert clip.notes == ["17 timestamps repaired"]


def test_a_pipe_is_read(make_clip):
    path = make_clip("clip.mkv")
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        frames, timestamps, _ = read_clip(cat.stdout, start=0.08)
    np.testing.assert_array_equal(frames, read_clip(path)[0][2:])
    assert timestamps[0] == 80


class OnlyRead:
    """An object like the body of a response, with `read` and nothing else."""

    def __init__(self, data):
        self.read = io.BytesIO(data).read


class RawStream(io.RawIOBase):
    def __init__(self, data):
        self._file = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._file.readinto(buffer)


@pytest.mark.parametrize("kind", [io.BytesIO, OnlyRead, RawStream])
@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "still.tiff", "still.png", "moving.apng"])
def test_any_binary_file_object_is_read(tmp_path, make_clip, name, kind):
    path = tmp_path / name
    if name.startswith("clip"):
        make_clip(name)
    else:
        frames = ["-frames:v", "1"] if name.startswith("still") else []
        run_ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:duration=0.4", *frames, path)
    frames, timestamps, _ = read_clip(kind(path.read_bytes()))
    expected, expected_timestamps, _ = read_clip(path)
    np.testing.assert_array_equal(frames, expected)
    assert timestamps == expected_timestamps


@pytest.mark.parametrize("source", [b"bytes", None, 1, io.StringIO("text")])
def test_what_is_no_file_is_refused(source):
    with pytest.raises(UsageError, match="from a path or a binary file, not from"):
        read_clip(source)


@pytest.mark.parametrize("mark", [b"MPF\0", b"hdrgm:Version", b"GCamera:MotionPhoto"])
def test_what_follows_the_picture_of_a_jpeg_is_no_frame(tmp_path, mark):
    pictures = []
    for size in "64x48", "32x24":
        path = tmp_path / f"{size}.jpg"
        run_ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}", "-frames:v", "1", path)
        pictures.append(path.read_bytes())
    segment = b"\xff\xe2" + (len(mark) + 2).to_bytes(2) + mark
    photo, odd = tmp_path / "photo.jpg", tmp_path / "photo.jfif"
    photo.write_bytes(pictures[0][:2] + segment + pictures[0][2:] + pictures[1])
    odd.write_bytes(photo.read_bytes())
    expected = read_clip(tmp_path / "64x48.jpg")[0]
    for source in photo, odd, io.BytesIO(photo.read_bytes()), OnlyRead(photo.read_bytes()):
        np.testing.assert_array_equal(read_clip(source)[0], expected)


@pytest.mark.parametrize("first_box", [b"ftyp", b"wide"])
def test_an_mp4_with_its_index_at_the_end_is_read_from_a_pipe(tmp_path, first_box):
    path = tmp_path / "clip.mp4"
    write_clip(path, np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"ftyp", first_box, 1))  # old QuickTime files have no ftyp
    assert path.stat().st_size > 4 * 32768  # more than the one buffer that PyAV can seek back over
    with (
        subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat,
        open_video(cat.stdout) as clip,
    ):
        frames, timestamps = next(clip.chunks(30))
    with open_video(path) as clip:
        expected, expected_timestamps = next(clip.chunks(30))
    assert np.array_equal(frames, expected)
    assert timestamps == expected_timestamps


def test_read_window(make_clip):
    path = make_clip(frames=30)
    all_frames, *_ = read_clip(path, size=48)
    np.testing.assert_array_equal(read_window(path, 0.4, 5, size=48), all_frames[10:15])
    assert len(read_window(path, 1.0, 99)) == 5


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
def test_an_excerpt_of_a_file_without_an_index_is_complete(make_clip, name, codec):
    path = make_clip(name, frames=60, codec=codec)
    with open_video(path) as clip:
        all_frames, all_timestamps = next(clip.chunks(60))
    for start in (10, 30, 50):  # frames
        with open_video(path, start=start / 25 - 0.01) as clip:
            frames, timestamps = next(clip.chunks(60))
        assert timestamps == all_timestamps[start:]
        assert np.array_equal(frames, all_frames[start:])


def test_frames_and_decoders_are_freed_without_the_garbage_collector(make_clip):
    """The collector runs by the number of objects, and frames are few but large."""
    path = make_clip(frames=60)

    def count(kind):
        return sum(type(thing) is kind for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        decoders = count(Decoder)
        for _ in range(2):
            with open_video(path) as clip:
                frames = max(count(VideoFrame) for _ in clip.chunks(10))
            del clip
            assert 0 < frames < 10
        assert count(Decoder) == decoders
    finally:
        gc.enable()


def test_windows_are_exact_though_frames_before_them_are_skipped(make_clip, monkeypatch):
    path = make_clip("a.mp4", frames=60, height=48, width=64)  # libx264: a pyramid of B-frames
    all_frames, _, _ = read_clip(path)
    decoded = []
    inspect = Decoder._inspect
    monkeypatch.setattr(
        Decoder, "_inspect", lambda self, frame: decoded.append(frame.pts) or inspect(self, frame)
    )
    for first in range(1, 60, 3):
        window = read_window(path, first / 25, 5)
        np.testing.assert_array_equal(window, all_frames[first : first + 5])
    decoded.clear()
    read_window(path, 55 / 25, 5)
    assert 5 <= len(decoded) < 45
    decoded.clear()
    read_clip(path, start=55 / 25)  # `encode --start` decodes everything, as damage looks different
    assert len(decoded) >= 55
