"""Vector quantization by nearest codes, in one stage or several, with a price for each token."""

from abc import abstractmethod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.distributed import all_reduce_sum, broadcast
from vqtok.errors import UsageError
from vqtok.precision import at_least_float32
from vqtok.quantizers.base import Quantized, Quantizer, straight_through
from vqtok.quantizers.codebook import CodebookQuantizer
from vqtok.quantizers.kmeans import count_codes, kmeans, sample
from vqtok.quantizers.search import nearest
from vqtok.quantizers.staged_search import ALL, StagedSearch, code_range, flatten


class NearestCode(CodebookQuantizer):
    """Replace each latent by the nearest code of a learned codebook, or by a sum of codes.

    With several stages (residual vector quantization, SoundStream, arXiv:2107.03312), each stage
    codes what those before it left. Code 0 of each stage is the zero vector: it means "nothing
    new" and costs no token. `search` spends tokens where they pay.

    Besides `encode`, `decode` and `quantize` there are their parts, for a caller that uses ranges
    of the first stage differently: `search` and `init_from_data` with a range of codes,
    `quantize_to`, `distance` and `revive_dead_codes`.

    codebook_size: number of codes in each stage.
    revive_after: training steps after which a code that no latent chose is replaced by a latent
        of the batch; 0: never.
    stages: number of stages; 0: one stage without a zero code.
    Raises UsageError if there are stages of a single code.
    """

    age: Tensor | None  # (stages * k) training steps since a code was last chosen
    _offsets: Tensor  # (stages) the first row of each stage
    _dead: Tensor  # (stages * k) on the host, so that a step waits once: codes to be replaced
    fp16_keys = ("embedding.weight",)

    def __init__(
        self, codebook_size: int, dim: int, init_from_data: bool, revive_after: int, stages: int
    ) -> None:
        super().__init__(codebook_size, dim, init_from_data)
        if stages and codebook_size < 2:
            raise UsageError("quantizer.codebook_size must be 2 or more: code 0 of a stage is zero")
        self.stages, self.zero_code = max(1, stages), stages > 0
        self.revive_after = revive_after
        age = torch.zeros(self.rows, dtype=torch.int64) if revive_after else None
        self.register_buffer("age", age)
        offsets = torch.tensor(range(0, self.rows, codebook_size))
        self.register_buffer("_offsets", offsets, persistent=False)
        self._dead = torch.zeros(self.rows, dtype=torch.bool, device="cpu")

    @property
    def rows(self) -> int:
        """Number of codes in all stages. Stage s has rows s * codebook_size on of `codebook`."""
        return self.stages * self.codebook_size

    @property
    def has_dead_codes(self) -> bool:
        """True if `revive_dead_codes` has codes to replace after this step. Waits for no GPU."""
        return self.learns and bool(self._dead.any())

    def prepare_search(self, dtype: torch.dtype = torch.float32) -> StagedSearch:
        """Return a search of the codes as they are now, for latents of at most this dtype."""
        codebook = self.codebook.detach().to(torch.promote_types(dtype, torch.float32))
        return StagedSearch(codebook.view(self.stages, -1, self.dim), self.zero_code)

    def search(
        self,
        z: Tensor,
        price: Tensor | float = 0.0,
        codes: slice = ALL,
        other: tuple[Tensor, slice] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cheapest indices of z, and their costs; see `StagedSearch.search`."""
        return self.prepare_search(z.dtype).search(z, price, codes, other)

    def decode(self, indices: Tensor) -> Tensor:
        """Return the sums of codes (b d *grid) of indices (b *grid) or (b *grid stages)."""
        if not self.zero_code:
            return super().decode(indices)
        return self._codes(self._split(indices)).sum(-2).movedim(-1, 1)

    def quantize_to(self, z: Tensor, indices: Tensor) -> Quantized:
        """Train as `quantize` does, with indices that the caller chose for z.

        Initializing the codebook and reviving dead codes of the first stage is left to the caller.
        """
        return self._average_terms(self._quantize_local(z, lambda z: self._train_step(z, indices)))

    @torch.no_grad()
    def distance(self, z: Tensor, indices: Tensor) -> Tensor:
        """Return the squared distance (b *grid) of each latent of z from its code."""
        difference = at_least_float32(z) - self.decode(indices)
        return difference.square().sum(1)

    @torch.no_grad()
    def init_from_data(self, z: Tensor, codes: slice = ALL) -> None:
        """Initialize the codebook by k-means of latents z (b d *grid).

        codes: range of codes of the first stage to initialize. With the range that starts at 0,
            the other stages are initialized too, from what the first one leaves.
        """
        rest, start = flatten(z), codes.indices(self.codebook_size)[0]
        for stage in range(self.stages if start == 0 else 1):
            part = self._range(stage, codes)
            rows = torch.arange(self.rows, device=rest.device)[part]
            self._set_codes(rows, kmeans(rest, len(rows)))
            rest = rest - self.codebook[part][nearest(rest, self.codebook[part])]
            codes = ALL
        if self.initialized is not None:
            self.initialized.fill_(True)

    @torch.no_grad()
    def revive_dead_codes(
        self, z: Tensor, weights: Tensor, codes: slice = ALL, stage: int = 0
    ) -> None:
        """Replace codes that were not chosen for `revive_after` steps by latents z (b d *grid).

        To be called after `quantize_to`, which counts a step and finds these codes.

        weights: (b *grid) relative chance of each latent to be drawn. Latents are rank 0's.
        codes: range of codes of the stage to look at.
        """
        part = self._range(stage, codes)
        rows = self._dead[part].nonzero().squeeze(-1) + part.start
        self._dead[part] = False
        if len(rows):
            rows = rows.to(z.device, non_blocking=True)
            self._set_codes(rows, broadcast(sample(flatten(z), len(rows), weights.flatten())))
            cast(Tensor, self.age)[rows] = 0

    def codebook_state(self) -> dict[str, Tensor]:
        """Return codes and steps_unused; see `Quantizer.codebook_state`."""
        return super().codebook_state() | ({} if self.age is None else {"steps_unused": self.age})

    def _encode(self, z: Tensor) -> Tensor:
        return self.search(z)[0]

    def _quantize(self, z: Tensor) -> Quantized:
        if self.needs_init:
            self.init_from_data(z)
        indices = self._encode(z)
        out = self._train_step(z, indices)
        if self.has_dead_codes:
            self.revive_dead_codes(z, self.distance(z, indices))
        return out

    def _train_step(self, z: Tensor, indices: Tensor) -> Quantized:
        z_q = self.decode(indices)
        split = self._split(indices)
        codes = self._codes(split)  # (b *grid stages d)
        # What each stage had to code: z less the codes of the stages before it.
        before = codes.detach().cumsum(-2) - codes.detach()
        targets = z.detach().movedim(1, -1).unsqueeze(-2) - before
        spent = (split != 0) if self.zero_code else torch.ones_like(split, dtype=torch.bool)
        coded = targets * spent.unsqueeze(-1)
        loss, commitment = self._loss(z, z_q, codes, coded)
        rows = split + self._offsets
        counts = count_codes(rows.flatten(), self.rows)
        counts = all_reduce_sum(counts) if self.training else counts
        if self.learns:
            self._update(coded.flatten(0, -2), rows.flatten(), counts)
            self._count_step(counts)
            if self.has_dead_codes:
                distance = self.distance(z, indices)
                for stage in range(1, self.stages):
                    rest = targets[..., stage, :].movedim(-1, 1)
                    self.revive_dead_codes(rest, distance, stage=stage)
        perplexity = _perplexity(counts.view(self.stages, -1)).mean()
        terms = {"commitment": commitment, "perplexity": perplexity}
        if self.zero_code:
            terms["tokens_per_position"] = spent.sum(-1).to(z.dtype).mean()
        return Quantized(straight_through(z, z_q), indices, loss, terms)

    @abstractmethod
    def _loss(
        self, z: Tensor, z_q: Tensor, codes: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted loss and the unweighted commitment loss.

        codes, targets: (b *grid stages d) code of each stage, and what it had to code; both are 0
            for a zero code.
        """

    @abstractmethod
    def _set_codes(self, rows: Tensor, codes: Tensor) -> None:
        """Overwrite rows (m) of the codebook with codes (m d) and reset their state."""

    def _update(self, latents: Tensor, rows: Tensor, counts: Tensor) -> None:
        """Learn without gradient from latents (n d), their rows (n) and counts of all ranks."""

    def _count_step(self, counts: Tensor) -> None:
        """Update the ages after a step that chose codes this often, and find the dead codes."""
        if self.age is not None:
            self.age.add_(1).masked_fill_(counts > 0, 0)
            self._dead = (self.age >= self.revive_after).cpu()
            self._dead.view(self.stages, -1)[:, : int(self.zero_code)] = False

    @torch.no_grad()
    def _clear_zero_codes(self) -> None:
        """Set code 0 of each stage to zero, once the codebook is there. Training keeps it so."""
        if self.zero_code:
            self._set_codes(self._offsets, self.codebook.new_zeros(self.stages, self.dim))

    def _range(self, stage: int, codes: slice) -> slice:
        """Return the rows of a range of codes of a stage, without the zero code."""
        part = code_range(codes, self.codebook_size, self.zero_code)
        first = stage * self.codebook_size
        return slice(first + part.start, first + part.stop)

    def _split(self, indices: Tensor) -> Tensor:
        """Return indices (b *grid) or (b *grid stages) as (b *grid stages)."""
        return indices.unsqueeze(-1) if self.stages == 1 else indices

    def _codes(self, indices: Tensor) -> Tensor:
        """Return the codes (... stages d) of indices (... stages)."""
        codes = F.embedding(indices + self._offsets, self.codebook)
        return codes * (indices != 0).unsqueeze(-1) if self.zero_code else codes

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if self.age is not None and any(key.startswith(prefix) for key in state):
            state.setdefault(f"{prefix}age", torch.zeros(self.age.shape, dtype=self.age.dtype))
        super()._load_from_state_dict(state, prefix, *rest)


def require_search(quantizer: Quantizer) -> NearestCode:
    """Return the quantizer; raise UsageError if it does not search a codebook."""
    if not isinstance(quantizer, NearestCode):
        raise UsageError("model.intra_share needs quantizer.kind vq2 or ema")
    return quantizer


def _perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of each row of counts (m k)."""
    p = counts / counts.sum(-1, keepdim=True)
    return torch.exp(-(p * torch.log(p + 1e-10)).sum(-1))
