"""Clips decoded once: any process finds them again, whole, and they are the clips."""

import json

import numpy as np
import pytest
import torch

from helpers.training import settings
from vqtok.errors import VqtokError
from vqtok.training.cache import Cache
from vqtok.training.data import Clips
from vqtok.video import open_video


@pytest.fixture
def paths(make_clip):
    return [make_clip(f"{i}.mp4", frames=12 + i, height=40, width=48 + 2 * i) for i in range(4)]


def test_every_place_for_clips_gives_the_same_ones(paths, tmp_path):
    kept = settings("fsq", "train.size=36").train
    streamed = settings("fsq", "train.size=36", "train.cache_gib=0").train
    folder = tmp_path / "cache"
    first, found = (Clips(paths, kept, cache=folder) for _ in range(2))
    others = [Clips(paths, kept), Clips(paths, streamed), found]
    for step in range(20):
        batch = first.batch(step)
        assert all(torch.equal(batch, clips.batch(step)) for clips in others)
    assert 0.8 < first.figures["cache_hits"] < 1
    assert found.figures["cache_hits"] == 1
    assert others[1].figures["cache_hits"] == 0
    assert len(list(folder.iterdir())) == 2 * len(paths)
    no_room = Clips(paths, streamed, cache=folder)  # what is there is used all the same
    no_room.batch(0)
    assert no_room.figures["cache_hits"] == 1


def test_an_entry_is_plain_and_belongs_to_one_state_of_a_file(paths, tmp_path, make_clip):
    cache = Cache(tmp_path / "cache", 1e9)
    kept = cache.get(paths[0], 20, 1)
    with open_video(paths[0], size=20) as clip:
        frames, times = next(clip.chunks(100))
    assert np.array_equal(kept.open(), frames)
    assert kept.times.tolist() == times
    (index,) = (tmp_path / "cache").glob("*.json")
    assert json.loads(index.read_text())["shape"] == [12, 20, 24, 3]
    assert index.with_suffix(".frames").read_bytes() == frames.tobytes()
    assert cache.get(paths[0], 20, 1).found
    assert not cache.get(paths[0], 30, 1).found
    make_clip("0.mp4", frames=30, height=40, width=48)
    assert len(cache.get(paths[0], 20, 1).open()) == 30


def test_a_damaged_entry_is_made_again(paths, tmp_path):
    cache = Cache(tmp_path / "cache", 1e9)
    whole = np.array(cache.get(paths[0], 20, 1).open())
    (frames,) = (tmp_path / "cache").glob("*.frames")
    frames.write_bytes(frames.read_bytes()[:-1])
    assert np.array_equal(cache.get(paths[0], 20, 1).open(), whole)
    (index,) = (tmp_path / "cache").glob("*.json")
    for damaged in (index.read_text()[:-9], "{}", "[]", '{"times": [1], "shape": [2]}', ""):
        index.write_text(damaged)
        assert not cache.get(paths[0], 20, 1).found
        assert cache.get(paths[0], 20, 1).found
    frames.unlink()
    assert np.array_equal(cache.get(paths[0], 20, 1).open(), whole)


def test_a_broken_file_leaves_nothing(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VqtokError, match=r"broken\.mp4"):
        Cache(tmp_path / "cache", 1e9).get(tmp_path / "broken.mp4", 20, 1)
    assert list((tmp_path / "cache").iterdir()) == []
