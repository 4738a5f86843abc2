"""Which files are videos, and files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqtok.errors import UsageError

# What is taken for a video or a still in a folder; a file that is named may end in anything.
EXTENSIONS = {
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v", ".ts", ".flv", ".mpg", ".ogv"),
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp"),
}

BUNDLED = Path(__file__).parent / "bundled"  # tokenizers, each beside its card (.md)

WRITABLE = {".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg"}


def inside(folder: Path, suffixes: set[str], pattern: str = "**/*") -> list[Path]:
    """The files in a folder that match and end in `suffixes`, sorted, without hidden ones."""
    found = (f for f in folder.glob(pattern) if f.suffix.lower() in suffixes and f.is_file())
    return sorted(f for f in found if f.name[0] != ".")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` at the end, remove it on any error.

    The temporary name keeps the suffix, because video containers are chosen by it. A link stays a
    link. Raises UsageError for a path that is there and no regular file.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
