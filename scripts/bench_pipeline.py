"""Speed of encode_clip and decode_clip beside that of their parts: does the work overlap?

    python scripts/bench_pipeline.py CLIPS... [--size 256] [--duration 5] [--rounds 3]

Encoding is compared with PyAV's decoder alone, the model alone, and reading alone (decoder, scaling
and color conversion); decoding with the model alone and writing alone. The ratio is the time of the
whole over that of the slower of PyAV (or writing) and the model: 1 is the limit where the parts do
not share processors. Medians of interleaved rounds; loading the model is not counted.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
import typer

from vqtok import DEFAULT
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.clip import decode_clip, encode_clip
from vqtok.precision import to_uint8
from vqtok.tokens import Tokens
from vqtok.video import VideoWriter, open_video

Parts = dict[str, Callable[[], object]]  # what to time, by name


def encode_parts(
    path: Path, frames: int, model: Tokenizer, size: int | None, duration: float
) -> Parts:
    """Return PyAV's decoder ("file"), the model, reading, and the whole."""

    def decode_file() -> None:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for _ in islice(container.decode(stream), frames):
                pass

    def read() -> list[np.ndarray]:
        with open_video(path, size=size, duration=duration) as clip:
            return [chunk for chunk, _ in clip.chunks(model.stride[0])]

    def encode() -> Tokens:
        with open_video(path, size=size, duration=duration) as clip:
            return encode_clip(clip, model)

    chunks = [torch.from_numpy(chunk).movedim(-1, 0)[None] for chunk in read()]
    return {
        "file": decode_file,
        "model": lambda: list(model.encode_stream(chunks)),
        "whole": encode,
        "read": read,
    }


def decode_parts(tokens: Tokens, model: Tokenizer, folder: Path) -> Parts:
    """Return writing ("file"), the model, and the whole."""
    indices = torch.from_numpy(tokens.indices.astype(np.int64))[None]
    videos = [to_uint8(video[0].movedim(0, -1)).cpu() for video in model.decode_stream([indices])]
    frames = torch.cat(videos)[: tokens.frames, : tokens.height, : tokens.width].numpy()

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
        "model": lambda: list(model.decode_stream([indices])),
        "whole": lambda: decode_clip(tokens, model, folder / "b.mp4"),
    }


def median_seconds(parts: Parts, rounds: int) -> dict[str, float]:
    """Return the median time of each part; the parts take turns in each round."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main(
    clips: list[Path],
    tokenizer: str = DEFAULT,
    size: int | None = None,
    duration: float = 5.0,
    rounds: int = 3,
    device: str = "auto",
) -> None:
    model = load_for_inference(tokenizer, device, None)
    print("| clip | | PyAV or writing | model | whole | whole / slower part | reading |")
    print("|---|---|---|---|---|---|---|")
    for path in clips:
        with open_video(path, size=size, duration=duration) as clip:
            tokens = encode_clip(clip, model)
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                "encode": encode_parts(path, tokens.frames, model, size, duration),
                "decode": decode_parts(tokens, model, Path(folder)),
            }
            for command, parts in commands.items():
                seconds = median_seconds(parts, rounds)
                speed = {name: f"{tokens.frames / s:.0f} frames/s" for name, s in seconds.items()}
                ratio = seconds["whole"] / max(seconds["file"], seconds["model"])
                name = f"{path.name} {tokens.height}x{tokens.width} | {command}"
                alone = f"{speed['file']} | {speed['model']} | {speed['whole']}"
                print(f"| {name} | {alone} | {ratio:.2f} | {speed.get('read', '')} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
