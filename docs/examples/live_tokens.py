"""Turn a camera, a screen or a video into tokens as it comes, until it ends or Ctrl-C:
python docs/examples/live_tokens.py /dev/video0 live.safetensors --device v4l2
"""

from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from queue import Queue
from threading import Thread
from time import monotonic

import av
import torch
import typer

import vqtok
from vqtok.model.checkpoint import load_for_inference
from vqtok.video.color import RGBConverter
from vqtok.video.cropping import Cropping


def main(source: str, output: str, device: str | None = None, size: int = 128) -> None:
    """Write the tokens of SOURCE. --device: its FFmpeg format. --size: short side in pixels."""
    tokenizer = load_for_inference(vqtok.DEFAULT, "auto", None)
    video, seen, latents = Queue(16), [], []

    def read() -> None:  # a file waits while 16 frames wait for the model, a device does not
        converter = None
        try:
            for i, frame in enumerate(av.open(source, format=device).decode(video=0)):
                if device is None or not video.full():
                    converter = converter or RGBConverter(frame, size, Cropping())
                    image = torch.from_numpy(converter.convert(frame))
                    seen.append((round(1000 * frame.time), monotonic(), i - len(seen), image.shape))
                    video.put(image.movedim(-1, 0)[None, :, None])  # (1 3 1 h w)
        except Exception as error:  # no such source, no video in it, a camera was unplugged
            typer.echo(f"{source}: {error}", err=True)
        video.put(None)

    with suppress(KeyboardInterrupt):
        Thread(target=read, daemon=True).start()
        for part in tokenizer.encode_stream(iter(video.get, None)):  # (1 t h w 2)
            latents += part[0]
            _, arrival, lost, _ = seen[: 4 * len(latents) - 3][-1]
            counts = f"{len(latents)} latent frames, {part.count_nonzero()} new tokens"
            late = f"{monotonic() - arrival:.2f} s late, {lost} frames dropped"
            typer.echo(f"{counts}, {late}", err=True)
    if not latents:
        raise SystemExit(f"{source}: no frames")
    times, _, _, ((height, width, _), *_) = zip(*seen[: 4 * len(latents) - 3], strict=True)
    fps = Fraction(1000 * (len(times) - 1) or 1, times[-1] - times[0] or 1)
    crop = {"frames": len(times), "height": height, "width": width}
    tokens = vqtok.tokens_from_indices(torch.stack(latents), tokenizer=tokenizer, fps=fps, **crop)
    tokens = replace(tokens, timestamps=times, origin=times[0], time_base=Fraction(1, 1000))
    vqtok.write_tokens(output, tokens)


if __name__ == "__main__":
    typer.run(main)
