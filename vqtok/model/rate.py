"""Rate control: how many tokens the encoder spends, by price, by number or by quality."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError
from vqtok.model.stream_state import StreamState

if TYPE_CHECKING:
    from vqtok.model.tokenizer import Tokenizer

WINDOW = 2**18  # positions in a window at most, to bound memory
TRIALS = 9  # of the price of a window
LEAST = 0.5  # tokens that stand for none, so that their logarithm is finite
TOLERANCE = 0.01  # of the number of tokens, or of the squared error
FAR = 1.5  # log of a measure over its target, beyond which it tells little of the answer
# Change of the logarithm of the price, per change of that of the number of tokens and of the error.
TOKENS_STEP, ERROR_STEP = 2.5, 3.5
PRICES = 2.0**-10, 2.0**6  # range of prices to search, relative to the tokenizer's own


class _Window(NamedTuple):
    """A window coded at some price.

    measured: tokens per position, or the mean squared error of pixels in 0..1.
    """

    indices: Tensor
    coder_state: StreamState
    decoder_state: StreamState
    measured: float


def check_rate(tokenizer: "Tokenizer", rate: Rate) -> None:
    """Raise UsageError if a rate needs a zero code, and the tokenizer has none."""
    if not isinstance(rate, Rate):
        raise UsageError(f"a rate must be a vqtok.Rate, not {type(rate).__name__}")
    if rate != ALL_TOKENS and not tokenizer.zero_code:
        raise UsageError(
            "this tokenizer spends a token at every position: a rate needs one that was "
            "trained with quantizer.stages"
        )


class RateControl:
    """Codes the latents of a clip at a rate, a window at a time.

    Without a number of tokens or a quality to reach, a window is whatever comes.

    interval: from one key frame of the clip to the next.
    """

    def __init__(self, tokenizer: "Tokenizer", rate: Rate, interval: int) -> None:
        check_rate(tokenizer, rate)
        self._tokenizer, self._rate, self._interval = tokenizer, rate, interval
        unit = tokenizer.coder.price
        # On the device, so that nobody waits for it; in float64, to be rounded once.
        self._unit = torch.ones(1, 1, 1, 1) if unit is None else unit.double().view(1, 1, 1, 1)
        # Without a predictor, there are no groups of frames that a window could be.
        self._window = interval if tokenizer.coder.predictor else tokenizer.coder.keyframe_interval
        self._searches = rate.tokens is not None or rate.psnr is not None
        self._coder_state, self._decoder_state = StreamState(), StreamState()
        self._latents: list[Tensor] = []
        self._video: list[Tensor] = []
        self._price = 1.0  # of the last window
        self._spent = self._positions = 0.0

    def push(self, z: Tensor, video: Tensor, frames: int) -> Iterator[Tensor]:
        """Add the next latents (b c t h w) and their video; yield indices that are decided.

        video: (b 3 t h w), uint8 or float, not padded.
        frames: latent frames that stand for it. Those behind are padding, at the end of a clip.
        """
        if not self._searches:
            yield self._encode(z, self._coder_state, self._rate.price or 0.0)[:, :frames]
            return
        z = z[:, :, :frames]
        self._latents.append(z)
        if self._rate.psnr is not None:
            self._video.append(video)
        frames = sum(part.shape[2] for part in self._latents)
        limit = WINDOW // (z.shape[3] * z.shape[4])
        if frames >= max(1, min(self._window, limit)):
            yield from self.flush()

    def flush(self) -> Iterator[Tensor]:
        """Yield the indices of all latents so far."""
        if not self._latents:
            return
        z = torch.cat(self._latents, dim=2)
        window = self._search(z)
        self._coder_state, self._decoder_state = window.coder_state, window.decoder_state
        self._positions += z[:, 0].numel()
        self._spent += float((window.indices != 0).sum())
        self._latents, self._video = [], []
        yield window.indices

    def _search(self, z: Tensor) -> _Window:
        """Return the window coded at the price that meets the target best."""
        if self._rate.tokens is not None:
            positions = z[:, 0].numel()
            due = self._rate.tokens * (self._positions + positions) - self._spent
            target = max(due, LEAST) / positions
        else:
            assert self._rate.psnr is not None
            target = 10 ** (-self._rate.psnr / 10)
        rising = self._rate.psnr is not None
        window, self._price = find_price(
            lambda price: self._code(z, price), target, self._price, rising
        )
        return window

    def _code(self, z: Tensor, price: float) -> _Window:
        coder_state, decoder_state = self._coder_state.copy(), self._decoder_state.copy()
        indices = self._encode(z, coder_state, price)
        if self._rate.tokens is not None:
            measured = max(float((indices != 0).sum()), LEAST) / z[:, 0].numel()
            return _Window(indices, coder_state, decoder_state, measured)
        error = self._squared_error(indices, decoder_state)
        return _Window(indices, coder_state, decoder_state, error)

    def _squared_error(self, indices: Tensor, state: StreamState) -> float:
        """Return the mean squared error, in 0..1, of the window if it is coded as these indices.

        state: of the decoder before the window, and updated.
        """
        video, start = torch.cat(self._video, dim=2), 0
        scale = 255.0 if video.dtype == torch.uint8 else 1.0
        error = torch.zeros((), dtype=torch.float64, device=indices.device)
        for decoded in self._tokenizer.decode_next(indices, state, self._interval):
            original = video[:, :, start : start + decoded.shape[2]].to(decoded.device)
            frames, height, width = original.shape[2:]
            difference = decoded[:, :, :frames, :height, :width] - original.float() / scale
            error += difference.square().sum()
            start += frames
        return float(error) / video.numel()

    def _encode(self, z: Tensor, state: StreamState, price: float) -> Tensor:
        encode, unit_price = self._tokenizer.coder.encode, self._unit * price if price else 0.0
        return self._tokenizer.run(encode, z, state, unit_price, self._interval)


def find_price(
    code: Callable[[float], _Window], target: float, start: float, rising: bool
) -> tuple[_Window, float]:
    """Return the window whose measure is nearest to the target, and its price.

    code: codes the window at a price. rising: whether the measure rises with the price.
    start: the first price to try.
    """
    bounds = tuple(math.log(price) for price in PRICES)
    step = -ERROR_STEP if rising else TOKENS_STEP
    tried: list[tuple[float, float]] = []  # log price, log measure over target
    best, best_off, price = None, math.inf, start
    at = math.log(start)
    for _ in range(TRIALS):
        window = code(math.exp(at))
        off = math.log(max(window.measured, 1e-9) / target)
        # A quality is to be reached: a window below it is only taken if none is above.
        miss = 100 * off if rising and off > TOLERANCE else abs(off)
        if miss < best_off:
            best, best_off, price = window, miss, math.exp(at)
        off = min(max(off, -FAR), FAR)
        tried.append((at, off))
        below = max((t for t in tried if (t[1] < 0) == rising), default=None)  # too low a price
        above = min((t for t in tried if (t[1] < 0) != rising), default=None)
        if below and above:
            # Regula falsi, kept away from the ends of the bracket.
            share = min(max(below[1] / (below[1] - above[1]), 0.1), 0.9)
            at = below[0] + share * (above[0] - below[0])
        else:
            at, step = min(max(at + step * off, bounds[0]), bounds[1]), 1.5 * step
        if best_off < TOLERANCE or abs(at - tried[-1][0]) < 1e-3:
            break
    assert best is not None
    return best, price
