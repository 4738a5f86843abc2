"""Listing clips for a corpus: every clip is in one shard, and shards have about the size asked."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.clips import pattern, write_clip
from helpers.shards import SETTINGS
from vqtok.bulk import listing
from vqtok.bulk.listing import PieceCounter, divide, estimate_ratio, list_clips
from vqtok.corpus.clips import MAX_PIECES, Clip
from vqtok.corpus.settings import MAX_CLIPS
from vqtok.errors import UsageError

SIZES = st.integers(0, 20_000).map(lambda n: n / 10) | st.just(1e12)


@given(st.lists(SIZES, min_size=1, max_size=300), st.integers(1, 3000))
def test_every_clip_is_in_one_shard_of_about_the_size(sizes, pack):
    starts = divide(sizes, pack)
    assert starts[0] == 0 and starts[-1] == len(sizes)
    assert all(start < end for start, end in pairwise(starts))
    for start, end in pairwise(starts):
        assert end - start == 1 or math.fsum(sizes[start:end]) <= pack * (1 + 1e-9)
        # No shard could have taken the next clip as well.
        assert end == len(sizes) or math.fsum(sizes[start : end + 1]) > pack * (1 - 1e-9)


def test_a_shard_has_a_limited_number_of_clips():
    count = 2 * MAX_CLIPS + 7
    assert divide([0.0] * count, 10**9) == [0, MAX_CLIPS, 2 * MAX_CLIPS, count]


def numbered(paths):
    return [Clip(key, str(p), p.name, p.stat().st_size) for key, p in enumerate(paths)]


@pytest.mark.parametrize(
    "changed, latent_frames, positions, size",
    [
        ({}, 1 + 25 / 4, 8 * 12, 1),
        ({"size": 32}, 1 + 25 / 4, 4 * 6, 1),
        ({"fps": "50"}, 1 + 50 / 4, 8 * 12, 1),
        ({"start": 0.4}, 1 + 15 / 4, 8 * 12, 1),
        ({"duration": 0.2}, 1 + 5 / 4, 8 * 12, 1),
        ({"start": 9.0}, 1, 8 * 12, 1),
        ({"codebook_size": 2**16, "stages": 2}, 1 + 25 / 4, 8 * 12, 4),
    ],
)
def test_the_size_of_tokens_is_estimated_from_headers(
    changed, latent_frames, positions, size, tmp_path
):
    (clip,) = numbered([write_clip(tmp_path / "a.mp4", pattern(25, 64, 96))])
    found = estimate_ratio([clip], replace(SETTINGS, **changed)) * clip.bytes
    assert found == pytest.approx(latent_frames * positions * size)


def test_clips_that_cannot_be_opened_do_not_count(tmp_path):
    good = write_clip(tmp_path / "a.mp4", pattern(25, 64, 96))
    (tmp_path / "b.mp4").write_bytes(b"nonsense")
    (tmp_path / "c.mp4").touch()
    clips = numbered([good, tmp_path / "b.mp4", tmp_path / "c.mp4"])
    clips.append(Clip(3, str(tmp_path / "none.mp4"), "none.mp4", 100))
    assert estimate_ratio(clips, SETTINGS) == estimate_ratio(clips[:1], SETTINGS)
    assert estimate_ratio(clips[1:], SETTINGS) == 1.0


def test_few_clips_are_opened_and_the_median_counts(monkeypatch):
    opened = []

    def estimate(clip, settings):
        opened.append(clip.key)
        return 3.0 * clip.bytes if clip.key else 1e9

    monkeypatch.setattr(listing, "_estimate_bytes", estimate)
    clips = [Clip(key, "", "", 10) for key in range(100_000)]
    assert estimate_ratio(clips, SETTINGS) == 3.0
    assert len(opened) <= 16 and max(opened) > 90_000


def test_clips_are_listed_by_name(tmp_path):
    names = "b.mp4", "a/z.mp4", "a.mp4"
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    notes = []
    (tmp_path / "notes.txt").touch()
    found = list(list_clips([str(tmp_path)], PieceCounter(0, None, None), notes.append))
    expected = [(key, str(tmp_path / n), n, len(n), 1, 0) for key, n in enumerate(sorted(names))]
    assert found == expected
    assert notes == ["1 file of other kinds passed over (.txt)"]
    both = [str(tmp_path), str(tmp_path / "a.mp4")]  # one clip, named twice
    assert list(list_clips(both, PieceCounter(0, None, None), notes.append)) == expected
    with pytest.raises(UsageError, match="would both be decoded to z"):
        (tmp_path / "z.mp4").touch()
        list(list_clips([str(tmp_path), str(tmp_path / "a")], PieceCounter(0, None, None), print))


@pytest.mark.parametrize(
    "options, pieces",
    [((0, None, None), 1), ((0, None, 0.5), 4), ((0, None, 10), 1), ((1, None, 0.5), 2),
     ((0, 1, 0.5), 2), ((9, None, 0.5), 1), ((0, None, 1e-9), MAX_PIECES)],
)  # fmt: skip
def test_pieces_are_counted_from_the_header(options, pieces, tmp_path):
    path = write_clip(tmp_path / "a.mp4", pattern(50, 32, 48))
    assert PieceCounter(*options).count(path) == pieces
    path.write_bytes(b"nonsense")
    assert PieceCounter(*options).count(path) == 1
