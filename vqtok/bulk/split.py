"""Encode a clip of a corpus as a whole, or the pieces of a long one, and join them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from vqtok.corpus.clips import Clip
from vqtok.corpus.pieces import Pieces, PieceTokens
from vqtok.corpus.records import Seconds
from vqtok.encoding import EncodeOptions
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.source import encode_source
from vqtok.pipeline.split import Piece, encode_piece, join_pieces, plan_pieces
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.tokens import Tokens
from vqtok.video import CannotSplit

EncodedClip = PieceTokens  # of a whole clip


def encode_whole(path: str, tokenizer: Tokenizer, options: EncodeOptions) -> EncodedClip:
    """Return the tokens of a clip."""
    stopwatch = Stopwatch()
    tokens, video = encode_source(path, tokenizer, options, stopwatch=stopwatch)
    return EncodedClip(tokens, _seconds(stopwatch), video.notes)


def encode_split(
    clip: Clip, pieces: Pieces, tokenizer: Tokenizer, options: EncodeOptions, seconds: float | None
) -> EncodedClip | None:
    """Encode a piece of a clip, and return the tokens of all if it was the last one.

    A clip that cannot be cut is encoded as a whole, in place of its first piece, or where that is
    found out.

    seconds: the length of a piece, about.
    """
    try:
        plan = _plan(clip, pieces, tokenizer, options, seconds or 0.0)
        if plan:
            _encode_missing(clip, plan, pieces, tokenizer, options)
            return _join(clip, plan, pieces)
    except CannotSplit as error:
        pieces.write_plan([])
        whole = encode_whole(clip.path, tokenizer, options)
        return whole._replace(notes=[str(error), *whole.notes])
    return encode_whole(clip.path, tokenizer, options) if clip.piece == 0 else None


def _plan(
    clip: Clip, pieces: Pieces, tokenizer: Tokenizer, options: EncodeOptions, seconds: float
) -> list[Piece]:
    """Return how a clip is cut, as the first process that asked has found out."""
    rows = pieces.read_plan()
    if rows is None:
        plan = plan_pieces(clip.path, tokenizer, options, seconds)
        pieces.write_plan([asdict(piece) for piece in plan])
        rows = pieces.read_plan()
    return [Piece(**row) for row in rows or []]


def _encode_missing(
    clip: Clip,
    plan: Sequence[Piece],
    pieces: Pieces,
    tokenizer: Tokenizer,
    options: EncodeOptions,
) -> None:
    """Encode the pieces that `clip` stands for, in case they are more or less than was expected."""
    for piece in plan[clip.piece :: clip.pieces]:
        if pieces.path(piece.number).exists():
            continue
        stopwatch = Stopwatch()
        tokens, video = encode_piece(clip.path, piece, tokenizer, options, stopwatch=stopwatch)
        pieces.add(piece.number, PieceTokens(tokens, _seconds(stopwatch), video.notes))


def _join(clip: Clip, plan: Sequence[Piece], pieces: Pieces) -> EncodedClip | None:
    """Return the tokens of a clip, or None if a piece is not finished yet."""
    if not all(pieces.path(piece.number).exists() for piece in plan):
        return None
    seconds, notes = list[Seconds](), dict[str, None]()

    def parts() -> Iterator[Tokens]:  # one at a time: each may hold a file open
        for piece in plan:
            part = pieces.read(piece.number)
            seconds.append(part.seconds)
            notes.update(dict.fromkeys(part.notes))
            yield part.tokens

    tokens = join_pieces(plan, parts(), clip.path)
    total = Seconds(*map(sum, zip(*seconds, strict=True)))
    return EncodedClip(tokens, total, list(notes))


def _seconds(stopwatch: Stopwatch) -> Seconds:
    reading = stopwatch.seconds("reading")
    return Seconds(reading, stopwatch.elapsed() - reading, 0)
