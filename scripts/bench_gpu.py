"""Run the tests and the benchmarks of a GPU, and write a page with what they print.

    scripts/bench_gpu.sh [--quick] [--only model] [--device cpu --output PAGE]

Each step is a process of its own. If one fails or takes too long, the page gives the reason, the
others go on, and the exit code is 1. The page is rewritten after each step.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from benchmarks.page import ROOT, Result, Step, describe_machine, render

PAGE = ROOT / "docs" / "figures-gpu.md"


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    sizes: height x width of the test clips. lengths: their frames.
    training_clips: number, frames, height and width.
    frames, rounds: of the model alone. batches: clips at once.
    copies, jobs: of commands over a folder: clips, and how many of them at once.
    quantizers, training: options of bench_quantizers.py and bench_steps.py.
    """

    sizes: Sequence[str]
    lengths: Sequence[int]
    training_clips: str
    frames: int
    rounds: int
    batches: Sequence[int]
    copies: int
    jobs: Sequence[int]
    quantizers: Sequence[str] = ()
    training: Sequence[str] = ()


FULL = Scale(
    sizes=("256x256", "720x1280", "1080x1920"),
    lengths=(480, 240, 120),
    training_clips="32x60x360x640",
    frames=33,
    rounds=5,
    batches=(1, 4, 16),
    copies=16,
    jobs=(1, 4, 16),
    training=("--steps", "100"),
)
QUICK = Scale(
    sizes=FULL.sizes,
    lengths=(120, 60, 40),
    training_clips="16x50x270x480",
    frames=17,
    rounds=2,
    batches=(1, 4),
    copies=4,
    jobs=(1, 4),
    quantizers=("--only", "ema", "--rounds", "2"),
    training=("--steps", "20", "--set", "train.init_clips=64"),
)
TRIAL = Scale(  # on a CPU: the recipe of bundled.toml with less of everything
    sizes=("32x32", "48x80", "68x120"),
    lengths=(9, 9, 9),
    training_clips="4x20x72x128",
    frames=5,
    rounds=1,
    batches=(1, 2),
    copies=2,
    jobs=(1, 2),
    quantizers=("--only", "fsq", "--rounds", "1"),
    training=(
        *("--steps", "2", "--set", "train.batch_size=2", "--set", "train.crop=32"),
        *("--set", "train.frames=9", "--set", "train.size=64", "--set", "train.init_clips=4"),
    ),
)


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


def repeat(option: str, values: Sequence[object]) -> list[object]:
    """Return the arguments that give an option several times."""
    return [argument for value in values for argument in (option, value)]


def plan(scale: Scale, device: str, folder: Path) -> list[Step]:
    """Return the steps; the first writes test clips to a folder, which others read."""
    on, script = ("--device", device), ROOT / "scripts"
    clips = [folder / f"{size}.mp4" for size in scale.sizes]
    shapes = [f"{t}x{size}" for t, size in zip(scale.lengths, scale.sizes, strict=True)]
    training = ("--training", scale.training_clips)
    model = [*repeat("--size", scale.sizes), *repeat("--batch", scale.batches)]
    model += ["--frames", scale.frames, "--rounds", scale.rounds]
    model += ["--dtype", "float32" if device == "cpu" else "bfloat16"]
    jobs = ["--copies", scale.copies, *repeat("--jobs", scale.jobs)]
    return [
        Step(
            "make_clips",
            "Test clips",
            "`scripts/make_clips.py`: h264 at 25 frames/s.",
            [script / "make_clips.py", folder, *repeat("--clip", shapes), *training],
        ),
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
            [script / "bench_model.py", *model, *on],
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
            [script / "bench_jobs.py", *clips, *jobs, *on],
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
            [script / "bench_steps.py", folder / "training", *scale.training, *on],
        ),
    ]


def test_summary(output: str) -> str:
    """Return the tests that failed and the last line of pytest, as a block of code."""
    lines = output.strip().splitlines()
    failed = [line for line in lines[:-1] if line.startswith(("FAILED", "ERROR"))]
    return "\n".join(["```", *failed, *lines[-1:], "```"])


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
        steps = plan(scale, device, Path(folder))
        page.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            if only and step.name not in ("make_clips", *only):
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
