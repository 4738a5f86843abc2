"""Small tokenizers with random weights."""

from vqtok import config
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer

SMALL = ["model.widths=[8,16]", "model.encoder_blocks=[1,1]", "model.decoder_blocks=[1,1]"]


def save_tokenizer(path, kind="fsq"):
    """Write a tokenizer that was never trained, and return its path."""
    settings = config.load(config.folder() / f"{kind}.toml", SMALL)
    checkpoint.save(path, Tokenizer(settings.model, settings.quantizer), settings, 1)
    return path
