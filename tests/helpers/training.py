"""Settings for training runs that take seconds."""

from vqtok import config

TINY = [
    "model.widths=[8, 16]",
    "model.encoder_blocks=[1, 1]",
    "model.decoder_blocks=[1, 1]",
    "train.batch_size=2",
    "train.accumulate=2",
    "train.frames=5",
    "train.crop=32",
    "train.warmup=5",
    "train.dtype=float32",
    "train.save_every=10",
]


def settings(kind="fsq", *overrides):
    small = [] if kind in ("fsq", "lfq") else ["quantizer.codebook_size=64"]
    return config.load(config.folder() / f"{kind}.toml", [*TINY, *small, *overrides])
