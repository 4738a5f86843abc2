"""Members of a tar archive: equal files give equal bytes, without times and owners."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE  # members begin on a multiple of it
END = bytes(2 * BLOCK)


@contextmanager
def tar_member(file: BinaryIO, name: str) -> Iterator[None]:
    """Write what the block writes to `file`, which is at a multiple of `BLOCK`, as a member.

    Raises ValueError if the member has 8 GiB or more.
    """
    start = file.tell()
    file.write(bytes(BLOCK))
    yield
    end = file.tell()
    info = tarfile.TarInfo(name)
    info.size = end - start - BLOCK
    file.write(bytes(padded(end) - end))
    file.seek(start)
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    file.seek(0, 2)


def padded(size: int) -> int:
    """Return a size as a whole number of blocks, in bytes."""
    return size + -size % BLOCK


def member_size(header: bytes) -> int:
    """Return the size in bytes of a member, given its header. Raises ValueError if it is none."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
    except tarfile.TarError:
        raise ValueError("a member of the tar is not there") from None
