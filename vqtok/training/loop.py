"""The training loop."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor

from vqtok import distributed
from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_METRICS, RUN_SAMPLES, RUN_STATE, RUN_TOKENIZER
from vqtok.interrupt import Interrupted, defer_interrupt
from vqtok.metric_rows import Row
from vqtok.model import checkpoint
from vqtok.precision import set_global_flags
from vqtok.settings import TrainSettings
from vqtok.training.clips import TrainingClips
from vqtok.training.discriminator import MIN_SIZE
from vqtok.training.loader import default_workers, load_batches
from vqtok.training.log import Logger, MetricAverager, jsonl_logger, tensorboard_logger
from vqtok.training.runs import Run
from vqtok.training.step import train_step
from vqtok.training.train_state import TrainState
from vqtok.training.validation import validate

LOG_EVERY = 10  # steps
MAX_PIXELS = 2**32  # of all clips of a step: 12 GiB before the model has seen them


def train(
    run: Run,
    clips: TrainingClips,
    device: torch.device,
    show: Logger,
    last_step: int | None = None,
) -> None:
    """Train a run, from its last save if there is one, up to `last_step` (default: `train.steps`).

    Writes the files of the run folder and passes each row of metrics.jsonl to `show`. On a CPU, a
    run that was stopped and resumed equals an uninterrupted one to the last bit. Ctrl-C and SIGTERM
    save after the current step. Under `torchrun`, each rank works on its share of every batch, and
    rank 0 writes.

    Raises VqtokError if the data or the saved state cannot be read, or if the loss is not finite;
    the last save remains.
    """
    settings = run.settings.train
    last_step = last_step or settings.steps
    check_settings(settings, last_step)
    set_global_flags()
    with clips.shared() if default_workers(device) else nullcontext():
        state = load_or_init(run, clips, device)
        if state.step >= last_step:
            raise UsageError(
                f"{run.folder} has done {state.step} steps already: ask for more with --steps"
            )
        with distributed.process_group(device), defer_interrupt() as interrupted:
            distributed.broadcast_module(state.tokenizer)
            logger = make_logger(run, state.step, show) if distributed.rank() == 0 else None
            run_steps(run, clips, state, last_step, logger, interrupted)


def run_steps(
    run: Run,
    clips: TrainingClips,
    state: TrainState,
    last_step: int,
    logger: Logger | None,
    interrupted: Callable[[], signal.Signals | None],
) -> None:
    """Train until `last_step` or an interrupt; `logger` is None on all ranks but the first.

    Raises Interrupted after an interrupt, once the state is saved.
    """
    settings, device = run.settings.train, state.tokenizer.device
    averager = MetricAverager(state.tokenizer.codebook_size, state.tokenizer.zero_code)
    share = distributed.rank(), distributed.world_size()
    with load_batches(clips, state.step, device, default_workers(device), *share) as batches:
        while state.step < last_step:
            start = time.perf_counter()
            video = next(batches)
            data_wait = time.perf_counter() - start

            metrics, indices = train_step(state, video, settings)
            averager.update(metrics, distributed.all_gather(indices.flatten()), data_wait)

            stop = distributed.any_rank(interrupted() is not None)
            save_now = stop or state.step == last_step or is_due(state.step, settings.save_every)
            validate_now = is_due(state.step, settings.validate_every)
            if save_now or validate_now or is_due(state.step, LOG_EVERY):
                check_loss(metrics["loss"], state.step)
                row = averager.row(state.step) | clips.metrics
                if logger and validate_now:
                    image_path = run.folder / RUN_SAMPLES / f"step-{state.step}.png"
                    row |= validate(state.ema_model, clips, settings, image_path)
                if logger:
                    logger(row)
                averager.reset()
            if logger and save_now:
                path = run.folder / RUN_TOKENIZER
                checkpoint.save(path, state.ema_model, run.settings, state.step)
                state.save(run.folder / RUN_STATE)
            if stop:
                raise Interrupted(interrupted() or signal.SIGINT)


def is_due(step: int, every: int) -> bool:
    """Return whether an action with a period of `every` steps (0: never) is due."""
    return every > 0 and step % every == 0


def load_or_init(run: Run, clips: TrainingClips, device: torch.device) -> TrainState:
    """Return the saved state of a run; of a new run, a state with initial weights."""
    settings = run.settings.train
    state = TrainState.new(run.settings, device)
    if (run.folder / RUN_STATE).exists():
        state.load(run.folder / RUN_STATE)
    elif settings.init_from:
        state.init_from(checkpoint.load(settings.init_from))
    else:
        # Before the process group exists: every rank computes the same weights on its own.
        steps = math.ceil(settings.init_clips / settings.batch_size)
        with load_batches(clips, 0, torch.device("cpu"), default_workers(device)) as batches:
            video = torch.cat(list(islice(batches, steps)))
        if settings.init_networks_from:
            state.init_networks_from(checkpoint.load(settings.init_networks_from), video)
        else:
            state.init_from_data(video)
    return state


def check_settings(settings: TrainSettings, last_step: int) -> None:
    """Raise UsageError for settings that do not go together."""
    if settings.init_from and settings.init_networks_from:
        raise UsageError("choose one of train.init_from and train.init_networks_from")
    if last_step > settings.steps:
        raise UsageError(
            f"--steps {last_step} is beyond train.steps={settings.steps}, where the learning rate "
            "reaches zero: start a run with more train.steps"
        )
    if settings.batch_size * settings.frames * settings.crop**2 > MAX_PIXELS:
        raise UsageError(
            f"a step of {settings.batch_size} clips of {settings.frames} frames of "
            f"{settings.crop}x{settings.crop} has more than {MAX_PIXELS:,} pixels: lower "
            "train.batch_size, train.frames or train.crop"
        )
    processes = distributed.world_size()
    if settings.batch_size % (settings.accumulate * processes):
        raise UsageError(
            f"train.batch_size={settings.batch_size} does not split evenly into "
            f"train.accumulate={settings.accumulate} parts"
            + (f" in each of {processes} processes" if processes > 1 else "")
        )
    if settings.adversarial_weight and settings.crop < MIN_SIZE:
        raise UsageError(
            f"train.crop={settings.crop} is too small for train.adversarial_weight: make it "
            f"{MIN_SIZE} at least"
        )


def check_loss(loss: Tensor, step: int) -> None:
    """Raise VqtokError if the loss is not finite: training cannot recover from that."""
    if not loss.isfinite():
        raise VqtokError(
            f"the loss is not finite at step {step}: start a new run with a lower "
            "train.learning_rate"
        )


def make_logger(run: Run, first_step: int, show: Logger) -> Logger:
    """Create the run folder; return a logger that passes rows to its files and to `show`.

    first_step: steps that the run has done.
    """
    loggers = []
    if run.settings.train.tensorboard:
        loggers.append(tensorboard_logger(run.folder / "tensorboard", first_step))
    run.save()
    loggers += [jsonl_logger(run.folder / RUN_METRICS, first_step), show]

    def log(row: Row) -> None:
        for logger in loggers:
            logger(row)

    return log
