"""Shards whose workers are killed at any step, disturb each other, or have no space left."""

import errno
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.faults import full_disk, killed_before, with_another
from helpers.shards import check_complete, complete, encode, fail, new_corpus
from vqtok.atomic import TEMPORARY
from vqtok.corpus.publish import finish, publish, read_failures, reopen
from vqtok.corpus.records import read_record

LAST = 10**6


@pytest.fixture
def new(tmp_path):
    """Make a corpus with some clips encoded: new(*keys, failed=keys)."""
    return lambda *keys, failed=(): new_corpus(tmp_path, *keys, failed=failed)


def tars(corpus):
    return [shard.tar.read_bytes() for shard in corpus.shards]


def half(corpus):
    """Encode the last clip of the first shard, and publish it."""
    encode(corpus, 2)
    publish(corpus.shards[0])


def fail_last(corpus):
    fail(corpus, 2)
    publish(corpus.shards[0])


def retry(corpus):
    for shard in corpus.shards:
        reopen(corpus, shard)


# What a process does, after what, and before which of its steps it may be killed.
WORK = {
    "encode": ((0, 1, 3), (), half),
    "fail": ((0, 1, 3), (), fail_last),
    "finish": ((0, 1, 2, 3), (), finish),
    "finish with failures": ((0, 2), (1, 3), finish),
}


@pytest.mark.parametrize("name", WORK)
def test_a_process_may_be_killed_at_any_step(name, new):
    done, failed, work = WORK[name]
    whole = new(*done, failed=failed)
    work(whole)
    complete(whole)
    expected = tars(whole)
    for step in range(LAST):
        corpus = new(*done, failed=failed)
        is_killed = killed_before(step, lambda c=corpus: work(c))
        complete(corpus)
        if name != "fail":  # else the clip may be encoded after all
            assert tars(corpus) == expected
        if not is_killed:
            break
    assert step > 10


@pytest.mark.parametrize("again", [encode, fail])
def test_trying_failures_again_may_be_killed_at_any_step(again, new):
    for step in range(LAST):
        corpus = new(0, 2, failed=[1, 3])
        finish(corpus)
        is_killed = killed_before(step, lambda c=corpus: retry(c))
        retry(corpus)
        again(corpus, 1)
        killed_before(step, lambda c=corpus: finish(c))
        complete(corpus)
        failures = [failure.key for failure in read_record(corpus.shards[0].record).failures]
        assert failures == ([1] if again is fail else [])
        if not is_killed:
            break
    assert step > 20


def test_two_processes_may_publish_at_once(new):
    """All that one does happens between any two steps of the other."""
    whole = new(0, 1, 2, 3)
    finish(whole)
    for first in (half, finish):
        for step in range(LAST):
            corpus = new(0, 1, 2, 3)
            ran = with_another(step, lambda c=corpus: first(c), lambda c=corpus: finish(c))  # noqa: B023
            finish(corpus)
            check_complete(corpus)
            assert tars(corpus) == tars(whole)
            if not ran:
                break
        assert step > 20


@pytest.mark.parametrize("first, second", [(half, fail_last), (fail_last, half)])
def test_a_clip_may_fail_for_one_process_and_not_for_another(first, second, new):
    for step in range(LAST):
        corpus = new(0, 1, 3)
        ran = with_another(step, lambda c=corpus: first(c), lambda c=corpus: second(c))
        finish(corpus)
        check_complete(corpus)
        if not ran:
            break
    assert step > 10


OPERATIONS = {
    "encode": encode,
    "fail": fail,
    "publish": lambda corpus, key: publish(corpus.shard_of(key)),
    "finish": lambda corpus, key: finish(corpus),
    "retry": lambda corpus, key: reopen(corpus, corpus.shard_of(key)),
}
OPERATION = st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 3))
MISHAP = st.one_of(st.none(), st.just("killed"), OPERATION)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(OPERATION, MISHAP, st.integers(0, 30)), max_size=12))
def test_whatever_workers_do_every_clip_is_there_once(tmp_path_factory, history):
    """Operations of any workers; before a step of one, it is killed, or another does its own."""
    corpus = new_corpus(tmp_path_factory.mktemp("walk"))

    def run(operation):
        name, key = operation
        OPERATIONS[name](corpus, key)

    for operation, mishap, step in history:
        work = partial(run, operation)
        if mishap == "killed":
            killed_before(step, work)
        elif mishap:
            with_another(step, work, partial(run, mishap))
        else:
            work()
    complete(corpus)


def test_failures_are_listed_while_another_process_publishes(new):
    for step in range(LAST):
        corpus = new(0, 2, failed=[1])
        found = []
        ran = with_another(
            step,
            lambda c=corpus, f=found: f.extend(read_failures(c)),
            lambda c=corpus: publish(c.shards[0]),
        )
        assert [failure.key for failure in found] == [1]
        if not ran:
            break
    assert step > 1


def test_threads_may_publish_at_once(new):
    corpora = [new(0, 1, 2, 3) for _ in range(20)]
    barrier = threading.Barrier(4)
    errors = []

    def work():
        for corpus in corpora:
            barrier.wait()
            try:
                finish(corpus)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for corpus in corpora:
        check_complete(corpus)


@pytest.mark.parametrize("name", [*WORK, "retry"])
def test_a_full_disk_leaves_what_was_there(name, new):
    done, failed, work = WORK.get(name, ((0, 2), (1, 3), retry))
    for size in range(0, LAST, 700):
        corpus = new(*done, failed=failed)
        if name == "retry":
            finish(corpus)
        try:
            with full_disk(size):
                work(corpus)
            is_full = False
        except OSError as error:
            assert error.errno == errno.ENOSPC
            assert "finish" not in name or str(corpus.folder) in error.filename
            is_full = True
        assert not list(corpus.folder.rglob(f"{TEMPORARY}*"))
        complete(corpus)
        if not is_full:
            break
    assert size


@pytest.mark.parametrize("work, other", [(finish, half), (finish, retry), (retry, retry)])
def test_failures_may_be_published_or_opened_again_meanwhile(work, other, new):
    def start():
        corpus = new(0, 3, failed=(1,))
        if work is retry:
            half(corpus)
        return corpus

    for step in range(LAST):
        corpus = start()
        ran = with_another(step, lambda c=corpus: work(c), lambda c=corpus: other(c))
        done = set().union(*(shard.finished()[0] for shard in corpus.shards))
        assert done >= ({0, 2} if work is retry else set())  # nothing has to be encoded again
        complete(corpus)
        if not ran:
            break
    assert step > 10
