"""The layout of nanoGPT, https://github.com/karpathy/nanoGPT: one sequence of uint16.

train.bin: for each clip the separator, then its indices (t h w) or (t h w stages) in this order.
    Index i of stage s is id s * codebook_size + i; the separator follows the last stage's ids.
meta.pkl: vocab_size, where nanoGPT looks for it.
meta.json: vocab_size; separator; dtype; length, of the sequence; and what `tokenizer_of` returns.
clips.jsonl: a line for each clip, in the order of the sequence.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vqtok.errors import VqtokError
from vqtok.export.clips import (
    Clip,
    clip_line,
    keyframe_notes,
    parts,
    stages_of,
    tokenizer_of,
    with_one_tokenizer,
)
from vqtok.export.layout import Layout
from vqtok.export.output import open_outputs, to_json

_DTYPE = np.dtype("<u2")


def write_nanogpt(clips: Iterable[Clip], folder: Path) -> list[str]:
    """Write clips as one sequence, one clip in memory at a time; return notes for the user.

    Raises VqtokError for clips of several tokenizers, or if their ids do not fit 16 bits.
    """
    length = 0
    with open_outputs(folder, Layout.NANOGPT.files) as (meta, pickled, sequence, lines):
        for clip in with_one_tokenizer(clips):
            tokens = clip.tokens
            separator = _separator(clip)
            first_ids = np.arange(stages_of(tokens)) * tokens.codebook_size
            sequence.write(np.array(separator, _DTYPE).tobytes())
            for part in parts(tokens.indices.reshape(len(tokens.indices), -1, len(first_ids))):
                sequence.write((part + first_ids).astype(_DTYPE).tobytes())
            lines.write(clip_line(clip))
            length += 1 + tokens.indices.size
        sizes = {"vocab_size": separator + 1, "separator": separator, "length": length}
        meta.write(to_json(sizes | {"dtype": _DTYPE.name} | tokenizer_of(tokens)))
        pickle.dump({"vocab_size": separator + 1}, pickled)
    return keyframe_notes(tokens.keyframe_interval)


def _separator(clip: Clip) -> int:
    """Return the id after those of all codes; raise VqtokError if it does not fit 16 bits."""
    stages, codes = stages_of(clip.tokens), clip.tokens.codebook_size
    separator, largest = stages * codes, np.iinfo(_DTYPE).max
    if separator > largest:
        codebooks = f"{stages} codebooks" if stages > 1 else "a codebook"
        raise VqtokError(
            f"{clip.source}: {codebooks} of {codes:,} codes and a separator are {separator + 1:,} "
            f"ids, and the nanogpt layout has room for {largest + 1:,}: export to 1x or parquet, "
            "or encode with a tokenizer of fewer codes, such as ema-4x8x8-2x16k"
        )
    return separator
