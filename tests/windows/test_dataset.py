"""Windows of token files: which there are, and what is in each."""

import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from helpers import shards
from helpers.windows import CODES, as_corpus, as_folder, numbered, sample_tokens
from vqtok import TokenWindows
from vqtok.corpus.index import INDEX
from vqtok.corpus.publish import finish
from vqtok.errors import UsageError, VqtokError
from vqtok.safetensors_io import write_file
from vqtok.tokens import write_tokens
from vqtok.tokens.metadata import pack

WRITERS = {"corpus": as_corpus, "folder": as_folder}
NINE, TWELVE, TWO, SEVEN = sample_tokens()  # names of clips, by their latent frames


@pytest.fixture(params=WRITERS)
def source(request, tmp_path):
    """The sample clips as a corpus, and as a folder."""
    return WRITERS[request.param](tmp_path / "tokens", sample_tokens())


def place(windows):
    """Where each window begins, by clip."""
    starts = {}
    for i in range(len(windows)):
        item = windows[i]
        starts.setdefault(item["clip"], []).append(item["frame"])
    return starts


PLACES = [
    ({}, {NINE: [0], TWELVE: [0, 6], SEVEN: [0]}),
    ({"step": 3}, {NINE: [0, 3], TWELVE: [0, 3, 6], SEVEN: [0, 3]}),
    ({"start": "any"}, {NINE: [0, 4], TWELVE: [0, 4, 8], SEVEN: [0]}),
    ({"start": "any", "step": 2}, {NINE: [0, 2, 4], TWELVE: [0, 2, 4, 6, 8], SEVEN: [0, 2]}),
]


@pytest.mark.parametrize(("options", "expected"), PLACES)
def test_windows_begin_at_key_frames_or_anywhere_and_stay_in_their_clip(source, options, expected):
    windows = TokenWindows(source, 4, **options)
    assert place(windows) == expected
    assert len(windows) == sum(map(len, expected.values()))
    assert windows.skipped == 1


@pytest.mark.parametrize("start", ["key", "any"])
def test_a_window_has_the_indices_the_time_and_the_rate_of_its_clip(source, start):
    clips = sample_tokens()
    windows = TokenWindows(source, 4, start=start, step={"key": 3, "any": 1}[start])
    for item in map(windows.__getitem__, range(len(windows))):
        tokens, frame, lead = clips[item["clip"]], item["frame"], item["lead"]
        assert lead == (frame % 3 if start == "any" else 0)
        indices = item["indices"]
        assert indices.dtype == torch.int64
        assert indices.shape == (4 if start == "key" else 6, 4, 6)
        expected = tokens.indices[frame - lead : frame + 4]
        np.testing.assert_array_equal(indices[: lead + 4], expected)
        assert (indices[lead + 4 :] == windows.pad_token).all()
        first = 0 if frame == 0 else 1 + 4 * (frame - 1)  # of the frames that the latent covers
        time = (tokens.timestamps[first] - tokens.origin) * tokens.time_base
        assert item["time"] == float(time)
        assert item["fps"] == float(tokens.fps)


@pytest.mark.parametrize("interval", [10, 11, 2**31 - 1])
def test_no_item_is_longer_than_the_longest_clip(tmp_path, interval):
    clips = {"a": numbered(9, interval=interval), "b": numbered(12, interval=interval)}
    windows = TokenWindows(as_folder(tmp_path / "tokens", clips), 4, start="any", step=1)
    last = windows[-1]
    assert (last["lead"], last["frame"]) == (8, 8)
    np.testing.assert_array_equal(last["indices"], clips["b"].indices)
    assert {item["indices"].shape for item in windows} == {(12, 4, 6)}
    assert TokenWindows(tmp_path / "tokens", 4)[0]["indices"].shape == (4, 4, 6)


def test_latent_frames_that_stand_for_themselves_have_no_key_frames(tmp_path):
    clips = {"a.mp4": numbered(9, interval=1)}
    folder = as_corpus(tmp_path / "tokens", clips)
    for start in ("key", "any"):
        windows = TokenWindows(folder, 4, start=start, step=2)
        assert [(item["frame"], item["lead"]) for item in windows] == [(0, 0), (2, 0), (4, 0)]
        np.testing.assert_array_equal(windows[1]["indices"], clips["a.mp4"].indices[2:6])


def test_the_grid_is_the_central_part_and_smaller_clips_are_left_out(tmp_path):
    clips = {"a.mp4": numbered(4, 5, 6), "b.mp4": numbered(4, 2, 3), "c.mp4": numbered(4, 3, 3)}
    folder = as_folder(tmp_path / "tokens", clips)
    windows = TokenWindows(folder, 4, grid=(2, 3))
    found = [windows[i]["indices"] for i in range(3)]
    parts = (slice(1, 3), slice(1, 4)), (slice(2), slice(3)), (slice(2), slice(3))
    for indices, tokens, (rows, columns) in zip(found, clips.values(), parts, strict=True):
        np.testing.assert_array_equal(indices, tokens.indices[:, rows, columns])
    assert TokenWindows(folder, 4, grid=(3, 3)).skipped == 1
    with pytest.raises(UsageError, match="differ in size: choose grid="):
        TokenWindows(folder, 4).batches(2)
    with pytest.raises(UsageError, match=r"no clip has 4 latent frames of 3x7 indices"):
        TokenWindows(folder, 4, grid=(3, 7))


@pytest.mark.parametrize(
    ("codes", "dtype"), [(200, "u1"), (256, "u1"), (65536, "u2"), (10**6, "i4")]
)
def test_every_size_of_index_is_read_and_special_tokens_are_outside_of_it(tmp_path, codes, dtype):
    tokens = numbered(6, codes=codes, stages=2)
    tokens.indices[0, 0, 0, 0] = codes - 1
    windows = TokenWindows(as_corpus(tmp_path / "tokens", {"a.mp4": tokens}), 6)
    assert windows._clips.rows.dtype == np.int64
    assert windows._clips[0].itemsize == np.dtype(dtype).itemsize
    np.testing.assert_array_equal(windows[0]["indices"], tokens.indices)
    assert (windows.bos_token, windows.pad_token) == (codes, codes + 1)
    assert windows.vocabulary_size == codes + 2


@pytest.mark.parametrize("factors", [1, 2, 3])
@pytest.mark.parametrize("stages", [1, 2])
def test_factors_are_digits_that_join_undoes(tmp_path, factors, stages):
    tokens = numbered(4, stages=stages)
    windows = TokenWindows(as_folder(tmp_path / "tokens", {"a": tokens}), 4, factors=factors)
    base = {1: 3000, 2: 55, 3: 15}[factors]
    assert windows.vocabulary_size == base + 2
    indices = windows[0]["indices"]
    f = stages * factors
    assert indices.shape == (4, 4, 6, f)[: 3 + (f > 1)]
    assert indices.min() >= 0 and indices.max() < base
    first = indices[2, 1, 3].reshape(stages, factors).tolist()
    values = [sum(d * base**e for e, d in enumerate(reversed(digits))) for digits in first]
    assert values == tokens.indices[2, 1, 3].reshape(-1).tolist()
    joined = windows.join(indices)
    assert torch.is_tensor(joined) and isinstance(windows.join(indices.numpy()), np.ndarray)
    np.testing.assert_array_equal(joined, tokens.indices)
    for wrong in (windows.bos_token, -1):
        indices[0, 0, 0] = wrong
        with pytest.raises(VqtokError, match="remove special tokens"):
            windows.join(indices)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_digits_of_a_small_dtype_are_joined_without_overflow(tmp_path, dtype):
    tokens = numbered(4, stages=2)
    windows = TokenWindows(as_folder(tmp_path / "tokens", {"a": tokens}), 4, factors=2)
    digits = windows[0]["indices"]
    for narrow in (digits.numpy().astype(dtype), digits.to(getattr(torch, dtype))):
        np.testing.assert_array_equal(windows.join(narrow), tokens.indices)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8"])
def test_indices_of_any_dtype_that_holds_them_are_split(tmp_path, dtype):
    tokens = numbered(4, codes=65536)
    tokens = replace(tokens, indices=tokens.indices % 128)
    metadata, tensors = pack(tokens)
    tensors["indices"] = tokens.indices.astype(dtype)
    write_file(tmp_path / "a.safetensors", metadata, tensors)
    windows = TokenWindows(tmp_path / "a.safetensors", 4, factors=2)
    np.testing.assert_array_equal(windows[0]["indices"][..., 1], tokens.indices)
    np.testing.assert_array_equal(windows.join(windows[0]["indices"]), tokens.indices)


def test_digits_of_no_index_are_refused(tmp_path):
    windows = TokenWindows(as_folder(tmp_path / "tokens", {"a": numbered(4)}), 4, factors=2)
    assert windows.join(torch.tensor([[54, 29]])).tolist() == [2999]
    with pytest.raises(VqtokError, match="no indices of a codebook of 3,000"):
        windows.join(torch.tensor([[54, 30]]))


def test_several_sources_follow_each_other(tmp_path):
    clips = sample_tokens()
    corpus = as_corpus(tmp_path / "corpus", clips, index=False)  # made from its shards
    write_tokens(tmp_path / "one.safetensors", clips[NINE])
    sources = corpus / f"{SEVEN}.safetensors", corpus, tmp_path / "one.safetensors"
    windows = TokenWindows(sources, 7, start="any")
    assert [item["clip"] for item in windows] == [SEVEN, NINE, TWELVE, SEVEN, "one"]
    np.testing.assert_array_equal(windows[0]["indices"][:7], clips[SEVEN].indices)
    assert windows[0]["time"] == windows[3]["time"] == 0.03


def test_what_the_clips_have_in_common_is_known(source):
    windows = TokenWindows(str(source), 4)
    assert (windows.codebook_size, windows.stages, windows.stride) == (CODES, 1, (4, 8, 8))
    assert (windows.keyframe_interval, windows.tokenizer) == (3, "a" * 64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "b" * 64}, f"model {'b' * 64}, not {'a' * 64}"),
        ({"keyframe_interval": 4}, "keyframe_interval 4, not 3"),
        ({"codebook_size": CODES + 1}, "codebook_size 3001, not 3000"),
    ],
)
def test_clips_of_several_tokenizers_or_intervals_are_refused(tmp_path, change, reason):
    clips = {"a.mp4": numbered(4), "b.mp4": replace(numbered(4), **change)}
    folder = as_folder(tmp_path / "tokens", clips)
    with pytest.raises(VqtokError, match=reason) as error:
        TokenWindows(folder, 4)
    assert str(error.value).startswith(str(folder / "b.mp4.safetensors"))


BAD_ARGUMENTS = [
    ({"length": 0}, "length 0"),
    ({"start": "middle"}, "start 'middle'"),
    ({"step": 4}, "multiple of 3, the key-frame interval"),
    ({"step": 0, "start": "any"}, "step 0 is not positive"),
    ({"grid": (0, 3)}, "grid 0x3"),
    ({"factors": 13}, "factors is 13"),
    ({"length": 13}, "no clip has 13 latent frames"),
]


@pytest.mark.parametrize(("options", "reason"), BAD_ARGUMENTS)
def test_arguments_out_of_range_are_refused(source, options, reason):
    with pytest.raises(UsageError, match=reason):
        TokenWindows(source, **{"length": 4} | options)


def test_numbers_of_windows_are_those_of_a_sequence(source):
    windows = TokenWindows(source, 4)
    assert windows[-1]["clip"] == windows[len(windows) - 1]["clip"] == SEVEN
    for item in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[item]


def test_a_pickled_data_set_is_small_and_the_same(source):
    windows = TokenWindows(source, 4, step=3)
    data = pickle.dumps(windows)
    assert b"memmap" not in data
    again = pickle.loads(data)
    assert [str(item) for item in again] == [str(item) for item in windows]


def test_times_are_those_of_any_rate(tmp_path):
    tokens = numbered(4, interval=1, fps=Fraction(30000, 1001), time_base=Fraction(1, 30000))
    times = range(5005, 5005 + 1001 * tokens.frames, 1001)
    tokens = replace(tokens, timestamps=times, origin=5005)
    windows = TokenWindows(as_corpus(tmp_path / "tokens", {"a": tokens}), 1)
    assert [item["time"] for item in windows] == [
        0,
        1001 / 30000,
        5 * 1001 / 30000,
        9 * 1001 / 30000,
    ]
    assert windows[0]["fps"] == 30000 / 1001


def test_times_in_a_published_corpus_are_those_of_its_clips(tmp_path):
    corpus = shards.new_corpus(tmp_path, 0, 1, 2, 3)
    finish(corpus)
    for index in ("written", "made from the records"):
        for item in TokenWindows(corpus.folder, 1):
            tokens = shards.TOKENS[shards.NAMES.index(item["clip"])]
            ticks = tokens.timestamps[(0, 1, 5)[item["frame"]]] - tokens.origin
            assert item["time"] == float(ticks * tokens.time_base), index
        (corpus.folder / INDEX).unlink(missing_ok=True)
