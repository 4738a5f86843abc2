"""Whole commands against their parts: does reading, the model and writing overlap?

    python scripts/bench_pipeline.py CLIPS... [--size 256] [--duration 5] [--rounds 3]

For each clip, the speed of `encode` as a whole beside that of its parts alone: PyAV's decoder, the
model, and reading (the decoder, scaling and colours); and of `decode` beside writing. The ratio is
that of the whole's time to that of the slower of the first two: 1 is the limit where the parts do
not share processors. Medians of interleaved rounds; loading the model and starting Python do not
count.
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
from vqtok.tokens import Tokens
from vqtok.video import VideoWriter, open_video


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parts_of_encode(
    path: Path, count: int, model: Tokenizer, size: int | None, duration: float
) -> dict[str, Callable[[], object]]:
    """The decoder, the model, both, and reading."""

    def codec() -> None:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for _ in islice(container.decode(stream), count):
                pass

    def read() -> list[np.ndarray]:
        with open_video(path, size=size, duration=duration) as clip:
            return [frames for frames, _ in clip.chunks(model.stride[0])]

    def whole() -> Tokens:
        with open_video(path, size=size, duration=duration) as clip:
            return encode_clip(clip, model)

    chunks = [torch.from_numpy(frames).movedim(-1, 0)[None] for frames in read()]
    return {
        "file": codec,
        "model": lambda: list(model.encode_stream(chunks)),
        "whole": whole,
        "read": read,
    }


def parts_of_decode(
    tokens: Tokens, model: Tokenizer, folder: Path
) -> dict[str, Callable[[], object]]:
    """The model, writing, and both."""
    indices = torch.from_numpy(tokens.indices.astype(np.int64))[None]
    frames = np.concatenate(
        [
            video[0].movedim(0, -1).mul(255).byte().numpy()
            for video in (part.cpu() for part in model.decode_stream([indices]))
        ]
    )[: tokens.frames, : tokens.height, : tokens.width]

    def write() -> None:
        shape = {"height": tokens.height, "width": tokens.width}
        with VideoWriter(
            folder / "a.mp4", **shape, fps=tokens.fps, time_base=tokens.time_base
        ) as out:
            out.write(frames, tokens.timestamps)

    return {
        "file": write,
        "model": lambda: list(model.decode_stream([indices])),
        "whole": lambda: decode_clip(tokens, model, folder / "b.mp4"),
    }


def measure(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each part."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            times[name].append(seconds(work))
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
    print("| clip | | decoder or writing | model | whole | whole / slower part | reading |")
    print("|---|---|---|---|---|---|---|")
    for path in clips:
        with open_video(path, size=size, duration=duration) as clip:
            tokens = encode_clip(clip, model)
        with tempfile.TemporaryDirectory() as folder:
            kinds = {
                "encode": parts_of_encode(path, tokens.frames, model, size, duration),
                "decode": parts_of_decode(tokens, model, Path(folder)),
            }
            for kind, parts in kinds.items():
                took = measure(parts, rounds)
                speed = {part: f"{tokens.frames / t:.0f} frames/s" for part, t in took.items()}
                ratio = took["whole"] / max(took["file"], took["model"])
                name = f"{path.name} {tokens.height}x{tokens.width} | {kind}"
                alone = f"{speed['file']} | {speed['model']} | {speed['whole']}"
                print(f"| {name} | {alone} | {ratio:.2f} | {speed.get('read', '')} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
