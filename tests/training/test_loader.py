"""Batches made by several threads: the same as by one, few at a time, and no clip decoded twice."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from types import SimpleNamespace

import pytest
import torch

from helpers.training import CPU, make_run, settings, train_run
from vqtok.errors import VqtokError
from vqtok.training import cache, loader, loop
from vqtok.training.clips import TrainingClips
from vqtok.training.data import VideoClips, find_media
from vqtok.training.loader import load_batches
from vqtok.training.synthetic import SyntheticClips

AUGMENTED = ["train.flip=true", "train.random_scale=1.6", "train.color_jitter=0.5"]


class FakeClips(TrainingClips):
    """Clips whose pixels are their number. Counts the clips that were started."""

    def __init__(self, batch_size=2, fail_at=None):
        super().__init__(settings("fsq", f"train.batch_size={batch_size}").train)
        self.started, self.fail_at, self.release = [], fail_at, threading.Event()
        self.release.set()

    def clip(self, step, i):
        self.started.append((step, i))
        self.release.wait(60)
        if step == self.fail_at:
            raise VqtokError(f"clip {step}")
        return torch.full((1, 2, 2, 3), 10 * step + i, dtype=torch.uint8)

    def validation_clips(self, frames):
        return iter(())

    sample_clips = validation_clips


def take(clips, steps, workers, first_step=0, **share):
    with load_batches(clips, first_step, CPU, workers, **share) as batches:
        return list(islice(batches, steps))


@pytest.fixture
def sources(tmp_path, make_clip, make_still):
    """Files of several kinds, two of which cannot be read."""
    for i in range(3):
        make_clip(tmp_path / f"{i}.mp4", frames=12 + i, height=40, width=48)
    make_clip(tmp_path / "short.mkv", frames=3, height=40, width=90)
    make_still(tmp_path / "still.png", height=50, width=70)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    whole = (tmp_path / "0.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return find_media([tmp_path])


@pytest.mark.parametrize("cache_gib", [0, 0.0001, 1])
def test_batches_are_the_same_with_any_number_of_workers(sources, cache_gib):
    options = settings("fsq", *AUGMENTED, f"train.cache_gib={cache_gib}").train
    alone = VideoClips(sources, options)
    expected = [alone.batch(step) for step in range(12)]
    for workers in (1, 2, 5):
        clips = VideoClips(sources, options)
        batches = take(clips, 12, workers)
        assert all(map(torch.equal, batches, expected))
        assert [batch.stride() for batch in batches] == [batch.stride() for batch in expected]
        assert clips.unreadable == alone.unreadable
        resumed = take(VideoClips(sources, options), 4, workers, first_step=8)
        assert all(map(torch.equal, resumed, expected[8:]))
    assert {path.name for path in alone.unreadable} == {"a.mp4", "cut.mp4"}


def test_each_rank_gets_its_share():
    clips = SyntheticClips(settings("fsq", "train.batch_size=6").train)
    for rank in range(3):
        for step, batch in enumerate(take(clips, 2, 2, rank=rank, world_size=3)):
            assert torch.equal(batch, clips.batch(step)[rank::3])


def test_a_window_that_cannot_be_read_is_redrawn_whatever_others_have_found(sources, monkeypatch):
    """Here, late windows fail. Whether such a file is used must not depend on who found it."""

    def read(self, path, media, position, frames):
        if position > 0.5 and path.suffix == ".mp4":
            raise VqtokError("damaged")
        return original(self, path, media, position, frames)

    original = VideoClips._read
    monkeypatch.setattr(VideoClips, "_read", read)
    options = settings().train
    forward, backward = VideoClips(sources, options), VideoClips(sources, options)
    expected = [forward.batch(step) for step in range(10)]
    assert all(torch.equal(backward.batch(step), expected[step]) for step in range(9, -1, -1))
    assert len(forward.unreadable) == 5


@pytest.mark.parametrize("workers, batch_size", [(1, 4), (2, 4), (5, 2), (16, 1)])
def test_clips_in_flight_are_bounded(workers, batch_size):
    clips = FakeClips(batch_size)
    with load_batches(clips, 0, CPU, workers) as batches:
        next(batches)
        time.sleep(0.2)
        # One returned, two prefetched and one that waits to be; and a batch and the workers' clips.
        most = 5 * batch_size + workers + batch_size
        assert batch_size < len(clips.started) <= most
        started = len(clips.started)
        time.sleep(0.1)
        assert len(clips.started) == started
        for _ in range(5):
            next(batches)
        time.sleep(0.2)
        assert len(clips.started) <= most + 5 * batch_size


def test_an_exception_arrives_in_the_step_that_needs_its_batch():
    for workers in (1, 3):
        with load_batches(FakeClips(fail_at=4), 0, CPU, workers) as batches:
            for step in range(4):
                assert next(batches).flatten()[0] == 10 * step
            with pytest.raises(VqtokError, match="clip 4"):
                next(batches)


def test_workers_end_when_the_block_is_left():
    """Clips that are being made are waited for; those in the queue are not made."""
    clips, threads = FakeClips(batch_size=8), threading.active_count()
    with pytest.raises(KeyboardInterrupt), load_batches(clips, 0, CPU, 2) as batches:
        next(batches)
        clips.release.clear()
        next(batches)
        time.sleep(0.1)
        threading.Timer(0.1, clips.release.set).start()
        started = len(clips.started)
        raise KeyboardInterrupt
    assert len(clips.started) <= started + 2
    assert threading.active_count() <= threads + 1  # the timer


def test_workers_leave_the_threads_of_the_model_alone():
    seen = []

    class Clips(FakeClips):
        def clip(self, step, i):
            seen.append(torch.get_num_threads())
            return super().clip(step, i)

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        take(Clips(), 2, 2)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("folder", [None, "cache"])
def test_a_file_is_decoded_once_however_many_workers_want_it(
    sources, folder, tmp_path, monkeypatch
):
    decoded = []

    def open_video(path, **options):
        decoded.append(path)
        return original(path, **options)

    original = cache.open_video
    monkeypatch.setattr(cache, "open_video", open_video)
    readable = [path for path in sources if path.name in ("0.mp4", "1.mp4")]
    clips = VideoClips(readable, settings().train, cache=folder and tmp_path / folder)
    take(clips, 10, 5)
    assert sorted(decoded) == readable
    assert 0.8 < clips.metrics["cache_hits"] < 1


def test_workers_do_not_overrun_the_cache_together(make_clip):
    paths = [make_clip(f"{i}.mp4", frames=12, height=40, width=48) for i in range(8)]
    size = 12 * 40 * 48 * 3
    gib = 3.5 * size / 2**30
    clips = VideoClips(paths, settings("fsq", f"train.cache_gib={gib}").train)
    take(clips, 20, 8)
    cached = [media for media in clips._media.values() if media.cached is not None]
    assert len(cached) == 3
    assert clips._cache.capacity == pytest.approx(0.5 * size)


def test_data_wait_is_the_time_that_clips_take_and_not_the_time_of_the_device(
    tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)

    @contextmanager
    def slow_batches(clips, first_step, *args):
        def batches():
            for step in count(first_step):
                clock.now += 3
                yield clips.batch(step)

        yield batches()

    def slow_step(*args):
        clock.now += 100
        return original(*args)

    original = loop.train_step
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "load_batches", slow_batches)
    monkeypatch.setattr(loop, "train_step", slow_step)
    (row,) = train_run(make_run(tmp_path / "run"), 10)
    assert row["data_wait"] == 3


def test_batches_are_copied_to_the_device_beside_the_model(monkeypatch):
    threads = []

    class Transfer:
        def __init__(self, device):
            threads.append(threading.current_thread())

        def to_device(self, array):
            threads.append(threading.current_thread())
            return torch.from_numpy(array)

    monkeypatch.setattr(loader, "DeviceTransfer", Transfer)
    take(FakeClips(), 3, 2)
    assert threads[0] is threading.main_thread()  # whose stream the model uses
    assert len(threads) > 3
    assert threading.main_thread() not in threads[1:]
