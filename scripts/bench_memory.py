"""Peak memory of `encode` and `decode` on a short and on a long synthetic clip.

    python scripts/bench_memory.py [--height 360] [--width 640] [--fps 10] [--seconds 10 600]

Linux only: reads the high-water mark (VmHWM) of the command's process. Prints a Markdown table.
"""

import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import typer


def write_clip(
    path: Path, frames: int, height: int, width: int, fps: int, noise: float = 0, seed: int = 0
) -> None:
    """Write waves that move over a gradient.

    noise: standard deviation, in 8 bits, of a grain that moves, as hard to decode as a real clip.
    """
    random = np.random.default_rng(seed)
    grain = noise * random.standard_normal((height, width, 1))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", Fraction(fps), options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            wave = 128 + 60 * np.sin(x / 23 + t / 5 + seed) + 60 * np.cos(y / 17 - t / 7)
            rgb = np.stack([wave, 255 - wave, 255 * x / width], -1)
            if noise:
                rgb += np.roll(grain, random.integers(0, height * width))
            rgb = rgb.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


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
