"""Audio is copied packet by packet, in sync with the frames, for a whole clip or an excerpt."""

import shlex
from contextlib import chdir
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
        with pytest.raises(VqtokError, match="cannot be copied to"):
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


# file name: (the ffmpeg options that write it, the suffixes of containers that its audio fits)
CODECS = {
    "ac3.ac3": ("-c:a ac3", MP4 | MKV),
    "adpcm_ima_qt.mov": ("-c:a adpcm_ima_qt", {".mov"}),
    "adpcm_ima_wav.wav": ("-c:a adpcm_ima_wav", set()),
    "adpcm_ms.wav": ("-c:a adpcm_ms", set()),
    "alac.m4a": ("-c:a alac", MP4 | MKV),
    "dts.wav": ("-c:a dca -strict -2", MP4 | MKV),
    "eac3.eac3": ("-c:a eac3", MP4 | MKV),
    "flac.flac": ("-c:a flac", {".mp4"} | MKV),
    "g722.nut": ("-c:a g722 -ac 1 -ar 16000", set()),
    "mlp.mlp": ("-c:a mlp -strict -2", MKV),
    "mp2.mp2": ("-c:a mp2", MP4 | MKV),
    "mp3.mp3": ("-c:a libmp3lame", MP4 | MKV),
    "nellymoser.mov": ("-c:a nellymoser -ac 1 -ar 44100", {".mov"}),
    "opus.nut": ("-c:a libopus", {".mp4"} | MKV | WEBM),
    "opus.ogg": ("-c:a libopus", {".mp4"} | MKV | WEBM),
    "pcm_alaw.wav": ("-c:a pcm_alaw", {".mov"}),
    "pcm_mulaw.au": ("-c:a pcm_mulaw", {".mov"}),
    "pcm_s16be.aiff": ("-c:a pcm_s16be", {".mov"} | MKV),
    "pcm_s16le.mov": ("-c:a pcm_s16le", MP4 | MKV),
    "pcm_s16le.wav": ("-c:a pcm_s16le", {".mov"} | MKV),
    "pcm_u8.wav": ("-c:a pcm_u8", {".mov"} | MKV),
    "s302m.ts": ("-c:a s302m -strict -2", set()),
    "truehd.mkv": ("-c:a truehd -strict -2", MKV),
    "tta.tta": ("-c:a tta", MKV),
    "vorbis.nut": ("-c:a libvorbis", {".mp4"} | MKV | WEBM),
    "wmav1.asf": ("-c:a wmav1", set()),
    "wmav2.asf": ("-c:a wmav2", set()),
}
TONE = ["-f", "lavfi", "-i", "aevalsrc=sin(2000*t+900*t*t):s=48000:d=0.3"]


def audio_bytes(path):
    """The data of all audio packets: containers cut raw samples into packets of their own."""
    return run_ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "data", "-")


def add_audio(target, audio_from):
    """Write a clip of 0.4 s with the audio of a file."""
    write(target, pattern(10, 16, 16), range(10), Fraction(1, 25), 0, audio_from)


@pytest.mark.parametrize("name", CODECS)
def test_audio_of_any_codec_is_copied_or_refused_in_a_true_sentence(tmp_path, name):
    source, (options, suffixes) = tmp_path / name, CODECS[name]
    run_ffmpeg(*TONE, "-ac", 2, *options.split(), source)
    for suffix in TARGETS:
        target = tmp_path / f"out{suffix}"
        if suffix in suffixes:
            add_audio(target, source)
            assert audio_bytes(target) == audio_bytes(source)
            continue
        with pytest.raises(VqtokError, match=f"{source}: its .* audio cannot be copied") as caught:
            settings = {"height": 16, "width": 16, "fps": 25, "time_base": Fraction(1, 25)}
            VideoWriter(target, **settings, audio_from=source).__enter__()
        helps = ".mkv" in suffixes
        assert ("; write to .mkv, or convert it first: ffmpeg" in str(caught.value)) == helps
        assert "\n" not in str(caught.value) and not target.exists()


def lag(sound, other):
    """Return by how many seconds the second tone comes later, at 48000 samples per second."""
    length = 2 * max(len(sound), len(other))
    spectra = (np.fft.rfft(x, length) for x in (sound, other))
    correlation = np.fft.irfft(next(spectra).conj() * next(spectra), length)
    samples = int(correlation.argmax())
    return (samples if samples < length // 2 else samples - length) / 48000


def sound_of(path):
    """Return the samples of a file from the start of its video on."""
    start = ["-ac", 1, "-ar", 48000, "-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"]
    return np.frombuffer(run_ffmpeg("-i", path, "-map", "0:a", *start), np.float32)


@pytest.mark.parametrize(
    ("name", "options", "suffix"),
    [
        ("late start.ts", "-c:v mpeg2video -c:a mp2", ".webm"),
        ("a.mp4", "-c:v libx264 -c:a aac", ".webm"),
        ("a.nut", "-c:v mpeg4 -c:a adpcm_ms", ".mp4"),
        ("a.avi", "-c:v mpeg4 -c:a wmav2", ".mkv"),
    ],
)
def test_the_suggested_conversion_keeps_audio_in_sync(tmp_path, name, options, suffix):
    source, target = tmp_path / name, tmp_path / f"out{suffix}"
    video = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1"]
    tone = ["-f", "lavfi", "-i", "aevalsrc=sin(2000*t+900*t*t):s=48000:d=1"]
    run_ffmpeg(*video, *tone, "-pix_fmt", "yuv420p", *options.split(), source)
    with pytest.raises(VqtokError, match="convert it first: ffmpeg ") as caught:
        round_trip(source, target, audio_from=source)
    with chdir(tmp_path):
        run_ffmpeg(*shlex.split(str(caught.value).split("convert it first: ffmpeg ")[1]))
    round_trip(source, target, audio_from=tmp_path / "audio.mkv")
    assert abs(lag(sound_of(source), sound_of(target))) < 0.001


def test_audio_whose_clock_jumps_back_is_refused(tmp_path):
    one, two = tmp_path / "one.ts", tmp_path / "two.ts"
    run_ffmpeg(*TONE, "-c:a", "mp2", one)
    two.write_bytes(2 * one.read_bytes())
    with pytest.raises(VqtokError, match=rf"{two}: its audio .* timestamps jump back"):
        write(tmp_path / "out.mkv", pattern(100), range(100), Fraction(1, 25), 0, two)
    assert sorted(tmp_path.iterdir()) == [one, two]


def test_damaged_audio_is_copied_or_refused_in_one_sentence(tmp_path, folder):
    """Whatever PyAV raises, and no half-written file is left."""
    run_ffmpeg(*TONE, "-c:a", "libopus", tmp_path / "a.webm")
    data, path, target = (tmp_path / "a.webm").read_bytes(), tmp_path / "b.webm", tmp_path / "o.mkv"
    refused = 0
    for seed in range(150):
        rng, damaged = np.random.default_rng(seed), bytearray(data)
        for position in rng.integers(0, 600, 3):
            damaged[position] = rng.choice([0, 127, 128, 255, damaged[position] ^ 16])
        path.write_bytes(damaged)
        try:
            write(target, pattern(5, 16, 16), range(5), Fraction(1, 25), 0, path)
            target.unlink()
        except VqtokError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        assert not target.exists() and len(list(tmp_path.iterdir())) == 2
    assert refused


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm"])
def test_audio_at_times_that_ffmpeg_cannot_store_is_refused(tmp_path, suffix):
    run_ffmpeg(*TONE, "-c:a", "libopus", tmp_path / "a.webm")
    data = bytearray((tmp_path / "a.webm").read_bytes())
    scale = data.index(bytes.fromhex("2ad7b1")) + 4  # TimestampScale: ns per tick, 3 bytes
    data[scale : scale + 3] = (999938).to_bytes(3)  # needs more than 32 bits as a fraction
    (tmp_path / "b.webm").write_bytes(data)
    target = tmp_path / f"out{suffix}"
    with pytest.raises(VqtokError, match=r"b.webm: its audio is damaged"):
        write(target, pattern(5, 16, 16), range(5), Fraction(1, 25), 0, tmp_path / "b.webm")


def test_audio_that_ffmpeg_cannot_read_is_refused(tmp_path):
    run_ffmpeg(*TONE, "-c:a", "wmav2", tmp_path / "a.nut")  # NUT does not store what it needs
    with pytest.raises(VqtokError, match=r"a.nut has no audio that FFmpeg can read"):
        add_audio(tmp_path / "out.mkv", tmp_path / "a.nut")


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
    with pytest.raises(VqtokError, match="aac audio cannot be copied to webm"):
        write(tmp_path / "out.webm", pattern(6), range(6), tick, 0, talkie)
    with pytest.raises(VqtokError, match=r"silent.mp4 has no audio"):
        write(tmp_path / "out.mp4", pattern(6), range(6), tick, 0, talkie.parent / "silent.mp4")
    assert not list(tmp_path.iterdir())
