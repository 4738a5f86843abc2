"""Audio is copied packet by packet, in sync with the frames, for a whole clip or an excerpt."""

from fractions import Fraction

import av
import numpy as np
import pytest

from helpers.clips import pattern, read_clip, write_clip
from helpers.ffmpeg import audio_packets, probe, run_ffmpeg
from helpers.roundtrip import expected_seconds, round_trip
from vqtok.errors import VqtokError
from vqtok.video import VideoWriter

MP4, MKV, WEBM = {".mp4", ".mov"}, {".mkv"}, {".webm"}
# file name: (the ffmpeg options that write it, the suffixes of containers that can store its audio)
SOURCES = {
    "aac.mp4": ("-c:v libx264 -c:a aac", MP4 | MKV),
    "aac.mkv": ("-c:v libx264 -c:a aac", MP4 | MKV),
    "opus.webm": ("-c:v libvpx -c:a libopus", {".mp4"} | MKV | WEBM),
    "vorbis.webm": ("-c:v libvpx -c:a libvorbis", {".mp4"} | MKV | WEBM),
    "mp3.avi": ("-c:v mpeg4 -c:a libmp3lame", MP4 | MKV),
    "pcm.mov": ("-c:v libx264 -c:a pcm_s16le", MP4 | MKV),
    "ac3.ts": ("-c:v mpeg2video -c:a ac3", MP4 | MKV),
}
TARGETS = [".mp4", ".mov", ".mkv", ".webm"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the sources that the tests of this module share."""
    return tmp_path_factory.mktemp("sources")


@pytest.fixture
def source(request, folder):
    """2 s of video with 2.2 s of a rising tone."""
    path = folder / request.param
    if not path.exists():
        video = "testsrc2=size=64x48:rate=25:duration=2,gblur"
        audio = "aevalsrc=sin(2000*t+900*t*t):s=48000:d=2.2"
        inputs = ["-f", "lavfi", "-i", video, "-f", "lavfi", "-i", audio]
        run_ffmpeg(*inputs, "-pix_fmt", "yuv420p", *SOURCES[path.name][0].split(), path)
    return path


@pytest.mark.parametrize(("start", "duration"), [(0, None), (0.8, 0.6)], ids=["whole", "excerpt"])
@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_packets_are_copied_unchanged_and_in_sync(source, suffix, start, duration, tmp_path):
    target = tmp_path / f"decoded{suffix}"
    options = {"audio_from": source, "start": start, "duration": duration}
    if suffix not in SOURCES[source.name][1]:
        with pytest.raises(VqtokError, match="cannot store"):
            round_trip(source, target, **options)
        assert list(tmp_path.iterdir()) == []
        return
    tokens, _ = round_trip(source, target, **options)
    first, last = (tokens.timestamps[i] * tokens.time_base for i in (0, -1))
    origin = tokens.origin * tokens.time_base
    priming = 1 if suffix in MP4 or "opus" in source.name else 0
    begin = first if start else origin - priming
    end = last + 1 / tokens.fps if duration else last + 9
    expected = [(md5, time - origin) for md5, time in audio_packets(source) if begin <= time < end]
    packets = audio_packets(target)
    assert packets and [md5 for md5, _ in packets] == [md5 for md5, _ in expected]
    assert max(abs(a - b) for (_, a), (_, b) in zip(packets, expected, strict=True)) < 0.0011
    seconds = probe(target).seconds
    pairs = zip(seconds, expected_seconds(tokens), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 0.0005
    assert not start or seconds[0] == 0


@pytest.mark.parametrize("source", ["aac.mp4"], indirect=True)
def test_an_audio_file_is_cut_to_the_frames(source, tmp_path):
    run_ffmpeg("-i", source, "-vn", "-c", "copy", tmp_path / "audio.m4a")
    target = tmp_path / "decoded.mp4"
    round_trip(source, target, audio_from=tmp_path / "audio.m4a", duration=1.0)
    assert 0.9 < audio_packets(target)[-1][1] < 1.0


@pytest.fixture(scope="module")
def talkie(folder):
    """A clip of 2 s with 2.2 s of a rising tone, written with PyAV; silent.mp4 is its video."""
    video = write_clip(folder / "silent.mp4", pattern(50))
    path = folder / "talkie.mp4"
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", 48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
        t = np.arange(105600)
        tone = np.sin(0.05 * t + 1e-6 * t**2).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        target.mux([*audio.encode(frame), *audio.encode()])
    return path


def audio_seconds(path):
    """Return {packet: seconds} of the audio of a file, read with PyAV."""
    with av.open(str(path)) as container:
        packets = container.demux(audio=0)
        return {bytes(p): float(p.pts * p.time_base) for p in packets if p.size}


def write(target, frames, timestamps, time_base, origin, audio_from):
    height, width = frames.shape[1:3]
    settings = {"height": height, "width": width, "fps": 25, "time_base": time_base}
    with VideoWriter(target, **settings, origin=origin, audio_from=audio_from) as writer:
        writer.write(frames, timestamps)


@pytest.mark.parametrize("move_origin", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(("start", "duration"), [(0, None), (0.8, None), (0, 1.0), (0.8, 0.6)])
def test_audio_moves_with_the_origin(tmp_path, talkie, suffix, start, duration, move_origin):
    frames, timestamps, clip = read_clip(talkie, start=start, duration=duration)
    origin = clip.origin if move_origin else 0
    target = tmp_path / f"out{suffix}"
    write(target, frames, timestamps, clip.time_base, origin, talkie)
    copied_timestamps, copy = read_clip(target)[1:]
    np.testing.assert_allclose(
        [float(t * copy.time_base) for t in copied_timestamps],
        [float((t - origin) * clip.time_base) for t in timestamps],
        atol=1e-3,
    )
    begin = {".mkv": 0, ".mp4": -1, ".mov": -1}[suffix] if start == 0 else start
    end = 9 if duration is None else start + duration
    shift = float(origin * clip.time_base)
    expected = {p: t - shift for p, t in audio_seconds(talkie).items() if begin <= t < end}
    packets = audio_seconds(target)
    assert packets.keys() == expected.keys()
    assert all(abs(packets[p] - expected[p]) < 2e-3 for p in expected)


def test_audio_that_cannot_be_copied_is_refused(tmp_path, talkie):
    tick = Fraction(1, 25)
    with pytest.raises(VqtokError, match="webm cannot store aac audio"):
        write(tmp_path / "out.webm", pattern(6), range(6), tick, 0, talkie)
    with pytest.raises(VqtokError, match=r"silent.mp4 has no audio"):
        write(tmp_path / "out.mp4", pattern(6), range(6), tick, 0, talkie.parent / "silent.mp4")
    assert not list(tmp_path.iterdir())
