"""Put a quantizer into an autoencoder of one's own, and train it on the frames of a video.

python docs/examples/own_autoencoder.py clip.mp4 --ema
"""

import sys
from pathlib import Path

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.quantizers import FSQ, EMAVectorQuantizer, Quantized, Quantizer
from vqtok.video import open_video


class Autoencoder(nn.Module):
    """Images (b 3 h w) to latents (b c h/8 w/8), to codes, and back."""

    def __init__(self, quantizer: Quantizer, width: int = 64) -> None:
        super().__init__()
        first = nn.PixelUnshuffle(8), nn.Conv2d(192, width, 3, padding=1), nn.GELU()
        last = nn.Conv2d(width, quantizer.dim, 1), nn.BatchNorm2d(quantizer.dim, affine=False)
        self.encoder, self.quantizer = nn.Sequential(*first, *last), quantizer
        first = nn.Conv2d(quantizer.dim, width, 3, padding=1), nn.GELU()
        self.decoder = nn.Sequential(*first, nn.Conv2d(width, 192, 1), nn.PixelShuffle(8))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Return the reconstruction, and the quantizer's indices and loss."""
        quantized = self.quantizer.quantize(self.encoder(images))
        return self.decoder(quantized.z_q), quantized


def main(clip: Path, ema: bool = False, steps: int = 100) -> None:
    """Train on the first 64 frames of CLIP, with FSQ or --ema, and print the indices of one."""
    torch.manual_seed(0)
    with open_video(clip, size=64) as video:
        frames = torch.from_numpy(next(video.chunks(64))[0])  # (n h w 3), uint8
    images = frames[:, :, : video.width // 8 * 8].movedim(-1, 1) / 255 - 0.5  # (n 3 h w)
    learned = EMAVectorQuantizer(1000, 16, 0.25, init_from_data=True, revive_after=20)
    model = Autoencoder(learned if ema else FSQ([8, 5, 5, 5], whitening_weight=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(1, steps + 1):
        batch = images[torch.randint(len(images), (8,))]
        reconstruction, quantized = model(batch)
        mse = F.mse_loss(reconstruction, batch)
        optimizer.zero_grad()
        (mse + quantized.loss).backward()
        optimizer.step()
        if step == 1 or step % 20 == 0:
            print(f"step {step}: mean squared error {mse:.5f}", file=sys.stderr)
    indices = model.eval().quantizer.encode(model.encoder(images))  # (n h/8 w/8)
    print(f"{len(indices.unique())} of 1,000 codes are used", file=sys.stderr)
    print(indices[0].tolist())


if __name__ == "__main__":
    typer.run(main)
