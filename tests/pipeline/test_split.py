"""A clip encoded in pieces, in any order, gives the token file of the whole clip, byte for byte."""

import json
from dataclasses import asdict
from fractions import Fraction

import pytest

from helpers.clips import pattern, write_clip
from helpers.tokenizers import STAGED, randomize, save_staged_tokenizer, small_settings
from vqtok.errors import UsageError
from vqtok.model import checkpoint
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.rate import Rate
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.api import encode_video
from vqtok.pipeline.split import Piece, encode_piece, join_pieces, plan_pieces
from vqtok.tokens import read_tokens, tokens_to_bytes, write_tokens
from vqtok.video import CannotSplit


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A small tokenizer with stages and a predictor, with a key frame every 3 latent frames."""
    path = save_staged_tokenizer(
        tmp_path_factory.mktemp("staged") / "t.safetensors", "model.predictor_blocks=1"
    )
    return load_for_inference(path, "cpu", None)


def encode_split(path, tokenizer, seconds, folder, **options):
    """Encode a clip in pieces, the last one first, through files; return its tokens and pieces."""
    rows = [json.dumps(asdict(p)) for p in plan_pieces(path, tokenizer, seconds, **options)]
    pieces = [Piece(**json.loads(row)) for row in rows]
    for piece in reversed(pieces):
        tokens, _ = encode_piece(path, piece, tokenizer, **options)
        write_tokens(folder / f"{piece.number}.part", tokens)
    parts = (read_tokens(folder / f"{piece.number}.part") for piece in pieces)
    return join_pieces(pieces, parts, str(path)), pieces


def vfr_times(frames):
    """Return timestamps in ms whose steps vary between 20 and 60."""
    times, time = [], 0
    for i in range(frames):
        times.append(time)
        time += 20 + 40 * (i * i % 7) // 6
    return times


GOP = {"g": "12", "bf": "3"}
OPEN_GOP = GOP | {"x264-params": "open-gop=1:b-pyramid=normal:ref=4"}
CLIPS = {
    "constant frame rate": ("c.mp4", dict(fps=25, **GOP)),
    "NTSC": ("c.mp4", dict(fps=Fraction(30000, 1001), **GOP)),
    "variable frame rate": ("c.mkv", dict(times=vfr_times(300), **GOP)),
    "open GOP": ("c.mp4", dict(fps=25, **OPEN_GOP)),
    "open GOP in Matroska": ("c.mkv", dict(fps=25, **OPEN_GOP)),
    "intra only": ("c.mov", dict(fps=25, codec="mjpeg", pix_fmt="yuvj420p")),
    "MPEG-4 with B-frames": ("c.mp4", dict(fps=25, codec="mpeg4", **GOP)),
    "VP9": ("c.webm", dict(fps=25, codec="libvpx-vp9", g="12", deadline="realtime")),
    "late start": ("c.mkv", dict(times=[t + 777 for t in vfr_times(300)], **GOP)),
}
OPTIONS = {
    "as it is": {},
    "upsampled": {"fps": Fraction(40)},
    "downsampled": {"fps": Fraction(1001, 60)},
    "a part": {"start": 1.23, "duration": 9.5},
    "a part, resampled": {"start": 0.7, "duration": 9.11, "fps": Fraction(24)},
    "scaled": {"size": 33},
}


@pytest.mark.parametrize("clip", CLIPS)
def test_pieces_of_any_clip(clip, staged, tmp_path):
    name, options = CLIPS[clip]
    path = write_clip(tmp_path / name, pattern(300, 40, 56), **options)
    for label, reading in OPTIONS.items():
        tokens, pieces = encode_split(path, staged, 3, tmp_path, **reading)
        assert len(pieces) >= 2, label
        whole = encode_video(path, tokenizer=staged, **reading)
        assert tokens_to_bytes(tokens) == tokens_to_bytes(whole), label
