"""`vqtok train`: a new or resumed run, with a live view."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vqtok import distributed, hub
from vqtok.commands.progress import console, say
from vqtok.device import find_device
from vqtok.errors import VqtokError, is_out_of_memory
from vqtok.files import MEDIA_SUFFIXES, RUN_STATE, RUN_TOKENIZER, list_files
from vqtok.model import checkpoint
from vqtok.report import TrainingView
from vqtok.targets import check_apart, check_writable_folder
from vqtok.training import train
from vqtok.training.runs import RUNS, DataPaths, Run, create, reopen
from vqtok.training.validation import compare_with_blocks


@dataclass(frozen=True)
class TrainOptions:
    """Options of `vqtok train`.

    sources, validation, cache: see `DataPaths`.
    resume: folder of a run to resume; `quantizer`, `config`, `overrides` and `out` are for new
        runs.
    last_step: where to stop; None: at `train.steps`.
    """

    sources: Sequence[Path]
    validation: Sequence[Path]
    cache: Path | None
    quantizer: str | None
    config: Path | None
    overrides: Sequence[str]
    out: Path | None
    resume: Path | None
    last_step: int | None
    device: str
    quiet: bool


def run_training(options: TrainOptions) -> None:
    """Train a new or a resumed run, with a live view and messages on stderr."""
    device = distributed.local_device(find_device(options.device))
    run = _open_run(options)
    try:
        _train(run, device, options)
    finally:
        run.release()


def _train(run: Run, device: torch.device, options: TrainOptions) -> None:
    settings = run.settings.train
    quiet = options.quiet or distributed.rank() > 0
    if not run.data.sources:
        say(quiet, "no --data: training on synthetic clips, which is only useful as a trial")
    found = list_files([*run.data.sources, *run.data.validation], MEDIA_SUFFIXES)
    say(quiet, *found.notes)
    for source in (settings.init_from, settings.init_networks_from):
        if source is not None and not (run.folder / RUN_STATE).exists():
            hub.pin(source, quiet)  # shows its progress here, as the view is not open yet
    clips, view = run.open_clips(), TrainingView(console(quiet), settings)
    try:
        with view.open(options.last_step or settings.steps), _out_of_memory():
            train(run, clips, device, view.show, options.last_step)
    finally:
        say(quiet, *(f"skipped: {reason}" for _, reason in sorted(clips.unreadable.items())))
    path = run.folder / RUN_TOKENIZER
    say(quiet, f"{path} is ready: use it with --tokenizer")
    if not quiet and (warning := compare_with_blocks(checkpoint.load(path).to(device), clips)):
        say(quiet, f"{path}: {warning}")


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Raise VqtokError, with the settings that need less memory, if the block runs out of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise VqtokError(
            "out of memory: start a run with a lower train.batch_size, train.crop, train.frames or "
            "train.init_clips, or a higher train.accumulate"
        ) from None


def _open_run(options: TrainOptions) -> Run:
    data = DataPaths(options.sources, options.validation, options.cache)
    _check_folders(options)
    if options.resume is not None:
        return reopen(options.resume, data)
    return create(options.out, options.quantizer, options.config, options.overrides, data)


def _check_folders(options: TrainOptions) -> None:
    """Raise UsageError if the run or its cache would lie among the data, or could not be saved."""
    sources, cache = [*options.sources, *options.validation], options.cache
    out = options.resume or options.out or RUNS
    check_writable_folder(out)
    if options.resume is None:
        check_apart(out, sources, rereads=True)  # samples are images
    if cache is not None:
        check_writable_folder(cache)
        check_apart(cache, [*sources, out])
