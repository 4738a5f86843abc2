"""Token files counted in one pass: memory for the codebook, whatever the number of tokens."""

import numpy as np

from vqtok.tokens import Tokens

PIECE = 1 << 20  # tokens counted at a time
PAIRS = 1 << 22  # kept for what a token tells about the next: 32 MiB
SLICES = 20  # of a clip's length
PLACES = ((8, 12), (4, 6), (2, 3), (1, 1))  # rows and columns of the picture: the first that fit
ROOM = 1 << 25  # counters of the picture: 128 MiB


class Tally:
    """What `figures` needs to know of token files of one tokenizer.

    Every codebook has its own ids: index + codebook * codebook_size, `ids` in all.
    files, frames, pixels (of all frames), seconds (at each clip's frame rate): sums.
    counts: (ids) int64, how often each was seen.
    over_picture: (rows columns ids) uint32, likewise; a cell overflows at 4e9 tokens of one code.
    over_time: (slices 3), of each slice of the clips' length the number of latent frames, and the
        sums over them of distinct ids and of the entropy of a latent frame's ids in bits.
    pairs: an even sample of tokens and what follows them in time at the same place.
    """

    def __init__(self, like: Tokens) -> None:
        self.codebook_size, self.quantizer = like.codebook_size, like.quantizer
        self.model, self.stride = like.model, like.stride
        self.codebooks = int(np.prod(like.indices.shape[3:]))
        self.ids = self.codebooks * self.codebook_size
        self.files = self.frames = self.pixels = 0
        self.seconds = 0.0
        places = next(p for p in PLACES if p[0] * p[1] * self.ids <= ROOM or p == (1, 1))
        self.counts = np.zeros(self.ids, np.int64)
        self.over_time = np.zeros((SLICES, 3))
        self.over_picture = np.zeros((*places, self.ids), np.uint32)
        self.pairs = Pairs(self.codebook_size)

    def add(self, tokens: Tokens) -> None:
        """Count a clip of the same tokenizer."""
        self.files += 1
        self.frames += tokens.frames
        self.pixels += tokens.frames * tokens.height * tokens.width
        self.seconds += float(tokens.frames / tokens.fps)
        t, h, w = tokens.indices.shape[:3]
        places = self._places(h, w)
        slices = np.arange(t) * SLICES // t
        step = max(1, PIECE * t // tokens.indices.size)
        before = np.empty((0, h * w, self.codebooks), np.int64)
        for start in range(0, t, step):
            ids = self._ids(tokens.indices[start : start + step])  # (t p m), p positions
            np.add.at(self.over_picture.reshape(-1), (ids + places).ravel(), np.uint32(1))
            np.add.at(self.counts, ids.ravel(), 1)
            per_frame = _frames(ids.reshape(len(ids), -1))
            np.add.at(self.over_time, slices[start : start + step], per_frame)
            ids = np.concatenate([before, ids])
            self.pairs.add(ids[:-1].ravel(), ids[1:].ravel())
            before = ids[-1:]

    def _ids(self, indices: np.ndarray) -> np.ndarray:
        ids = np.asarray(indices, np.int64).reshape(len(indices), -1, self.codebooks)
        return ids + self.codebook_size * np.arange(self.codebooks)

    def _places(self, h: int, w: int) -> np.ndarray:
        """Where the counters of each position (p 1) begin."""
        rows, columns = self.over_picture.shape[:2]
        y, x = np.arange(h) * rows // h, np.arange(w) * columns // w
        return self.ids * (y[:, None] * columns + x).reshape(-1, 1)


def _frames(ids: np.ndarray) -> np.ndarray:
    """For each of t latent frames of n ids (t n): 1, how many differ, their entropy: (t 3)."""
    t, n = ids.shape
    narrow = np.int32 if ids.max() < 2**31 else np.int64  # sorted at a multiple of the speed
    ids = np.sort(ids.astype(narrow), axis=1)
    first = np.ones((t, n), bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
    distinct = first.sum(1)
    counts = np.diff(np.flatnonzero(first), append=t * n)
    steps = np.arange(n + 1)
    surprise = steps * np.log2(n / np.maximum(steps, 1))  # of all tokens of a code, by its count
    entropy = np.add.reduceat(surprise[counts], np.cumsum(distinct) - distinct) / n
    return np.stack([np.ones(t), distinct, entropy], axis=1)


class Pairs:
    """Ids and those that follow them: all are compared, PAIRS at most are kept, evenly drawn.

    number: pairs seen; equal: those of twice the same id.
    """

    def __init__(self, codebook_size: int) -> None:
        self.number = self.equal = 0
        self.codebook_size, self._share = codebook_size, 1.0
        self._kept: list[np.ndarray] = []
        self._length = 0
        self._random = np.random.default_rng(0)  # the same files give the same sample

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Take in ids (n) int64 and those that follow them (n), each of the same codebook."""
        self.number += len(before)
        self.equal += int(np.count_nonzero(before == after))
        pairs = before * self.codebook_size + after % self.codebook_size
        self._kept.append(self._drawn(pairs, self._share))
        self._length += len(self._kept[-1])
        while self._length > PAIRS:
            self._kept = [self._drawn(np.concatenate(self._kept), 0.5)]
            self._length, self._share = len(self._kept[0]), self._share / 2

    def kept(self) -> np.ndarray:
        """The kept pairs (n), each as id * codebook_size + index of what follows."""
        return np.concatenate([np.zeros(0, np.int64), *self._kept])

    def _drawn(self, pairs: np.ndarray, share: float) -> np.ndarray:
        return pairs if share == 1 else pairs[self._random.random(len(pairs), np.float32) < share]
