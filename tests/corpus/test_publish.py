"""Publishing shards: parts become a tar of equal bytes, and what is left over vanishes."""

import errno
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from helpers.command import file_names
from helpers.shards import NAMES, TOKENS, add, complete, encode, fail, members, new_corpus
from vqtok.corpus.publish import finish, publish, reopen
from vqtok.corpus.records import read_record
from vqtok.corpus.shards import ATTEMPTS, FAILED, PART
from vqtok.errors import UsageError, VqtokError


@pytest.fixture
def new(tmp_path):
    """Make a corpus with some clips encoded: new(*keys, failed=keys)."""
    return lambda *keys, failed=(): new_corpus(tmp_path, *keys, failed=failed)


def test_parts_become_a_tar_and_its_record(new):
    corpus = new(2, 0, failed=[1])
    shard = corpus.shards[0]
    assert publish(shard)
    record = read_record(shard.record)
    assert [(clip.key, clip.name) for clip in record.clips] == [(0, NAMES[0]), (2, NAMES[2])]
    assert [(failure.key, failure.source) for failure in record.failures] == [
        (1, "/clips/" + NAMES[1])
    ]
    assert file_names(corpus.folder / "shards") == ["00000.json", "00000.tar"]
    assert not shard.parts.exists()
    for clip in record.clips:
        indices = np.memmap(shard.tar, "<u1", "r", clip.indices, clip.shape)
        assert clip.dtype == "U8" and np.array_equal(indices, TOKENS[clip.key].indices % 256)
    complete(corpus)


def test_a_shard_with_clips_left_is_not_published(new):
    corpus = new(0, 1)
    corpus.shards[0].begin(2)
    finish(corpus)
    assert not publish(corpus.shards[0])
    assert not (corpus.folder / "shards").exists()
    assert sorted(path.suffix for path in corpus.shards[0].parts.iterdir()) == [
        ATTEMPTS,
        PART,
        PART,
    ]


def test_a_shard_of_failures_only_has_an_empty_tar(new):
    corpus = new(failed=[0, 1, 2, 3])
    complete(corpus)
    assert [members(shard.tar) for shard in corpus.shards] == [[], []]


def test_bytes_depend_on_tokens_alone(new):
    expected = new(0, 1, 2)
    publish(expected.shards[0])
    other = new(2)
    for key in (1, 0):
        other.shards[0].begin(key)
        encode(other, key, seconds=99.0, notes=["a note"])
    umask = os.umask(0o077)
    try:
        publish(other.shards[0])
    finally:
        os.umask(umask)
    assert other.shards[0].tar.read_bytes() == expected.shards[0].tar.read_bytes()
    found = read_record(other.shards[0].record)
    assert [clip.attempts for clip in found.clips] == [2, 2, 1]
    assert found.clips[0].seconds[:2] == (99.0, 198.0) and found.clips[0].notes == ["a note"]


def test_tars_are_read_by_other_programs(new, tmp_path):
    corpus = new(0, 1, 2)
    publish(corpus.shards[0])
    tar = corpus.shards[0].tar
    subprocess.run(["tar", "-xf", tar, "-C", tmp_path], check=True)
    with tarfile.open(tar) as file:
        for member in file:
            assert (tmp_path / member.name).read_bytes() == file.extractfile(member).read()
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)
    assert tar.stat().st_size % tarfile.BLOCKSIZE == 0


def test_what_comes_after_another_worker_has_published_is_left_over(new):
    corpus = new(0, 1)
    shard = corpus.shards[0]
    shard.begin(2)
    encode(corpus, 2)
    assert publish(shard)
    before = shard.tar.read_bytes(), shard.record.read_bytes()
    assert add(corpus, 2) is None  # of a worker that began it, too
    shard.begin(1)
    fail(corpus, 0)
    assert publish(shard) and shard.parts.exists()
    finish(corpus)
    assert not shard.parts.exists()
    assert (shard.tar.read_bytes(), shard.record.read_bytes()) == before


def test_the_first_part_of_a_clip_stays(new):
    corpus = new(0)
    path = corpus.shards[0].path(0, PART)
    before = path.read_bytes()
    encode(corpus, 0, seconds=5.0)
    assert path.read_bytes() == before


def test_a_clip_that_failed_and_was_encoded_is_encoded(new):
    corpus = new(0, 1, 2, 3, failed=[1])
    assert corpus.shards[0].finished() == ({0, 1, 2}, set())
    complete(corpus)
    assert not read_record(corpus.shards[0].record).failures


@pytest.mark.parametrize("deleted", ["tar", "record"])
def test_clips_of_a_shard_are_encoded_again_if_one_of_its_files_is_deleted(deleted, new):
    corpus = new(0, 2, 3, failed=[1])
    finish(corpus)
    getattr(corpus.shards[0], deleted).unlink()
    assert not corpus.shards[0].is_published()
    complete(corpus)
    assert not read_record(corpus.shards[0].record).failures


def test_a_tar_of_other_tokens_is_replaced(new):
    """Its record was deleted, and another machine has rounded otherwise."""
    corpus = new(0, 1, 2, 3)
    finish(corpus)
    shard = corpus.shards[0]
    shard.record.unlink()
    data = bytearray(shard.tar.read_bytes())
    data[read_record(corpus.shards[1].record).clips[0].indices] ^= 1
    for content in (bytes(data), b"", b"not a tar"):
        shard.tar.write_bytes(content)
        complete(corpus)
        shard.record.unlink()


def test_failures_are_made_undone(new):
    corpus = new(0, 2, 3, failed=[1])
    parts = corpus.shards[0].path(0, PART).read_bytes()
    finish(corpus)
    tar = corpus.shards[0].tar.read_bytes()
    for shard in corpus.shards:
        reopen(corpus, shard)
    assert [shard.is_published() for shard in corpus.shards] == [False, True]
    assert corpus.shards[0].path(0, PART).read_bytes() == parts
    assert not (corpus.folder / "index.safetensors").exists()
    fail(corpus, 1)
    complete(corpus)
    assert corpus.shards[0].tar.read_bytes() == tar
    reopen(corpus, corpus.shards[0])
    complete(corpus)
    assert not read_record(corpus.shards[0].record).failures


def test_a_shard_is_published_without_hard_links(new, monkeypatch):
    expected = new(0, 1, 2, 3)
    finish(expected)

    def refuse(*args, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    corpus = new(0, 1, 2, 3)
    complete(corpus)
    for shard, other in zip(corpus.shards, expected.shards, strict=True):
        assert shard.tar.read_bytes() == other.tar.read_bytes()


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-9],
    "without a beginning": lambda data: data[len(data) // 2 :],
    "zeros": lambda data: bytes(len(data)),
    "a length that is too large": lambda data: data[:-8] + b"\xff" * 8,
    "no JSON": lambda data: data.replace(b"{", b"["),
    "another key": lambda data: data.replace(b'"key": 1', b'"key": "x"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [PART, FAILED])
def test_a_damaged_file_is_named_and_can_be_deleted(damage, suffix, new):
    corpus = new(0, 2, 3, failed=[1]) if suffix == FAILED else new(0, 1, 2, 3)
    path = corpus.shards[0].path(1, suffix)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(VqtokError) as error:
        finish(corpus)
    message = str(error.value)
    assert message.startswith(f"{path} is ") and message.endswith("delete it")
    assert "\n" not in message and "Errno" not in message and len(message) < len(str(path)) + 200
    assert not corpus.shards[0].is_published()
    path.unlink()
    complete(corpus)


def test_attempts_are_counted_until_a_clip_ends(new):
    corpus = new()
    shard = corpus.shards[0]
    assert [shard.begin(1) for _ in range(3)] == [1, 2, 3]
    shard.withdraw(1)
    assert shard.attempts(1) == 2
    shard.withdraw(1)
    assert shard.attempts(1) == 1
    add(corpus, 1)
    assert shard.attempts(1) == 0
    shard.begin(2)
    shard.withdraw(2)
    shard.withdraw(2)
    assert file_names(shard.parts) == ["000000001.part"]
    shutil.rmtree(shard.parts)
    shard.withdraw(2)


def test_foreign_files_among_the_parts_are_passed_over(new):
    corpus = new(0, 1, 2, 3)
    for name in ("notes.txt", "000000007.part", "x.failed", ".nfs0000"):
        Path(corpus.shards[0].parts / name).touch()
    complete(corpus)


def test_a_part_that_cannot_be_written_is_an_error_as_long_as_the_shard_is_open(new):
    corpus = new(0, 2)
    shutil.rmtree(corpus.shards[0].parts)
    with pytest.raises(UsageError, match="no such folder"):
        add(corpus, 1)
