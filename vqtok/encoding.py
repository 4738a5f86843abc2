"""How a clip is encoded: the choices of its user. Needs no PyTorch."""

from dataclasses import dataclass
from fractions import Fraction

from vqtok.errors import UsageError

LARGEST = 1e6  # price or number of tokens


@dataclass(frozen=True)
class Rate:
    """How many tokens to spend on a clip: at most one of these. None: all that help.

    price: squared error of the latents that a token has to save, relative to that at which half
        of the tokens were spent in training. Higher is fewer tokens. One pass, no delay.
    tokens: tokens per position, averaged over the clip. The price is searched in windows of at
        most a key-frame interval, so that each ends at the average.
    psnr: dB, of each window; the fewest tokens that reach it.

    Raises UsageError for more than one, or one out of range.
    """

    price: float | None = None
    tokens: float | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if not isinstance(value, int | float):
                raise UsageError(f"{name} must be a number, not {value!r}")
        if len(self.given) > 1:
            names = " and ".join(self.given)
            raise UsageError(f"choose one of price, tokens and psnr, not {names}")
        if self.price is not None and not 0 <= self.price <= LARGEST:
            raise UsageError(f"the price of a token must be 0 to {LARGEST:,.0f}, not {self.price}")
        if self.tokens is not None and not 0 < self.tokens <= LARGEST:
            raise UsageError(f"tokens per position must be 0 to {LARGEST:,.0f}, not {self.tokens}")
        if self.psnr is not None and not 0 < self.psnr <= 100:
            raise UsageError(f"the PSNR must be above 0 and at most 100 dB, not {self.psnr}")

    def __str__(self) -> str:
        """Return the setting as text, such as `tokens=0.6`; empty if there is none."""
        return "".join(f"{name}={value:g}" for name, value in self.given.items())

    @property
    def given(self) -> dict[str, float]:
        """The one that is not None, by its name; empty for all tokens that help."""
        values = {"price": self.price, "tokens": self.tokens, "psnr": self.psnr}
        return {name: value for name, value in values.items() if value is not None}


ALL_TOKENS = Rate()


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode a clip; the first four are those of `open_video`.

    strict: fail if the video is damaged.
    rate: how many tokens to spend.
    keyframe_interval: latent frames from one key frame to the next; None: as the tokenizer has it.
    """

    size: int | None = None
    fps: Fraction | None = None
    start: float = 0.0
    duration: float | None = None
    strict: bool = False
    rate: Rate = ALL_TOKENS
    keyframe_interval: int | None = None
