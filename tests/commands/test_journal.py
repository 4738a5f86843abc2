"""The journal of a batch: resuming without opening files, and clips that kill the process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, in_process, works
from vqtok.commands.journal import MAX_KILLS, Journal
from vqtok.commands.progress import Cancelled
from vqtok.tokens import read_settings, read_tokens
from vqtok.video import open_video

# `vqtok`, except that reading a clip named so kills the process.
WITH_POISON = """
import os, signal, vqtok.__main__, vqtok.pipeline.source as source
open_video = source.open_video
def read(name, **options):
    if "poison" in str(name):
        os.kill(os.getpid(), signal.SIGKILL)
    return open_video(name, **options)
source.open_video = read
vqtok.__main__.main()
"""
READERS = {
    "encode": "vqtok.pipeline.source.open_video",
    "decode": "vqtok.corpus.sources.read_tokens",
}
ORIGINALS = {"encode": open_video, "decode": read_tokens}
GPU_FAILURE = RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def clips(tmp_path):
    """A folder of three clips."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "poison", "z"):
        write_clip(folder / f"{name}.mp4", pattern(5, 32, 48))
    return folder


def failures(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_clip_that_kills_the_process_is_given_up(clips, tmp_path, tiny):
    out = tmp_path / "out"
    args = ["encode", clips, "-o", out, "--jobs", 3, *tiny]
    run = [sys.executable, "-c", WITH_POISON, *map(str, args)]
    process = subprocess.run(run, capture_output=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    target = out / "poison.mp4.safetensors"
    for kills in range(1, MAX_KILLS):
        journal = Journal(out, "encoded", {})
        assert journal.kills(target) == kills
        journal.record(target).__enter__()  # as far as another run would come
        journal.close()
    assert in_process(*args).returncode == 1
    assert {"a.mp4.safetensors", "z.mp4.safetensors"} < set(file_names(out))
    (failure,) = failures(out / "failures.jsonl")
    reason = f"{clips}/poison.mp4: the process died 3 times while it worked on this file: delete "
    assert failure["source"] == f"{clips}/poison.mp4"
    assert failure["reason"] == f"{reason}{out}/.encoded.jsonl or use --force to try it again"
    fails(1, reason, *args)  # it could be read now, and is not
    works(*args, "--force")
    assert b"nothing to do" in works(*args).stderr


def fail_to_read(monkeypatch, error, only="", command="encode"):
    """Make reading files fail; return the list that the name of each file is added to."""
    names, original = [], ORIGINALS[command]

    def read(source, **options):
        names.append(Path(source).name.partition(".")[0])
        if only in names[-1]:
            raise error
        return original(source, **options)

    monkeypatch.setattr(READERS[command], read)
    return names


@pytest.mark.parametrize("command", READERS)
def test_suspects_run_last_and_innocent_ones_are_cleared(
    command, clips, tmp_path, tiny, monkeypatch
):
    """After a failure of the GPU, a process can do nothing more: it ends, as if it were killed."""
    out = tmp_path / command
    if command == "decode":
        works("encode", clips, "-o", tmp_path / "tokens", *tiny)
    args = command, clips if command == "encode" else tmp_path / "tokens", "-o", out, *tiny
    names = fail_to_read(monkeypatch, GPU_FAILURE, "a", command)
    message = "the GPU failed (CUDA error: an illegal memory access was encountered)"
    fails(1, message, *args)
    assert names == ["a"]
    names.clear()
    fails(1, message, *args)
    assert names == ["poison", "z", "a"]
    fails(1, message, *args)
    names.clear()
    fails(1, f"a.mp4{'' if command == 'encode' else '.safetensors'}: the process died 3", *args)
    assert names == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)])
def test_what_interrupts_a_batch_is_no_kill(error, clips, tmp_path, tiny, monkeypatch):
    args = "encode", clips, "-o", tmp_path / "out", *tiny
    with monkeypatch.context() as patch:
        fail_to_read(patch, error)
        for _ in range(MAX_KILLS):
            assert in_process(*args).returncode in (130, 143)
    names = fail_to_read(monkeypatch, None, only="none")
    works(*args)
    assert names == ["a", "poison", "z"]


def test_finished_files_are_not_opened_and_others_are(clips, tmp_path, tiny, monkeypatch):
    out, source = tmp_path / "out", tmp_path / "clips.jsonl"
    source.write_text("".join(json.dumps(str(path)) + "\n" for path in sorted(clips.iterdir())))
    args = "encode", f"@{source}", "-o", out, *tiny
    works(*args)
    opened, looked_at = [], []
    stat = os.stat

    def read(path):
        opened.append(path.name)
        return read_settings(path)

    def look(path, **options):
        looked_at.append(path)
        return stat(path, **options)

    monkeypatch.setattr("vqtok.commands.encode.read_settings", read)
    with monkeypatch.context() as patch:
        patch.setattr("os.stat", look)
        assert b"nothing to do" in works(*args).stderr
    assert opened == []
    for name in ("a", "poison", "z"):
        assert looked_at.count(out / f"{name}.mp4.safetensors") == 1
        assert looked_at.count(clips / f"{name}.mp4") == 0

    os.utime(out / "a.mp4.safetensors", (1, 1))  # as if another program had written it
    works(*args)
    assert opened == ["a.mp4.safetensors"]
    fails(2, "exists and was made with another", *args, "--size", 24)
    (out / "z.mp4.safetensors").unlink()
    assert b"1 file written" in works(*args).stderr
    for path in out.glob(".encoded*"):
        path.unlink()
    opened.clear()
    works(*args)
    assert len(opened) == 3


def test_a_journal_that_cannot_be_written_changes_nothing(clips, tmp_path, tiny):
    out = tmp_path / "out"
    (out / ".encoded.jsonl").mkdir(parents=True)
    for message in (b"3 files written", b"nothing to do"):
        assert message in works("encode", clips, "-o", out, *tiny).stderr


def test_shards_take_every_nth_clip_and_keep_their_own_lists(clips, tmp_path, tiny):
    out = tmp_path / "out"
    (clips / "b.mp4").write_text("broken")
    (clips / "c.mp4").write_text("broken")

    args = "encode", clips, "-o", out, *tiny, "--shard"
    for k, name, left in ((0, None, 2), (1, "b", 2), (2, "c", 1), (1, "b", 1)):
        if name is None:
            works(*args, f"{k}/3")
        else:
            fails(
                1, f"1 of {left} files failed, see {out}/failures-{k}-of-3.jsonl", *args, f"{k}/3"
            )
    assert file_names(out) == [
        *(".encoded-0-of-3.jsonl", ".encoded-1-of-3.jsonl", ".encoded-2-of-3.jsonl"),
        *("a.mp4.safetensors", "failures-1-of-3.jsonl", "failures-2-of-3.jsonl"),
        *("poison.mp4.safetensors", "z.mp4.safetensors"),
    ]
    for k, name in ((1, "b"), (2, "c")):
        (failure,) = failures(out / f"failures-{k}-of-3.jsonl")
        assert failure["source"] == f"{clips}/{name}.mp4"
    journal = Journal(out, "encoded", _settings(out / ".encoded-0-of-3.jsonl"))
    assert all(map(journal.is_finished, out.glob("*.safetensors")))


def _settings(path):
    return json.loads(path.read_text().split("\n")[1])["settings"]


def play(folder, events, settings=None, **options):
    """Write what a run does to targets: + begins one, = finishes it, - fails, ^ interrupts."""
    journal = Journal(folder, "encoded", settings or {}, **options)
    blocks = {}
    for action, name in (event for event in zip(events[::2], events[1::2], strict=True)):
        if action == "+":
            blocks[name] = journal.record(folder / name)
            blocks[name].__enter__()
        elif action == "=":
            (folder / name).write_text(name)
            blocks[name].__exit__(None, None, None)
        elif action == "-":
            error = RuntimeError()
            blocks[name].__exit__(RuntimeError, error, None)
        else:
            journal.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    return journal


@pytest.mark.parametrize(
    "runs, kills",
    [
        ([], 0),
        (["+a=a"], 0),
        (["+a"], 1),
        (["+a", "+a", "+a"], 3),
        (["+a", "+a-a"], 0),
        (["+a", "+a=a", "+a"], 1),
        (["+a^ ", "+a^ "], 0),
        (["+a", "+a^ "], 1),
        (["+b+a=b"], 1),
        (["+a+b^ ", "+b"], 0),
        (["+a", "+b^ "], 1),
    ],
)
def test_kills_are_counted(runs, kills, tmp_path):
    for events in runs:
        play(tmp_path, events)
    assert Journal(tmp_path, "encoded", {}).kills(tmp_path / "a") == kills
    assert Journal(tmp_path, "encoded", {}, force=True).kills(tmp_path / "a") == 0
    assert Journal(tmp_path, "decoded", {}).kills(tmp_path / "a") == 0


def test_a_process_that_is_at_work_was_not_killed(tmp_path):
    journals = [Journal(tmp_path, "encoded", {}) for _ in range(MAX_KILLS)]
    for journal in journals:
        journal.record(tmp_path / "a").__enter__()
    assert Journal(tmp_path, "encoded", {}).kills(tmp_path / "a") == 0
    for journal in journals:
        assert Journal(tmp_path, "encoded", {}).kills(tmp_path / "a") == 0
        journal.__exit__(None, None, None)
    assert Journal(tmp_path, "encoded", {}).kills(tmp_path / "a") == MAX_KILLS


def test_torn_and_foreign_lines_are_ignored(tmp_path):
    play(tmp_path, "+a=a")
    lines = b'null\n[]\n{"run": 7}\n{"run": "x", "begun": 7}\n\xff\n', b"[" * 10**6, b'{"run": "'
    with (tmp_path / ".encoded.jsonl").open("ab") as file:
        file.write(b"".join(lines))
    play(tmp_path, "+b=b+c")
    journal = Journal(tmp_path, "encoded", {})
    assert [journal.is_finished(tmp_path / name) for name in "abc"] == [True, True, False]
    assert [journal.kills(tmp_path / name) for name in "abc"] == [0, 0, 1]


def test_only_targets_of_the_same_settings_and_all_journals_are_finished(tmp_path):
    target = tmp_path / "a"
    play(tmp_path, "+a=a", {"size": 1})
    assert Journal(tmp_path, "encoded", {"size": 1}).is_finished(target)
    assert not Journal(tmp_path, "encoded", {"size": 2}).is_finished(target)
    assert not Journal(tmp_path, "encoded", {"size": 1}, force=True).is_finished(target)
    play(tmp_path, "+a=a", {"size": 2}, shard=(0, 2), force=True)
    for size in (1, 2):  # who wrote it last is unknown
        assert not Journal(tmp_path, "encoded", {"size": size}).is_finished(target)
    target.unlink()
    assert not Journal(tmp_path, "encoded", {"size": 1}).is_finished(target)


def test_a_job_that_was_cancelled_has_not_failed(tmp_path):
    journal = Journal(tmp_path, "encoded", {})
    with pytest.raises(Cancelled), journal, journal.record(tmp_path / "a"):
        raise Cancelled
    assert "failed" not in (tmp_path / ".encoded.jsonl").read_text()
