"""Token files and corpora whose indices tell where they are, for windows of them."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from helpers.corpus import edit_json, write_corpus, write_folder
from helpers.tokens import make_tokens
from vqtok.corpus.index import write_index
from vqtok.corpus.reader import shard_record
from vqtok.corpus.settings import open_corpus
from vqtok.tokens import tokens_to_bytes

LENGTHS = {"a.b.mp4": 9, "day 1/clip.mp4": 12, "day 2/clip.webm": 2, "día/ñandú 雪.mov": 7}
CODES = 3000


def numbered(t, h=4, w=6, stages=1, codes=CODES, interval=3, seed=0, **changes):
    """Return Tokens with random indices, all of one tokenizer and key-frame interval."""
    shape = (t, h, w, stages)[: 3 + (stages > 1)]
    indices = np.random.default_rng(seed).integers(0, codes, shape)
    return replace(make_tokens(indices, codes), keyframe_interval=interval, **changes)


def irregular(tokens, origin=7):
    """Return the tokens of a clip of variable frame rate, with timestamps of i * i + 10 ticks."""
    times = [i * i + 10 for i in range(tokens.frames)]
    return replace(tokens, timestamps=times, time_base=Fraction(1, 100), origin=origin)


def sample_tokens(**options):
    """Return the Tokens of clips of several lengths by name, the last of variable frame rate."""
    clips = {n: numbered(t, seed=i, **options) for i, (n, t) in enumerate(LENGTHS.items())}
    last = list(clips)[-1]
    return clips | {last: irregular(clips[last])}


def as_folder(folder, clips):
    """Write clips, Tokens by name, as a folder of token files."""
    return write_folder(folder, {name: tokens_to_bytes(t) for name, t in clips.items()})


def as_corpus(folder, clips, index=True, **settings):
    """Write clips, Tokens by name, as a packed corpus of two clips a shard."""
    some = next(iter(clips.values()))
    stages = (*some.indices.shape, 1)[3]
    data = {name: tokens_to_bytes(tokens) for name, tokens in clips.items()}
    write_corpus(folder, data)
    settings = {
        "codebook_size": some.codebook_size,
        "stages": stages,
        "keyframe_interval": some.keyframe_interval,
    } | settings
    edit_json(folder / "corpus.json", lambda value: value["settings"].update(settings))
    if index:
        write_index(folder, map(shard_record, open_corpus(folder).shards))
    return folder
