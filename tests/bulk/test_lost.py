"""Nothing is lost if workers or commands are killed or stopped, disks are full, or GPUs fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import TESTS
from helpers.clips import pattern, write_clip
from helpers.command import fails, file_names, works
from helpers.packed import members, shards
from helpers.tokenizers import save_tokenizer
from vqtok.bulk import plan
from vqtok.corpus.publish import read_failures
from vqtok.corpus.records import read_record
from vqtok.corpus.settings import open_corpus

pytestmark = pytest.mark.slow

PACK = "4K"
OBEYING = """
import sys
from vqtok.__main__ import main
from vqtok.bulk import process
process.COMMAND = sys.executable, {worker!r}
main()
"""


def start(words, obeying=True):
    """Start a command whose worker does what the names of clips say, in the background."""
    code = OBEYING.format(worker=str(TESTS / "helpers" / "poisoned_worker.py"))
    how = ["-c", code] if obeying else ["-m", "vqtok"]
    command = [sys.executable, *how, *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process):
    """Return the numbers of the processes that a process has started."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    parents = {int(stat.split()[0]): int(stat.rpartition(")")[2].split()[1]) for stat in stats}
    return [number for number, parent in parents.items() if parent == process.pid]


def lives(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def attempts(folder):
    """Return the sizes of the files that count attempts."""
    return [path.stat().st_size for path in (folder / "parts").rglob("*.attempts")]


def packed(folder):
    """Return what the records say of each clip, by its name."""
    records = [read_record(shard.record) for shard in open_corpus(folder).shards]
    return {clip.name: clip for record in records for clip in record.clips}


@pytest.fixture
def expected(videos, corpus, tmp_path):
    """The tars of a corpus of `videos` that nobody has disturbed."""

    def encode():
        folder = tmp_path / "expected"
        words = list(corpus.words(videos))
        words[words.index(corpus.folder)] = folder
        works(*words)
        return shards(folder)

    return encode


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_commands_and_workers_may_be_killed_and_stopped(videos, corpus, expected):
    """The worker always hangs in one clip; each time the command goes on where it was."""
    write_clip(videos / "slow.mp4", pattern(9, 32, 48))
    marker = videos / "slow.begun"
    words = corpus.words(videos, "--jobs", 2)

    def start_and_hang():
        marker.unlink(missing_ok=True)
        process = start(words)
        wait_for(lambda: marker.exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        (worker,) = children(process)
        return process, worker

    for number, message in ((signal.SIGINT, b"interrupted"), (signal.SIGTERM, b"by SIGTERM")):
        process, worker = start_and_hang()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert stderr.endswith(message + b"\n") and b"Traceback" not in stderr
        assert not lives(worker)
        assert attempts(corpus.folder) == []

    process, worker = start_and_hang()
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: not lives(worker), 10)
    before = attempts(corpus.folder)
    assert before and set(before) == {1}

    process, worker = start_and_hang()
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert file_names(corpus.folder / "parts") == []
    assert packed(corpus.folder)["slow.mp4"].attempts == 3
    assert shards(corpus.folder) == expected()


def test_a_clip_that_breaks_the_gpu_is_given_up(videos, corpus, obeys):
    write_clip(videos / "cuda.mp4", pattern(5, 32, 48))
    stderr = fails(1, "1 of 6 clips failed", *corpus.words(videos, "--jobs", 2))
    (failure,) = read_failures(open_corpus(corpus.folder))
    assert (failure.kind, failure.attempts) == ("Killed", 3)
    assert "killed 3 times (the GPU failed (CUDA error: an illegal memory" in failure.reason
    assert failure.reason in stderr and "advice" not in stderr
    assert len(members(corpus.folder)) == 5


def test_a_full_disk_stops_the_command_and_fails_no_clip(videos, corpus, obeys, expected):
    """Where temporary files are, and where the corpus is."""
    for name in ("full", "nospace"):
        write_clip(videos / f"{name}.mp4", pattern(5, 32, 48))
    messages = ""
    for _ in range(2):
        stderr = fails(1, "no space left on device", *corpus.words(videos))
        assert len(stderr.splitlines()) < 4
        assert not list(read_failures(open_corpus(corpus.folder)))
        assert attempts(corpus.folder) == []
        messages += stderr
    assert "/tmp/buffer" in messages and str(corpus.folder / "parts") in messages
    works(*corpus.words(videos))
    assert shards(corpus.folder) == expected()


def test_two_commands_may_make_one_corpus(videos, corpus, expected):
    """Both begin with an empty folder."""
    processes = [start(corpus.words(videos), obeying=False) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert shards(corpus.folder) == expected()
    assert len(packed(corpus.folder)) == 5 and file_names(corpus.folder / "parts") == []


def test_processes_share_the_shards(videos, corpus, expected):
    works(*corpus.words(videos, "--shard", "1/2"))
    published = [shard.is_published() for shard in open_corpus(corpus.folder).shards]
    assert published == [number % 2 == 1 for number in range(len(published))]
    assert any(published)
    assert not (corpus.folder / "index.safetensors").exists()
    result = works(*corpus.words(videos, "--shard", "0/2"))
    assert b"are left to encode (shard 0/2)" in result.stderr
    assert shards(corpus.folder) == expected()
    assert (corpus.folder / "index.safetensors").exists()


def test_a_worker_that_cannot_start_says_why(videos, corpus, tiny, tmp_path):
    tokenizer = tmp_path / "t.safetensors"
    tokenizer.write_bytes(tiny[1].read_bytes())
    words = [tokenizer if word == tiny[1] else word for word in corpus.words(videos)]
    plan(str(videos), corpus.folder, pack=PACK, tokenizer=str(tokenizer))
    tokenizer.unlink()
    fails(1, f"{tokenizer}: no such tokenizer", *words)
    save_tokenizer(tokenizer)
    fails(2, f"{corpus.folder} was begun with another tokenizer, weights ", *words)
    tokenizer.write_bytes(tiny[1].read_bytes())
    if not torch.cuda.is_available():
        fails(2, "device cuda: ", *words, "--device", "cuda")
    assert attempts(corpus.folder) == [] and not list(read_failures(open_corpus(corpus.folder)))
    works(*corpus.words(videos))
    assert len(packed(corpus.folder)) == 5
