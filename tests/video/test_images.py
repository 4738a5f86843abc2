"""An image is a clip of one frame, and tokens of one frame decode to an image."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from helpers import GOLDEN
from helpers.clips import pattern
from vqtok.cli import app
from vqtok.errors import UsageError, VqtokError
from vqtok.tokens import read_tokens
from vqtok.video import VideoWriter, open_video

STILLS = GOLDEN / "stills"  # IMAGE in many formats, written by Pillow
IMAGE = pattern(1, 32, 48)[0]
GRAY = np.repeat(IMAGE @ np.array([0.299, 0.587, 0.114]), 3).reshape(IMAGE.shape)


def read(path):
    """Return the frame of an image (h w c) and the clip."""
    with open_video(path) as clip:
        ((frames, timestamps),) = clip.chunks(8)
    assert len(frames) == len(timestamps) == 1
    return frames[0], clip


def write(path, rgb, **options):
    height, width = rgb.shape[:2]
    settings = {"height": height, "width": width, "fps": 25, "time_base": Fraction(1, 25)}
    with VideoWriter(path, **settings, **options) as writer:
        writer.write(rgb[None], [0])


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(*args):
    return CliRunner().invoke(app, list(map(str, args)))


# Reading


@pytest.mark.parametrize(
    ("name", "expected", "tolerance", "notes"),
    [
        ("alpha.webp", IMAGE, 0, ["alpha channel dropped"]),
        ("rotated.png", IMAGE, 0, []),
        ("rotated.webp", IMAGE, 3, []),
        ("palette.png", IMAGE, 4, ["alpha channel dropped"]),
        ("progressive.jpg", IMAGE, 3, []),
        ("cmyk.jpg", IMAGE, 2, []),
        ("gray.jpg", GRAY, 2, []),
    ],
)
def test_an_image_is_read_as_a_viewer_shows_it(name, expected, tolerance, notes):
    frame, clip = read(STILLS / name)
    assert frame.shape == expected.shape == (clip.height, clip.width, 3)
    assert np.abs(frame - expected.astype(float)).mean() <= tolerance
    assert clip.notes == notes


@pytest.mark.parametrize("pix_fmt", ["rgb48be", "rgba64be", "rgba", "gray", "gray16be", "ya8"])
def test_png_pixel_formats(tmp_path, pix_fmt):
    frame = av.VideoFrame.from_ndarray(IMAGE, format="rgb24").reformat(format=pix_fmt)
    with av.open(str(tmp_path / "a.png"), "w", format="image2pipe") as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = *IMAGE.shape[:2], pix_fmt
        container.mux([*stream.encode(frame), *stream.encode()])
    expected = IMAGE if pix_fmt.startswith("rgb") else GRAY
    assert np.abs(read(tmp_path / "a.png")[0] - expected.astype(float)).max() <= 2


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_truncated_image_is_refused(tmp_path, suffix):
    whole = next(path for path in STILLS.iterdir() if path.suffix == suffix).read_bytes()
    path = tmp_path / f"truncated{suffix}"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(VqtokError, match=f"truncated{suffix} has no frame that can be decoded"):
        read(path)


def test_an_animated_webp_is_refused(tmp_path):
    pillow, path = pytest.importorskip("PIL.Image"), tmp_path / "moving.webp"
    first, *others = (pillow.fromarray(frame) for frame in pattern(3, 32, 48))
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(VqtokError, match=r"moving.webp is an animated WebP, .* to MP4 or GIF"):
        read(path)


# Writing


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 96)])
def test_png_is_lossless(tmp_path, shape):
    rgb = noise(*shape)
    write(tmp_path / "out.png", rgb)
    np.testing.assert_array_equal(read(tmp_path / "out.png")[0], rgb)


def test_png_has_no_chunk_that_changes_its_colors(tmp_path):
    write(tmp_path / "out.png", IMAGE)
    data, offset, chunks = (tmp_path / "out.png").read_bytes(), 8, set()
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        chunks.add(kind)
        offset += 12 + length
    assert sorted(chunks) == [b"IDAT", b"IEND", b"IHDR", b"pHYs"]


@pytest.mark.parametrize("name", ["out.jpg", "out.JPEG"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 96)])
def test_jpg_is_close(tmp_path, shape, name):
    rgb = pattern(1, *shape)[0]
    write(tmp_path / name, rgb)
    assert np.abs(read(tmp_path / name)[0] - rgb.astype(float)).mean() < 2


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pixel_aspect_is_kept(tmp_path, suffix):
    write(tmp_path / f"out{suffix}", IMAGE, pixel_aspect=Fraction(4, 3))
    assert read(tmp_path / f"out{suffix}")[1].pixel_aspect == Fraction(4, 3)


def test_a_percent_sign_in_the_name_is_kept(tmp_path):
    write(tmp_path / "frame-%04d.png", IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["frame-%04d.png"]


def test_a_second_frame_is_refused_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    settings = {"height": 32, "width": 48, "fps": 25, "time_base": Fraction(1, 25)}
    for calls in ([2], [1, 1]):
        with (
            pytest.raises(UsageError, match=r"out.png holds one frame .* write to .mp4"),
            VideoWriter(path, **settings) as writer,
        ):
            for count in calls:
                writer.write(pattern(count, 32, 48), range(count))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "h264"}, "takes no codec and no audio"),
        ({"audio_from": "clip.mp4"}, "takes no codec and no audio"),
        ({"crf": 20}, "jpeg has no crf"),
    ],
)
def test_an_image_takes_no_codec_crf_or_audio(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "out.jpg", IMAGE, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.jpg", "out.mp4"])
def test_frames_too_large_for_the_codec_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match=f"{name} cannot store frames of 1x70000"):
        write(tmp_path / name, noise(1, 70000))
    assert list(tmp_path.iterdir()) == []


# The commands


@pytest.mark.parametrize("shape", [(1, 1), (7, 5)])
def test_decode_writes_the_same_image_as_lossless_video(tmp_path, shape):
    source, token_file = tmp_path / "in.png", tmp_path / "t.safetensors"
    write(source, noise(*shape))
    assert run("encode", source, "-o", token_file).exit_code == 0
    content = read_tokens(token_file)
    assert (content.frames, content.height, content.width) == (1, *shape)
    for name in ("out.png", "out.mkv"):
        codec = ("--codec", "ffv1") if name == "out.mkv" else ()
        result = run("decode", token_file, "-o", tmp_path / name, *codec)
        assert result.exit_code == 0, result.stderr
    image = read(tmp_path / "out.png")[0]
    assert image.shape == (*shape, 3)
    np.testing.assert_array_equal(image, read(tmp_path / "out.mkv")[0])


@pytest.mark.parametrize("name", ["cmyk.jpg", "rotated.webp"])
def test_a_decoded_image_looks_like_its_source(tmp_path, name):
    file = tmp_path / "t.safetensors"
    assert run("encode", STILLS / name, "-o", file).exit_code == 0
    assert run("decode", file, "-o", tmp_path / "out.png").exit_code == 0
    before, after = read(STILLS / name)[0], read(tmp_path / "out.png")[0]
    assert np.abs(before - after.astype(float)).mean() < 25


def test_tokens_of_many_frames_do_not_decode_to_an_image(make_clip, tmp_path):
    file = tmp_path / "t.safetensors"
    assert run("encode", make_clip(), "-o", file).exit_code == 0
    result = run("decode", file, "-o", tmp_path / "out.png")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(
        "out.png holds one frame and there are more: write to .mp4, or to .mkv with codec ffv1 to "
        "lose nothing"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "t.safetensors"]
