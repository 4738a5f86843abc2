"""A line of JSON at the end of a file, and its length: details that are known last."""

import json
from pathlib import Path
from typing import Any, BinaryIO

from vqtok.errors import VqtokError
from vqtok.untrusted import parse_json

_LENGTH = 8  # bytes of the length
_MAX_LINE = 2**24  # bytes


def write_trailer(file: BinaryIO, value: dict[str, Any]) -> None:
    """Write the end of a file."""
    line = json.dumps(value).encode() + b"\n"
    file.write(line + len(line).to_bytes(_LENGTH, "little"))


def read_trailer(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """Return the details at the end of a file, and the size of what is before them in bytes.

    Raises VqtokError if there are none.
    """
    try:
        end = max(0, file.seek(0, 2) - _LENGTH)
        file.seek(end)
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not 0 < length <= min(end, _MAX_LINE):
            raise ValueError("it has no details at its end")
        size = file.seek(end - length)
        value = parse_json(file.read(length))
        if not isinstance(value, dict):
            raise ValueError("its details are not an object")
        return value, size
    except (OSError, ValueError) as error:
        raise VqtokError(f"{path} is damaged: {error}; delete it") from None
