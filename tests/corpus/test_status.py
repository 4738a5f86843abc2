"""`vqtok encode --status`: what is done of a corpus, and how fast, while others write it."""

import os
import shutil
import time
from pathlib import Path

import pytest

from helpers.command import fails, works
from helpers.tokens import SAMPLE
from vqtok.corpus import status
from vqtok.corpus.publish import publish
from vqtok.corpus.records import Failure, Seconds
from vqtok.corpus.settings import CorpusSettings, create_corpus, open_corpus
from vqtok.corpus.shards import PART
from vqtok.corpus.status import Status, describe_status, read_status
from vqtok.errors import VqtokError

NOW = 1_800_000_000
FRAMES, TOKENS = SAMPLE.frames, SAMPLE.indices.size
SETTINGS = CorpusSettings(
    *("tiny", "0" * 64, "fsq", (4, 8, 8), 64, 1, 1, "float32", None, None, 0.0, None, False, {}),
    *(("/clips",), 1000),
)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus of two shards of three clips, of which none is done."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    create_corpus(tmp_path, SETTINGS, [0, 3, 6])
    return open_corpus(tmp_path)


def finish(corpus, key, ago=0.0, seconds=(1.0, 2.0, 0.0), attempts=1):
    """Finish a clip, so many seconds ago."""
    shard = corpus.shard_of(key)
    for _ in range(attempts):
        shard.begin(key)
    shard.add(key, f"{key}.mp4", SAMPLE, Seconds(*seconds), [])
    os.utime(shard.path(key, PART), (NOW - ago, NOW - ago))


def fail(corpus, key, attempts=1):
    shard = corpus.shard_of(key)
    shard.fail(Failure(key, f"/clips/{key}.mp4", "VqtokError", "why", attempts))


def counts(found):
    return found.done, found.failed, found.left, found.published, found.frames, found.attempts


def test_a_corpus_that_is_new_has_nothing_done(corpus):
    found = read_status(corpus.folder)
    assert found == Status(6, 0, 0, 2, 0, 0, 0, Seconds(0, 0, 0), 0, None)
    assert found.left == 6 and found.worker_rate is None and found.seconds_left is None
    assert list(describe_status(found)) == [
        *("0 of 6 clips done, 6 left", "0 of 2 shards published", "0 frames, 0 tokens")
    ]


def test_open_and_published_shards_are_counted(corpus):
    finish(corpus, 0)
    fail(corpus, 1, attempts=3)
    assert counts(read_status(corpus.folder)) == (1, 1, 4, 0, FRAMES, 4)
    finish(corpus, 2, attempts=2)
    finish(corpus, 4)
    before = read_status(corpus.folder)
    assert counts(before) == (3, 1, 2, 0, 3 * FRAMES, 7)
    assert publish(corpus.shards[0])
    after = read_status(corpus.folder)
    assert counts(after) == (3, 1, 2, 1, 3 * FRAMES, 7)
    assert after.tokens == before.tokens == 3 * TOKENS
    assert after.seconds == before.seconds
    assert after.seconds[:2] == (3.0, 6.0)


def test_clips_in_hand_are_left(corpus):
    corpus.shards[0].begin(0)
    (corpus.shards[0].parts / ".vqtok-1234-5678.part").touch()
    (corpus.shards[0].parts / "notes.txt").touch()
    assert counts(read_status(corpus.folder)) == (0, 0, 6, 0, 0, 0)


@pytest.mark.parametrize(
    "clips, rate",
    [
        ([(0, 100)], FRAMES / 100),  # since it was begun
        ([(0, 100), (100, 100)], 2 * FRAMES / 200),  # one after the other
        ([(0, 100), (0, 100)], 2 * FRAMES / 100),  # by two workers at once
        ([(0, 100), (700, 100)], FRAMES / 100),
        ([(300, 100)], FRAMES / 400),  # nothing since then
        ([(0, 1200)], FRAMES / 1200),  # half of it in the last ten minutes
        ([(700, 1)], None),
        ([(0, 0)], FRAMES),
        ([(-50, 100)], FRAMES / 100),  # the clock of the storage is ahead
    ],
)
def test_the_rate_is_of_the_last_ten_minutes(clips, rate, corpus, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)  # writing takes no time
    for key, (ago, seconds) in enumerate(clips):
        finish(corpus, key, ago, (0.0, seconds, 0.0))
    found = read_status(corpus.folder).recent_rate
    assert found == (rate if rate is None else pytest.approx(rate))


def test_the_frames_of_a_published_shard_are_spread_over_its_work(corpus):
    for key in range(3):
        finish(corpus, key, 0, (0.0, 1000.0, 0.0))
    publish(corpus.shards[0])
    os.utime(corpus.shards[0].record, (NOW, NOW))
    rate = read_status(corpus.folder).recent_rate
    assert rate == pytest.approx(3 * FRAMES / 3000, rel=1e-3)


@pytest.mark.parametrize("vanishing", ["a part", "all parts", "the record"])
def test_files_may_vanish_while_they_are_read(vanishing, corpus, monkeypatch):
    """A shard is published meanwhile, or opened again."""
    for key in (0, 1, 2, 3):
        finish(corpus, key)
    shard = corpus.shards[0]
    if vanishing == "the record":
        publish(shard)
    vanished = []
    name = {"a part": "read_details", "all parts": "_read_open", "the record": "read_record"}
    original = getattr(status, name[vanishing])

    def read(*args):
        if not vanished:
            vanished.append(True)
            if vanishing == "a part":
                shard.path(1, PART).unlink()
            elif vanishing == "all parts":
                publish(shard)
            else:
                shard.record.unlink()
                finish(corpus, 0)
        return original(*args)

    monkeypatch.setattr(status, name[vanishing], read)
    expected = {"a part": (3, 0), "all parts": (4, 1), "the record": (2, 0)}
    found = read_status(corpus.folder)
    assert (found.done, found.published) == expected[vanishing]


def test_a_damaged_part_or_record_is_named(corpus):
    for key in range(4):
        finish(corpus, key)
    publish(corpus.shards[0])
    for path in (corpus.shards[1].path(3, PART), corpus.shards[0].record):
        data = path.read_bytes()
        path.write_bytes(data[:-9])
        with pytest.raises(VqtokError, match=f"{path} is damaged"):
            read_status(corpus.folder)
        path.write_bytes(data)
    assert read_status(corpus.folder).done == 4


def test_the_text_says_what_users_ask():
    found = Status(
        10_000, 7_100, 12, 7, 3, 2_130_000, 9_000_000, Seconds(2100, 7700, 200), 7125, 50
    )
    assert list(describe_status(found)) == [
        "7,100 of 10,000 clips done, 12 failed, 2,888 left",
        "3 of 7 shards published",
        "2,130,000 frames, 9,000,000 tokens",
        "213.0 frames/s of a worker while it works",
        "a worker's time: 21% reading, 77% model, 2% writing",
        "50.0 frames/s of all workers in the last 10 minutes, about 4.8 h left",
        "13 attempts were repeated: 0.2% of all",
    ]


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (7200, "2.0 h"), (10**6, "11.6 days")],
)
def test_durations_are_short(seconds, text):
    left = Status(2, 1, 0, 1, 0, seconds, 0, Seconds(0, 0, 0), 1, 1.0)
    assert any(line.endswith(f"about {text} left") for line in describe_status(left))


def test_the_command_prints_it(corpus, tmp_path):
    finish(corpus, 0)
    result = works("encode", "-o", tmp_path, "--status")
    assert result.stdout.decode().startswith("1 of 6 clips done, 5 left\n")
    shutil.rmtree(corpus.folder / "parts")
    (tmp_path / "corpus.json").unlink()
    fails(2, f"{tmp_path} is not a corpus", "encode", "-o", Path(tmp_path), "--status")
