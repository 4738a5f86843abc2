"""Measure how well world models learn from tokens: bits, continuations, and errors that spread.

    python scripts/tokens_for_models.py VIDEOS RUNS... > figures.jsonl

RUNS are folders of world_model.py, whose `--validation` tokens are a folder of token files of
VIDEOS, clips that neither model nor tokenizer has seen. For each run:

- bits per position of these tokens, over all windows,
- PSNR of the tokenizer, of the model's continuation and of the last given frame repeated, by frame
  ahead: 4 latent frames are given and 4 continued, from every 12th latent frame of each clip on,
- what a wrong token changes: at such places, a random token of the fifth latent frame is replaced
  by another one, and the decoded frames are compared.

Decoding begins at the start of the clip, with its true tokens.
"""

import json
from argparse import ArgumentParser
from collections import defaultdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from world_model import DEVICE, Data, WorldModel, extend, load, validate

import vqtok
from vqtok.quality import psnr
from vqtok.video import open_video

GIVEN, CONTINUED, EVERY = 4, 4, 12  # latent frames
Frames = dict[str, list[float]]  # means by frame of the continuation


class Clip:
    """A clip of the validation tokens: indices (1 t h w ...), and the real video (3 t h w).

    `decoded` is the video that its tokens decode to.
    """

    def __init__(self, tokens: Path, video: Path, tokenizer: vqtok.Tokenizer) -> None:
        stored = vqtok.read_tokens(tokens)
        self.interval, self.tokenizer = stored.keyframe_interval, tokenizer
        self.indices = torch.from_numpy(stored.indices.astype(np.int64))[None]
        self.decoded = self._decode(self.indices)
        with open_video(video) as source:
            frames = np.concatenate([frames for frames, _ in source.chunks(64)])
        self.video = torch.from_numpy(frames).movedim(-1, 0).float() / 255

    def _decode(self, indices: Tensor) -> Tensor:
        return self.tokenizer.decode(indices, keyframe_interval=self.interval)[0].cpu()

    def frames(self, video: Tensor, frame: int) -> Tensor:
        """Return what CONTINUED latent frames from `frame` on stand for, of a video of the clip."""
        time = self.tokenizer.stride[0]
        return video[:, 1 + (frame - 1) * time :][:, : CONTINUED * time]

    def last(self, video: Tensor, frame: int) -> Tensor:
        """Return the last frame (3 1 h w) before a latent frame."""
        end = 1 + (frame - 1) * self.tokenizer.stride[0]
        return video[:, end - 1 : end]

    def continued(self, frame: int, indices: Tensor) -> Tensor:
        """Return the frames (3 t h w) of indices (1 t h w ...) that follow the clip at `frame`."""
        whole = self._decode(torch.cat([self.indices[:, :frame], indices.cpu()], dim=1))
        return self.frames(whole, frame)


def by_frame(video: Tensor, other: Tensor) -> Tensor:
    """Return the PSNR of each frame of two videos (3 t h w)."""
    return psnr(video.movedim(1, 0), other.movedim(1, 0))


def windows_to_continue(data: Data, clips: dict[str, Clip]) -> dict[int, list[dict[str, Any]]]:
    """Return the windows to continue, by the length of their lead-in."""
    groups = defaultdict(list)
    for i in range(len(data.windows)):
        window = data.windows[i]
        clip = clips[window["clip"]]
        real = clip.frames(clip.video, window["frame"] + GIVEN)
        complete = real.shape[1] == CONTINUED * data.windows.stride[0]
        if window["frame"] % EVERY == 0 and complete:
            groups[int(window["lead"])].append(window)
    return groups


def continuations(
    model: WorldModel, data: Data, clips: dict[str, Clip], temperature: float
) -> Frames:
    """Return the PSNR by frame of what the model continues, of the tokenizer, and of a still."""
    rows = defaultdict(list)
    for lead, windows in windows_to_continue(data, clips).items():
        digits = torch.stack([window["indices"] for window in windows]).to(DEVICE)
        digits = digits.view(*digits.shape[:4], -1)[:, : lead + GIVEN]
        drawn = data.join(extend(model, data, digits, CONTINUED, temperature))
        for window, indices in zip(windows, drawn[:, -CONTINUED:], strict=True):
            clip, frame = clips[window["clip"]], window["frame"] + GIVEN
            real, decoded = clip.frames(clip.video, frame), clip.frames(clip.decoded, frame)
            last = clip.last(clip.decoded, frame)
            rows["model"].append(by_frame(clip.continued(frame, indices[None]), real))
            rows["tokenizer"].append(by_frame(decoded, real))
            rows["still"].append(by_frame(last.expand_as(real), real))
    return {name: torch.stack(values).mean(0).tolist() for name, values in rows.items()}


def spread(data: Data, clips: dict[str, Clip]) -> Frames:
    """Return what a wrong token of the first frame changes, by frame.

    error: mean squared error in pixels of 0..255, summed over the frame.
    pixels: share of pixels of which a channel changes by more than 8 of 255.
    """
    rows = defaultdict(list)
    generator = torch.Generator().manual_seed(0)
    for windows in windows_to_continue(data, clips).values():
        for window in windows:
            clip, frame = clips[window["clip"]], window["frame"] + GIVEN
            true = clip.indices[:, frame : frame + CONTINUED]
            wrong = true.clone()
            place = [int(torch.randint(n, (1,), generator=generator)) for n in true.shape[2:]]
            offset = int(torch.randint(1, data.windows.codebook_size, (1,), generator=generator))
            wrong[(0, 0, *place)] = (wrong[(0, 0, *place)] + offset) % data.windows.codebook_size
            change = 255 * (clip.continued(frame, wrong) - clip.frames(clip.decoded, frame))
            rows["error"].append(change.square().mean(0).sum((1, 2)))
            rows["pixels"].append((change.abs().amax(0) > 8).float().mean((1, 2)))
    return {name: torch.stack(values).mean(0).tolist() for name, values in rows.items()}


def measure(run: Path, videos: Path, temperatures: list[float]) -> dict[str, Any]:
    """Return all figures of a run."""
    model, data, options = load(run)
    if options.length < GIVEN + CONTINUED or options.grid:
        raise SystemExit(
            f"{run}: train it with --length {GIVEN + CONTINUED} or more, and no --grid"
        )
    tokenizer = vqtok.load(options.tokenizer)
    tokens = Path(options.validation)
    names = {data.windows[i]["clip"] for i in range(len(data.windows))}
    clips = {name: Clip(tokens / f"{name}.safetensors", videos / name, tokenizer) for name in names}
    bits = validate(model, data)
    result = {"run": str(run), "bits": bits, "bits_per_pixel": bits / prod(tokenizer.stride)}
    result["latents"], result["interval"] = options.latents, data.windows.keyframe_interval
    for temperature in temperatures:
        torch.manual_seed(0)
        name = f"continued_{temperature:g}"
        result[name] = continuations(model, data, clips, temperature)
    return result | {"spread": spread(data, clips)}


def main() -> None:
    """Measure runs, and write a line of JSON for each to stdout."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    for run in options.runs:
        print(json.dumps(measure(run, options.videos, options.temperature)), flush=True)


if __name__ == "__main__":
    main()
