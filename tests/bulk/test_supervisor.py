"""`Encode` with workers that die, hang or say half a word; none of them needs PyTorch."""

import os
import sys
from threading import Thread

import pytest

from helpers import TESTS
from helpers.shards import check_complete, complete, encode, new_corpus
from vqtok.bulk import Encode, supervisor
from vqtok.corpus.clips import Clip
from vqtok.corpus.publish import finish, read_failures
from vqtok.corpus.records import read_record
from vqtok.corpus.shards import ATTEMPTS
from vqtok.errors import VqtokError


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus of three clips and one, and workers that do what the paths of clips say."""
    command = sys.executable, str(TESTS / "helpers" / "fake_worker.py")
    monkeypatch.setattr("vqtok.bulk.process.COMMAND", command)
    return new_corpus(tmp_path)


def clips(*what):
    """Return clips that do something each."""
    return [Clip(key, word, f"{key}.mp4", 1000) for key, word in enumerate(what)]


def attempts(corpus):
    return {key: corpus.shard_of(key).attempts(key) for key in range(len(corpus))}


def run(corpus, *what, **options):
    """Encode clips; return what the results say, by key."""
    worker = Encode(corpus.folder, **options)
    try:
        return {result.clip: result.failure or result.frames for result in worker.run(clips(*what))}
    finally:
        worker.close()


@pytest.mark.parametrize("last", ["last words", "half a reply"])
@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_a_clip_is_finished_though_its_worker_dies_before_it_says_so(last, jobs, corpus):
    results = run(corpus, "", last, "", last, jobs=jobs)
    assert set(results.values()) <= {9} and not {1, 3} & set(results)
    finish(corpus)
    check_complete(corpus)
    records = [read_record(shard.record) for shard in corpus.shards]
    assert not any(record.failures for record in records)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_worker_that_dies_takes_no_other_clip_with_it(jobs, corpus):
    results = run(corpus, "", "die", "", "", jobs=jobs)
    reason = results.pop(1)
    assert set(results.values()) == {9}  # what was said before the worker died
    assert reason.startswith("die: the process that encodes it was killed 3 times (exit code 7): ")
    (failure,) = read_failures(corpus)
    assert (failure.key, failure.kind, failure.attempts) == (1, "Killed", 3)
    finish(corpus)
    check_complete(corpus)


def test_clips_that_hang_fail_and_others_begin_again(corpus):
    """The last one has just begun when the worker is killed."""
    results = run(corpus, "hang", *["sleep 1.1"] * 3, jobs=2, timeout=3)
    assert results.pop(0) == "hang: not encoded within 3 s (--timeout)"
    assert results == {1: 9, 2: 9, 3: 9}
    (failure,) = read_failures(corpus)
    assert (failure.kind, failure.attempts) == ("TimeoutError", 1)
    finish(corpus)
    check_complete(corpus)
    assert read_record(corpus.shards[1].record).attempts == 1


def test_what_a_worker_cannot_do_for_any_clip_stops_all(corpus):
    with pytest.raises(VqtokError, match="there is no space"):
        run(corpus, "", "stop", "", "", jobs=2)
    assert set(attempts(corpus).values()) == {0}
    assert not list(read_failures(corpus))
    complete(corpus)


def test_a_worker_that_dies_at_its_start_stops_all(corpus):
    with pytest.raises(VqtokError, match=r"ended before it was ready \(exit code 5\)"):
        run(corpus, "", "", "", "", tokenizer="none")
    assert set(attempts(corpus).values()) == {0}


def test_who_stops_listening_leaves_no_attempt(corpus):
    worker = Encode(corpus.folder, jobs=2)
    results = worker.run(clips("", "hang", "hang", ""))
    assert next(results).clip == 0
    results.close()
    assert set(attempts(corpus).values()) == {0}
    worker.close()
    complete(corpus)


def test_an_interrupt_while_a_worker_is_started_leaves_no_attempt(corpus, monkeypatch):
    def interrupt(setup, threads):
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "WorkerProcess", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, "", "", "", "")
    assert set(attempts(corpus).values()) == {0}


def test_clips_that_others_have_begun_come_last(corpus):
    for key in (0, 2):
        corpus.shards[0].begin(key)
    worker = Encode(corpus.folder, jobs=2)
    order = [result.clip for result in worker.run(clips("", "", "", ""))]
    worker.close()
    assert order == [1, 3, 0, 2]
    records = [read_record(shard.record) for shard in corpus.shards]
    assert [clip.attempts for record in records for clip in record.clips] == [2, 1, 2, 1]


def test_many_commands_may_encode_the_last_clips_at_once(corpus):
    """None takes what the others have begun for a sign of death."""
    found = []
    what = ["sleep 0.5"] * 4
    threads = [Thread(target=lambda: found.append(run(corpus, *what))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and set().union(*(each.values() for each in found)) == {9}
    finish(corpus)
    check_complete(corpus)
    assert not list(read_failures(corpus))


def test_a_clip_that_killed_many_commands_is_given_up(corpus):
    for _ in range(supervisor.MAX_ATTEMPTS):
        corpus.shards[0].begin(1)
    results = run(corpus, "", "", "", "")
    assert "it was killed 10 times: --retry-failed tries it again" in results.pop(1)
    assert results == {0: 9, 2: 9, 3: 9}


def test_finished_clips_are_passed_over(corpus):
    for key in (0, 1, 2):
        encode(corpus, key)
    assert run(corpus, "die", "die", "die", "") == {3: 9}
    finish(corpus)
    assert run(corpus, *["die"] * 4) == {}
    check_complete(corpus)


def test_the_worker_ends_with_its_parent(corpus):
    """Its stdin ends, whoever closes it."""
    worker = Encode(corpus.folder)
    list(worker.run(clips("")))
    number = worker._worker._process.pid
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    assert not list(corpus.folder.rglob(f"*{ATTEMPTS}"))
