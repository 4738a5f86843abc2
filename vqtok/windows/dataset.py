"""`TokenWindows`: windows of latent frames of token files, as a PyTorch data set."""

from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vqtok.errors import UsageError
from vqtok.model.tokenizer import Tokenizer
from vqtok.windows.batches import WindowBatchSampler
from vqtok.windows.clips import Clips, Source, read_clips
from vqtok.windows.codes import KeyframeIntervals
from vqtok.windows.factors import Array, Factors
from vqtok.windows.reader import read_indices, read_time

KEY, ANY = "key", "any"


class TokenWindows(Dataset[dict[str, Any]]):
    """Windows of latent frames, in the order of the clips; none extends over two clips.

    An item is a dict:

    indices: int64 (t h w), or (t h w f) where f = stages * factors > 1. With start="key", t is
        `length`. With start="any", it is always length + keyframe_interval - 1, or as many as the
        longest clip has if these are fewer: indices begin at the key frame at or before the
        window, which is rows lead : lead + length, and rows behind it are `pad_token`.
    lead: latent frames before the window; 0 with start="key".
    clip: name of the clip, such as a/b.mp4.
    frame: number of the latent frame in the clip where the window begins.
    time: of its first frame, in seconds from the start of the video. fps: of the clip.

    Attributes besides the arguments:

    skipped: number of clips that are too short or too small.
    codebook_size, stages, stride: of the tokenizer. tokenizer: SHA-256 of its weights.
    keyframe_interval: in latent frames; 1: every latent frame stands for itself.
    vocabulary_size: values that an index of an item can take, special tokens included.
    bos_token, pad_token: special tokens; they are outside of the codebook, and only `pad_token`
        is in items.

    It can be pickled, and keeps no file open: an access opens and maps the file anew.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        length: int,
        *,
        start: str = KEY,
        step: int | None = None,
        grid: tuple[int, int] | None = None,
        factors: int = 1,
        seed: int = 0,
        tokenizer: str | Path | Tokenizer | None = None,
    ) -> None:
        """Read where the clips lie, but none of their indices.

        source: a packed corpus, a folder of token files, a token file, or a sequence of these.
        length: of a window, in latent frames.
        start: "key": windows begin at key frames. "any": they begin anywhere, and the latent frames
            since the key frame come with them.
        step: from one window to the next, in latent frames, with "key" a multiple of the key-frame
            interval. By default, the smallest step for which windows do not overlap.
        grid: (h, w): take the central part of each latent frame.
        factors: number of digits for each index, the most significant first.
        seed: of the order in `batches`.
        tokenizer: of the clips, if their files do not tell its key-frame interval and it is no
            bundled one: a name, a file or a loaded one.

        Raises UsageError for arguments out of range or if there is no window, and VqtokError,
        naming the file, for damaged files and for clips of another tokenizer than the first.
        """
        if length < 1 or start not in (KEY, ANY):
            raise UsageError(f"length {length} is below 1, or start {start!r} is not key or any")
        self._clips = read_clips(source, KeyframeIntervals(tokenizer))
        codes = self._clips.codes
        self.tokenizer, self.codebook_size, self.stages, self.stride, _ = codes
        self.keyframe_interval = codes.keyframe_interval or 1
        self._factors = Factors(self.codebook_size, factors)
        self.bos_token, self.pad_token = self._factors.base, self._factors.base + 1
        self.vocabulary_size = self._factors.base + 2
        self.length, self.start, self.grid = length, start, grid
        self.factors, self.seed = factors, seed
        self.step = self._check_step(step)
        self._used = _usable(self._clips, length, grid)
        self.skipped = len(self._clips.rows) - len(self._used)
        if not len(self._used):
            size = "" if grid is None else f" of {grid[0]}x{grid[1]} indices"
            raise UsageError(f"{source}: no clip has {length} latent frames{size}")
        latent_frames = self._clips.column("t")[self._used]
        self._ends = np.cumsum((latent_frames - length) // self.step + 1)  # of each clip's windows
        lead_in = self.keyframe_interval - 1 if start == ANY else 0
        self._rows = min(length + lead_in, int(latent_frames.max()))  # of an item

    def _check_step(self, step: int | None) -> int:
        unit = self.keyframe_interval if self.start == KEY else 1
        if step is None:
            return -(-self.length // unit) * unit
        if step < 1 or step % unit:
            raise UsageError(
                f"step {step} is not a positive multiple of {unit}, the key-frame interval: choose "
                'one, or start="any"'
                if unit > 1
                else f"step {step} is not positive"
            )
        return step

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return a window. Raises IndexError, and VqtokError if its file is damaged or changed."""
        clip_number, frame = self._locate(item)
        clips = self._clips
        clip = clips[clip_number]
        path, size = clips.files[clip.file], int(clips.sizes[clip.file])
        lead = frame % self.keyframe_interval if self.start == ANY else 0
        h, w = self.grid or (clip.h, clip.w)
        top, left = (clip.h - h) // 2, (clip.w - w) // 2
        frames = slice(frame - lead, frame + self.length)
        part = frames, slice(top, top + h), slice(left, left + w)
        indices = read_indices(path, size, clip, part, self.codebook_size)
        first = 0 if frame == 0 else 1 + (frame - 1) * self.stride[0]
        return {
            "indices": torch.from_numpy(self._arrange(indices)),
            "lead": lead,
            "clip": clips.names[clip_number],
            "frame": frame,
            "time": read_time(path, size, clip, first),
            "fps": clip.timing.fps_num / clip.timing.fps_den,
        }

    def _locate(self, item: int) -> tuple[int, int]:
        """Return the clip of a window, and the latent frame at which it begins."""
        number, count = index(item), len(self)
        if not -count <= number < count:
            raise IndexError(f"window {number} of {count:,}")
        number %= count
        place = int(self._ends.searchsorted(number, "right"))
        begin = int(self._ends[place - 1]) if place else 0
        return int(self._used[place]), (number - begin) * self.step

    def _arrange(self, indices: np.ndarray) -> np.ndarray:
        """Return indices (t h w stages) as they are in an item."""
        t, (h, w, stages) = len(indices), indices.shape[1:]
        out = np.empty((self._rows, h, w, stages, self.factors), np.int64)
        self._factors.split(indices, out[:t])
        out[t:] = self.pad_token
        values = out.reshape(-1, h, w, stages * self.factors)
        return values[..., 0] if values.shape[3] == 1 else values

    def join(self, indices: Array) -> Array:
        """Return indices of items or of a model as those of the codebook: undo `factors`.

        indices: (... h w f), or (... h w) where stages * factors is 1; an array or a tensor of
            integers.
        Returns int64 (... h w stages), or (... h w) with one stage: what a tokenizer decodes.
        Raises VqtokError for special tokens, and for what is no index.
        """
        digits = indices if self.stages * self.factors > 1 else indices[..., None]
        joined = self._factors.join(digits)
        return joined if self.stages > 1 else joined[..., 0]

    def batches(
        self, batch_size: int, step: int = 0, rank: int = 0, world_size: int = 1
    ) -> WindowBatchSampler:
        """Return a batch sampler for a DataLoader: batches from a step on, without an end.

        Batch `step` depends on the seed alone: to resume, pass the number of the next step. Every
        window is in each epoch once.

        batch_size: windows of a batch of all ranks together, a multiple of world_size.
        rank: whose part of each batch to return.

        Raises UsageError for arguments out of range, and if clips have unequal (h w) and no `grid`
        was given.
        """
        sides = (self._clips.column(side)[self._used] for side in "hw")
        if self.grid is None and any((side != side[0]).any() for side in sides):
            raise UsageError("clips differ in size: choose grid=, the part of each to take")
        return WindowBatchSampler(len(self), self.seed, batch_size, step, rank, world_size)


def _usable(clips: Clips, length: int, grid: tuple[int, int] | None) -> np.ndarray:
    """Return the numbers of the clips that have windows."""
    h, w = grid or (1, 1)
    if h < 1 or w < 1:
        raise UsageError(f"grid {h}x{w} has no indices")
    t_h_w = np.stack([clips.column(side) for side in "thw"], 1)
    return np.flatnonzero((t_h_w >= (length, h, w)).all(1))
