"""Resample a clip to a constant frame rate by repeating and leaving out frames."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain

import numpy as np
from av.video.frame import VideoFrame

from vqtok.errors import VqtokError

TimestampedFrame = tuple[VideoFrame, int]

_MAX_REPEATS = 1_000_000  # of a frame; half a day at 24 frames per second
_TOLERANCE = Fraction(1, 2)  # ticks of the source


def resampled(
    frames: Iterator[TimestampedFrame],
    step: Fraction,
    end_of_last: Callable[[int], Fraction],
    name: str,
    first: int,
    count: int,
) -> Iterator[TimestampedFrame]:
    """Yield the frame shown at each instant, a step apart, from the first frame on.

    The returned timestamps count steps. Half a source tick of tolerance leaves a clip unchanged
    that already has this rate but rounded timestamps.

    step: in source ticks.
    end_of_last: given the timestamp of the last frame, returns the tick at which it ends.
    name: of the file, for messages.
    first: timestamp of the first frame of the clip, at which the instants begin.
    count: the first instant to yield, which shows the first of `frames`.
    """
    frame, timestamp = next(frames)
    first_index = round(first / step)
    for following in chain(frames, [None]):
        end = following[1] if following else end_of_last(timestamp)
        if end - timestamp > _MAX_REPEATS * step:
            repeats = f"a frame would be repeated {float((end - timestamp) / step):.3g} times"
            raise VqtokError(f"{name}: {repeats} at this fps; choose a lower one, or none")
        while not count or count * step < end - first - _TOLERANCE:
            yield frame, first_index + count
            count += 1
        if following:
            frame, timestamp = following


def frame_shown(times: np.ndarray, step: Fraction, number: int) -> int:
    """Return the index of the frame that `resampled` yields at an instant.

    times: timestamps of the clip, in source ticks, increasing.
    step: as in `resampled`. number: of the instant.
    """
    if not number:
        return 0
    instant = int(times[0]) + number * step + _TOLERANCE
    return int(np.searchsorted(times[1:], instant // 1, "right"))
