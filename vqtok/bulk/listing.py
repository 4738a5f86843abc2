"""List the clips of a corpus, and divide them into shards."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from statistics import median

from vqtok.corpus.clips import MAX_PIECES, Clip
from vqtok.corpus.settings import MAX_CLIPS, CorpusSettings
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES, list_files, real_path

_SAMPLE = 16  # clips that are opened to estimate the size of all


@dataclass(frozen=True)
class PieceCounter:
    """Tells how many pieces clips may have.

    start, duration: what is encoded of each, in seconds. split: seconds of a piece, or None.
    """

    start: float
    duration: float | None
    split: float | None

    def count(self, path: Path) -> int:
        """Return how many pieces a clip may have, by the length in its header."""
        from vqtok.video import open_video

        if self.split is None:
            return 1
        try:
            with open_video(path) as video:
                seconds = _encoded_seconds(video.duration, self.start, self.duration)
        except (VqtokError, OSError):  # encoding it will say what is wrong
            return 1
        return min(MAX_PIECES, max(1, round(seconds / self.split)))


def _encoded_seconds(length: float | None, start: float, duration: float | None) -> float:
    """Return how much is encoded of a video of some length, which may be unknown."""
    seconds = max(0.0, (length or 0) - start)
    return seconds if duration is None else min(seconds, duration)


def list_clips(
    sources: Sequence[str], pieces: PieceCounter, say: Callable[[str], object]
) -> Iterator[Clip]:
    """Yield the clips of sources. Raises UsageError if there are none, or two of one name."""
    found = list_files(sources, MEDIA_SUFFIXES)
    for note in found.notes:
        say(note)
    if not found.files:
        raise UsageError(f"no files to process in {', '.join(map(str, found.sources))}")
    paths: dict[str, Path] = {}
    for root, path in found.files:
        name = path.relative_to(root).as_posix()
        other = paths.setdefault(name, path)
        if real_path(other) != real_path(path):
            raise UsageError(f"{other} and {path} would both be decoded to {name}")
    for key, name in enumerate(sorted(paths)):
        path = paths[name]
        yield Clip(key, str(path.absolute()), name, _size(path), pieces.count(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # encoding it will say what is wrong
        return 0


def estimate_ratio(clips: Sequence[Clip], settings: CorpusSettings) -> float:
    """Return the bytes of tokens for a byte of video, the median of some clips."""
    ratios = []
    for clip in clips[:: ceil(len(clips) / _SAMPLE)]:
        try:
            ratios.append(_estimate_bytes(clip, settings) / clip.bytes)
        except (VqtokError, OSError, ZeroDivisionError):  # encoding it will say what is wrong
            continue
    return median(ratios) if ratios else 1.0


def _estimate_bytes(clip: Clip, settings: CorpusSettings) -> float:
    from vqtok.tokens.format import index_dtype
    from vqtok.video import open_video

    fps = None if settings.fps is None else Fraction(settings.fps)
    with open_video(clip.path, size=settings.size, fps=fps) as video:
        seconds = _encoded_seconds(video.duration, settings.start, settings.duration)
        frames = seconds * float(video.fps)
        t, h, w = settings.stride
        grid = (1 + frames / t) * ceil(video.height / h) * ceil(video.width / w)
    return grid * settings.stages * index_dtype(settings.codebook_size).itemsize


def divide(sizes: Sequence[float], pack: int) -> list[int]:
    """Return the index of the first clip of each shard, and the number of clips.

    sizes: estimated bytes of the tokens of each clip. pack: bytes of a shard.
    """
    starts, filled = [0], 0.0
    for i, size in enumerate(sizes):
        is_full = filled + size > pack or i - starts[-1] == MAX_CLIPS
        if is_full and i > starts[-1]:
            starts.append(i)
            filled = 0.0
        filled += size
    return [*starts, len(sizes)]
