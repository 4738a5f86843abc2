"""Process many files: plan the outputs, run several jobs at once, list the failures."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from vqtok.commands.journal import MAX_KILLS, Journal, shard_name
from vqtok.commands.progress import Cancelled, ProgressBars, ProgressTask
from vqtok.commands.run_options import RunOptions
from vqtok.device import free_memory
from vqtok.errors import (
    INTERRUPTS,
    MAX_REASONS,
    UsageError,
    VqtokError,
    describe_failure,
    is_device_failure,
    join_reasons,
)
from vqtok.files import FileList, exists, printable, real_path
from vqtok.model.batching import batch_rows
from vqtok.model.tokenizer import Tokenizer
from vqtok.targets import check_targets, check_writable, tokenizer_file

FAILURES = "failures"
GRACE = 10  # seconds that jobs in progress have to stop: one may be blocked in a read


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to make from it."""

    source: Path
    target: Path


# Does a job and returns the notes to print about it.
Work = Callable[[Job, Tokenizer, ProgressTask], Sequence[str]]


def plan_jobs(
    found: FileList,
    folder: Path,
    rename: Callable[[str], str],
    tokenizer: str,
    journal: Journal | None = None,
) -> list[Job]:
    """Return the jobs for the files that were found.

    The tree below each source folder is mirrored in `folder`.

    rename: returns the file name of a target, given that of its source.
    tokenizer: another file to read.
    journal: leaves out the jobs of other shards, and those that it knows to be finished.
    Raises UsageError if there are no files, if two of them would have the same target, or if a
    target is one of the files to read.
    """
    jobs: dict[Path, Path] = {}  # target: source
    for root, source in found.files:
        target = folder / source.relative_to(root).with_name(rename(source.name))
        other = jobs.setdefault(target, source)
        if other != source and real_path(other) != real_path(source):
            raise UsageError(f"{other} and {source} would both be written to {target}")
    if not jobs:
        raise UsageError(f"no files to process in {', '.join(map(str, found.sources))}")
    targets = sorted(jobs)
    shard = (0, 1) if journal is None else journal.shard
    if journal is not None:
        targets = [t for t in targets[shard[0] :: shard[1]] if not journal.is_finished(t)]
    failures = folder / shard_name(FAILURES, shard)
    check_targets([*targets, failures], [*jobs.values(), tokenizer_file(tokenizer)])
    if failures.is_dir():
        raise UsageError(f"{failures} is a folder, where failures are listed: move it")
    return [Job(jobs[target], target) for target in targets]


def split_existing(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Return the jobs whose targets do not exist, and those whose targets do."""
    existing = [job for job in jobs if exists(job.target)]
    done = set(existing)
    return [job for job in jobs if job not in done], existing


class FailureLog:
    """A file with a line of JSON for each job that failed; there is none before the first.

    Each line is written at once, so that it is there even if the run does not reach its end. What
    cannot be written, as on a full disk, is written with the next line.

    count: number of failures. reasons: of the first of them.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock, self._pending = path, Lock(), b""
        self.count, self.reasons = 0, list[str]()
        path.unlink(missing_ok=True)

    @contextmanager
    def watch(self, job: Job) -> Iterator[None]:
        """Add the failure of a job if the block raises anything. Thread-safe.

        What ends a command is raised: an interrupt, and a failure of the GPU, after which no job
        could be done.
        """
        try:
            yield
        except (Cancelled, *INTERRUPTS):
            raise
        except BaseException as error:
            if is_device_failure(error):
                raise
            self._add(job, type(error).__name__, describe_failure(error, job.source))

    def _add(self, job: Job, kind: str, reason: str) -> None:
        failure = {"source": job.source, "kind": kind, "reason": reason}
        line = json.dumps({key: printable(value) for key, value in failure.items()}) + "\n"
        with self._lock:
            self.count += 1
            self.reasons += [reason] * (len(self.reasons) < MAX_REASONS)
            self._pending += line.encode()
            with suppress(OSError), self.path.open("ab", buffering=0) as file:
                self._pending = self._pending[file.write(self._pending) :]


def run_batch(
    label: str,
    jobs: Sequence[Job],
    journal: Journal,
    run: RunOptions,
    work: Work,
) -> None:
    """Run the jobs, `run.jobs` at a time, with one tokenizer. On a GPU, they share batches.

    A job that fails, for whatever reason, does not stop the others: failures.jsonl in the folder
    of the journal lists it with the reason. One that may have killed the process before runs after
    the others, and alone.

    label: text of the progress bar.
    Raises VqtokError at the end if any job failed.
    """
    tokenizer = run.load_tokenizer() if jobs else None
    folder = journal.folder
    folder.mkdir(parents=True, exist_ok=True)
    failures = FailureLog(folder / shard_name(FAILURES, journal.shard))
    if tokenizer is None:
        run.say("nothing to do: all files exist")
        return

    def run_job(job: Job) -> None:
        done = False
        with failures.watch(job), tokenizer.batcher.clip():
            journal.check(job.source, job.target)
            job.target.parent.mkdir(parents=True, exist_ok=True)
            check_writable(job.target)
            with bars.task(job.source.name) as task, journal.record(job.target):
                notes = work(job, tokenizer, task)
            bars.say(*(f"{job.source}: {note}" for note in notes))
            done = True
        if not done:
            free_memory(tokenizer.device)
        batch.advance()

    others, suspects = _split_suspects(jobs, journal)
    with (
        journal,
        tokenizer.batched(batch_rows(tokenizer.device, run.jobs)),
        ProgressBars(run.quiet) as bars,
        bars.task(label, len(jobs)) as batch,
    ):
        _run_all(others, run_job, run.jobs, bars)
        _run_all(suspects, run_job, 1, bars)
    if failures.count:
        reasons = join_reasons(failures.reasons, failures.count)
        count = f"{failures.count} of {len(jobs)} files failed"
        raise VqtokError(f"{count}, see {failures.path}: {reasons}")
    run.say(f"{folder}: {len(jobs)} file{'s' * (len(jobs) != 1)} written")


def _split_suspects(jobs: Sequence[Job], journal: Journal) -> tuple[list[Job], list[Job]]:
    """Return the jobs that cannot have killed the process, and those that can, likeliest last.

    Those that are given up are among the first: they fail at once.
    """
    suspects = [job for job in jobs if 0 < journal.kills(job.target) < MAX_KILLS]
    suspects.sort(key=lambda job: journal.kills(job.target))
    apart = set(suspects)
    return [job for job in jobs if job not in apart], suspects


def _run_all(
    jobs: Sequence[Job], run_job: Callable[[Job], None], workers: int, bars: ProgressBars
) -> None:
    """Run the jobs in threads; if one raises anything, stop the others and raise it."""

    def run(job: Job) -> None:
        try:
            run_job(job)
        except BaseException:
            bars.cancel()  # at once: this thread must not begin another job
            raise

    pool = ThreadPoolExecutor(workers)
    futures = [pool.submit(run, job) for job in jobs]
    try:
        for future in as_completed(futures):
            if not isinstance(future.exception(), Cancelled):  # the error behind it comes, too
                future.result()
    except BaseException:  # Ctrl-C included: jobs in progress must stop
        bars.cancel()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], GRACE)
        raise
