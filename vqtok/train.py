"""The training loop, as straight code: a step, a log line, a save."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import AdamW, Optimizer

from vqtok import checkpoint
from vqtok.config import TrainSettings
from vqtok.data import Clips, Procedural
from vqtok.errors import UsageError, VqtokError
from vqtok.files import replacing
from vqtok.metrics import codebook_use, psnr
from vqtok.runs import STATE, Run
from vqtok.threads import ahead, stopping
from vqtok.tokenizer import Tokenizer

LOG_EVERY = 10  # steps
START_BATCHES = 8  # that the first weights are taken from
Show = Callable[[dict[str, Any]], None]


def train(
    run: Run,
    clips: Clips | Procedural,
    device: torch.device,
    show: Show,
    until: int | None = None,
) -> None:
    """Train a run from its last save, or from the start, up to step `until` (or `train.steps`).

    Leaves in its folder `tokenizer.safetensors`, `metrics.jsonl` (a line every 10 steps, also given
    to `show`) and `resume.safetensors`. On a CPU, a run that was stopped and resumed equals one
    that was not to the last bit. Ctrl-C saves after the step in hand.

    Raises VqtokError when the training data or the saved state cannot be read, or when the loss is
    no longer a number; the last save then stands.
    """
    settings, steps = run.settings, until or run.settings.train.steps
    torch.set_flush_denormal(True)  # subnormal numbers make a step on a CPU several times slower
    torch.manual_seed(settings.train.seed)
    tokenizer = Tokenizer(settings.model, settings.quantizer).to(device).train()
    optimizer = AdamW(
        [p for p in tokenizer.parameters() if p.requires_grad],
        betas=(0.9, 0.99),
        weight_decay=settings.train.weight_decay,
    )
    first = restore(run, tokenizer, optimizer)
    if first >= steps:
        raise UsageError(f"{run.folder} has done {first} steps already: ask for more with --steps")
    if first == 0:
        tokenizer.start(torch.cat([clips.batch(step) for step in range(START_BATCHES)]).to(device))
    run.write()
    log = Log(run.folder / "metrics.jsonl", tokenizer.codebook_size, first, show)
    with stopping() as stopped, ahead(map(clips.batch, count(first))) as batches:
        for step in range(first, steps):
            video = next(batches).to(device)
            values, indices = train_step(tokenizer, optimizer, video, settings.train, step)
            if not values["loss"].isfinite():
                raise VqtokError(
                    f"the loss is no longer a number at step {step + 1}: go on from the last save "
                    "with a lower train.learning_rate"
                )
            stop = stopped()  # asked once: a Ctrl-C after this waits for the next step and its save
            last = stop or step + 1 == steps
            log.add(step + 1, values, indices, last)
            if last or (step + 1) % settings.train.save_every == 0:
                save(run, tokenizer, optimizer, step + 1)
            if stop:
                raise KeyboardInterrupt


def train_step(
    tokenizer: Tokenizer, optimizer: Optimizer, video: Tensor, settings: TrainSettings, step: int
) -> tuple[dict[str, Tensor], Tensor]:
    """One update on clips (b c t h w) uint8: what to log, and the indices."""
    torch.manual_seed(settings.seed + step)  # a resumed run then draws what the first would have
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    with torch.autocast(video.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        reconstruction, quantized = tokenizer(video)
    target = video.float() / 255
    error = reconstruction - target
    l1, l2 = error.abs().mean(), error.square().mean()
    loss = settings.l1_weight * l1 + settings.l2_weight * l2 + quantized.loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), settings.clip_norm)
    optimizer.step()
    quality = psnr(target, reconstruction.detach().clamp(0, 1)).mean()
    return {"loss": loss.detach(), "psnr": quality} | quantized.terms, quantized.indices


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Up in a line over the warm-up, then down to zero along half a cosine."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


class Log:
    """Means over the last LOG_EVERY steps, as lines of a file that a resumed run goes on with."""

    def __init__(self, path: Path, codebook_size: int, first: int, show: Show) -> None:
        self._path, self._size, self._show = path, codebook_size, show
        self._values: list[dict[str, Tensor]] = []
        self._indices: list[Tensor] = []
        self._time = time.perf_counter()
        # A run that was killed may have written lines after its last save, the last one in part.
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line[-1:] == "}" and json.loads(line)["step"] <= first]
        path.write_text("".join(line + "\n" for line in kept))

    def add(self, step: int, values: dict[str, Tensor], indices: Tensor, last: bool) -> None:
        """Take in what a step gave; write a line when it is time, and at the last step."""
        self._values.append(values)
        self._indices.append(indices.flatten())
        if last or step % LOG_EVERY == 0:
            self._write(step)

    def _write(self, step: int) -> None:
        row: dict[str, Any] = {"step": step}
        for name in self._values[0]:
            row[name] = torch.stack([v[name].float() for v in self._values]).mean().item()
        indices = torch.cat(self._indices).cpu()
        use = asdict(codebook_use(torch.bincount(indices, minlength=self._size).numpy()))
        row |= {key: use[key] for key in ("tokens", "usage", "usage_by_chance", "perplexity")}
        now = time.perf_counter()
        row["seconds_per_step"] = (now - self._time) / len(self._values)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._values, self._indices, self._time = [], [], now
        self._show(row)


def save(run: Run, tokenizer: Tokenizer, optimizer: Optimizer, step: int) -> None:
    """Write the tokenizer to share, and all that `restore` needs, each file whole or not at all."""
    checkpoint.save(run.folder / "tokenizer.safetensors", tokenizer, run.settings, step)
    state = {f"weights {name}": w for name, w in tokenizer.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer {i} {name}": value for name, value in values.items()}
    with replacing(run.folder / STATE) as temporary:
        state = {key: value.contiguous() for key, value in state.items()}
        temporary.write_bytes(to_bytes(state, {"step": str(step)}))


def restore(run: Run, tokenizer: Tokenizer, optimizer: Optimizer) -> int:
    """Put back what `save` wrote, if anything: the number of steps done."""
    path = run.folder / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            step = int((file.metadata() or {})["step"])
        weights = {
            k.removeprefix("weights "): v for k, v in state.items() if k.startswith("weights ")
        }
        tokenizer.load_state_dict(weights)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise VqtokError(f"{path} is damaged or of another configuration: {error}") from None
    moments: dict[int, dict[str, Tensor]] = {}
    for key in state.keys() - {f"weights {name}" for name in weights}:
        _, i, name = key.split(" ")
        moments.setdefault(int(i), {})[name] = state[key]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return step
