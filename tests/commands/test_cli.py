"""The command line as a whole: help, version, completion, and wrong usage."""

import os
import subprocess
import sys

import pytest
from typer.main import get_command

import vqtok
from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, in_process, in_subprocess, works
from vqtok.cli import app

COMMANDS = ["encode", "decode", "train", "eval", "stats", "export", "push"]


def test_the_command_prints_help():
    result = works("--help", run=in_subprocess)
    assert all(f" {command} " in result.stdout.decode() for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_the_command_and_each_option(command):
    click_command = get_command(app).commands[command]
    text = " ".join(works(command, "--help").stdout.decode().split())
    assert click_command.help and click_command.help in text
    assert click_command.epilog in text
    options = [p for p in click_command.params if p.param_type_name == "option"]
    assert options
    for option in options:
        assert {*option.opts, *option.secondary_opts} <= set(text.replace(",", "").split())
        assert option.help and option.help in text


@pytest.mark.parametrize(
    "command, default", [("encode", "stdout"), ("train", "ema"), ("decode", "bfloat16 where")]
)
def test_help_shows_the_default_of_an_option(command, default):
    text = in_process(command, "--help").stdout.decode()
    assert f"(default: {default}" in " ".join(text.split())


def test_without_arguments_there_is_the_help():
    result = in_subprocess()
    assert (result.returncode, result.stdout) == (2, b"")
    assert "\nCommands:\n  encode  Encode videos to tokens.\n" in result.stderr.decode()


def test_help_does_not_import_rich():
    code = "import sys; from vqtok.cli import app; app(['--help'], standalone_mode=False); "
    result = subprocess.run(
        [sys.executable, "-c", code + "sys.exit('rich' in sys.modules)"], capture_output=True
    )
    assert result.returncode == 0
    assert b"Commands:" in result.stdout


def test_version_is_printed_on_stdout():
    result = works("--version")
    assert result.stdout.decode() == f"vqtok {vqtok.__version__}\n"
    assert result.stderr == b""


def test_shell_completion_is_available():
    script = works("--show-completion", "bash", run=in_subprocess).stdout.decode()
    assert "_VQTOK_COMPLETE=complete_bash" in script
    request = {"_VQTOK_COMPLETE": "complete_bash", "COMP_WORDS": "vqtok en", "COMP_CWORD": "1"}
    assert works(run=in_subprocess, env=os.environ | request).stdout == b"encode\n"


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("unknown key train.stepz; the keys there are steps", ["train", "--set", "train.stepz=1"]),
        ("must be one of vq2, ema, gumbel, lfq, fsq", ["train", "--quantizer", "vqvae"]),
        ("none.toml: no such file", ["train", "--config", "none.toml"]),
        ("no such file or folder", ["train", "--data", "none"]),
        ("holds no training run", ["train", "--resume", "."]),
        ("--resume uses the run's own settings", ["train", "--resume", ".", "--out", "run"]),
        ("fps fast: must be a number", ["encode", "CLIP", "--fps", "fast"]),
        ("fps 0: must be a number", ["encode", "CLIP", "--fps", "0"]),
        ("dtype float16: must be float32 or", ["encode", "CLIP", "--dtype", "float16"]),
        ("device tpu: must be", ["encode", "CLIP", "--device", "tpu"]),
        ("device cuda:99: this machine has", ["encode", "CLIP", "--device", "cuda:99"]),
        ("frames of 30000x45000 are too large", ["encode", "CLIP", "--size", "30000"]),
        ("are too large: choose", ["encode", "CLIP", "--size", "2000000000"]),
        ("no such folder", ["encode", "CLIP", "-o", "none/t.safetensors"]),
        ("must end in one of .mp4", ["decode", "TOKENS", "-o", "clip.txt"]),
        ("no codec 'h266'", ["decode", "TOKENS", "-o", "clip.mp4", "--codec", "h266"]),
        ("--quiet and --verbose exclude", ["encode", "CLIP", "--quiet", "--verbose"]),
        (
            "--quiet and --verbose exclude",
            ["decode", "TOKENS", "-o", "c.mp4", "--quiet", "--verbose"],
        ),
        ("--keep-partial is for a single", ["encode", "CLIP", "-o", ".", "--keep-partial"]),
        ("--audio-from is for a single", ["decode", "TOKENS", "-o", ".", "--audio-from", "CLIP"]),
        ("No such option", ["encode", "CLIP", "--speed", "9"]),
        ("No such option", ["encode", "CLIP", "--compile"]),
        ("nothing to encode", ["encode"]),
    ],
)
def test_wrong_usage_exits_with_2(message, args, clip, token_file, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names = {"CLIP": clip, "TOKENS": token_file}
    fails(2, message, *(names.get(a, a) for a in args))
    assert file_names(folder) == []


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    """Tokens of a small clip by the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("tokens")
    clip = write_clip(folder / "clip.mp4", pattern(5, 16, 24))
    works("encode", clip, "-o", folder / "tokens.safetensors")
    return folder / "tokens.safetensors"


def test_messages_do_not_go_to_stdout_if_stderr_is_closed(clip, tiny):
    args = "encode", clip, *tiny
    expected = works(*args, run=in_subprocess).stdout
    assert works(*args, run=in_subprocess, preexec_fn=lambda: os.close(2)).stdout == expected


@pytest.mark.parametrize(
    ("message", "args", "descriptor"),
    [
        ("stdin is closed", ["encode", "-"], 0),
        ("stdin is closed", ["decode", "-", "-o", "clip.mkv"], 0),
        ("stdin is closed", ["stats", "-"], 0),
        ("stdin is closed", ["export", "-", "--to", "1x", "-o", "out"], 0),
        ("stdout is closed", ["encode", "CLIP"], 1),
        ("stdout is closed", ["decode", "TOKENS", "-o", "-"], 1),
        ("stdout is closed", ["stats", "TOKENS", "--json"], 1),
        ("stdout is closed", ["eval", "CLIP"], 1),
    ],
)
def test_closed_stdin_and_stdout_are_wrong_usage(message, args, descriptor, clip, token_file):
    names = {"CLIP": clip, "TOKENS": token_file}
    command = [names.get(a, a) for a in args]
    fails(2, message, *command, run=in_subprocess, preexec_fn=lambda: os.close(descriptor))


def test_stdin_and_stdout_may_be_closed_if_they_are_not_needed(clip, tiny, tmp_path):
    target = tmp_path / "tokens.safetensors"
    for descriptor in (0, 1):
        options = {"run": in_subprocess, "preexec_fn": lambda d=descriptor: os.close(d)}
        works("encode", clip, "-o", target, "--force", *tiny, **options)


@pytest.mark.parametrize(
    "reason", ["DefaultCPUAllocator: can't allocate memory", "could not create a primitive"]
)
def test_out_of_memory_is_reported_in_one_sentence(clip, monkeypatch, reason):
    def allocate(*args, **kwargs):
        raise RuntimeError(reason)

    monkeypatch.setattr("vqtok.pipeline.source.encode_clip", allocate)
    fails(1, "out of memory: try a smaller --size", "encode", clip)


def test_a_failed_gpu_is_reported_in_one_sentence(clip, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging")

    monkeypatch.setattr("vqtok.pipeline.source.encode_clip", fail)
    fails(1, "the GPU failed (CUDA error: an illegal memory access", "encode", clip)
