"""Model speed: frames per second of the encoder and the decoder, without reading or writing video.

    python scripts/bench_model.py [--size 256] [--dtype bfloat16] [--device cpu] [--set key=value]

Runs a tokenizer like the bundled one (random weights: speed does not depend on them) through the
same streamed path that `vqtok encode` and `vqtok decode` take. Prints the median over interleaved
rounds.
"""

import statistics
import time
from collections.abc import Callable

import torch
import typer

from vqtok import config
from vqtok.model.tokenizer import Tokenizer


def seconds(work: Callable[[], object], device: torch.device) -> float:
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
    where = torch.device(device)
    torch.set_flush_denormal(True)
    tokenizer = Tokenizer(settings.model, settings.quantizer).eval()
    tokenizer.to(where).cast(getattr(torch, dtype))
    video = torch.randint(0, 256, (1, frames, size, size, 3), dtype=torch.uint8).movedim(-1, 1)
    indices = tokenizer.encode(video)

    times: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(rounds):
        times["encode"].append(seconds(lambda: tokenizer.encode(video), where))
        times["decode"].append(seconds(lambda: tokenizer.decode(indices), where))
    for name in ("encoder", "decoder", "predictor"):
        part = getattr(tokenizer, name) or torch.nn.Identity()
        print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
    threads = f", {torch.get_num_threads()} threads" if where.type == "cpu" else ""
    for name, values in times.items():
        speed = frames / statistics.median(values)
        print(f"{name}: {speed:.1f} frames/s at {size}x{size}, {dtype}, {device}{threads}")


if __name__ == "__main__":
    typer.run(main)
