"""The page of bench_gpu.py: the machine, what each step printed, and what was not run."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
NEVER = (  # what no step runs
    "Several GPUs (`torchrun`, NCCL).",
    "Real clips: the test clips are waves with grain (`scripts/make_clips.py`).",
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
    index = device.partition(":")[2] or "0"
    gpu = output_of("nvidia-smi", query, "--format=csv,noheader", f"--id={index}")
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
