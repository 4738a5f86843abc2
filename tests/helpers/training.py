"""Small training runs."""

import json

import torch
from safetensors.torch import load_file

from vqtok import config
from vqtok.files import RUN_METRICS
from vqtok.training import train
from vqtok.training.runs import DataPaths, Run

CPU = torch.device("cpu")
TINY = [
    "model.widths=[8, 16]",
    "model.encoder_blocks=[1, 1]",
    "model.decoder_blocks=[1, 1]",
    "model.predictor_blocks=0",
    "model.intra_share=0",
    "train.batch_size=2",
    "train.accumulate=2",
    "train.frames=5",
    "train.crop=32",
    "train.init_clips=8",
    "train.warmup=5",
    "train.dtype=float32",
    "train.save_every=10",
]


def settings(kind="fsq", *overrides):
    small = [] if kind in ("fsq", "lfq") else ["quantizer.codebook_size=64"]
    return config.load(config.folder() / f"{kind}.toml", [*TINY, *small, *overrides])


def make_run(folder, kind="fsq", *overrides, **data):
    """A run that is not started; `data` are the fields of DataPaths."""
    return Run(folder, settings(kind, *overrides), DataPaths(**data))


def train_run(run, last_step=None):
    """Train a run on the CPU; return the rows that were shown."""
    rows = []
    train(run, run.open_clips(), CPU, rows.append, last_step)
    return rows


def read_metrics(folder):
    return [json.loads(line) for line in (folder / RUN_METRICS).read_text().splitlines()]


def same_tensors(path, other):
    """Whether two safetensors files have the same tensors, to the last bit."""
    tensors, others = load_file(path), load_file(other)
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[key], others[key]) for key in tensors
    )
