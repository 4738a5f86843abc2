"""The Python functions for files do what the commands do, bit for bit."""

import io

import numpy as np
import pytest

import vqtok
from helpers import GOLDEN
from helpers.command import works
from helpers.tokenizers import save_tokenizer
from vqtok.errors import UsageError, VqtokError
from vqtok.model.checkpoint import load_for_inference
from vqtok.pipeline.frame_rate import parse_frame_rate
from vqtok.tokens import tokens_to_bytes
from vqtok.video import open_video


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The path of a small tokenizer."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t.safetensors")


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


@pytest.mark.parametrize(
    "options",
    [{"fps": 0}, {"dtype": "float16"}, {"device": "tpu"}, {"size": 0}, {"start": -1}],
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
