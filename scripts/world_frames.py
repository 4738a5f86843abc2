"""Write an image of what really came in clips, and of what world models made of it.

    python scripts/world_frames.py VIDEOS RUNS... -o FILE.png --at clip.mp4:12 --at other.mp4:0

VIDEOS and RUNS are those of tokens_for_models.py. For each place, a clip and a latent frame of it,
the first row is the real video and the others are continuations by each run. The first column is
the last frame that the models were given; the others follow every 2 frames.
"""

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokens_for_models import CONTINUED, GIVEN, Clip
from torch import Tensor
from world_model import DEVICE, Data, WorldModel, extend, load

import vqtok
from vqtok.precision import to_uint8
from vqtok.video import VideoWriter

EVERY, ZOOM = 2, 2  # frames from one column to the next; pixels of the image for one of a frame


def continued(model: WorldModel, data: Data, name: str, frame: int, temperature: float) -> Tensor:
    """Return the indices (1 t h w ...) with which a model continues a clip after GIVEN frames."""
    for i in range(len(data.windows)):
        window = data.windows[i]
        if (window["clip"], window["frame"]) == (name, frame):
            digits = window["indices"][None, : window["lead"] + GIVEN].to(DEVICE)
            digits = digits.view(*digits.shape[:4], -1)
            return data.join(extend(model, data, digits, CONTINUED, temperature))[:, -CONTINUED:]
    raise SystemExit(f"no window of {name} begins at latent frame {frame}")


def row(before: Tensor, frames: Tensor) -> np.ndarray:
    """Return a frame (3 1 h w) and some of the frames (3 t h w) after it, (h w c) uint8."""
    shown = torch.cat([before, frames[:, EVERY - 1 :: EVERY]], dim=1)
    image = to_uint8(shown.permute(2, 1, 3, 0).flatten(1, 2)).numpy()  # (h t*w c)
    return image.repeat(ZOOM, 0).repeat(ZOOM, 1)


def main(
    videos: Path,
    runs: list[Path],
    output: Annotated[Path, typer.Option("-o", "--output")],
    at: Annotated[list[str], typer.Option(help="A clip and a latent frame.")],
    temperature: float = 1.0,
) -> None:
    rows: list[np.ndarray] = []
    for place in at:
        name, _, start = place.rpartition(":")
        frame = int(start) + GIVEN
        for number, run in enumerate(runs):
            torch.manual_seed(0)
            model, data, options = load(run)
            tokens = Path(options.validation) / f"{name}.safetensors"
            clip = Clip(tokens, videos / name, vqtok.load(options.tokenizer))
            if number == 0:
                rows.append(row(clip.last(clip.video, frame), clip.frames(clip.video, frame)))
            drawn = continued(model, data, name, int(start), temperature)
            rows.append(row(clip.last(clip.decoded, frame), clip.continued(frame, drawn)))
    image = np.concatenate(rows)
    height, width, _ = image.shape
    still = Fraction(1)
    with VideoWriter(output, height=height, width=width, fps=still, time_base=still) as out:
        out.write(image[None], [0])


if __name__ == "__main__":
    typer.run(main)
