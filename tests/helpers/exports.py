"""Token files to export, and what is in a folder of an export."""

from dataclasses import replace

import numpy as np

from helpers.corpus import write_folder
from helpers.tokens import make_tokens
from vqtok.export.layout import Layout
from vqtok.tokens import tokens_to_bytes

NAMES = ("a.b.mp4", "day 1/clip.mp4", "day 2/clip.mp4", "día/ñandú 雪.mov")
# (h w) or (h w stages) of a latent frame, and the size of the codebook.
GRIDS = {
    "square": ((4, 4), 16),
    "wide": ((3, 5), 256),
    "stages": ((2, 3, 2), 300),
    "square stages": ((3, 3, 2), 32767),
    "largest vocabulary": ((2, 2), 65535),
    "large codebook": ((2, 2), 65536),
    "huge codebook": ((2, 2), 100_000),
}
LAYOUTS = [layout.value for layout in Layout]


def make_clips(grid="square", names=NAMES, **changes):
    """Return the tokens of some clips by name, each longer than the last; both ends are in use."""
    shape, codes = GRIDS[grid]
    found = {}
    for number, name in enumerate(names):
        indices = np.random.default_rng(number).integers(0, codes, (2 + number, *shape))
        indices.flat[:2] = 0, codes - 1
        tokens = make_tokens(indices, codes)
        found[name] = replace(tokens, **{"keyframe_interval": 1} | changes)
    return found


def write_tokens(folder, tokens):
    """Write a folder of token files."""
    return write_folder(folder, {name: tokens_to_bytes(t) for name, t in tokens.items()})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
