"""A shard while it is made: its finished clips, its failures, and how often clips were begun."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from vqtok.atomic import atomic_write, hold, is_held
from vqtok.corpus.records import (
    Failure,
    PackedClip,
    Seconds,
    clip_from_json,
    clip_to_json,
    failure_from_json,
)
from vqtok.corpus.tar import BLOCK, member_size, padded, tar_member
from vqtok.corpus.timing import Timing
from vqtok.corpus.trailer import read_trailer, write_trailer
from vqtok.errors import UsageError, VqtokError, name_file
from vqtok.safetensors_io import read_header
from vqtok.tokens import Tokens, count_tokens, write_tokens
from vqtok.untrusted import parse_json

PART, FAILED, ATTEMPTS = ".part", ".failed", ".attempts"
# Of each clip, so that a record stays small: notes, and characters of a note and of a reason.
_MOST_NOTES, _LONGEST_NOTE, _LONGEST_REASON = 5, 500, 5000
T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """A shard of a corpus.

    folder: of the corpus. keys: of its clips.

    While it is open, `parts` has three kinds of files. KEY.part is a finished clip: its two
    members of the tar, and its details. KEY.failed is the failure of a clip. KEY.attempts has a
    byte for each time that a clip was begun, KEY-0003.attempts for piece 3 of a long one.
    """

    folder: Path
    number: int
    keys: range

    @property
    def tar(self) -> Path:
        """The token files."""
        return self.folder / "shards" / f"{self.number:05}.tar"

    @property
    def record(self) -> Path:
        """The commit record."""
        return self.tar.with_suffix(".json")

    @property
    def parts(self) -> Path:
        """Folder of work in progress."""
        return self.folder / "parts" / f"{self.number:05}"

    def is_published(self) -> bool:
        """Return whether the shard is complete: it has its tar, and the record, written last."""
        return self.record.exists() and self.tar.exists()

    def read(self, read: Callable[[bool], T]) -> T:
        """Return read(published); again if others publish the shard, or open it, meanwhile."""
        while True:
            published = self.is_published()
            try:
                value = read(published)
            except (FileNotFoundError, VqtokError) as error:
                if isinstance(error, VqtokError) and self.is_published() == published:
                    raise
            else:
                if self.is_published() == published:
                    return value

    def path(self, key: int, suffix: str, piece: int | None = None) -> Path:
        """Return a file of a clip, or of a piece of it, such as PART, FAILED or ATTEMPTS."""
        part = "" if piece is None else f"-{piece:04}"
        return self.parts / f"{key_name(key)}{part}{suffix}"

    def finished(self) -> tuple[set[int], set[int]]:
        """Return the keys of clips that are encoded, and of those that have failed."""
        done, failed = set[int](), set[int]()
        with suppress(FileNotFoundError):
            for path in self.parts.iterdir():
                if path.stem.isdecimal() and path.suffix in (PART, FAILED):
                    (done if path.suffix == PART else failed).add(int(path.stem))
        done, failed = (set(filter(self.keys.__contains__, keys)) for keys in (done, failed))
        return done, failed - done

    def is_finished(self, key: int) -> bool:
        """Return whether a clip is encoded, or has failed."""
        files = self.path(key, PART), self.path(key, FAILED)
        return any(path.exists() for path in files) or self.is_published()

    def begin(self, key: int, piece: int | None = None) -> int:
        """Note that a clip is begun, and return how often it was, this time included."""

        def note() -> int:
            with self.path(key, ATTEMPTS, piece).open("ab") as file:
                file.write(b"+")
            return self.attempts(key, piece)

        return self._in_parts(note)

    def hold(self, key: int, piece: int | None = None) -> BinaryIO | None:
        """Open the attempts of a clip: as long as they are, other processes see that it is held.

        Returns None if the clip has ended.
        """
        try:
            file = self.path(key, ATTEMPTS, piece).open("r+b")
        except FileNotFoundError:
            return None
        hold(file)
        return file

    def is_held(self, key: int, piece: int | None = None) -> bool:
        """Return whether a process that is alive has begun a clip and not ended it."""
        try:
            with self.path(key, ATTEMPTS, piece).open("r+b") as file:
                return is_held(file)
        except FileNotFoundError:
            return False

    def end(self, key: int, piece: int | None = None) -> None:
        """Note that a clip that was begun has ended, well or not."""
        self.path(key, ATTEMPTS, piece).unlink(missing_ok=True)

    def withdraw(self, key: int, piece: int | None = None) -> None:
        """Take back the last `begin` of a clip, which was stopped for no fault of its own."""
        attempts = self.attempts(key, piece)
        if attempts > 1:
            with suppress(FileNotFoundError):
                os.truncate(self.path(key, ATTEMPTS, piece), attempts - 1)
        else:
            self.end(key, piece)

    def attempts(self, key: int, piece: int | None = None) -> int:
        """Return how often a clip was begun without an end."""
        try:
            return self.path(key, ATTEMPTS, piece).stat().st_size
        except FileNotFoundError:
            return 0

    def add(
        self, key: int, name: str, tokens: Tokens, seconds: Seconds, notes: list[str]
    ) -> PackedClip | None:
        """Write the part of a clip, and return its details; the seconds of writing are added.

        Returns None if another process has published the shard meanwhile. If one has encoded the
        clip, its part stays.
        """
        start, attempts = time.perf_counter(), max(1, self.attempts(key))
        path = self.path(key, PART)
        try:
            with atomic_write(path, replace=False) as temporary, temporary.open("w+b") as file:
                with tar_member(file, f"{key_name(key)}.safetensors"):
                    write_tokens(file, tokens)
                with tar_member(file, f"{key_name(key)}.json"):
                    file.write(json.dumps(_describe(name, tokens)).encode())
                seconds = seconds._replace(writing=time.perf_counter() - start)
                some = [note[:_LONGEST_NOTE] for note in notes[:_MOST_NOTES]]
                clip = _pack(file, key, name, tokens, attempts, seconds, some)
                write_details(file, clip)
        except (OSError, UsageError):
            if not self.is_published():
                raise
            return None
        self.end(key)
        return clip

    def fail(self, failure: Failure) -> None:
        """Write the failure of a clip."""

        def write() -> None:
            with atomic_write(self.path(failure.key, FAILED)) as temporary:
                short = failure._replace(reason=failure.reason[:_LONGEST_REASON])
                temporary.write_text(json.dumps(short._asdict()) + "\n")

        self._in_parts(write)
        self.end(failure.key)

    def _in_parts(self, write: Callable[[], T]) -> T:
        """Return write(), which writes to the folder of parts.

        Another process may publish the shard meanwhile, and delete the folder. What is written then
        is left over, and `finish` deletes it.
        """
        while True:
            try:
                with name_file(self.parts):
                    self.parts.mkdir(parents=True, exist_ok=True)
                    return write()
            except (FileNotFoundError, FileExistsError, UsageError):  # also from atomic_write
                if not self.is_published():
                    raise

    def failure(self, key: int) -> Failure:
        """Return the failure of a clip. Raises VqtokError if its file is damaged."""
        path = self.path(key, FAILED)
        try:
            return failure_from_json(parse_json(path.read_bytes()))
        except (ValueError, AttributeError, TypeError) as error:
            raise VqtokError(f"{path} is damaged: {error}; delete it") from None


def key_name(key: int) -> str:
    """Return a key as it stands in the names of files."""
    return f"{key:09}"


def write_details(file: BinaryIO, clip: PackedClip) -> None:
    """Write the end of a part. Offsets of the clip count from the beginning of the part."""
    write_trailer(file, clip_to_json(clip))


def read_details(file: BinaryIO, path: Path) -> tuple[PackedClip, int]:
    """Return the clip in a part, and the size of its members of the tar in bytes.

    Raises VqtokError if the part is damaged.
    """
    details, size = read_trailer(file, path)
    try:
        clip = clip_from_json(details)
        if clip.offset != BLOCK or members_end(file, clip) != size:
            raise ValueError("its members are not those of its clip")
        return clip, size
    except ValueError as error:
        raise VqtokError(f"{path} is damaged: {error}; delete it") from None


def members_end(file: BinaryIO, clip: PackedClip) -> int:
    """Return the offset in a file at which the two members of a clip end.

    Raises ValueError if they are not there.
    """
    file.seek(padded(clip.offset + clip.bytes))
    size = member_size(file.read(BLOCK))
    return file.tell() + padded(size)


def _describe(name: str, tokens: Tokens) -> dict[str, object]:
    """Return what the JSON file beside a token file says of it."""
    return {
        "name": name,
        "frames": tokens.frames,
        "height": tokens.height,
        "width": tokens.width,
        "fps": f"{tokens.fps.numerator}/{tokens.fps.denominator}",
        "codebook_size": tokens.codebook_size,
        "shape": tokens.indices.shape,
    }


def _pack(
    file: BinaryIO,
    key: int,
    name: str,
    tokens: Tokens,
    attempts: int,
    seconds: Seconds,
    notes: list[str],
) -> PackedClip:
    """Return the details of a clip whose members of the tar are all that `file` has."""
    file.seek(BLOCK)
    header = read_header(file)
    file.seek(0, 2)
    indices = header.tensors["indices"]
    return PackedClip(
        key=key,
        name=name,
        offset=BLOCK,
        bytes=header.start + header.data_size,
        indices=BLOCK + header.start + indices.begin,
        dtype=indices.dtype,
        shape=indices.shape,
        frames=tokens.frames,
        tokens=count_tokens(tokens),
        timing=Timing.of(header, tokens, BLOCK),
        attempts=attempts,
        seconds=seconds,
        notes=notes,
    )
