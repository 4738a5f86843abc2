"""Find input files, and print the names of files."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vqtok.errors import UsageError, os_reason
from vqtok.path_lists import mirror_root, read_path_list

# Suffixes of videos and images that are picked up in folders and patterns: what FFmpeg reads, less
# audio, playlists, raw frames, and suffixes that mean something else more often (.ogg, .exr, .mod).
# A file that is named explicitly may have any suffix.
MEDIA_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3g2", ".ismv", ".mj2", ".flv", ".amv"),
    *(".mkv", ".mk3d", ".webm", ".avi", ".divx", ".wmv", ".asf", ".wtv", ".dvr-ms", ".ogv", ".ogm"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".m2p", ".vob", ".vro", ".rm", ".rmvb"),
    *(".ts", ".m2t", ".mts", ".m2ts", ".tp", ".trp", ".mxf", ".gxf", ".nut", ".dv", ".dav"),
    *(".264", ".h264", ".avc", ".265", ".h265", ".hevc", ".266", ".h266", ".vvc", ".h261", ".h263"),
    *(".ivf", ".obu", ".vc1", ".mjpg", ".mjpeg", ".y4m", ".cine", ".bik", ".smk", ".fli", ".flc"),
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".bmp"),
    *(".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".j2c", ".jpc", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".tga", ".pcx", ".sgi", ".qoi", ".dpx", ".psd"),
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
RUN_FILES = (RUN_CONFIG, RUN_DATA, RUN_STATE, RUN_TOKENIZER, RUN_METRICS)

# Folders of thumbnails and deleted files that network storage and Windows leave behind.
SKIPPED_FOLDERS = {"@eaDir", "#recycle", "$RECYCLE.BIN"}
NAMED_SUFFIXES = 5  # in a note on files that were passed over
# Control characters, line separators, and what reverses the direction of text.
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Folders to search for one source: links can multiply them without end. Beyond the first number,
# each folder may be reached this many times, on average.
MAX_VISITS, MEAN_VISITS = 10_000, 10
_ALL_FILES: tuple[str, ...] = ("**", "*")  # the parts of a pattern


@dataclass(frozen=True)
class FileList:
    """What `list_files` found.

    sources: the files, folders, patterns and lists that were searched.
    files: (root, file) of each file. `root` is the folder that a mirrored output path is relative
        to: the folder that was searched, the part of a pattern before its first wildcard, the
        parent of a single file, or the folder that all files of a list share.
    notes: what was passed over, for the user.
    """

    sources: Sequence[str | Path]
    files: list[tuple[Path, Path]]
    notes: list[str]


def list_files(sources: Sequence[str | Path], suffixes: Set[str]) -> FileList:
    """Find files in files, folders and glob patterns such as `a/**/*.mp4`, sorted in each source.

    A source such as `@clips.jsonl` is a list of files, see `read_path_list`. They need not exist,
    and keep their order.

    suffixes: the lower-case suffixes to pick in folders and patterns.

    Hidden files and folders are skipped unless they are named. Linked folders are entered, except
    for links back to a folder above, so a file that is linked to is found once on each path.

    Raises UsageError for a source that does not exist or is empty, for an invalid pattern, and for
    links that lead to the same folders again and again; VqtokError for an invalid line of a list.
    """
    files: list[tuple[Path, Path]] = []
    others: set[Path] = set()
    notes: list[str] = []
    for source in sources:
        check_not_empty(source, "an input")
        path = Path(source)
        if is_list(source):
            root, paths = mirror_root(read_path_list(list_path(source)))
            files += ((root, path) for path in paths)
            continue
        if is_pattern(source):
            root, pattern = _split_pattern(path)
        elif path.is_dir():
            root, pattern = path, _ALL_FILES
        elif path.exists():
            files.append((path.parent, path))
            continue
        else:
            raise UsageError(f"{source}: no such file or folder")
        for file in sorted(_find(root, pattern, notes)):
            if file.suffix.lower() in suffixes and stat.S_ISREG(_mode(file)):
                files.append((root, file))
            else:
                others.add(file)
    return FileList(sources, files, notes + _note_others(others))


def check_not_empty(name: str | Path | None, what: str) -> None:
    """Raise UsageError for an empty name, which Path takes for the working directory."""
    if name == "":
        raise UsageError(f"the name of {what} is empty: . stands for the working directory")


def _note_others(others: Set[Path]) -> list[str]:
    if not others:
        return []
    counts = Counter(path.suffix.lower() for path in others)
    suffixes = ", ".join(suffix for suffix, _ in counts.most_common(NAMED_SUFFIXES) if suffix)
    files = f"{len(others)} file{'s' * (len(others) > 1)} of other kinds passed over"
    return [f"{files} ({suffixes})" if suffixes else files]


def is_list(source: str | Path) -> bool:
    """Return whether a source such as `@clips.jsonl` is a list of files, which may be missing.

    A file whose name begins with @ is none, nor is a pattern that begins so.
    """
    if not str(source).startswith("@") or exists(Path(source)):
        return False
    return exists(list_path(source)) or not glob.has_magic(str(source))


def list_path(source: str | Path) -> Path:
    """Return the file of a list of files: `clips.jsonl` for `@clips.jsonl`."""
    return Path(str(source).removeprefix("@"))


def is_pattern(source: str | Path) -> bool:
    """Return whether a source is a glob pattern, not a file whose name has wildcards in it."""
    return glob.has_magic(str(source)) and not exists(Path(source)) and not is_list(source)


def pattern_root(pattern: str | Path) -> Path:
    """Return the folder that a glob pattern searches: its parts before the first wildcard."""
    parts = Path(pattern).parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])


def _split_pattern(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder before the first wildcard of a pattern, and the parts from there on."""
    root = pattern_root(path)
    parts = path.parts[len(root.parts) :]
    wrong = next((part for part in parts if "**" in part and part != "**"), None)
    if wrong is not None:
        single = re.sub(r"\*+", "*", wrong)
        raise UsageError(
            f"{path}: invalid pattern: ** must stand alone between slashes: write {single} to "
            f"search one folder, **/{single} to search those below it too"
        )
    parts += _ALL_FILES if parts[-1] == "**" else ()
    repeated = zip(parts, ("", *parts), strict=False)  # `**/**` means the same as `**`
    return root, tuple(a for a, b in repeated if not a == b == "**")


class _Folder(NamedTuple):
    """A folder to search.

    patterns: what to find below it, as parts of a path.
    above: the folders that led here.
    """

    path: Path
    patterns: Set[tuple[str, ...]]
    above: Set[tuple[int, int]]


def _find(root: Path, pattern: tuple[str, ...], notes: list[str]) -> Iterator[Path]:
    """Yield the files below a folder that match a pattern, given as parts of a path.

    notes: gets a note on each folder that cannot be read.
    Raises UsageError if links lead to the same folders again and again.
    """
    visits, distinct = 0, set[tuple[int, int]]()
    folders = [_Folder(root, {pattern}, frozenset())]
    while folders:
        path, patterns, above = folders.pop()
        identity = _identity(path)
        if identity in above:  # a link led back
            continue
        visits += 1
        distinct.add(identity)
        if visits > max(MAX_VISITS, MEAN_VISITS * len(distinct)):
            raise UsageError(
                f"{root}: its links lead to the same folders again and again: name those"
            )
        # `**` matches any number of folders: none, or this one and what follows.
        patterns = patterns | {pattern[1:] for pattern in patterns if pattern[0] == "**"}
        for entry in _scan(path, notes):
            matching = [pattern for pattern in patterns if _matches(entry.name, pattern[0])]
            if _is_folder(entry):
                below = {p if p[0] == "**" else p[1:] for p in matching} - {()}
                if below:
                    folders.append(_Folder(path / entry.name, below, above | {identity}))
            elif any(len(pattern) == 1 for pattern in matching):
                yield path / entry.name


def _identity(folder: Path) -> tuple[int, int]:
    """Return what all paths to a folder have in common; the same for all that cannot be reached."""
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_dev, status.st_ino


def _scan(folder: Path, notes: list[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        notes.append(f"{folder}: {os_reason(error)}")
        return []


def _matches(name: str, pattern: str) -> bool:
    hidden = name.startswith(".") and not pattern.startswith(".")
    return fnmatchcase(name, pattern) and not hidden and name not in SKIPPED_FOLDERS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() raises for a link to itself.
    return stat.S_ISDIR(_mode(Path(entry))) if entry.is_symlink() else entry.is_dir()


def exists(path: Path) -> bool:
    """Return whether a path exists. Path.exists raises for a name that is too long."""
    return _mode(path) != 0


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path without links. Path.resolve raises for a loop of links."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL or a lone surrogate: no file has such a name
        return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps ..


def _mode(path: Path) -> int:
    """Return the type and permissions of what a path leads to; 0 if it cannot be reached."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def printable(text: object) -> str:
    r"""Return text on one line, for people and JSON.

    Control characters, which could forge lines or drive a terminal, become \x1b, and bytes of file
    names that are not UTF-8 become \xe9.
    """
    try:
        data = str(text).encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        data = str(text).encode(errors="backslashreplace")
    return _CONTROL.sub(_escape, data.decode(errors="backslashreplace"))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
