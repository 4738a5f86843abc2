"""Frame rates as users write them."""

from fractions import Fraction

from vqtok.errors import UsageError


def parse_frame_rate(value: str | float | Fraction) -> Fraction:
    """Return a frame rate, such as 24, 29.97 or "30000/1001", as a fraction.

    Raises UsageError if it is not a number above 0 and up to 1000.
    """
    try:
        fps = Fraction(value).limit_denominator(1_000_000)
    except (ValueError, OverflowError, ZeroDivisionError):
        fps = Fraction(0)
    if not 0 < fps <= 1000:
        raise UsageError(f"fps {value}: must be a number up to 1000, such as 24 or 30000/1001")
    return fps
