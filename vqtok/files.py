"""Find input files, and write output files atomically."""

import glob
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from vqtok.errors import UsageError

# Suffixes of videos and images that are picked up in folders and patterns. A file that is named
# explicitly may have any suffix.
MEDIA_SUFFIXES = {
    *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v", ".ts", ".flv", ".mpg", ".ogv"),
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp"),
}
TOKEN_SUFFIXES = {".safetensors"}
OUTPUT_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg"}

# Files in the folder of a training run.
RUN_CONFIG = "config.json"
RUN_DATA = "data.json"
RUN_STATE = "resume.safetensors"
RUN_TOKENIZER = "tokenizer.safetensors"
RUN_METRICS = "metrics.jsonl"
RUN_SAMPLES = "samples"


def list_files(sources: Iterable[str | Path], suffixes: Set[str]) -> Iterator[tuple[Path, Path]]:
    """Yield (root, file) for each file in files, folders and glob patterns such as `a/**/*.mp4`.

    root: the folder that a mirrored output path is relative to: the folder itself, the part of a
        pattern before its first wildcard, or the parent of a single file.
    suffixes: the lower-case suffixes to pick in folders and patterns. Hidden files are skipped.

    Files come sorted within each source. Raises UsageError for a source that does not exist.
    """
    for source in sources:
        path = Path(source)
        if path.is_dir():
            root, found = path, _matching(path, "**/*", suffixes)
        elif is_pattern(source):
            fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
            root = Path(*path.parts[:fixed])
            found = _matching(root, "/".join(path.parts[fixed:]), suffixes)
        elif path.exists():
            root, found = path.parent, [path]
        else:
            raise UsageError(f"{source}: no such file or folder")
        yield from ((root, file) for file in found)


def is_pattern(source: str | Path) -> bool:
    """Return whether a source is a glob pattern, not a file whose name has wildcards in it."""
    return glob.has_magic(str(source)) and not Path(source).exists()


def _matching(folder: Path, pattern: str, suffixes: Set[str]) -> list[Path]:
    try:
        files = [f for f in folder.glob(pattern) if f.suffix.lower() in suffixes and f.is_file()]
    except ValueError as error:
        raise UsageError(f"{folder / pattern}: {str(error).lower()}") from None
    return sorted(f for f in files if not f.name.startswith("."))


def check_overwrite(path: Path, force: bool) -> None:
    """Raise UsageError if a file exists and may not be overwritten."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists: --force overwrites it")


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on error.

    The temporary name keeps the suffix, because FFmpeg chooses the container by it. A symbolic
    link stays a link. Raises UsageError if `path` exists and is not a regular file, or if its
    folder does not exist.
    """
    path = Path(path).resolve()
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
