"""Batches made by several processes: the same as by none, few at a time, and how it all ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import count, islice, product
from multiprocessing import Value, active_children
from types import SimpleNamespace

import pytest
import torch

from helpers.command import TINY, file_names, wait_until
from helpers.training import CPU, make_run, settings, train_run
from vqtok.errors import VqtokError
from vqtok.interrupt import stopping
from vqtok.training import cache, loader, loop
from vqtok.training.clips import TrainingClips
from vqtok.training.data import VideoClips, find_media
from vqtok.training.loader import load_batches
from vqtok.training.synthetic import SyntheticClips

AUGMENTED = ["train.flip=true", "train.random_scale=1.6", "train.color_jitter=0.5"]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class FakeClips(TrainingClips):
    """Clips whose pixels are their number. Counts those that were started, and can fail."""

    def __init__(self, batch_size=2, fail_at=None, fail=None):
        super().__init__(settings("fsq", f"train.batch_size={batch_size}").train)
        self.started, self.fail_at, self.fail = Value("i", 0), fail_at, fail

    def clip(self, step, i):
        with self.started.get_lock():
            self.started.value += 1
        if step == self.fail_at:
            self.fail()
        return torch.full(self.clip_shape, 10 * step + i, dtype=torch.uint8)

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
    for workers in (0, 1, 2, 5):
        clips = VideoClips(sources, options)
        with clips.shared():
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


@pytest.mark.parametrize("workers, batch_size", [(0, 4), (1, 4), (2, 4), (5, 2), (8, 1)])
def test_clips_in_flight_are_bounded(workers, batch_size):
    clips = FakeClips(batch_size)
    with load_batches(clips, 0, CPU, workers) as batches:
        next(batches)
        time.sleep(0.5)
        # One returned and two prefetched, and two parts of each worker.
        most = 3 * batch_size + 2 * workers * -(-batch_size // max(1, workers))
        assert batch_size < clips.started.value <= most
        for _ in range(5):
            next(batches)
        time.sleep(0.5)
        assert clips.started.value <= most + 5 * batch_size


class LocalError(Exception):
    """An error that cannot be sent to another process."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def test_an_exception_arrives_in_the_step_that_needs_its_batch_as_itself():
    local = LocalError("a", "b")
    errors = {
        VqtokError("a.mp4: damaged"): VqtokError("a.mp4: damaged"),
        OSError(28, "No space left"): OSError(28, "No space left"),
        local: RuntimeError("LocalError: a b"),
    }
    for number, (error, received) in product((0, 1, 3), errors.items()):

        def fail(error=error):
            raise error

        expected = received if number else error
        with load_batches(FakeClips(fail_at=4, fail=fail), 0, CPU, number) as batches:
            for step in range(4):
                assert next(batches).flatten()[0] == 10 * step
            with pytest.raises(type(expected)) as raised:
                next(batches)
        assert str(raised.value) == str(expected)
        assert number == 0 or "in fail" in raised.value.__notes__[-1]
        assert not active_children()


def test_a_worker_that_is_killed_is_one_sentence():
    clips = FakeClips(fail_at=1, fail=lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(VqtokError, match=r"clips was killed, .*: --resume the run") as raised:
        take(clips, 2, 2)
    assert raised.value.__suppress_context__


def test_workers_end_when_the_block_is_left():
    """Whatever they do: a long video that is decoded for the cache ends when it shall stop."""
    clips = FakeClips(batch_size=8, fail_at=3, fail=lambda: stopping.wait(60))
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), load_batches(clips, 0, CPU, 2) as batches:
        next(batches)
        assert len(active_children()) == 2
        time.sleep(0.2)
        start = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 4
    assert not active_children()
    while threading.active_count() > threads:  # those of queues end soon after
        assert time.monotonic() - start < 20
        time.sleep(0.01)


def test_workers_leave_the_random_numbers_of_the_model_alone():
    before = torch.random.get_rng_state()
    take(FakeClips(), 2, 2)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("folder", [None, "cache"])
def test_a_file_is_decoded_once_however_many_workers_want_it(
    sources, folder, tmp_path, monkeypatch
):
    def open_video(path, **options):
        with log.open("a") as file:
            print(path, file=file)
        return original(path, **options)

    log, original = tmp_path / "log", cache.open_video
    monkeypatch.setattr(cache, "open_video", open_video)
    readable = [path for path in sources if path.name in ("0.mp4", "1.mp4")]
    clips = VideoClips(readable, settings().train, cache=folder and tmp_path / folder)
    with clips.shared():
        take(clips, 10, 5)
        take(clips, 10, 2)
    assert sorted(log.read_text().split()) == list(map(str, readable))
    assert 0.8 < clips.metrics["cache_hits"] < 1


def test_workers_do_not_overrun_the_cache_together(make_clip):
    paths = [make_clip(f"{i}.mp4", frames=12, height=40, width=48) for i in range(8)]
    size = 12 * 40 * 48 * 3
    clips = VideoClips(paths, settings("fsq", f"train.cache_gib={3.5 * size / 2**30}").train)
    with clips.shared():
        folder = clips._cache.folder
        take(clips, 10, 8)
        take(clips, 10, 3)
        assert len(list(folder.glob("*.frames"))) == 3
        assert clips._cache.capacity == pytest.approx(0.5 * size)
    assert not folder.exists()
    assert clips._cache.capacity == pytest.approx(3.5 * size)


COMMAND = """
import vqtok.training.loop as loop, vqtok.__main__ as command
loop.default_workers = lambda device: 2
command.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_all_processes_of_a_run_ends_them_all(number, tmp_path, make_clip):
    """The run is saved, unless it is killed alone. Workers would keep its stderr open."""
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    data = "--data", make_clip("a.mp4"), make_clip("b.mp4")
    args = map(str, ("train", *data, *TINY, "--out", run, "--device", "cpu"))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *args],
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
    )
    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), process)
    (folder,) = temporary.glob(".vqtok-*")
    assert len(list(folder.glob("*.frames"))) == 2
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert b"Traceback" not in stderr
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number, stderr
        assert "resume.safetensors" in file_names(run)
        assert not folder.exists()


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
