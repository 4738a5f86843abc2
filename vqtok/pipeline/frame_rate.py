"""Frame rates as users write them, and as timestamps show them."""

from collections.abc import Sequence
from fractions import Fraction

from vqtok.errors import UsageError

_MAX_LENGTH = 100  # characters of a frame rate


def parse_frame_rate(value: str | float | Fraction) -> Fraction:
    """Return a frame rate, such as 24, 29.97 or "30000/1001", as a fraction.

    Raises UsageError if it is not a number above 0 and up to 1000.
    """
    try:
        # Fraction("1e9999999") computes ten million digits, but float("1e9999999") is infinite.
        is_decimal = isinstance(value, str) and "/" not in value
        in_range = not is_decimal or 1e-9 < float(value) <= 1000
        in_range &= not isinstance(value, str) or len(value) <= _MAX_LENGTH
        fps = Fraction(value).limit_denominator(1_000_000) if in_range else Fraction(0)
    except (ValueError, OverflowError, ZeroDivisionError):
        fps = Fraction(0)
    if not 0 < fps <= 1000:
        shown = str(value)[:_MAX_LENGTH]
        raise UsageError(f"fps {shown}: must be a number up to 1000, such as 24 or 30000/1001")
    return fps


def average_frame_rate(
    timestamps: Sequence[int], time_base: Fraction, nominal: Fraction
) -> Fraction:
    """Return the average frame rate of a clip, or the nominal one if that is the same to 1%.

    timestamps: in ticks of `time_base` seconds, increasing.
    nominal: the rate that the file states. Timestamps are rounded, so it is more exact if true.
    """
    intervals = len(timestamps) - 1
    duration = (timestamps[-1] - timestamps[0]) * time_base
    if abs(duration - intervals / nominal) <= max(2 * time_base, duration / 100):
        return nominal
    return intervals / duration
