"""The cache of decoded clips: shared by processes, complete, and equal to decoding."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.training import settings
from vqtok.errors import VqtokError
from vqtok.training.cache import ClipCache
from vqtok.training.data import VideoClips
from vqtok.video import open_video


@pytest.fixture
def paths(make_clip):
    return [make_clip(f"{i}.mp4", frames=12 + i, height=40, width=48 + 2 * i) for i in range(4)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def cache(folder):
    return ClipCache(folder, 1e9)


def test_clips_are_the_same_from_memory_from_a_folder_and_decoded(paths, folder):
    cached = settings("fsq", "train.size=36").train
    decoded = settings("fsq", "train.size=36", "train.cache_gib=0").train
    first, second = (VideoClips(paths, cached, cache=folder) for _ in range(2))
    in_memory, without = VideoClips(paths, cached), VideoClips(paths, decoded)
    for step in range(20):
        batch = first.batch(step)
        assert all(torch.equal(batch, c.batch(step)) for c in (second, in_memory, without))
    assert 0.8 < first.metrics["cache_hits"] < 1
    assert second.metrics["cache_hits"] == 1
    assert without.metrics["cache_hits"] == 0
    assert len(list(folder.iterdir())) == 2 * len(paths)


def test_clips_in_a_folder_are_used_without_room_for_more(paths, folder):
    VideoClips(paths, settings().train, cache=folder).batch(0)
    full = VideoClips(paths, settings("fsq", "train.cache_gib=0").train, cache=folder)
    full.batch(0)
    assert full.metrics["cache_hits"] == 1


def test_entry_is_raw_and_belongs_to_one_version_of_a_file(paths, cache, folder, make_clip):
    cached = cache.get(paths[0], 20, 1)
    with open_video(paths[0], size=20) as clip:
        frames, timestamps = next(clip.chunks(100))
    assert np.array_equal(cached.open_frames(), frames)
    assert cached.timestamps.tolist() == timestamps
    (index,) = folder.glob("*.json")
    assert json.loads(index.read_text())["shape"] == [12, 20, 24, 3]
    assert index.with_suffix(".frames").read_bytes() == frames.tobytes()
    assert cache.get(paths[0], 20, 1).hit
    assert not cache.get(paths[0], 30, 1).hit
    make_clip("0.mp4", frames=30, height=40, width=48)
    assert len(cache.get(paths[0], 20, 1).open_frames()) == 30


def test_damaged_entry_is_written_again(paths, cache, folder):
    expected = np.array(cache.get(paths[0], 20, 1).open_frames())
    (frames,) = folder.glob("*.frames")
    frames.write_bytes(frames.read_bytes()[:-1])
    assert np.array_equal(cache.get(paths[0], 20, 1).open_frames(), expected)
    (index,) = folder.glob("*.json")
    for damaged in (index.read_text()[:-9], "{}", "[]", '{"times": [1], "shape": [2]}', ""):
        index.write_text(damaged)
        assert not cache.get(paths[0], 20, 1).hit
        assert cache.get(paths[0], 20, 1).hit
    content = json.loads(index.read_text())
    t, h, w, c = content["shape"]
    shapes = ([-t, -h, w, c], [t, 0, w, c], [float(t), h, w, c], [t, h * w, 1, c], [t, h, w * c, 1])
    changes = [{"shape": shape} for shape in ([str(t), h, w, c], [10**30] * 4, [t], 3, *shapes)]
    times = (10**30, 0.5, "a", None, [0])
    changes += [{"times": [value, *content["times"][1:]]} for value in times]
    changes += [{"times": content["times"][::-1]}, {"times": []}, {"times": "a" * t}]
    for damaged in (*(json.dumps(content | change) for change in changes), "[" * 10**5, "9" * 5000):
        index.write_text(damaged)
        assert not cache.get(paths[0], 20, 1).hit
        assert cache.get(paths[0], 20, 1).hit
    frames.unlink()
    assert np.array_equal(cache.get(paths[0], 20, 1).open_frames(), expected)


def test_unreadable_file_leaves_no_entry(tmp_path, cache, folder):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VqtokError, match=r"broken\.mp4"):
        cache.get(tmp_path / "broken.mp4", 20, 1)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_clip_that_does_not_fit_takes_no_room(paths, folder, in_memory, monkeypatch):
    size = 12 * 20 * 24 * 3
    cache = ClipCache(None if in_memory else folder, 1.5 * size)
    assert cache.get(paths[0], 20, 2 * size) is None  # as its header says
    assert cache.get(paths[0], 40, 1) is None  # though its header promises fewer frames
    monkeypatch.setattr("vqtok.training.cache.stopping.is_set", lambda: True)
    assert cache.get(paths[0], 20, size) is None  # the process shall end
    monkeypatch.undo()
    assert cache.capacity == 1.5 * size
    assert len(cache.get(paths[0], 20, 2).open_frames()) == 12
    assert cache.capacity == 0.5 * size
    assert cache.get(paths[1], 20, size) is None
    assert in_memory or len(list(folder.iterdir())) == 2


def test_the_temporary_cache_takes_half_of_its_disk_at_most(paths, monkeypatch):
    monkeypatch.setattr(
        "vqtok.training.cache.disk_usage", lambda folder: SimpleNamespace(free=1000)
    )
    clips = VideoClips(paths, settings().train)
    with clips.shared():
        assert clips._cache.capacity == 500
