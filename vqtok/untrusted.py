"""Text that anyone may have written: bounded, and refused with a short reason."""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import Repr
from typing import Any

from vqtok.errors import VqtokError, os_reason
from vqtok.files import printable

MAX_TEXT = 2**20  # bytes of a config
MAX_PARTS = 64  # of a key of TOML, such as train.steps
LONGEST = 60  # characters of a value in a message

_repr = Repr()
_repr.maxstring = _repr.maxlong = _repr.maxother = LONGEST
_repr.maxlevel = 3


def quote(value: object) -> str:
    """Return a value for a message: its repr, which has no control characters, cut short."""
    try:
        return _repr.repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return "a number of thousands of digits"


def shorten(text: str) -> str:
    """Return text for a message, cut short, with control characters escaped."""
    start = printable(text[:LONGEST])
    return start if len(text) <= LONGEST else f"{start}..."


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError, with a short reason, if it is not JSON, if a key is there twice, or if it is
    nested deeper than Python can read.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return the value of a TOML text. Raises ValueError, with a short reason, as `parse_json`."""
    # The time and memory that Python takes for a key grow with the square of its parts.
    for piece in re.split("[=,\n]", text):
        if len([part for part in piece.split(".") if part]) > MAX_PARTS:
            raise ValueError("a key has too many parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value


@contextmanager
def reading(path: Path, fault: str = "is damaged", advice: str = "") -> Iterator[None]:
    """Raise what goes wrong with reading a file in the block as a VqtokError that names it.

    fault, advice: what stands before and after the reason of a ValueError.
    """
    try:
        yield
    except VqtokError:
        raise
    except OSError as error:
        raise VqtokError(f"{path}: {os_reason(error)}") from None
    except ValueError as error:
        raise VqtokError(f"{path} {fault}: {error}{advice}") from None


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> str:
    """Return the text of a file of at most `limit` bytes.

    Raises VqtokError, naming the file, if it cannot be read, is larger, or is not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)  # a device never ends
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        raise VqtokError(f"{path}: {os_reason(error)}") from None
    if len(data) > limit:
        raise VqtokError(f"{path} has more than {limit:,} bytes, too many for this kind of file")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise VqtokError(f"{path} is not UTF-8 text") from None
