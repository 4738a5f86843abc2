"""The process that encodes clips of a corpus: `python -m vqtok.bulk.worker`.

Its parent (`supervisor.py`) writes lines of JSON to its stdin, first a `Setup`, then clips, and
reads a line on each clip from its stdout. It ends when its stdin does.
"""

import errno
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vqtok.bulk.process import Replies, Setup
from vqtok.bulk.split import EncodedClip, encode_split, encode_whole
from vqtok.corpus.clips import Clip
from vqtok.corpus.pieces import Pieces
from vqtok.corpus.publish import publish
from vqtok.corpus.records import Failure
from vqtok.corpus.settings import Corpus, open_corpus
from vqtok.corpus.shards import Shard
from vqtok.device import describe_device, free_memory
from vqtok.errors import (
    UsageError,
    VqtokError,
    describe_device_failure,
    describe_failure,
    is_device_failure,
    os_message,
)
from vqtok.model.batching import batch_rows
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.source import resolve_options
from vqtok.pipeline.stopwatch import Stopwatch


class Worker:
    """Encodes clips and replies with a line on each."""

    def __init__(self, setup: Setup, replies: Replies) -> None:
        self._corpus = open_corpus(setup.folder)
        self._tokenizer = _load(setup, self._corpus)
        self._options = resolve_options(self._corpus.settings.encoding, self._tokenizer)
        self._reply = replies.send
        place = describe_device(self._tokenizer.device)
        self._reply(ready=f"{setup.tokenizer} in {self._corpus.settings.dtype} on {place}")

    def run(self, jobs: int) -> None:
        """Encode the clips on stdin until it ends."""
        rows = batch_rows(self._tokenizer.device, jobs)
        with self._tokenizer.batched(rows), ThreadPoolExecutor(jobs) as pool:
            for line in sys.stdin:
                pool.submit(self._work, Clip(**json.loads(line)))
            os._exit(0)  # the parent is gone, or does not want what is still running

    def _work(self, clip: Clip) -> None:
        """Encode a clip. What stops the whole worker is said, and ends it."""
        try:
            result = self._finish(clip)
        except VqtokError as error:  # the corpus is damaged
            self._stop(str(error))
        except BaseException as error:
            if is_device_failure(error):
                self._reply(died=describe_device_failure(error))
                os._exit(1)
            self._stop(describe_failure(error, self._corpus.folder))
        else:
            self._reply(clip=clip.key, piece=clip.piece, **result)

    def _stop(self, reason: str) -> None:
        self._reply(stop=reason)
        os._exit(1)

    def _finish(self, clip: Clip) -> dict[str, Any]:
        """Encode a clip into its shard, and publish that if it was the last one."""
        shard, stopwatch = self._corpus.shard_of(clip.key), Stopwatch()
        result: dict[str, Any] = {}
        try:
            with self._tokenizer.batcher.clip():
                encoded = self._encode(clip, shard)
        except BaseException as error:
            if is_device_failure(error) or is_disk_full(error):
                raise
            free_memory(self._tokenizer.device)
            if not shard.is_finished(clip.key):  # by another process, which took its pieces
                result["failure"] = describe_failure(error, clip.path)
                shard.fail(_failure(clip, error, max(1, shard.attempts(clip.key))))
        else:
            packed = encoded and shard.add(clip.key, clip.name, *encoded)
            if packed:
                Pieces(shard, clip.key).delete()
                result |= {"frames": packed.frames, "tokens": packed.tokens, "notes": packed.notes}
        if clip.pieces > 1:
            shard.end(clip.key, clip.piece)
        publish(shard)
        return {"seconds": stopwatch.elapsed()} | result

    def _encode(self, clip: Clip, shard: Shard) -> EncodedClip | None:
        """Encode a clip, or a piece of it. Returns None if other pieces are not finished yet."""
        how = self._tokenizer, self._options
        if clip.pieces == 1:
            return encode_whole(clip.path, *how)
        return encode_split(clip, Pieces(shard, clip.key), *how, self._corpus.settings.split)


def _failure(clip: Clip, error: BaseException, attempts: int) -> Failure:
    reason = describe_failure(error, clip.path)
    return Failure(clip.key, clip.path, type(error).__name__, reason, attempts)


def is_disk_full(error: BaseException) -> bool:
    """Return whether there is no space left, for temporary files either: no fault of a clip."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _load(setup: Setup, corpus: Corpus) -> Tokenizer:
    """Load the tokenizer. Raises UsageError if the corpus was begun with another one."""
    tokenizer = load_for_inference(setup.tokenizer, setup.device, corpus.settings.dtype)
    corpus.check_model(setup.tokenizer, tokenizer.fingerprint)
    return tokenizer


def main() -> None:
    """Run a worker, as long as its parent lives."""
    # It reaches the whole group of processes, but the parent decides what happens then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    replies = Replies()
    first = sys.stdin.readline()
    try:
        if first:
            _run(Setup(**json.loads(first)), replies)
    except BrokenPipeError:  # the parent is gone
        os._exit(1)


def _run(setup: Setup, replies: Replies) -> None:
    """Run a worker. What keeps it from starting is its only reply."""
    try:
        worker = Worker(setup, replies)
    except BrokenPipeError:
        raise
    except Exception as error:
        is_usage = isinstance(error, UsageError)
        reason = os_message(error) if isinstance(error, OSError) else str(error)
        replies.send(stop=reason, usage=is_usage)
        sys.exit(1)
    worker.run(setup.jobs)


if __name__ == "__main__":
    main()
