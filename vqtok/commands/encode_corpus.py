"""`vqtok encode --pack`: videos to a packed corpus."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from vqtok.bulk.planning import PlanOptions, absolute_tokenizer, clips_left, plan_clips
from vqtok.bulk.supervisor import Encode, Result
from vqtok.commands.progress import ProgressBars, say
from vqtok.corpus.clips import Clip
from vqtok.corpus.publish import FAILURES, finish, read_failures
from vqtok.corpus.settings import Corpus
from vqtok.corpus.shards import Shard
from vqtok.corpus.status import describe_status, read_status
from vqtok.corpus_options import Work
from vqtok.errors import VqtokError, join_reasons


def encode_corpus(
    sources: Sequence[str],
    folder: Path,
    plan: PlanOptions,
    work: Work,
    quiet: bool,
    verbose: bool,
) -> None:
    """Encode the clips that are left of a corpus, which is made if it is new.

    Raises VqtokError at the end if clips have failed, now or in a run before.
    """

    def tell(line: str) -> None:
        say(quiet, line)

    corpus, shards, clips = plan_clips(sources, folder, plan, work.shard, work.retry_failed, tell)
    total, left = sum(len(shard.keys) for shard in shards), len({clip.key for clip in clips})
    if (idle := work.shard[1] - len(corpus.shards)) > 0:
        tell(f"{folder} has few shards: {idle} of {work.shard[1]} processes have nothing to do")
    if left < len(corpus):
        tell(_describe_left(corpus, total, left, work.shard))
    paths = {clip.key: clip.path for clip in clips}
    start, frames = time.perf_counter(), 0
    with ProgressBars(quiet) as bars, bars.task("encoding", len(clips)) as task:
        log = bars.say if verbose else (lambda line: None)
        for result in _results(corpus, clips, plan, work, tell, log):
            bars.say(*(f"{paths[result.clip]}: {note}" for note in result.notes))
            frames += result.frames
            task.advance()
    seconds = time.perf_counter() - start
    finish(corpus, shards)
    if clips:
        tell(f"{folder}: {frames:,} frames, {frames / seconds:.1f} frames/s")
    _check_complete(corpus, shards, total)


def _describe_left(corpus: Corpus, total: int, left: int, shard: tuple[int, int]) -> str:
    part = f" (shard {shard[0]}/{shard[1]})" if shard[1] > 1 else ""
    added = "" if left == total else "; videos that were added later are not part of it"
    return f"{corpus.folder}: {left:,} of {total:,} clips are left to encode{part}{added}"


def _results(
    corpus: Corpus,
    clips: Sequence[Clip],
    plan: PlanOptions,
    work: Work,
    tell: Callable[[str], object],
    log: Callable[[str], object],
) -> Iterator[Result]:
    """Encode clips on this machine or on Ray, and yield what becomes of each."""
    tokenizer = absolute_tokenizer(plan.tokenizer)
    if work.ray:
        from vqtok.bulk.ray_data import encode_on_ray

        yield from encode_on_ray(
            corpus.folder,
            clips,
            workers=work.ray.workers,
            gpus=work.ray.gpus,
            jobs=work.jobs,
            timeout=work.timeout,
            device=plan.device,
            tokenizer=tokenizer,
            say=tell,
        )
        return
    encode = Encode(
        corpus.folder,
        jobs=work.jobs,
        timeout=work.timeout,
        device=plan.device,
        tokenizer=tokenizer,
    )
    encode.log = log
    with closing(encode):
        yield from encode.run(clips)


def _check_complete(corpus: Corpus, shards: Sequence[Shard], total: int) -> None:
    """Raise VqtokError if clips have failed, or are not encoded yet."""
    reasons = [failure.reason for failure in read_failures(corpus, shards)]
    if reasons:
        raise VqtokError(
            f"{len(reasons)} of {total:,} clips failed, see {corpus.folder / FAILURES}: "
            f"{join_reasons(reasons, len(reasons))}"
        )
    if left := len(clips_left(corpus, shards)):
        raise VqtokError(f"{left:,} of {total:,} clips are not encoded: run the command again")


def show_status(folder: Path) -> None:
    """Print what is done of the corpus in a folder."""
    print("\n".join(describe_status(read_status(folder))))
