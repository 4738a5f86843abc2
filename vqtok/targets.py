"""Refuse outputs that are inputs, or that cannot be written, before any work is done."""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from vqtok import hub
from vqtok.errors import UsageError, os_reason
from vqtok.files import exists, is_pattern, pattern_root, real_path

# A path, or an open file such as stdin; None stands for a stream that is closed, or for no file.
File = str | os.PathLike[str] | IO[bytes] | IO[str] | None

BUNDLED = Path(__file__).parent / "bundled"  # tokenizers, each beside its model card
_STREAM = re.compile("/dev/(stdin|stdout|stderr|fd/.*)|/proc/[^/]+/(task/[^/]+/)?fd/.*")


def check_targets(targets: Iterable[File], inputs: Iterable[File]) -> None:
    """Raise UsageError if a target is the same file as one of the inputs, through links too."""
    existing = {identity: target for target in targets if (identity := _identity(target))}
    sources = {_identity(source): source for source in inputs} if existing else {}
    for identity, target in existing.items():
        if identity in sources:
            raise UsageError(
                f"{_name(target)} is the same file as the input {_name(sources[identity])}: choose "
                "another output"
            )


def _identity(file: File) -> tuple[int, int] | None:
    """Return what a regular file has in common under all of its names; None for anything else."""
    if file is None:
        return None
    try:
        if isinstance(file, str | os.PathLike):
            status = Path(file).stat()
        else:
            status = os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):  # no such file, or a stream without a number
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _name(file: File) -> str:
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    return str(name) if isinstance(name, str | os.PathLike) else "the stream"


def tokenizer_file(tokenizer: str | os.PathLike[str]) -> Path | None:
    """Return the file of a tokenizer: a bundled name, a path, or hf:org/name.

    The file need not exist. None: it has not been downloaded from the hub yet.
    """
    if hub.is_hub_name(tokenizer):
        return hub.find_cached(str(tokenizer))
    bundled = BUNDLED / f"{tokenizer}.safetensors"
    return bundled if bundled.parent == BUNDLED and bundled.is_file() else Path(tokenizer)


def check_overwrite(path: Path, force: bool) -> None:
    """Raise UsageError if a file exists and may not be overwritten."""
    if exists(path) and not force:
        raise UsageError(f"{path} exists: --force overwrites it")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise UsageError if no file can be written to `path`, where one may exist already."""
    if _STREAM.fullmatch(os.path.abspath(path)):  # noqa: PTH100 - links to files are replaced
        raise UsageError(f"{path} is a stream, not a file: - stands for stdout")
    try:
        target = real_path(path)
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent}: no such folder")
        if _mode(target) and not stat.S_ISREG(_mode(target)):
            raise UsageError(f"{path} is not a regular file: choose another output")
        _write_nothing(target.parent)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from None


def check_writable_folder(folder: str | os.PathLike[str]) -> None:
    """Raise UsageError if no file can be written into a folder, which need not exist yet."""
    try:
        existing = next(path for path in (Path(folder), *Path(folder).parents) if _mode(path))
        if not existing.is_dir():
            raise UsageError(f"{existing} is a file: choose a folder")
        _write_nothing(existing)
    except (OSError, ValueError) as error:
        raise _refusal(folder, error) from None


def _mode(path: Path) -> int:
    """Return the type and permissions of a file, 0 if it does not exist. OSError for bad links."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return 0


@cache
def _write_nothing(folder: Path) -> None:
    # Permissions alone do not tell: root has all of them, and a file system may be read-only.
    with TemporaryFile(dir=folder):
        pass


def _refusal(path: str | os.PathLike[str], error: Exception) -> UsageError:
    if isinstance(error, UsageError):
        return error
    return UsageError(f"{path} cannot be written: {os_reason(error)}")


def check_apart(folder: Path, sources: Sequence[str | Path], rereads: bool = False) -> None:
    """Raise UsageError if an output folder is a source: its files would lie among the inputs.

    rereads: whether the command reads what it writes. Then no folder in a source will do either,
        nor in a folder that a pattern searches: the next run would take its files for inputs.
    """
    output = real_path(folder)
    for source in sources:
        searched = pattern_root(source) if is_pattern(source) else Path(source)
        inner = real_path(searched)
        is_same = inner == output and not is_pattern(source)
        if is_same or (rereads and inner.is_dir() and output.is_relative_to(inner)):
            raise UsageError(
                f"{folder} {'is' if inner == output else 'lies in'} the folder {searched} that is "
                "read: choose another output folder"
            )
