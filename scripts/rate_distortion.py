"""PSNR and SSIM against tokens and bits: the tokenizer at several rates, and x264 at equal bits.

    python scripts/rate_distortion.py CLIPS [--size 256] [--frames 33] [--tokens 0.3,0.6,1]
        [--tokenizer NAME] [--tune psnr] [--json out.json] [--plot out.png]

plot_rates.py draws out.json again.

All see the same first frames of each clip, scaled. Fidelity is that of `vqtok eval`; figures are
means over clips. The tokenizer also runs at its full rate, beside a tokenizer with a fixed grid of
tokens and block averages.

Bits are those of a stream that can be decoded, without headers of a file. A token takes
log2(codebook size) bits; there is no entropy coder. A tokenizer that leaves out tokens also needs a
map of where they are: a bit per index, deflated by zlib if that is shorter. x264 (preset medium)
gets yuv420p frames, padded to even sizes; all of its stream counts but the message that names its
version. Its crf is searched in each clip until the stream takes as many bits as tokens and map,
within 2% if there is such a crf. By default x264 optimizes how video looks; `--tune psnr` makes it
optimize PSNR, which adds up to 1 dB.
"""

import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch
import typer
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from plot_rates import BLOCKS, FIXED, TOKENIZER, X264, Point, mean_points, save_plot, table
from torch import Tensor

from vqtok import DEFAULT
from vqtok.atomic import atomic_write
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import VqtokError, describe_failure
from vqtok.files import MEDIA_SUFFIXES, list_files
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.rate import check_rate
from vqtok.model.tokenizer import Tokenizer
from vqtok.precision import to_uint8
from vqtok.quality import FidelityMeter, block_averages
from vqtok.video import open_video
from vqtok.video.color import encoder_input

Clips = dict[str, list[Point]]
CRF = (51.0, 40.0, 30.0, 20.0, 10.0)  # encoded first; the search interpolates between them
TOLERANCE = 0.02  # of the bits
TRIALS = 6  # of the crf


def fidelity(video: Tensor, reconstruction: Tensor) -> tuple[float, float]:
    """Return PSNR in dB and SSIM of two clips (1 3 t h w) uint8, as `vqtok eval` does."""
    meter = FidelityMeter()
    meter.update(video, reconstruction)
    result = meter.compute()
    return result.psnr, result.ssim


def map_bits(indices: np.ndarray) -> int:
    """Return the bits of a map of which indices (t h w stages) are tokens, not the zero code."""
    packed = np.packbits(np.moveaxis(indices != 0, -1, 0)).tobytes()
    return 8 * min(len(packed), len(zlib.compress(packed, 9)))


def tokenizer_point(method: str, video: Tensor, tokenizer: Tokenizer, rate: Rate) -> Point:
    """Code a clip (1 3 t h w) uint8 at a rate."""
    frames, height, width = video.shape[2:]
    indices = tokenizer.encode(video, rate).cpu()
    decoded = to_uint8(tokenizer.decode(indices, frames, height, width)).cpu()
    has_map = tokenizer.zero_code
    tokens = int(indices.count_nonzero()) if has_map else indices.numel()
    pixels = frames * height * width
    bits = tokens * math.log2(tokenizer.codebook_size)
    return Point(
        method,
        FIXED if method == FIXED else str(rate) or "all tokens",
        *fidelity(video, decoded),
        bits_per_pixel=(bits + (map_bits(indices[0].numpy()) if has_map else 0)) / pixels,
        token_bits_per_pixel=bits / pixels,
        tokens_per_position=tokens / math.prod(indices.shape[:4]),
    )


class X264Encoder:
    """Encodes a clip with x264 at any number of bits.

    video: (1 3 t h w) uint8. tune: an x264 setting such as psnr, or none.
    """

    def __init__(self, video: Tensor, tune: str | None) -> None:
        self._video, self._tune = video, tune
        rgb = video[0].movedim(0, -1).numpy()
        even = [(0, length % 2) for length in rgb.shape[1:3]]
        rgb = np.pad(rgb, [(0, 0), *even, (0, 0)], mode="edge")
        self._height, self._width = rgb.shape[1:3]
        pix_fmt, convert = encoder_input("h264", self._height, self._width)
        assert pix_fmt == "yuv420p"
        self._frames = [convert(av.VideoFrame.from_ndarray(frame, "rgb24")) for frame in rgb]
        self._streams: dict[float, list[av.Packet]] = {}  # by crf

    def point(self, rate: str, bits_per_pixel: float) -> Point:
        """Return the point whose bits are nearest to these."""
        pixels = self._video[:, 0].numel()
        packets = self._streams[self._find_crf(bits_per_pixel * pixels)]
        scores = fidelity(self._video, self._decode(packets))
        return Point(X264, rate, *scores, bits_per_pixel=stream_bits(packets) / pixels)

    def _find_crf(self, target: float) -> float:
        for crf in CRF:
            self._encode(crf)
        for _ in range(TRIALS):
            offs = {crf: math.log(stream_bits(p) / target) for crf, p in self._streams.items()}
            if min(map(abs, offs.values())) < TOLERANCE:
                break
            known = sorted(offs, key=lambda crf: offs[crf])
            # Beyond the range of crf, this is its end, which is known.
            self._encode(round(float(np.interp(0, [offs[crf] for crf in known], known)), 2))
        return min(self._streams, key=lambda crf: abs(stream_bits(self._streams[crf]) - target))

    def _encode(self, crf: float) -> None:
        if crf in self._streams:
            return
        context = av.CodecContext.create("libx264", "w")
        assert isinstance(context, VideoCodecContext)
        context.height, context.width, context.pix_fmt = self._height, self._width, "yuv420p"
        context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
        context.thread_count = 1  # more cost quality
        context.options = {"preset": "medium", "crf": str(crf)}
        context.options |= {"tune": self._tune} if self._tune else {}
        packets = []
        for i, frame in enumerate(self._frames):
            frame.pts, frame.time_base = i, context.time_base
            frame.pict_type = 0  # x264 chooses it
            packets += context.encode(frame)
        self._streams[crf] = packets + context.encode(None)

    def _decode(self, packets: list[av.Packet]) -> Tensor:
        context = av.CodecContext.create("h264", "r")
        assert isinstance(context, VideoCodecContext)
        decoded = [frame for packet in [*packets, None] for frame in context.decode(packet)]
        frames, height, width = self._video.shape[2:]
        assert len(decoded) == frames
        rgb = np.stack([to_rgb(frame) for frame in decoded])[:, :height, :width]
        return torch.from_numpy(rgb).movedim(-1, 0)[None]


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Invert `encoder_input`: yuv420p, BT.709, limited range -> uint8 (h w 3)."""
    exact = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    return frame.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | exact,
    ).to_ndarray()


def stream_bits(packets: Sequence[av.Packet]) -> int:
    """Return the bits of an H.264 stream in Annex B format, without messages (SEI)."""
    units = b"".join(bytes(packet) for packet in packets).split(b"\0\0\1")[1:]
    # Each unit has a start code of 3 bytes. Those of 4 bytes leave a zero at the end of the unit
    # before, which is counted there.
    return 8 * sum(3 + len(unit) for unit in units if unit[0] & 31 != 6)


def measure(
    path: Path,
    tokenizer: Tokenizer,
    fixed_grid: Tokenizer,
    rates: Sequence[Rate],
    size: int,
    frames: int,
    tune: str | None,
) -> list[Point]:
    """Return all points of the start of a clip, in the same order for every clip."""
    with open_video(path, size=size) as clip:
        pixels, _ = next(clip.chunks(frames))  # (t h w c)
    video = torch.from_numpy(pixels).movedim(-1, 0)[None]
    points = [tokenizer_point(TOKENIZER, video, tokenizer, rate) for rate in rates]
    points.append(tokenizer_point(FIXED, video, fixed_grid, ALL_TOKENS))
    x264 = X264Encoder(video, tune)
    for coded in list(points):
        points.append(x264.point(coded.rate, coded.bits_per_pixel))
        off = points[-1].bits_per_pixel / coded.bits_per_pixel - 1
        if abs(off) > TOLERANCE:
            say(f"{path.name}, {coded.rate}: x264 takes {off:+.1%} bits")
    blocks = block_averages(video, tokenizer.stride, first=True)
    return [*points, Point(BLOCKS, "", *fidelity(video, blocks))]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure_clips(paths: Sequence[Path], measure: Callable[[Path], list[Point]]) -> Clips:
    """Return the points of each clip that can be read, by its name."""
    clips: Clips = {}
    for i, path in enumerate(paths, 1):
        start = time.perf_counter()
        try:
            clips[str(path)] = measure(path)
        except VqtokError as error:
            say(f"skipped: {describe_failure(error, path)}")
        say(f"{i}/{len(paths)} {path.name}: {time.perf_counter() - start:.0f} s")
    return clips


def save_json(path: Path, clips: Clips, settings: dict[str, Any]) -> None:
    points = {name: [asdict(point) for point in points] for name, points in clips.items()}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "clips": points}, indent=1))


def main(
    clips: list[Path],
    size: int = 256,
    frames: int = 33,
    tokens: str = "0.3,0.45,0.6,0.8,1,1.3,1.6",
    tokenizer: str = DEFAULT,
    fixed_grid: str = "ema-4x8x8-64k",
    tune: Annotated[str | None, typer.Option(help="of x264, such as psnr")] = None,
    json_: Annotated[Path | None, typer.Option("--json")] = None,
    plot: Path | None = None,
    device: str = "auto",
) -> None:
    settings = {"size": size, "frames": frames, "tokenizer": tokenizer, "fixed_grid": fixed_grid}
    model, fixed = (load_for_inference(name, device, None) for name in (tokenizer, fixed_grid))
    rates = [*(Rate(tokens=float(number)) for number in tokens.split(",")), ALL_TOKENS]
    for rate in rates:
        check_rate(model, rate)
    paths = [path for _, path in list_files(clips, MEDIA_SUFFIXES).files]
    results = measure_clips(
        paths, lambda path: measure(path, model, fixed, rates, size, frames, tune)
    )
    if not results:
        sys.exit("no clip could be measured")
    if json_:
        save_json(json_, results, settings | {"tune": tune})
    means = mean_points(list(results.values()))
    print(table(means))
    if plot:
        save_plot(means, plot)


if __name__ == "__main__":
    typer.run(main)
