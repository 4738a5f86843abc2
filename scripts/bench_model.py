"""Speed of the model in frames per second, without reading or writing video.

    python scripts/bench_model.py [--size 256] [--dtype bfloat16] [--device cpu] [--set key=value]

Runs a tokenizer of the bundled one's size, with random weights, through the same streamed code as
`vqtok encode` and `vqtok decode`. Prints the median over interleaved rounds.
"""

import statistics
import time
from collections.abc import Callable

import torch
import typer

from vqtok import config
from vqtok.model.tokenizer import Tokenizer
from vqtok.precision import set_global_flags


def measure_seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main(
    size: int = 256,
    frames: int = 33,
    rounds: int = 7,
    dtype: str = "bfloat16",
    device: str = "cpu",
    set_: list[str] = typer.Option([], "--set"),  # noqa: B008
) -> None:
    settings = config.load(config.folder() / "bundled.toml", set_)
    target = torch.device(device)
    set_global_flags()
    tokenizer = Tokenizer(settings.model, settings.quantizer).eval()
    tokenizer.to(target).cast(getattr(torch, dtype))
    video = torch.randint(0, 256, (1, frames, size, size, 3), dtype=torch.uint8).movedim(-1, 1)
    indices = tokenizer.encode(video)

    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(rounds):
        seconds["encode"].append(measure_seconds(lambda: tokenizer.encode(video), target))
        seconds["decode"].append(measure_seconds(lambda: tokenizer.decode(indices), target))
    for name, module in tokenizer.named_children():
        parameters = sum(p.numel() for p in module.parameters())
        print(f"{name}: {parameters / 1e6:.2f} M parameters")
    threads = f", {torch.get_num_threads()} threads" if target.type == "cpu" else ""
    for name, values in seconds.items():
        speed = frames / statistics.median(values)
        print(f"{name}: {speed:.1f} frames/s at {size}x{size}, {dtype}, {device}{threads}")


if __name__ == "__main__":
    typer.run(main)
