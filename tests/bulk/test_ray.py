"""`vqtok encode --on ray`: every clip exactly once, whatever happens to the cluster."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.clips import pattern, write_clip
from helpers.command import fails, in_subprocess, start, wait_until, works
from helpers.packed import shards
from vqtok.bulk import ray_data
from vqtok.bulk.ray_driver import check_room, describe_stop, divide_clips
from vqtok.corpus.clips import Clip
from vqtok.errors import UsageError, VqtokError

CLIPS = 12
PIPELINE = """
import sys
import ray
from vqtok.bulk import Encode, finish, plan

videos, folder, tokenizer = sys.argv[1:]
ray.init("local", num_cpus=2, log_to_driver=False)
rows = plan(videos, folder, pack="1M", tokenizer=tokenizer)
encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
    Encode,
    fn_constructor_args=(folder,),
    compute=ray.data.ActorPoolStrategy(size=2, max_tasks_in_flight_per_actor=1),
    num_cpus=1,
)
frames = [row["frames"] for row in encoded.iter_rows()]
finish(folder)
print(sum(frames), file=sys.stderr)
"""


@pytest.fixture
def needs_ray():
    """Skip the test where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'vqtok[ray]'")
    if not Path("/proc/self").exists():
        pytest.skip("finds processes in /proc")


@pytest.fixture
def videos(tmp_path):
    """A folder of clips of about a second of work each."""
    (tmp_path / "videos").mkdir()
    for i in range(CLIPS):
        write_clip(tmp_path / "videos" / f"{i:02}.mp4", pattern(180 - 8 * i, 128, 192))
    return tmp_path / "videos"


def session(process):
    """Return {pid: command line} of the processes in the session that a process has begun."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            number = int(folder.name)
            is_zombie = not (command := (folder / "cmdline").read_bytes())
            if os.getsid(number) == process.pid and not is_zombie:
                found[number] = command.decode(errors="replace")
        except OSError:  # ended meanwhile
            continue
    return found


def parts(folder):
    return len(list(folder.glob("parts/*/*.part")))


@pytest.mark.slow
def test_killed_workers_and_drivers_change_nothing(needs_ray, videos, tmp_path, tiny):
    plain, folder = tmp_path / "plain", tmp_path / "tokens"
    words = "encode", videos, *tiny, "--pack", "1M"
    works(*words, "-o", plain)
    on_ray = *words, "-o", folder, "--on", "ray", "--workers", "2"

    process = start(*on_ray, start_new_session=True, stdout=subprocess.PIPE)
    wait_until(lambda: parts(folder) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any("vqtok" in c or "MapWorker" in c for c in session(process).values()):
        assert time.monotonic() < deadline, "what a killed command has begun must end by itself"
        time.sleep(0.1)
    left = parts(folder)
    assert 2 <= left < CLIPS

    process = start(*on_ray, start_new_session=True, stdout=subprocess.PIPE)
    wait_until(lambda: parts(folder) > left, process)
    workers = [pid for pid, command in session(process).items() if "MapWorker" in command]
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert not stdout
    assert f"{CLIPS - left} of {CLIPS} clips are left" in stderr.decode()
    assert shards(folder) == shards(plain)
    assert not list((folder / "parts").iterdir())


@pytest.mark.slow
def test_encode_in_a_pipeline_of_ones_own(needs_ray, videos, tmp_path, tiny):
    plain, folder = tmp_path / "plain", tmp_path / "tokens"
    works("encode", videos, *tiny, "--pack", "1M", "-o", plain)
    command = [sys.executable, "-c", PIPELINE, videos, folder, tiny[1]]
    done = subprocess.run(command, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stderr.split()[-1]) == sum(180 - 8 * i for i in range(CLIPS))
    assert shards(folder) == shards(plain)


@pytest.mark.slow
def test_a_machine_that_is_too_small_is_refused(needs_ray, videos, tmp_path, tiny):
    words = "encode", videos, *tiny, "--pack", "1M", "-o", tmp_path / "tokens", "--on", "ray"
    message = "there is room for 0 of 1 workers: each needs 999 GPUs"
    fails(2, message, *words, "--gpus", 999, run=in_subprocess)


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_data, "find_spec", lambda name: None)
    options = {"workers": (1, 1), "gpus": 0.0, "jobs": 1, "timeout": None, "device": "cpu"}
    with pytest.raises(UsageError, match=r"pip install 'vqtok\[ray\]'"):
        list(ray_data.encode_on_ray(tmp_path, [Clip(0, "/a", "a", 1)], **options))


@pytest.mark.parametrize(
    ("workers", "needs", "says", "refused"),
    [
        (3, {"CPU": 1}, "", False),
        (2, {"CPU": 1, "GPU": 0.5}, "", False),
        (
            4,
            {"CPU": 1, "GPU": 0.5},
            "room for 2 of 4 workers: each needs 1 CPU and 0.5 GPUs",
            False,
        ),
        (1, {"GPU": 2}, "room for 0 of 1 workers", True),
    ],
)
def test_a_small_cluster_is_said(workers, needs, says, refused):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    lines = []
    check_room(nodes, needs, workers, False, lines.append)
    assert says in "".join(lines)
    assert bool(lines) == bool(says)
    assert ("waiting" in "".join(lines)) == refused
    if refused:
        with pytest.raises(UsageError, match="set RAY_ADDRESS"):
            check_room(nodes, needs, workers, True, lines.append)


def test_many_clips_are_divided_into_blocks_of_equal_length():
    clips = [Clip(i, "", "", 20_000 - i) for i in range(20_000)]
    for jobs, workers in ((1, 2), (4, 2), (1, 1000)):
        blocks = divide_clips(clips, jobs, workers)
        assert sorted(clip for block in blocks for clip in block) == clips
        assert blocks[:10] == [clips[i : i + jobs] for i in range(0, 10 * jobs, jobs)]
        sizes = [len(block) for block in blocks]
        assert max(sizes) == (1 if workers > 2 else 100)
        assert len(blocks) <= 1000 + 100 * workers + 20
        assert all(block == sorted(block) for block in blocks)  # longest first
    neighbours = [
        block for block in divide_clips(clips, 1, 2) if {5000, 5001} & {c.key for c in block}
    ]
    assert len(neighbours) == 2


def test_errors_of_workers_keep_their_sentence():
    class TaskError(RuntimeError):
        def __init__(self, cause):
            super().__init__(f"ray::Encode\n  File x\n{cause}")
            self.cause = cause

    usage = describe_stop(TaskError(UsageError("another tokenizer\nFailed to apply UDF")))
    assert usage == {"stop": "another tokenizer", "usage": True}
    assert describe_stop(TaskError(VqtokError("disk full"))) == {
        "stop": "disk full",
        "usage": False,
    }
    died = RuntimeError('The actor died\n  File "a.py", line 1\nVqtokError: no corpus')
    assert "Ray has failed (VqtokError: no corpus): run" in describe_stop(died)["stop"]
    lost = describe_stop(ConnectionError("lost the node.\nmore"))["stop"]
    assert "Ray has failed (ConnectionError: lost the node): run" in lost


def test_the_package_imports_neither_ray_nor_torch():
    check = "sys.exit(bool({'ray', 'torch'} & {*sys.modules}))"
    code = f"import sys, vqtok.bulk, vqtok.bulk.ray_data; {check}"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
