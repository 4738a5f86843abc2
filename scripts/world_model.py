"""A small world model from end to end: train it on tokens, then let it continue clips as video.

    vqtok encode clips/ -o tokens/ --pack 64M --size 64
    python scripts/world_model.py train tokens/ runs/world --grid 8x8
    python scripts/world_model.py continue runs/world tokens/ continued.mp4

The model is a causal transformer over the positions of latent frames, in raster order. What it
sees of a position are the ids of its tokens or, with `--latents`, the latents that they stand
for; what it predicts are ids. It runs on a GPU unchanged.
"""

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace as Options
from typing import Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vqtok
from vqtok.atomic import atomic_write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)
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

    def __init__(self, source: str, options: Options) -> None:
        names = "length", "step", "factors", "seed", "tokenizer"
        chosen = {name: getattr(options, name) for name in names}
        if options.grid:
            h, w = options.grid.split("x")
            chosen["grid"] = int(h), int(w)
        self.windows = vqtok.TokenWindows(source, start="any", **chosen)
        self.codes = f"{self.windows.tokenizer} {self.windows.keyframe_interval}"
        self.tokenizer = vqtok.load(options.tokenizer).to(DEVICE) if options.latents else None
        if self.windows.bos_token**options.factors != self.windows.codebook_size:
            raise SystemExit(f"{options.factors} equal factors do not make the codebook size")

    def join(self, digits: Tensor) -> Tensor:
        """Return digits (b t h w digits) as indices of the tokenizer: (b t h w [stages])."""
        return self.windows.join(digits if digits.shape[-1] > 1 else digits[..., 0])

    def latents(self, digits: Tensor) -> Tensor | None:
        """Return the latents (b c t h w), for a model that sees them, from a key frame on."""
        if self.tokenizer is None:
            return None
        codes = self.join(digits.where(digits < self.windows.bos_token, 0))
        return self.tokenizer.latents(codes, self.windows.keyframe_interval)

    def window(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return digits, latents and phase of windows, from what begins at a key frame."""
        digits = batch["indices"].to(DEVICE)
        digits = digits.view(*digits.shape[:4], -1)
        z, spans = self.latents(digits), [slice(i, i + self.windows.length) for i in batch["lead"]]
        if z is not None:
            z = torch.stack([row[:, span] for row, span in zip(z, spans, strict=True)])
        digits = torch.stack([row[span] for row, span in zip(digits, spans, strict=True)])
        return digits, z, batch["lead"].to(DEVICE)


def build(data: Data, options: Options) -> WorldModel:
    """Return a new model for these windows."""
    windows, (digits, z, _) = data.windows, data.window(next(iter(DataLoader(data.windows))))
    h, w, count = digits.shape[2:]
    codes = windows.bos_token, windows.keyframe_interval, 0 if z is None else z.shape[1]
    return WorldModel(options.length, (h, w), count, *codes, options.width, options.depth).to(
        DEVICE
    )


@torch.no_grad()
def validate(model: WorldModel, data: Data) -> float:
    """Return the bits per position of all windows."""
    total = count = 0.0
    for batch in DataLoader(data.windows, 16):
        bits = model.bits(*data.window(batch))
        total, count = total + float(bits.sum()), count + bits.numel()
    return total / count


@app.command()
def train(
    tokens: str,
    run: Path,
    validation: str | None = None,
    tokenizer: str = vqtok.DEFAULT,
    latents: bool = False,
    length: int = 8,
    step: int = 1,
    grid: str | None = None,
    factors: int = 1,
    width: int = 192,
    depth: int = 4,
    batch_size: int = 8,
    steps: int = 2000,
    lr: float = 1e-3,
    log_every: int = 100,
    seed: int = 0,
) -> None:
    """Train a model on TOKENS, or go on with it: model.pt in RUN holds all that this needs.

    --length and --step are latent frames of a window, and from one window to the next. --grid 8x8
    takes the central positions. --factors 2 splits an index into two digits. A checkpoint, a line
    of log.jsonl and a validation are due every --log-every steps.
    """
    options = Options(**locals())
    torch.manual_seed(seed)
    data = Data(tokens, options)
    held_out = Data(validation, options) if validation else None
    model, done = build(data, options), 0
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    run.mkdir(parents=True, exist_ok=True)
    checkpoint, settings = run / "model.pt", vars(options) | {"run": None, "tokens": data.codes}
    if checkpoint.exists():
        saved = torch.load(checkpoint, DEVICE)
        if saved["options"] != settings:
            raise SystemExit(f"{checkpoint} is of other options or tokens: choose another folder")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    start, batches = time.monotonic(), data.windows.batches(batch_size, done)
    for batch in DataLoader(data.windows, batch_sampler=batches):
        if done >= steps:
            break
        window = data.window(batch)
        cosine = 0.55 + 0.45 * math.cos(math.pi * done / steps)
        optimizer.param_groups[0]["lr"] = lr * min(1, (done + 1) / 100) * cosine
        with torch.autocast(DEVICE.type, torch.bfloat16):
            bits = model.bits(*window).mean()
        optimizer.zero_grad()
        bits.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        if done % log_every and done < steps:
            continue
        record = {"step": done, "bits": bits.item(), "seconds": time.monotonic() - start}
        if held_out:
            record["validation_bits"] = validate(model, held_out)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
        save(run, state | {"options": settings}, record)


def save(run: Path, state: dict[str, Any], record: dict[str, float]) -> None:
    """Write a checkpoint, and a line of the log."""
    with atomic_write(run / "model.pt") as temporary:
        torch.save(state, temporary)
    with (run / "log.jsonl").open("a") as file:
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
        step = min(data.windows.step, model.length)  # windows begin as those of training do
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
            digits[:, -1, i // w, i % w] = model.sample(state[:, -1], temperature)
    return digits


def load(run: Path, tokens: str | None = None) -> tuple[WorldModel, Data, Options]:
    """Return a trained model, tokens (default: those it was validated on), and its options."""
    saved = torch.load(run / "model.pt", DEVICE)
    options = Options(**saved["options"])
    data = Data(tokens or options.validation, options)
    if data.codes != options.tokens:
        raise SystemExit(f"{run} was trained on tokens of another tokenizer or key-frame interval")
    model = build(data, options)
    model.load_state_dict(saved["model"])
    return model.eval(), data, options


@app.command("continue")
def continue_clip(
    run: Path,
    tokens: str,
    output: str,
    window: int = 0,
    given: int = 4,
    frames: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Write a video: the first --given latent frames of window number --window, and --frames more.

    The likeliest tokens are taken at --temperature 0.
    """
    torch.manual_seed(seed)
    model, data, options = load(run, tokens)
    if not 0 < given <= model.length or not 0 <= window < len(data.windows):
        known = f"1 to {model.length} frames to give, and window 0 to {len(data.windows) - 1}"
        raise SystemExit(f"choose {known}")
    batch = next(iter(DataLoader(data.windows, sampler=[window])))
    digits = batch["indices"].view(*batch["indices"].shape[:4], -1).to(DEVICE)
    digits = digits[:, : int(batch["lead"]) + given]
    generated = vqtok.tokens_from_indices(
        data.join(extend(model, data, digits, frames, temperature))[0],
        tokenizer=options.tokenizer,
        fps=float(batch["fps"]),
        keyframe_interval=data.windows.keyframe_interval,
    )
    vqtok.decode_video(generated, output, tokenizer=options.tokenizer)
    print(f"{output}: {frames} latent frames after {given} of {batch['clip'][0]}", file=sys.stderr)


if __name__ == "__main__":
    app()
