"""Every window once per epoch, whatever the ranks, the workers and the step of a resumed run."""

from itertools import chain, islice

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from helpers.windows import as_corpus, as_folder, numbered
from vqtok import TokenWindows
from vqtok.errors import UsageError
from vqtok.windows.batches import shuffle

WINDOWS = 48  # eight of each clip
BATCH, EPOCHS = 20, 2  # batches that extend over two epochs
FROZEN = [  # the first epochs of ten windows with seed 7
    [3, 5, 4, 1, 2, 6, 8, 7, 0, 9],
    [6, 5, 9, 4, 8, 0, 3, 1, 7, 2],
]


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Windows of two latent frames, of six clips."""
    clips = {f"{i}.mp4": numbered(16, 2, 2, interval=2, seed=i) for i in range(6)}
    windows = TokenWindows(as_corpus(tmp_path_factory.mktemp("corpus") / "c", clips), 2, seed=7)
    assert len(windows) == WINDOWS
    return windows


def seen(windows, steps=None, workers=0, start_method=None, **options):
    """Return the (clip, frame) of each window of the batches of a DataLoader."""
    context = {"multiprocessing_context": start_method} if workers else {}
    loader = DataLoader(windows, num_workers=workers, **context, **options)
    batches = islice(loader, steps)
    return [list(zip(b["clip"], b["frame"].tolist(), strict=True)) for b in batches]


def flat(batches):
    return list(chain.from_iterable(batches))


@pytest.fixture(scope="module")
def whole(windows):
    """The batches of two epochs on one rank."""
    steps = -(-EPOCHS * WINDOWS // BATCH)
    return seen(windows, steps, batch_sampler=windows.batches(BATCH))


def test_every_window_is_in_each_epoch_once_in_another_order(windows, whole):
    every = sorted((item["clip"], item["frame"]) for item in windows)
    order = flat(whole)
    epochs = [order[i * WINDOWS : (i + 1) * WINDOWS] for i in range(EPOCHS)]
    assert [sorted(epoch) for epoch in epochs] == [every] * EPOCHS
    assert epochs[0] != epochs[1] != every != epochs[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_workers_change_no_batch(windows, whole, ranks, workers):
    parts = [
        seen(
            windows, len(whole), workers, "fork", batch_sampler=windows.batches(BATCH, 0, r, ranks)
        )
        for r in range(ranks)
    ]
    assert {len(batch) for batch in flat(parts)} == {BATCH // ranks}
    assert [flat(batch) for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_distributed_sampler_sees_every_window_once(windows, ranks, workers):
    found = []
    for rank in range(ranks):
        sampler = DistributedSampler(windows, ranks, rank, seed=1)
        found += flat(seen(windows, None, workers, "fork", sampler=sampler, batch_size=5))
    assert sorted(found) == sorted((item["clip"], item["frame"]) for item in windows)


@pytest.mark.slow
def test_workers_may_be_spawned(windows, whole):
    sampler = windows.batches(BATCH)
    assert seen(windows, 2, 2, "spawn", batch_sampler=sampler) == whole[:2]


@pytest.mark.parametrize("step", [1, 2, 3, 100_000_000])
def test_a_run_resumes_exactly_from_the_number_of_the_step(windows, step):
    def from_step(number):
        return islice(windows.batches(BATCH, number, 1, 2), 3)

    straight = list(islice(from_step(step - 1), 1, 3))
    assert straight == list(from_step(step))[:2]
    assert straight != list(from_step(step + 1))[:2]


def test_iterating_twice_begins_at_the_step_again(windows):
    batches = windows.batches(BATCH, 3)
    assert list(islice(batches, 2)) == list(islice(batches, 2))


def order(count, seed, epoch):
    return shuffle(np.arange(count), count, seed, epoch).tolist()


def test_the_seed_decides_the_order_and_the_numbers_stay_those_of_today():
    assert [order(10, 7, epoch) for epoch in range(EPOCHS)] == FROZEN
    assert order(10, 8, 0) not in FROZEN


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 1000, 65537])
def test_an_epoch_is_a_permutation_wherever_it_is_looked_at(count):
    whole = order(count, 3, 5)
    assert sorted(whole) == list(range(count))
    places = np.arange(count)[::-7]
    assert shuffle(places, count, 3, 5).tolist() == [whole[place] for place in places]


def test_every_window_is_at_every_place_equally_often():
    epochs = 2000
    counts = np.zeros((5, 5))
    follows = np.zeros((5, 5))
    for epoch in range(epochs):
        found = order(5, 0, epoch)
        counts[range(5), found] += 1
        follows[found[:-1], found[1:]] += 1
    deviation = np.sqrt(epochs * 0.2 * 0.8)
    assert abs(counts - epochs / 5).max() < 4 * deviation
    assert abs(follows[~np.eye(5, dtype=bool)] - epochs / 5).max() < 4 * deviation


def test_a_batch_may_be_larger_than_all_epochs_of_a_small_source(tmp_path):
    windows = TokenWindows(as_folder(tmp_path / "t", {"a": numbered(3, 2, 2, interval=1)}), 1)
    batch = next(iter(windows.batches(7)))
    assert np.bincount(batch).tolist() in ([2, 2, 3], [2, 3, 2], [3, 2, 2])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((10, 0, 0, 4), "cannot be divided among 4 ranks"),
        ((0,), "a batch of 0 windows"),
        ((4, -1), "step -1 is negative"),
        ((4, 0, 4, 4), "rank 4 is not one of 0 to 3"),
    ],
)
def test_batches_out_of_range_are_refused(windows, arguments, reason):
    with pytest.raises(UsageError, match=reason):
        windows.batches(*arguments)
