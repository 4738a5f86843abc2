"""Sections of a clip: frames by their numbers, found without decoding those before them."""

import math
import os
from array import array
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from av.packet import Packet

from vqtok.errors import VqtokError
from vqtok.video.container import open_container
from vqtok.video.decode import Decoder
from vqtok.video.resample import frame_shown


class CannotSplit(VqtokError):
    """A video whose sections cannot be read, or not with certainty as the whole is read."""


class Section(NamedTuple):
    """Consecutive frames of a clip, made by a `Timeline`.

    number: of the first one, counted from 0, after resampling.
    frames: how many; None for all that follow.
    pts: the timestamp in the file of the frame that is shown first.
    first_pts: that of the first frame of the clip.
    end: the timestamp at which the last frame of the file ends.
    """

    number: int
    frames: int | None
    pts: int
    first_pts: int
    end: int


class Timeline:
    """When the frames of a clip are shown, according to the packets of its file.

    Some files have packets without a frame, and damaged ones: whoever reads a section has to check
    that its timestamps are those of the timeline.

    times: timestamps of the frames in the file, in ticks, increasing. At least one.
    keyframes: those of the keyframes of the file.
    end: the timestamp at which the last frame of the file ends.
    time_base: seconds per tick of these.
    fps: the rate to which the clip is resampled, if it is.
    """

    def __init__(
        self,
        times: np.ndarray,
        keyframes: np.ndarray,
        end: int,
        time_base: Fraction,
        fps: Fraction | None,
    ) -> None:
        self._times, self._keyframes, self._end = times, keyframes, end
        self._time_base = time_base
        self._step = None if fps is None else 1 / (fps * time_base)

    @property
    def frames(self) -> int:
        """Number of frames; after resampling, it is not exact."""
        if self._step is None:
            return len(self._times)
        return 1 + int((int(self._times[-1]) - int(self._times[0])) / self._step)

    def section(self, number: int, frames: int | None) -> Section:
        """Return the section of `frames` frames from frame `number` on."""
        pts = int(self._times[self._source(number)])
        return Section(number, frames, pts, int(self._times[0]), self._end)

    def timestamp(self, number: int) -> int:
        """Return the timestamp of a frame of the clip, in its ticks."""
        if self._step is None:
            return int(self._times[number])
        return round(int(self._times[0]) / self._step) + number

    def lead_in(self, section: Section) -> float:
        """Return the seconds from the keyframe before a section to its beginning."""
        if not section.number:
            return 0.0
        i = int(np.searchsorted(self._keyframes, section.pts, "right"))
        keyframe = int(self._keyframes[i - 1]) if i else -math.inf
        return (section.pts - keyframe) * float(self._time_base)

    def _source(self, number: int) -> int:
        """Return the index of the frame of the file that frame `number` of the clip shows."""
        if self._step is None:
            return number
        return frame_shown(self._times, self._step, number)


def read_timeline(
    path: str | os.PathLike[str], bounds: tuple[int, int | None], fps: Fraction | None
) -> Timeline:
    """Return the timeline of a clip. Reads the whole file, but decodes nothing.

    bounds: of the `Clip`.
    fps: the rate to which it is resampled, if it is.
    Raises CannotSplit, naming the file and the reason, if its sections cannot be read.
    """
    with open_container(path) as container:
        decoder = Decoder(path, container)
        if not decoder.can_seek:
            raise CannotSplit(f"{path} cannot be read from the middle, so it is not split")
        if not decoder.stores_pts or decoder.stream.start_time is None:
            raise CannotSplit(f"{path} has no timestamps, so it is not split")
        packets = (packet for packet in decoder.packets() if packet is not None)
        times, keyframes, end = _scan(packets, str(path))
        if decoder.damage:
            raise CannotSplit(f"{path} is damaged, so it is not split")
    low = np.searchsorted(times, bounds[0])
    high = len(times) if bounds[1] is None else np.searchsorted(times, bounds[1])
    if not low < high or times[low] != bounds[0]:
        raise CannotSplit(f"{path} has other frames than packets, so it is not split")
    return Timeline(times[low:high], keyframes, end, decoder.time_base, fps)


def _scan(packets: Iterable[Packet], name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the timestamps of all frames and of the keyframes, sorted, and when the last ends."""
    times, keyframes, end = array("q"), array("q"), 0
    for packet in packets:
        if packet.pts is None or packet.is_corrupt:
            raise CannotSplit(f"{name} has damaged packets or no timestamps, so it is not split")
        end = max(end, packet.pts + (packet.duration or 0))
        if not packet.is_discard:
            times.append(packet.pts)
        if packet.is_keyframe:
            keyframes.append(packet.pts)
    ordered = np.sort(np.frombuffer(times, np.int64))
    if (np.diff(ordered) <= 0).any():
        raise CannotSplit(f"{name} has two frames at one time, so it is not split")
    return ordered, np.sort(np.frombuffer(keyframes, np.int64)), end
