"""Options of `encode` for many clips and packed corpora, and checks that need no PyTorch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vqtok.errors import UsageError
from vqtok.scheduler import count_cores, parse_shard

Pack = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Pack tokens in shards of about this size, such as 256M."),
]
Shard = Annotated[
    str | None,
    typer.Option(metavar="K/N", help="Do part K of N (from 0); auto: as SLURM or torchrun say."),
]
Timeout = Annotated[
    str | None, typer.Option(metavar="TIME", help="Give up a clip after this time, such as 30min.")
]
Split = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Encode long clips in pieces of this length, such as 10min."),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Encode clips again that have failed.")
]
Status = Annotated[
    bool, typer.Option("--status", help="Say what is done of the packed corpus in -o FOLDER.")
]
On = Annotated[str | None, typer.Option(metavar="ray", help="Encode on a Ray cluster.")]
Workers = Annotated[
    str | None, typer.Option(metavar="MIN:MAX", help="Workers on Ray, such as 2:64 (default: 1).")
]
Gpus = Annotated[
    float | None, typer.Option(min=0, max=1024, help="GPUs of each worker on Ray, such as 0.5.")
]

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_TIMES = {None: 1, "s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class RayOptions:
    """Workers on a Ray cluster.

    workers: how many at least and at most. gpus: of each, such as 0.5.
    """

    workers: tuple[int, int]
    gpus: float


@dataclass(frozen=True)
class Work:
    """Which part of many clips a process encodes, and how.

    shard: (k, n): part k of n, from 0.
    jobs: clips to encode at once; with `ray`, in each worker.
    timeout: seconds for each clip, or None.
    split: seconds of a piece of a long clip, or None.
    retry_failed: also encode clips again that have failed.
    ray: None to encode on this machine.
    """

    shard: tuple[int, int]
    jobs: int
    timeout: float | None
    split: float | None
    retry_failed: bool
    ray: RayOptions | None

    @property
    def sharing(self) -> int:
        """Clips that share the cores of this machine; a worker on Ray has a core for each clip."""
        return count_cores() if self.ray else self.jobs

    @property
    def has_gpus(self) -> bool:
        """Whether workers on a cluster have GPUs."""
        return self.ray is not None and self.ray.gpus > 0


def parse_work(
    shard: str | None,
    jobs: int,
    timeout: str | None,
    split: str | None,
    retry_failed: bool,
    on: str | None,
    workers: str | None,
    gpus: float | None,
) -> Work:
    """Return what the options of a command say. Raises UsageError for what is not valid."""
    part = (0, 1) if shard is None else parse_shard(shard, os.environ)
    limit, piece = (None if text is None else parse_seconds(text) for text in (timeout, split))
    return Work(part, jobs, limit, piece, retry_failed, parse_ray(on, workers, gpus))


def parse_size(text: str) -> int:
    """Return a size such as 256M in bytes; K, M and G are powers of 1024. UsageError if invalid."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text.upper())
    if match is None or not int(match[1]):
        raise UsageError(f"{text!r} is not a size such as 256M")
    return int(match[1]) * _SIZES[match[2]]


def format_size(size: int) -> str:
    """Return a size in bytes as `parse_size` reads it, such as 256M."""
    unit = next(unit for unit in ("G", "M", "K", "") if size % _SIZES[unit] == 0)
    return f"{size // _SIZES[unit]}{unit}"


def parse_seconds(text: str) -> float:
    """Return a time such as 90, 90s, 10min or 2h in seconds. UsageError if invalid."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|min|h)?", text)
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is not a time such as 90s, 10min or 2h")
    return float(match[1]) * _TIMES[match[2]]


def parse_ray(on: str | None, workers: str | None, gpus: float | None) -> RayOptions | None:
    """Return the workers on Ray, if it is chosen. UsageError for what is not valid."""
    if on is None:
        if workers is not None or gpus is not None:
            raise UsageError("--workers and --gpus are for a Ray cluster: add --on ray")
        return None
    if on != "ray":
        raise UsageError(f"--on {on}: must be ray")
    match = re.fullmatch(r"([0-9]{1,6})(?::([0-9]{1,6}))?", workers or "1")
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < least <= most:
        raise UsageError(f"--workers {workers}: must be a number or a range such as 2:64")
    return RayOptions((least, most), gpus or 0.0)


def check_pack(pack: str | None, folder: Path | None, force: bool, work: Work) -> None:
    """Raise UsageError for options that do not go with --pack, or need it."""
    if folder is None and (pack is not None or work.shard[1] > 1):
        raise UsageError(
            "--pack and --shard are for many clips: name a folder of them, or a list, @clips.jsonl"
        )
    if pack is None and (work.timeout or work.split or work.retry_failed or work.ray):
        raise UsageError(
            "--timeout, --split, --retry-failed and --on are for a packed corpus: add --pack 256M"
        )
    if pack is not None and force:
        raise UsageError("--force does not apply to a corpus: choose another folder")
