"""Lists of files: JSON Lines, such as the clips.jsonl of a corpus."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vqtok.errors import UsageError, VqtokError, os_reason

MAX_LINE = 2**20  # bytes of a line, which are read at once


def read_path_list(path: Path) -> Iterator[str]:
    """Yield the paths of a list, in its order. None of the files is looked at.

    A line is a path as a JSON string, or an object that has one as "path". Empty lines are skipped.

    Raises UsageError if there is no such list or no path in it, VqtokError, with the number of the
    line, for a line that is anything else.
    """
    is_empty = True
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(MAX_LINE + 1), b"")
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield _parse_line(line, f"{path}, line {number}")
                    is_empty = False
    except OSError as error:
        raise UsageError(f"{path}: this list of files cannot be read: {os_reason(error)}") from None
    if is_empty:
        raise UsageError(f"{path}: this list of files is empty")


def _parse_line(line: bytes, where: str) -> str:
    if len(line) > MAX_LINE:
        raise VqtokError(f"{where} has more than {MAX_LINE:,} bytes: write one path a line")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise VqtokError(f'{where} is not JSON: write each path in quotes, as "a/b.mp4"') from None
    text = value.get("path") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise VqtokError(f'{where} is neither a string nor an object with a "path" of text')
    if text in ("", "-"):
        raise VqtokError(f"{where} names no file")
    return text


def mirror_root(texts: Iterable[str]) -> tuple[Path, list[Path]]:
    """Return the folder that all paths share, and the paths, which are relative to it.

    Paths stay as they are, except that all become absolute if some are, and that those with `..`
    are resolved: their mirrored names would lead out of the output folder.
    """
    texts = [os.path.realpath(t) if ".." in t or t.startswith("//") else t for t in texts]
    if len({text.startswith("/") for text in texts}) > 1:
        texts = [str(Path.cwd() / text) for text in texts]
    folders = {text[: text.rfind("/") + 1] for text in texts}  # not Path.parent: slow for a million
    return Path(os.path.commonpath(folders)), list(map(Path, texts))
