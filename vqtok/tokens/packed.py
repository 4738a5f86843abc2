"""Indices with a zero code as a short sequence of ids, for models that only want what is new.

A sequence holds the latent frames in order. Each begins with the frame id, and its positions
follow row by row. A position is the ids of its indices, stage by stage, up to the last one that is
not 0; a run of positions whose indices are all 0 is one run id or more, whose lengths add up. The
run at the end of a latent frame is left out, so a still frame is the frame id alone.

Ids, for codebooks of k codes: stage s has ids s * k to s * k + k - 1, where index i is id
s * k + i. Then follow _RUN_IDS run ids, for lengths digit * 16 ** exponent, and the frame id.
"""

import math
from collections.abc import Sequence

import numpy as np

from vqtok.errors import UsageError, VqtokError
from vqtok.tokens.format import MAX_CODEBOOKS

_BASE, _EXPONENTS = 16, 6
_RUN_IDS = (_BASE - 1) * _EXPONENTS
_MAX_POSITIONS = _BASE**_EXPONENTS - 1  # the longest run
_POSITIONS_AT_A_TIME = 1 << 18


def sequence_vocabulary(codebook_size: int, codebooks: int = 1) -> int:
    """Return the number of ids that sequences of these codebooks use; the last is the frame id.

    Raises UsageError unless a token file can have so many codebooks and codes.
    """
    if not (0 < codebook_size < 2**31 and 0 < codebooks <= MAX_CODEBOOKS):
        raise UsageError(f"there are no {codebooks} codebooks of {codebook_size} codes")
    return codebooks * codebook_size + _RUN_IDS + 1


def pack_sequence(indices: np.ndarray, codebook_size: int) -> np.ndarray:
    """Return indices (t h w) or (t h w codebooks) as a sequence of ids (n), int64.

    The ids are below `sequence_vocabulary(codebook_size, codebooks)`. `unpack_sequence` returns the
    indices. Each latent frame is a part of the sequence that does not depend on the others.

    Raises UsageError if the indices are not integers of that shape, VqtokError if they are not in
    the codebook.
    """
    indices = np.asarray(indices)
    _check_shape(indices.shape, least=1)
    if indices.dtype.kind not in "iu":
        raise UsageError(f"the indices must be integers, not {indices.dtype}")
    t, h, w = indices.shape[:3]
    frames = indices.reshape(t, h * w, -1)
    step = max(1, _POSITIONS_AT_A_TIME // (h * w))
    starts = range(0, t, step)
    return np.concatenate([_pack_frames(frames[i : i + step], codebook_size) for i in starts])


def _pack_frames(indices: np.ndarray, codebook_size: int) -> np.ndarray:
    """Return the ids (n) of indices (t p m), p positions and m stages."""
    if indices.min() < 0 or indices.max() >= codebook_size:
        found = f"{indices.min():,} to {indices.max():,}"
        raise VqtokError(f"the indices are {found}, not in a codebook of {codebook_size:,}")
    p, m = indices.shape[1:]
    stages = np.arange(m)
    frame_id = sequence_vocabulary(codebook_size, m) - 1
    # The frame id is a position of its own before the others, with one stage.
    before = (0, 0), (1, 0)
    used = np.pad(((indices != 0) * (stages + 1)).max(-1), before, constant_values=1)
    ids = indices.astype(np.int64) + codebook_size * stages
    ids = np.pad(ids, (*before, (0, 0)), constant_values=frame_id)
    coded = np.flatnonzero(used)
    runs = np.diff(coded, prepend=-1) - 1  # before each coded position
    runs[coded % (p + 1) == 0] = 0
    exponents = np.arange(_EXPONENTS)[::-1]
    digits = runs[:, None] // _BASE**exponents % _BASE
    run_ids = codebook_size * m + (_BASE - 1) * exponents + digits - 1
    rows = np.concatenate([run_ids, ids.reshape(-1, m)[coded]], 1)
    return rows[np.concatenate([digits > 0, stages < used.ravel()[coded, None]], 1)]


def unpack_sequence(sequence: np.ndarray, shape: Sequence[int], codebook_size: int) -> np.ndarray:
    """Return the indices, int64, of a sequence (n) of ids.

    shape: (t h w) or (t h w codebooks) of the indices. With a t of -1 the sequence may have any
        number of latent frames: a clip that a model has not finished is one with fewer of them,
        the last of which is 0 where the sequence has not come to.

    Any run ids whose lengths add up to that of a run are accepted, and so is a run at the end of a
    latent frame. Raises UsageError for another shape or dtype, VqtokError for a sequence without
    meaning.
    """
    _check_shape(shape, least=-1)
    sequence = np.asarray(sequence)
    if sequence.ndim != 1 or sequence.dtype.kind not in "iu":
        found = f"{sequence.dtype} of shape {sequence.shape}"
        raise UsageError(f"a sequence must be one-dimensional and of integers, not {found}")
    m, p = math.prod(shape[3:]), shape[1] * shape[2]
    _check_ids(sequence, sequence_vocabulary(codebook_size, m))
    sequence = sequence.astype(np.int64)
    frame, end, stage = _locate(sequence, codebook_size, m)
    t = int(frame[-1]) + 1
    if shape[0] not in (-1, t):
        raise VqtokError(f"the sequence has {t:,} latent frames, not {shape[0]:,}")
    if (beyond := end > p).any():
        at = int(beyond.argmax())
        raise VqtokError(
            f"id {at:,} of the sequence is past the end of latent frame {frame[at]:,}, which has "
            f"{p:,} positions"
        )
    indices = np.zeros((t, p, m), np.int64)
    code = stage >= 0
    indices[frame[code], end[code] - 1, stage[code]] = sequence[code] % codebook_size
    return indices.reshape(t, *shape[1:])


def _locate(
    sequence: np.ndarray, codebook_size: int, codebooks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the latent frame of each id, its end there in positions, and its stage, else -1."""
    codes = codebook_size * codebooks
    is_code, is_frame = sequence < codes, sequence == codes + _RUN_IDS
    stage = np.where(is_code, sequence // codebook_size, -1)
    follows = stage > 0
    if (wrong := follows[1:] & (stage[:-1] != stage[1:] - 1)).any():
        at = int(wrong.argmax()) + 1
        raise VqtokError(
            f"id {at:,} of the sequence is of stage {stage[at]} and must follow one of stage "
            f"{stage[at] - 1}"
        )
    exponents, digits = np.divmod(sequence - codes, _BASE - 1)
    lengths = (digits + 1) * _BASE ** np.where(is_code | is_frame, 0, exponents)
    lengths[is_code] = ~follows[is_code]
    lengths[is_frame] = 0
    frame, end = np.cumsum(is_frame) - 1, np.cumsum(lengths)
    return frame, end - end[is_frame][frame], stage


def _check_ids(sequence: np.ndarray, vocabulary: int) -> None:
    """Raise VqtokError unless the ids are in the vocabulary and begin with the frame id."""
    if not len(sequence):
        raise VqtokError("the sequence is empty: it must begin with the frame id")
    if sequence.min() < 0 or sequence.max() >= vocabulary:
        found = f"{sequence.min():,} to {sequence.max():,}"
        raise VqtokError(f"the ids are {found}, not in a vocabulary of {vocabulary:,}")
    if sequence[0] != vocabulary - 1:
        raise VqtokError(
            f"the sequence begins with {sequence[0]:,}, not with the frame id, {vocabulary - 1:,}"
        )


def _check_shape(shape: Sequence[int], least: int) -> None:
    """Raise UsageError unless this is a shape of indices; t may be `least`, and not 0."""
    is_grid = len(shape) in (3, 4) and all(side > 0 for side in shape[1:])
    if not is_grid or shape[0] < least or shape[0] == 0:
        raise UsageError(
            f"the shape of the indices must be (t h w) or (t h w codebooks), not {tuple(shape)}"
        )
    if shape[1] * shape[2] > _MAX_POSITIONS:
        raise UsageError(
            f"a latent frame of {shape[1]}x{shape[2]} has more than {_MAX_POSITIONS:,} positions"
        )
