"""The process that opens videos for their lengths: `python -m vqtok.bulk.prober`.

Its parent (`probe.py`) writes lines of JSON to its stdin, first a `Setup`, then the path of each
video, and reads a line on each from its stdout. It ends when its stdin does.
"""

import json
import sys
from fractions import Fraction

from vqtok import video
from vqtok.bulk.probe import Probed, Setup
from vqtok.bulk.process import Replies
from vqtok.errors import VqtokError


def read_video(path: str, setup: Setup) -> Probed | None:
    """Return what the header of a video says; None if it cannot be read."""
    fps = None if setup.fps is None else Fraction(setup.fps)
    try:
        with video.open_video(path, size=setup.size, fps=fps) as clip:
            return Probed(clip.duration or 0.0, float(clip.fps), clip.height, clip.width)
    except (VqtokError, OSError):  # encoding it will say what is wrong
        return None


def main() -> None:
    """Open the videos on stdin until it ends."""
    replies = Replies()
    setup = Setup(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        probed = read_video(json.loads(line)["path"], setup)
        replies.send(**probed._asdict() if probed else {})


if __name__ == "__main__":
    main()
