"""Vector quantization by gradient (VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937)."""

import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.quantizers.nearest import NearestCode


class VectorQuantizer(NearestCode):
    """The codebook `.embedding.weight` (k d) is learned by gradient.

    beta: weight of the codebook loss if `legacy`, else (as published) of the commitment loss.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        beta: float,
        *,
        legacy: bool = True,
        init_from_data: bool = False,
        revive_after: int = 0,
        stages: int = 0,
    ) -> None:
        super().__init__(codebook_size, dim, init_from_data, revive_after, stages)
        self.beta, self.legacy = beta, legacy
        self.embedding = nn.Embedding(self.rows, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        self._clear_zero_codes()

    @property
    def codebook(self) -> Tensor:
        """The codes (k d)."""
        return self.embedding.weight

    def _loss(
        self, z: Tensor, z_q: Tensor, codes: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        commitment = F.mse_loss(z, z_q.detach())
        codebook = self.stages * F.mse_loss(codes, targets)
        first, second = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        return first * commitment + second * codebook, commitment

    def _set_codes(self, rows: Tensor, codes: Tensor) -> None:
        self.embedding.weight[rows] = codes.to(self.embedding.weight.dtype)
