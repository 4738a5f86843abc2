"""The worker of `Encode`, where the name of a clip says what it does to its process."""

import errno
import os
import signal
import time
from pathlib import Path

from vqtok.bulk import worker
from vqtok.corpus import shards
from vqtok.pipeline import source

open_video = source.open_video


def is_first_time(path):
    """Return whether a clip was never opened before: there is no file beside it that says so."""
    marker = Path(path).with_suffix(".begun")
    is_first = not marker.exists()
    marker.touch()
    return is_first


def no_space(path):
    """Raise what a full disk raises."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def open_poisoned(path, **options):
    """Open a clip, or do what its name says."""
    name = Path(path).stem.split()[0]
    if name == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "hang":
        time.sleep(3600)
    elif name == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice")
    elif name == "memory":
        raise MemoryError
    elif name == "panic":
        raise BaseException("a panic")
    elif name in ("slow", "full", "nospace") and is_first_time(path):
        if name == "slow":
            time.sleep(3600)
        elif name == "full":
            no_space("/tmp/buffer")
        shards.write_tokens = lambda file, tokens: no_space(file.name)
    return open_video(path, **options)


if __name__ == "__main__":
    source.open_video = open_poisoned
    worker.main()
