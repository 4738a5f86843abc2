"""Standard streams that are closed, full, or left by their reader; what is printed is clean."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import in_process, in_subprocess, works
from helpers.tokens import SAMPLE
from vqtok.files import printable
from vqtok.tokens import write_tokens

HOSTILE = "a\x1b[31m\x1b]0;title\x07\r\nvqtok: forged\x9b1m\u202e.mp4"
CLEAN = r"a\x1b[31m\x1b]0;title\x07\r\nvqtok: forged\x9b1m\u202e.mp4"
PRINTED = [["--help"], ["--version"], ["stats", "TOKENS"], ["stats", "TOKENS", "--json"]]
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tokens(path, SAMPLE)
    return path


def replaced(args, token_file):
    return [token_file if arg == "TOKENS" else arg for arg in args]


@full
@pytest.mark.parametrize("args", PRINTED, ids=" ".join)
def test_a_full_stdout_is_one_sentence(args, token_file):
    with Path("/dev/full").open("wb") as device:
        options = {"stdout": device, "stderr": subprocess.PIPE, "capture_output": False}
        result = in_subprocess(*replaced(args, token_file), **options)
    assert result.returncode == 1
    assert result.stderr == b"vqtok: no space left on device\n"


@pytest.mark.parametrize("args", PRINTED, ids=" ".join)
def test_a_reader_that_leaves_is_no_reason_to_complain(args, token_file):
    reading, writing = os.pipe()
    os.close(reading)
    options = {"stdout": writing, "stderr": subprocess.PIPE, "capture_output": False}
    result = in_subprocess(*replaced(args, token_file), **options)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


@full
@pytest.mark.parametrize("closed", [False, True])
def test_messages_that_cannot_be_written_are_lost(token_file, closed):
    """The command does its work, and says so by its exit code."""
    expected = in_subprocess("stats", token_file, "--json").stdout
    with Path("/dev/full").open("wb") as device:
        options = {"stdout": subprocess.PIPE, "capture_output": False}
        options |= {"preexec_fn": lambda: os.close(2)} if closed else {"stderr": device}
        result = works("stats", token_file, "--json", run=in_subprocess, **options)
    assert result.stdout == expected


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_file_never_takes_the_place_of_a_closed_stream(descriptor, tmp_path):
    code = (
        "import os, sys; from vqtok.streams import prepare_streams; prepare_streams();"
        f"sys.exit(os.readlink('/proc/self/fd/{descriptor}') != os.devnull)"
    )
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    command = [sys.executable, "-c", code]
    assert not subprocess.run(command, preexec_fn=lambda: os.close(descriptor)).returncode


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "", "9" * 9, "9" * 9000])
def test_a_terminal_width_that_makes_no_sense_is_ignored(columns):
    def help_text(environment):
        return works("encode", "--help", run=in_subprocess, env=environment).stdout

    unset = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    assert help_text(unset | {"COLUMNS": columns}) == help_text(unset)


def test_control_characters_are_escaped():
    assert printable(HOSTILE) == CLEAN == printable(CLEAN)
    assert printable("naïve 日本 👩‍👩‍👧 a b") == "naïve 日本 👩‍👩‍👧 a b"


@pytest.fixture
def hostile_clip(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(tmp_path / "clip.mp4", pattern(3, 16, 24)).rename(folder / HOSTILE)
    (folder / f"bad{HOSTILE}").write_bytes(b"no video")
    return folder / HOSTILE


def test_names_with_control_characters_are_printed_escaped(hostile_clip, tmp_path, tiny):
    folder, out = hostile_clip.parent, tmp_path / "out"
    for args in (
        ["encode", hostile_clip, "-o", tmp_path / "t", *tiny],
        ["encode", folder, "-o", out, "--verbose", *tiny],
        ["stats", out / f"{HOSTILE}.safetensors"],
        ["stats", hostile_clip, *tiny, "--csv"],
        ["eval", folder, *tiny],
        ["export", out, "--to", "1x", "-o", tmp_path / HOSTILE],
        ["encode", f"none{HOSTILE}"],
        ["encode", hostile_clip, "--size", HOSTILE],
        ["encode", hostile_clip, f"--{HOSTILE}"],
        ["encode", hostile_clip, "--fps", HOSTILE],
        ["encode", hostile_clip, "--tokenizer", HOSTILE],
        ["train", "--set", HOSTILE],
        ["train", "--config", HOSTILE],
        [HOSTILE],
    ):
        result = in_process(*args)
        text = (result.stdout if "encode" not in args else b"").decode() + result.stderr.decode()
        assert text and all(c.isprintable() for c in text.replace("\n", "")), args
        assert "\nvqtok: forged" not in text


def test_names_that_the_terminal_cannot_encode_are_escaped(tmp_path, tiny):
    clip = write_clip(tmp_path / "clip.mp4", pattern(3, 16, 24))
    clip = clip.rename(tmp_path / "日本.mp4")
    for args in (["encode", clip, "-o", tmp_path / "t"], ["eval", clip]):
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        result = works(*args, *tiny, run=in_subprocess, env=environment)
        assert rb"\u65e5\u672c.mp4" in result.stdout + result.stderr
