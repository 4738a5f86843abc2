"""In damaged files every good frame is read, every lost one counted, and --strict refuses."""

from contextlib import suppress

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.clips import clip_files, pattern, read_clip, write_clip
from helpers.ffmpeg import run_ffmpeg
from vqtok.cli import app
from vqtok.video.container import is_truncated

FRAMES = 12
FILES = {
    "h264.mp4": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "hevc.mkv": {"codec": "libx265"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp8.webm": {"codec": "libvpx"},
    "ffv1.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Return a function that gives the path of an intact clip: intact(name) of FILES."""
    folder = tmp_path_factory.mktemp("intact")

    def path(name):
        file = folder / name
        return file if file.exists() else write_clip(file, pattern(FRAMES), **FILES[name])

    return path


def corrupt(source, target, numbers):
    """Copy a clip and replace the packets with these numbers by noise."""
    rng = np.random.default_rng(0)
    with av.open(str(source)) as intact, av.open(str(target), "w") as damaged:
        stream = damaged.add_stream_from_template(intact.streams.video[0])
        packets = [packet for packet in intact.demux(video=0) if packet.size]
        numbers = [number % len(packets) for number in numbers]
        for number, packet in enumerate(packets):
            copy = packet
            if number in numbers:
                copy = av.Packet(rng.bytes(packet.size))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe = packet.is_keyframe
            copy.stream = stream
            damaged.mux(copy)
    return target


@pytest.mark.parametrize("numbers", [[6], [-2], [-1], [-3, -2, -1]], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_only_damaged_frames_are_lost_and_all_are_counted(tmp_path, intact, name, numbers):
    path = corrupt(intact(name), tmp_path / name, numbers)
    _, timestamps, clip = read_clip(path)
    lost = len(numbers)
    assert len(timestamps) == FRAMES - lost
    assert f"{lost} damaged frame{'s' * (lost > 1)} skipped" in clip.damage
    assert set(clip.damage) <= set(clip.notes)
    assert set(timestamps) <= set(read_clip(intact(name))[1])


@pytest.mark.parametrize("name", FILES)
def test_an_intact_file_has_no_damage(intact, name):
    for options in ({}, {"start": 0.2}, {"duration": 0.3}):
        assert read_clip(intact(name), **options)[2].damage == []


@pytest.mark.parametrize("seed", range(4))
def test_damaged_av1_has_the_frames_that_one_thread_decodes(tmp_path, seed):
    path = tmp_path / "clip.mkv"
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:duration=1.2"]
    run_ffmpeg(*source, "-c:v", "libaom-av1", "-cpu-used", "8", "-g", "10", path)
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for position in rng.integers(len(data) // 2, len(data) - 400, 3):
        data[position] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    decoded = 0
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            with suppress(av.FFmpegError):
                decoded += len(packet.decode())
    assert 0 < len(read_clip(path)[0]) == decoded < 30


def test_a_pipe_cannot_be_read_twice_and_loses_nothing_either(tmp_path, intact):
    path = corrupt(intact("h264.mp4"), tmp_path / "damaged.mkv", [-2])
    with path.open("rb") as file:
        _, timestamps, clip = read_clip(file)
    assert len(timestamps) == FRAMES - 1
    assert clip.damage == ["1 damaged frame skipped"]


@pytest.mark.parametrize("name", ["ffv1.mkv", "vp8.webm", "moving.gif"])
def test_truncated_files_are_recognized(tmp_path, name):
    options = FILES.get(name, {"codec": "gif", "pix_fmt": "rgb8"})
    whole = write_clip(tmp_path / f"whole-{name}", pattern(FRAMES), **options)
    assert read_clip(whole)[2].damage == []
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert "the file is truncated" in read_clip(path)[2].damage
    assert "the file is truncated" not in read_clip(path, duration=0.04)[2].damage
    result = encode(path, "-o", tmp_path / "t.safetensors", "--strict")
    assert result.exit_code == 1 and "the file is truncated" in result.stderr


@pytest.mark.parametrize("path", clip_files("dev"))
def test_no_whole_clip_is_called_truncated(path):
    with av.open(str(path)) as container:
        assert not is_truncated(path, container.format.name)


def encode(*arguments):
    return CliRunner().invoke(app, ["encode", *map(str, arguments)])


def test_damage_is_reported_and_strict_makes_it_an_error(tmp_path, intact):
    path = corrupt(intact("h264.mp4"), tmp_path / "damaged.mp4", [6])
    output = tmp_path / "t.safetensors"
    result = encode(path, "-o", output, "--strict")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert "damaged.mp4: 1 damaged frame skipped" in result.stderr
    assert not output.exists() and result.stdout == ""
    result = encode(path, "-o", output)
    assert result.exit_code == 0 and output.exists()
    assert "1 damaged frame skipped" in result.stderr


def test_strict_accepts_notes_that_are_not_damage(tmp_path):
    rgb = pattern(3)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 100)], -1)
    path = write_clip(tmp_path / "logo.mkv", rgba, codec="ffv1", pix_fmt="bgra")
    result = encode(path, "-o", tmp_path / "t.safetensors", "--strict")
    assert result.exit_code == 0 and "alpha channel dropped" in result.stderr


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "libx264"), ("a.mpg", "mpeg2video")])
def test_frames_before_the_first_keyframe_are_counted(tmp_path, name, codec):
    whole, path = tmp_path / f"whole.{name}", tmp_path / name
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:duration=3"]
    run_ffmpeg(*source, "-c:v", codec, "-g", "20", "-bf", "2", whole)
    data = whole.read_bytes()
    packet = 188 if name.endswith("ts") else 2048
    path.write_bytes(data[len(data) // 4 // packet * packet :])
    with av.open(str(path)) as container:
        sent = sum(packet.size > 0 for packet in container.demux(video=0))
    frames, timestamps, clip = read_clip(path)
    np.testing.assert_array_equal(frames, read_clip(whole)[0][-len(frames) :])
    lost = sent - len(frames)
    assert lost > 0 and clip.damage == [f"{lost} frames before the first keyframe skipped"]
    assert clip.origin == timestamps[0]
    result = encode(path, "-o", tmp_path / "t.safetensors", "--strict")
    assert result.exit_code == 1 and "before the first keyframe skipped" in result.stderr
