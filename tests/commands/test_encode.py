"""`vqtok encode`: options, pipes, interrupts, and input or output that fails."""

import os
import pty
import re
import resource
import signal
import subprocess
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import vqtok
from helpers.clips import clip_files
from helpers.command import fails, file_names, in_subprocess, start, works
from vqtok.commands.progress import ProgressTask
from vqtok.pipeline.clip import encode_clip
from vqtok.tokens import read_tokens
from vqtok.video import open_video

# Of the folder of bad clips, those without a frame that can be decoded.
UNREADABLE = {
    *("a_directory.mp4", "audio_only.mp4", "broken_streamio.mp4", "zero_duration.mp4"),
    *("init_segment_only.mp4", "random_noise.mp4", "text_renamed.mp4", "trunc_no_moov.mp4"),
    *("unknown_codec_tag.mp4", "zero_bytes.mp4"),
}


def test_options_select_and_scale_frames(clip, tmp_path, tiny):
    path = tmp_path / "t.safetensors"
    options = ("--size", 32, "--fps", 10, "--start", 0.1, "--duration", 0.3)
    works("encode", clip, "-o", path, *options, "--device", "cpu", "--dtype", "float32", *tiny)
    tokens = read_tokens(path)
    assert (tokens.frames, tokens.height, tokens.width, tokens.fps) == (3, 32, 48, 10)


def test_force_overwrites_a_file(clip, tmp_path, tiny):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    assert "exists" in fails(2, "--force overwrites it", "encode", clip, "-o", path, *tiny)
    assert path.read_bytes() == b"old"
    works("encode", clip, "-o", path, "--force", "--quiet", *tiny)
    assert read_tokens(path).frames == 14


def test_the_same_clip_gives_the_same_bytes(clip):
    assert works("encode", clip).stdout == works("encode", clip).stdout


def test_a_summary_is_printed_on_stderr(clip):
    result = works("encode", clip)
    assert b"14 frames of 64x96" in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert works("encode", clip, "--quiet").stderr == b""


def test_a_rate_decides_how_many_tokens_are_spent(make_clip, tmp_path, staged):
    clip, path = make_clip(frames=30), tmp_path / "t.safetensors"

    def tokens_per_position(*rate):
        stderr = works("encode", clip, "-o", path, "--force", *rate, *staged).stderr.decode()
        indices = read_tokens(path).indices
        assert indices.shape == (9, 8, 12, 2)
        spent = np.count_nonzero(indices) / (9 * 8 * 12)
        bits = spent * 9 * 8 * 12 * np.log2(64) / (30 * 64 * 96)
        size = f"9x8x12x2 indices of 64, {spent:.3f} tokens per position, {bits:.4f} bits"
        assert size in stderr
        return spent

    full = tokens_per_position()
    assert 1.5 < full <= 2
    assert tokens_per_position("--lambda", 0) == full
    assert tokens_per_position("--lambda", 2) < tokens_per_position("--lambda", 0.1) < full
    for target in (0.3, 0.6, 1.2):
        assert tokens_per_position("--tokens", target) == pytest.approx(target, rel=0.03)
    assert tokens_per_position("--psnr", 25) < tokens_per_position("--psnr", 29) < full


def test_one_rate_at_most_and_a_tokenizer_that_can_keep_it(clip, tmp_path, tiny, staged):
    path, both = tmp_path / "t.safetensors", ("--tokens", 1, "--psnr", 30)
    for rate, options, message in (
        (both, staged, "--lambda, --tokens and --psnr exclude each other"),
        (("--lambda", 1, "--tokens", 1), staged, "exclude each other"),
        (("--tokens", -1), staged, "tokens per position must be 0 to 1,000,000, not -1"),
        (("--lambda", "nan"), staged, "the price of a token must be 0 to 1,000,000, not nan"),
        (("--tokens", 0.6), tiny, "a rate needs one that was trained with quantizer.stages"),
        (("--psnr", 30), tiny, "a rate needs one that was trained with quantizer.stages"),
    ):
        for output in (path, tmp_path):  # one clip, and a batch
            stderr = fails(2, message, "encode", clip, "-o", output, *rate, *options)
            assert stderr.count("\n") == 1
    assert not path.exists()


def test_verbose_prints_the_device_and_timings(clip, tmp_path, tiny):
    path = tmp_path / "t.safetensors"
    options = "--verbose", "--device", "cpu", *tiny
    stderr = works("encode", clip, "-o", path, *options).stderr.decode()
    assert "fsq, weights" in stderr and "on cpu" in stderr
    assert "h264 decoded in software; reading" in stderr
    assert re.search(r"writing \d+%, model \d+% of \d+\.\d s", stderr)
    batch = works("encode", clip, "-o", tmp_path, *options).stderr.decode()
    assert f"{clip}: h264 decoded in software" in batch


@pytest.mark.parametrize("path", clip_files("bad"))
def test_bad_clips_are_refused_in_one_sentence_or_encoded(path, tmp_path, tiny):
    output = tmp_path / "t.safetensors"
    args = "encode", path, "-o", output, "--size", 32, *tiny
    if path.name in UNREADABLE:
        # A folder is a batch, and this one has no clips in it: wrong usage.
        stderr = fails(2 if path.is_dir() else 1, path.name, *args)
        assert stderr.count("\n") == 1
        assert file_names(tmp_path) == []
    else:
        works(*args)
        assert read_tokens(output).frames >= 1


def test_a_live_stream_is_encoded_while_it_is_written(stream, tiny):
    """The second half of the stream is written only after progress on the first."""
    reading, writing = os.pipe()
    progressed, progressed_early = threading.Event(), []

    def write():
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(stream[: len(stream) // 2])
            progressed_early.append(progressed.wait(60))
            pipe.write(stream[len(stream) // 2 :])

    threading.Thread(target=write, daemon=True).start()
    with os.fdopen(reading, "rb") as pipe, open_video(pipe) as video:
        tokens = encode_clip(video, vqtok.load(tiny[1]), lambda frames: progressed.set())
    assert progressed_early == [True]
    assert tokens.frames == 400


def test_ctrl_c_with_keep_partial_writes_the_tokens_so_far(make_clip, tmp_path, monkeypatch, tiny):
    clip, output, full = make_clip(frames=60), tmp_path / "t.safetensors", tmp_path / "full"
    works("encode", clip, "-o", full, *tiny)

    def interrupt(task, steps):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressTask, "advance", interrupt)
    args = "encode", clip, "-o", output, *tiny
    assert "frames" in fails(130, "interrupted", *args, "--keep-partial")
    tokens = read_tokens(output)
    assert 1 <= tokens.frames < 60 and len(tokens.timestamps) == tokens.frames
    expected = read_tokens(full).indices[: len(tokens.indices)]
    assert np.array_equal(tokens.indices, expected)
    output.unlink()
    fails(130, "interrupted", *args)
    assert not output.exists()


def test_ctrl_c_on_a_live_stream_keeps_what_was_received(stream, tmp_path, tiny):
    output, half = tmp_path / "t.safetensors", len(stream) // 2
    args = "encode", "-", "-o", output, "--keep-partial", "--verbose", *tiny
    process = start(*args, stdin=subprocess.PIPE, bufsize=0)
    process.stderr.readline()  # the tokenizer is loaded
    process.stdin.write(stream[:half])  # returns when almost all of it has been read
    process.send_signal(signal.SIGINT)
    written = half
    with suppress(BrokenPipeError):  # the process ends before the stream does
        while written < len(stream):
            written += process.stdin.write(stream[written : written + 4096])
    assert process.wait(60) == 130, process.stderr.read()
    assert written < len(stream)
    assert 1 <= read_tokens(output).frames < 400


def test_ctrl_c_exits_with_130_and_leaves_no_file(tmp_path, tiny):
    """The command waits for a pipe that stays silent."""
    args = "encode", "-", "-o", tmp_path / "t.safetensors", "--verbose", *tiny
    process = start(*args, stdin=subprocess.PIPE)
    assert b"fsq, weights" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert file_names(tmp_path) == []


def test_a_full_disk_is_reported(clip, tiny):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        options = {"stdout": full, "stderr": subprocess.PIPE, "capture_output": False}
        fails(1, "no space left", "encode", clip, *tiny, run=in_subprocess, **options)


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_failed_write_leaves_the_old_file(command, make_clip, tmp_path, tiny):
    """A limit on the size of files makes writing fail as a full disk does."""
    clip, tokens = make_clip("clip.mp4", frames=9, height=240, width=320), tmp_path / "t"
    works("encode", clip, "-o", tokens, *tiny)
    source, target = (clip, tokens) if command == "encode" else (tokens, clip)
    old, names = target.read_bytes(), file_names(tmp_path)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, 2000))
    args = command, source, "-o", target, "--force", *tiny
    fails(1, "too large", *args, run=in_subprocess, preexec_fn=limit)
    assert target.read_bytes() == old
    assert file_names(tmp_path) == names


def test_tokens_are_not_written_to_a_terminal(clip):
    master, terminal = pty.openpty()
    options = {"stdout": terminal, "stderr": subprocess.PIPE, "capture_output": False}
    fails(2, "binary data to the terminal", "encode", clip, run=in_subprocess, **options)
    os.close(terminal)
    os.close(master)
