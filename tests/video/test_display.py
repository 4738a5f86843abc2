"""What a file says about showing its frames: the range of gray, and edges that are cut off."""

import io

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from helpers.clips import pattern, read_clip, write_clip
from helpers.ffmpeg import ffmpeg_frames, run_ffmpeg

BARS = np.repeat([[16, 126, 235]], 64, 0).repeat(32, 1)  # levels of 8 bits
LIMITED, FULL = [0, 128, 255], [16, 126, 235]  # what is shown


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "color_range", "expected"),
    [
        ("a.hevc", "libx265", "gray", ColorRange.MPEG, LIMITED),
        ("a.hevc", "libx265", "gray10le", ColorRange.MPEG, LIMITED),
        ("a.hevc", "libx265", "gray12le", ColorRange.MPEG, LIMITED),
        ("a.mkv", "ffv1", "gray", ColorRange.MPEG, LIMITED),
        ("a.mkv", "ffv1", "gray16le", ColorRange.MPEG, LIMITED),
        ("a.hevc", "libx265", "gray10le", ColorRange.JPEG, FULL),
        ("a.mkv", "ffv1", "gray12le", ColorRange.JPEG, FULL),
        # Without a tag, HEVC is of limited range, and the formats of images are of full range.
        ("a.hevc", "libx265", "gray", None, LIMITED),
        ("a.mkv", "ffv1", "gray", None, FULL),
        ("a.avi", "rawvideo", "gray", None, FULL),
        ("a.png", "png", "gray", None, FULL),
    ],
)
def test_gray_is_shown_from_black_to_white(tmp_path, name, codec, pix_fmt, color_range, expected):
    bits = int(pix_fmt.removeprefix("gray").removesuffix("le") or 8)
    levels = (BARS * 2 ** (bits - 8)).astype("u1" if bits == 8 else "u2")
    options = {"x265-params": "lossless=1:log-level=none"} if codec == "libx265" else {}
    container = "image2pipe" if codec == "png" else None
    with av.open(str(tmp_path / name), "w", format=container) as output:
        stream = output.add_stream(codec, 25, options)
        stream.height, stream.width, stream.pix_fmt = *levels.shape, pix_fmt
        if color_range is not None:
            stream.codec_context.color_range = color_range
        frame = av.VideoFrame.from_ndarray(levels, format=pix_fmt)
        output.mux([*stream.encode(frame), *stream.encode()])
    for size in (None, 32):
        shown = read_clip(tmp_path / name, size=size)[0][0]
        width = shown.shape[1] // 3
        middles = shown[:, width // 2 :: width]
        assert (middles == np.array(expected)[:, None]).all()


def test_what_the_container_hides_is_cut_off(tmp_path):
    matroska, quicktime = tmp_path / "cropped.mkv", tmp_path / "cropped.mov"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "96x64", "-r", "25", "-i", "-"]
    codec = ["-c:v", "libx264", "-qp", "4", "-pix_fmt", "yuv444p", "-write_crc32", "0"]
    run_ffmpeg(*source, "-vf", "setsar=4/3", *codec, matroska, stdin=pattern(3).tobytes())
    # FFmpeg has no option for cropping, but its elements for the pixel aspect are of this length.
    data, aspect = matroska.read_bytes(), bytes.fromhex("54b08102 54ba8101 54b28103")
    assert data.count(aspect) == 1
    left_top_bottom = bytes.fromhex("54cc8110 54bb8114 54aa8104")  # 16, 20 and 4 pixels
    matroska.write_bytes(data.replace(aspect, left_top_bottom))
    run_ffmpeg("-apply_cropping", "none", "-i", matroska, "-c", "copy", quicktime)
    for path in (matroska, quicktime):
        frames, _, clip = read_clip(path)
        assert frames.shape == (3, 40, 80, 3) and (clip.height, clip.width) == (40, 80)
        assert np.abs(frames - pattern(3)[:, 20:60, 16:].astype(float)).mean() < 3
        assert np.abs(frames - ffmpeg_frames(path, 3).astype(float)).mean() < 1
        assert read_clip(io.BytesIO(path.read_bytes()), size=20)[0].shape == (3, 20, 40, 3)


@pytest.mark.parametrize("left, top, right, bottom", [(4, 2, 6, 8), (2, 0, 0, 0), (32, 16, 0, 0)])
def test_what_the_stream_hides_is_cut_off(tmp_path, left, top, right, bottom):
    whole, _, _ = read_clip(write_clip(tmp_path / "whole.mp4", pattern(3), qp="0"))
    cropping = f"crop-rect={left},{top},{right},{bottom}"
    path = write_clip(tmp_path / "a.mp4", pattern(3), qp="0", **{"x264-params": cropping})
    frames, _, _ = read_clip(path)
    expected = whole[:, top : 64 - bottom, left : 96 - right]
    assert frames.shape == expected.shape
    assert np.abs(frames - expected.astype(float)).mean() < 1  # chroma at the edges
