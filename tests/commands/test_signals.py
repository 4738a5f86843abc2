"""Ctrl-C, SIGTERM and SIGHUP: exit codes, what is saved, and that nothing else is left."""

import signal
import subprocess

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import TINY, file_names, start, wait_until

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
MESSAGES = {
    signal.SIGINT: "vqtok: interrupted\n",
    signal.SIGTERM: "vqtok: stopped by SIGTERM\n",
    signal.SIGHUP: "vqtok: stopped by SIGHUP\n",
}


def stop(process, number):
    """Send a signal, wait for the end, and check the exit code and the message."""
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert stderr.decode().endswith(MESSAGES[number])
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_a_stopped_command_leaves_no_file(tmp_path, tiny, number):
    """The command waits for a pipe that stays silent."""
    args = "encode", "-", "-o", tmp_path / "t.safetensors", "--verbose", *tiny
    process = start(*args, stdin=subprocess.PIPE)
    assert b"fsq, weights" in process.stderr.readline()
    stop(process, number)
    assert file_names(tmp_path) == []


def test_sigterm_while_files_are_written_leaves_complete_files_only(make_clip, tmp_path, tiny):
    folder, out = tmp_path / "tokens", tmp_path / "out"
    clip = write_clip(tmp_path / "clip.mp4", pattern(300, 96, 96))
    folder.mkdir()
    for name in "ab":
        subprocess.run(["ln", "-s", str(clip), str(folder / f"{name}.mp4")], check=True)
    process = start("eval", folder, "--save", out, "--frames", "300", *tiny)
    wait_until(lambda: list(out.glob(".vqtok-*")), process)
    stop(process, signal.SIGTERM)
    assert not [name for name in file_names(out) if name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_training_is_saved(tmp_path, number):
    run = tmp_path / "run"
    process = start("train", *TINY, "--out", run)
    wait_until(lambda: (run / "metrics.jsonl").exists(), process)
    stop(process, number)
    assert {"resume.safetensors", "tokenizer.safetensors"} <= set(file_names(run))


def test_signals_that_are_ignored_stay_so(tmp_path, tiny):
    """As under nohup."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    args = "encode", "-", "-o", tmp_path / "t.safetensors", "--verbose", *tiny
    process = start(*args, stdin=subprocess.PIPE, preexec_fn=ignore)
    process.stderr.readline()
    process.send_signal(signal.SIGHUP)
    stop(process, signal.SIGTERM)
