"""Small tokenizers with random weights, and random video for them."""

import torch
from torch import nn

from helpers.clips import pattern
from vqtok import config
from vqtok.model import checkpoint
from vqtok.model.initialization import init_from_data
from vqtok.model.tokenizer import Tokenizer

SMALL = ["model.widths=[8, 16]", "model.encoder_blocks=[1, 1]", "model.decoder_blocks=[1, 1]"]
STAGED = ["quantizer.codebook_size=64", "quantizer.stages=2", "model.keyframe_interval=3"]


def small_settings(kind, *overrides):
    """Return the settings of a small tokenizer with the codebook of configs/<kind>.toml."""
    return config.load(config.folder() / f"{kind}.toml", [*SMALL, *overrides])


def small_tokenizer(kind="fsq", *overrides, seed=0):
    """Return a small tokenizer in eval mode whose residual blocks are not the identity."""
    torch.manual_seed(seed)
    settings = small_settings(kind, *overrides)
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    randomize(tokenizer)
    return tokenizer.eval()


def save_tokenizer(path, kind="fsq"):
    """Write a small tokenizer that was never trained, and return its path."""
    settings = small_settings(kind)
    checkpoint.save(path, Tokenizer(settings.model, settings.quantizer), settings, step=1)
    return path


def save_staged_tokenizer(path, *overrides):
    """Write a small tokenizer with stages that codes `clips.pattern` well; return its path."""
    torch.manual_seed(0)
    settings = small_settings("ema", *STAGED, *overrides)
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    init_from_data(tokenizer, torch.from_numpy(pattern(17)).movedim(-1, 0)[None])
    checkpoint.save(path, tokenizer, settings, step=1)
    return path


def randomize(module):
    """Replace the weights, some of which are initialized to zero, by random ones."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)


def random_video(frames, height=32, width=48, seed=0, dtype=torch.float32):
    """Return (1 3 t h w) in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, height, width, generator=generator, dtype=dtype)
