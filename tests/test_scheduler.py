"""Which part of the work a process does: what a user writes, and what schedulers say."""

import itertools

import pytest

from vqtok.errors import UsageError
from vqtok.scheduler import parse_shard


def slurm_task(k, n):
    """What `srun` sets for a task."""
    return {"SLURM_PROCID": f"{k}", "SLURM_NTASKS": f"{n}", "SLURM_STEP_ID": "0"}


def array_task(number, ids, step=1):
    """What SLURM sets for a task of an array, in its script."""
    names = {"ID": number, "MIN": min(ids), "MAX": max(ids), "STEP": step, "COUNT": len(ids)}
    variables = {f"SLURM_ARRAY_TASK_{name}": f"{value}" for name, value in names.items()}
    return variables | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


def torchrun(k, n):
    return {"RANK": f"{k}", "WORLD_SIZE": f"{n}", "LOCAL_RANK": "0"}


@pytest.mark.parametrize("text, shard", [("0/1", (0, 1)), ("3/8", (3, 8)), ("007/08", (7, 8))])
def test_a_shard_is_a_number_of_a_number(text, shard):
    assert parse_shard(text, slurm_task(1, 2)) == shard


@pytest.mark.parametrize(
    "text, message",
    [
        *((text, "must be k/n such as 0/8, or auto") for text in ("", "3", "1/2/3", "-1/2", "a/b")),
        *((text, "must be k/n such as 0/8, or auto") for text in ("1/ 2", "1.0/2", "AUTO", "٣/٤")),
        ("99999999/99999999", "must be k/n such as 0/8, or auto"),
        ("0/0", "the number of shards must be from 1 to 1,000,000"),
        ("0/9999999", "the number of shards must be from 1 to 1,000,000"),
        ("8/8", "--shard 8/8: k counts from 0, so it must be from 0 to 7"),
        ("9/8", "k counts from 0"),
    ],
)
def test_other_shards_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_shard(text, {})


@pytest.mark.parametrize(
    "environ, shard",
    [
        (torchrun(3, 16), (3, 16)),
        (slurm_task(2, 4), (2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1)),  # a script without srun
        (array_task(2, range(5)), (2, 5)),
        (array_task(1, range(1, 9)), (0, 8)),
        (array_task(14, range(10, 20, 2), 2), (2, 5)),
        (array_task(7, [7]), (0, 1)),
        (array_task(2, range(3)) | slurm_task(1, 4), (9, 12)),
        (array_task(1, range(3)) | torchrun(5, 8), (13, 24)),
        (slurm_task(1, 2) | torchrun(9, 16), (9, 16)),  # srun starts a torchrun on each node
    ],
)
def test_schedulers_say_which_shard(environ, shard):
    assert parse_shard("auto", environ) == shard


def test_the_tasks_of_an_array_of_jobs_do_every_shard_once():
    ids = range(10, 31, 5)
    shards = [
        parse_shard("auto", array_task(number, ids, 5) | slurm_task(k, 3))
        for number, k in itertools.product(ids, range(3))
    ]
    assert shards == [(k, 15) for k in range(15)]


@pytest.mark.parametrize(
    "environ, message",
    [
        ({}, "neither has set its variables: give the shard as k/n"),
        ({"SLURM_JOB_ID": "7"}, "neither has set its variables"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        (torchrun(2, 2), "RANK is 2, but WORLD_SIZE is 2"),
        (torchrun("x", 2), "RANK is 'x', not a number"),
        (torchrun(-1, 2), "RANK is '-1', not a number"),
        (slurm_task(4, 4), "SLURM_PROCID is 4, but SLURM_NTASKS is 4"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "has 4 tasks, but .* start it with srun"),
        ({"SLURM_NTASKS": "4"}, "start it with srun"),
        (array_task(2, [1, 2, 7]), "the 3 tasks of the array are not evenly spaced"),
        (array_task(9, range(4)), "not evenly spaced"),
        (array_task(3, range(0, 8, 2), 2), "not evenly spaced"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN is not set"),
    ],
)
def test_what_schedulers_cannot_mean_is_refused(environ, message):
    with pytest.raises(UsageError, match=message):
        parse_shard("auto", environ)
