"""Small clips and sounds in many formats."""

import io
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

HEIGHT, WIDTH, FRAMES, RATE = 48, 64, 4, 16000
os.environ["SVT_LOG"] = "0"  # no messages from the AV1 encoder
SILENT = {"x265-params": "log-level=none"}
BITEXACT = {"fflags": "+bitexact"}

# Extension, container, codec and pixel format.
VIDEO = """
mp4 mp4 libx264 yuv420p
mkv matroska libx265 yuv420p10le
avi avi mpeg4 yuv420p
webm webm libvpx yuv420p
mov mov prores_ks yuv422p10le
ts mpegts mpeg2video yuv420p
flv flv flv1 yuv420p
gif gif gif rgb8
mp4 mp4 hevc yuv420p
png image2 png rgb24
jpg image2 mjpeg yuvj420p
webp webp libwebp yuv420p
tiff image2 tiff rgb24
bmp image2 bmp bgr24
apng apng apng rgba
nut nut ffv1 yuv420p
y4m yuv4mpegpipe rawvideo yuv420p
mpg mpeg mpeg1video yuv420p
wmv asf wmv2 yuv420p
mxf mxf mpeg2video yuv422p
avif avif libsvtav1 yuv420p
264 h264 libx264 yuv420p
ivf ivf libvpx-vp9 yuv420p
mkv matroska rawvideo yuv420p
m2v mpeg2video mpeg2video yuv420p
"""
# Extension, container and codec.
SOUND = """
m4a mp4 aac
mp3 mp3 libmp3lame
webm webm libopus
flac flac flac
wav wav pcm_s16le
mov mov pcm_s24le
ts mpegts ac3
mkv matroska pcm_f32le
avi avi mp2
mka matroska eac3
aac adts aac
"""


def video_files() -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of a clip in each format."""
    for extension, container, codec, pixel_format in map(str.split, VIDEO.strip().splitlines()):
        yield f"clip.{extension}", write_video(container, codec, pixel_format)


def sound_files() -> Iterator[tuple[str, bytes]]:
    """Yield (name, contents) of a second of sound in each format."""
    for extension, container, codec in map(str.split, SOUND.strip().splitlines()):
        yield f"sound.{extension}", write_sound(container, codec)


def write_video(container: str, codec: str, pixel_format: str) -> bytes:
    """Return a clip of a moving gradient, or its first frame in a format of still images."""
    buffer = io.BytesIO()
    still = container in ("image2", "webp", "avif")
    muxer = "image2pipe" if container == "image2" else container
    with av.open(buffer, "w", muxer, options=BITEXACT) as output:
        stream = output.add_stream(codec, Fraction(25), options=SILENT)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixel_format
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        for t in range(1 if still else FRAMES):
            rgb = np.stack([4 * x, 5 * y, 4 * x + 20 * t], -1).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def write_sound(container: str, codec: str) -> bytes:
    """Return a second of a rising tone."""
    buffer = io.BytesIO()
    rate = 48000 if codec in ("libopus", "mp2", "ac3", "eac3") else RATE
    with av.open(buffer, "w", container, options=BITEXACT) as output:
        stream = output.add_stream(codec, rate, layout="mono")
        tone = (8000 * np.sin(np.arange(rate) ** 1.2 / 50)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
