"""Which part of the work, and of a machine, a process has, as its user or a scheduler says."""

import os
import re
from collections.abc import Mapping

from vqtok.errors import UsageError

MAX_SHARDS = 1_000_000


def count_cores() -> int:
    """Return the number of cores that this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def parse_shard(text: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return (k, n): of n processes that share the work, this is number k, from 0 to n - 1.

    text: k/n, or `auto`: as SLURM (tasks of a job, of an array, or of both) or torchrun says in
        the environment.

    Raises UsageError for anything else.
    """
    if text == "auto":
        return _from_environment(environ)
    match = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
    if match is None:
        raise UsageError(f"--shard {text}: must be k/n such as 0/8, or auto")
    k, n = int(match[1]), int(match[2])
    if not 0 < n <= MAX_SHARDS:
        raise UsageError(f"--shard {text}: the number of shards must be from 1 to {MAX_SHARDS:,}")
    if k >= n:
        raise UsageError(f"--shard {text}: k counts from 0, so it must be from 0 to {n - 1}")
    return k, n


def _from_environment(environ: Mapping[str, str]) -> tuple[int, int]:
    array, tasks = _array_task(environ), _torchrun(environ) or _slurm_task(environ)
    if array is None and tasks is None:
        raise UsageError(
            "--shard auto works under SLURM and torchrun, and neither has set its variables: give "
            "the shard as k/n"
        )
    (i, arrays), (k, n) = array or (0, 1), tasks or (0, 1)
    return i * n + k, arrays * n


def _torchrun(environ: Mapping[str, str]) -> tuple[int, int] | None:
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return None
    return _pair(environ, "RANK", "WORLD_SIZE")


def _slurm_task(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the number of this task among those of its `srun`.

    Raises UsageError in a script that has several tasks, but does not start them: it would do the
    part of the first one only.
    """
    if "SLURM_NTASKS" not in environ:
        return None
    if "SLURM_STEP_ID" not in environ:
        if _number(environ, "SLURM_NTASKS") > 1:
            raise UsageError(
                f"--shard auto: the job has {environ['SLURM_NTASKS']} tasks, but this process is "
                "not one of them: start it with srun"
            )
        return 0, 1
    return _pair(environ, "SLURM_PROCID", "SLURM_NTASKS")


def _array_task(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the number of this task of a SLURM array among all.

    Raises UsageError if the ids are not evenly spaced, as of --array=1,2,7: some numbers would
    have no task.
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return None
    task, least, most = (_number(environ, f"SLURM_ARRAY_TASK_{x}") for x in ("ID", "MIN", "MAX"))
    step = max(1, _number(environ, "SLURM_ARRAY_TASK_STEP"))
    n = (most - least) // step + 1
    k, rest = divmod(task - least, step)
    count = environ.get("SLURM_ARRAY_TASK_COUNT", str(n))
    if rest or not 0 <= k < n or count != str(n):
        raise UsageError(
            f"--shard auto: the ids of the {count} tasks of the array are not evenly spaced: "
            "number them as in --array=0-7, or give the shard as k/n"
        )
    return k, n


def _pair(environ: Mapping[str, str], index: str, count: str) -> tuple[int, int]:
    k, n = _number(environ, index), _number(environ, count)
    if k >= n:
        raise UsageError(f"--shard auto: {index} is {k}, but {count} is {n}")
    return k, n


def _number(environ: Mapping[str, str], name: str) -> int:
    """Return a variable; raise UsageError if it is missing or not a whole number."""
    value = environ.get(name)
    if value is None:
        raise UsageError(f"--shard auto: {name} is not set: give the shard as k/n")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise UsageError(f"--shard auto: {name} is {value[:20]!r}, not a number")
    return int(value)
