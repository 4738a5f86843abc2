"""Token files counted in one pass: memory for the codebook, whatever the number of tokens."""

import numpy as np

from vqtok.tokens.format import Tokens

PIECE = 1 << 20  # tokens counted at a time
SAMPLE = 1 << 22  # tokens and pairs kept: 32 MiB each
SLICES = 20  # of a clip's length
ROWS, COLUMNS = 8, 12  # of the picture


class CodeCounts:
    """What `figures` needs to know of token files of one tokenizer.

    Every codebook has its own ids: index + codebook * codebook_size, `ids` in all.
    files, frames, pixels (of all frames), seconds (at each clip's frame rate): sums.
    counts: (ids) int64, how often each was seen; fresh: where it was not the one before in time at
        the same place. The first latent frames of clips, which have none before, are left out.
    over_time: (slices 2), of each slice of the clips' length the number of latent frames, and the
        sum over them of how many different ids each has.
    followed: how many tokens have one before.
    places, pairs: samples of tokens with their slice, row and column, and of pairs of one and the
        next in time at the same place; see `place_of` and `pair_of`.
    """

    def __init__(self, like: Tokens) -> None:
        self.codebook_size, self.quantizer = like.codebook_size, like.quantizer
        self.model, self.stride = like.model, like.stride
        self.codebooks = int(np.prod(like.indices.shape[3:]))
        self.ids = self.codebooks * self.codebook_size
        self.files = self.frames = self.pixels = self.followed = 0
        self.seconds = 0.0
        self.counts, self.fresh = np.zeros((2, self.ids), np.int64)
        self.over_time = np.zeros((SLICES, 2), np.int64)
        self.places, self.pairs = Sample(), Sample()

    def add(self, tokens: Tokens) -> None:
        """Count a clip of the same tokenizer."""
        self.files += 1
        self.frames += tokens.frames
        self.pixels += tokens.frames * tokens.height * tokens.width
        self.seconds += float(tokens.frames / tokens.fps)
        t, h, w = tokens.indices.shape[:3]
        cells = np.arange(h)[:, None] * ROWS // h * COLUMNS + np.arange(w) * COLUMNS // w
        slices = np.arange(t) * SLICES // t
        places = ROWS * COLUMNS * slices[:, None] + cells.ravel()  # (t p), p positions
        step = max(1, PIECE * t // tokens.indices.size)
        before = np.empty((0, h * w, self.codebooks), np.int64)
        for start in range(0, t, step):
            piece = slice(start, start + step)
            ids = self._ids(tokens.indices[piece])  # (t p m), m codebooks
            np.add.at(self.counts, ids.ravel(), 1)
            np.add.at(self.over_time, slices[piece], _different(ids.reshape(len(ids), -1)))
            self.places.add(ids + self.ids * places[piece, :, None])
            self._follow(np.concatenate([before, ids]))
            before = ids[-1:]

    def place_of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slices (n), cells (n), row by row, and ids (n) of values (n) of `places`."""
        places, ids = np.divmod(values, self.ids)
        return *np.divmod(places, ROWS * COLUMNS), ids

    def pair_of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n) and those that follow them (n) of values (n) of `pairs`."""
        before, index = np.divmod(values, self.codebook_size)
        return before, before // self.codebook_size * self.codebook_size + index

    def _ids(self, indices: np.ndarray) -> np.ndarray:
        ids = np.asarray(indices, np.int64).reshape(len(indices), -1, self.codebooks)
        return ids + self.codebook_size * np.arange(self.codebooks)

    def _follow(self, ids: np.ndarray) -> None:
        """Count what follows what in ids (t p m)."""
        before, after = ids[:-1], ids[1:]
        self.followed += after.size
        np.add.at(self.fresh, after[before != after], 1)
        self.pairs.add(before * self.codebook_size + after % self.codebook_size)


class Sample:
    """Numbers: all that were added, or an even draw of SAMPLE of them at most."""

    def __init__(self) -> None:
        self._kept, self._length, self._share = [np.zeros(0, np.int64)], 0, 1.0
        self._random = np.random.default_rng(0)  # the same files give the same sample

    def add(self, values: np.ndarray) -> None:
        """Take in int64 of any shape."""
        self._kept.append(self._drawn(values.ravel(), self._share))
        self._length += len(self._kept[-1])
        while self._length > SAMPLE:
            self._kept = [self._drawn(np.concatenate(self._kept), 0.5)]
            self._length, self._share = len(self._kept[0]), self._share / 2

    def kept(self) -> np.ndarray:
        """What was kept (n)."""
        return np.concatenate(self._kept)

    def _drawn(self, values: np.ndarray, share: float) -> np.ndarray:
        if share == 1:
            return values
        return values[self._random.random(len(values), np.float32) < share]


def _different(ids: np.ndarray) -> np.ndarray:
    """1, and how many of its n ids are different, for each of t latent frames (t n): (t 2)."""
    narrow = np.int32 if ids.max() < 2**31 else np.int64  # sorted at a multiple of the speed
    ids = np.sort(ids.astype(narrow), axis=1)
    different = 1 + np.count_nonzero(ids[:, 1:] != ids[:, :-1], axis=1)
    return np.stack([np.ones_like(different), different], axis=1)
