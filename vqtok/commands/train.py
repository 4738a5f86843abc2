"""What `train` does beside training: it says how it goes."""

import torch

from vqtok import distributed
from vqtok.commands.progress import console, say
from vqtok.report import TrainingView
from vqtok.training.loop import train
from vqtok.training.runs import TOKENIZER, Run


def train_and_show(run: Run, device: torch.device, until: int | None, quiet: bool) -> None:
    """Train up to step `until` (or `train.steps`), with a live view and words on stderr."""
    quiet = quiet or distributed.rank() > 0
    if not run.sources:
        made_up = "moving patterns made up on the spot, good for a trial only"
        say(quiet, f"no --data: training on {made_up}")
    clips, view = run.clips(), TrainingView(console(quiet), run.settings.train)
    try:
        with view.open(until or run.settings.train.steps):
            train(run, clips, distributed.local_device(device), view.show, until)
    finally:
        say(quiet, *(f"left out: {reason}" for reason in clips.broken.values()))
    say(quiet, f"{run.folder / TOKENIZER} is ready: use it with --tokenizer")
