"""Encode the clips of a corpus on a Ray cluster, with Ray Data around `Encode`.

Paths go to the workers, and a small row comes back for each clip. Ray starts workers, hands out
blocks of clips, and starts a killed worker again. That each clip is encoded once does not depend on
it: the files of the corpus say what is left.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from math import ceil, inf
from pathlib import Path
from typing import Any

from vqtok.bulk.supervisor import Encode, Result
from vqtok.corpus.clips import Clip
from vqtok.errors import UsageError, VqtokError

_WINDOW = 1000  # groups of clips: about the clips of a shard, so that few shards are open at once
_BLOCKS_PER_WORKER = 100  # at most, besides the first window: a block costs some milliseconds
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing over the network
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # on the terminal and in Ray's own log files
}


def _say(line: str) -> None:
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
    say: Callable[[str], object] = _say,
) -> Iterator[Result]:
    """Encode clips on the cluster that RAY_ADDRESS names, or on a local one.

    Yields what became of each clip that was not finished before. Close the iterator to end early.

    folder: of the corpus; all machines must see it, and the videos, under the same path.
    workers: how many at least and at most.
    gpus: of each worker. Without, a worker takes a CPU for each of its jobs.
    jobs, timeout, device: as in `Encode`.
    say: gets a line about a cluster that is too small.

    Raises UsageError if Ray is not installed or this machine is too small, VqtokError if no clip
    can be encoded, or if the cluster fails as a whole.
    """
    if not clips:
        return
    needs = {"CPU": 1.0 if gpus else float(jobs), "GPU": gpus}
    options = {"jobs": jobs, "timeout": timeout, "device": device}
    with _cluster() as ray:
        _check_room(ray.nodes(), needs, workers[0], say)
        blocks = divide_clips(clips, jobs, workers[1])
        dataset = _load(ray, blocks).map_batches(
            Encode,
            fn_constructor_args=(str(folder.absolute()),),
            fn_constructor_kwargs=options,
            batch_size=None,  # a block at a time
            compute=ray.data.ActorPoolStrategy(
                min_size=workers[0], max_size=workers[1], max_tasks_in_flight_per_actor=1
            ),
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
        )
        for row in dataset.iter_rows():
            notes = [row["notes"]] if row["notes"] else []
            yield Result(**row | {"notes": notes})


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


def _load(ray: Any, blocks: Sequence[Sequence[Clip]]) -> Any:
    """Return a data set of clips, as rows of `plan`, in these blocks."""
    import pyarrow

    tables = [pyarrow.Table.from_pylist([clip.to_row() for clip in block]) for block in blocks]
    return ray.data.from_arrow(tables)


def _import_ray() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("--on ray needs Ray: pip install 'vqtok[ray]'") from None
    for name in ("ray", "ray.data"):  # what goes wrong is raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # a clip may take hours
    return ray


@contextmanager
def _cluster() -> Iterator[Any]:
    """Connect to a cluster, or start one. Errors of Ray become VqtokError, and it prints nothing.

    What was started ends after the block.
    """
    ray = _import_ray()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            _connect(ray, nowhere.fileno())
            yield ray
        except VqtokError as error:
            cause = getattr(error, "cause", error)  # raised in a worker, it has a traceback as text
            raise (UsageError if isinstance(cause, UsageError) else VqtokError)(
                str(cause)
            ) from None
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise VqtokError(
                f"Ray has failed ({_reason(error)}): run the command again, which goes on with the "
                "clips that are left"
            ) from None
        finally:
            ray.shutdown()


def _connect(ray: Any, nowhere: int) -> None:
    """Connect to the cluster; signals do what they did before, and nothing is printed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    stderr = os.dup(2)
    os.dup2(nowhere, 2)
    try:
        ray.init(
            None if os.environ.get("RAY_ADDRESS") else "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)


def _check_room(
    nodes: Sequence[dict[str, Any]],
    needs: dict[str, float],
    workers: int,
    say: Callable[[str], object],
) -> None:
    """Say if fewer workers fit than asked for. Raises UsageError if none does on this machine."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    shares = [
        min(each.get(name, 0) / need if need else inf for name, need in needs.items())
        for each in resources
    ]
    room = sum(map(int, shares))
    if room >= workers:
        return
    total = {name: sum(each.get(name, 0) for each in resources) for name in needs}
    text = (
        f"there is room for {room} of {workers} workers, which need {_amount(needs)} each, of "
        f"{_amount(total)} in all"
    )
    if room == 0 and not os.environ.get("RAY_ADDRESS"):
        raise UsageError(f"{text}: use fewer --jobs or --gpus, or set RAY_ADDRESS to a cluster")
    say(f"Ray: {text}" + ("; waiting for a machine to join" if room == 0 else ""))


def _amount(resources: dict[str, float]) -> str:
    return " and ".join(f"{number:g} {name}s" for name, number in resources.items())


def _reason(error: BaseException) -> str:
    """Return the line of an error of Ray that says why: the last one of a traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if "\n  File " in str(error) else lines[0]).strip().rstrip(".")
