"""Every figure of the codebook report against a direct computation on small random tokens."""

import math
from collections import Counter, defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tokens import entropy, tallied
from vqtok import config
from vqtok.codebook_stats import counts as tally
from vqtok.codebook_stats import structure
from vqtok.codebook_stats.codebook_report import figures
from vqtok.codebook_stats.codes import table
from vqtok.codebook_stats.counts import Sample
from vqtok.codebook_stats.usage import codebook_use
from vqtok.codebook_stats.verdict import CLIPS, judge
from vqtok.quantizers import build
from vqtok.quantizers.search import neighbours


def random_clips(seed, books=1, size=16):
    """Three clips of different shapes, uneven, with repeats in time."""
    rng = np.random.default_rng(seed)
    clips = []
    for t, h, w in ((1, 3, 5), (7, 2, 14), (30, 9, 4)):
        shape = (t, h, w) if books == 1 else (t, h, w, books)
        indices = (size * rng.random(shape) ** 2).astype(np.int32)
        for i in range(1, t):
            same = rng.random(shape[1:]) < 0.3
            indices[i][same] = indices[i - 1][same]
        clips.append(indices)
    return clips


SETS = [(seed, books) for seed in range(3) for books in (1, 3)]


@pytest.fixture(params=SETS, ids=str)
def case(request):
    """Clips as (t p m), and their figures; with several codebooks everything is a mean of each."""
    seed, books = request.param
    clips = random_clips(seed, books)
    found = figures(tallied(clips), "x", None)
    return [clip.reshape(len(clip), -1, books) for clip in clips], found


def each(clips):
    """The tokens of each codebook."""
    return [
        [int(i) for clip in clips for i in clip[:, :, m].ravel()] for m in range(clips[0].shape[2])
    ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_use(case):
    clips, found = case
    books, use = each(clips), found.use
    assert use.tokens == sum(map(len, books))
    assert use.used == sum(len(set(book)) for book in books)
    assert use.dead == sum(16 - len(set(book)) for book in books)
    assert use.usage == pytest.approx(mean(len(set(book)) / 16 for book in books))
    assert use.usage_by_chance == pytest.approx(1 - (15 / 16) ** len(books[0]))
    assert use.entropy_bits == pytest.approx(mean(map(entropy, books)))
    assert use.perplexity == pytest.approx(2 ** mean(map(entropy, books)))
    corrected = [entropy(b) + (len(set(b)) - 1) / (2 * len(b)) / math.log(2) for b in books]
    assert use.entropy_bits_corrected == pytest.approx(mean(corrected))
    assert [one.used for one in found.each] == [len(set(book)) for book in books]
    for one, book in zip(found.each, books, strict=True):
        ranked = sorted(Counter(book).items(), key=lambda pair: (-pair[1], pair[0]))
        assert one.top == ranked[:10]


def test_cost(case):
    clips, found = case
    frames = [1 + 4 * (len(clip) - 1) for clip in clips]
    areas = [64 * 3 * 5, 64 * 2 * 14, 64 * 9 * 4]
    number, bits = found.use.tokens, found.use.entropy_bits
    pixels = sum(f * area for f, area in zip(frames, areas, strict=True))
    assert (found.files, found.frames) == (3, sum(frames))
    assert found.seconds == pytest.approx(sum(frames) / 25)
    assert found.bits_per_pixel == pytest.approx(4 * number / pixels)
    assert found.bits_per_pixel_ideal == pytest.approx(bits * number / pixels)
    assert found.kilobits_per_second == pytest.approx(4 * number * 25 / sum(frames) / 1000)
    assert found.kilobits_per_second_ideal == pytest.approx(bits * number * 25 / sum(frames) / 1000)


def test_repetition(case):
    clips, found = case
    pairs = defaultdict(list)  # by codebook
    for clip in clips:
        for before, after in pairwise(clip):
            for m in range(clip.shape[2]):
                both = zip(before[:, m].tolist(), after[:, m].tolist(), strict=True)
                pairs[m] += both
    together = [(m, *pair) for m, book in pairs.items() for pair in book]
    repeats = mean(a == b for _, a, b in together)
    fresh = [[b for a, b in book if a != b] for book in pairs.values()]
    weights = [len(book) / sum(map(len, fresh)) for book in fresh]
    rest = sum(w * entropy(book) for w, book in zip(weights, fresh, strict=True))
    simple = entropy([a == b for _, a, b in together]) + (1 - repeats) * rest
    given = mean(entropy(book) - entropy([a for a, _ in book]) for book in pairs.values())
    once = sum(n == 1 for n in Counter(together).values())
    assert found.repetition.repeats == pytest.approx(repeats)
    assert found.repetition.repeat_bits == pytest.approx(simple)
    assert found.repetition.conditional_bits == pytest.approx(given)
    assert found.repetition.unseen == pytest.approx(once / len(together))
    assert found.repetition.pairs == found.repetition.number == len(together)


def test_over_time_and_over_the_picture(case):
    clips, found = case
    books = each(clips)
    surprise = [{i: -math.log2(n / len(b)) for i, n in Counter(b).items()} for b in books]
    sizes = [(3, 5), (2, 14), (9, 4)]
    in_time, in_place, codes = defaultdict(list), defaultdict(list), defaultdict(list)
    for clip, (h, w) in zip(clips, sizes, strict=True):
        for t, frame in enumerate(clip):
            part = t * 20 // len(clip)
            codes[part].append(len({(m, i) for row in frame.tolist() for m, i in enumerate(row)}))
            for p, row in enumerate(frame.tolist()):
                place = p // w * 8 // h, p % w * 12 // w
                for m, index in enumerate(row):
                    in_time[part].append(surprise[m][index])
                    in_place[place].append(surprise[m][index])
    assert [part.latent_frames for part in found.over_time] == [
        len(codes[i]) for i in sorted(codes)
    ]
    for part, i in zip(found.over_time, sorted(codes), strict=True):
        assert part.codes == pytest.approx(mean(codes[i]))
        assert part.bits == pytest.approx(mean(in_time[i]))
    for y, row in enumerate(found.over_picture):
        for x, bits in enumerate(row):
            values = in_place.get((y, x))
            assert bits == (pytest.approx(mean(values)) if values else None)
    everything = [bits for place in in_place.values() for bits in place]
    assert mean(everything) == pytest.approx(found.use.entropy_bits)


def test_histogram(case):
    clips, found = case
    counts = [Counter(book)[i] for book in each(clips) for i in range(16)]
    assert [codes for *_, codes in found.histogram] == [
        sum(low <= n <= high for n in counts) for low, high, _ in found.histogram
    ]
    assert sum(codes for *_, codes in found.histogram) == len(counts)


@pytest.mark.parametrize("most", [1, 2, 255, 256, 10**9])
def test_the_classes_of_the_histogram_join_and_reach_to_the_highest_count(most):
    classes = structure.histogram(np.array([0, 1, most, most]))
    assert classes[0] == (0, 0, 1)
    assert all(a[1] + 1 == b[0] for a, b in pairwise(classes))
    assert classes[-1][0] <= most <= classes[-1][1] and len(classes) <= 9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 59), min_size=1, max_size=40))
def test_levels(indices):
    shares = structure.level_shares(np.bincount(indices, minlength=60), (3, 4, 5))
    digits = [(i % 3, i // 3 % 4, i // 12) for i in indices]
    for d, levels in enumerate((3, 4, 5)):
        expected = [mean(digit[d] == level for digit in digits) for level in range(levels)]
        assert shares[d] == pytest.approx(expected)


def test_levels_are_those_of_fsq():
    quantizer = build(config.FSQSettings(levels=(3, 4, 5)))
    codes = quantizer.lookup(torch.tensor([[[7]]])).flatten()  # 7 = 1 + 3 * 2
    shares = structure.level_shares(np.bincount([7], minlength=60), quantizer.levels)
    halves = [levels // 2 for levels in (3, 4, 5)]
    levels = [round(c * half + half) for c, half in zip(codes.tolist(), halves, strict=True)]
    assert [row.index(1) for row in shares] == levels


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
def test_bits(indices):
    found = structure.bits(np.bincount(indices, minlength=16))
    rows = np.array([[int(bit) for bit in f"{i:04b}"] for i in indices])  # the highest first
    assert found.ones == pytest.approx(rows.mean(0).tolist())
    expected = {}
    for i, j in combinations(range(4), 2):
        if rows[:, i].std() and rows[:, j].std():
            expected[i, j] = np.corrcoef(rows[:, i], rows[:, j])[0, 1]
    assert {(i, j): c for i, j, c in found.correlations} == pytest.approx(expected)
    strengths = [abs(c) for *_, c in found.correlations]
    assert strengths == sorted(strengths, reverse=True)


def test_pieces_change_nothing(monkeypatch):
    clips = random_clips(0)
    whole = figures(tallied(clips), "x").numbers()
    monkeypatch.setattr(tally, "PIECE", 10)
    assert figures(tallied(clips), "x").numbers() == whole


def test_a_sample_is_bounded_even_and_the_same_again(monkeypatch):
    monkeypatch.setattr(tally, "SAMPLE", 1000)
    one, two = Sample(), Sample()
    for start in range(0, 50_000, 50):
        one.add(np.arange(start, start + 50))
        two.add(np.arange(start, start + 50))
    kept = one.kept()
    assert np.array_equal(kept, two.kept())
    assert 400 < len(kept) <= 1000 and len(set(kept)) == len(kept)
    quarters = np.bincount(kept // 12_500, minlength=4) / len(kept)
    assert quarters == pytest.approx([0.25] * 4, abs=0.06)


def test_figures_of_a_sample_are_near_those_of_all(monkeypatch):
    clips = [np.random.default_rng(1).integers(0, 4, (60, 20, 20))]
    whole = figures(tallied(clips, codebook_size=4), "x")
    monkeypatch.setattr(tally, "SAMPLE", 8000)
    part = figures(tallied(clips, codebook_size=4), "x")
    assert part.repetition.pairs <= 8000 < part.repetition.number
    assert part.use == whole.use and part.repetition.repeats == whole.repetition.repeats
    close = pytest.approx(whole.repetition.conditional_bits, abs=0.02)
    assert part.repetition.conditional_bits == close
    assert np.allclose(part.over_picture, whole.over_picture, atol=0.1)


def test_a_still_has_no_repetition():
    found = figures(tallied([np.zeros((1, 4, 4), np.int32)]), "x")
    assert found.repetition is None and found.numbers()["repeats"] is None
    assert len(found.over_time) == 1


VERDICTS = [
    # counts, repeated, files -> state; 1024 codes unless there are other counts
    ("healthy", np.full(1024, 20), 0, 1),
    ("healthy", np.r_[np.full(400, 50), np.zeros(624, int)], 0, 1),
    ("collapsed", np.r_[np.full(123, 100), np.zeros(901, int)], 0, 1),
    ("collapsed", np.r_[100_000, np.zeros(1023, int)], 98_000, CLIPS),
    ("too few tokens", np.r_[np.ones(500, int), np.zeros(524, int)], 0, 1),
    ("too few tokens", np.r_[np.ones(999, int), np.zeros(63_001, int)], 0, CLIPS),
    ("too few tokens", np.r_[np.full(10, 90), np.zeros(1014, int)], 0, 1),
    ("too few tokens", np.r_[100_000, np.zeros(1023, int)], 99_500, 1),  # a still picture
    ("too few tokens", np.r_[np.full(2400, 15), np.zeros(61_600, int)], 0, 1),
    ("too few clips", np.r_[np.full(2400, 50), np.zeros(61_600, int)], 0, 1),
    ("collapsed", np.r_[np.full(2400, 50), np.zeros(61_600, int)], 0, CLIPS),
    ("uneven", np.r_[1_000_000, np.full(1023, 10)], 0, CLIPS),
    ("healthy", np.full(2, 20), 0, 1),
    ("too few tokens", np.full(2, 5), 0, 1),
    ("healthy", np.array([50]), 0, 1),  # a codebook of one
]


@pytest.mark.parametrize("state, counts, repeated, files", VERDICTS)
@pytest.mark.parametrize("quantizer", [*config.QUANTIZERS, "another"])
def test_verdicts(state, counts, repeated, files, quantizer):
    found = judge(codebook_use(counts), 1, repeated, files, quantizer)
    assert (found.state, found.reason) == (state, found.reason)
    assert f"{np.count_nonzero(counts) / len(counts):.1%} of the codebook" in found.reason or (
        "say nothing" in found.reason
    )
    assert ("train" in found.reason) == (state == "collapsed")


def test_verdict_of_several_codebooks():
    clip = np.random.default_rng(0).integers(0, 16, (9, 20, 20, 4))
    assert figures(tallied([clip]), "x").verdict.state == "healthy"
    clip[..., :] %= 2
    assert figures(tallied([clip]), "x").verdict.state == "collapsed"


SMALL = {"vq2": {}, "ema": {}, "gumbel": {"dim": 8}, "lfq": {"codebook_size": 64}, "fsq": {}}


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_codes_of_every_quantizer(kind):
    options = SMALL[kind] | ({"codebook_size": 64} if kind != "fsq" else {})
    settings = {"quantizer": {"kind": kind, **options}}
    quantizer = build(config._validate(config.Config, settings, "a test").quantizer)
    found = table(kind, quantizer)
    assert (found.quantizer, found.codebook_size) == (kind, quantizer.codebook_size)
    if kind in ("lfq", "fsq"):
        assert found.codes is None
        return
    with torch.no_grad():
        quantizer.codebook[3] = quantizer.codebook[9]
    codes = quantizer.codebook.detach().double()
    found = table(kind, quantizer).codes
    norms, distances = codes.norm(dim=1), torch.cdist(codes, codes)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.min(1)[0]
    for spread, values in ((found.norms, norms), (found.distances, nearest)):
        assert spread.least == pytest.approx(values.min().item(), abs=1e-6)
        assert spread.most == pytest.approx(values.max().item(), rel=1e-5)
        assert spread.median == pytest.approx(values.median().item(), rel=1e-5)
        assert sum(spread.bins) == 64
    assert found.duplicates == (nearest <= 1e-3 * norms.median()).sum() == 2


def test_dead_and_idle_codes():
    quantizer = build(config.EMASettings(codebook_size=64))
    quantizer.embedding.cluster_size[:5] = 1e-3
    quantizer.age[:7] = 50
    codes = table("ema", quantizer).codes
    assert (codes.dead, codes.idle) == (5, 7)
    assert codes.counts.most == 1
    assert codes.counts.least == pytest.approx(1e-3)


def test_a_codebook_of_one():
    codes = table("vq2", build(config.VQ2Settings(codebook_size=1))).codes
    assert codes.distances is None and codes.duplicates == 0


@pytest.mark.parametrize("k, d", [(2, 3), (33, 2), (2048, 3), (2049, 3), (5000, 8)])
def test_neighbours_are_other_codes(k, d):
    codes = torch.randn(k, d, generator=torch.Generator().manual_seed(k))
    distances = torch.cdist(codes.double(), codes.double()).fill_diagonal_(torch.inf)
    found = neighbours(codes)
    assert (found != torch.arange(k)).all()
    assert torch.allclose(distances[torch.arange(k), found], distances.min(1)[0], atol=1e-6)
