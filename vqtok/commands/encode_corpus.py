"""`vqtok encode --pack`: videos to a packed corpus."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from vqtok.bulk.planning import PlanOptions, plan_clips
from vqtok.bulk.supervisor import Encode, Result
from vqtok.commands.progress import ProgressBars, say
from vqtok.corpus.clips import Clip
from vqtok.corpus.publish import FAILURES, finish, read_failures
from vqtok.corpus.settings import Corpus
from vqtok.corpus.shards import Shard
from vqtok.corpus_options import CorpusOptions
from vqtok.errors import VqtokError, join_reasons


def encode_corpus(
    sources: Sequence[str],
    folder: Path,
    plan: PlanOptions,
    options: CorpusOptions,
    quiet: bool,
    verbose: bool,
) -> None:
    """Encode the clips that are left of a corpus, which is made if it is new.

    Raises VqtokError at the end if clips have failed, now or in a run before.
    """
    corpus, shards, clips = plan_clips(sources, folder, plan, options.shard, options.retry_failed)
    total = sum(len(shard.keys) for shard in shards)
    if len(clips) < len(corpus):
        say(quiet, _describe_left(corpus, total, len(clips), options.shard))
    paths = {clip.key: clip.path for clip in clips}
    start, frames = time.perf_counter(), 0
    with ProgressBars(quiet) as bars, bars.task("encoding", total) as task:
        task.advance(total - len(clips))
        log = bars.say if verbose else (lambda line: None)
        for result in _results(corpus, clips, plan, options, log):
            bars.say(*(f"{paths[result.clip]}: {note}" for note in result.notes))
            frames += result.frames
            task.advance()
    seconds = time.perf_counter() - start
    finish(corpus, shards)
    if clips:
        say(quiet, f"{folder}: {frames:,} frames, {frames / seconds:.1f} frames/s")
    _raise_failures(corpus, shards, total)


def _describe_left(corpus: Corpus, total: int, left: int, shard: tuple[int, int]) -> str:
    part = f" (shard {shard[0]}/{shard[1]})" if shard[1] > 1 else ""
    return (
        f"{corpus.folder}: {left:,} of {total:,} clips are left to encode{part}; the list of "
        "clips is that of the first run"
    )


def _results(
    corpus: Corpus,
    clips: Sequence[Clip],
    plan: PlanOptions,
    options: CorpusOptions,
    log: Callable[[str], object],
) -> Iterator[Result]:
    """Encode clips on this machine or on Ray, and yield what becomes of each."""
    if options.ray:
        from vqtok.bulk.ray_data import encode_on_ray

        yield from encode_on_ray(
            corpus.folder,
            clips,
            workers=options.ray.workers,
            gpus=options.ray.gpus,
            jobs=options.jobs,
            timeout=options.timeout,
            device=plan.device,
        )
        return
    encode = Encode(
        corpus.folder,
        jobs=options.jobs,
        timeout=options.timeout,
        device=plan.device,
        tokenizer=plan.tokenizer,
    )
    encode.log = log
    with closing(encode):
        yield from encode.run(clips)


def _raise_failures(corpus: Corpus, shards: Sequence[Shard], total: int) -> None:
    reasons = [failure.reason for failure in read_failures(corpus, shards)]
    if reasons:
        raise VqtokError(
            f"{len(reasons)} of {total:,} clips failed, see {corpus.folder / FAILURES}: "
            f"{join_reasons(reasons, len(reasons))}"
        )
