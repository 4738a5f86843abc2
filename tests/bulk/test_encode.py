"""`vqtok encode --pack`: every clip exactly once, whatever happens."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, works
from helpers.packed import members, shards, token_files
from vqtok.bulk import Encode, finish, plan
from vqtok.bulk.process import Setup, WorkerProcess
from vqtok.bulk.supervisor import MAX_ATTEMPTS
from vqtok.corpus.clips import read_clips
from vqtok.corpus.settings import open_corpus
from vqtok.errors import VqtokError

pytestmark = pytest.mark.slow


def failures(folder):
    """Return the lines of failures.jsonl by the names of the clips."""
    lines = (folder / "failures.jsonl").read_text().splitlines()
    return {os.path.basename(line["source"]): line for line in map(json.loads, lines)}  # noqa: PTH119


def test_a_corpus_has_the_token_files_of_a_folder(videos, corpus, tmp_path, tiny):
    works("encode", videos, "-o", tmp_path / "files", *tiny)
    works(*corpus.words(videos, "--jobs", 2))
    expected = token_files(tmp_path / "files")
    assert members(corpus.folder) == expected
    assert len(shards(corpus.folder)) > 1
    names = "clips.jsonl", "corpus.json", "index.safetensors", "parts", "shards"
    assert file_names(corpus.folder) == list(names)
    assert not list((corpus.folder / "parts").iterdir())
    # A plain loop over the rows of the plan gives the same bytes.
    other = tmp_path / "loop"
    rows = plan(videos, other, pack="4K", tokenizer=str(tiny[1]))
    encode = Encode(other)
    columns = [encode(row) for row in rows]
    again = encode(rows[0])  # finished: no rows, in columns of the same kinds
    assert [len(column) for column in again.values()] == [0] * 7
    assert [column.dtype.kind for column in again.values()] == list("iiiifUU")
    assert [column.dtype.kind for column in columns[0].values()] == list("iiiifUU")
    encode.close()
    finish(other)
    assert sum(int(column["frames"].sum()) for column in columns) == 9 + 13 + 17 + 21 + 25
    assert shards(other) == shards(corpus.folder)
    assert not plan([videos], other, pack="4K", tokenizer=str(tiny[1]))


def test_clips_fail_alone_and_are_tried_again(videos, corpus, obeys):
    for name in ("hang", "poison", "memory", "panic"):
        write_clip(videos / f"{name}.mp4", pattern(5, 32, 48))
    (videos / "nonsense.mp4").write_bytes(b"nonsense")
    limit = "--timeout", "2s"
    fails(1, "5 of 10 clips failed", *corpus.words(videos, "--jobs", 2, *limit))
    found = failures(corpus.folder)
    reasons = {name: (line["kind"], line["attempts"]) for name, line in found.items()}
    assert reasons.pop("hang.mp4")[0] == "TimeoutError"
    assert reasons == {
        "poison.mp4": ("Killed", 3),
        "memory.mp4": ("MemoryError", 1),
        "panic.mp4": ("BaseException", 1),
        "nonsense.mp4": ("VqtokError", 1),
    }
    assert "signal 9" in found["poison.mp4"]["reason"]
    assert len(members(corpus.folder)) == 5
    before = members(corpus.folder)
    # Nothing is tried again by itself.
    stamps = {path: path.stat().st_mtime_ns for path in (corpus.folder / "shards").iterdir()}
    fails(1, "5 of 10 clips failed", *corpus.words(videos, "--jobs", 2, *limit))
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    write_clip(videos / "nonsense.mp4", pattern(5, 32, 48))
    (videos / "poison.mp4").unlink()
    (videos / "hang.mp4").unlink()
    obeys.undo()
    fails(1, "2 of 10 clips failed", *corpus.words(videos, "--retry-failed"))
    after = members(corpus.folder)
    assert after.keys() - before.keys() == {"memory.mp4", "panic.mp4", "nonsense.mp4"}
    assert {name: after[name] for name in before} == before
    assert failures(corpus.folder).keys() == {"hang.mp4", "poison.mp4"}


def test_what_is_stopped_is_not_held_against_a_clip(videos, corpus, obeys, tiny):
    write_clip(videos / "hang.mp4", pattern(5, 32, 48))
    rows = plan(videos, corpus.folder, pack="4K", tokenizer=str(tiny[1]))
    clips = [clip for clip in read_clips(corpus.folder) if clip.name in ("a.mp4", "hang.mp4")]
    encode = Encode(corpus.folder, jobs=2)
    results = encode.run(clips)
    assert next(results).frames == 9
    assert len(list(corpus.folder.glob("parts/*/*.attempts"))) == 1
    results.close()
    assert not list(corpus.folder.glob("parts/*/*.attempts"))
    assert len(plan(videos, corpus.folder, pack="4K", tokenizer=str(tiny[1]))) == len(rows) - 1


def test_a_process_that_does_not_start_is_killed(videos, corpus, monkeypatch, tiny):
    command = sys.executable, "-c", "import time; time.sleep(3600)"
    monkeypatch.setattr("vqtok.bulk.process.COMMAND", command)
    monkeypatch.setattr("vqtok.bulk.supervisor.STARTING", 0.5)
    plan(videos, corpus.folder, pack="4K", tokenizer=str(tiny[1]))
    with pytest.raises(VqtokError, match=r"not ready within 0\.5 s"):
        list(Encode(corpus.folder).run(read_clips(corpus.folder)))
    assert not list(corpus.folder.glob("parts/*/*.attempts"))


def test_a_full_disk_ends_the_command_and_is_no_failure_of_a_clip(videos, corpus, obeys):
    write_clip(videos / "full.mp4", pattern(5, 32, 48))
    fails(1, "no space left on device", *corpus.words(videos))
    assert not list(corpus.folder.glob("parts/*/*.failed"))
    assert not list(corpus.folder.glob("parts/*/*.attempts"))
    obeys.undo()
    works(*corpus.words(videos))
    assert len(members(corpus.folder)) == 6


def test_clips_in_hand_when_another_takes_too_long_are_encoded(videos, corpus, obeys):
    for name in ("hang", "slow"):
        write_clip(videos / f"{name}.mp4", pattern(5, 32, 48))
    plan(videos, corpus.folder, pack="4K", tokenizer=str(corpus.tokenizer))
    clips = {Path(clip.name).stem: clip for clip in read_clips(corpus.folder)}
    encode = Encode(corpus.folder, jobs=2, timeout=2)
    # `slow` is begun when `z` has ended, and encoded at once when it is begun again.
    results = list(encode.run([clips["hang"], clips["z"], clips["slow"]]))
    encode.close()
    assert [(r.clip, bool(r.failure)) for r in results] == [
        (clips["z"].key, False),
        (clips["hang"].key, True),
        (clips["slow"].key, False),
    ]


def test_a_worker_ends_at_once_when_its_parent_is_gone(videos, corpus, obeys):
    write_clip(videos / "hang.mp4", pattern(5, 32, 48))
    plan(videos, corpus.folder, pack="4K", tokenizer=str(corpus.tokenizer))
    worker = WorkerProcess(Setup(str(corpus.folder), str(corpus.tokenizer), "cpu", 1))
    hang = next(clip for clip in read_clips(corpus.folder) if clip.name == "hang.mp4")
    assert "ready" in worker.receive(60)
    worker.send(hang._asdict())
    worker.close()
    assert worker.how_it_ended() == "exit code 0"  # not killed


def test_a_clip_that_live_processes_are_at_is_not_given_up(videos, corpus, tiny):
    plan(videos, corpus.folder, pack="4K", tokenizer=str(tiny[1]))
    a, z = (c for c in read_clips(corpus.folder) if c.name in ("a.mp4", "z.mp4"))
    opened = open_corpus(corpus.folder)
    for clip in (a, z):
        for _ in range(MAX_ATTEMPTS):  # other processes, of which one is alive
            opened.shard_of(clip.key).begin(clip.key)
    encode = Encode(corpus.folder)
    with opened.shard_of(z.key).hold(z.key):
        results = {result.clip: result for result in encode.run([a, z])}
    encode.close()
    assert f"was killed {MAX_ATTEMPTS} times" in results[a.key].failure
    assert results[z.key].frames == 25


def test_the_threads_of_a_corpus_are_those_it_was_begun_with(videos, corpus, tiny):
    for workers, later in ((1, 2), (2, 1), (1000, 1)):
        folder = corpus.folder.with_name(f"{workers} workers")
        how = {"pack": "4K", "tokenizer": str(tiny[1]), "device": "cpu"}
        plan(videos, folder, **how, workers=workers)
        rows = plan(videos, folder, **how, workers=later)
        threads = max(1, torch.get_num_threads() // workers)
        assert open_corpus(folder).settings.threads == threads
        encode, lines = Encode(folder), []
        encode.log = lines.append
        encode(rows[0])
        encode.close()
        assert lines[0].endswith(f"threads: {threads}")
