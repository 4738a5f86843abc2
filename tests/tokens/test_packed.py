"""Sequences of ids: exact round trips, what they look like, and sequences without meaning."""

import re
from contextlib import redirect_stdout
from io import StringIO

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from helpers import ROOT
from vqtok.errors import UsageError, VqtokError
from vqtok.tokens import pack_sequence, packed, sequence_vocabulary, unpack_sequence

K, SIZE = 10, (1, 5, 8)  # 40 positions
RUN, FRAME = K, K + 90  # the first run id and the frame id of one codebook
reproducible = settings(deadline=None, max_examples=100, derandomize=True, database=None)
shapes = st.tuples(*[st.integers(1, 7)] * 3)


def random_indices(shape, codebook_size, density, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, codebook_size, shape) * (rng.random(shape) < density)


@reproducible
@given(
    shape=st.one_of(shapes, st.tuples(shapes, st.integers(1, 4)).map(lambda s: (*s[0], s[1]))),
    codebook_size=st.sampled_from([1, 2, 3, 16, 1000, 2**31 - 1]),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from(["int32", "int64", "uint32"]),
    seed=st.integers(0, 99),
)
def test_indices_survive_a_round_trip(shape, codebook_size, density, dtype, seed):
    indices = random_indices(shape, codebook_size, density, seed).astype(dtype)
    sequence = pack_sequence(indices, codebook_size)
    codebooks = int(np.prod(shape[3:]))
    assert sequence.dtype == np.int64 and sequence.ndim == 1 and sequence.min() >= 0
    assert sequence.max() == sequence_vocabulary(codebook_size, codebooks) - 1
    for given_shape in (shape, (-1, *shape[1:])):
        unpacked = unpack_sequence(sequence, given_shape, codebook_size)
        np.testing.assert_array_equal(unpacked, indices)


@reproducible
@given(st.lists(st.integers(0, 2 * K + 90), max_size=12), st.integers(1, 2))
def test_any_ids_are_unpacked_or_refused_in_one_sentence(ids, codebooks):
    sequence, shape = np.array([K * codebooks + 90, *ids]), (-1, 5, 8, codebooks)
    try:
        indices = unpack_sequence(sequence, shape, K)
    except VqtokError as error:
        assert "\n" not in str(error)
    else:
        assert indices.min() >= 0 and indices.max() < K
        shortest = pack_sequence(indices, K)
        assert len(shortest) <= len(sequence)
        np.testing.assert_array_equal(unpack_sequence(shortest, shape, K), indices)


@pytest.mark.parametrize("parts", [1, 100])
def test_frames_do_not_depend_on_each_other(parts, monkeypatch):
    monkeypatch.setattr(packed, "_POSITIONS_AT_A_TIME", parts)
    indices = random_indices((6, 5, 8, 3), K, 0.2)
    frames = [pack_sequence(frame[None], K) for frame in indices]
    sequence = pack_sequence(indices, K)
    assert sequence.tolist() == np.concatenate(frames).tolist()
    assert np.flatnonzero(sequence == 3 * K + 90).tolist() == [
        sum(map(len, frames[:i])) for i in range(6)
    ]


def test_every_prefix_is_the_beginning_of_the_clip():
    indices = random_indices((3, 5, 8, 2), K, 0.2)
    sequence = pack_sequence(indices, K)
    for length in range(1, len(sequence)):
        started = unpack_sequence(sequence[:length], (-1, 5, 8, 2), K)
        flat, expected = started.ravel(), indices.ravel()[: started.size]
        known = np.flatnonzero(flat).max(initial=-1) + 1
        np.testing.assert_array_equal(flat[:known], expected[:known])
        assert not flat[known:].any()


@pytest.mark.parametrize(
    ("position", "ids"),
    [
        (0, []),
        (1, [RUN]),
        (15, [RUN + 14]),
        (16, [RUN + 15]),
        (39, [RUN + 16, RUN + 6]),
    ],
)
def test_a_run_is_its_digits_in_base_16(position, ids):
    indices = np.zeros(40, int)
    indices[position] = 7
    assert pack_sequence(indices.reshape(SIZE), K).tolist() == [FRAME, *ids, 7]


def test_a_position_is_its_stages_up_to_the_last_that_is_not_zero():
    for position, ids in (
        ((0, 0, 0), []),
        ((4, 0, 0), [4]),
        ((4, 5, 6), [4, 15, 26]),
        ((4, 0, 6), [4, 10, 26]),
        ((0, 5, 0), [0, 15]),
    ):
        assert pack_sequence(np.array([[[position]]]), K).tolist() == [120, *ids]


def test_runs_of_any_spelling_are_accepted():
    sequence = np.array([FRAME, RUN, RUN + 1, RUN + 15, 7, RUN + 14, RUN + 4])
    indices = unpack_sequence(sequence, SIZE, K).ravel()
    assert np.flatnonzero(indices).tolist() == [19] and indices[19] == 7


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([], "the sequence is empty"),
        ([7], "begins with 7, not with the frame id, 110"),
        ([110, -1], "the ids are -1 to 110, not in a vocabulary of 111"),
        ([110, 111], "the ids are 110 to 111"),
        ([110, 13], "id 1 of the sequence is of stage 1 and must follow one of stage 0"),
        ([110, 3, 20, 13], "id 3 .* of stage 1 and must"),
        ([110, 3, 13, 13], "id 3 .* of stage 1 and must"),
        ([110, *[3] * 41], "id 41 of the sequence is past the end of latent frame 0, .* 40 pos"),
        ([110, 109], "id 1 of the sequence is past the end"),
        ([110, 110], "the sequence has 2 latent frames, not 1"),
    ],
)
def test_sequences_without_meaning_are_refused(sequence, message):
    with pytest.raises(VqtokError, match=message) as caught:
        unpack_sequence(np.array(sequence, int), (*SIZE, 2), K)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack_sequence(np.zeros((2, 3), int), K), UsageError, r"\(t h w\) .* not \(2, 3\)"),
        (lambda: pack_sequence(np.zeros((0, 2, 3), int), K), UsageError, "shape"),
        (lambda: pack_sequence(np.zeros(SIZE), K), UsageError, "integers, not float64"),
        (lambda: pack_sequence(np.full(SIZE, 10), K), VqtokError, "10 to 10, not in a codebook"),
        (lambda: pack_sequence(np.full(SIZE, -1), K), VqtokError, "-1 to -1, not in a codebook"),
        (lambda: unpack_sequence(np.zeros(3), SIZE, K), UsageError, "of integers, not float64"),
        (lambda: unpack_sequence(np.zeros((1, 3), int), SIZE, K), UsageError, "one-dimensional"),
        (lambda: unpack_sequence(np.array([FRAME]), (1, 2), K), UsageError, "shape"),
        (lambda: unpack_sequence(np.array([FRAME]), (-2, 1, 2), K), UsageError, "shape"),
        (lambda: unpack_sequence(np.array([FRAME]), (1, 2**13, 2**13), K), UsageError, "more than"),
        (lambda: sequence_vocabulary(0), UsageError, "no 1 codebooks of 0 codes"),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_documented_example_prints_what_it_says():
    text = (ROOT / "docs" / "token-format.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (example,) = (block for block in blocks if "pack_sequence" in block)
    with redirect_stdout(StringIO()) as output:
        exec(example, variables := {})
    assert output.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", example)
    assert variables["started"].shape == (3, 8, 12, 2)
