"""Live tokens: python docs/examples/live_tokens.py /dev/video0 live.safetensors --device v4l2"""

from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
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


def main(source: str, output: Path, device: str | None = None, size: int = 128) -> None:
    """Write the tokens of SOURCE until Ctrl-C. --device: FFmpeg format. --size: short side."""
    if output.exists() or not output.absolute().parent.is_dir():
        raise SystemExit(f"{output} exists, or its folder does not: choose another output")
    tokenizer = load_for_inference(vqtok.DEFAULT, "auto", None)
    video, latents, seen = Queue(16), [], [(-(2**60),)]

    def read() -> None:  # a file waits while 16 frames wait for the model, a device does not
        to_rgb = None
        try:
            for i, frame in enumerate(av.open(source, format=device).decode(video=0), 1):
                if device is None or not video.full():
                    rgb = (to_rgb := to_rgb or RGBConverter(frame, size, Cropping())).convert(frame)
                    time = max(round(1000 * frame.time), seen[-1][0] + 1)  # clocks step back
                    seen.append((time, monotonic(), i - len(seen), rgb.shape))
                    video.put(torch.from_numpy(rgb).movedim(-1, 0)[None, :, None])  # (1 3 1 h w)
        except Exception as error:  # no such source, no video in it, a camera was unplugged
            typer.echo(f"{source}: {error}", err=True)
        video.put(None)

    with suppress(KeyboardInterrupt):
        Thread(target=read, daemon=True).start()
        for part in tokenizer.encode_stream(iter(video.get, None)):  # (1 t h w 2)
            latents += part[0]
            _, arrival, lost, _ = seen[: 4 * len(latents) - 2][-1]
            line = f"{len(latents)} latent frames, {part.count_nonzero()} new tokens, {lost} frames"
            typer.echo(f"{line} dropped, {monotonic() - arrival:.2f} s late", err=True)
    if not latents:
        raise SystemExit(f"{source}: no frames")
    times, _, _, ((height, width, _), *_) = zip(*seen[1 : 4 * len(latents) - 2], strict=True)
    fps = Fraction(1000 * (len(times) - 1) or 1, times[-1] - times[0] or 1)
    crop = {"frames": len(times), "height": height, "width": width}
    tokens = vqtok.tokens_from_indices(torch.stack(latents), tokenizer=tokenizer, fps=fps, **crop)
    tokens = replace(tokens, timestamps=times, origin=times[0], time_base=Fraction(1, 1000))
    vqtok.write_tokens(output, tokens)


if __name__ == "__main__":
    typer.run(main)
