"""Damaged files: every good frame is read, every lost one is counted, and --strict refuses."""

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.clips import clip_files, pattern, write_clip
from helpers.witness import read
from vqtok.cli import app
from vqtok.video.source import is_truncated

FRAMES = 12
FILES = {
    "h264.mp4": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "hevc.mkv": {"codec": "libx265"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp8.webm": {"codec": "libvpx"},
    "ffv1.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
}


def spoil(source, target, broken):
    """Copy a clip; packets of these numbers become noise."""
    rng = np.random.default_rng(0)
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        packets = [packet for packet in before.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            copy = packet
            if number % len(packets) in [n % len(packets) for n in broken]:
                copy = av.Packet(rng.bytes(packet.size))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe = packet.is_keyframe
            copy.stream = stream
            after.mux(copy)
    return target


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "whole.mp4", pattern(FRAMES))


@pytest.mark.parametrize("broken", [[6], [-2], [-1], [-3, -2, -1]], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_only_damaged_frames_are_lost_and_all_are_counted(tmp_path, name, broken):
    whole = write_clip(tmp_path / f"whole-{name}", pattern(FRAMES), **FILES[name])
    path = spoil(whole, tmp_path / name, broken)
    _, times, clip = read(path)
    lost = len(broken)
    assert len(times) == FRAMES - lost
    assert f"{lost} damaged frame{'s' * (lost > 1)} skipped" in clip.damage
    assert set(clip.damage) <= set(clip.notes)
    assert set(times) <= set(read(whole)[1])


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_has_no_damage(tmp_path, name):
    path = write_clip(tmp_path / name, pattern(FRAMES), **FILES[name])
    for options in ({}, {"start": 0.2}, {"duration": 0.3}):
        assert read(path, **options)[2].damage == []


def test_a_pipe_has_no_second_reading_and_loses_nothing_either(tmp_path, clip):
    path = spoil(clip, tmp_path / "broken.mkv", [-2])
    with path.open("rb") as file:
        _, times, piped = read(file)
    assert len(times) == FRAMES - 1
    assert piped.damage == ["1 damaged frame skipped"]


@pytest.mark.parametrize("name", ["ffv1.mkv", "vp8.webm", "moving.gif"])
def test_a_file_that_was_cut_short_breaks_off(tmp_path, name):
    options = FILES.get(name, {"codec": "gif", "pix_fmt": "rgb8"})
    whole = write_clip(tmp_path / f"whole-{name}", pattern(FRAMES), **options)
    assert read(whole)[2].damage == []
    cut = tmp_path / name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert "the file is truncated" in read(cut)[2].damage
    assert "the file is truncated" not in read(cut, duration=0.04)[2].damage
    result = encode(cut, "-o", tmp_path / "t.safetensors", "--strict")
    assert result.exit_code == 1 and "the file is truncated" in result.stderr


@pytest.mark.parametrize("path", clip_files("dev"))
def test_no_whole_clip_breaks_off(path):
    with av.open(str(path)) as container:
        assert not is_truncated(path, container.format.name)


def encode(*arguments):
    return CliRunner().invoke(app, ["encode", *map(str, arguments)])


def test_damage_is_told_and_strict_makes_it_an_error(tmp_path, clip):
    path, output = spoil(clip, tmp_path / "broken.mp4", [6]), tmp_path / "t.safetensors"
    result = encode(path, "-o", output, "--strict")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert "broken.mp4: 1 damaged frame skipped" in result.stderr
    assert not output.exists() and result.stdout == ""
    result = encode(path, "-o", output)
    assert result.exit_code == 0 and output.exists()
    assert "1 damaged frame skipped" in result.stderr


def test_strict_accepts_what_is_only_different(tmp_path):
    rgb = pattern(3)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 100)], -1)
    path = write_clip(tmp_path / "logo.mkv", rgba, codec="ffv1", pix_fmt="bgra")
    result = encode(path, "-o", tmp_path / "t.safetensors", "--strict")
    assert result.exit_code == 0 and "alpha channel dropped" in result.stderr
