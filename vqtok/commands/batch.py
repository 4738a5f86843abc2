"""Many clips at once: what is to do, several at a time, and what went wrong with which."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import UsageError, VqtokError
from vqtok.files import atomic_write, is_pattern, list_files

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Job:
    """A file to read, and the file that is made from it."""

    source: Path
    target: Path


def is_many(sources: Sequence[str], output: str | None) -> bool:
    """Whether these are many clips and an output folder, not one clip and its file."""
    several = len(sources) > 1 or Path(sources[0]).is_dir() or is_pattern(sources[0])
    return several or (output is not None and Path(output).is_dir())


def jobs(
    sources: Sequence[str],
    folder: Path,
    suffixes: set[str],
    rename: Callable[[str], str],
) -> list[Job]:
    """What is to do for files, folders (all in them that ends in `suffixes`) and patterns like **.

    Targets lie in `folder` as the sources lie in the folder, or in that of the pattern, given.
    rename: gives the name of a source's target.
    Raises UsageError when there is nothing to do, or two sources have the same target.
    """
    found: dict[Path, Path] = {}
    for root, path in list_files(sources, suffixes):
        target = folder / path.relative_to(root).with_name(rename(path.name))
        if found.setdefault(target, path).resolve() != path.resolve():
            raise UsageError(f"{found[target]} and {path} would both become {target}")
    if not found:
        raise UsageError(f"nothing to do in {', '.join(sources)}")
    return [Job(found[target], target) for target in sorted(found)]


def missing(todo: Sequence[Job]) -> tuple[list[Job], list[Path]]:
    """The jobs whose targets are not there, and the targets that are."""
    there = {job.target for job in todo if job.target.exists()}
    return [job for job in todo if job.target not in there], sorted(there)


class Stopped(BaseException):
    """Raised in a job's thread when the whole is interrupted."""


def run(
    todo: Sequence[Job],
    folder: Path,
    workers: int,
    work: Callable[[Job, Callable[[], None]], None],
    done: Callable[[], None],
) -> None:
    """Do the jobs, so many at a time; those that fail are listed in `folder`/failures.jsonl.

    work: does a job, and calls its second argument now and then, which ends it if all is to stop.
    done: is called after each job.
    Raises VqtokError at the end when any failed.
    """
    failures: list[dict[str, str]] = []
    stop = False

    def check() -> None:
        if stop:
            raise Stopped

    def one(job: Job) -> None:
        check()
        job.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            work(job, check)
        except (VqtokError, OSError) as error:
            failures.append({"source": str(job.source), "reason": str(error)})
        done()

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(one, job) for job in todo]:
                future.result()
        finally:
            stop = True
    (folder / FAILURES).unlink(missing_ok=True)
    if failures:
        with atomic_write(folder / FAILURES) as temporary:
            lines = sorted(json.dumps(failure) for failure in failures)
            temporary.write_text("".join(line + "\n" for line in lines))
        raise VqtokError(
            f"{len(failures)} of {len(todo)} failed: {folder / FAILURES} says which and why"
        )
