"""The base of the quantizers that have a table of codes."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.quantizers.base import Quantizer


class CodebookQuantizer(Quantizer):
    """A quantizer with a table of codes (k d).

    init_from_data: initialize the codebook from the first training batch, by k-means. A larger
        first batch gives a better codebook. The buffer `initialized` is saved with the weights.
    """

    initialized: Tensor | None

    def __init__(self, codebook_size: int, dim: int, init_from_data: bool) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.register_buffer("initialized", torch.tensor(False) if init_from_data else None)

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The codes (k d)."""

    @property
    def learns(self) -> bool:
        """True if this step may change the codebook outside the optimizer."""
        return self.training

    @property
    def needs_init(self) -> bool:
        """True if this training step has to initialize the codebook. Waits for a GPU."""
        return self.learns and self.initialized is not None and not self.initialized

    @abstractmethod
    def init_from_data(self, z: Tensor) -> None:
        """Initialize the codebook from latents z (b c *grid) of all ranks."""

    def decode(self, indices: Tensor) -> Tensor:
        """Return the codes (b d *grid) of indices (b *grid), in the codebook's dtype."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def codebook_state(self) -> dict[str, Tensor]:
        """Return the codes; see `Quantizer.codebook_state`."""
        return {"codes": self.codebook.detach()}

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # A codebook that comes from elsewhere must not be initialized again.
        if self.initialized is not None and any(key.startswith(prefix) for key in state):
            state.setdefault(f"{prefix}initialized", torch.tensor(True))
        super()._load_from_state_dict(state, prefix, *rest)
