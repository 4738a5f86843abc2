"""Frames, sizes, timestamps and colours: in as a player shows them, out as they were given."""

import csv
import gc
import io
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame

from helpers import CLIPS
from helpers.clips import clip_files, needs_ffmpeg, pattern, write_clip
from helpers.witness import ffmpeg_frames, mean_difference, read
from vqtok.errors import UsageError, VqtokError
from vqtok.video import VideoWriter, open_video, read_window, source
from vqtok.video.decode import Decoder

TICK = Fraction(1, 1000)


def write(target, frames, times, fps=25, time_base=TICK, **options):
    height, width = frames.shape[1:3]
    shape = {"height": height, "width": width, "fps": fps, "time_base": time_base}
    with VideoWriter(target, **shape, **options) as out:
        out.write(frames[:5], times[:5])
        out.write(frames[5:], times[5:])


def manifest(path):
    with (CLIPS / "MANIFEST.csv").open(newline="") as file:
        return next(
            r for r in csv.DictReader(file) if r["path"] == f"{path.parent.name}/{path.name}"
        )


# Reading: real clips


@pytest.mark.parametrize("path", clip_files("dev"))
def test_every_frame_of_a_real_clip_is_read(path):
    facts = manifest(path)
    count, times = 0, []
    with open_video(path, size=16) as clip:
        for chunk, stamps in clip.chunks(16):
            assert chunk.shape == (len(stamps), clip.height, clip.width, 3)
            assert chunk.dtype == np.uint8 and chunk.flags.c_contiguous
            count, times = count + len(chunk), times + stamps
    assert count == int(facts["frames"])
    assert (np.diff(times) > 0).all()
    assert clip.fps == Fraction(facts["fps"])
    assert clip.notes == []


@pytest.mark.parametrize("path", clip_files("dev"))
def test_a_window_is_what_reading_from_the_beginning_gives(path):
    with open_video(path, size=16) as clip:
        frames, times = next(clip.chunks(24))
    step = float((times[12] if len(times) > 12 else times[3]) * clip.time_base)
    with open_video(path, size=16, start=step) as clip:
        found, stamps = next(clip.chunks(3))
    first = times.index(stamps[0])
    assert stamps == times[first : first + 3]
    np.testing.assert_array_equal(found, frames[first : first + 3])


@pytest.mark.parametrize("path", clip_files("bad"))
def test_a_bad_file_is_read_with_notes_or_refused_in_one_sentence(path):
    try:
        with open_video(path, size=32) as clip:
            assert sum(len(chunk) for chunk, _ in clip.chunks(8)) > 0
            assert all("{" not in note for note in clip.notes)
    except VqtokError as error:
        assert path.name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("alpha_vp9.webm", "alpha channel dropped"),
        ("corrupted_decord.mp4", "1 damaged frame skipped"),
        ("trunc_mid_gop.mp4", "the file is truncated"),
        ("raw_annexb_no_pts.264", "no timestamps in the file: assuming 25 frames/s"),
        ("res_change_nvidia.h264", "47 frames of another size scaled to the size of the first"),
    ],
)
def test_losses_are_noted(clips, name, note):
    assert note in read(clips / "bad" / name, size=32)[2].notes


# Reading: made clips


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.mp4", None, "no such file"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"no video\n" * 99, "is not a video"),
        ("folder.mp4", ..., "is a directory"),
    ],
)
def test_what_is_no_video_is_refused_with_its_name_and_the_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(VqtokError, match=f"{name}.*{reason}"), open_video(path):
        pass


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_rotated_clip_is_shown_upright(make_clip, rotation):
    path = make_clip("phone.mp4", rotation=rotation, height=48, width=96)
    frames, _, clip = read(path)
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
    frames, _, clip = read(make_clip("clip.mkv", codec=codec, pix_fmt=pix_fmt))
    want = pattern()
    if pix_fmt == "gray":
        want = np.repeat(want @ np.array([0.299, 0.587, 0.114]), 3).reshape(want.shape)
    assert mean_difference(frames, want) < 3
    assert clip.notes == []


@pytest.mark.parametrize("colour_range", ["MPEG", "JPEG"])
@pytest.mark.parametrize(("matrix", "tag"), [("ITU709", 1), ("SMPTE170M", 6), ("BT2020", 9)])
def test_matrix_and_range_are_honoured(tmp_path, matrix, tag, colour_range):
    rgb = np.zeros((64, 64, 3), np.uint8) + np.array([200, 60, 30], np.uint8)
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", 25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        stream.codec_context.colorspace = tag
        stream.codec_context.color_range = {"MPEG": 1, "JPEG": 2}[colour_range]
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv444p", dst_colorspace=matrix, dst_color_range=colour_range
        )
        container.mux([*stream.encode(frame), *stream.encode()])
    assert mean_difference(read(tmp_path / "clip.mp4")[0], rgb[None]) < 3


def test_alpha_is_dropped_with_a_note(tmp_path):
    rgb = pattern(3)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 100)], -1)
    path = write_clip(tmp_path / "logo.mkv", rgba, codec="ffv1", pix_fmt="bgra")
    frames, _, clip = read(path)
    np.testing.assert_array_equal(frames, rgb)
    assert clip.notes == ["alpha channel dropped"]


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    rgb = pattern(1)[0]
    av.VideoFrame.from_ndarray(rgb, format="rgb24").save(str(tmp_path / "still.png"))
    frames, times, clip = read(tmp_path / "still.png")
    np.testing.assert_array_equal(frames[0], rgb)
    assert times == [0] and clip.notes == []


@pytest.mark.parametrize("size", [32, 33, 100])
def test_size_is_the_short_side(make_clip, size):
    frames, _, clip = read(make_clip(height=64, width=98), size=size)
    assert frames.shape[1:3] == (clip.height, clip.width) == (size, (98 * size + 32) // 64)


def test_start_and_duration_keep_the_timestamps(make_clip):
    path = make_clip("clip.mkv", times=[0, 40, 80, 200, 230, 300, 900], frames=7)
    whole, times, _ = read(path)
    for start, duration, want in [
        (0.08, None, [2, 3, 4, 5, 6]),
        (0.05, 0.18, [2, 3]),
        (0, 0.1, [0, 1, 2]),
    ]:
        frames, stamps, _ = read(path, start=start, duration=duration)
        assert stamps == [times[i] for i in want]
        np.testing.assert_array_equal(frames, whole[want])
    with pytest.raises(VqtokError, match="in the requested time range"), open_video(path, start=5):
        pass


def test_fps_gives_the_frame_shown_at_each_instant(make_clip):
    path = make_clip("clip.mkv", times=[0, 40, 80, 200, 240], frames=5)
    whole, _, _ = read(path)
    frames, times, clip = read(path, fps=Fraction(50))
    assert (clip.fps, clip.time_base) == (50, Fraction(1, 50))
    assert times == list(range(14))
    np.testing.assert_array_equal(frames, whole[[0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4]])


@pytest.mark.parametrize("fps", ["25", "30000/1001", "24", "60"])
def test_resampling_to_the_same_rate_changes_nothing(make_clip, fps):
    path = make_clip("clip.mkv", fps=fps)
    whole, _, clip = read(path)
    frames, *_ = read(path, fps=clip.fps)
    np.testing.assert_array_equal(frames, whole)


def test_backward_timestamps_are_repaired(tmp_path, make_clip):
    first, second = make_clip("a.ts").read_bytes(), make_clip("b.ts").read_bytes()
    (tmp_path / "joined.ts").write_bytes(first + second)
    frames, times, clip = read(tmp_path / "joined.ts")
    assert len(frames) == 34
    assert np.diff(times).tolist() == [3600] * 33
    assert clip.notes == ["17 timestamps repaired"]


def test_reads_a_pipe(make_clip):
    path = make_clip("clip.mkv")
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        frames, times, _ = read(cat.stdout, start=0.08)
    np.testing.assert_array_equal(frames, read(path)[0][2:])
    assert times[0] == 80


def test_an_mp4_with_its_index_at_the_end_comes_through_a_pipe(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8))
    assert path.stat().st_size > 4 * 32768  # PyAV looks back over one buffer, not over this
    with (
        subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat,
        open_video(cat.stdout) as clip,
    ):
        frames, times = next(clip.chunks(30))
    with open_video(path) as clip:
        expected, expected_times = next(clip.chunks(30))
    assert np.array_equal(frames, expected)
    assert times == expected_times


def test_read_window(make_clip):
    path = make_clip(frames=30)
    whole, *_ = read(path, size=48)
    np.testing.assert_array_equal(read_window(path, 0.4, 5, size=48), whole[10:15])
    assert len(read_window(path, 1.0, 99)) == 5


# Writing

VARYING = [0, 40, 80, 200, 230, 300, 333, 400, 440, 900]


@pytest.mark.parametrize("shape", [(64, 96), (51, 77)], ids=["even", "odd"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_what_is_written_is_read_back(tmp_path, suffix, shape):
    path, frames = tmp_path / f"out{suffix}", pattern(10, *shape)
    write(path, frames, VARYING)
    found, times, clip = read(path)
    assert found.shape == frames.shape
    assert [t * clip.time_base for t in times] == [t * TICK for t in VARYING]
    assert mean_difference(found, frames) < 3
    assert np.abs(found.astype(int) - frames).mean() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("time_base", ["1/30000", "1001/30000", "1/90000", "1/1200000"])
def test_frame_rate_and_timestamps_are_kept(tmp_path, suffix, time_base):
    path, fps, base = tmp_path / f"out{suffix}", Fraction(30000, 1001), Fraction(time_base)
    times = [round(t / fps / base) + round(1.5 / base) for t in range(10)]
    write(path, pattern(10), times, fps, base)
    _, stamps, clip = read(path)
    assert clip.fps == pytest.approx(fps, rel=1e-5)
    slack = 0 if suffix in (".mp4", ".mov") else clip.time_base / 2
    for stamp, time in zip(stamps, times, strict=True):
        assert abs(stamp * clip.time_base - time * base) <= slack


def test_gif(tmp_path):
    frames = pattern(10)
    write(tmp_path / "out.gif", frames, list(range(0, 800, 80)), fps=Fraction(25, 2))
    found, times, clip = read(tmp_path / "out.gif")
    assert times == list(range(0, 80, 8)) and clip.time_base == Fraction(1, 100)
    assert mean_difference(found, frames) < 3


@pytest.mark.parametrize("shape", [(64, 96), (51, 77)], ids=["even", "odd"])
def test_ffv1_is_lossless(tmp_path, shape):
    frames = np.random.default_rng(0).integers(0, 256, (6, *shape, 3), dtype=np.uint8)
    write(tmp_path / "out.mkv", frames, VARYING[:6], codec="ffv1")
    np.testing.assert_array_equal(read(tmp_path / "out.mkv")[0], frames)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_colours_are_bt709_and_say_so(tmp_path, suffix):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 120, 200)]
    frames = np.array(colours, np.uint8).repeat(64 * 64, 0).reshape(6, 64, 64, 3)
    path = tmp_path / f"out{suffix}"
    write(path, frames, VARYING[:6])
    assert mean_difference(ffmpeg_frames(path, 6), frames) < 4
    show = "stream=color_space,color_range,color_primaries,color_transfer"
    command = ["ffprobe", "-v", "quiet", "-show_entries", show, "-of", "csv=p=0", path]
    tags = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    assert tags == "tv,bt709,bt709,bt709"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_pixel_aspect_is_kept(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write(path, pattern(6), VARYING[:6], pixel_aspect=Fraction(4, 3))
    assert read(path)[2].pixel_aspect == Fraction(4, 3)


def test_writes_a_stream_to_a_pipe(tmp_path):
    with (
        (tmp_path / "out.mkv").open("wb") as file,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat,
    ):
        write(cat.stdin, pattern(10), VARYING)
    frames, times, _ = read(tmp_path / "out.mkv")
    assert times == VARYING and len(frames) == 10


def test_a_closed_pipe_is_an_os_error():
    noise = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), dtype=np.uint8)
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        gone.wait()
        with pytest.raises(OSError):
            write(gone.stdin, noise, VARYING, codec="ffv1")
        gone.stdin = None


def test_an_error_leaves_the_old_file_or_none(tmp_path):
    class Interrupted(BaseException):
        pass

    old, new = tmp_path / "old.mp4", tmp_path / "new.mp4"
    old.write_bytes(b"old")
    for path in (old, new):
        with (
            pytest.raises(Interrupted),
            VideoWriter(path, height=64, width=96, fps=25, time_base=TICK) as out,
        ):
            out.write(pattern(10), VARYING)
            raise Interrupted
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("out.xyz", {}, "must end in one of .mp4"),
        ("out.mp4", {"codec": "divx"}, "choose one of h264"),
        ("out.gif", {"crf": 20}, "gif has no crf"),
        ("out.webm", {"codec": "h264"}, "webm cannot store h264"),
    ],
)
def test_wrong_usage_is_refused(tmp_path, name, options, words):
    with pytest.raises(UsageError, match=words):
        write(tmp_path / name, pattern(6), VARYING[:6], **options)
    assert list(tmp_path.iterdir()) == []


def test_a_binary_file_can_be_read_and_written():
    file = io.BytesIO()
    write(file, pattern(10), VARYING)
    assert not file.closed
    file.seek(0)
    assert read(file)[1] == VARYING


@pytest.mark.parametrize("hardware", ["cuda", "cuda:7", "videotoolbox", "none"])
@pytest.mark.parametrize("path", clip_files("dev", "phone_rotated_portrait.mov", "talk_vfr.mkv"))
def test_hardware_that_is_not_there_changes_nothing(path, hardware):
    if hardware == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with (
        open_video(path, duration=0.5) as one,
        open_video(path, None, None, 0, 0.5, hardware) as two,
    ):
        for (frames, times), (others, their_times) in zip(
            one.chunks(8), two.chunks(8), strict=True
        ):
            assert np.array_equal(frames, others) and times == their_times
        assert two.decoder == one.decoder == "h264 decoded in software"


def test_a_file_opened_again_for_hardware_gives_the_same_frames(make_clip, monkeypatch):
    path, opened = make_clip(), []
    monkeypatch.setattr(source, "hwdevices_available", lambda: ["made-up"])
    monkeypatch.setattr(source, "HWAccel", lambda *device: opened.append(device))
    with open_video(path) as one, open_video(path, hardware="made-up:1") as two:
        assert np.array_equal(next(one.chunks(20))[0], next(two.chunks(20))[0])
    assert opened == [("made-up", "1")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", clip_files("dev"))
def test_frames_decoded_by_cuda_are_those_of_software(path):
    with (
        open_video(path, duration=0.5) as one,
        open_video(path, duration=0.5, hardware="cuda") as two,
    ):
        assert (one.height, one.width, one.fps, one.origin) == (
            *(two.height, two.width, two.fps, two.origin),
        )
        for (frames, times), (others, their_times) in zip(
            one.chunks(8), two.chunks(8), strict=True
        ):
            assert np.array_equal(frames, others) and times == their_times


def test_frames_and_decoders_go_when_they_are_done_with(make_clip):
    """Not when Python next looks for cycles: a frame is large, and it looks by number."""
    path = make_clip(frames=60)

    def alive(kind):
        return sum(isinstance(thing, kind) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive(Decoder)
        for _ in range(2):
            with open_video(path) as clip:
                most = max(alive(VideoFrame) for _ in clip.chunks(1))
            del clip
            assert most < 10
        assert alive(Decoder) == before
    finally:
        gc.enable()


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
def test_an_excerpt_of_a_file_without_an_index_lacks_nothing(make_clip, name, codec):
    path = make_clip(name, frames=60, codec=codec)
    with open_video(path) as clip:
        frames, times = next(clip.chunks(60))
    for start in (10, 30, 50):  # frames
        with open_video(path, start=start / 25 - 0.01) as clip:
            excerpt, stamps = next(clip.chunks(60))
        assert stamps == times[start:]
        assert np.array_equal(excerpt, frames[start:])
