"""Code counts of token files in one pass, in memory that does not depend on the tokens."""

import numpy as np

from vqtok.errors import VqtokError
from vqtok.tokens.format import Tokens

MAX_IDS = 1 << 21  # all counts and figures of so many take 100 MiB
TOKENS_AT_A_TIME = 1 << 20
SAMPLE_SIZE = 1 << 22  # 32 MiB per sample
TIME_BINS = 20
GRID_ROWS, GRID_COLUMNS = 8, 12


class CodeCounts:
    """Code counts of token files of one tokenizer, added clip by clip.

    An id is index + codebook * codebook_size, so that every codebook has its own ids. With a zero
    code, an index of 0 is not a token: only `occurrences` counts it.

    files, frames, pixels (of all frames), seconds (at each clip's frame rate): totals.
    occurrences: (ids) int64, how often each id occurs.
    changes: (ids) int64, how often each id differs from the previous one in time at the same
        position. The first latent frame of a clip has no previous one and is left out.
    transitions: (codebooks) int64, number of tokens that have a previous index in time.
    latent_frames, distinct_ids: (TIME_BINS) int64, for each bin of the relative time in a clip,
        the number of latent frames and the sum over them of their numbers of distinct ids.
    time_positions, cell_positions: (TIME_BINS), (cells) int64, number of positions in each bin of
        time and in each cell of the grid, row by row.
    time_tokens, cell_tokens: (TIME_BINS codebooks), (cells codebooks) int64, number of tokens
        there. With a zero code only: else every position has a token of each codebook.
    transition_sample: sample of previous id * codebook_size + next index.

    Raises VqtokError if there are more than MAX_IDS ids.
    """

    def __init__(self, like: Tokens) -> None:
        self.codebook_size, self.quantizer = like.codebook_size, like.quantizer
        self.model, self.stride, self.zero_code = like.model, like.stride, like.zero_code
        self.codebooks = int(np.prod(like.indices.shape[3:]))
        self.ids = self.codebooks * self.codebook_size
        if self.ids > MAX_IDS:
            raise VqtokError(
                f"the codebook is too large to count: it has {self.ids:,} codes, and the limit is "
                f"{MAX_IDS:,}"
            )
        self.files = self.frames = self.pixels = 0
        self.seconds = 0.0
        self.occurrences, self.changes = np.zeros((2, self.ids), np.int64)
        self.latent_frames, self.distinct_ids = np.zeros((2, TIME_BINS), np.int64)
        self.transitions = np.zeros(self.codebooks, np.int64)
        self.time_positions = np.zeros(TIME_BINS, np.int64)
        self.cell_positions = np.zeros(GRID_ROWS * GRID_COLUMNS, np.int64)
        self.time_tokens = np.zeros((TIME_BINS, self.codebooks), np.int64)
        self.cell_tokens = np.zeros((GRID_ROWS * GRID_COLUMNS, self.codebooks), np.int64)
        self.transition_sample = RandomSample()
        self._position_sample = RandomSample()  # id + ids * (cell + cells * time bin)

    def add(self, tokens: Tokens) -> None:
        """Count a clip of the same tokenizer."""
        self.files += 1
        self.frames += tokens.frames
        self.pixels += tokens.frames * tokens.height * tokens.width
        self.seconds += float(tokens.frames / tokens.fps)
        t, h, w = tokens.indices.shape[:3]
        cells = _grid_cells(h, w)  # (p), p positions
        time_bins = np.arange(t) * TIME_BINS // t
        np.add.at(self.time_positions, time_bins, h * w)
        np.add.at(self.cell_positions, cells, t)
        step = max(1, TOKENS_AT_A_TIME * t // tokens.indices.size)
        previous = np.empty((0, h * w, self.codebooks), np.int64)
        for start in range(0, t, step):
            part = slice(start, start + step)
            ids = self._ids(tokens.indices[part])  # (t p m), m codebooks
            np.add.at(self.occurrences, ids.ravel(), 1)
            np.add.at(self.latent_frames, time_bins[part], 1)
            np.add.at(self.distinct_ids, time_bins[part], self._count_codes(ids))
            positions = GRID_ROWS * GRID_COLUMNS * time_bins[part, None] + cells  # (t p)
            located = ids + self.ids * positions[..., None]
            if self.zero_code:
                spent = self._is_token(ids)
                located = located[spent]
                np.add.at(self.time_tokens, time_bins[part], spent.sum(1))
                np.add.at(self.cell_tokens, cells, spent.sum(0))
            self._position_sample.add(located)
            self._add_transitions(np.concatenate([previous, ids]))
            previous = ids[-1:]

    def sampled_positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the time bins (n), row-major grid cells (n) and ids (n) of sampled tokens."""
        positions, ids = np.divmod(self._position_sample.values(), self.ids)
        return *np.divmod(positions, GRID_ROWS * GRID_COLUMNS), ids

    def _ids(self, indices: np.ndarray) -> np.ndarray:
        ids = np.asarray(indices, np.int64).reshape(len(indices), -1, self.codebooks)
        return ids + self.codebook_size * np.arange(self.codebooks)

    def _is_token(self, ids: np.ndarray) -> np.ndarray:
        return ids % self.codebook_size != 0

    def _count_codes(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of distinct codes in each latent frame of ids (t p m)."""
        distinct = _count_distinct(ids.reshape(len(ids), -1))
        return distinct - (~self._is_token(ids)).any(1).sum(1) if self.zero_code else distinct

    def _add_transitions(self, ids: np.ndarray) -> None:
        """Count the transitions between successive latent frames of ids (t p m)."""
        before, after = ids[:-1], ids[1:]
        if self.zero_code:
            spent = self._is_token(after)
            self.transitions += spent.sum((0, 1))
            before, after = before[spent], after[spent]
        else:
            self.transitions += after.size // self.codebooks
        np.add.at(self.changes, after[before != after], 1)
        self.transition_sample.add(before * self.codebook_size + after % self.codebook_size)


class RandomSample:
    """A uniform sample of at most SAMPLE_SIZE integers of a stream.

    All integers are kept with the same probability, which is halved whenever the sample gets too
    large. The seed is fixed: the same files give the same sample.
    """

    def __init__(self) -> None:
        self._parts, self._length, self._probability = [np.zeros(0, np.int64)], 0, 1.0
        self._random = np.random.default_rng(0)

    def add(self, values: np.ndarray) -> None:
        """Add int64 values of any shape."""
        self._parts.append(self._draw(values.ravel(), self._probability))
        self._length += len(self._parts[-1])
        while self._length > SAMPLE_SIZE:
            self._parts = [self._draw(np.concatenate(self._parts), 0.5)]
            self._length, self._probability = len(self._parts[0]), self._probability / 2

    def values(self) -> np.ndarray:
        """Return the sample (n)."""
        return np.concatenate(self._parts)

    def _draw(self, values: np.ndarray, probability: float) -> np.ndarray:
        if probability == 1:
            return values
        return values[self._random.random(len(values), np.float32) < probability]


def _grid_cells(h: int, w: int) -> np.ndarray:
    """Return the row-major grid cell of each position of a latent frame (h w) -> (p)."""
    rows, columns = np.arange(h) * GRID_ROWS // h, np.arange(w) * GRID_COLUMNS // w
    return (rows[:, None] * GRID_COLUMNS + columns).ravel()


def _count_distinct(ids: np.ndarray) -> np.ndarray:
    """Return the number of distinct ids in each row, (t n) -> (t)."""
    narrow = np.int32 if ids.max() < 2**31 else np.int64  # sorts several times faster
    ids = np.sort(ids.astype(narrow), axis=1)
    return 1 + np.count_nonzero(ids[:, 1:] != ids[:, :-1], axis=1)
