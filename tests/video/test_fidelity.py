"""Every kind of file keeps frames, timestamps and colors; ffmpeg is the reference."""

import io
from fractions import Fraction

import numpy as np
import pytest

from helpers.clips import clip_files, mean_difference, pattern, read_clip, write_clip
from helpers.ffmpeg import ffmpeg_frames, probe, run_ffmpeg
from helpers.roundtrip import expected_seconds, round_trip
from vqtok.errors import VqtokError
from vqtok.video import VideoWriter

X264 = "-c:v libx264 -preset veryfast -qp 4"
IRREGULAR = [0, 40, 80, 200, 230, 300, 333, 400, 440, 900]  # milliseconds

# file name: the ffmpeg options that write waves() to it
FFMPEG_CLIPS = {
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
PYAV_CLIPS = {
    "rotated_90.mov": {"rotation": 90},
    "rotated_180.mov": {"rotation": 180},
    "rotated_-90.mov": {"rotation": -90},
    "irregular.mkv": {"times": IRREGULAR},
    "irregular.mp4": {"times": IRREGULAR},
}
SYNTHETIC = [*FFMPEG_CLIPS, *PYAV_CLIPS]
IRREGULAR_FILES = (
    *("talk_vfr_cut.mkv", "webcam_lowlight_cut.mov", "phone_rotated_cut.mov"),
    *("walking_people_small.gif", "traffic_mpeg4_cut.avi", "flower_vp8_audio_cut.webm"),
    *("talk_vfr.mkv", "webcam_lowlight.mov", "phone_rotated_portrait.mov"),
    *("walking_people.gif", "traffic_mpeg4.avi", "flower_vp8_audio.webm"),
)
FINE_CRF = 4  # at the default, x264 shifts the mean color of such a small image by up to 2
FIRST = 6  # frames to compare


def waves(frames=10, height=64, width=96):
    """Return uint8 (t h w c) without the sharp edges that programs scale in different ways."""
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = np.sin(x / 15 + t / 3), np.cos(y / 11 - t / 4), np.sin((x + y) / 20 + t / 2)
    return (np.stack(waves, -1) * (90, 70, 80) + (140, 120, 110)).astype(np.uint8)


def write_with_ffmpeg(path, options):
    """Write waves() with ffmpeg."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-r", "25", "-i", "-"]
    run_ffmpeg(*raw, *options.split(), path, stdin=waves().tobytes())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which the tests of this module share synthetic clips."""
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture
def source(request, folder):
    """A real clip, or the synthetic clip of that name."""
    if not isinstance(request.param, str):
        return request.param
    path = folder / request.param
    if path.exists():
        return path
    if path.name in PYAV_CLIPS:
        return write_clip(path, waves(), **PYAV_CLIPS[path.name])
    return write_with_ffmpeg(path, FFMPEG_CLIPS[path.name])


every_clip = pytest.mark.parametrize(
    "source", [*clip_files("dev"), *SYNTHETIC], indirect=True, ids=str
)


@every_clip
def test_reading_matches_ffmpeg(source):
    frames, timestamps, clip = read_clip(source, FIRST)
    reference = ffmpeg_frames(source, FIRST)
    assert frames.shape == reference.shape
    assert timestamps == probe(source, FIRST).timestamps
    assert mean_difference(frames, reference) < 0.5
    assert np.abs(frames.astype(int) - reference).mean() < 2
    assert clip.damage == []


@pytest.mark.parametrize("source", SYNTHETIC, indirect=True, ids=str)
def test_every_frame_is_read(source):
    timestamps, reference = read_clip(source)[1], probe(source).timestamps
    assert len(timestamps) == len(reference)
    assert all(a == b for a, b in zip(timestamps, reference, strict=True) if b is not None)
    assert read_clip(io.BytesIO(source.read_bytes()))[1] == timestamps


@every_clip
def test_a_round_trip_keeps_frames_timestamps_and_pixel_aspect(source, tmp_path):
    target = tmp_path / "decoded.mp4"
    crf = None if source.parent.name == "dev" else FINE_CRF
    tokens, notes = round_trip(source, target, crf=crf, duration=0.15)
    before, after = ffmpeg_frames(source, tokens.frames), ffmpeg_frames(target, 99)
    assert after.shape == before.shape
    assert mean_difference(before, after) < 1
    decoded = probe(target)
    assert decoded.seconds == expected_seconds(tokens)
    assert decoded.color_tags == ("tv", "bt709", "bt709", "bt709")
    assert decoded.pixel_aspect == probe(source, 1).pixel_aspect
    assert notes == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("path", clip_files("dev", *IRREGULAR_FILES))
def test_a_round_trip_keeps_every_irregular_timestamp(path, suffix, tmp_path):
    tokens, _ = round_trip(path, tmp_path / f"decoded{suffix}", size=16)
    seconds = probe(tmp_path / f"decoded{suffix}").seconds
    tick = 0 if suffix == ".mp4" else Fraction(1, 1000)
    assert largest_error(seconds, expected_seconds(tokens)) <= tick / 2


def largest_error(values, expected):
    return max(abs(a - b) for a, b in zip(values, expected, strict=True))


@pytest.mark.parametrize("name", ["out.mov", "out.mkv", "out.webm", "out.gif", "ffv1.mkv"])
@pytest.mark.parametrize(
    "source", ["irregular.mp4", "odd.webm", "wide.mp4", "tall.webm"], indirect=True
)
def test_a_round_trip_through_every_container(source, name, tmp_path):
    target = tmp_path / name
    codec = "ffv1" if target.stem == "ffv1" else None
    crf = None if codec or target.suffix == ".gif" else FINE_CRF
    tokens, notes = round_trip(source, target, codec=codec, crf=crf)
    tick = {".mov": 0, ".gif": Fraction(1, 100)}.get(target.suffix, Fraction(1, 1000))
    decoded = probe(target)
    assert largest_error(decoded.seconds, expected_seconds(tokens)) <= tick / 2
    assert decoded.width * decoded.pixel_aspect / decoded.height == pytest.approx(
        tokens.width * float(tokens.pixel_aspect) / tokens.height, rel=0.01
    )
    assert mean_difference(ffmpeg_frames(source, 99), ffmpeg_frames(target, 99)) < 1.5
    keeps_aspect = codec is None and target.suffix in (".mov", ".mkv")
    assert len(notes) == (0 if keeps_aspect or tokens.pixel_aspect == 1 else 1)


# Where a clip starts


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [None, Fraction(30)])
def test_an_excerpt_starts_at_zero(folder, tmp_path, suffix, fps):
    source = write_with_ffmpeg(folder / "plain.mkv", X264)
    target = tmp_path / f"excerpt{suffix}"
    tokens, _ = round_trip(source, target, start=0.16, fps=fps)
    seconds = probe(target).seconds
    assert seconds[0] == 0 and len(seconds) == tokens.frames == (6 if fps is None else 8)
    tick = Fraction(1, 100 if suffix == ".gif" else 1000)
    assert largest_error(seconds, expected_seconds(tokens)) <= tick / 2


def test_a_late_start_becomes_zero_and_tokens_keep_the_timestamps(folder, tmp_path):
    source = write_with_ffmpeg(folder / "late.ts", "-output_ts_offset 36000 -c:v mpeg2video -q:v 2")
    tokens, _ = round_trip(source, tmp_path / "decoded.mp4")
    assert list(tokens.timestamps) == probe(source).timestamps
    assert tokens.timestamps[0] == tokens.origin > 36000 * 90000
    assert probe(tmp_path / "decoded.mp4").seconds == [Fraction(t, 25) for t in range(10)]


def test_negative_timestamps_keep_their_distances(tmp_path):
    times = [-2, 38, 71, 100, 140, 200, 230, 300, 333, 400]
    source = write_clip(tmp_path / "early.webm", waves(), times=times, codec="libvpx-vp9")
    assert read_clip(source)[1] == probe(source).timestamps == times
    tokens, _ = round_trip(source, tmp_path / "decoded.mp4")
    assert probe(tmp_path / "decoded.mp4").seconds == [Fraction(t + 2, 1000) for t in times]
    assert list(tokens.timestamps) == times


def test_without_an_origin_time_starts_at_tick_zero(tmp_path):
    settings = {"height": 64, "width": 96, "fps": 25, "time_base": Fraction(1, 25)}
    with VideoWriter(tmp_path / "out.mp4", **settings) as writer:
        writer.write(waves(), range(50, 60))
    assert probe(tmp_path / "out.mp4").seconds == [Fraction(t, 25) for t in range(50, 60)]


# What cannot be kept is noted or refused


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_converted_by_its_matrix_with_a_note(folder, transfer, name):
    scale = "-vf scale=out_color_matrix=bt2020:flags=accurate_rnd,format=yuv420p10le"
    tag = f"setparams=colorspace=bt2020nc:color_trc={transfer}:color_primaries=bt2020"
    source = write_with_ffmpeg(folder / f"{name}.mkv", f"{scale},{tag} -c:v libx264 -qp 4")
    frames, _, clip = read_clip(source)
    assert mean_difference(frames, ffmpeg_frames(source, 99)) < 0.5
    assert mean_difference(frames, waves()) < 1.5
    assert clip.notes == [f"HDR ({name}) is not tone-mapped: colors look washed out"]
    assert clip.damage == []


@pytest.mark.parametrize("matrix", [8, 14])
def test_an_unsupported_color_matrix_is_refused_in_one_sentence(tmp_path, matrix):
    plain = write_with_ffmpeg(tmp_path / "plain.mp4", X264 + " -pix_fmt yuv420p")
    retag = f"h264_metadata=matrix_coefficients={matrix}"
    run_ffmpeg("-i", plain, "-c", "copy", "-bsf:v", retag, tmp_path / "odd.mp4")
    with pytest.raises(VqtokError, match=f"odd.mp4: .* to RGB .yuv420p, matrix {matrix}."):
        read_clip(tmp_path / "odd.mp4")


def test_interlaced_video_is_read_with_a_note(folder):
    source = write_with_ffmpeg(folder / "interlaced.mp4", FFMPEG_CLIPS["interlaced.mp4"])
    note = "interlaced video is not deinterlaced: moving edges may be combed"
    assert read_clip(source)[2].notes == [note]


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    large = write_with_ffmpeg(tmp_path / "large.ts", f"{X264} -pix_fmt yuv420p")
    small = write_with_ffmpeg(tmp_path / "small.ts", f"-vf scale=48:32 {X264} -pix_fmt yuv420p")
    (tmp_path / "both.ts").write_bytes(large.read_bytes() + small.read_bytes())
    frames, timestamps, clip = read_clip(tmp_path / "both.ts")
    assert frames.shape == (20, 64, 96, 3)
    assert mean_difference(frames[10:], ffmpeg_frames(small, 99)) < 1
    assert np.diff(timestamps).tolist() == [3600] * 19
    assert "10 frames of another size scaled to the size of the first" in clip.notes


def test_pixels_are_made_square_where_their_aspect_cannot_be_stored(tmp_path):
    settings = {"height": 64, "width": 96, "fps": 25, "time_base": Fraction(1, 25)}
    for aspect, size in ((Fraction(4, 3), "64x128"), (Fraction(2, 3), "96x96"), (1, "64x96")):
        with VideoWriter(tmp_path / "out.webm", pixel_aspect=aspect, **settings) as writer:
            writer.write(pattern(3), range(3))
        decoded = probe(tmp_path / "out.webm")
        assert f"{decoded.height}x{decoded.width}" == size
        assert [size in note for note in writer.notes] == [True] * (aspect != 1)
    with pytest.raises(VqtokError, match="cannot store frames"):
        VideoWriter(tmp_path / "out.webm", pixel_aspect=10**6, **settings)


def test_a_gif_shows_no_frame_for_less_than_two_centiseconds(tmp_path):
    path = tmp_path / "out.gif"
    settings = {"height": 64, "width": 96, "fps": 60, "time_base": Fraction(1, 60)}
    with VideoWriter(path, **settings) as writer:
        writer.write(pattern(60), range(60))
    seconds = probe(path).seconds
    assert min(np.diff(seconds)) >= Fraction(2, 100) and max(seconds) > Fraction(95, 100)
    dropped = 60 - len(seconds)
    assert writer.notes == [f"{dropped} frames dropped: a gif frame lasts 0.02 s or more"]
    with pytest.raises(VqtokError, match="655 s"), VideoWriter(path, **settings) as writer:
        writer.write(pattern(2), [0, 60 * 700])


def test_the_last_frame_is_kept_where_a_tick_is_longer_than_a_frame(tmp_path):
    settings = {"height": 64, "width": 96, "fps": 240, "time_base": Fraction(1, 25)}
    with VideoWriter(tmp_path / "out.mp4", **settings) as writer:
        writer.write(waves(), range(10))
    assert probe(tmp_path / "out.mp4").seconds == [Fraction(t, 25) for t in range(10)]
