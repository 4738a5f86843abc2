"""PSNR, SSIM, a block-average baseline, and the evaluation of a tokenizer on a clip."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok.codebook_stats.usage import bits_per_pixel
from vqtok.device import synchronize
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.model.tokenizer import Tokenizer
from vqtok.precision import to_uint8
from vqtok.video import VideoWriter

FramePair = tuple[np.ndarray, np.ndarray]  # original and reconstructed frames, uint8 (t h w c)


def psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each clip, (b c t h w) in 0..1 -> (b)."""
    error = (video.float() - reconstruction.float()).square().flatten(1).mean(1)
    return psnr_from_mse(error)


def psnr_from_mse(mse: Tensor) -> Tensor:
    """Return the PSNR in dB for the mean squared error of values in 0..1, at most 100 dB."""
    return -10 * mse.clamp(min=1e-10).log10()


def ssim(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the structural similarity of each frame, (b c t h w) in 0..1 -> (b t).

    Wang et al. 2004, doi:10.1109/TIP.2003.819861: an 11x11 Gaussian window with a standard
    deviation of 1.5, without padding; the mean over pixels and channels. For smaller frames the
    window is cropped to the frame.
    """
    x, y = (v.float().movedim(1, 2).flatten(0, 1) for v in (video, reconstruction))  # (b*t c h w)
    # A variance is a small difference of large numbers: it needs float32.
    with torch.autocast(x.device.type, enabled=False):
        # One frame at a time keeps memory low.
        values = [_frame_ssim(a, b) for a, b in zip(x.unsqueeze(1), y.unsqueeze(1), strict=True)]
    return torch.stack(values).view(video.shape[0], video.shape[2])


def _frame_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM (scalar) of two frames (1 c h w)."""
    stacked = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _gaussian_filter(stacked).unbind()
    covariance = mean_ab - mean_a * mean_b
    variances = mean_aa - mean_a.square() + mean_bb - mean_b.square()
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
    return (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()


def _gaussian_filter(x: Tensor) -> Tensor:
    """Filter images (n c h w) with the separable SSIM window, without padding."""
    n, c = x.shape[:2]
    # As channels of one image: a batch of single-channel images is 20 times slower.
    x = x.reshape(1, n * c, *x.shape[2:])
    for axis in (2, 3):
        width = min(11, x.shape[axis])
        weights = np.exp(-((np.arange(width) - (width - 1) / 2) ** 2) / (2 * 1.5**2))
        kernel = x.new_tensor(weights / weights.sum()).view((-1, 1) if axis == 2 else (1, -1))
        x = F.conv2d(x, kernel.expand(n * c, 1, *kernel.shape), groups=n * c)
    return x.view(n, c, *x.shape[2:])


@dataclass(frozen=True)
class Fidelity:
    """Similarity of two clips: PSNR in dB over all RGB pixels, and the mean SSIM of the frames."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class RatePoint:
    """A clip coded at a rate: its fidelity and what was spent.

    tokens_per_position: those that are not the zero code, in all stages.
    """

    rate: Rate
    reconstruction: Fidelity
    tokens_per_position: float
    bits_per_pixel: float


@dataclass(frozen=True)
class EvalResult:
    """The evaluation of a tokenizer on one clip.

    full: at the full rate, with all tokens that help.
    curve: at other rates.
    baseline: fidelity of block averages.
    unquantized: fidelity of what the decoder makes of the latents of the encoder.
    counts: how often each index occurs (k) at the full rate, in all stages; (k - 1) without a zero
        code.
    encode_fps, decode_fps: frames per second of the model alone.
    """

    frames: int
    height: int
    width: int
    full: RatePoint
    curve: tuple[RatePoint, ...]
    baseline: Fidelity
    unquantized: Fidelity
    counts: np.ndarray
    encode_fps: float
    decode_fps: float


class FidelityMeter:
    """Running fidelity of two clips that are compared a few frames at a time."""

    def __init__(self) -> None:
        self._squared_error = 0.0
        self._values = 0
        self._ssim: list[float] = []

    def update(self, video: Tensor, reconstruction: Tensor) -> None:
        """Add the next frames (1 3 t h w) uint8 of both clips."""
        self._squared_error += (video.int() - reconstruction.int()).square().sum().item()
        self._values += video.numel()
        self._ssim += ssim(video / 255, reconstruction / 255).flatten().tolist()

    def compute(self) -> Fidelity:
        """Return the fidelity over all frames so far; identical clips have 100 dB."""
        mse = torch.tensor(self._squared_error / self._values / 255**2, dtype=torch.float64)
        return Fidelity(psnr_from_mse(mse).item(), float(np.mean(self._ssim)))


def evaluate_clip(
    video: Tensor,
    tokenizer: Tokenizer,
    on_frames: Callable[[FramePair], object] = lambda pair: None,
    rates: Sequence[Rate] = (),
) -> EvalResult:
    """Encode and decode a clip (1 3 t h w) uint8, and compare the two in 8 bits per channel.

    on_frames: called with the original and the reconstructed frames, a few at a time.
    rates: measure these too. Raises UsageError if there are some and the tokenizer has no zero
        code.
    """
    frames, height, width = video.shape[2:]
    video = video.to(tokenizer.device)  # copying it is not part of encoding
    _warm_up(video, tokenizer)
    encode_start = time.perf_counter()
    indices = tokenizer.encode(video).cpu()
    encode_seconds, decode_seconds = time.perf_counter() - encode_start, list[float]()
    fidelity, baseline = FidelityMeter(), FidelityMeter()
    decoding = _timed(tokenizer.decode_stream([indices]), tokenizer.device, decode_seconds)
    for i, (original, decoded) in enumerate(_frame_pairs(video, decoding)):
        fidelity.update(original, decoded)
        baseline.update(original, block_averages(original, tokenizer.stride, first=i == 0))
        on_frames((_to_numpy(original), _to_numpy(decoded)))
    return EvalResult(
        frames=frames,
        height=height,
        width=width,
        full=_rate_point(ALL_TOKENS, fidelity.compute(), indices, video, tokenizer),
        curve=tuple(_measure_rate(video, tokenizer, rate) for rate in rates),
        baseline=baseline.compute(),
        unquantized=_measure_fidelity(video, tokenizer.reconstruct_stream([video])),
        counts=_index_counts(indices, tokenizer),
        encode_fps=frames / encode_seconds,
        decode_fps=frames / sum(decode_seconds),
    )


def _warm_up(video: Tensor, tokenizer: Tokenizer) -> None:
    """Encode and decode the first chunks of a clip on a GPU.

    The first clip starts CUDA, and the first of each size loads kernels and allocates memory. A CPU
    has little to prepare, and takes long.
    """
    if tokenizer.device.type == "cuda":
        start = video[:, :, : 2 * tokenizer.chunk_frames(*video.shape[3:])]
        for _ in tokenizer.decode_stream([tokenizer.encode(start)]):
            pass
        synchronize(tokenizer.device)


def _measure_rate(video: Tensor, tokenizer: Tokenizer, rate: Rate) -> RatePoint:
    indices = tokenizer.encode(video, rate).cpu()
    fidelity = _measure_fidelity(video, tokenizer.decode_stream([indices]))
    return _rate_point(rate, fidelity, indices, video, tokenizer)


def _rate_point(
    rate: Rate, fidelity: Fidelity, indices: Tensor, video: Tensor, tokenizer: Tokenizer
) -> RatePoint:
    tokens = int(_index_counts(indices, tokenizer).sum())
    positions, pixels = math.prod(indices.shape[:4]), video[:, 0].numel()
    bits = bits_per_pixel(tokens, tokenizer.codebook_size, pixels)
    return RatePoint(rate, fidelity, tokens / positions, bits)


def _index_counts(indices: Tensor, tokenizer: Tokenizer) -> np.ndarray:
    """Return how often each index occurs (k); (k - 1) without a zero code, which is no token."""
    counts = torch.bincount(indices.flatten(), minlength=tokenizer.codebook_size).numpy()
    if tokenizer.zero_code:
        return counts[1:]
    return counts


def _measure_fidelity(video: Tensor, decoded: Iterable[Tensor]) -> Fidelity:
    """Return the fidelity of a clip that was decoded as by `Tokenizer.decode_stream`."""
    meter = FidelityMeter()
    for original, frames in _frame_pairs(video, decoded):
        meter.update(original, frames)
    return meter.compute()


def _frame_pairs(video: Tensor, decoded: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the frames of a clip (1 3 t h w) uint8 with the decoded ones, in uint8 and cropped."""
    start, (total, height, width) = 0, video.shape[2:]
    for part in decoded:
        frames = to_uint8(part[:, :, : total - start, :height, :width])
        yield video[:, :, start : start + frames.shape[2]].to(frames.device), frames
        start += frames.shape[2]


def _timed(items: Iterator[Tensor], device: torch.device, seconds: list[float]) -> Iterator[Tensor]:
    """Yield the items; append the seconds that the device took to compute each."""
    while True:
        synchronize(device)  # what was asked for in between is not part of it
        start = time.perf_counter()
        item = next(items, None)
        if item is None:
            return
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        yield item


def _to_numpy(video: Tensor) -> np.ndarray:
    """Convert a clip (1 3 t h w) to an array of frames (t h w 3)."""
    return video[0].movedim(0, -1).cpu().numpy()


def block_averages(video: Tensor, stride: tuple[int, int, int], first: bool) -> Tensor:
    """Replace each block of the tokenizer's stride by its mean, (1 3 t h w) uint8 -> the same.

    first: the clip starts here, so its first frame is a block of its own, as in the tokenizer.
    Edges are padded by replication, as in the tokenizer.
    """
    t, h, w = stride
    frames, height, width = video.shape[2:]
    front = t - 1 if first else 0
    pad = (0, -width % w, 0, -height % h, front, -(frames + front) % t)
    x = F.avg_pool3d(F.pad(video.float(), pad, mode="replicate"), stride).round_()
    for axis, factor in enumerate(stride, 2):
        x = x.repeat_interleave(factor, axis)
    return x[:, :, front : front + frames, :height, :width].to(torch.uint8)


def write_comparison_image(path: Path, pairs: Sequence[FramePair]) -> None:
    """Write an image with one column per pair: a square of the last frame above its reconstruction.

    The square is the center crop of the largest size that fits every pair.
    """
    side = min(min(frames.shape[1:3]) for frames, _ in pairs)
    columns = [np.concatenate([_center_crop(x[-1], side) for x in pair]) for pair in pairs]
    image = np.concatenate(columns, axis=1)
    height, width, _ = image.shape
    still = Fraction(1)
    with VideoWriter(path, height=height, width=width, fps=still, time_base=still) as out:
        out.write(image[None], [0])


def _center_crop(frame: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in frame.shape[:2])
    return frame[top : top + side, left : left + side]
