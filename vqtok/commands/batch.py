"""Process many files: plan the outputs, run several jobs at once, list the failures."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from vqtok.commands.progress import Cancelled, ProgressBars, ProgressTask
from vqtok.commands.run_options import RunOptions
from vqtok.errors import (
    INTERRUPTS,
    MAX_REASONS,
    UsageError,
    VqtokError,
    describe_failure,
    join_reasons,
)
from vqtok.files import FileList, exists, printable, real_path
from vqtok.model.tokenizer import Tokenizer
from vqtok.targets import check_targets, check_writable, tokenizer_file

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Job:
    """A file to read, and the file to make from it."""

    source: Path
    target: Path


# Does a job and returns the notes to print about it.
Work = Callable[[Job, Tokenizer, ProgressTask], Sequence[str]]


def plan_jobs(
    found: FileList, folder: Path, rename: Callable[[str], str], tokenizer: str = ""
) -> list[Job]:
    """Return the jobs for the files that were found.

    The tree below each source folder is mirrored in `folder`.

    rename: returns the file name of a target, given that of its source.
    tokenizer: another file to read.
    Raises UsageError if there are no files, if two of them would have the same target, or if a
    target is one of the files to read.
    """
    jobs: dict[Path, Path] = {}  # target: source
    for root, source in found.files:
        target = folder / source.relative_to(root).with_name(rename(source.name))
        other = jobs.setdefault(target, source)
        if real_path(other) != real_path(source):
            raise UsageError(f"{other} and {source} would both be written to {target}")
    if not jobs:
        raise UsageError(f"no files to process in {', '.join(map(str, found.sources))}")
    inputs = [*jobs.values(), tokenizer_file(tokenizer)]
    check_targets([*jobs, folder / FAILURES], inputs)
    return [Job(jobs[target], target) for target in sorted(jobs)]


def split_existing(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Return the jobs whose targets do not exist, and those whose targets do."""
    existing = [job for job in jobs if exists(job.target)]
    done = set(existing)
    return [job for job in jobs if job not in done], existing


class FailureLog:
    """A file with a line of JSON for each job that failed, then one for each job in progress.

    It is rewritten whenever a job starts or ends, so that it tells what a process was working on
    that was killed, or that a library has ended. There is no file if there is no such job.

    count: number of failures. reasons: of the first of them.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._running: dict[Job, bytes] = {}  # their lines
        self._end = self._size = 0  # bytes of the failures, and of the whole file
        self._shared = False
        self.count, self.reasons = 0, list[str]()
        path.unlink(missing_ok=True)

    @contextmanager
    def watch(self, job: Job) -> Iterator[None]:
        """List a job while the block runs, and for good if it fails. Thread-safe."""
        reason = f"{job.source}: was in progress when this was written"
        self._update(job, _line(job, "unfinished", reason), b"")
        failure = b""
        try:
            yield
        except (Cancelled, *INTERRUPTS):
            raise
        except BaseException as error:
            reason = describe_failure(error, job.source)
            failure = _line(job, type(error).__name__, reason)
            with self._lock:
                self.count += 1
                self.reasons += [reason] * (len(self.reasons) < MAX_REASONS)
        finally:
            self._update(job, b"", failure)

    def _update(self, job: Job, running: bytes, failure: bytes) -> None:
        """Set the line of a job in progress, none if it has ended, and add a failure."""
        with self._lock, suppress(OSError):  # such as a full disk, which is why jobs fail
            self._running[job] = running
            if not running:
                del self._running[job]
            with self._path.open("ab") as file:
                # Another run that writes to this folder too: keep its lines.
                self._shared |= file.tell() != self._size
                if not self._shared:
                    file.truncate(self._end)
                lines = b"" if self._shared else b"".join(self._running.values())
                file.write(failure + lines)
                self._end += len(failure)
                self._size = self._end + len(lines)
            if not self._size and not self._shared:
                self._path.unlink()


def _line(job: Job, kind: str, reason: str) -> bytes:
    failure = {"source": job.source, "kind": kind, "reason": reason}
    return json.dumps({key: printable(value) for key, value in failure.items()}).encode() + b"\n"


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
        with failures.watch(job):
            job.target.parent.mkdir(parents=True, exist_ok=True)
            check_writable(job.target)
            with bars.task(job.source.name) as task:
                notes = work(job, tokenizer, task)
            bars.say(*(f"{job.source}: {note}" for note in notes))
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
        reasons = join_reasons(failures.reasons, failures.count)
        count = f"{failures.count} of {len(jobs)} files failed"
        raise VqtokError(f"{count}, see {folder / FAILURES}: {reasons}")
    run.say(f"{folder}: {len(jobs)} file{'s' * (len(jobs) != 1)} written")
