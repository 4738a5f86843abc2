"""The training loop, as straight code: a step, a row of the log, a save."""

import time
from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from torch import Tensor

from vqtok import distributed
from vqtok.config import TrainSettings
from vqtok.errors import UsageError, VqtokError
from vqtok.interrupt import defer_sigint
from vqtok.model import checkpoint
from vqtok.pipeline.overlap import prefetch
from vqtok.precision import set_global_flags
from vqtok.training import log
from vqtok.training.data import Clips, Procedural
from vqtok.training.discriminator import SMALLEST
from vqtok.training.runs import STATE, TOKENIZER, Run
from vqtok.training.state import State
from vqtok.training.step import train_step
from vqtok.training.validation import validate

LOG_EVERY = 10  # steps


def train(
    run: Run,
    clips: Clips | Procedural,
    device: torch.device,
    show: log.Write,
    until: int | None = None,
) -> None:
    """Train a run from its last save, or from the start, up to step `until` (or `train.steps`).

    Leaves in its folder `tokenizer.safetensors`, `metrics.jsonl` (a line every 10 steps, also given
    to `show`), `samples/` and `resume.safetensors`. On a CPU, a run that was stopped and resumed
    equals one that was not to the last bit. Ctrl-C saves after the step in hand. Under `torchrun`,
    each process works on its share of every batch, and rank 0 writes.

    Raises VqtokError when the training data or the saved state cannot be read, or when the loss is
    no longer a number; the last save then stands.
    """
    settings = run.settings.train
    steps = until or settings.steps
    if steps > settings.steps:
        raise UsageError(
            f"--steps {steps} lies beyond train.steps={settings.steps}, where the learning rate is "
            "zero: make a run of more steps"
        )
    check_batch(settings)
    set_global_flags()
    state = State.new(run.settings, device)
    if (run.folder / STATE).exists():
        state.restore(run.folder / STATE)
    if state.step >= steps:
        raise UsageError(
            f"{run.folder} has done {state.step} steps already: ask for more with --steps"
        )
    if state.step == 0 and settings.init_from:
        state.adopt(checkpoint.load(settings.init_from))
    elif state.step == 0:  # before the ranks join: each does the same, with no word from the others
        batches = range(-(-settings.init_clips // settings.batch_size))
        state.start(torch.cat([clips.batch(step) for step in batches]))
    with distributed.process_group(device), defer_sigint() as stopped:
        distributed.broadcast_module(state.tokenizer)
        write = opened(run, state.step, show) if distributed.rank() == 0 else None
        walk(run, clips, state, steps, write, stopped)


def walk(
    run: Run,
    clips: Clips | Procedural,
    state: State,
    steps: int,
    write: log.Write | None,
    stopped: Callable[[], bool],
) -> None:
    """Go on to step `steps`, or until stopped; `write` is None in all ranks but the first."""
    settings, device = run.settings.train, state.tokenizer.device
    recent = log.MetricAverager(state.tokenizer.codebook_size)
    batch = partial(clips.batch, rank=distributed.rank(), ranks=distributed.world_size())
    with prefetch(map(batch, count(state.step))) as batches:
        while state.step < steps:
            before = time.perf_counter()
            video = next(batches).to(device)
            waited = time.perf_counter() - before
            values, indices = train_step(state, video, settings)
            state.stepped(settings.ema_decay)
            recent.add(values, distributed.all_gather(indices.flatten()), waited)
            stop = distributed.any_rank(
                stopped()
            )  # a Ctrl-C after this waits for the next step's save
            saving = stop or state.step == steps or state.step % settings.save_every == 0
            validating = settings.validate_every and state.step % settings.validate_every == 0
            if saving or validating or state.step % LOG_EVERY == 0:
                check_loss(values["loss"], state.step)
                row = recent.row(state.step) | clips.figures
                if write and validating:
                    picture = run.folder / "samples" / f"step-{state.step}.png"
                    row |= validate(state.average, clips, settings, picture)
                if write:
                    write(row)
                recent.restart()
            if write and saving:
                checkpoint.save(run.folder / TOKENIZER, state.average, run.settings, state.step)
                state.save(run.folder / STATE)
            if stop:
                raise KeyboardInterrupt


def check_batch(settings: TrainSettings) -> None:
    """UsageError if a batch does not split evenly, or its clips are too small for an adversary."""
    if settings.batch_size % (settings.accumulate * distributed.world_size()):
        processes = (
            f" in each of {distributed.world_size()} processes"
            if distributed.world_size() > 1
            else ""
        )
        raise UsageError(
            f"train.batch_size={settings.batch_size} does not split evenly into "
            f"train.accumulate={settings.accumulate} parts{processes}"
        )
    if settings.adversarial_weight and settings.crop < SMALLEST:
        raise UsageError(
            f"train.crop={settings.crop} is too small for train.adversarial_weight: make it "
            f"{SMALLEST} at least"
        )


def check_loss(loss: Tensor, step: int) -> None:
    """VqtokError if the loss is no number; weights that gave none never give one again."""
    if not loss.isfinite():
        raise VqtokError(
            f"the loss is no longer a number at step {step}: go on from the last save with a lower "
            "train.learning_rate"
        )


def opened(run: Run, first: int, show: log.Write) -> log.Write:
    """Make the folder of a run that has done `first` steps; what writes a row wherever it goes."""
    board = run.settings.train.tensorboard
    writers = [log.tensorboard(run.folder / "tensorboard", first)] if board else []
    run.write()
    writers += [log.lines(run.folder / "metrics.jsonl", first), show]

    def write(row: log.Row) -> None:
        for writer in writers:
            writer(row)

    return write
