"""The process of `Prober`, where the name of a video says what it does to it."""

import os
import time
from pathlib import Path

from vqtok import video
from vqtok.bulk import prober

open_video = video.open_video


def open_poisoned(path, **options):
    """Open a video, or do what its name says."""
    name = Path(path).stem
    if name == "poison":
        os._exit(9)
    elif name == "hang":
        time.sleep(3600)
    return open_video(path, **options)


if __name__ == "__main__":
    video.open_video = open_poisoned
    prober.main()
