"""Ctrl-C, SIGTERM and SIGHUP: exit codes, what is saved, and that nothing else is left."""

import os
import signal
import subprocess
import sys

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import TINY, file_names, start, wait_until
from vqtok.interrupt import defer_interrupt

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


def test_signals_that_come_again_do_not_cut_saving_short():
    """Schedulers signal every process, and launchers pass it on."""
    with defer_interrupt() as interrupted:
        assert interrupted() is None
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert interrupted() == signal.SIGTERM
    with defer_interrupt() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_a_pipe_that_has_gone_silent_does_not_keep_a_command_alive(stream, tmp_path, tiny, number):
    out = tmp_path / "out"
    out.mkdir()
    for options in ([], ["--keep-partial"]):
        args = "encode", "-", "-o", out / "t.safetensors", "--verbose", *tiny, *options
        process = start(*args, stdin=subprocess.PIPE, bufsize=0)
        process.stderr.readline()  # the tokenizer is loaded
        process.stdin.write(stream[: len(stream) // 2])  # returns once most of it has been read
        process.send_signal(number)
        assert process.wait(60) == 128 + number, process.stderr.read()
        assert file_names(out) == ["t.safetensors"] * len(options)


def test_a_job_that_is_blocked_does_not_keep_a_batch_alive(make_clip, tmp_path, tiny, monkeypatch):
    clip, out = make_clip(), tmp_path / "out"
    os.mkfifo(tmp_path / "silent")
    code = "import vqtok.commands.batch as b, vqtok.__main__ as m; b.GRACE = 0.5; m.main()"
    args = ["encode", clip, tmp_path / "silent", "-o", out, *tiny]
    command = [sys.executable, "-c", code, *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_until((out / "clip.mp4.safetensors").exists, process)
        stop(process, signal.SIGTERM)
    assert file_names(out) == [".encoded.jsonl", "clip.mp4.safetensors"]
