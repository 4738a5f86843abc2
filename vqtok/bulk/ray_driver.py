"""The process that encodes clips on a Ray cluster: `python -m vqtok.bulk.ray_driver`.

Ray Data starts workers, hands out blocks of clips to `Encode` in each, and starts a killed worker
again. Paths go to the workers, and a small row comes back for each clip. That each clip is encoded
once does not depend on Ray: the files of the corpus say what is left.

Its parent (`ray_data.py`) writes lines of JSON to its stdin, a `RayJob` and clips, and reads a line
on each clip from its stdout. It ends when its stdin does.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from math import ceil
from threading import Thread, Timer
from typing import Any

from vqtok.bulk.process import Replies
from vqtok.bulk.ray_data import RayJob, describe_ray_failure
from vqtok.bulk.supervisor import Encode
from vqtok.corpus.clips import Clip
from vqtok.errors import UsageError, VqtokError

_WINDOW = 1000  # groups of clips: about the clips of a shard, so that few shards are open at once
_BLOCKS_PER_WORKER = 100  # at most, besides the first window: a block costs some milliseconds
_CONNECT_SECONDS = 120  # Ray would try for many minutes to reach a cluster that is not there


def divide_clips(clips: Sequence[Clip], jobs: int, workers: int) -> list[list[Clip]]:
    """Divide clips into the blocks that workers get one at a time.

    A block is `jobs` clips that follow each other, which take about as long. Many clips make larger
    blocks, so that there are not too many: each takes clips from all over the next part of the
    list. The longest come first, so long clips share no block, and the last blocks are no longer
    than others.
    """
    groups = [clips[i : i + jobs] for i in range(0, len(clips), jobs)]
    size = ceil(len(groups) / (_BLOCKS_PER_WORKER * workers))
    blocks = [list(group) for group in groups[:_WINDOW]]
    for i in range(_WINDOW, len(groups), _WINDOW):
        window = groups[i : i + _WINDOW]
        count = ceil(len(window) / size)
        blocks += [list(chain(*window[k::count])) for k in range(count)]
    return blocks


def run(
    job: RayJob,
    clips: Sequence[Clip],
    say: Callable[[str], object],
    connected: Callable[[], object],
) -> Iterator[dict[str, Any]]:
    """Encode clips on the cluster; yield the row of `Encode` on each.

    say: gets a line about a cluster that is too small.
    connected: called once there is a cluster.
    Raises UsageError if not even one worker fits on this machine.
    """
    import pyarrow
    import ray.data

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # sends nothing over the network
    is_local = not os.environ.get("RAY_ADDRESS")
    ray.init("local" if is_local else None, log_to_driver=False)
    connected()
    needs = {"GPU": job.gpus} if job.gpus else {"CPU": float(job.jobs)}
    check_room(ray.nodes(), needs, job.workers[0], is_local, say)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # a clip may take hours
    blocks = divide_clips(clips, job.jobs, job.workers[1])
    tables = [pyarrow.Table.from_pylist([clip.to_row() for clip in block]) for block in blocks]
    least, most = job.workers
    dataset = ray.data.from_arrow(tables).map_batches(
        Encode,
        fn_constructor_args=(job.folder,),
        fn_constructor_kwargs={
            "jobs": job.jobs,
            "timeout": job.timeout,
            "device": job.device,
            "tokenizer": job.tokenizer,
        },
        batch_size=job.jobs,  # as many rows at least in a task: a block
        compute=ray.data.ActorPoolStrategy(
            min_size=least, max_size=most, max_tasks_in_flight_per_actor=1
        ),
        num_cpus=needs.get("CPU"),
        num_gpus=needs.get("GPU"),
    )
    yield from dataset.iter_rows()


def check_room(
    nodes: Iterable[dict[str, Any]],
    needs: dict[str, float],
    workers: int,
    is_local: bool,
    say: Callable[[str], object],
) -> None:
    """Say if fewer workers fit than asked for. Raises UsageError if none does on this machine.

    nodes: as `ray.nodes` returns them. needs: resources of a worker.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(
        int(min(each.get(name, 0) / need for name, need in needs.items())) for each in machines
    )
    if room >= workers:
        return
    total = {name: sum(each.get(name, 0) for each in machines) for name in needs}
    text = (
        f"there is room for {room} of {workers} workers: each needs {_amount(needs)}, and there "
        f"are {_amount(total)}"
    )
    if room == 0 and is_local:
        raise UsageError(f"{text}; use fewer --jobs or --gpus, or set RAY_ADDRESS to a cluster")
    say(f"Ray: {text}" + ("; waiting for a machine to join" if room == 0 else ""))


def _amount(resources: dict[str, float]) -> str:
    return " and ".join(
        f"{number:g} {name}{'s' * (number != 1)}" for name, number in resources.items()
    )


def describe_stop(error: Exception) -> dict[str, Any]:
    """Return the reply on an error that ends the job.

    What was raised in a worker is in the error of Ray as `cause`, or only as its traceback.
    """
    cause = getattr(error, "cause", error)
    lines = str(cause).strip().splitlines() or [""]
    if isinstance(cause, VqtokError):
        return {"stop": lines[0], "usage": isinstance(cause, UsageError)}
    reason = lines[-1] if "\n  File " in str(cause) else f"{type(cause).__name__}: {lines[0]}"
    return {"stop": describe_ray_failure(reason.strip().rstrip("."))}


def _end_with_stdin() -> None:
    """Stop when the parent is gone, or wants no more. Ray makes SIGTERM a SystemExit."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run a job. What ends it early is its last reply."""
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent decides what happens then
        signal.signal(number, signal.SIG_IGN)
    reply = Replies().send
    nowhere = os.open(os.devnull, os.O_WRONLY)  # Ray prints on both streams
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def give_up() -> None:
        address = os.environ.get("RAY_ADDRESS", "this machine")
        reply(**describe_stop(TimeoutError(f"no answer from {address}")))
        os._exit(1)

    job = RayJob(**json.loads(sys.stdin.readline()))
    clips = [Clip(**json.loads(line)) for line in islice(sys.stdin, job.clips)]
    Thread(target=_end_with_stdin, daemon=True).start()
    connecting = Timer(_CONNECT_SECONDS, give_up)
    connecting.start()
    try:
        for row in run(job, clips, lambda line: reply(say=line), connecting.cancel):
            reply(**row | {"notes": [row["notes"]] if row["notes"] else []})
        reply(end=True)
    except Exception as error:
        reply(**describe_stop(error))


if __name__ == "__main__":
    main()
