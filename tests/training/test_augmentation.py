"""Training clips made more various: what may change, what stays, and the same again each time."""

import numpy as np
import pytest
import torch

from helpers.training import settings
from vqtok.training import augmentation as augment
from vqtok.training.data import Clips, find_media

LUMA = torch.tensor([0.299, 0.587, 0.114])


def generators(n=200):
    return map(np.random.default_rng, range(n))


def test_a_turned_clip_is_one_of_eight_of_the_same_pixels():
    clip = torch.arange(2 * 3 * 3 * 3).view(2, 3, 3, 3)
    seen = {tuple(augment.turned(rng, clip).flatten().tolist()) for rng in generators()}
    assert len(seen) == 8
    assert {tuple(sorted(s)) for s in seen} == {tuple(range(54))}
    assert all(s[i + 1] == s[i] + 1 for s in seen for i in range(0, 54, 3))  # r g b stay together


@pytest.mark.parametrize("zoom", [1.0, 1.6, 8.0])
@pytest.mark.parametrize("size", [(32, 32), (32, 70), (33, 40)])
def test_stills_and_clips_of_any_size_can_be_scaled(make_still, tmp_path, size, zoom):
    make_still(tmp_path / "a.png", *size)
    clips = Clips(find_media([tmp_path]), settings("fsq", f"train.random_scale={zoom}").train)
    for step in range(4):
        assert clips.batch(step).shape == (2, 3, 5, 32, 32)


def test_squares_cut_out_are_larger_and_smaller_but_never_more_than_there_is():
    sides = [augment.side(rng, 80, 2.0, 120) for rng in generators()]
    assert min(sides) in range(40, 44)
    assert max(sides) == 120
    assert 0.4 < np.mean([s < 80 for s in sides]) < 0.6


@pytest.mark.parametrize("side", [5, 8, 16])
def test_scaling_keeps_levels_and_places(side):
    clip = torch.full((3, side, side, 3), 37, dtype=torch.uint8)
    clip[:, :, side // 2 :, 1] = 200
    scaled = augment.scaled(clip, 8)
    assert scaled.shape == (3, 8, 8, 3)
    assert scaled.dtype == torch.uint8
    assert (scaled[..., 0] == 37).all()
    assert (scaled[:, :, 0, 1] == 37).all()
    assert (scaled[:, :, -1, 1] == 200).all()


def test_larger_clips_are_averaged_not_thinned_out():
    board = torch.arange(16)[:, None].add(torch.arange(16)).remainder(2).mul(255).to(torch.uint8)
    scaled = augment.scaled(board[None, :, :, None].expand(1, 16, 16, 3), 8)
    assert (scaled.int() - 128).abs().max() <= 8


def test_half_of_the_clips_keep_their_colours_and_grey_stays_grey():
    clip = torch.full((1, 2, 2, 3), 90, dtype=torch.uint8)
    clip[0, 0, 0] = torch.tensor([160, 90, 120], dtype=torch.uint8)
    results = [augment.coloured(rng, clip, 1.0) for rng in generators()]
    changed = [r for r in results if not r.equal(clip)]
    assert 0.4 < len(changed) / len(results) < 0.6
    for result in changed:
        assert result.dtype == torch.uint8
        assert result[0, 1].int().amax() - result[0, 1].int().amin() <= 1


def test_hue_and_saturation_leave_brightness(monkeypatch):
    monkeypatch.setattr(augment, "CONTRAST", 0.0)
    clip = torch.tensor([140, 110, 120], dtype=torch.uint8).view(1, 1, 1, 3)
    before = clip.float() @ LUMA
    others = [augment.coloured(rng, clip, 0.5) for rng in generators()]
    assert max((o.float() @ LUMA - before).abs().max() for o in others) < 1
    assert max((o.float() - clip.float()).abs().max() for o in others) > 10


def test_varied_clips_are_as_large_as_others_and_the_same_every_time(tmp_path, make_clip):
    make_clip("a.mp4", frames=12)
    more = ["train.flip=true", "train.random_scale=2", "train.color_jitter=1"]
    first, again = (Clips(find_media([tmp_path]), settings("fsq", *more).train) for _ in range(2))
    plain = Clips(find_media([tmp_path]), settings("fsq").train)
    for step in range(3):
        batch = first.batch(step)
        assert batch.shape == plain.batch(step).shape
        assert batch.dtype == torch.uint8
        assert batch.equal(again.batch(step))
        assert not batch.equal(plain.batch(step))
