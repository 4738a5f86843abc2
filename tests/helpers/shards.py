"""Small corpora whose clips are encoded without a tokenizer, and what must hold at their end."""

import hashlib
import tarfile
from dataclasses import replace
from itertools import count

import numpy as np

from helpers.tokens import SAMPLE, VARYING
from vqtok.bulk.planning import clips_left
from vqtok.corpus.clips import CLIPS, Clip, clip_lines
from vqtok.corpus.publish import finish, read_failures
from vqtok.corpus.records import Failure, Seconds, read_record
from vqtok.corpus.settings import CorpusSettings, create_corpus, open_corpus
from vqtok.tokens import tokens_to_bytes

SETTINGS = CorpusSettings(
    *("tiny", "0" * 64, "fsq", (4, 8, 8), 80, 1, 1, "float32", None, None, 0.0, None, False, {}),
    *(("/clips",), 1000),
)
NAMES = ("a.b.mp4", "day 1/clip.mp4", "day 1/clip.webm", "día/ñandú 雪.mov")
TOKENS = [
    replace(SAMPLE, indices=SAMPLE.indices + key, codebook_size=80, origin=40, timestamps=times)
    for key, times in enumerate([SAMPLE.timestamps, VARYING] * 2)
]

_numbers = count()


def new_corpus(parent, *encoded, failed=()):
    """Make a corpus of a shard of three clips and one of one; some are encoded, some failed."""
    folder = parent / f"corpus{next(_numbers)}"
    folder.mkdir()
    clips = [Clip(key, f"/clips/{name}", name, 1000 + key) for key, name in enumerate(NAMES)]
    (folder / CLIPS).write_bytes(b"".join(clip_lines(clips)))
    create_corpus(folder, SETTINGS, [0, 3, 4])
    corpus = open_corpus(folder)
    for key in encoded:
        encode(corpus, key)
    for key in failed:
        fail(corpus, key)
    return corpus


def encode(corpus, key, seconds=1.0, notes=()):
    """Begin a clip, and encode it."""
    corpus.shard_of(key).begin(key)
    add(corpus, key, seconds, notes)


def add(corpus, key, seconds=1.0, notes=()):
    """Encode a clip that was begun."""
    times = Seconds(seconds, 2 * seconds, 0.0)
    return corpus.shard_of(key).add(key, NAMES[key], TOKENS[key], times, list(notes))


def fail(corpus, key):
    """Let a clip fail."""
    failure = Failure(key, f"/clips/{NAMES[key]}", "VqtokError", "it is damaged", 1)
    corpus.shard_of(key).fail(failure)


def complete(corpus):
    """Go on with a corpus as the next run does, and check that nothing was lost."""
    for clip in clips_left(corpus, corpus.shards):
        encode(corpus, clip.key)
    finish(corpus)
    check_complete(corpus)


def check_complete(corpus):
    """Check that a corpus has every clip exactly once, and nothing else."""
    assert not any((corpus.folder / "parts").glob("*"))
    assert (corpus.folder / "index.safetensors").exists()
    keys = [failure.key for failure in read_failures(corpus)]
    assert (corpus.folder / "failures.jsonl").exists() == bool(keys)
    for shard in corpus.shards:
        record, data = read_record(shard.record), shard.tar.read_bytes()
        assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        packed = [clip.key for clip in record.clips]
        suffixes = ".safetensors", ".json"
        assert members(shard.tar) == [f"{key:09}{suffix}" for key in packed for suffix in suffixes]
        for clip in record.clips:
            end = clip.offset + clip.bytes
            assert data[clip.offset : end] == tokens_to_bytes(TOKENS[clip.key])
            assert timestamps(clip, data) == TOKENS[clip.key].timestamps
        keys += packed
    assert sorted(keys) == list(range(len(corpus)))


def timestamps(clip, data):
    """Return the timestamps of a clip of a record, given the bytes of its tar."""
    timing = clip.timing
    if timing.timestamps:
        return np.frombuffer(data, "<i8", clip.frames, timing.timestamps).tolist()
    return [timing.start + i * timing.step for i in range(clip.frames)]


def members(tar):
    """Return the names in a tar."""
    with tarfile.open(tar) as file:
        return file.getnames()
