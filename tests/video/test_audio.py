"""Sound is copied packet by packet, in step with the frames, whole or for an excerpt."""

from fractions import Fraction

import av
import numpy as np
import pytest

from helpers.clips import needs_ffmpeg, pattern, write_clip
from helpers.roundtrip import played, through
from helpers.witness import ffmpeg, ffprobe, read, seconds, sound_packets
from vqtok.errors import VqtokError
from vqtok.video import VideoWriter

MP4, MKV, WEBM = {".mp4", ".mov"}, {".mkv"}, {".webm"}
# name: (how ffmpeg writes the sound, what can hold it)
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
    """Where the sources lie for all tests of this module."""
    return tmp_path_factory.mktemp("sources")


@pytest.fixture
def source(request, folder):
    """2 s of video with 2.2 s of a tone that rises."""
    path = folder / request.param
    if not path.exists():
        video = "testsrc2=size=64x48:rate=25:duration=2,gblur"
        sound = "aevalsrc=sin(2000*t+900*t*t):s=48000:d=2.2"
        inputs = ["-f", "lavfi", "-i", video, "-f", "lavfi", "-i", sound]
        ffmpeg(*inputs, "-pix_fmt", "yuv420p", *SOURCES[path.name][0].split(), path)
    return path


@needs_ffmpeg
@pytest.mark.parametrize(("start", "duration"), [(0, None), (0.8, 0.6)], ids=["whole", "part"])
@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_the_same_packets_at_the_same_time_after_the_frames(
    source, suffix, start, duration, tmp_path
):
    target = tmp_path / f"back{suffix}"
    options = {"audio_from": source, "start": start, "duration": duration}
    if suffix not in SOURCES[source.name][1]:
        with pytest.raises(VqtokError, match="cannot store"):
            through(source, target, **options)
        assert list(tmp_path.iterdir()) == []
        return
    tokens, _ = through(source, target, **options)
    first, last = (tokens.timestamps[i] * tokens.time_base for i in (0, -1))
    zero = tokens.origin * tokens.time_base
    early = 1 if suffix in MP4 or "opus" in source.name else 0
    begin = first if start else zero - early
    end = last + 1 / tokens.fps if duration else last + 9
    want = [(data, time - zero) for data, time in sound_packets(source) if begin <= time < end]
    found = sound_packets(target)
    assert [data for data, _ in found] == [data for data, _ in want]
    assert max(abs(a - b) for (_, a), (_, b) in zip(found, want, strict=True)) < 0.0011
    shown = seconds(*ffprobe(target))
    assert max(abs(a - b) for a, b in zip(shown, played(tokens), strict=True)) <= 0.0005
    assert found and (not start or shown[0] == 0)


@needs_ffmpeg
@pytest.mark.parametrize("source", ["aac.mp4"], indirect=True)
def test_a_sound_file_is_cut_to_the_frames(source, tmp_path):
    ffmpeg("-i", source, "-vn", "-c", "copy", tmp_path / "sound.m4a")
    through(source, tmp_path / "back.mp4", audio_from=tmp_path / "sound.m4a", duration=1.0)
    assert 0.9 < sound_packets(tmp_path / "back.mp4")[-1][1] < 1.0


# Without ffmpeg


@pytest.fixture
def talkie(tmp_path):
    """A clip of 2 s with a tone of 2.2 s."""
    video = write_clip(tmp_path / "silent.mp4", pattern(50))
    path = tmp_path / "talkie.mp4"
    with av.open(str(video)) as source, av.open(str(path), "w") as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", 48000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
        tone = np.sin(np.arange(105600) * 0.05 + np.arange(105600) ** 2 * 1e-6).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        out.mux([*sound.encode(frame), *sound.encode()])
    return path


def packets(path):
    with av.open(str(path)) as container:
        found = container.demux(audio=0)
        return {bytes(p): float(p.pts * p.time_base) for p in found if p.size}


def write(target, frames, times, time_base, origin, audio_from):
    height, width = frames.shape[1:3]
    shape = {"height": height, "width": width, "fps": 25, "time_base": time_base}
    with VideoWriter(target, **shape, origin=origin, audio_from=audio_from) as out:
        out.write(frames, times)


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(("start", "duration"), [(0, None), (0.8, None), (0, 1.0), (0.8, 0.6)])
def test_sound_is_copied_beside_its_frames(tmp_path, talkie, suffix, start, duration, moved):
    frames, times, clip = read(talkie, start=start, duration=duration)
    origin = clip.origin if moved else 0
    path = tmp_path / f"out{suffix}"
    write(path, frames, times, clip.time_base, origin, talkie)
    stamps, copy = read(path)[1:]
    np.testing.assert_allclose(
        [float(t * copy.time_base) for t in stamps],
        [float((t - origin) * clip.time_base) for t in times],
        atol=1e-3,
    )
    end = 9 if duration is None else start + duration
    before = {".mkv": 0, ".mp4": -1, ".mov": -1}[suffix] if start == 0 else start
    shift = float(origin * clip.time_base)
    want = {k: t - shift for k, t in packets(talkie).items() if before <= t < end}
    found = packets(path)
    assert found.keys() == want.keys()
    assert all(abs(found[k] - want[k]) < 2e-3 for k in want)


def test_sound_that_cannot_be_copied_is_refused(tmp_path, talkie):
    tick = Fraction(1, 25)
    with pytest.raises(VqtokError, match="webm cannot store aac audio"):
        write(tmp_path / "out.webm", pattern(6), range(6), tick, 0, talkie)
    with pytest.raises(VqtokError, match=r"silent.mp4 has no audio"):
        write(tmp_path / "out.mp4", pattern(6), range(6), tick, 0, tmp_path / "silent.mp4")
    assert not list(tmp_path.glob("*out*"))
