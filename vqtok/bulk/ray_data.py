"""Encode the clips of a corpus on a Ray cluster: `encode_on_ray`.

Another process (`ray_driver.py`) talks to the cluster: Ray ends its process where a cluster fails,
prints on both streams and takes signals over.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vqtok.bulk.process import PYTHON, WorkerProcess
from vqtok.bulk.supervisor import Result
from vqtok.corpus.clips import Clip
from vqtok.errors import UsageError, VqtokError

COMMAND = (*PYTHON, "vqtok.bulk.ray_driver")


@dataclass(frozen=True)
class RayJob:
    """The first line that the driver reads.

    clips: how many lines of clips follow. The others are as in `encode_on_ray`.
    """

    clips: int
    folder: str
    workers: tuple[int, int]
    gpus: float
    jobs: int
    timeout: float | None
    device: str
    tokenizer: str | None


def _print(line: str) -> None:
    print(line, file=sys.stderr)


def encode_on_ray(
    folder: Path,
    clips: Sequence[Clip],
    *,
    workers: tuple[int, int],
    gpus: float,
    jobs: int,
    timeout: float | None,
    device: str,
    tokenizer: str | None = None,
    say: Callable[[str], object] = _print,
) -> Iterator[Result]:
    """Encode clips on the cluster that RAY_ADDRESS names, or on a local one.

    Yields what became of each clip that was not finished before. Close the iterator to end early.

    folder: of the corpus; all machines must see it, and the videos, under the same path.
    workers: how many at least and at most.
    gpus: of each worker. Without, a worker takes a CPU for each of its jobs.
    jobs, timeout, device, tokenizer: as in `Encode`.
    say: gets a line about a cluster that is too small.

    Raises UsageError if Ray is not installed or this machine is too small, VqtokError if no clip
    can be encoded, or if the cluster fails as a whole.
    """
    if not clips:
        return
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UsageError("--on ray needs Ray: pip install 'vqtok[ray]'")
    for clip in clips:
        check_utf8(clip)
    path = str(folder.absolute())
    job = RayJob(len(clips), path, workers, gpus, jobs, timeout, device, tokenizer)
    driver = WorkerProcess(job, COMMAND)
    try:
        for clip in clips:
            driver.send(clip._asdict())
        while reply := driver.receive(None):
            match reply:
                case {"say": str(line)}:
                    say(line)
                case {"stop": str(reason)}:
                    raise (UsageError if reply.get("usage") else VqtokError)(reason)
                case {"end": True}:
                    return
                case _:
                    yield Result(**reply)
        raise VqtokError(describe_ray_failure(driver.how_it_ended()))
    finally:
        driver.close()


def check_utf8(clip: Clip) -> None:
    """Raise UsageError if Ray cannot pass the name of a clip on."""
    try:
        (clip.path + clip.name).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{clip.path}: its name is not UTF-8, and Ray takes no other: rename it, or encode "
            "without --on ray"
        ) from None


def describe_ray_failure(reason: str) -> str:
    """Return one sentence on a cluster that has failed as a whole, and what to do."""
    return f"Ray has failed ({reason}): run the command again, which encodes what is left"
