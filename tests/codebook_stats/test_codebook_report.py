"""Every figure of the codebook report against a direct computation on small random tokens."""

import json
import math
from collections import Counter, defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tokens import count_codes, entropy
from vqtok.codebook_stats import counts, structure
from vqtok.codebook_stats.codebook_report import codebook_report
from vqtok.codebook_stats.counts import RandomSample
from vqtok.quantizers import build
from vqtok.settings import FSQSettings


def random_clips(seed, codebooks=1, size=16):
    """Return three clips of different shapes, with uneven code frequencies and repeats in time."""
    rng = np.random.default_rng(seed)
    clips = []
    for t, h, w in ((1, 3, 5), (7, 2, 14), (30, 9, 4)):
        shape = (t, h, w) if codebooks == 1 else (t, h, w, codebooks)
        indices = (size * rng.random(shape) ** 2).astype(np.int32)
        for i in range(1, t):
            repeat = rng.random(shape[1:]) < 0.3
            indices[i][repeat] = indices[i - 1][repeat]
        clips.append(indices)
    return clips


CASES = [(seed, codebooks) for seed in range(3) for codebooks in (1, 3)]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Clips (t p m), p positions and m codebooks, and their report."""
    seed, codebooks = request.param
    clips = random_clips(seed, codebooks)
    report = codebook_report(count_codes(clips), "x", None)
    return [clip.reshape(len(clip), -1, codebooks) for clip in clips], report


def tokens_by_codebook(clips):
    return [
        [int(i) for clip in clips for i in clip[:, :, m].ravel()] for m in range(clips[0].shape[2])
    ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_usage(case):
    clips, report = case
    codebooks, use = tokens_by_codebook(clips), report.use
    assert use.tokens == sum(map(len, codebooks))
    assert use.used == sum(len(set(tokens)) for tokens in codebooks)
    assert use.dead == sum(16 - len(set(tokens)) for tokens in codebooks)
    assert use.usage == pytest.approx(mean(len(set(tokens)) / 16 for tokens in codebooks))
    assert use.usage_by_chance == pytest.approx(1 - (15 / 16) ** len(codebooks[0]))
    assert use.entropy_bits == pytest.approx(mean(map(entropy, codebooks)))
    assert use.perplexity == pytest.approx(2 ** mean(map(entropy, codebooks)))
    corrected = [entropy(b) + (len(set(b)) - 1) / (2 * len(b)) / math.log(2) for b in codebooks]
    assert use.entropy_bits_corrected == pytest.approx(mean(corrected))
    assert [one.used for one in report.each] == [len(set(tokens)) for tokens in codebooks]
    for one, tokens in zip(report.each, codebooks, strict=True):
        ranked = sorted(Counter(tokens).items(), key=lambda pair: (-pair[1], pair[0]))
        assert one.top == ranked[:10]


def test_bit_rates(case):
    clips, report = case
    frames = [1 + 4 * (len(clip) - 1) for clip in clips]
    areas = [64 * 3 * 5, 64 * 2 * 14, 64 * 9 * 4]
    tokens, bits, seconds = report.use.tokens, report.use.entropy_bits, sum(frames) / 25
    pixels = sum(f * area for f, area in zip(frames, areas, strict=True))
    assert (report.files, report.frames) == (3, sum(frames))
    assert report.seconds == pytest.approx(seconds)
    assert report.bits_per_pixel == pytest.approx(4 * tokens / pixels)
    assert report.bits_per_pixel_ideal == pytest.approx(bits * tokens / pixels)
    assert report.kilobits_per_second == pytest.approx(4 * tokens / seconds / 1000)
    assert report.kilobits_per_second_ideal == pytest.approx(bits * tokens / seconds / 1000)


def test_temporal_redundancy(case):
    clips, report = case
    pairs = defaultdict(list)  # by codebook
    for clip in clips:
        for previous, current in pairwise(clip):
            for m in range(clip.shape[2]):
                pairs[m] += zip(previous[:, m].tolist(), current[:, m].tolist(), strict=True)
    all_pairs = [(m, *pair) for m, codebook in pairs.items() for pair in codebook]
    repeats = mean(a == b for _, a, b in all_pairs)
    changed = [[b for a, b in codebook if a != b] for codebook in pairs.values()]
    weights = [len(tokens) / sum(map(len, changed)) for tokens in changed]
    changed_bits = sum(w * entropy(tokens) for w, tokens in zip(weights, changed, strict=True))
    flag_bits = entropy([a == b for _, a, b in all_pairs])
    conditional = mean(entropy(book) - entropy([a for a, _ in book]) for book in pairs.values())
    once = sum(n == 1 for n in Counter(all_pairs).values())
    redundancy = report.redundancy
    assert redundancy.repeats == pytest.approx(repeats)
    model_bits = flag_bits + (1 - repeats) * changed_bits
    assert redundancy.repeat_model_bits == pytest.approx(model_bits)
    assert redundancy.conditional_bits == pytest.approx(conditional)
    assert redundancy.unseen == pytest.approx(once / len(all_pairs))
    assert redundancy.sampled_pairs == redundancy.pairs == len(all_pairs)


def test_time_profile_and_entropy_map(case):
    clips, report = case
    codebooks = tokens_by_codebook(clips)
    surprise = [{i: -math.log2(n / len(b)) for i, n in Counter(b).items()} for b in codebooks]
    grids = [(3, 5), (2, 14), (9, 4)]
    by_time, by_cell, distinct = defaultdict(list), defaultdict(list), defaultdict(list)
    for clip, (h, w) in zip(clips, grids, strict=True):
        for t, frame in enumerate(clip.tolist()):
            time_bin = t * 20 // len(clip)
            distinct[time_bin].append(len({(m, i) for row in frame for m, i in enumerate(row)}))
            for p, row in enumerate(frame):
                cell = p // w * 8 // h, p % w * 12 // w
                for m, index in enumerate(row):
                    by_time[time_bin].append(surprise[m][index])
                    by_cell[cell].append(surprise[m][index])
    expected_frames = [len(distinct[i]) for i in sorted(distinct)]
    assert [time_bin.latent_frames for time_bin in report.time_profile] == expected_frames
    for time_bin, i in zip(report.time_profile, sorted(distinct), strict=True):
        assert time_bin.codes == pytest.approx(mean(distinct[i]))
        assert time_bin.bits == pytest.approx(mean(by_time[i]))
    for y, row in enumerate(report.entropy_map):
        for x, bits in enumerate(row):
            values = by_cell.get((y, x))
            assert bits == (pytest.approx(mean(values)) if values else None)
    all_bits = [bits for cell in by_cell.values() for bits in cell]
    assert mean(all_bits) == pytest.approx(report.use.entropy_bits)


def test_histogram(case):
    clips, report = case
    occurrences = [Counter(tokens)[i] for tokens in tokens_by_codebook(clips) for i in range(16)]
    assert [codes for *_, codes in report.histogram] == [
        sum(least <= n <= most for n in occurrences) for least, most, _ in report.histogram
    ]
    assert sum(codes for *_, codes in report.histogram) == len(occurrences)


SPARSE = [(seed, stages, size) for seed in range(2) for stages in (1, 3) for size in (16, 2)]


@pytest.fixture(params=SPARSE, ids=str)
def sparse(request):
    """Clips (t p m) with a zero code, their grids, and their report.

    Part of the picture has no tokens, and so has part of one clip; most others are in stage 0.
    """
    seed, stages, size = request.param
    rng, clips = np.random.default_rng(seed + 9), random_clips(seed, stages, size)
    for clip in clips:
        stage_shares = 0.5 ** np.arange(stages) if stages > 1 else 0.5
        clip *= rng.random(clip.shape) < stage_shares
        clip[:, :1] = 0
    clips[2][20:] = 0
    report = codebook_report(count_codes(clips, codebook_size=size, zero_code=True), "x")
    grids = [clip.shape[1:3] for clip in clips]
    return [clip.reshape(len(clip), -1, stages) for clip in clips], grids, size, report


def test_the_zero_code_is_no_code_and_no_token(sparse):
    clips, _, size, report = sparse
    indices, use = tokens_by_codebook(clips), report.use
    spent = [[i for i in codebook if i] for codebook in indices]
    assert report.positions == len(indices[0])
    assert use.tokens == sum(map(len, spent))
    assert report.tokens_per_position == pytest.approx(use.tokens / report.positions)
    assert report.kept == pytest.approx([len(s) / report.positions for s in spent])
    assert use.codebook_size == size - 1
    assert use.dead == sum(size - 1 - len(set(s)) for s in spent)
    assert use.usage == pytest.approx(mean(len(set(s)) / (size - 1) for s in spent))
    bits = sum(len(s) * entropy(s) for s in spent) / use.tokens
    assert use.entropy_bits == pytest.approx(bits) and use.perplexity == pytest.approx(2**bits)
    for one, tokens in zip(report.each, spent, strict=True):
        ranked = sorted(Counter(tokens).items(), key=lambda pair: (-pair[1], pair[0]))
        assert one.top == ranked[:10]
    assert sum(codes for *_, codes in report.histogram) == len(spent) * (size - 1)


def test_bit_rates_with_a_zero_code(sparse):
    clips, _, size, report = sparse
    indices, tokens = tokens_by_codebook(clips), report.use.tokens
    pixels = sum(64 * clip.shape[1] * (1 + 4 * (len(clip) - 1)) for clip in clips)
    fixed = math.log2(size) * sum(map(len, indices))
    ideal = sum(len(codebook) * entropy(codebook) for codebook in indices)
    assert report.bits_per_pixel == pytest.approx(fixed / pixels)
    assert report.bits_per_pixel_ideal == pytest.approx(ideal / pixels)
    assert report.bits_per_pixel_tokens == pytest.approx(tokens * math.log2(size - 1) / pixels)
    for name, bits in (("", fixed), ("_ideal", ideal), ("_tokens", tokens * math.log2(size - 1))):
        rate = getattr(report, f"kilobits_per_second{name}")
        assert rate == pytest.approx(bits / report.seconds / 1000)


def test_where_tokens_are_spent(sparse):
    clips, grids, _, report = sparse
    kept, distinct, spent = defaultdict(list), defaultdict(list), defaultdict(list)
    for clip, (h, w) in zip(clips, grids, strict=True):
        for t, frame in enumerate(clip.tolist()):
            codes = {(m, i) for row in frame for m, i in enumerate(row) if i}
            distinct[t * 20 // len(clip)].append(len(codes))
            for p, row in enumerate(frame):
                kept[t * 20 // len(clip)].append([i != 0 for i in row])
                spent[p // w * 8 // h, p % w * 12 // w].append(sum(i != 0 for i in row))
    assert len(report.time_profile) == len(kept)
    for time_bin, i in zip(report.time_profile, sorted(kept), strict=True):
        assert time_bin.kept == pytest.approx(np.mean(kept[i], 0).tolist())
        assert time_bin.codes == pytest.approx(mean(distinct[i]))
        assert (time_bin.bits is None) == (not np.any(kept[i]))
    for y, row in enumerate(report.tokens_map):
        for x, tokens in enumerate(row):
            assert tokens == (pytest.approx(mean(spent[y, x])) if spent[y, x] else None)
            assert [bits is None for bits in report.entropy_map[y]] == [not t for t in row]


def test_redundancy_of_tokens_with_a_zero_code(sparse):
    clips, _, _, report = sparse
    pairs = [
        (m, *pair)
        for clip in clips
        for before, after in pairwise(clip)
        for m in range(clip.shape[2])
        for pair in zip(before[:, m].tolist(), after[:, m].tolist(), strict=True)
        if pair[1]
    ]
    redundancy = report.redundancy
    assert redundancy.pairs == len(pairs)
    assert redundancy.repeats == pytest.approx(mean(a == b for _, a, b in pairs))
    conditional = entropy(pairs) - entropy([(m, a) for m, a, _ in pairs])
    assert redundancy.conditional_bits == pytest.approx(conditional)


def test_a_clip_without_tokens_has_a_report():
    clip = np.zeros((5, 3, 4, 2), np.uint8)
    report = codebook_report(count_codes([clip], zero_code=True), "x")
    figures = report.to_dict()
    assert figures["tokens"] == figures["used"] == 0 and figures["positions"] == 60
    assert figures["kept"] == [0, 0] and figures["repeats"] is None
    assert figures["bits_per_pixel_ideal"] == figures["bits_per_pixel_tokens"] == 0
    assert figures["verdict"] == "too few tokens"
    json.dumps(figures, allow_nan=False)


def test_a_stage_of_few_tokens_does_not_look_collapsed():
    clip = np.zeros((9, 40, 40, 4), np.int64)
    clip[..., 0] = np.random.default_rng(0).integers(1, 512, clip.shape[:3])
    report = codebook_report(count_codes([clip], codebook_size=512, zero_code=True), "x")
    assert report.health.status == "healthy", report.health.reason
    clip[..., 0] = 1 + clip[..., 0] % 4
    report = codebook_report(count_codes([clip], codebook_size=512, zero_code=True), "x")
    assert report.health.status == "collapsed", report.health.reason


@pytest.mark.parametrize("highest", [1, 2, 255, 256, 10**9])
def test_histogram_bins_are_contiguous_and_reach_the_highest_count(highest):
    bins = structure.occurrence_histogram(np.array([0, 1, highest, highest]))
    assert bins[0] == (0, 0, 1)
    assert all(a[1] + 1 == b[0] for a, b in pairwise(bins))
    assert bins[-1][0] <= highest <= bins[-1][1] and len(bins) <= 9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 59), min_size=1, max_size=40))
def test_level_shares(indices):
    shares = structure.level_shares(np.bincount(indices, minlength=60), (3, 4, 5))
    digits = [(i % 3, i // 3 % 4, i // 12) for i in indices]
    for d, levels in enumerate((3, 4, 5)):
        expected = [mean(digit[d] == level for digit in digits) for level in range(levels)]
        assert shares[d] == pytest.approx(expected)


def test_levels_match_the_codes_of_fsq():
    quantizer = build(FSQSettings(levels=(3, 4, 5)))
    codes = quantizer.decode(torch.tensor([[[7]]])).flatten()  # 7 = 1 + 3 * 2
    shares = structure.level_shares(np.bincount([7], minlength=60), quantizer.levels)
    halves = [levels // 2 for levels in (3, 4, 5)]
    levels = [round(c * half + half) for c, half in zip(codes.tolist(), halves, strict=True)]
    assert [row.index(1) for row in shares] == levels


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
def test_bit_statistics(indices):
    bits = structure.bit_statistics(np.bincount(indices, minlength=16))
    rows = np.array([[int(bit) for bit in f"{i:04b}"] for i in indices])  # highest bit first
    assert bits.ones == pytest.approx(rows.mean(0).tolist())
    expected = {}
    for i, j in combinations(range(4), 2):
        if rows[:, i].std() and rows[:, j].std():
            expected[i, j] = np.corrcoef(rows[:, i], rows[:, j])[0, 1]
    assert {(i, j): c for i, j, c in bits.correlations} == pytest.approx(expected)
    strengths = [abs(c) for *_, c in bits.correlations]
    assert strengths == sorted(strengths, reverse=True)


def test_tokens_at_a_time_do_not_change_the_report(monkeypatch):
    clips = random_clips(0)
    expected = codebook_report(count_codes(clips), "x").to_dict()
    monkeypatch.setattr(counts, "TOKENS_AT_A_TIME", 10)
    assert codebook_report(count_codes(clips), "x").to_dict() == expected


def test_tokens_at_a_time_do_not_change_the_report_of_a_zero_code(monkeypatch):
    clips = random_clips(0, codebooks=3)
    expected = codebook_report(count_codes(clips, zero_code=True), "x").to_dict()
    monkeypatch.setattr(counts, "TOKENS_AT_A_TIME", 10)
    assert codebook_report(count_codes(clips, zero_code=True), "x").to_dict() == expected


def test_sample_is_bounded_uniform_and_deterministic(monkeypatch):
    monkeypatch.setattr(counts, "SAMPLE_SIZE", 1000)
    one, other = RandomSample(), RandomSample()
    for start in range(0, 50_000, 50):
        one.add(np.arange(start, start + 50))
        other.add(np.arange(start, start + 50))
    values = one.values()
    assert np.array_equal(values, other.values())
    assert 400 < len(values) <= 1000 and len(set(values)) == len(values)
    quarters = np.bincount(values // 12_500, minlength=4) / len(values)
    assert quarters == pytest.approx([0.25] * 4, abs=0.06)


def test_figures_of_a_sample_are_close_to_those_of_all_tokens(monkeypatch):
    clips = [np.random.default_rng(1).integers(0, 4, (60, 20, 20))]
    exact = codebook_report(count_codes(clips, codebook_size=4), "x")
    monkeypatch.setattr(counts, "SAMPLE_SIZE", 8000)
    sampled = codebook_report(count_codes(clips, codebook_size=4), "x")
    assert sampled.redundancy.sampled_pairs <= 8000 < sampled.redundancy.pairs
    assert sampled.use == exact.use and sampled.redundancy.repeats == exact.redundancy.repeats
    expected = pytest.approx(exact.redundancy.conditional_bits, abs=0.02)
    assert sampled.redundancy.conditional_bits == expected
    assert np.allclose(sampled.entropy_map, exact.entropy_map, atol=0.1)


def test_image_has_no_temporal_redundancy():
    report = codebook_report(count_codes([np.zeros((1, 4, 4), np.int32)]), "x")
    assert report.redundancy is None and report.to_dict()["repeats"] is None
    assert len(report.time_profile) == 1
