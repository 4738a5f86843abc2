"""How long people wait: for `import vqtok`, `vqtok --help`, and the first token of a short clip.

    python scripts/bench_start.py CLIPS... [--duration 0.5] [--runs 5]

Every run is a process of its own, with the files in the page cache; run it after a reboot, with
`--runs 1`, for what an empty cache costs. The first token is there when the indices of the first
chunk of `vqtok encode` are in the buffer that is written. Seconds from the start of the process,
minimum and median; the phases are those of the run that was fastest to the first token.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

HEADER = """\
| | minimum | median |
|---|---|---|"""

# Runs `vqtok encode` and prints the time at the end of each phase.
ENCODE = """
import gc, json, sys, time
from vqtok import __main__
marks = {}
def mark(phase):
    marks.setdefault(phase, time.time())
mark("Python")
gc.set_threshold(__main__.GC_THRESHOLD)
import vqtok.cli
mark("command line")
import torch
mark("import torch")
import vqtok.commands.encode
mark("other imports")
def mark_after(owner, name, phase):
    function = getattr(owner, name)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        mark(phase)
        return result
    setattr(owner, name, wrapper)
from vqtok.commands import run_options
from vqtok.pipeline import clip
mark_after(run_options, "load_for_inference", "tokenizer")
mark_after(clip.IndexBuffer, "append", "first chunk")
try:
    __main__.main()
finally:
    print(json.dumps(marks))
"""


def seconds(*command: str) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def first_token(clip: Path, duration: float) -> dict[str, float]:
    """Return the time from the start of the process to the end of each phase of encoding."""
    with TemporaryDirectory() as folder:
        options = ["-o", f"{folder}/t.safetensors", "--duration", str(duration), "--quiet"]
        command = [sys.executable, "-c", ENCODE, "encode", str(clip), *options]
        start = time.time()
        output = subprocess.run(command, check=True, capture_output=True).stdout
    return {phase: end - start for phase, end in json.loads(output).items()}


def print_row(name: str, values: list[float]) -> None:
    """Print a row of the table."""
    print(f"| {name} | {min(values):.2f} s | {statistics.median(values):.2f} s |", flush=True)


def main(clips: list[Path], duration: float = 0.5, runs: int = 5) -> None:
    print(HEADER)
    print_row("`python -c pass`", [seconds("-c", "pass") for _ in range(runs)])
    print_row("`import vqtok`", [seconds("-c", "import vqtok") for _ in range(runs)])
    print_row("`vqtok --help`", [seconds("-m", "vqtok", "--help") for _ in range(runs)])
    print_row("`import torch`", [seconds("-c", "import torch") for _ in range(runs)])
    for clip in clips:
        found = [first_token(clip, duration) for _ in range(runs)]
        print_row(f"{clip.name}, first token", [phases["first chunk"] for phases in found])
        best, before = min(found, key=lambda phases: phases["first chunk"]), 0.0
        for phase, end in best.items():
            print(f"| … {phase} | {end - before:.2f} s | |")
            before = end


if __name__ == "__main__":
    typer.run(main)
