"""When the frames of a packed clip play, as whole numbers."""

from typing import NamedTuple, Self

from vqtok.safetensors_io import Header
from vqtok.tokens import Tokens


class Timing(NamedTuple):
    """When the frames of a clip play.

    fps_num, fps_den, time_base_num, time_base_den, origin: as fractions and numbers in
        `vqtok.Tokens`.
    start, step: timestamps are start + i * step; both are 0 if they are not evenly spaced.
    timestamps: their offset in the file around the token file, int64, if they are not evenly
        spaced; else 0.
    """

    fps_num: int
    fps_den: int
    time_base_num: int
    time_base_den: int
    origin: int
    start: int
    step: int
    timestamps: int

    @classmethod
    def of(cls, header: Header, tokens: Tokens, offset: int) -> Self:
        """Return that of a token file with this header, at an offset of the file around it.

        tokens: in the file, or as far as its header tells.
        """
        rates = *tokens.fps.as_integer_ratio(), *tokens.time_base.as_integer_ratio()
        if (times := header.tensors.get("timestamps")) is not None:
            return cls(*rates, tokens.origin, 0, 0, offset + header.start + times.begin)
        start = int(tokens.timestamps[0])
        step = int(tokens.timestamps[1]) - start if tokens.frames > 1 else 1
        return cls(*rates, tokens.origin, start, step, 0)

    def moved(self, offset: int) -> Self:
        """Return that of a token file that lies further behind by `offset`."""
        return self._replace(timestamps=self.timestamps + offset) if self.timestamps else self
