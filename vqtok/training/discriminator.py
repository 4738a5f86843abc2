"""An adversary: a small network that learns to tell clips from reconstructions, patch by patch."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import AdamW

from vqtok import distributed
from vqtok.config import TrainSettings
from vqtok.distributed import all_reduce_mean

WIDTHS = (3, 32, 64, 128)  # channels; each layer halves height and width
SMALLEST = 2 ** (len(WIDTHS) - 1)  # height and width that leave one patch


class Discriminator(nn.Module):
    """A discriminator of patches (arXiv:1611.07004) in three dimensions, with its own optimizer.

    Hinge losses and spectrally normalised weights (arXiv:1802.05957). What it asks of the tokenizer
    is weighed as in VQGAN (arXiv:2012.09841), here by gradients at the reconstruction: it pulls as
    hard on the pixels as the other loss does, times `adversarial_weight`. `first` is the step at
    which it comes in.
    """

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(WIDTHS):
            conv = nn.Conv3d(c_in, c_out, (3, 4, 4), stride=(1, 2, 2), padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        last = spectral_norm(nn.Conv3d(WIDTHS[-1], 1, (1, 3, 3), padding=(0, 1, 1)))
        self.net = nn.Sequential(*layers, last)
        self.weight, self.reduced = settings.adversarial_weight, settings.dtype == "bfloat16"
        self.first = round((1 - settings.adversarial_share) * settings.steps)
        self.optimizer = AdamW(self.parameters(), lr=settings.learning_rate, betas=(0.5, 0.99))

    def forward(self, video: Tensor) -> Tensor:
        """How real each patch of a video (b 3 t h w) in 0..1 looks."""
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.reduced):
            return self.net(video * 2 - 1).float()

    def pull(self, reconstruction: Tensor, loss: Tensor) -> Tensor:
        """What to add to the loss of a reconstruction (b 3 t h w); it moves no weight here."""
        self.requires_grad_(False)
        doubt = -self(reconstruction).mean()
        self.requires_grad_(True)
        slopes = [
            torch.autograd.grad(x, reconstruction, retain_graph=True)[0] for x in (loss, doubt)
        ]
        theirs, ours = all_reduce_mean(torch.stack([s.square().sum() for s in slopes])).sqrt()
        return self.weight * theirs / ours.clamp(min=1e-12) * doubt

    def learn(self, video: Tensor, reconstruction: Tensor, share: float) -> Tensor:
        """Add this share of its own loss's gradients to those that are there; gives the loss."""
        real, made = self(video), self(reconstruction.detach())
        loss = (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
        (share * loss).backward()
        return all_reduce_mean(loss.detach())

    def update(self) -> None:
        """Move the weights along the gradients of all ranks, and forget these."""
        distributed.average_gradients(self)
        self.optimizer.step()
        self.optimizer.zero_grad()
