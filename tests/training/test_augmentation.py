"""Augmentation: what changes, what stays, and the same result for the same step."""

import numpy as np
import pytest
import torch

from helpers.training import settings
from vqtok.training import augmentation as augment
from vqtok.training.data import VideoClips, find_media

LUMA = torch.tensor([0.299, 0.587, 0.114])


def generators(n=200):
    return map(np.random.default_rng, range(n))


def test_flip_gives_eight_arrangements_of_the_same_pixels():
    clip = torch.arange(2 * 3 * 3 * 3).view(2, 3, 3, 3)
    results = {tuple(augment.flip(rng, clip).flatten().tolist()) for rng in generators()}
    assert len(results) == 8
    assert {tuple(sorted(values)) for values in results} == {tuple(range(54))}
    # r, g and b of a pixel stay together.
    assert all(v[i + 1] == v[i] + 1 for v in results for i in range(0, 54, 3))


@pytest.mark.parametrize("scale", [1.0, 1.6, 8.0])
@pytest.mark.parametrize("size", [(32, 32), (32, 70), (33, 40)])
def test_images_of_any_size_can_be_scaled(make_still, tmp_path, size, scale):
    make_still(tmp_path / "a.png", *size)
    options = settings("fsq", f"train.random_scale={scale}").train
    clips = VideoClips(find_media([tmp_path]), options)
    for step in range(4):
        assert clips.batch(step).shape == (2, 3, 5, 32, 32)


def test_random_crop_sizes_are_larger_and_smaller_within_the_limit():
    sizes = [augment.random_crop_size(rng, 80, 2.0, 120) for rng in generators()]
    assert min(sizes) in range(40, 44)
    assert max(sizes) == 120
    assert 0.4 < np.mean([size < 80 for size in sizes]) < 0.6


@pytest.mark.parametrize("size", [5, 8, 16])
def test_resize_keeps_levels_and_positions(size):
    clip = torch.full((3, size, size, 3), 37, dtype=torch.uint8)
    clip[:, :, size // 2 :, 1] = 200
    resized = augment.resize(clip, 8)
    assert resized.shape == (3, 8, 8, 3)
    assert resized.dtype == torch.uint8
    assert (resized[..., 0] == 37).all()
    assert (resized[:, :, 0, 1] == 37).all()
    assert (resized[:, :, -1, 1] == 200).all()


def test_resize_is_antialiased():
    board = torch.arange(16)[:, None].add(torch.arange(16)).remainder(2).mul(255).to(torch.uint8)
    resized = augment.resize(board[None, :, :, None].expand(1, 16, 16, 3), 8)
    assert (resized.int() - 128).abs().max() <= 8


def test_color_jitter_changes_half_of_the_clips_and_keeps_gray():
    clip = torch.full((1, 2, 2, 3), 90, dtype=torch.uint8)
    clip[0, 0, 0] = torch.tensor([160, 90, 120], dtype=torch.uint8)
    results = [augment.color_jitter(rng, clip, 1.0) for rng in generators()]
    changed = [result for result in results if not result.equal(clip)]
    assert 0.4 < len(changed) / len(results) < 0.6
    for result in changed:
        assert result.dtype == torch.uint8
        assert result[0, 1].int().amax() - result[0, 1].int().amin() <= 1


def test_hue_and_saturation_keep_luma(monkeypatch):
    monkeypatch.setattr(augment, "CONTRAST", 0.0)
    clip = torch.tensor([140, 110, 120], dtype=torch.uint8).view(1, 1, 1, 3)
    luma = clip.float() @ LUMA
    results = [augment.color_jitter(rng, clip, 0.5).float() for rng in generators()]
    assert max((result @ LUMA - luma).abs().max() for result in results) < 1
    assert max((result - clip.float()).abs().max() for result in results) > 10


def test_augmented_clips_have_the_same_shape_and_repeat(tmp_path, make_clip):
    make_clip("a.mp4", frames=12)
    overrides = ["train.flip=true", "train.random_scale=2", "train.color_jitter=1"]
    augmented = settings("fsq", *overrides).train
    first, second = (VideoClips(find_media([tmp_path]), augmented) for _ in range(2))
    plain = VideoClips(find_media([tmp_path]), settings("fsq").train)
    for step in range(3):
        batch = first.batch(step)
        assert batch.shape == plain.batch(step).shape
        assert batch.dtype == torch.uint8
        assert batch.equal(second.batch(step))
        assert not batch.equal(plain.batch(step))
