"""The worker of `Encode`, where the name of a clip says what it does to its process."""

import errno
import os
import signal
import time
from pathlib import Path

from vqtok.bulk import worker
from vqtok.pipeline import source

open_video = source.open_video


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
    elif name == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/buffer")
    elif name == "slow" and not (marker := Path(path).with_suffix(".begun")).exists():
        marker.touch()
        time.sleep(3600)
    return open_video(path, **options)


if __name__ == "__main__":
    source.open_video = open_poisoned
    worker.main()
