"""Every kind of file comes back as a player shows it: ffmpeg is asked before and after."""

import io
from fractions import Fraction

import numpy as np
import pytest

from helpers.clips import clip_files, needs_ffmpeg, pattern, write_clip
from helpers.roundtrip import played, through
from helpers.witness import ffmpeg, ffmpeg_frames, ffprobe, mean_difference, read, seconds
from vqtok.errors import VqtokError
from vqtok.video import VideoWriter

pytestmark = needs_ffmpeg

X264 = "-c:v libx264 -preset veryfast -qp 4"
UNEVEN = [0, 40, 80, 200, 230, 300, 333, 400, 440, 900]

# name: what ffmpeg makes of smooth() under that name
MADE = {
    "ten_bit.mkv": "-c:v libx265 -x265-params log-level=none:crf=4 -pix_fmt yuv420p10le",
    "full_chroma.mp4": f"{X264} -pix_fmt yuv444p",
    "half_chroma.mov": f"{X264} -pix_fmt yuv422p",
    "gray.mkv": "-c:v ffv1 -pix_fmt gray",
    "gray_10.mkv": "-c:v ffv1 -pix_fmt gray10le",
    "rgb.mkv": "-c:v ffv1 -pix_fmt gbrp12le",
    "palette.gif": "",
    "alpha.mkv": "-vf format=rgba,colorchannelmixer=aa=0.5 -c:v ffv1 -pix_fmt yuva420p",
    "alpha.webm": "-vf format=rgba,colorchannelmixer=aa=0.5 -c:v libvpx-vp9 -pix_fmt yuva420p",
    "odd.mp4": f"-vf scale=95:63 {X264} -pix_fmt yuv444p",
    "odd.webm": "-vf scale=95:63 -c:v libvpx-vp9 -crf 10 -b:v 0 -pix_fmt yuv420p",
    "wide.mp4": f"-vf setsar=4/3 {X264} -pix_fmt yuv420p",
    "tall.webm": "-vf setsar=8/9 -c:v libvpx-vp9 -crf 10 -b:v 0 -pix_fmt yuv420p",
    "fast.mp4": f"-vf setpts=PTS/4 -r 100 {X264} -pix_fmt yuv420p",
    "interlaced.mp4": f"{X264} -flags +ilme+ildct -pix_fmt yuv420p",
    "mpeg2.ts": "-c:v mpeg2video -q:v 2 -bf 2",
    "mpeg2.mpg": "-c:v mpeg2video -q:v 2 -bf 2",
    "mpeg4.avi": "-c:v mpeg4 -q:v 2 -bf 2",
    "theora.ogv": "-c:v libtheora -q:v 10",
    "wmv2.wmv": "-c:v wmv2 -q:v 2",
    "h264.flv": f"{X264} -pix_fmt yuv420p",
} | {
    f"{tag}_{span}.mp4": f"-vf scale=out_color_matrix={matrix}:out_range={span}:flags=accurate_rnd,"
    f"format=yuv420p -colorspace {tag} -color_range {span} {X264}"
    for matrix, tag in (("bt601", "smpte170m"), ("bt709", "bt709"), ("bt2020", "bt2020nc"))
    for span in ("tv", "pc")
}
UNEVENLY_TIMED = (
    *("talk_vfr.mkv", "webcam_lowlight.mov", "phone_rotated_portrait.mov"),
    *("walking_people.gif", "traffic_mpeg4.avi", "flower_vp8_audio.webm"),
)
ALONE = ["turned_90.mov", "turned_180.mov", "turned_-90.mov", "uneven.mkv", "uneven.mp4"]
TAGS = ("range", "space", "transfer", "primaries")
FINE = 4  # crf: at the usual one, x264 moves the mean of so small a picture by up to 2
FIRST = 6  # frames that are looked at; all are counted


def smooth(frames=10, height=64, width=96):
    """uint8 (t h w c): waves without the sharp edges that programs scale in different ways."""
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = np.sin(x / 15 + t / 3), np.cos(y / 11 - t / 4), np.sin((x + y) / 20 + t / 2)
    return (np.stack(waves, -1) * (90, 70, 80) + (140, 120, 110)).astype(np.uint8)


def make(path, options):
    """Let ffmpeg write smooth() to `path`."""
    frames = smooth()
    shape = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-r", "25", "-i", "-"]
    ffmpeg(*shape, *options.split(), path, stdin=frames.tobytes())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the made clips lie for all tests of this module."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def source(request, folder):
    """A clip of the table."""
    if not isinstance(request.param, str):
        return request.param
    path = folder / request.param
    if path.exists():
        return path
    kind, _, angle = path.stem.partition("_")
    if kind == "turned":
        return write_clip(path, smooth(), rotation=int(angle))
    if kind == "uneven":
        return write_clip(path, smooth(), times=UNEVEN)
    return make(path, MADE[path.name])


TABLE = [*clip_files("dev"), *MADE, *ALONE]
every_clip = pytest.mark.parametrize("source", TABLE, indirect=True, ids=str)


@every_clip
def test_reading_gives_the_frames_times_and_colours_that_ffmpeg_gives(source):
    frames, times, clip = read(source, FIRST)
    theirs = ffmpeg_frames(source, FIRST)
    assert frames.shape == theirs.shape
    assert times == ffprobe(source, FIRST)[1]
    assert mean_difference(frames, theirs) < 0.5
    assert clip.damage == []


@pytest.mark.parametrize("source", [*MADE, *ALONE], indirect=True, ids=str)
def test_every_frame_is_read(source):
    times, theirs = read(source)[1], ffprobe(source)[1]
    assert len(times) == len(theirs)
    assert all(a == b for a, b in zip(times, theirs, strict=True) if b is not None)
    assert read(io.BytesIO(source.read_bytes()))[1] == times


@every_clip
def test_what_comes_back_is_what_went_in(source, tmp_path):
    crf = None if source.parent.name == "dev" else FINE
    tokens, said = through(source, tmp_path / "back.mp4", crf=crf, duration=0.15)
    before, after = ffmpeg_frames(source, tokens.frames), ffmpeg_frames(tmp_path / "back.mp4", 99)
    assert after.shape == before.shape
    assert mean_difference(before, after) < 1
    stream, times = ffprobe(tmp_path / "back.mp4")
    assert seconds(stream, times) == played(tokens)
    assert [stream[f"color_{tag}"] for tag in TAGS] == ["tv", "bt709", "bt709", "bt709"]
    shape = ffprobe(source, 1)[0].get("sample_aspect_ratio", "1:1")
    assert stream["sample_aspect_ratio"] == shape.replace("0:1", "1:1")
    assert said == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("path", clip_files("dev", *UNEVENLY_TIMED))
def test_every_time_of_a_whole_clip_comes_back(path, suffix, tmp_path):
    tokens, _ = through(path, tmp_path / f"back{suffix}", size=16)
    found = seconds(*ffprobe(tmp_path / f"back{suffix}"))
    tick = 0 if suffix == ".mp4" else Fraction(1, 1000)
    assert max(abs(a - b) for a, b in zip(found, played(tokens), strict=True)) <= tick / 2


@pytest.mark.parametrize("target", ["back.mov", "back.mkv", "back.webm", "back.gif", "ffv1.mkv"])
@pytest.mark.parametrize(
    "source", ["uneven.mp4", "odd.webm", "wide.mp4", "tall.webm"], indirect=True
)
def test_in_every_container(source, target, tmp_path):
    target = tmp_path / target
    codec = "ffv1" if target.stem == "ffv1" else None
    crf = None if codec or target.suffix == ".gif" else FINE
    tokens, said = through(source, target, codec=codec, crf=crf)
    tick = {".mov": 0, ".gif": Fraction(1, 100)}.get(target.suffix, Fraction(1, 1000))
    stream, times = ffprobe(target)
    errors = [abs(a - b) for a, b in zip(seconds(stream, times), played(tokens), strict=True)]
    assert max(errors) <= tick / 2
    aspect = Fraction(stream.get("sample_aspect_ratio", "1:1").replace(":", "/"))
    assert stream["width"] * aspect / stream["height"] == pytest.approx(
        tokens.width * float(tokens.pixel_aspect) / tokens.height, rel=0.01
    )
    assert mean_difference(ffmpeg_frames(source, 99), ffmpeg_frames(target, 99)) < 1.5
    kept = target.suffix != ".gif" and codec is None and target.suffix != ".webm"
    assert len(said) == (0 if kept or tokens.pixel_aspect == 1 else 1)


# When a clip begins


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [None, Fraction(30)])
def test_an_excerpt_begins_at_once(folder, tmp_path, suffix, fps):
    source = make(folder / "plain.mkv", X264)
    tokens, _ = through(source, tmp_path / f"part{suffix}", start=0.16, fps=fps)
    found = seconds(*ffprobe(tmp_path / f"part{suffix}"))
    assert found[0] == 0 and len(found) == tokens.frames == (6 if fps is None else 8)
    tick = Fraction(1, 100 if suffix == ".gif" else 1000)
    assert max(abs(a - b) for a, b in zip(found, played(tokens), strict=True)) <= tick / 2


def test_what_begins_late_begins_at_zero_and_tokens_keep_its_times(folder, tmp_path):
    source = make(folder / "late.ts", "-output_ts_offset 36000 -c:v mpeg2video -q:v 2")
    tokens, _ = through(source, tmp_path / "back.mp4")
    assert list(tokens.timestamps) == ffprobe(source)[1]
    assert tokens.timestamps[0] == tokens.origin > 36000 * 90000
    assert seconds(*ffprobe(tmp_path / "back.mp4")) == [Fraction(t, 25) for t in range(10)]


def test_times_before_zero_keep_their_distances(tmp_path):
    times = [-2, 38, 71, 100, 140, 200, 230, 300, 333, 400]
    source = write_clip(tmp_path / "early.webm", smooth(), times=times, codec="libvpx-vp9")
    assert read(source)[1] == ffprobe(source)[1] == times
    tokens, _ = through(source, tmp_path / "back.mp4")
    assert seconds(*ffprobe(tmp_path / "back.mp4")) == [Fraction(time + 2, 1000) for time in times]
    assert list(tokens.timestamps) == times


def test_tokens_without_an_origin_begin_at_tick_zero(tmp_path):
    shape = {"height": 64, "width": 96, "fps": 25, "time_base": Fraction(1, 25)}
    with VideoWriter(tmp_path / "out.mp4", **shape) as out:
        out.write(smooth(), range(50, 60))
    assert seconds(*ffprobe(tmp_path / "out.mp4")) == [Fraction(t, 25) for t in range(50, 60)]


# What cannot be kept is said


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_read_by_its_matrix_with_a_note(folder, transfer, name):
    tags = f"-colorspace bt2020nc -color_trc {transfer} -color_primaries bt2020"
    scale = "-vf scale=out_color_matrix=bt2020:flags=accurate_rnd,format=yuv420p10le"
    source = make(folder / f"{name}.mkv", f"{scale} {tags} -c:v libx264 -qp 4")
    frames, _, clip = read(source)
    assert mean_difference(frames, ffmpeg_frames(source, 99)) < 0.5
    assert mean_difference(frames, smooth()) < 1.5
    assert clip.notes == [f"HDR ({name}) is not tone-mapped: colors look washed out"]
    assert clip.damage == []


@pytest.mark.parametrize("matrix", [8, 14])
def test_colours_that_cannot_be_converted_are_refused_in_one_sentence(folder, tmp_path, matrix):
    plain = make(tmp_path / "plain.mp4", X264 + " -pix_fmt yuv420p")
    retag = f"h264_metadata=matrix_coefficients={matrix}"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", retag, tmp_path / "odd.mp4")
    with pytest.raises(VqtokError, match=f"odd.mp4: .* to RGB .matrix {matrix}."):
        read(tmp_path / "odd.mp4")


def test_frames_of_another_size_are_scaled_to_the_first(folder, tmp_path):
    whole = make(tmp_path / "whole.ts", f"{X264} -pix_fmt yuv420p")
    half = make(tmp_path / "half.ts", f"-vf scale=48:32 {X264} -pix_fmt yuv420p")
    (tmp_path / "both.ts").write_bytes(whole.read_bytes() + half.read_bytes())
    frames, times, clip = read(tmp_path / "both.ts")
    assert frames.shape == (20, 64, 96, 3)
    assert mean_difference(frames[10:], ffmpeg_frames(half, 99)) < 1
    assert np.diff(times).tolist() == [3600] * 19
    assert "10 frames of another size scaled to the size of the first" in clip.notes


def test_pixels_are_made_square_where_their_aspect_cannot_be_kept(tmp_path):
    shape = {"height": 64, "width": 96, "fps": 25, "time_base": Fraction(1, 25)}
    for aspect, size in ((Fraction(4, 3), "64x128"), (Fraction(2, 3), "96x96"), (1, "64x96")):
        with VideoWriter(tmp_path / "out.webm", pixel_aspect=aspect, **shape) as out:
            out.write(pattern(3), range(3))
        height, width = map(int, size.split("x"))
        stream, _ = ffprobe(tmp_path / "out.webm")
        assert (stream["height"], stream["width"]) == (height, width)
        assert [size in note for note in out.notes] == [True] * (aspect != 1)
    with pytest.raises(VqtokError, match="cannot store frames"):
        VideoWriter(tmp_path / "out.webm", pixel_aspect=10**6, **shape)


def test_a_gif_shows_no_frame_for_less_than_two_centiseconds(tmp_path):
    shape = {"height": 64, "width": 96, "fps": 60, "time_base": Fraction(1, 60)}
    with VideoWriter(tmp_path / "out.gif", **shape) as out:
        out.write(pattern(60), range(60))
    shown = seconds(*ffprobe(tmp_path / "out.gif"))
    assert min(np.diff(shown)) >= Fraction(2, 100) and max(shown) > Fraction(95, 100)
    assert out.notes == [f"{60 - len(shown)} frames dropped: a gif frame lasts 0.02 s or more"]
    with pytest.raises(VqtokError, match="655 s"), VideoWriter(tmp_path / "b.gif", **shape) as out:
        out.write(pattern(2), [0, 60 * 700])


def test_the_last_frame_is_not_lost_where_a_tick_is_longer_than_a_frame(tmp_path):
    shape = {"height": 64, "width": 96, "fps": 240, "time_base": Fraction(1, 25)}
    with VideoWriter(tmp_path / "out.mp4", **shape) as out:
        out.write(smooth(), range(10))
    assert seconds(*ffprobe(tmp_path / "out.mp4")) == [Fraction(t, 25) for t in range(10)]
