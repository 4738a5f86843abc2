"""Speed of encode_clip and decode_clip beside that of their parts: does the work overlap?

    python scripts/bench_pipeline.py CLIPS... [--size 256] [--duration 5] [--rounds 3]

Encoding is compared with PyAV's decoder alone, reading alone (decoder, in hardware where the
command uses it, scaling and color conversion), copying to the device alone, and the model alone;
decoding with the model alone, copying to the host alone, and writing alone. Each is given in frames
per second and as a share of the time of the whole. They overlap, so the shares add up to more. The
ratio is the time of the whole over that of the slower of PyAV (or writing) and the model: 1 is the
limit where the parts do not share processors. Medians of interleaved rounds; loading the model is
not counted.
"""

import statistics
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
import typer
from benchmarks.measuring import measure_seconds, peak_memory

from vqtok import DEFAULT
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.clip import decode_clip, encode_clip, hardware_decoder
from vqtok.pipeline.overlap import DeviceTransfer
from vqtok.precision import to_uint8
from vqtok.tokens import Tokens
from vqtok.video import VideoWriter, open_video

Parts = dict[str, Callable[[], object]]  # what to time, by name
HEADER = """\
| clip | | PyAV or writing | reading | copying | model | whole | whole / slower part | GPU memory |
|---|---|---|---|---|---|---|---|---|"""


def encode_parts(
    path: Path, frames: int, model: Tokenizer, size: int | None, duration: float
) -> Parts:
    """Return PyAV's decoder ("file"), the model, reading, copying, and the whole."""
    hardware, transfer = hardware_decoder(model), DeviceTransfer(model.device)

    def decode_file() -> None:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for _ in islice(container.decode(stream), frames):
                pass

    def read() -> list[np.ndarray]:
        with open_video(path, size=size, duration=duration, hardware=hardware) as clip:
            return [chunk for chunk, _ in clip.chunks(model.stride[0])]

    def encode() -> Tokens:
        with open_video(path, size=size, duration=duration, hardware=hardware) as clip:
            return encode_clip(clip, model)

    arrays = read()
    chunks = [transfer.to_device(array).movedim(-1, 0)[None] for array in arrays]
    return {
        "file": decode_file,
        "read": read,
        "copy": lambda: [transfer.to_device(array) for array in arrays],
        "model": lambda: list(model.encode_stream(chunks)),
        "whole": encode,
    }


def decode_parts(tokens: Tokens, model: Tokenizer, folder: Path) -> Parts:
    """Return writing ("file"), the model, copying, and the whole."""
    transfer = DeviceTransfer(model.device)
    indices = torch.from_numpy(tokens.indices.astype(np.int64))[None]
    videos = [to_uint8(video[0].movedim(0, -1)) for video in model.decode_stream([indices])]
    frames = torch.cat(videos)[: tokens.frames, : tokens.height, : tokens.width].cpu().numpy()

    def write() -> None:
        with VideoWriter(
            folder / "a.mp4",
            height=tokens.height,
            width=tokens.width,
            fps=tokens.fps,
            time_base=tokens.time_base,
        ) as writer:
            writer.write(frames, tokens.timestamps)

    return {
        "file": write,
        "copy": lambda: list(transfer.to_host(videos)),
        "model": lambda: [None for _ in model.decode_stream([indices])],
        "whole": lambda: decode_clip(tokens, model, folder / "b.mp4"),
    }


def median_seconds(parts: Parts, rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median time of each part; the parts take turns in each round."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            times[name].append(measure_seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def row(parts: Parts, frames: int, rounds: int, device: torch.device) -> list[str]:
    """Return the cells from `PyAV or writing` on; copying is none on a CPU."""
    memory = peak_memory(parts["whole"], device)
    seconds = median_seconds(parts, rounds, device)
    if device.type == "cpu":
        del seconds["copy"]
    cells = [
        f"{frames / seconds[part]:.0f} frames/s, {seconds[part] / seconds['whole']:.0%}"
        if part in seconds
        else "—"
        for part in ("file", "read", "copy", "model")
    ]
    ratio = seconds["whole"] / max(seconds["file"], seconds["model"])
    return [*cells, f"{frames / seconds['whole']:.0f} frames/s", f"{ratio:.2f}", memory]


def main(
    clips: list[Path],
    tokenizer: str = DEFAULT,
    size: int | None = None,
    duration: float = 5.0,
    rounds: int = 3,
    device: str = "auto",
) -> None:
    model = load_for_inference(tokenizer, device, None)
    print(HEADER)
    for path in clips:
        hardware = hardware_decoder(model)
        with open_video(path, size=size, duration=duration, hardware=hardware) as clip:
            tokens = encode_clip(clip, model)
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                f"encode, {clip.decoder}": encode_parts(path, tokens.frames, model, size, duration),
                "decode": decode_parts(tokens, model, Path(folder)),
            }
            for command, parts in commands.items():
                cells = row(parts, tokens.frames, rounds, model.device)
                name = f"{path.name} {tokens.height}x{tokens.width}"
                print(f"| {name} | {command} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
