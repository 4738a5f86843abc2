"""Stills: tokens of one frame decode to a picture."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from conftest import pattern
from typer.testing import CliRunner

from vqtok import tokens
from vqtok.cli import app
from vqtok.errors import UsageError
from vqtok.video import VideoWriter, open_video

PICTURE = pattern(1, 32, 48)[0]


def read(path):
    """The one frame of a still, (h w c), and what was said about it."""
    with open_video(path) as clip:
        ((frames, times),) = clip.chunks(8)
    assert len(frames) == len(times) == 1
    return frames[0], clip


def write(path, rgb, **options):
    height, width = rgb.shape[:2]
    shape = {"height": height, "width": width, "fps": 25, "time_base": Fraction(1, 25)}
    with VideoWriter(path, **shape, **options) as out:
        out.write(rgb[None], [0])


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(*args):
    return CliRunner().invoke(app, list(map(str, args)))


# Writing


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 96)])
def test_png_is_lossless(tmp_path, shape):
    rgb = noise(*shape)
    write(tmp_path / "out.png", rgb)
    np.testing.assert_array_equal(read(tmp_path / "out.png")[0], rgb)


def test_png_says_nothing_that_would_change_its_colours(tmp_path):
    write(tmp_path / "out.png", PICTURE)
    data, at, chunks = (tmp_path / "out.png").read_bytes(), 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks, at = [*chunks, kind], at + 12 + length
    assert sorted(set(chunks)) == [b"IDAT", b"IEND", b"IHDR", b"pHYs"]


@pytest.mark.parametrize("name", ["out.jpg", "out.JPEG"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 96)])
def test_jpg_is_close(tmp_path, shape, name):
    rgb = pattern(1, *shape)[0]
    write(tmp_path / name, rgb)
    assert np.abs(read(tmp_path / name)[0] - rgb.astype(float)).mean() < 2


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pixel_aspect_is_kept(tmp_path, suffix):
    write(tmp_path / f"out{suffix}", PICTURE, pixel_aspect=Fraction(4, 3))
    assert read(tmp_path / f"out{suffix}")[1].pixel_aspect == Fraction(4, 3)


def test_the_name_is_taken_as_it_is(tmp_path):
    write(tmp_path / "frame-%04d.png", PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == ["frame-%04d.png"]


def test_a_second_frame_is_refused_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    shape = {"height": 32, "width": 48, "fps": 25, "time_base": Fraction(1, 25)}
    for calls in ([2], [1, 1]):
        with (
            pytest.raises(UsageError, match=r"out.png holds one frame .* write to .mp4"),
            VideoWriter(path, **shape) as out,
        ):
            for count in calls:
                out.write(pattern(count, 32, 48), range(count))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec": "h264"}, "takes no codec and no sound"),
        ({"audio_from": "clip.mp4"}, "takes no codec and no sound"),
        ({"crf": 20}, "jpeg has no crf"),
    ],
)
def test_a_picture_has_neither_codec_nor_sound(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        write(tmp_path / "out.jpg", PICTURE, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_jpeg_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"out.jpg cannot hold frames of 1x70000"):
        write(tmp_path / "out.jpg", noise(1, 70000))
    assert list(tmp_path.iterdir()) == []


# The commands


@pytest.mark.parametrize("shape", [(1, 1), (7, 5)])
def test_decode_writes_the_picture_that_lossless_video_holds(tmp_path, shape):
    source, file = tmp_path / "in.png", tmp_path / "t.safetensors"
    write(source, noise(*shape))
    assert run("encode", source, "-o", file).exit_code == 0
    content = tokens.read(file)
    assert (content.frames, content.height, content.width) == (1, *shape)
    for name in ("out.png", "out.mkv"):
        codec = ("--codec", "ffv1") if name == "out.mkv" else ()
        result = run("decode", file, "-o", tmp_path / name, *codec)
        assert result.exit_code == 0, result.stderr
    picture = read(tmp_path / "out.png")[0]
    assert picture.shape == (*shape, 3)
    np.testing.assert_array_equal(picture, read(tmp_path / "out.mkv")[0])


def test_tokens_of_many_frames_are_no_picture(make_clip, tmp_path):
    file = tmp_path / "t.safetensors"
    assert run("encode", make_clip(), "-o", file).exit_code == 0
    result = run("decode", file, "-o", tmp_path / "out.png")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(
        "out.png holds one frame and there are more: write to .mp4, or to .mkv with codec ffv1 to "
        "lose nothing"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "t.safetensors"]
