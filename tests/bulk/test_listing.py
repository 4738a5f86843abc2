"""Listing clips for a corpus: every clip is in one shard, and shards have about the size asked."""

import math
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import TESTS
from helpers.clips import pattern, write_clip
from helpers.shards import SETTINGS
from vqtok.bulk.listing import count_pieces, divide, estimate_ratio, list_clips
from vqtok.bulk.probe import Probed, Prober, Setup
from vqtok.bulk.prober import read_video
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


class Direct:
    """A prober that opens videos in this process."""

    def __init__(self, size=None, fps=None):
        self.setup = Setup(size, fps)

    def probe(self, path):
        return read_video(str(path), self.setup)


def whole(path):
    """Return the number of pieces of a clip that is not split."""
    return 1


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
    settings = replace(SETTINGS, **changed)
    prober = Direct(settings.size, settings.fps)
    found = estimate_ratio([clip], settings, prober) * clip.bytes
    assert found == pytest.approx(latent_frames * positions * size)


def test_clips_that_cannot_be_opened_do_not_count(tmp_path):
    good = write_clip(tmp_path / "a.mp4", pattern(25, 64, 96))
    (tmp_path / "b.mp4").write_bytes(b"nonsense")
    (tmp_path / "c.mp4").touch()
    clips = numbered([good, tmp_path / "b.mp4", tmp_path / "c.mp4"])
    clips.append(Clip(3, str(tmp_path / "none.mp4"), "none.mp4", 100))
    ratio = estimate_ratio(clips[:1], SETTINGS, Direct())
    assert estimate_ratio(clips, SETTINGS, Direct()) == ratio
    assert estimate_ratio(clips[1:], SETTINGS, Direct()) == 1.0


def test_few_clips_are_opened_and_the_median_counts():
    opened = []

    class Many:
        def probe(self, path):
            opened.append(int(path.name))
            return Probed(1e9 if path.name == "0" else 1.0, 4.0, 8, 8)

    clips = [Clip(key, str(key), "", 10) for key in range(100_000)]
    assert estimate_ratio(clips, SETTINGS, Many()) == 2 / 10
    assert len(opened) <= 16 and max(opened) > 90_000


def test_a_video_that_crashes_or_hangs_what_opens_it_is_passed_over(tmp_path, monkeypatch, capfd):
    good = write_clip(tmp_path / "a.mp4", pattern(25, 64, 96))
    command = sys.executable, str(TESTS / "helpers" / "poisoned_probe.py")
    monkeypatch.setattr("vqtok.bulk.probe.COMMAND", command)
    with Prober(None, None) as prober:
        assert prober.probe(good) == (1.0, 25.0, 64, 96)
        assert prober.probe(tmp_path / "poison.mp4") is None
        assert prober.probe(good) == (1.0, 25.0, 64, 96)
        monkeypatch.setattr("vqtok.bulk.probe.PATIENCE", 0.1)
        assert prober.probe(tmp_path / "hang.mp4") is None
        monkeypatch.undo()
        assert prober.probe(good) == (1.0, 25.0, 64, 96)
    assert capfd.readouterr() == ("", "")


def test_clips_are_listed_by_name(tmp_path):
    names = "b.mp4", "a/z.mp4", "a.mp4"
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    notes = []
    (tmp_path / "notes.txt").touch()
    found = list(list_clips([str(tmp_path)], whole, notes.append))
    expected = [(key, str(tmp_path / n), n, len(n), 1, 0) for key, n in enumerate(sorted(names))]
    assert found == expected
    assert notes == ["1 file of other kinds passed over (.txt)"]
    both = [str(tmp_path), str(tmp_path / "a.mp4")]  # one clip, named twice
    assert list(list_clips(both, whole, notes.append)) == expected
    with pytest.raises(UsageError, match="would both be decoded to z"):
        (tmp_path / "z.mp4").touch()
        list(list_clips([str(tmp_path), str(tmp_path / "a")], whole, print))


@pytest.mark.parametrize(
    "excerpt, pieces",
    [((0, None, 0.5), 4), ((0, None, 10), 1), ((1, None, 0.5), 2),
     ((0, 1, 0.5), 2), ((9, None, 0.5), 1), ((0, None, 1e-9), MAX_PIECES)],
)  # fmt: skip
def test_pieces_are_counted_from_the_header(excerpt, pieces):
    assert count_pieces(Probed(2.0, 25.0, 8, 8), *excerpt) == pieces
    assert count_pieces(Probed(0.0, 25.0, 8, 8), *excerpt) == 1  # of unknown length
    assert count_pieces(None, *excerpt) == 1
