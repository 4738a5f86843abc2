"""The inputs that cases start from: files of the tests, and small ones written here."""

import io
import tempfile
from functools import cache
from pathlib import Path

import torch
from fuzzing.clips import sound_files, video_files

from vqtok import config, encode_video, load, write_tokens
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer

TESTS = Path(__file__).parents[2] / "tests"

Files = tuple[tuple[str, bytes], ...]  # (name, contents)


def read_files(pattern: str) -> Files:
    """Return the files of the tests that match."""
    return tuple((path.name, path.read_bytes()) for path in sorted(TESTS.glob(pattern)))


@cache
def videos() -> Files:
    real = [read_files(f"{folder}/*.*") for folder in ("clips/dev", "clips/bad", "golden/stills")]
    return (*video_files(), *sum(real, ()))


@cache
def sounds() -> Files:
    """Return sounds, and clips with sound."""
    with_sound = ("bbb_480p_cut", "driving_small", "flower_vp8_audio_cut", "phone_rotated_cut")
    real = [read_files(f"clips/dev/{name}.*") for name in with_sound]
    return (*sound_files(), *sum(real, ()))


@cache
def tokenizers() -> Files:
    return read_files("golden/tokenizers/v*.safetensors")


@cache
def tokenizer() -> bytes:
    """Return the file of a small tokenizer with stages, which has a zero code and so rates."""
    small = ("model.widths=[4, 8]", "model.encoder_blocks=[0, 0]", "model.decoder_blocks=[0, 0]")
    staged = ("quantizer.codebook_size=16", "quantizer.stages=2", "model.predictor_blocks=1")
    settings = config.load(config.folder() / "ema.toml", [*small, *staged])
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.safetensors")
        checkpoint.save(path, Tokenizer(settings.model, settings.quantizer), settings, step=1)
        return path.read_bytes()


@cache
def tokens() -> Files:
    """Return token files: of `tokenizer()`, most often, and of others."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path, clip = Path(folder, "tokenizer.safetensors"), io.BytesIO(dict(videos())["clip.mp4"])
        path.write_bytes(tokenizer())
        write_tokens(buffer, encode_video(clip, tokenizer=load(path)))
    own = ("tokens.safetensors", buffer.getvalue())
    return (*[own] * 6, *read_files("golden/tokens-*.safetensors"))


@cache
def run_folder() -> Files:
    """Return the files of a training run that stopped after a step."""
    from typer.testing import CliRunner

    from vqtok.cli import app

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        CliRunner().invoke(app, ["train", *TRAINING, "--steps", "1", "--out", str(out), "--quiet"])
        files = sorted(path for path in out.rglob("*") if path.is_file())
        return tuple((str(path.relative_to(folder)), path.read_bytes()) for path in files)


# Options of `train` that make a step fast.
TRAINING = (
    *("--quantizer=fsq", "--device=cpu", "--set=model.widths=[4, 8]"),
    *("--set=model.encoder_blocks=[0, 0]", "--set=model.decoder_blocks=[0, 0]"),
    *("--set=train.batch_size=1", "--set=train.frames=5", "--set=train.crop=16"),
    *("--set=train.init_clips=1", "--set=train.dtype=float32", "--set=train.steps=4"),
    *("--set=train.validate_every=0", "--set=train.warmup=1"),
)


def prepare() -> None:
    """Build everything once, with one thread: a fork of a process with more hangs."""
    torch.set_num_threads(1)
    for build in (videos, sounds, tokenizer, tokenizers, tokens, run_folder):
        build()
