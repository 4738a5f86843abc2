"""The commands as people run them: what comes out, what is said where, and how they fail."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

import vqtok
from helpers import DEMO
from helpers.clips import clip_files
from helpers.command import TINY, fails, inside, process, works
from vqtok.pipeline.clip import encode_clip
from vqtok.tokens import format as tokens
from vqtok.video import open_video

BROKEN = {
    *("a_directory.mp4", "audio_only.mp4", "broken_streamio.mp4", "zero_duration.mp4"),
    *("init_segment_only.mp4", "random_noise.mp4", "text_renamed.mp4", "trunc_no_moov.mp4"),
    *("unknown_codec_tag.mp4", "zero_bytes.mp4"),
}


def left(folder):
    """What is in a folder, hidden files too."""
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def clip(make_clip):
    return make_clip("clip.mp4", frames=14, height=64, width=96, fps=25)


def test_encode_and_decode_are_two_ends_of_a_pipe(clip, tmp_path):
    encoded = works("encode", clip, run=process)
    assert b"14 frames of 64x96" in encoded.stderr
    assert encoded.stderr.count(b"\n") == 1
    works("decode", "-", "-o", tmp_path / "back.mp4", run=process, stdin=encoded.stdout)
    with av.open(str(tmp_path / "back.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(f.height, f.width) for f in frames] == [(64, 96)] * 14
    assert [float(f.time) for f in frames] == pytest.approx([t / 25 for t in range(14)])
    piped = works("encode", "-", run=process, stdin=clip.read_bytes())
    assert piped.stdout == encoded.stdout
    matroska = works("decode", "-", "-o", "-", "--quiet", run=process, stdin=encoded.stdout)
    assert matroska.stdout[:4] == b"\x1aE\xdf\xa3"
    assert matroska.stderr == b""


def test_the_decoded_picture_is_the_clip(tmp_path):
    """Catches swapped channels, flipped pictures and flat colours, not fine quality."""
    encoded = works("encode", DEMO, "--size", 128, "--duration", 0.4).stdout
    works("decode", "-", "-o", tmp_path / "b.mkv", "--codec", "ffv1", stdin=encoded)
    with open_video(DEMO, size=128) as one, open_video(tmp_path / "b.mkv") as two:
        (before, _), (after, _) = (next(clip.chunks(12)) for clip in (one, two))
    assert before.shape == after.shape
    assert np.abs(before.astype(float) - after).mean() < 10
    assert np.abs(before.mean((0, 1, 2)) - after.mean((0, 1, 2))).max() < 4


def test_encode_options(clip, tmp_path):
    path = tmp_path / "t.safetensors"
    options = ("--size", 32, "--fps", 10, "--start", 0.1, "--duration", 0.3)
    works("encode", clip, "-o", path, *options, "--device", "cpu", "--dtype", "float32")
    content = tokens.read(path)
    assert (content.frames, content.height, content.width, content.fps) == (3, 32, 48, 10)
    assert "exists" in fails(2, "--force overwrites it", "encode", clip, "-o", path)
    works("encode", clip, "-o", path, "--force", "--quiet")
    assert tokens.read(path).frames == 14


def test_the_same_clip_gives_the_same_bytes(clip):
    assert works("encode", clip).stdout == works("encode", clip).stdout


def test_verbose_says_what_runs_where_and_what_takes_the_time(clip, tmp_path):
    path, back = tmp_path / "t.safetensors", tmp_path / "back.mkv"
    said = works("encode", clip, "-o", path, "--verbose", "--device", "cpu").stderr.decode()
    assert "ema, weights" in said and "on cpu" in said
    assert "h264 decoded in software; reading" in said and "the model" in said
    assert re.search(r"writing \d+%.* of \d+\.\d s", said)
    said = works("decode", path, "-o", back, "--verbose").stderr.decode()
    assert re.search(r"back.mkv: the model \d+%, writing \d+% of \d+\.\d s", said)
    several = works("encode", clip, "-o", tmp_path, "--verbose").stderr.decode()
    assert f"{clip}: h264 decoded in software" in several


def test_compile_without_a_compiler_is_told_in_a_sentence(clip, tmp_path):
    nothing = os.environ | {"CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    said = fails(
        2,
        "--compile failed: it needs a working C++ compiler",
        *("encode", clip, "-o", tmp_path / "t.safetensors", "--compile", "--device", "cpu"),
        run=process,
        env=nothing,
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "t.safetensors").exists()


def test_stats_say_the_same_to_people_and_machines(clip, tmp_path):
    path = tmp_path / "t.safetensors"
    works("encode", clip, "-o", path)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    numbers = json.loads(works("stats", path, copy, "--json").stdout)
    content = tokens.read(path)
    assert numbers["files"] == 2
    assert numbers["tokens"] == 2 * content.indices.size
    assert numbers["codebook_size"] == 64000
    assert numbers["used"] == len(np.unique(content.indices))
    shown = works("stats", path, copy).stdout.decode()
    assert f"{numbers['tokens']:,}" in shown
    assert f"{numbers['usage']:.2%}" in shown
    assert json.loads(works("stats", "-", "--json", stdin=path.read_bytes()).stdout)["files"] == 1


def test_train_then_use_what_was_trained(clip, tmp_path):
    run = tmp_path / "run"
    said = works("train", "--quantizer", "lfq", *TINY, "--out", run, "--steps", 10).stderr.decode()
    assert "no --data" in said
    assert "step 10: loss" in said
    assert left(run) == [
        *("config.json", "data.json", "metrics.jsonl", "resume.safetensors"),
        "tokenizer.safetensors",
    ]
    works("train", "--resume", run, "--steps", 20, "--quiet")
    model = run / "tokenizer.safetensors"
    encoded = works("encode", clip, "--tokenizer", model, "--quiet")
    back = tmp_path / "back.mkv"
    works("decode", "-", "-o", back, "--tokenizer", model, stdin=encoded.stdout)
    assert back.exists()
    said = fails(
        1, "another tokenizer", "decode", "-", "-o", tmp_path / "x.mp4", stdin=encoded.stdout
    )
    assert "--tokenizer" in said
    assert not (tmp_path / "x.mp4").exists()


def test_train_on_files_given_after_data(make_clip, tmp_path):
    clips = [make_clip(f"{i}.mp4", frames=8, height=40, width=48) for i in range(3)]
    works("train", "--data", *clips, *TINY, "--out", tmp_path / "run", "--steps", 2, "--quiet")
    assert len(json.loads((tmp_path / "run" / "data.json").read_text())["sources"]) == 3


@pytest.mark.parametrize(
    ("sentence", "args"),
    [
        ("unknown key train.stepz; the keys there are steps", ["train", "--set", "train.stepz=1"]),
        ("must be one of vq2, ema, gumbel, lfq, fsq", ["train", "--quantizer", "vqvae"]),
        ("no such config file", ["train", "--config", "none.toml"]),
        ("no such file or folder", ["train", "--data", "none"]),
        ("holds no run", ["train", "--resume", "."]),
        ("--fps fast: write a number", ["encode", "CLIP", "--fps", "fast"]),
        ("--fps 0: write a number", ["encode", "CLIP", "--fps", "0"]),
        ("--dtype float16: must be", ["encode", "CLIP", "--dtype", "float16"]),
        ("--device tpu: must be", ["encode", "CLIP", "--device", "tpu"]),
        ("--device cuda:99: there are", ["encode", "CLIP", "--device", "cuda:99"]),
        ("no such folder", ["encode", "CLIP", "-o", "none/t.safetensors"]),
        ("must end in one of .mp4", ["decode", "TOKENS", "-o", "clip.txt"]),
        ("no codec 'h266'", ["decode", "TOKENS", "-o", "clip.mp4", "--codec", "h266"]),
        ("--quiet and --verbose: give one", ["encode", "CLIP", "--quiet", "--verbose"]),
        (
            "--quiet and --verbose: give",
            ["decode", "TOKENS", "-o", "c.mp4", "--quiet", "--verbose"],
        ),
        ("--keep-partial is for one", ["encode", "CLIP", "-o", ".", "--keep-partial"]),
        ("No such option", ["encode", "CLIP", "--speed", "9"]),
        ("Missing argument", ["encode"]),
    ],
)
def test_wrong_usage_is_exit_2(sentence, args, clip, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    works("encode", clip, "-o", tmp_path / "t.safetensors")
    names = {"CLIP": clip, "TOKENS": tmp_path / "t.safetensors"}
    monkeypatch.chdir(work)
    fails(2, sentence, *(names.get(a, a) for a in args))
    assert left(work) == []


@pytest.mark.parametrize("path", clip_files("bad"))
def test_every_bad_clip_is_told_in_a_sentence_or_decoded(path, tmp_path):
    output = tmp_path / "t.safetensors"
    if path.name in BROKEN:
        wrong_use = path.is_dir()  # a folder is many clips, and there are none
        said = fails(1 + wrong_use, path.name, "encode", path, "-o", output, "--size", 32)
        assert said.count("\n") == 1
        assert left(tmp_path) == []
    else:
        works("encode", path, "-o", output, "--size", 32)
        assert tokens.read(output).frames >= 1


def test_ctrl_c_can_leave_a_shorter_token_file(make_clip, tmp_path, monkeypatch):
    @contextmanager
    def pressing(quiet, what, frames):
        yield lambda done: signal.raise_signal(signal.SIGINT)  # once the first frames are read

    clip, output, whole = make_clip(frames=60), tmp_path / "t.safetensors", tmp_path / "whole"
    works("encode", clip, "-o", whole)
    monkeypatch.setattr("vqtok.commands.encode.progress", pressing)
    said = fails(130, "interrupted", "encode", clip, "-o", output, "--keep-partial")
    assert "frames" in said
    kept = tokens.read(output)
    assert 1 <= kept.frames < 60 and len(kept.timestamps) == kept.frames
    assert np.array_equal(tokens.read(whole).indices[: len(kept.indices)], kept.indices)
    output.unlink()
    fails(130, "interrupted", "encode", clip, "-o", output)
    assert not output.exists()


def test_a_live_source_is_encoded_while_it_is_written(make_clip, tmp_path):
    """The rest of the stream is written only once there is progress on what came before."""
    data = make_clip("live.mkv", frames=400).read_bytes()
    reading, writing = os.pipe()
    moved, before_the_end = threading.Event(), []

    def camera():
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(data[: len(data) // 2])
            before_the_end.append(moved.wait(60))
            pipe.write(data[len(data) // 2 :])

    threading.Thread(target=camera, daemon=True).start()
    with os.fdopen(reading, "rb") as pipe, open_video(pipe) as video:
        live = encode_clip(video, vqtok.load(), lambda done: moved.set())
    assert before_the_end == [True]
    assert live.frames == 400


def test_ctrl_c_on_a_live_source_can_leave_what_has_come(make_clip, tmp_path):
    data, output = make_clip("live.mkv", frames=2000).read_bytes(), tmp_path / "t.safetensors"
    command = [sys.executable, "-m", "vqtok", "encode", "-", "-o", str(output)]
    options = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    running = subprocess.Popen([*command, "--keep-partial", "--verbose"], **options)
    running.stderr.readline()  # the model is there
    half, step = len(data) // 2, len(data) // 200
    running.stdin.write(data[:half])  # the pipe takes only what is read
    running.send_signal(signal.SIGINT)
    for i in range(half, len(data), step):
        if running.poll() is not None:
            break
        with suppress(BrokenPipeError):
            running.stdin.write(data[i : i + step])
        time.sleep(0.05)
    assert running.wait(60) == 130, running.stderr.read()
    assert i < len(data) - step  # it did not wait for the end
    assert 1 <= tokens.read(output).frames < 2000


@pytest.mark.parametrize("damage", ["cut", "edited", "other"])
def test_damaged_tokens_are_refused(damage, clip, tmp_path):
    whole = works("encode", clip).stdout
    data = {
        "cut": whole[:-10],
        "edited": whole.replace(b'"frames": "14"', b'"frames": "94"'),
        "other": b"x" * 200,
    }[damage]
    fails(1, "the video again", "decode", "-", "-o", tmp_path / "b.mp4", stdin=data)
    assert left(tmp_path) == ["clip.mp4"]


def test_a_full_disk_leaves_the_old_file(clip, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "vqtok", "encode", str(clip)]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert result.returncode == 1
    assert b"no space left" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_write_that_fails_leaves_the_old_file(command, make_clip, tmp_path):
    """A limit on the size of files fails like a full disk does."""
    clip = make_clip("clip.mp4", frames=30, height=240, width=320)
    works("encode", clip, "-o", tmp_path / "t.safetensors")
    source, target = {
        "encode": (clip, tmp_path / "t.safetensors"),
        "decode": (tmp_path / "t.safetensors", clip),
    }[command]
    before, files = target.read_bytes(), left(tmp_path)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, 2000))
    args = command, source, "-o", target, "--force"
    fails(1, "too large", *args, run=process, preexec_fn=limit)
    assert target.read_bytes() == before
    assert left(tmp_path) == files


def test_ctrl_c_is_exit_130_and_leaves_nothing(tmp_path):
    """A pipe that never ends is still being read when the signal comes."""
    command = [sys.executable, "-m", "vqtok", "encode", "-", "-o", str(tmp_path / "t.safetensors")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert left(tmp_path) == []


def test_ctrl_c_while_training_saves_first(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vqtok", "train", *TINY, "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert (run / "resume.safetensors").exists()
    assert (run / "tokenizer.safetensors").exists()


@pytest.mark.parametrize("command", ["", "encode", "decode", "train", "eval", "stats"])
def test_help_is_there(command):
    said = works(*command.split(), "--help", run=process).stdout.decode()
    assert "Usage" in said


def test_tokens_are_not_printed_on_a_terminal(clip):
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "vqtok", "encode", str(clip)]
    result = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, timeout=120)
    os.close(terminal)
    os.close(master)
    assert result.returncode == 2
    assert b"binary data to your terminal" in result.stderr


@pytest.mark.parametrize(
    "command, default", [("encode", "stdout"), ("train", "fsq"), ("decode", "bfloat16 where")]
)
def test_help_shows_what_happens_without_an_option(command, default):
    said = inside(command, "--help").stdout.decode()
    assert f"(default: {default}" in " ".join(said.replace("│", " ").split())
