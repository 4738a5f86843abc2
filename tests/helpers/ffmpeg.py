"""The ffmpeg program of the imageio-ffmpeg package, as an independent reference for vqtok.video."""

import re
import subprocess
from fractions import Fraction
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

# Without these flags, swscale's fast path darkens the image by up to two levels.
EXACT = ["-sws_flags", "bicubic+accurate_rnd+full_chroma_int"]
COLOR_TAGS = ("color_range", "color_space", "color_primaries", "color_trc")


class Probe(NamedTuple):
    """The video stream of a file as ffmpeg decodes it, without applying rotation.

    pixel_aspect: width over height of a pixel, 1 if unknown.
    color_tags: range, matrix, primaries and transfer.
    timestamps: of the frames in ticks of `time_base`, None where unknown.
    """

    height: int
    width: int
    pixel_aspect: Fraction
    time_base: Fraction
    color_tags: tuple[str, ...]
    timestamps: list[int | None]

    @property
    def seconds(self):
        """Return the timestamps in seconds."""
        return [timestamp * self.time_base for timestamp in self.timestamps]


def run_ffmpeg(*arguments, stdin=None):
    """Run ffmpeg and return its standard output."""
    return _run("-v", "error", *arguments, stdin=stdin).stdout


def _run(*arguments, stdin=None):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True)


def ffmpeg_frames(path, limit):
    """Return the first frames, upright: uint8 (t h w c)."""
    ppm = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
    data = run_ffmpeg("-i", path, "-frames:v", limit, *EXACT, *ppm, "-")
    width, height = map(int, data[:20].split()[1:3])
    header = len(b"P6\n%d %d\n255\n" % (width, height))
    frames = np.frombuffer(data, np.uint8).reshape(-1, header + height * width * 3)
    return frames[:, header:].reshape(-1, height, width, 3)


def probe(path, limit=None):
    """Return what ffmpeg's showinfo filter prints about the first frames of a file."""
    source = ["-noautorotate", "-copyts", "-i", path, "-map", "0:v:0"]
    frames = [] if limit is None else ["-frames:v", limit]
    output = ["-vf", "showinfo=checksum=0", "-fps_mode", "passthrough", *frames, "-f", "null", "-"]
    log = _run("-hide_banner", "-nostats", *source, *output).stderr.decode(errors="replace")
    width, height = re.search(r" s:(\d+)x(\d+) ", log).groups()
    numerator, denominator = map(int, re.search(r" sar:(\d+)/(\d+) ", log).groups())
    timestamps = re.findall(r" n: *\d+ pts: *(\S+) ", log)
    return Probe(
        height=int(height),
        width=int(width),
        pixel_aspect=Fraction(numerator or 1, denominator if numerator else 1),
        time_base=Fraction(re.search(r"config in time_base: (\S+),", log)[1]),
        color_tags=tuple(re.search(rf"\b{tag}:(\w+)", log)[1] for tag in COLOR_TAGS),
        timestamps=[None if pts == "NOPTS" else int(pts) for pts in timestamps][:limit],
    )


def audio_packets(path):
    """Return (hash, seconds) of each audio packet."""
    copy = ["-map", "0:a", "-c", "copy", "-f", "framehash", "-hash", "md5"]
    timestamps = ["-copyts", "-avoid_negative_ts", "disabled"]
    lines = run_ffmpeg("-i", path, *copy, *timestamps, "-").decode().splitlines()
    time_base = next(Fraction(line.split()[-1]) for line in lines if line.startswith("#tb"))
    rows = [line.split(",") for line in lines if not line.startswith("#")]
    return [(row[5].strip(), int(row[2]) * time_base) for row in rows]
