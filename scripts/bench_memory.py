"""Peak memory of `encode` and `decode` on a short and on a long synthetic clip.

    python scripts/bench_memory.py [--height 360] [--width 640] [--fps 10] [--seconds 10 600]

Linux only: reads the high-water mark (VmHWM) of the command's process. Prints a Markdown table.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from make_clips import write_clip


def peak_memory(*arguments: object) -> tuple[float, float]:
    """Return the peak memory in MiB and the seconds of a vqtok command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "vqtok", *map(str, arguments), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        marks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *(int(line.split()[1]) for line in marks)])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"vqtok {arguments[0]} failed")
    return peak / 1024, time.perf_counter() - start


def main(
    height: int = 360,
    width: int = 640,
    fps: int = 10,
    seconds: Annotated[tuple[int, int], typer.Option()] = (10, 600),
) -> None:
    print(f"| {width}x{height}, {fps} frames/s | encode | decode |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        clip, tokens, decoded = (Path(folder) / n for n in ("a.mp4", "a.safetensors", "b.mp4"))
        for length in seconds:
            write_clip(clip, length * fps, height, width, fps)
            encode, encode_seconds = peak_memory("encode", clip, "-o", tokens, "--force")
            decode, decode_seconds = peak_memory("decode", tokens, "-o", decoded, "--force")
            cells = (
                f"{encode:.0f} MiB ({encode_seconds:.0f} s)"
                f" | {decode:.0f} MiB ({decode_seconds:.0f} s)"
            )
            print(f"| {length * fps:,} frames | {cells} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
