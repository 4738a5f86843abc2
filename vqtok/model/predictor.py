"""The network that predicts each latent frame from those before it."""

from typing import cast

import torch
from torch import Tensor, nn

from vqtok.model.layers import (
    CausalConv3d,
    CausalSequential,
    ResidualBlock,
    channels_last,
)
from vqtok.model.stream_state import StreamState
from vqtok.precision import fixed_precision


class Predictor(nn.Module):
    """Predict each latent frame from the decoded ones before it: (b c t h w) -> (b c t h w).

    Computes in float32 (or the wider dtype of its weights) under any autocast, so that encoder
    and decoder predict the same.
    """

    def __init__(self, dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.net = CausalSequential(
            CausalConv3d(dim, width, (1, 3, 3)),
            *(ResidualBlock(width) for _ in range(blocks)),
            CausalConv3d(width, dim, (1, 1, 1)),
        )
        nn.init.zeros_(self._last.weight)  # it predicts zero at first
        channels_last(self)

    def forward(self, z_q: Tensor, state: StreamState | None = None) -> Tensor:
        """Return, at each frame of z_q, the prediction of the next frame."""
        x = z_q.to(self._first.weight.dtype, memory_format=torch.channels_last_3d)
        with fixed_precision(z_q.device.type):
            return self.net(x, state).to(z_q.dtype)

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> None:
        """Initialize as a linear prediction of each channel from its last value.

        z: latents (b c t h w) of some clips.
        """
        before, after = z[:, :, :-1], z[:, :, 1:]
        over = (0, 2, 3, 4)
        factors = (before * after).sum(over) / before.square().sum(over).clamp(min=1e-6)
        first, last = self._first.weight.zero_(), self._last.weight.zero_()
        channels = torch.arange(min(first.shape[:2]))
        first[channels, channels, 0, 1, 1] = 1
        last[channels, channels, 0, 0, 0] = factors[channels]

    @property
    def _first(self) -> CausalConv3d:
        return cast(CausalConv3d, self.net[0])

    @property
    def _last(self) -> CausalConv3d:
        return cast(CausalConv3d, self.net[-1])
