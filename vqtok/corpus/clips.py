"""`clips.jsonl`, the clips of a corpus: a JSON object a line; the number of the line is the key."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vqtok.untrusted import parse_json, reading

CLIPS = "clips.jsonl"
MAX_PIECES = 10_000
_MAX_LINE = 2**17  # bytes


class Clip(NamedTuple):
    """A clip of a corpus.

    key: its place in the list, from 0.
    path: the video, absolute.
    name: path in the tree that decoding makes again, such as a/b.mp4.
    bytes: size of the video; 0 if it is unknown.
    pieces: how many it is cut into at most, if it is long and `--split` is given.
    piece: which of them is meant, from 0.
    """

    key: int
    path: str
    name: str
    bytes: int
    pieces: int = 1
    piece: int = 0

    def to_row(self) -> dict[str, str | int]:
        """Return the clip as a row of `vqtok.bulk.plan`."""
        row = self._asdict()
        return {"clip": row.pop("key"), **row}


def clip_lines(clips: Iterable[Clip]) -> Iterator[bytes]:
    """Yield the lines of `clips.jsonl`."""
    for clip in clips:
        line = {"path": clip.path, "name": clip.name, "bytes": clip.bytes}
        line |= {"pieces": clip.pieces} if clip.pieces > 1 else {}
        yield json.dumps(line).encode() + b"\n"


def read_clips(folder: Path) -> Iterator[Clip]:
    """Yield the clips of a corpus. Raises VqtokError for a line that is no clip."""
    path = folder / CLIPS
    with reading(path), path.open("rb") as file:
        for key, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b"")):
            yield _parse(key, line)


def _parse(key: int, line: bytes) -> Clip:
    value: Any = parse_json(line) if line.endswith(b"\n") else None
    match value:
        case {"path": str(path), "name": str(name), "bytes": int(size)} if _is_inside(name):
            pieces = value.get("pieces", 1)
            if type(pieces) is int and 0 < pieces <= MAX_PIECES and size >= 0:
                return Clip(key, path, name, size, pieces)
    raise ValueError(f"line {key + 1} is not a clip")


def _is_inside(name: str) -> bool:
    """Return whether a name stays in the folder that decoding writes to."""
    parts = name.split("/")
    return "\0" not in name and not {"", ".", ".."} & set(parts) and os.sep == "/"
