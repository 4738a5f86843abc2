"""Training clips: any file gives them, and a step always sees the same ones."""

import numpy as np
import pytest
import torch

from helpers.clips import write_clip
from helpers.training import settings
from vqtok.errors import UsageError, VqtokError
from vqtok.training.data import VideoClips, find_media
from vqtok.training.synthetic import SyntheticClips


def test_clips_come_from_videos_and_images_of_any_size(tmp_path, make_clip, make_still):
    make_clip(tmp_path / "long.mp4", frames=20, height=48, width=64)
    make_clip(tmp_path / "short.mkv", frames=3, height=24, width=90)
    make_still(tmp_path / "still.png", height=50, width=70)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("not listed")
    (tmp_path / ".hidden.mp4").write_bytes(b"not listed")
    (tmp_path / "folder.mp4").mkdir()
    paths = find_media([tmp_path])
    assert [p.name for p in paths] == ["broken.mp4", "long.mp4", "short.mkv", "still.png"]
    cached = VideoClips(paths, settings().train)
    decoded = VideoClips(paths, settings("fsq", "train.cache_gib=0").train)
    for step in range(20):
        batch = cached.batch(step)
        assert batch.shape == (2, 3, 5, 32, 32)
        assert batch.dtype == torch.uint8
        assert torch.equal(batch, decoded.batch(step))
        shares = [cached.batch(step, rank, world_size=2) for rank in (0, 1)]
        assert torch.equal(torch.cat(shares), batch)
    assert [p.name for p in cached.unreadable] == ["broken.mp4"]


def test_no_readable_file_is_an_error(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VqtokError, match="none of the 1 training files can be read"):
        VideoClips(find_media([tmp_path]), settings().train).batch(0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no videos or images"):
        find_media([tmp_path / "empty"])


def test_a_file_with_two_paths_is_taken_once(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "clip.mp4").touch()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "c.mp4").symlink_to("b/clip.mp4")
    assert find_media([tmp_path, tmp_path / "b"]) == [tmp_path / "a" / "clip.mp4"]


def test_strides_are_drawn_and_too_short_files_give_every_frame(tmp_path):
    brightening = np.arange(30)[:, None, None, None] * np.full((1, 32, 32, 3), 8)
    write_clip(tmp_path / "long.mp4", brightening.astype(np.uint8))
    write_clip(tmp_path / "short.mp4", brightening[:6].astype(np.uint8))
    clips = VideoClips(find_media([tmp_path]), settings("fsq", "train.strides=[1, 2]").train)
    strides = set()
    for step in range(20):
        levels = clips.batch(step).float().mean((1, 3, 4))  # (b t)
        steps = (levels[:, 1:] - levels[:, :-1]) / 8
        assert (steps - steps.mean(1, keepdim=True)).abs().max() < 0.3
        strides.update(steps.mean(1).round().int().tolist())
    assert strides == {1, 2}


def test_resumed_run_sees_the_same_clips_despite_a_broken_file_and_a_full_cache(
    tmp_path, make_clip
):
    codecs = {"a.mp4": "libx264", "b.mkv": "libx264", "c.webm": "libvpx-vp9", "d.avi": "mpeg4"}
    for i, (name, codec) in enumerate(codecs.items()):
        make_clip(tmp_path / name, frames=12 + i, height=40, width=48, codec=codec)
    make_clip(tmp_path / "e.gif", frames=16, height=40, width=48, codec="gif", pix_fmt="rgb8")
    (tmp_path / "f.mp4").write_bytes(b"no video")
    little = settings("fsq", "train.cache_gib=0.0001", "train.strides=[1, 2]").train
    straight, resumed = (VideoClips(find_media([tmp_path]), little) for _ in range(2))
    batches = [straight.batch(step) for step in range(20)]
    assert straight.unreadable
    assert 0 < straight.metrics["cache_hits"] < 0.9  # some files are cached, others are not
    assert all(torch.equal(resumed.batch(step), batches[step]) for step in range(19, 9, -1))


def test_synthetic_clips_vary_and_repeat():
    clips = SyntheticClips(settings().train)
    assert torch.equal(clips.batch(3), clips.batch(3))
    assert not torch.equal(clips.batch(3), clips.batch(4))
    assert np.std(clips.batch(0).numpy()) > 20
    shares = [clips.batch(3, rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), clips.batch(3))
