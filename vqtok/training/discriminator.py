"""The adversarial loss: a discriminator that tells clips from reconstructions."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import AdamW

from vqtok import distributed
from vqtok.distributed import all_reduce_mean
from vqtok.precision import training_autocast
from vqtok.settings import TrainSettings
from vqtok.training.optimizer import parameter_groups

WIDTHS = (3, 32, 64, 128)  # channels; each layer halves height and width
MIN_SIZE = 2 ** (len(WIDTHS) - 1)  # height and width of a single patch
BETAS = (0.5, 0.99)
WEIGHT_DECAY = 0.01


class Discriminator(nn.Module):
    """A 3-D patch discriminator (arXiv:1611.07004) with its own optimizer.

    Trained with hinge losses and spectrally normalized weights (arXiv:1802.05957). It takes part
    from `first_step` on.
    """

    def __init__(self, settings: TrainSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(WIDTHS):
            conv = nn.Conv3d(c_in, c_out, (3, 4, 4), stride=(1, 2, 2), padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        last = spectral_norm(nn.Conv3d(WIDTHS[-1], 1, (1, 3, 3), padding=(0, 1, 1)))
        self.net = nn.Sequential(*layers, last)
        self.weight, self.dtype = settings.adversarial_weight, settings.dtype
        self.first_step = round((1 - settings.adversarial_share) * settings.steps)
        groups = parameter_groups(self, WEIGHT_DECAY)
        self.optimizer = AdamW(groups, settings.learning_rate, BETAS, foreach=True)

    def forward(self, video: Tensor) -> Tensor:
        """Return a score for each patch of a video (b 3 t h w) in 0..1; high means real."""
        with training_autocast(video.device, self.dtype):
            return self.net(video * 2 - 1).float()

    def generator_loss(self, reconstruction: Tensor, loss: Tensor) -> Tensor:
        """Return the adversarial loss of a reconstruction (b 3 t h w), to be added to `loss`.

        Weighted as in VQGAN (arXiv:2012.09841), but by the gradients of the pixels: its gradient
        norm there is that of `loss`, times `adversarial_weight`.
        """
        self.requires_grad_(False)
        adversarial_loss = -self(reconstruction).mean()
        self.requires_grad_(True)
        gradients = [
            torch.autograd.grad(x, reconstruction, retain_graph=True)[0]
            for x in (loss, adversarial_loss)
        ]
        squared_norms = torch.stack([g.square().sum() for g in gradients])
        norm, adversarial_norm = all_reduce_mean(squared_norms).sqrt()
        return self.weight * norm / adversarial_norm.clamp(min=1e-12) * adversarial_loss

    def discriminator_backward(
        self, video: Tensor, reconstruction: Tensor, weight: float
    ) -> Tensor:
        """Add the gradients of the discriminator's own loss, times `weight`; return that loss."""
        real, fake = self(video), self(reconstruction.detach())
        loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        (weight * loss).backward()
        return all_reduce_mean(loss.detach())

    def update(self) -> None:
        """Update the weights with the gradients of all ranks, and clear the gradients."""
        distributed.average_gradients(self)
        self.optimizer.step()
        self.optimizer.zero_grad()
