"""What the next latent frame will be, guessed from those that were decoded."""

import torch
from torch import Tensor, nn

from vqtok.layers import Block, CausalConv3d, State, streaming


class Predictor(nn.Module):
    """Guesses each latent frame from those decoded before it, so that indices tell what is new.

    Encoder and decoder add what the codebook gives to the same guess (differential pulse-code
    modulation): what stands still comes back sharper with every frame. It computes in float32
    whatever they do (in float64 where its weights are), so that both make the same guesses.
    """

    def __init__(self, dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            CausalConv3d(dim, width, (1, 3, 3)),
            *(Block(width) for _ in range(blocks)),
            CausalConv3d(width, dim, (1, 1, 1)),
        )
        nn.init.zeros_(self.net[-1].weight)  # it begins as the guess of nothing

    def forward(self, z_q: Tensor) -> Tensor:
        """Decoded latents (b c t h w) -> after each frame, the guess of the next."""
        with torch.autocast(z_q.device.type, enabled=False):
            return self.net(z_q.contiguous(memory_format=torch.channels_last_3d))

    def ahead(self, z_q: Tensor) -> Tensor:
        """The guesses of the frames (b c t h w) themselves, from those before; of the first, 0."""
        return torch.cat([torch.zeros_like(z_q[:, :, :1]), self(z_q[:, :, :-1])], dim=2)

    def follow(self, z_q: Tensor, state: State) -> None:
        """Put the guess of what follows this frame (b c 1 h w) into the state of a stream."""
        with streaming(self, state):
            state[self] = self(z_q)

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Begin as the best guess that one factor makes of each channel's last value.

        z: latents (b c t h w) of some clips.
        """
        before, after = z[:, :, :-1], z[:, :, 1:]
        over = (0, 2, 3, 4)
        factors = (before * after).sum(over) / before.square().sum(over).clamp(min=1e-6)
        first, last = self.net[0].weight.zero_(), self.net[-1].weight.zero_()
        for channel, factor in enumerate(factors[: len(first)]):
            first[channel, channel, 0, 1, 1] = 1
            last[channel, channel] = factor
