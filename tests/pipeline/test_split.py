"""A clip encoded in pieces, in any order, gives the token file of the whole clip, byte for byte."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from fractions import Fraction
from unittest.mock import patch

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.clips import pattern, write_clip
from helpers.ffmpeg import run_ffmpeg
from helpers.tokenizers import STAGED, save_staged_tokenizer, small_settings, small_tokenizer
from vqtok.encoding import EncodeOptions, Rate
from vqtok.errors import UsageError
from vqtok.model import checkpoint
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.layers import CausalConv3d
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.source import encode_source
from vqtok.pipeline.split import Piece, encode_piece, join_pieces, plan_pieces
from vqtok.tokens import read_tokens, tokens_to_bytes, write_tokens
from vqtok.video import CannotSplit
from vqtok.video.resample import frame_shown, resampled

ALL = EncodeOptions()


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A small tokenizer with stages and a predictor, with a key frame every 3 latent frames."""
    path = save_staged_tokenizer(
        tmp_path_factory.mktemp("staged") / "t.safetensors", "model.predictor_blocks=1"
    )
    return load_for_inference(path, "cpu", None)


def encode_split(path, pieces, tokenizer, folder, options):
    """Return the tokens of a clip, encoded in pieces, the last one first, and through files."""
    rows = [json.dumps(asdict(piece)) for piece in pieces]
    pieces = [Piece(**json.loads(row)) for row in rows]
    for piece in reversed(pieces):
        tokens, _ = encode_piece(path, piece, tokenizer, options)
        write_tokens(folder / f"{piece.number}.part", tokens)
    parts = (read_tokens(folder / f"{piece.number}.part") for piece in pieces)
    return join_pieces(pieces, parts, str(path))


def assert_equal(path, tokenizer, folder, seconds=2, **options):
    """Check that pieces of a clip give the token file of the whole; return the number of pieces."""
    options = EncodeOptions(**options)
    pieces = plan_pieces(path, tokenizer, options, seconds)
    if not pieces:
        return 1
    tokens = encode_split(path, pieces, tokenizer, folder, options)
    whole, _ = encode_source(path, tokenizer, options)
    assert tokens_to_bytes(tokens) == tokens_to_bytes(whole), options
    return len(pieces)


GOP = {"g": "12", "bf": "3"}
OPEN_GOP = GOP | {"x264-params": "open-gop=1:b-pyramid=normal:ref=4"}
VARIABLE = [40 * i + 15 * (i * i % 7) // 6 for i in range(200)]  # ms
CLIPS = [
    ("c.mp4", {"fps": 25, **GOP}),
    ("c.mp4", {"fps": Fraction(30000, 1001), **GOP, "rotation": 90}),
    ("c.mkv", {"times": VARIABLE, **GOP}),
    ("c.mkv", {"times": [time + 777 for time in VARIABLE], **GOP}),
    ("c.mp4", {"fps": 25, **OPEN_GOP}),
    ("c.mkv", {"fps": 25, **OPEN_GOP}),
    ("c.mov", {"fps": 25, "codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ("c.mp4", {"fps": 25, "codec": "mpeg4", **GOP}),
    ("c.webm", {"fps": 25, "codec": "libvpx-vp9", "g": "12", "deadline": "realtime"}),
]
OPTIONS = [
    {},
    {"fps": Fraction(40)},
    {"fps": Fraction(1001, 60)},
    {"start": 0.73, "duration": 4.83},
    {"start": 0.31, "duration": 5.03, "fps": Fraction(24)},
]


@pytest.mark.parametrize("clip", range(len(CLIPS)))
def test_any_clip(clip, staged, tmp_path):
    name, options = CLIPS[clip]
    path = write_clip(tmp_path / name, pattern(200, 26, 42), **options)
    for reading in OPTIONS[clip % 2 :: 2]:
        assert assert_equal(path, staged, tmp_path, **reading) >= 2, reading


def test_frames_that_an_edit_list_hides(staged, tmp_path, make_clip):
    path = tmp_path / "trimmed.mp4"
    clip = make_clip(frames=200, height=16, width=24, **GOP)
    run_ffmpeg("-ss", "0.9", "-i", clip, "-c", "copy", path)
    with av.open(str(path)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) >= 5
    for reading in ({}, {"fps": Fraction(30)}):
        assert assert_equal(path, staged, tmp_path, **reading) >= 2


def test_a_frame_that_lasts_longer_than_the_clip(staged, tmp_path, make_clip):
    path = tmp_path / "long.mkv"
    clip = make_clip(frames=240, height=16, width=24, **GOP)
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream = stream
                packet.duration *= 300 if number == 30 else 1
                target.mux(packet)
    tokens, _ = encode_source(path, staged, EncodeOptions(fps=Fraction(20)))
    assert tokens.frames > 250  # the last frame is repeated until then
    assert assert_equal(path, staged, tmp_path, fps=Fraction(20)) == 3


def test_any_length(staged, tmp_path):
    path = write_clip(tmp_path / "c.mkv", pattern(190, 16, 24), **GOP)
    counts = {}
    for frames in (105, 106, 144, 145, 146, 149, 177, 178):
        counts[frames] = assert_equal(path, staged, tmp_path, 1, duration=frames / 25)
    # Pieces have 18 latent frames. The last one has half as many, or more.
    assert counts == {frames: 1 + (frames > 105) + (frames > 177) for frames in counts}


TOKENIZERS = {
    "fsq": ["model.keyframe_interval=5"],
    "lfq": ["model.keyframe_interval=4", "model.stride=1x8x8"],
    "gumbel": ["model.predictor_blocks=0"],
    "vq2": ["model.keyframe_interval=1", "model.intra_share=0.25"],
    "ema": STAGED,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_tokenizer(kind, tmp_path, make_clip):
    tokenizer = random_tokenizer(tmp_path / "t.safetensors", kind, *TOKENIZERS[kind])
    path = make_clip(frames=6 + 40 * tokenizer.stride[0], height=24, width=40, **GOP)
    for rate in [Rate(), *([Rate(price=0.5), Rate(price=3)] if tokenizer.zero_code else [])]:
        assert assert_equal(path, tokenizer, tmp_path, 1, rate=rate) >= 2


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_any_interval_between_key_frames(interval, tmp_path, make_clip):
    overrides = "model.keyframe_interval=6", "model.predictor_blocks=1"
    tokenizer = random_tokenizer(tmp_path / "t.safetensors", "fsq", *overrides)
    path = make_clip(frames=286, height=24, width=40, **GOP)
    assert assert_equal(path, tokenizer, tmp_path, 1, keyframe_interval=interval) >= 3


def random_tokenizer(path, kind, *overrides):
    """Return a tokenizer with random weights, loaded from a file: its tokens depend on everything.

    Its predictor works on what was decoded, so that an error lasts until the next key frame.
    """
    tokenizer, settings = small_tokenizer(kind, *overrides), small_settings(kind, *overrides)
    checkpoint.save(path, tokenizer, settings, step=1)
    return load_for_inference(path, "cpu", "float32")


def test_clips_in_batches(staged, tmp_path, make_clip):
    path = make_clip(frames=160, height=24, width=40, **GOP)
    pieces = plan_pieces(path, staged, ALL, 2)

    def encode(piece):
        with staged.batcher.clip():
            if piece is None:
                return encode_source(path, staged, ALL)[0]
            return encode_piece(path, piece, staged, ALL)[0]

    with staged.batched(2), ThreadPoolExecutor(3) as pool:
        *parts, whole = pool.map(encode, [*pieces, None])
    assert len(parts) == 2
    assert tokens_to_bytes(join_pieces(pieces, parts, "clip")) == tokens_to_bytes(whole)


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1, 3])
def test_clips_on_a_gpu(rows, tmp_path, make_clip):
    tokenizer = load_for_inference(save_staged_tokenizer(tmp_path / "t"), "cuda", None)
    path = make_clip(frames=240, height=64, width=96, **GOP)
    with tokenizer.batched(rows), tokenizer.batcher.clip():
        assert assert_equal(path, tokenizer, tmp_path, 4) == 2


def test_clips_that_are_not_split(staged, tmp_path, make_clip):
    few = make_clip("few.mp4", frames=200, height=16, width=24, g="250", sc_threshold="0")
    stream = make_clip("stream.ts", frames=150, height=16, width=24, **GOP)
    raw = make_clip("raw.h264", frames=150, height=16, width=24, **GOP)
    cut = tmp_path / "cut.mp4"
    run_ffmpeg("-i", few, "-c", "copy", "-movflags", "faststart", cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path, reason in {
        few: "has too few keyframes",
        stream: "cannot be read from the middle",
        raw: "has no timestamps",
        cut: "is damaged",
        pipe: "is not a file on disk",
    }.items():
        with pytest.raises(CannotSplit, match=f"{path.name} {reason}"):
            plan_pieces(path, staged, ALL, 2)


def test_short_clips_have_no_pieces(staged, make_clip, tmp_path):
    image = tmp_path / "image.png"
    Image.fromarray(pattern(1)[0]).save(image)
    short = make_clip(frames=100, height=16, width=24, **GOP)
    assert [plan_pieces(path, staged, ALL, 2) for path in (image, short)] == [[], []]
    assert plan_pieces(short, staged, EncodeOptions(start=0.2, duration=0.7), 0.5) == []


def test_rates_that_are_averages_are_refused(staged, make_clip):
    for rate in (Rate(tokens=0.5), Rate(psnr=30)):
        with pytest.raises(UsageError, match="choose a price, or do not split"):
            plan_pieces(make_clip(), staged, EncodeOptions(rate=rate), 600)
    for seconds in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match="must be above 0 seconds"):
            plan_pieces(make_clip(), staged, ALL, seconds)


def test_pieces_notice_other_frames_than_planned(staged, tmp_path, make_clip):
    path = make_clip(frames=160, height=24, width=40, **GOP)
    pieces = plan_pieces(path, staged, ALL, 2)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 4 + (len(data) - data.index(b"moov")) // 2
    assert len(pieces) == 2
    for change, reason in {
        "first": "not those that its packets promise",
        "last": "not those that its packets promise",
        "height": "of another size",
        "chunk": "of another size",
    }.items():
        wrong = replace(pieces[0], **{change: getattr(pieces[0], change) + 1})
        with pytest.raises(CannotSplit, match=reason):
            encode_piece(path, wrong, staged, ALL)
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(CannotSplit, match=r"cannot be encoded in pieces: .*damaged frame"):
        [encode_piece(path, piece, staged, ALL) for piece in pieces]


def test_joining_compares_where_pieces_overlap(staged, make_clip):
    path = make_clip(frames=160, height=24, width=40, **GOP)
    pieces = plan_pieces(path, staged, ALL, 2)
    parts = [encode_piece(path, piece, staged, ALL)[0] for piece in pieces]
    indices, times = parts[1].indices.copy(), list(parts[1].timestamps)
    indices[pieces[1].warm_up - 1, 0, 0] ^= 1
    times[5] += 1
    changes = {"timestamps": times, "width": 39, "model": "0" * 64, "keyframe_interval": 2}
    for change in ({"indices": indices}, *({key: value} for key, value in changes.items())):
        with pytest.raises(CannotSplit, match=r"clip.mp4 .* differ where they overlap"):
            join_pieces(pieces, [parts[0], replace(parts[1], **change)], str(path))


def test_too_short_a_warm_up_is_noticed(tmp_path, make_clip):
    tokenizer = random_tokenizer(tmp_path / "t.safetensors", "fsq", "model.keyframe_interval=1")
    tokenizer.encoder.append(CausalConv3d(6, 6, (9, 1, 1)))  # for which nothing was planned
    path = make_clip(frames=160, height=24, width=40, **GOP)
    with patch.object(Tokenizer, "look_back", 0):
        pieces = plan_pieces(path, tokenizer, ALL, 2)
    parts = [encode_piece(path, piece, tokenizer, ALL)[0] for piece in pieces]
    with pytest.raises(CannotSplit, match="differ where they overlap"):
        join_pieces(pieces, parts, str(path))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(-50, 50),
    st.fractions(3, 50, max_denominator=9),
)
def test_the_frame_shown_is_the_one_that_resampling_yields(steps, first, step):
    times = np.cumsum([first, *steps])
    frames = [(i, int(time)) for i, time in enumerate(times)]
    whole = list(resampled(iter(frames), step, lambda time: time + step, "clip", first, 0))
    for number, (frame, _) in enumerate(whole):
        assert frame_shown(times, step, number) == frame
        rest = iter(frames[frame:])
        part = resampled(rest, step, lambda time: time + step, "clip", first, number)
        assert list(part) == whole[number:]
