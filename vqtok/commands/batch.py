"""Process many files: plan the outputs, run several jobs at once, list the failures."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from vqtok.commands.progress import ProgressBars, ProgressTask
from vqtok.commands.run_options import RunOptions
from vqtok.errors import UsageError, VqtokError
from vqtok.files import atomic_write, list_files
from vqtok.model.tokenizer import Tokenizer

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to make from it."""

    source: Path
    target: Path


# Does a job and returns the notes to print about it.
Work = Callable[[Job, Tokenizer, ProgressTask], Sequence[str]]


def plan_jobs(
    sources: Sequence[str],
    folder: Path,
    suffixes: set[str],
    rename: Callable[[str], str],
) -> list[Job]:
    """Return the jobs for files, folders and patterns, as `list_files` finds them.

    The tree below each source folder is mirrored in `folder`.

    rename: returns the file name of a target, given that of its source.
    Raises UsageError if there are no files, or if two of them would have the same target.
    """
    jobs: dict[Path, Path] = {}  # target: source
    for root, source in list_files(sources, suffixes):
        target = folder / source.relative_to(root).with_name(rename(source.name))
        other = jobs.setdefault(target, source)
        if other.resolve() != source.resolve():
            raise UsageError(f"{other} and {source} would both be written to {target}")
    if not jobs:
        raise UsageError(f"no files to process in {', '.join(sources)}")
    return [Job(jobs[target], target) for target in sorted(jobs)]


def split_existing(jobs: Sequence[Job]) -> tuple[list[Job], list[Path]]:
    """Return the jobs whose targets do not exist, and the targets that do."""
    existing = {job.target for job in jobs if job.target.exists()}
    return [job for job in jobs if job.target not in existing], sorted(existing)


def run_batch(label: str, jobs: Sequence[Job], folder: Path, run: RunOptions, work: Work) -> None:
    """Run the jobs, `run.jobs` at a time, each with its own tokenizer.

    A job that fails does not stop the others: `folder`/failures.jsonl lists it with the reason.

    label: text of the progress bar.
    Raises VqtokError at the end if any job failed.
    """
    failures: list[dict[str, str]] = []
    tokenizers: SimpleQueue[Tokenizer] = SimpleQueue()
    for tokenizer in run.load_tokenizers(run.jobs) if jobs else ():
        tokenizers.put(tokenizer)

    def run_job(job: Job) -> None:
        tokenizer = tokenizers.get()
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            with bars.task(job.source.name) as task:
                notes = work(job, tokenizer, task)
            bars.say(*(f"{job.source}: {note}" for note in notes))
        except (VqtokError, OSError) as error:
            failures.append({"source": str(job.source), "reason": str(error)})
        finally:
            tokenizers.put(tokenizer)
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
    _write_failures(folder / FAILURES, failures)
    if failures:
        raise VqtokError(f"{len(failures)} of {len(jobs)} files failed; see {folder / FAILURES}")
    written = f"{len(jobs)} file{'s' * (len(jobs) != 1)} written"
    run.say(f"{folder}: {written}" if jobs else "nothing to do: all files exist")


def _write_failures(path: Path, failures: Sequence[dict[str, str]]) -> None:
    """Write a line of JSON for each failure; delete the file if there is none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        lines = sorted(json.dumps(failure) for failure in failures)
        temporary.write_text("".join(line + "\n" for line in lines))
