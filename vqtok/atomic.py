"""Write files that appear whole or not at all, and sweep what killed processes have left."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from socket import gethostname
from tempfile import gettempdir, mkdtemp
from typing import BinaryIO
from zlib import crc32

from vqtok.errors import UsageError
from vqtok.files import real_path

# How the names of temporary files begin; the host follows.
TEMPORARY = ".vqtok-"
_OWN = f"{TEMPORARY}{crc32(os.fsencode(gethostname())):08x}-"
_FORGOTTEN = 7 * 24 * 3600  # seconds
_UNLOCKED = 60  # seconds in which a new folder may still have no lock


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on error.

    The file exists already, empty. Its name keeps the suffix. A symbolic link stays a link. What a
    process that was killed has left in the folder is deleted.

    replace: whether an existing file is overwritten. If not, the first of several writers wins.

    Raises UsageError if `path` exists and is not a regular file, or if its folder does not exist.
    """
    path = real_path(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file")
    sweep(path.parent)
    temporary, descriptor = _create_temporary(path)
    try:
        yield temporary
        if replace:
            temporary.replace(path)
        else:
            os.fsync(descriptor)  # a link, unlike a rename, may reach the disk before the data
            _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its name unless another file has it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            temporary.replace(path)


def _create_temporary(target: Path) -> tuple[Path, int]:
    """Create an empty file beside `target`; return its path and a descriptor that locks it."""
    while True:
        # As short as most names: `target` may have the largest length that its folder allows.
        path = target.with_name(f"{_OWN}{os.urandom(4).hex()}{target.suffix[:16]}")
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError as error:
            error.filename = str(target)
            raise
        with suppress(OSError):  # a file system without locks, where nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # swept before it was locked


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder among the system's temporary files (`TMPDIR`); delete it at the end.

    Those that processes of this host have left when they were killed are deleted, too.
    """
    parent = Path(gettempdir())
    sweep(parent)
    folder = Path(mkdtemp(prefix=_OWN, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@cache
def sweep(folder: Path) -> None:
    """Delete the temporary files and folders of dead processes in a folder, once.

    A file is locked as long as the process lives that writes it. Locks of other hosts may be
    invisible on a network file system, so their files must also be a week old.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and _may_be_left(entry):
                with suppress(OSError):  # locked, or of another user
                    _delete_unlocked(Path(entry))


def _may_be_left(entry: os.DirEntry[str]) -> bool:
    is_own = entry.name.startswith(_OWN)
    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
    if entry.is_dir(follow_symlinks=False):
        return is_own and age > _UNLOCKED
    return entry.is_file(follow_symlinks=False) and (is_own or age > _FORGOTTEN)


def _delete_unlocked(path: Path) -> None:
    folder = path.is_dir()
    access = os.O_DIRECTORY if folder else os.O_RDWR
    descriptor = os.open(path, access | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if folder else path.unlink()
    finally:
        os.close(descriptor)


def hold(file: BinaryIO) -> None:
    """Tell other processes, as long as the file is open, that this one is at work on it."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_SH)


def is_held(file: BinaryIO) -> bool:
    """Return whether a process holds a file; False on a file system without locks.

    file: opened for reading and writing, where that is allowed: NFS locks no others.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
