"""A late start, another number of threads or a pipe give the frames of a sequential read."""

import os
import random
import subprocess

import numpy as np
import pytest

from helpers.clips import read_clip
from helpers.ffmpeg import probe, run_ffmpeg

SECONDS = 4
SOURCE = f"-f lavfi -i testsrc2=size=64x48:rate=25:duration={SECONDS}"
TONE = f"-f lavfi -i sine=duration={SECONDS}"

X264 = "-c:v libx264 -g 30 -bf 3"
X265 = "-c:v libx265 -x265-params keyint=25:min-keyint=25:open-gop=1:log-level=none"
OPEN_GOP = f"{X264} -x264-params open-gop=1:scenecut=0"
INTRA_REFRESH = f"{X264} -x264-params intra-refresh=1"
MPEG2 = "-c:v mpeg2video -g 15 -bf 2"
MPEG4 = "-c:v mpeg4 -g 20 -bf 2"
VP8 = "-c:v libvpx -g 30 -auto-alt-ref 1 -lag-in-frames 16"
VP9 = "-c:v libvpx-vp9 -g 30 -cpu-used 8 -lag-in-frames 16"
AUDIO = f"{TONE} {X264} -c:a aac"
# name: the options with which FFmpeg makes the file from SOURCE
KINDS = {
    "b_frames.mp4": X264,
    "b_frames.mkv": X264,
    "b_frames.flv": X264,
    "b_frames.asf": X264,
    "b_frames.nut": X264,
    "b_frames.3gp": X264,
    "b_frames.m2ts": f"{X264} -f mpegts -mpegts_m2ts_mode 1",
    "one_gop.mp4": "-c:v libx264 -g 999",
    "open_gop.mp4": OPEN_GOP,
    "open_gop.mkv": OPEN_GOP,
    "open_gop.ts": OPEN_GOP,
    "intra_refresh.mp4": INTRA_REFRESH,
    "intra_refresh.mkv": INTRA_REFRESH,
    "fragments.mp4": f"{X264} -movflags frag_keyframe+empty_moov",
    "short_fragments.mp4": f"{X264} -movflags empty_moov -frag_duration 700000",
    "dash.mp4": f"{X264} -movflags dash+frag_keyframe+global_sidx",
    "negative_offsets.mp4": f"{X264} -movflags negative_cts_offsets",
    "open_gop_hevc.mp4": X265,
    "open_gop_hevc.mkv": X265,
    "mpeg2.mp4": MPEG2,
    "mpeg2.mkv": MPEG2,
    "mpeg2.mpg": MPEG2,
    "mpeg2.ts": MPEG2,
    "mpeg2.vob": f"{MPEG2} -f vob",
    "mpeg2.mxf": MPEG2,
    "mpeg4.mp4": MPEG4,
    "mpeg4.avi": MPEG4,
    "wmv2.wmv": "-c:v wmv2 -g 25",
    "vp8.webm": VP8,
    "vp9.webm": VP9,
    "vp9.mp4": VP9,
    "av1.mp4": "-c:v libaom-av1 -g 30 -cpu-used 8",
    "theora.ogv": "-c:v libtheora -g 30",
    "mjpeg.mov": "-c:v mjpeg",
    "moving.gif": "",
    "moving.apng": "-f apng",
    "audio.mp4": AUDIO,
    "audio.flv": AUDIO,
}
# name: options for copying audio.mp4, which give edit lists and late starts
COPIES = {
    "cut.mp4": "-ss 1.3",
    "cut.mov": "-ss 1.3",
    "cut.mkv": "-ss 1.3",
    "late.mp4": "-itsoffset 0.7",
    "late.mkv": "-itsoffset 3",
}
# Containers that can be put end to end; the clock jumps back in the middle.
JOINED = {
    "joined.ts": X264,
    "joined.m2ts": KINDS["b_frames.m2ts"],
    "joined.mpg": MPEG2,
    "joined.vob": KINDS["mpeg2.vob"],
    "joined.nut": X264,  # only a part of the second recording can be read
}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Return a function that gives the path of a file by its name in the tables."""
    folder = tmp_path_factory.mktemp("kinds")

    def encode(path, options, *limits):
        run_ffmpeg(*SOURCE.split(), *options.split(), *limits, "-threads", 1, path)
        return path

    def make(name):
        path = folder / name
        if path.exists():
            return path
        if name in KINDS:
            return encode(path, KINDS[name])
        if name in COPIES:
            run_ffmpeg(*COPIES[name].split(), "-i", make("audio.mp4"), "-c", "copy", path)
            return path
        parts = encode(folder / f"a.{name}", JOINED[name]), folder / f"b.{name}"
        encode(parts[1], JOINED[name], "-t", 1.2)
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        return path

    return make


def read_pipe(path):
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        return read_clip(cat.stdout)


def read_named_pipe(path):
    pipe = path.with_name(f"pipe.{path.name}")
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', path, pipe]):
        return read_clip(pipe)


def read_on_one_core(path):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("cannot choose cores here")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return read_clip(path)
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("name", KINDS | COPIES)
def test_a_late_start_gives_the_frames_of_a_sequential_read(video, name):
    path = video(name)
    frames, timestamps, clip = read_clip(path)
    rng = random.Random(0)
    for i in range(30):
        n = rng.randrange(1, len(timestamps))
        earlier = rng.random() * 0.03 if i % 2 else 0  # frames are 0.04 s apart
        start = float((timestamps[n] - clip.origin) * clip.time_base) - earlier
        window, window_timestamps, _ = read_clip(path, limit=3, start=start)
        assert window_timestamps == timestamps[n : n + 3], start
        np.testing.assert_array_equal(window, frames[n : n + 3])


@pytest.mark.parametrize("read", [read_clip, read_on_one_core, read_pipe, read_named_pipe])
@pytest.mark.parametrize("name", KINDS | COPIES | JOINED)
def test_no_frame_is_lost_or_invented(video, name, read):
    path = video(name)
    frames, timestamps, clip = read(path)
    reference = probe(path).timestamps
    assert len(frames) == len(reference)
    if name not in JOINED and clip.notes == []:
        assert np.diff(timestamps).tolist() == np.diff(reference).tolist()
    np.testing.assert_array_equal(frames, read_clip(path)[0])


@pytest.mark.parametrize("name", JOINED.keys() - {"joined.nut"})
def test_joined_recordings_have_the_frames_of_both(video, name):
    _, timestamps, clip = read_clip(video(name))
    assert len(timestamps) == 130
    assert clip.notes == ["30 timestamps repaired"]


@pytest.mark.parametrize("name", ["joined.ts", "joined.mpg", "b_frames.mp4", "b_frames.flv"])
def test_damage_at_the_end_is_the_same_for_every_number_of_threads(video, name, tmp_path):
    rng = np.random.default_rng(0)
    data = bytearray(video(name).read_bytes())
    for position in rng.integers(len(data) * 9 // 10, len(data), 20):
        data[position] = rng.integers(256)
    (tmp_path / name).write_bytes(data)
    frames, timestamps, _ = read_clip(tmp_path / name)
    expected, expected_timestamps, _ = read_pipe(tmp_path / name)
    assert timestamps == expected_timestamps
    assert len(frames) == len(expected)
