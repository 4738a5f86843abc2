"""The Python functions for files do what the commands do, bit for bit."""

import io
import re
from contextlib import chdir
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vqtok
from helpers import GOLDEN, ROOT
from helpers.command import works
from helpers.ffmpeg import probe
from helpers.tokenizers import save_staged_tokenizer, save_tokenizer, small_tokenizer
from vqtok.errors import UsageError, VqtokError
from vqtok.model.checkpoint import load_for_inference
from vqtok.pipeline import clip as clip_pipeline
from vqtok.pipeline.frame_rate import parse_frame_rate
from vqtok.tokens import tokens_to_bytes
from vqtok.video import open_video


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The path of a small tokenizer."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t.safetensors")


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """The path of a small tokenizer with two stages."""
    return save_staged_tokenizer(tmp_path_factory.mktemp("staged") / "t.safetensors")


@pytest.fixture
def clip(make_clip):
    return make_clip(frames=14, height=64, width=96, fps=25)


def frames_of(path):
    with open_video(path) as video:
        return [(frames, times) for frames, times in video.chunks(100)]


def test_the_defaults_are_those_of_the_command(clip):
    assert tokens_to_bytes(vqtok.encode_video(clip)) == works("encode", clip).stdout


@pytest.mark.parametrize(
    "options",
    [
        {"size": 32},
        {"fps": 29.97},
        {"fps": "10"},
        {"start": 0.1, "duration": 0.3},
        {"device": "cpu", "dtype": "float32"},
    ],
    ids=str,
)
def test_encode_video_gives_the_tokens_of_the_command(clip, tokenizer, options):
    tokens = vqtok.encode_video(clip, tokenizer=tokenizer, **options)
    arguments = [f"--{name}={value}" for name, value in options.items()]
    expected = works("encode", clip, "--tokenizer", tokenizer, *arguments).stdout
    assert tokens_to_bytes(tokens) == expected


@pytest.mark.parametrize(
    ("rate", "option"),
    [
        (vqtok.Rate(), ()),
        (vqtok.Rate(price=0.5), ("--lambda", 0.5)),
        (vqtok.Rate(tokens=0.6), ("--tokens", 0.6)),
        (vqtok.Rate(psnr=28), ("--psnr", 28)),
    ],
    ids=str,
)
def test_encode_video_at_a_rate_gives_the_tokens_of_the_command(clip, staged, rate, option):
    tokens = vqtok.encode_video(clip, tokenizer=staged, rate=rate)
    expected = works("encode", clip, "--tokenizer", staged, *option).stdout
    assert tokens_to_bytes(tokens) == expected
    assert (tokens.zero_code, tokens.rate) == (True, str(rate))


def test_a_rate_needs_a_tokenizer_with_a_zero_code(clip, tokenizer):
    assert not vqtok.encode_video(clip, tokenizer=tokenizer).zero_code
    with pytest.raises(UsageError, match="spends a token at every position"):
        vqtok.encode_video(clip, tokenizer=tokenizer, rate=vqtok.Rate(tokens=0.6))


def test_tokens_with_stages_make_a_video(clip, staged, tmp_path):
    tokens = vqtok.encode_video(clip, tokenizer=staged, rate=vqtok.Rate(tokens=0.6))
    made = vqtok.tokens_from_indices(
        np.asarray(tokens.indices), tokenizer=staged, frames=14, height=64, width=96
    )
    assert made.zero_code
    for name, each in (("a.mkv", tokens), ("b.mkv", made)):
        vqtok.decode_video(each, tmp_path / name, tokenizer=staged, codec="ffv1")
    [(frames, _)], [(expected, _)] = (frames_of(tmp_path / name) for name in ("b.mkv", "a.mkv"))
    assert np.array_equal(frames, expected) and frames.shape == (14, 64, 96, 3)
    loaded = load_for_inference(staged, "cpu", None)
    whole = loaded.decode(torch.from_numpy(tokens.indices.astype(np.int64))[None], 14)
    whole = whole[0].movedim(0, -1).mul(255).round().byte().numpy()
    assert np.abs(frames.astype(int) - whole).mean() < 2  # ffv1 stores 4:2:0 or 8-bit RGB


def test_encode_video_accepts_a_stream_and_a_loaded_tokenizer(clip, tokenizer):
    expected = tokens_to_bytes(vqtok.encode_video(clip, tokenizer=tokenizer))
    loaded = load_for_inference(tokenizer, "auto", None)
    for _ in range(2):  # no state is carried over from one clip to the next
        stream = io.BytesIO(clip.read_bytes())
        assert tokens_to_bytes(vqtok.encode_video(stream, tokenizer=loaded)) == expected


def test_decode_video_gives_the_frames_of_the_command(clip, tokenizer, tmp_path):
    path, options = tmp_path / "t.safetensors", ("--tokenizer", tokenizer, "--codec", "ffv1")
    tokens = vqtok.encode_video(clip, tokenizer=tokenizer)
    vqtok.write_tokens(path, tokens)
    works("decode", path, "-o", tmp_path / "command.mkv", *options)
    [(expected, expected_times)] = frames_of(tmp_path / "command.mkv")
    for source in (tokens, path, vqtok.read_tokens(path)):
        vqtok.decode_video(source, tmp_path / "a.mkv", tokenizer=tokenizer, codec="ffv1")
        [(frames, times)] = frames_of(tmp_path / "a.mkv")
        assert np.array_equal(frames, expected) and times == expected_times


def test_notes_of_the_command_are_warnings(tokenizer):
    with pytest.warns(UserWarning, match=r"alpha.webp: alpha channel dropped") as caught:
        vqtok.encode_video(GOLDEN / "stills" / "alpha.webp", tokenizer=tokenizer)
    assert caught[0].filename == __file__


def test_tokens_of_another_tokenizer_are_refused(clip, tokenizer, tmp_path):
    path, target = tmp_path / "t.safetensors", tmp_path / "a.mkv"
    vqtok.write_tokens(path, vqtok.encode_video(clip, tokenizer=tokenizer))
    with pytest.raises(VqtokError, match=f"{path}: these tokens were made by another tokenizer"):
        vqtok.decode_video(path, target)
    assert not target.exists()


INDICES = np.arange(3 * 8 * 12).reshape(3, 8, 12)


def test_the_documented_example_makes_a_playable_video(clip, tmp_path):
    page = (ROOT / "docs" / "token-format.md").read_text()
    generate, generate_without_vqtok = (
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "randint" in code
    )
    with chdir(tmp_path):
        exec(generate, {})
        works("decode", "generated.safetensors", "-o", "command.mp4", "--dtype=float32")
        vqtok.write_tokens("tokens.safetensors", vqtok.encode_video(clip))
        exec(generate_without_vqtok, {})
        works("decode", "generated.safetensors", "-o", "without_vqtok.mp4")
        names = "generated.mp4", "command.mp4", "without_vqtok.mp4"
        sizes = [(probe(name).height, probe(name).width) for name in names]
        seconds = [probe(name).seconds for name in names]
        files = [Path(name).read_bytes() for name in names]
    assert sizes == [(64, 96)] * 3
    assert seconds == [[Fraction(t, fps) for t in range(17)] for fps in (24, 24, 25)]
    assert files[0] == files[1]


def test_tokens_of_indices_cover_what_these_cover(tokenizer):
    tokens = vqtok.tokens_from_indices(INDICES, tokenizer=tokenizer, fps="30000/1001")
    assert (tokens.frames, tokens.height, tokens.width) == (9, 64, 96)
    assert (tokens.fps, tokens.time_base) == (Fraction(30000, 1001), Fraction(1001, 30000))
    assert list(tokens.timestamps) == list(range(9))
    size = {"frames": 6, "height": 61, "width": 90}
    tokens = vqtok.tokens_from_indices(INDICES, tokenizer=tokenizer, **size)
    assert {name: getattr(tokens, name) for name in size} == size
    assert tokens.fps == 25


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_indices_are_arrays_or_tensors_of_any_integer_dtype(tokenizer, dtype):
    indices = INDICES % 100
    expected = tokens_to_bytes(vqtok.tokens_from_indices(indices, tokenizer=tokenizer))
    tensor = torch.from_numpy(indices).to(getattr(torch, dtype))
    for typed in (indices.astype(dtype), tensor):
        tokens = vqtok.tokens_from_indices(typed, tokenizer=tokenizer)
        assert tokens_to_bytes(tokens) == expected


@pytest.mark.parametrize(
    ("indices", "options", "message"),
    [
        (INDICES[None], {}, r"shape \(t h w\), not \(1, 3, 8, 12\)"),
        (INDICES[:0], {}, r"shape \(t h w\), not \(0, 8, 12\)"),
        (INDICES / 1.0, {}, "float64, not integers"),
        (torch.from_numpy(INDICES).bfloat16(), {}, "must be integers, not torch.bfloat16"),
        (INDICES + 63999, {}, "the indices are 63,999 to 64,286, not in a codebook of 64,000"),
        (INDICES, {"frames": 10}, "do not fit 10 frames of 64x96"),
        (INDICES, {"height": 56}, "do not fit 9 frames of 56x96"),
        (INDICES, {"fps": 0}, "fps 0: must be a number"),
    ],
)
def test_indices_that_make_no_video_are_refused(tokenizer, indices, options, message):
    with pytest.raises(VqtokError, match=message):
        vqtok.tokens_from_indices(indices, tokenizer=tokenizer, **options)


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 8, 12, 3), (3, 8, 12, 1), (1, 3, 8, 12, 2)])
def test_indices_of_stages_have_an_axis_of_stages(staged, shape):
    tensor = torch.zeros(shape, dtype=torch.int64)
    for indices in (tensor, tensor.numpy()):
        with pytest.raises(UsageError, match=r"shape \(t h w 2\), not "):
            vqtok.tokens_from_indices(indices, tokenizer=staged)


def test_tokens_that_were_changed_are_checked_before_decoding(clip, tokenizer, tmp_path):
    tokens = vqtok.encode_video(clip, tokenizer=tokenizer)
    for changes, message in (
        ({"indices": np.asarray(tokens.indices, np.int64) - 70_000}, "not in a codebook of 64,000"),
        ({"indices": torch.zeros(5, 8, 12)}, "are Tensor, not a NumPy array"),
        ({"frames": 40}, "do not fit 40 frames"),
    ):
        changed = replace(tokens, **changes)
        with pytest.raises(VqtokError, match=f"the tokens are not valid: .*{message}"):
            vqtok.decode_video(changed, tmp_path / "a.mp4", tokenizer=tokenizer)


def test_a_tokenizer_in_memory_decodes_its_own_tokens_but_names_no_file(clip, tmp_path):
    tokenizer = small_tokenizer()
    tokens = vqtok.encode_video(clip, tokenizer=tokenizer)
    vqtok.decode_video(tokens, tmp_path / "a.mp4", tokenizer=tokenizer)
    with pytest.raises(VqtokError, match="their tokenizer was not loaded from a file"):
        vqtok.write_tokens(tmp_path / "a.safetensors", tokens)


TIMES_OUT_OF_RANGE = (-1, 1e18, float("nan"), float("inf"))


@pytest.mark.parametrize(
    "options",
    [
        *({"fps": 0}, {"dtype": "float16"}, {"device": "tpu"}, {"size": 0}, {"size": 2**40}),
        *({name: value} for name in ("start", "duration") for value in TIMES_OUT_OF_RANGE),
    ],
    ids=str,
)
def test_wrong_options_are_refused(clip, tokenizer, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        vqtok.encode_video(clip, tokenizer=tokenizer, **options)


@pytest.mark.parametrize("value", ["fast", "1/0", "0", "-5", 1001, float("nan"), float("inf")])
def test_invalid_frame_rates_are_refused(value):
    with pytest.raises(UsageError, match="must be a number up to 1000"):
        parse_frame_rate(value)


def test_every_public_name_can_be_imported():
    assert all(getattr(vqtok, name) is not None for name in vqtok.__all__)
    with pytest.raises(AttributeError, match="no attribute 'encode_movie'"):
        _ = vqtok.encode_movie


def test_output_options_are_checked(clip, tokenizer, tmp_path):
    tokens = vqtok.encode_video(clip, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="crf 99: must be 0 to 63"):
        vqtok.decode_video(tokens, tmp_path / "a.mp4", tokenizer=tokenizer, crf=99)
    with pytest.raises(UsageError, match="no such folder"):
        vqtok.decode_video(tokens, tmp_path / "none" / "a.mp4", tokenizer=tokenizer)


def test_completion_in_python_lists_the_public_names():
    assert set(vqtok.__all__) <= set(dir(vqtok))


def test_in_batches_the_last_chunk_has_the_shape_of_the_others():
    tokens = SimpleNamespace(indices=np.arange(5, dtype=np.uint16)[:, None, None])
    for pad, last in (False, [4]), (True, [4, 4]):
        chunks = [chunk.flatten().tolist() for chunk in clip_pipeline._index_chunks(tokens, 2, pad)]
        assert chunks == [[0, 1], [2, 3], last]
