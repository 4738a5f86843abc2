"""The files of an export, which appear together."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqtok.atomic import atomic_write


@contextmanager
def open_outputs(folder: Path, names: Sequence[str]) -> Iterator[list[BinaryIO]]:
    """Yield a file for each name, to write; they appear at the end of the block, the first last.

    Existing files are replaced. The folder is made if it does not exist, and removed again if the
    block fails.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.push(lambda failure, *_: _remove_empty(folder) if failure and is_new else None)
        paths = [stack.enter_context(atomic_write(folder / name)) for name in names]
        yield [stack.enter_context(path.open("wb")) for path in paths]


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def to_json(values: Mapping[str, Any]) -> bytes:
    """Return a file of JSON."""
    return json.dumps(values, indent=2).encode() + b"\n"
