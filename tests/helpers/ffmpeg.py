"""What ffmpeg and ffprobe, other programs than ours, say about a file."""

import json
import subprocess
from fractions import Fraction

import numpy as np

from vqtok.video import open_video


def read(source, limit=10**9, **options):
    """What we say: (t h w c), timestamps, clip."""
    frames, times = [], []
    with open_video(source, **options) as clip:
        for chunk, stamps in clip.chunks(8):
            frames.append(chunk)
            times += stamps
            if len(times) >= limit:
                break
    return np.concatenate(frames)[:limit], times[:limit], clip


def mean_difference(a, b):
    """The largest difference of mean colour over all frames and channels."""
    return np.abs(a.mean((1, 2)) - b.mean((1, 2))).max()


def ffmpeg(*arguments, stdin=None):
    """Run ffmpeg and give its standard output."""
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def ffmpeg_frames(path, limit):
    """(t h w c), turned upright as a player does."""
    exact = ["-sws_flags", "bicubic+accurate_rnd+full_chroma_int"]  # else it darkens by up to 2
    form = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
    data = ffmpeg("-i", path, "-frames:v", limit, *exact, *form, "-")
    width, height = map(int, data[:20].split()[1:3])
    head = len(b"P6\n%d %d\n255\n" % (width, height))
    return (
        np.frombuffer(data, np.uint8)
        .reshape(-1, head + height * width * 3)[:, head:]
        .reshape(-1, height, width, 3)
    )


def ffprobe(path, limit=None):
    """The video stream and the times of its frames in ticks (None for unknown)."""
    some = ["-read_intervals", f"%+#{limit + 8}"] if limit else []
    show = "stream:stream_side_data_list:frame=best_effort_timestamp"
    command = ["ffprobe", "-v", "quiet", "-select_streams", "v:0", *some, "-of", "json"]
    output = subprocess.run(
        [*command, "-show_entries", show, path], capture_output=True, check=True
    ).stdout
    found = json.loads(output)
    times = [frame.get("best_effort_timestamp") for frame in found["frames"]]
    return found["streams"][0], times[:limit]


def seconds(stream, times):
    """When each frame is shown, from what ffprobe gave."""
    return [time * Fraction(stream["time_base"]) for time in times]


def sound_packets(path):
    """(hash, seconds) of each packet of sound."""
    hashes = ["-map", "0:a", "-c", "copy", "-f", "framehash", "-hash", "md5"]
    as_is = ["-copyts", "-avoid_negative_ts", "disabled"]
    lines = ffmpeg("-i", path, *hashes, *as_is, "-").decode().splitlines()
    tick = next(Fraction(line.split()[-1]) for line in lines if line.startswith("#tb"))
    rows = [line.split(",") for line in lines if not line.startswith("#")]
    return [(row[5].strip(), int(row[2]) * tick) for row in rows]
