"""A small world model from end to end: train it on tokens, then let it continue clips as video.

    vqtok encode clips/ -o tokens/ --pack 64M --size 64
    python scripts/world_model.py train tokens/ runs/world --grid 8x8
    python scripts/world_model.py continue runs/world tokens/ continued.mp4

The model is a causal transformer over the positions of latent frames, in raster order. What it
sees of a position are the ids of its tokens or, with `--latents`, the latents that they stand
for; what it predicts are ids. It runs on a GPU unchanged.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vqtok
from vqtok.atomic import atomic_write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KeyValue = tuple[Tensor, Tensor]  # of the positions so far, each (b heads n d)


class Block(nn.Module):
    """A transformer block: causal attention, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for last in (self.out, self.down):  # a block begins as the identity
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Return the output (b n width), and keys and values of all positions so far.

        past: of the positions before x, which then is a single position.
        """
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x)))), (k, v)


class WorldModel(nn.Module):
    """The probabilities of the digits of a position, given all positions before it.

    length, grid: latent frames of a window, and positions (h, w) of one.
    digits, vocabulary: integers that make a position, stages x factors, and values of each.
    interval: latent frames from one key frame to the next. The model knows how many have passed.
    channels: of the latents that it sees; 0 if it sees ids.
    """

    def __init__(
        self,
        length: int,
        grid: tuple[int, int],
        digits: int,
        vocabulary: int,
        interval: int,
        channels: int,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.length, self.digits, self.interval = length, digits, interval
        self.embeddings = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(digits))
        self.project = nn.Linear(channels, width) if channels else None
        self.before = nn.Linear(width, width)
        sizes = length, *grid, min(interval, 64)
        self.places = nn.ParameterList(0.02 * torch.randn(size, width) for size in sizes)
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(width, vocabulary) for _ in range(digits))

    def inputs(self, digits: Tensor, z: Tensor | None, phase: Tensor) -> Tensor:
        """Return what positions see before attention (b n width): where they are, and content.

        That is of the position before them, and of the same place in the latent frame before.

        digits: (b t h w digits). z: their latents (b c t h w), or None to see ids.
        phase: (b) latent frames from the last key frame to the window.
        """
        if self.project is None or z is None:
            content = self.embed(digits)
        else:
            content = self.project(z.movedim(1, -1))
        t, h, w = digits.shape[1:4]
        content = content.flatten(1, 3)
        last, before = (F.pad(content, (0, 0, n, -n)) for n in (1, h * w))
        time, rows, columns, since_key = self.places
        frames = (phase[:, None] + torch.arange(t, device=phase.device)) % self.interval
        frame = time[:t] + since_key[frames.clamp(max=len(since_key) - 1)]  # (b t width)
        place = frame[:, :, None, None] + rows[:, None] + columns
        return last + self.before(before) + place.flatten(1, 3)

    def embed(self, digits: Tensor) -> Tensor:
        """Return the sum of the embeddings (... width) of the first digits of positions."""
        pairs = zip(self.embeddings, digits.unbind(-1), strict=False)
        return torch.stack([embedding(digit) for embedding, digit in pairs]).sum(0)

    def forward(self, x: Tensor, cache: list[KeyValue] | None = None) -> Tensor:
        """Return the state (b n width) of positions; those in the cache come before them."""
        past = [*cache] if cache else [None] * len(self.blocks)
        for i, block in enumerate(self.blocks):
            x, key_value = block(x, past[i])
            if cache is not None:
                cache[i : i + 1] = [key_value]
        return self.norm(x)

    def logits(self, state: Tensor, known: Tensor) -> Tensor:
        """Return the logits (... vocabulary) of the digit that follows the known ones."""
        if known.shape[-1]:
            state = state + self.mix(state + self.embed(known))
        return self.heads[known.shape[-1]](state).float()

    def bits(self, digits: Tensor, z: Tensor | None, phase: Tensor) -> Tensor:
        """Return the bits (b t h w) that the positions of windows take: - log2 p."""
        state = self(self.inputs(digits, z, phase)).unflatten(1, digits.shape[1:4])
        nats = [
            F.cross_entropy(
                self.logits(state, digits[..., :i]).movedim(-1, 1), digits[..., i], reduction="none"
            )
            for i in range(self.digits)
        ]
        return torch.stack(nats).sum(0) / math.log(2)

    def sample(self, state: Tensor, temperature: float) -> Tensor:
        """Return digits (b digits) drawn for a position; the likeliest at temperature 0."""
        digits = torch.empty(len(state), 0, dtype=torch.long, device=state.device)
        for _ in range(self.digits):
            logits = self.logits(state, digits)
            if temperature:
                digit = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                digit = logits.argmax(-1, keepdim=True)
            digits = torch.cat([digits, digit], dim=1)
        return digits


class Data:
    """Windows of tokens, as the model takes them. The options are those of the command."""

    def __init__(self, source: str, options: argparse.Namespace) -> None:
        self.windows = vqtok.TokenWindows(
            source,
            options.length,
            start="any",
            step=options.step,
            grid=options.grid,
            factors=options.factors,
            seed=options.seed,
            tokenizer=options.tokenizer,
        )
        self.tokenizer = vqtok.load(options.tokenizer).to(DEVICE) if options.latents else None

    def join(self, digits: Tensor) -> Tensor:
        """Return digits (b t h w digits) as indices of the tokenizer: (b t h w [stages])."""
        return self.windows.join(digits if digits.shape[-1] > 1 else digits[..., 0])

    def latents(self, digits: Tensor) -> Tensor | None:
        """Return the latents (b c t h w), for a model that sees them, from a key frame on."""
        if self.tokenizer is None:
            return None
        codes = self.join(digits.where(digits < self.windows.bos_token, 0))
        return self.tokenizer.latents(codes, self.windows.keyframe_interval)

    def valid(self, digits: Tensor) -> Tensor:
        """Return drawn digits (... digits); those of no code become those of the last one."""
        base, count = self.windows.bos_token, self.windows.factors
        powers = base ** torch.arange(count - 1, -1, -1, device=digits.device)
        indices = (digits.unflatten(-1, (-1, count)) * powers).sum(-1, keepdim=True)
        return (indices.clamp(max=self.windows.codebook_size - 1) // powers % base).flatten(-2)

    def window(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return digits, latents and phase of windows, from what begins at a key frame."""
        digits, lead = batch["indices"].to(DEVICE), batch["lead"].to(DEVICE)
        digits = digits.view(*digits.shape[:4], -1)
        z = self.latents(digits)
        row = torch.arange(len(lead), device=DEVICE)[:, None]
        frame = lead[:, None] + torch.arange(self.windows.length, device=DEVICE)
        z = None if z is None else z.movedim(1, 2)[row, frame].movedim(2, 1)
        return digits[row, frame], z, lead


def build(data: Data, options: argparse.Namespace) -> WorldModel:
    """Return a new model for these windows."""
    windows, example = data.windows, data.window(next(iter(DataLoader(data.windows))))
    h, w, digits = example[0].shape[2:]
    channels = 0 if example[1] is None else example[1].shape[1]
    settings = windows.bos_token, windows.keyframe_interval, channels
    model = WorldModel(options.length, (h, w), digits, *settings, options.width, options.depth)
    return model.to(DEVICE)


@torch.no_grad()
def validate(model: WorldModel, data: Data) -> float:
    """Return the bits per position of all windows."""
    total = count = 0.0
    for batch in DataLoader(data.windows, 16):
        bits = model.bits(*data.window(batch))
        total, count = total + float(bits.sum()), count + bits.numel()
    return total / count


def train(options: argparse.Namespace) -> None:
    """Train a model, or go on with it; `model.pt` holds all that this needs."""
    torch.manual_seed(options.seed)
    data = Data(options.tokens, options)
    held_out = Data(options.validation, options) if options.validation else None
    model, step = build(data, options), 0
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint = options.run / "model.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, DEVICE)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    settings = {
        name: value for name, value in vars(options).items() if name not in ("function", "run")
    }
    start, batches = time.monotonic(), data.windows.batches(options.batch_size, step)
    for batch in DataLoader(data.windows, batch_sampler=batches):
        if step >= options.steps:
            break
        window = data.window(batch)
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / options.steps)
        optimizer.param_groups[0]["lr"] = options.lr * min(1, (step + 1) / 100) * cosine
        with torch.autocast(DEVICE.type, torch.bfloat16):
            bits = model.bits(*window).mean()
        optimizer.zero_grad()
        bits.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % options.log_every and step < options.steps:
            continue
        record = {"step": step, "bits": bits.item(), "seconds": time.monotonic() - start}
        if held_out:
            record["validation_bits"] = validate(model, held_out)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        with atomic_write(checkpoint) as temporary:
            torch.save(state | {"options": settings}, temporary)
        with (options.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(", ".join(f"{name} {value:.6g}" for name, value in record.items()), file=sys.stderr)


@torch.inference_mode()
def extend(
    model: WorldModel, data: Data, digits: Tensor, frames: int, temperature: float
) -> Tensor:
    """Return clips (b t h w digits), given from a key frame on, with more latent frames.

    A frame is drawn position by position; the cache holds what all blocks saw before.
    """
    for _ in range(frames):
        digits = F.pad(digits, (*(0, 0) * 3, 0, 1))
        t, h, w = digits.shape[1:4]
        step = data.windows.step  # the window begins where one of training could
        start = max(0, -(-(t - model.length) // step) * step)
        phase = start % model.interval
        phases = torch.full((len(digits),), phase, device=DEVICE)
        cache: list[KeyValue] = []
        for i in range(h * w):
            z = data.latents(digits[:, start - phase :])
            z = None if z is None else z[:, :, phase:]
            x = model.inputs(digits[:, start:], z, phases)
            end = x.shape[1] - h * w + i + 1
            state = model(x[:, end - 1 if i else 0 : end], cache)
            digits[:, -1, i // w, i % w] = data.valid(model.sample(state[:, -1], temperature))
    return digits


def load(run: Path, tokens: str | None = None) -> tuple[WorldModel, Data, argparse.Namespace]:
    """Return a trained model, tokens (default: those it was validated on), and its options."""
    saved = torch.load(run / "model.pt", DEVICE)
    options = argparse.Namespace(**saved["options"])
    data = Data(tokens or options.validation, options)
    model = build(data, options)
    model.load_state_dict(saved["model"])
    return model.eval(), data, options


def continue_clip(options: argparse.Namespace) -> None:
    """Write a video of the first latent frames of a window, and of what the model adds."""
    torch.manual_seed(options.seed)
    model, data, trained = load(options.run, options.tokens)
    window = next(iter(DataLoader(data.windows, sampler=[options.window])))
    digits = window["indices"].view(*window["indices"].shape[:4], -1).to(DEVICE)
    digits = digits[:, : int(window["lead"]) + options.given]
    digits = extend(model, data, digits, options.frames, options.temperature)
    tokens = vqtok.tokens_from_indices(
        data.join(digits)[0],
        tokenizer=trained.tokenizer,
        fps=float(window["fps"]),
        keyframe_interval=data.windows.keyframe_interval,
    )
    vqtok.decode_video(tokens, options.output, tokenizer=trained.tokenizer)


# Options of `train` with a default.
NUMBERS = {
    "length": (8, "latent frames of a window"),
    "step": (1, "latent frames from one window to the next"),
    "factors": (1, "digits that each index is split into"),
    "width": (192, "channels, a multiple of 64"),
    "depth": (4, "blocks"),
    "batch-size": (8, "windows"),
    "steps": (2000, "of the optimizer"),
    "lr": (1e-3, "highest learning rate"),
    "log-every": (100, "steps; also from one checkpoint and validation to the next"),
    "seed": (0, "of weights and order"),
}


def main() -> None:
    """Parse the command line, and train or continue."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("train", help="train on tokens, or go on with it")
    command.set_defaults(function=train)
    add = command.add_argument
    add("tokens", help="packed corpus, folder or token file")
    add("run", type=Path, help="folder of the model")
    add("--validation", help="tokens to validate on")
    add("--tokenizer", default=vqtok.DEFAULT, help="of the tokens: a bundled name, or a file")
    add("--latents", action="store_true", help="see latents instead of ids")
    add("--grid", type=lambda text: tuple(map(int, text.split("x"))), help="center, such as 8x8")
    for name, (default, text) in NUMBERS.items():
        add(f"--{name}", type=type(default), default=default, help=f"{text} ({default})")

    command = commands.add_parser("continue", help="continue a clip, as video")
    command.set_defaults(function=continue_clip)
    add = command.add_argument
    add("run", type=Path)
    add("tokens", help="packed corpus, folder or token file")
    add("output", help="video file")
    add("--window", type=int, default=0, help="number of the window to continue")
    add("--given", type=int, default=4, help="latent frames that the model is given")
    add("--frames", type=int, default=4, help="latent frames that it adds")
    add("--temperature", type=float, default=1.0)
    add("--seed", type=int, default=0)

    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
