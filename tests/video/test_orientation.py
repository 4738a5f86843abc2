"""Frames are upright, whichever way a file states its orientation, and reading it is safe."""

import io
import struct
import subprocess
import sys
import zlib

import av
import numpy as np
import pytest

from helpers import CLIPS
from helpers.clips import pattern, read_clip, write_clip
from helpers.ffmpeg import ffmpeg_frames, run_ffmpeg

IMAGE = pattern(1, 64, 96)[0]
UPRIGHT = {  # EXIF orientation: the function that makes the stored image upright
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
# a, b, c, d of display matrices: a pixel (x, y) is displayed at (a x + c y, b x + d y)
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def write_video(suffix, a, b, c, d):
    """Return a video of IMAGE with a display matrix as a file object."""
    file = io.BytesIO()
    with av.open(file, "w", format={".mkv": "matroska"}.get(suffix, suffix[1:])) as container:
        stream = container.add_stream("libx264", 25, {"qp": "4"})
        stream.height, stream.width, stream.pix_fmt = *IMAGE.shape[:2], "yuv444p"
        matrix = [int(value * 0x10000) for value in (a, b, 0, c, d, 0, 0, 0, 0x4000)]
        stream.set_display_matrix(matrix)
        frame = av.VideoFrame.from_ndarray(IMAGE, format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    file.seek(0)
    return file


def write_image(path):
    rgb24 = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-i", "-"]
    run_ffmpeg(*rgb24, path, stdin=IMAGE.tobytes())


def assert_upright(frame, expected, tolerance=3):
    assert frame.shape == expected.shape
    assert np.abs(frame - expected.astype(float)).mean() < tolerance


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_the_orientation_of_an_image_is_applied(tmp_path, suffix):
    pillow = pytest.importorskip("PIL.Image")
    path = tmp_path / f"photo{suffix}"
    for orientation, upright in UPRIGHT.items():
        exif = pillow.Exif()
        exif[0x112] = orientation
        pillow.fromarray(IMAGE).save(path, exif=exif, quality=90)
        assert_upright(read_clip(path)[0][0], upright(IMAGE))


def test_exif_data_that_ffmpeg_copies_unchanged(tmp_path):
    """An image of the size of the thumbnail, in big-endian byte order and without orientation."""
    pillow = pytest.importorskip("PIL.Image")
    image, exif = IMAGE[:8, :8], pillow.Exif()
    exif[0x100] = exif[0x101] = 8
    exif.get_ifd(0x8769).update({0xA002: 8, 0xA003: 8})
    pillow.fromarray(image).save(tmp_path / "small.png", exif=exif)
    np.testing.assert_array_equal(read_clip(tmp_path / "small.png")[0][0], image)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_display_matrix_of_a_video_is_applied(suffix):
    for orientation, matrix in MATRICES.items():
        frames, _, clip = read_clip(write_video(suffix, *matrix))
        assert_upright(frames[0], UPRIGHT[orientation](IMAGE))
        assert clip.notes == []


def test_the_orientation_in_the_stream_is_applied(tmp_path):
    plain = write_clip(tmp_path / "plain.mp4", pattern(3))
    for options in ("rotate=90", "rotate=90:flip=horizontal", "flip=vertical"):
        path = tmp_path / "rotated.ts"
        insert = f"h264_metadata=display_orientation=insert:{options}"
        run_ffmpeg("-i", plain, "-c", "copy", "-bsf:v", insert, path)
        assert_upright(read_clip(path)[0], ffmpeg_frames(path, 3), 1)


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((0, 0, 0, 0), 1),
        ((1, 0, 0, 0), 1),
        ((2, 0, 0, 1), 1),
        ((0, -3, 0.5, 0), 8),
        ((0.99, -0.05, 0.05, 0.99), 1),
        ((0.05, 0.99, -0.99, 0.05), 6),
    ],
)
def test_a_matrix_that_is_no_right_angle_is_rounded_to_one(matrix, orientation):
    assert_upright(read_clip(write_video(".mp4", *matrix))[0][0], UPRIGHT[orientation](IMAGE))


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_invalid_exif_orientation_is_ignored(tmp_path, orientation):
    path = tmp_path / "photo.jpg"
    write_image(path)
    entry = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + entry
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert_upright(read_clip(path)[0][0], IMAGE)


# Reading orientation must not leave anything behind that crashes the process when it is freed.

READ_AND_COLLECT = """
import gc, sys
from vqtok.video import open_video
for path in sys.argv[1:]:
    print(path, flush=True)
    with open_video(path, size=16) as clip:
        for _ in clip.chunks(8):
            pass
    del clip
    gc.collect()
"""


def read_in_a_process(paths):
    """Read files in a process of its own, which prints the name of each before reading it."""
    command = [sys.executable, "-c", READ_AND_COLLECT, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True)
    names = result.stdout.splitlines()
    assert result.returncode == 0, f"{names[-1:]}: {result.stderr}"
    assert len(names) == len(paths)


def test_every_kind_of_file_is_read_safely(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    paths = []
    for codec, *names in (
        ("libx264", "a.mp4", "a.mov", "a.mkv", "a.avi", "a.flv", "a.ts"),
        ("libvpx-vp9", "a.webm"),
        ("mpeg2video", "a.mpg"),
    ):
        paths += [write_clip(tmp_path / name, pattern(3), codec=codec) for name in names]
    exif = pillow.Exif()
    exif[0x112], exif[0x10F] = 6, "camera"
    suffixes = (".png", ".jpg", ".webp", ".avif", ".tiff", ".bmp", ".gif", ".ppm", ".tga", ".jp2")
    for suffix in suffixes:
        paths.append(tmp_path / f"a{suffix}")
        pillow.fromarray(IMAGE).save(paths[-1], exif=exif, icc_profile=bytes(128))
    read_in_a_process(paths)


def test_a_png_with_an_icc_profile_is_read(tmp_path):
    path = tmp_path / "profile.png"
    write_image(path)
    data = path.read_bytes()
    chunk = b"iCCP" + b"name\0\0" + zlib.compress(bytes(128))
    end = 8 + 25  # of the signature and IHDR
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:end] + framed + data[end:])
    read_in_a_process([path])
    np.testing.assert_array_equal(read_clip(path)[0][0], IMAGE)


@pytest.mark.slow
def test_every_photograph_is_read_safely():
    paths = sorted((CLIPS / "stills").glob("*"))
    if not paths:
        pytest.skip("needs the photographs of the developers")
    read_in_a_process(paths)
