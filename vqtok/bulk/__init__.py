"""Encode the clips of a corpus on any number of machines, each exactly once.

`plan` lists the clips that are left, `Encode` encodes some of them, wherever it runs, and `finish`
publishes what is complete. They keep all their state in the files of the corpus:

    rows = plan(["videos"], "tokens", pack="256M")
    encode = Encode("tokens")
    for row in rows:
        encode(row)
    finish("tokens")
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vqtok import DEFAULT
from vqtok.bulk.planning import PlanOptions, plan_clips
from vqtok.bulk.supervisor import Encode, Result
from vqtok.corpus import publish
from vqtok.corpus.settings import open_corpus
from vqtok.corpus_options import parse_size
from vqtok.encoding import ALL_TOKENS, EncodeOptions, Rate
from vqtok.pipeline.frame_rate import parse_frame_rate

__all__ = ["Encode", "Result", "finish", "plan"]


def plan(
    sources: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    pack: str | int,
    tokenizer: str = DEFAULT,
    size: int | None = None,
    fps: Fraction | float | str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    strict: bool = False,
    rate: Rate = ALL_TOKENS,
    keyframe_interval: int | None = None,
    dtype: str | None = None,
    device: str = "auto",
    split: float | None = None,
    workers: int = 1,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
) -> list[dict[str, str | int]]:
    """Return the clips that are left to encode, as rows for `Encode`.

    The corpus in `folder` is made if it is new. Clips that take long come first.

    sources: videos, folders, patterns, or a list of clips (@clips.jsonl).
    pack: size of a shard, such as "256M" or in bytes.
    split: cut clips that are longer into pieces of about so many seconds.
    workers: clips that are encoded at once on one machine, on CPUs: all jobs of all its workers.
    shard: (k, n): process k of n, which takes every n-th shard.
    retry_failed: also return clips that have failed.
    The others are as in `vqtok.encode_video`.

    Raises UsageError if the corpus was begun with other options, or if there are no clips.
    """
    frame_rate = None if fps is None else parse_frame_rate(fps)
    encoding = EncodeOptions(size, frame_rate, start, duration, strict, rate, keyframe_interval)
    options = PlanOptions(
        parse_size(str(pack)), encoding, tokenizer, dtype, device, split, workers=workers
    )
    listed = [sources] if isinstance(sources, str | Path) else sources
    _, _, clips = plan_clips(list(map(str, listed)), Path(folder), options, shard, retry_failed)
    return [clip.to_row() for clip in clips]


def finish(folder: str | Path) -> None:
    """Publish the shards that are complete, list failures, and delete what is left over.

    When all shards are published, the index is written.
    """
    publish.finish(open_corpus(folder))
