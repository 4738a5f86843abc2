"""The pieces of a long clip in an open shard, until they are joined."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vqtok.atomic import atomic_write
from vqtok.corpus.records import Seconds
from vqtok.corpus.shards import Shard, key_name
from vqtok.corpus.trailer import read_trailer, write_trailer
from vqtok.errors import VqtokError
from vqtok.tokens import Tokens, read_tokens_at, write_tokens
from vqtok.untrusted import parse_json


class PieceTokens(NamedTuple):
    """A piece that is encoded, with the seconds spent on it and notes for the user."""

    tokens: Tokens
    seconds: Seconds
    notes: list[str]


@dataclass(frozen=True)
class Pieces:
    """The pieces of a clip of a shard.

    KEY.pieces says how the clip is cut; KEY-0003.piece is a token file, and its details.
    """

    shard: Shard
    key: int

    @property
    def _plan(self) -> Path:
        return self.shard.path(self.key, ".pieces")

    def read_plan(self) -> list[dict[str, Any]] | None:
        """Return how the clip is cut: an empty list if it is encoded as a whole, None if unknown.

        Raises VqtokError if the file that says so is damaged.
        """
        try:
            rows = parse_json(self._plan.read_bytes())
            if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
                raise ValueError("it has no list of pieces")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise VqtokError(f"{self._plan} is damaged: {error}; delete it") from None
        return rows

    def write_plan(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write how the clip is cut. No rows: it is encoded as a whole, whatever was planned."""
        with atomic_write(self._plan, replace=not rows) as temporary:
            temporary.write_text(json.dumps(rows))

    def path(self, number: int) -> Path:
        """Return the file of a piece."""
        return self.shard.parts / f"{key_name(self.key)}-{number:04}.piece"

    def add(self, number: int, piece: PieceTokens) -> None:
        """Write a piece."""
        details = {"seconds": piece.seconds._asdict(), "notes": piece.notes}
        with atomic_write(self.path(number)) as temporary, temporary.open("wb") as file:
            write_tokens(file, piece.tokens)
            write_trailer(file, details)

    def read(self, number: int) -> PieceTokens:
        """Read a piece; large indices stay on disk. Raises VqtokError if its file is damaged."""
        path = self.path(number)
        with path.open("rb") as file:
            details, size = read_trailer(file, path)
            tokens = read_tokens_at(file, 0, size, str(path))
        try:
            return PieceTokens(tokens, Seconds(**details["seconds"]), list(details["notes"]))
        except (KeyError, TypeError):
            raise VqtokError(f"{path} is damaged: it has no details; delete it") from None

    def delete(self) -> None:
        """Delete all files of the pieces."""
        for path in self.shard.parts.glob(f"{key_name(self.key)}*.piece*"):
            path.unlink(missing_ok=True)
