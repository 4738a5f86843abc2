"""Process many files: plan the outputs, run several jobs at once, list the failures."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from vqtok.commands.progress import ProgressBars, ProgressTask
from vqtok.commands.run_options import RunOptions
from vqtok.errors import UsageError, VqtokError, describe_failure
from vqtok.files import FileList, exists, printable
from vqtok.model.tokenizer import Tokenizer

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to make from it."""

    source: Path
    target: Path


# Does a job and returns the notes to print about it.
Work = Callable[[Job, Tokenizer, ProgressTask], Sequence[str]]


def plan_jobs(found: FileList, folder: Path, rename: Callable[[str], str]) -> list[Job]:
    """Return the jobs for the files that were found.

    The tree below each source folder is mirrored in `folder`.

    rename: returns the file name of a target, given that of its source.
    Raises UsageError if there are no files, or if two of them would have the same target.
    """
    jobs: dict[Path, Path] = {}  # target: source
    for root, source in found.files:
        target = folder / source.relative_to(root).with_name(rename(source.name))
        other = jobs.setdefault(target, source)
        if other.resolve() != source.resolve():
            raise UsageError(f"{other} and {source} would both be written to {target}")
    if not jobs:
        raise UsageError(f"no files to process in {', '.join(map(str, found.sources))}")
    return [Job(jobs[target], target) for target in sorted(jobs)]


def split_existing(jobs: Sequence[Job]) -> tuple[list[Job], list[Path]]:
    """Return the jobs whose targets do not exist, and the targets that do."""
    existing = {job.target for job in jobs if exists(job.target)}
    return [job for job in jobs if job.target not in existing], sorted(existing)


class FailureLog:
    """A file with a line of JSON for each job that failed; there is none before the first.

    Each line is written at once, so that it is there even if the run does not reach its end.

    count: number of failures.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self.count = 0
        path.unlink(missing_ok=True)

    def add(self, job: Job, error: Exception) -> None:
        """Add the failure of a job. Thread-safe."""
        failure = {"source": job.source, "reason": describe_failure(error, job.source)}
        line = json.dumps({key: printable(value) for key, value in failure.items()})
        with self._lock, suppress(OSError):  # such as a full disk, which is why jobs fail
            self.count += 1
            with self._path.open("a") as file:
                file.write(line + "\n")


def run_batch(
    label: str,
    jobs: Sequence[Job],
    folder: Path,
    run: RunOptions,
    work: Work,
    check: Callable[[Tokenizer], object] = lambda tokenizer: None,
) -> None:
    """Run the jobs, `run.jobs` at a time, with one tokenizer.

    A job that fails, for whatever reason, does not stop the others: `folder`/failures.jsonl lists
    it with the reason.

    label: text of the progress bar.
    check: called before the first job; raises if the tokenizer can do none of them.
    Raises VqtokError at the end if any job failed.
    """
    tokenizer = run.load_tokenizer() if jobs else None
    if tokenizer is not None:
        check(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    failures = FailureLog(folder / FAILURES)
    if tokenizer is None:
        run.say("nothing to do: all files exist")
        return

    def run_job(job: Job) -> None:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                job.target.lstat()  # fails now, not after the work, if the name is too long
            with bars.task(job.source.name) as task:
                notes = work(job, tokenizer, task)
            bars.say(*(f"{job.source}: {note}" for note in notes))
        except Exception as error:
            failures.add(job, error)
        batch.advance()

    with (
        ProgressBars(run.quiet) as bars,
        bars.task(label, len(jobs)) as batch,
        ThreadPoolExecutor(run.jobs) as pool,
    ):
        try:
            for future in [pool.submit(run_job, job) for job in jobs]:
                future.result()
        except BaseException:  # Ctrl-C included: jobs in progress must stop
            bars.cancel()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures.count:
        raise VqtokError(f"{failures.count} of {len(jobs)} files failed; see {folder / FAILURES}")
    run.say(f"{folder}: {len(jobs)} file{'s' * (len(jobs) != 1)} written")
