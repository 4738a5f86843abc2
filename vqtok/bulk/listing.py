"""List the clips of a corpus, and divide them into shards."""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from pathlib import Path
from statistics import median

from vqtok.bulk.probe import Probed, Prober
from vqtok.corpus.clips import MAX_PIECES, Clip
from vqtok.corpus.settings import MAX_CLIPS, CorpusSettings
from vqtok.errors import UsageError
from vqtok.files import MEDIA_SUFFIXES, list_files, real_path

_SAMPLE = 16  # clips that are opened to estimate the size of all


def count_pieces(video: Probed | None, start: float, duration: float | None, split: float) -> int:
    """Return how many pieces a clip may have, by its header.

    start, duration: what is encoded of it, in seconds. split: seconds of a piece.
    """
    seconds = _encoded_seconds(video.seconds if video else 0, start, duration)
    return min(MAX_PIECES, max(1, round(seconds / split)))


def _encoded_seconds(length: float, start: float, duration: float | None) -> float:
    """Return how much is encoded of a video of some length."""
    seconds = max(0.0, length - start)
    return seconds if duration is None else min(seconds, duration)


def list_clips(
    sources: Sequence[str], pieces: Callable[[Path], int], say: Callable[[str], object]
) -> Iterator[Clip]:
    """Yield the clips of sources. Raises UsageError if there are none, or two of one name.

    pieces: returns how many pieces a clip may have. say: gets notes on what was passed over.
    """
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
            raise UsageError(
                f"{other} and {path} would both be decoded to {name}: name a folder that has both"
            )
    for key, name in enumerate(sorted(paths)):
        path = paths[name]
        yield Clip(key, str(path.absolute()), name, _size(path), pieces(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # encoding it will say what is wrong
        return 0


def estimate_ratio(clips: Sequence[Clip], settings: CorpusSettings, prober: Prober) -> float:
    """Return the bytes of tokens for a byte of video, the median of some clips."""
    ratios = [
        _estimate_bytes(video, settings) / clip.bytes
        for clip in clips[:: ceil(len(clips) / _SAMPLE)]
        if clip.bytes and (video := prober.probe(Path(clip.path)))
    ]
    return median(ratios) if ratios else 1.0


def _estimate_bytes(video: Probed, settings: CorpusSettings) -> float:
    from vqtok.tokens.format import index_dtype

    frames = video.fps * _encoded_seconds(video.seconds, settings.start, settings.duration)
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
