"""Clips of several threads in one batch: the same tokens in any company, and failures."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from helpers.tokenizers import STAGED, random_video, small_tokenizer
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError, VqtokError
from vqtok.model.batching import Batcher
from vqtok.model.stream_state import StreamState

PREDICTIVE = ["model.predictor_blocks=1", "model.keyframe_interval=3"]
# Clips that meet in one batch: equal and different lengths and sizes.
SIZES = {
    "one": [(30, 32, 48)],
    "equal": [(21, 32, 48)] * 3,
    "lengths": [(38, 32, 48), (1, 32, 48), (9, 32, 48), (12, 32, 48)],
    "sizes": [(13, 32, 48), (21, 48, 32), (17, 30, 41), (17, 32, 48)],
}


def in_threads(tokenizer, function, inputs, delay=0.0):
    """Return function(input) of each input, computed in a thread each; they start one by one."""

    def work(item):
        i, value = item
        time.sleep(i * delay)
        with tokenizer.batcher.clip():
            return function(value)

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(work, enumerate(inputs), timeout=60))


def clips_of(sizes):
    return [
        (random_video(*size, seed=seed) * 255).to(torch.uint8) for seed, size in enumerate(sizes)
    ]


def assert_equal(actual, expected):
    assert all(map(torch.equal, actual, expected))


KINDS = {
    "fsq": ("fsq", PREDICTIVE, ALL_TOKENS),
    "no predictor": ("lfq", ["model.predictor_blocks=0"], ALL_TOKENS),
    "staged": ("ema", [*STAGED, *PREDICTIVE], ALL_TOKENS),
    "intra": ("vq2", [*STAGED, *PREDICTIVE, "model.intra_share=0.3"], ALL_TOKENS),
    "price": ("ema", [*STAGED, *PREDICTIVE, "model.intra_share=0.3"], Rate(price=0.3)),
    "tokens": ("ema", [*STAGED, *PREDICTIVE], Rate(tokens=0.9)),
    "psnr": ("ema", [*STAGED, *PREDICTIVE], Rate(psnr=9.0)),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("kind", "overrides", "rate"), KINDS.values(), ids=KINDS)
def test_a_clip_gets_the_same_tokens_and_video_in_any_company(kind, overrides, rate, sizes):
    tokenizer, clips = small_tokenizer(kind, *overrides), clips_of(sizes)

    def encode(clip):
        return tokenizer.encode(clip, rate)

    expected = [encode(clip) for clip in clips]
    videos = [tokenizer.decode(indices) for indices in expected]
    with tokenizer.batched(4):
        alone = [encode(clip) for clip in clips]
        assert_equal(alone, expected)
        videos_alone = [tokenizer.decode(indices) for indices in expected]
        for delay in (0.0, 0.02):
            assert_equal(in_threads(tokenizer, encode, clips, delay), alone)
            assert_equal(in_threads(tokenizer, tokenizer.decode, expected, delay), videos_alone)
    for video, video_alone in zip(videos, videos_alone, strict=True):
        torch.testing.assert_close(video_alone, video)


@pytest.mark.parametrize(("kind", "overrides", "rate"), KINDS.values(), ids=KINDS)
def test_rows_between_different_key_frames(kind, overrides, rate):
    """One row starts, one is at a key frame and one in between; each gets what it gets alone."""
    coder = small_tokenizer(kind, *overrides).coder
    price = 0.1 if coder.quantizer.zero_code else 0.0
    z = [torch.randn(1, coder.quantizer.dim, frames + 4, 4, 6) for frames in (0, 2, 3, 4)]
    states = [StreamState() for _ in z]
    with torch.no_grad():
        whole = [coder.encode(latents, StreamState(), price) for latents in z]
        for latents, state in zip(z, states, strict=True):
            if latents.shape[2] > 4:
                coder.encode(latents[:, :, :-4], state, price)
        state = StreamState.join(states, torch.device("cpu"))
        indices = coder.encode(torch.cat([latents[:, :, -4:] for latents in z]), state, price)
    assert_equal(indices.split(1), [expected[:, -4:] for expected in whole])


def test_clips_meet_in_batches_of_one_shape():
    tokenizer, shapes = small_tokenizer("fsq", *PREDICTIVE), []
    tokenizer.encoder.register_forward_hook(lambda _, args, z: shapes.append(tuple(z.shape)))
    with tokenizer.batched(3):
        in_threads(tokenizer, tokenizer.encode, clips_of([(17, 32, 48)] * 3))
    # Five latent frames of each clip in chunks of two, the last of which is filled up.
    assert set(shapes) == {(3, 6, 2, 4, 6)} and 3 <= len(shapes) < 9


def test_calls_that_came_during_a_batch_wait_for_those_that_it_held_up(monkeypatch):
    monkeypatch.setattr("vqtok.model.batching.PATIENCE", 0)
    batcher, batches = Batcher(3, torch.device("cpu")), []

    def slow(x, state):
        batches.append(x.flatten().tolist())
        time.sleep(0.1)
        return x

    def clip(i):
        with batcher.clip():
            for _ in range(4):
                batcher.run(slow, torch.tensor([float(i)]), StreamState())

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(clip, range(3), timeout=60))
    # The first call runs alone. Without waiting, the two others and that one would take turns.
    assert len(batches) <= 6


@pytest.mark.parametrize("clips", [1, 3])
def test_a_state_does_not_keep_the_padding_of_its_batch_in_memory(clips):
    tokenizer, states = small_tokenizer("ema", *STAGED, *PREDICTIVE), []

    def encode(video):
        state = StreamState()
        states.append(state)
        tokenizer.run(tokenizer._encode_chunk, video, state)

    videos = [torch.zeros(1, 3, 8, 32, 48, dtype=torch.uint8) for _ in range(clips)]
    with tokenizer.batched(3), torch.no_grad():
        in_threads(tokenizer, encode, videos)
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for state in states
        for x in state.values()
    }
    assert sum(storages.values()) == sum(x.nbytes for state in states for x in state.values())


def test_a_batch_of_videos_is_encoded_as_outside():
    tokenizer = small_tokenizer("fsq", *PREDICTIVE)
    video = torch.cat(clips_of([(9, 32, 48)] * 2))
    expected = tokenizer.encode(video)
    with tokenizer.batched(3):
        assert torch.equal(tokenizer.encode(video), expected)
        with pytest.raises(UsageError, match="batches of clips already"), tokenizer.batched(2):
            pass
        assert tokenizer.batcher.rows == 3
    assert tokenizer.batcher.rows == 1


class Failing:
    """Raises an error in the middle of a clip whose pixels are all 255."""

    def __init__(self, tokenizer, error):
        self.error, self.inner = error, tokenizer.encoder.forward
        tokenizer.encoder.forward = self

    def __call__(self, video, state=None):
        if (video == 1).flatten(1).all(1).any():
            raise self.error
        return self.inner(video, state)


def outcome(encode):
    """Return a function that returns the tokens, or the error, of a clip."""

    def run(clip):
        try:
            return encode(clip)
        except BaseException as error:
            return error

    return run


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("CUDA out of memory. Tried"), VqtokError, "out of memory with 4 clips at "),
        (RuntimeError("why"), RuntimeError, "why"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_a_failure_is_that_of_its_batch_and_others_go_on(error, kind, message):
    tokenizer, clips = small_tokenizer("fsq", *PREDICTIVE), clips_of(SIZES["sizes"])
    clips[1][:] = 255  # the only one of its size: it is in batches of its own
    with tokenizer.batched(4):
        expected = [tokenizer.encode(clip) for clip in clips]
        Failing(tokenizer, error)
        results = in_threads(tokenizer, outcome(tokenizer.encode), clips)
    failed = results.pop(1)
    assert type(failed) is kind and str(failed).startswith(message)
    assert_equal(results, [expected[0], *expected[2:]])


def test_a_clip_that_is_damaged_in_the_middle_stops_nobody():
    tokenizer, clips = small_tokenizer("fsq", *PREDICTIVE), clips_of([(21, 32, 48)] * 3)

    def encode(clip):
        def chunks():
            yield from clip.split(4, dim=2)
            if clip is clips[1]:
                raise VqtokError("damaged")

        return torch.cat(list(tokenizer.encode_stream(chunks())), dim=1)

    with tokenizer.batched(4):
        expected = [tokenizer.encode(clip) for clip in clips]
        results = in_threads(tokenizer, outcome(encode), clips)
    assert isinstance(results[1], VqtokError)
    assert_equal(results[::2], expected[::2])


def test_nobody_waits_for_a_clip_that_does_not_come(monkeypatch):
    """Not even if calls wait for long: a clip that has ended is no company to wait for."""
    monkeypatch.setattr("vqtok.model.batching.PATIENCE", 20)
    tokenizer, clips = small_tokenizer("fsq", *PREDICTIVE), clips_of(SIZES["lengths"])
    with tokenizer.batched(8):
        results = in_threads(tokenizer, tokenizer.encode, clips)
    assert [len(indices[0]) for indices in results] == [11, 1, 3, 4]


def test_a_call_runs_without_a_clip_that_reads_for_long():
    tokenizer, (clip,) = small_tokenizer("fsq", *PREDICTIVE), clips_of(SIZES["one"])
    with tokenizer.batched(2), tokenizer.batcher.clip():  # this thread never calls
        (indices,) = in_threads(tokenizer, tokenizer.encode, [clip])
    assert indices.shape[1] == 9
