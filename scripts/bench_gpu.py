"""Run the tests and the benchmarks of a GPU, and write a page with what they print.

    scripts/bench_gpu.sh [--quick] [--only model] [--device cpu --output PAGE]

Each step is a process of its own. One that fails or takes too long is noted with the reason, and the
others go on; then the exit code is 1. The page is rewritten after each step. Test clips are made here.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import typer
from bench_memory import write_clip
from bench_model import parse_size

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "figures-gpu.md"
NEVER = (  # what no step runs
    "Several GPUs (`torchrun`, NCCL).",
    "Real clips: the test clips are waves with grain, h264 at 25 frames/s.",
)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    clips: frames of the test clip of each size.
    batches: clips at once, for the model alone. jobs: for commands, over `copies` of a clip.
    training_clips: number, frames, height and width.
    quantizers, training: options of bench_quantizers.py and bench_steps.py.
    """

    clips: dict[str, int]
    frames: int
    rounds: int
    batches: Sequence[int]
    copies: int
    jobs: Sequence[int]
    training_clips: tuple[int, int, int, int]
    quantizers: Sequence[str] = ()
    training: Sequence[str] = ()


FULL = Scale(
    clips={"256x256": 480, "720x1280": 240, "1080x1920": 120},
    frames=33,
    rounds=5,
    batches=(1, 4, 16),
    copies=16,
    jobs=(1, 4, 16),
    training_clips=(64, 100, 360, 640),
    training=("--steps", "100"),
)
QUICK = Scale(
    clips={"256x256": 120, "720x1280": 60, "1080x1920": 40},
    frames=17,
    rounds=2,
    batches=(1, 4),
    copies=4,
    jobs=(1, 4),
    training_clips=(16, 50, 270, 480),
    quantizers=("--only", "ema", "--rounds", "2"),
    training=("--steps", "40", "--set", "train.init_clips=64"),
)
TRIAL = Scale(  # on a CPU: the recipe of bundled.toml with less of everything
    clips={"32x32": 9, "45x80": 9, "68x120": 9},
    frames=5,
    rounds=1,
    batches=(1, 2),
    copies=2,
    jobs=(1, 2),
    training_clips=(4, 20, 72, 128),
    quantizers=("--only", "fsq", "--rounds", "1"),
    training=(
        *("--steps", "2", "--set", "train.batch_size=2", "--set", "train.crop=32"),
        *("--set", "train.frames=9", "--set", "train.size=64", "--set", "train.init_clips=4"),
    ),
)


@dataclass(frozen=True)
class Step:
    """A section of the page: arguments of Python, and what to keep of the lines it prints."""

    name: str
    title: str
    text: str
    arguments: Sequence[object]
    keep: Callable[[str], str] = str.strip
    timeout: float = 1800  # seconds


@dataclass(frozen=True)
class Result:
    """What a step printed, and why it failed, if it did."""

    output: str
    failure: str = ""


def run(step: Step) -> Result:
    """Run a step in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, *map(str, step.arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=step.timeout,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return Result(step.keep(output), f"not finished after {step.timeout:.0f} s")
    output = step.keep(done.stdout)
    if not done.returncode:
        return Result(output)
    lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    return Result(output, f"exit code {done.returncode}: {lines[-1].strip()}")


def plan(scale: Scale, device: str, clips: Sequence[Path], data: Path) -> list[Step]:
    """Return the steps.

    clips: one of each size. data: folder of training clips.
    """
    cpu = device == "cpu"
    on = ("--device", device)
    sizes = [x for size in scale.clips for x in ("--size", size)]
    batches = [x for batch in scale.batches for x in ("--batch", batch)]
    jobs = [x for count in scale.jobs for x in ("--jobs", count)]
    model = ["--frames", scale.frames, "--rounds", scale.rounds]
    model += ["--dtype", "float32" if cpu else "bfloat16"]
    script = ROOT / "scripts"
    return [
        Step(
            "tests",
            "Tests",
            "`pytest -m cuda`: all tests that need a GPU.",
            ["-m", "pytest", "-m", "cuda", "--tb=line", "-rfE"],
            test_summary,
        ),
        Step(
            "model",
            "Model alone",
            "`scripts/bench_model.py`: frames are on the device, and nothing is read or written.",
            [script / "bench_model.py", *sizes, *batches, *model, *on],
        ),
        Step(
            "clips",
            "Commands and their parts",
            "`scripts/bench_pipeline.py`: one clip at a time. Percentages are the time that a part "
            "takes alone, as a share of the time of the whole; parts overlap.",
            [script / "bench_pipeline.py", *clips, "--rounds", scale.rounds, *on],
        ),
        Step(
            "jobs",
            "Several clips at once",
            "`scripts/bench_jobs.py`: `vqtok encode` and `vqtok decode` of a folder.",
            [script / "bench_jobs.py", *clips, "--copies", scale.copies, *jobs, *on],
        ),
        Step(
            "quantizers",
            "Quantizers",
            "`scripts/bench_quantizers.py`: a training step of each; search and eval are forward "
            "only. [quantizers.md](quantizers.md#speed-and-memory) explains the columns.",
            [script / "bench_quantizers.py", *scale.quantizers, *on],
        ),
        Step(
            "training",
            "Training",
            "`scripts/bench_steps.py`: random video on the device, then `vqtok train`.",
            [script / "bench_steps.py", data, *scale.training, *on],
        ),
    ]


def test_summary(output: str) -> str:
    """Return the tests that failed and the last line of pytest, as a block of code."""
    lines = output.strip().splitlines()
    failed = [line for line in lines[:-1] if line.startswith(("FAILED", "ERROR"))]
    return "\n".join(["```", *failed, *lines[-1:], "```"])


def output_of(*command: str) -> str:
    """Return what a command prints, or `unknown` if it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def describe_machine(device: str) -> dict[str, str]:
    """Return what figures depend on, by name."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine = {
        "CPU": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores",
        "Python": f"{platform.python_version()}, torch {torch.__version__}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": output_of("git", "describe", "--always", "--dirty"),
    }
    if device == "cpu":
        return machine
    query = "--query-gpu=name,memory.total,driver_version"
    gpu = output_of("nvidia-smi", query, "--format=csv,noheader", "--id=0")
    cuda = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return {"GPU, memory, driver": gpu, "CUDA": cuda} | machine


def render(
    device: str, machine: dict[str, str], steps: Sequence[Step], results: dict[str, Result]
) -> str:
    """Return the page. `results` are those of the steps that were run so far, by name."""
    command = " ".join(["scripts/bench_gpu.sh", *sys.argv[1:]])
    title = "Trial of the GPU benchmarks on a CPU" if device == "cpu" else "Figures of a GPU"
    parts = [f"# {title}", f"Made by `{command}`.", "| | |\n|---|---|"]
    parts[-1] += "".join(f"\n| {name} | {value} |" for name, value in machine.items())
    missing = [f"{step.title}." for step in steps if step.name not in results]
    for step in steps:
        if result := results.get(step.name):
            parts += [f"## {step.title}", step.text, result.output]
            if result.failure:
                parts.append(f"**Failed**: {result.failure}")
                missing.append(f"{step.title}, all or a part of it: {result.failure}")
    parts += ["## What was not run", "\n".join(f"- {text}" for text in (*missing, *NEVER))]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_clips(scale: Scale, folder: Path) -> tuple[list[Path], Path]:
    """Write the test clips; return one of each size, and the folder of training clips."""
    clips = [folder / f"{size}.mp4" for size in scale.clips]
    for path, (size, frames) in zip(clips, scale.clips.items(), strict=True):
        write_clip(path, frames, *parse_size(size), fps=25, noise=3)
    count, frames, height, width = scale.training_clips
    (folder / "training").mkdir()
    for i in range(count):
        path = folder / "training" / f"{i}.mp4"
        write_clip(path, frames, height, width, fps=25, noise=3, seed=i)
    return clips, folder / "training"


def choose_page(device: str, output: Path | None) -> Path:
    """Return the file to write. Raises SystemExit if figures of a CPU would be those of a GPU."""
    if device == "cpu" and (output is None or output.resolve() == PAGE):
        raise SystemExit(f"--device cpu needs another --output: {PAGE.name} is for GPUs")
    if device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU: try --device cpu --output PAGE")
    return output or PAGE


def main(
    device: str = "cuda",
    quick: bool = False,
    only: list[str] = [],  # noqa: B006
    output: Path | None = None,
) -> None:
    page = choose_page(device, output)
    scale = TRIAL if device == "cpu" else QUICK if quick else FULL
    machine, results = describe_machine(device), dict[str, Result]()
    with tempfile.TemporaryDirectory() as folder:
        steps = plan(scale, device, *write_clips(scale, Path(folder)))
        page.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            if only and step.name not in only:
                continue
            start = time.perf_counter()
            results[step.name] = result = run(step)
            page.write_text(render(device, machine, steps, results))
            state = f"failed, {result.failure}" if result.failure else "done"
            print(f"{step.title}: {state} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"{page} is written")
    raise SystemExit(any(result.failure for result in results.values()))


if __name__ == "__main__":
    typer.run(main)
