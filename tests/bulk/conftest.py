"""Clips for corpora, and commands on them."""

import sys
from types import SimpleNamespace

import pytest

from helpers import TESTS
from helpers.clips import pattern, write_clip
from helpers.command import in_process

NAMES = ("a.mp4", "b.x/a.mp4", "b.x/c d.mkv", "é/a.mp4", "z.mp4")
PACK = "4K"  # two shards or more


@pytest.fixture
def videos(tmp_path):
    """A folder of clips in folders, of one name among them."""
    for i, name in enumerate(NAMES):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, pattern(9 + 4 * i, 64, 96))
    return tmp_path / "videos"


@pytest.fixture
def obeys(monkeypatch):
    """Make workers do what the names of clips say; `obeys.undo()` ends it."""
    command = sys.executable, str(TESTS / "helpers" / "poisoned_worker.py")
    monkeypatch.setattr("vqtok.bulk.process.COMMAND", command)
    return monkeypatch


@pytest.fixture
def corpus(tmp_path, tiny):
    """A folder for a corpus, the command that encodes into it, and its tokenizer."""
    folder = tmp_path / "tokens"

    def words(source, *options):
        return "encode", source, "-o", folder, "--pack", PACK, *tiny, *options

    def encode(source, *options, run=in_process):
        return run(*words(source, *options))

    return SimpleNamespace(folder=folder, words=words, encode=encode, tokenizer=tiny[1])
