"""Gumbel-softmax quantization (Jang et al. 2016, arXiv:1611.01144; DALL-E, arXiv:2102.12092)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.quantizers.base import CodebookQuantizer, Quantized, widened


class GumbelQuantize(CodebookQuantizer):
    """Sample a code per position from logits in training; take the likeliest in eval.

    `.proj` (1x1, num_hiddens -> n_embed) makes the logits, `.embed` holds the codes (n_embed,
    embedding_dim). With remap, only the ids in `used` take part. straight_through False mixes
    codes in training. use_vqinterface shapes what `forward` returns.
    temp_final, anneal_steps: in training the temperature goes from temp_init to temp_final
        geometrically over so many steps; it is saved with the weights.
    """

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        n_embed: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        use_vqinterface: bool = True,
        remap: str | None = None,
        unknown_index: str | int = "random",
        *,
        temp_final: float | None = None,
        anneal_steps: int = 0,
    ) -> None:
        super().__init__(n_embed, embedding_dim, remap, unknown_index)
        self.num_hiddens, self.embedding_dim, self.n_embed = num_hiddens, embedding_dim, n_embed
        self.straight_through, self.kl_weight = straight_through, kl_weight
        self.use_vqinterface = use_vqinterface
        self.temp_init, self.temp_final, self.anneal_steps = temp_init, temp_final, anneal_steps
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)
        self.register_buffer("_temperature", torch.tensor(float(temp_init)))
        self.register_buffer("_step", torch.tensor(0))

    def forward(
        self, z: Tensor, temp: float | None = None, return_logits: bool = False
    ) -> tuple[Tensor, ...]:
        """Return (z_q, kl, (None, None, indices)) for z (b num_hiddens *grid), indices (b *grid).

        Without use_vqinterface the last is bare indices. temp replaces the temperature for this
        call. return_logits adds the logits (b k *grid), with remap those of `used` alone.
        """
        out = self._measure(z, temp=temp)
        indices = out.indices if self.used is None else self.remap_to_used(out.indices)
        last = (None, None, indices) if self.use_vqinterface else indices
        logits = (self._logits(widened(z)).movedim(-1, 1),) if return_logits else ()
        return out.z_q, out.loss, last, *logits

    @property
    def codebook(self) -> Tensor:
        """The codes (n_embed, embedding_dim)."""
        return self.embed.weight

    @property
    def temperature(self) -> float:
        """The temperature of the last step; where it is not annealed, assign to set the next."""
        return self._temperature.item()

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.fill_(value)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Weights from elsewhere know no schedule: they go on with this one's.
        state.setdefault(f"{prefix}_temperature", self._temperature)
        state.setdefault(f"{prefix}_step", self._step)
        super()._load_from_state_dict(state, prefix, *rest)

    def _quantize(self, z: Tensor, temp: float | None = None) -> Quantized:
        logits, codes = self._logits(z), self._in_use(widened(self.codebook))
        temperature = self._next_temperature() if temp is None else logits.new_tensor(temp)
        noisy = logits + _gumbel_noise(logits) if self.training else logits
        best = noisy.argmax(-1)  # (b *grid)
        soft = torch.softmax(noisy / temperature, -1)
        if self.straight_through or not self.training:
            # One row per position reads and trains its code; the others only steer the logits.
            z_q = F.embedding(best, codes) + _gradient_only(soft @ codes.detach())
        else:
            z_q = soft @ codes
        kl = _kl_from_uniform(logits)
        indices = best if self.used is None else self.used[best]
        terms = {"kl": kl, "temperature": temperature}
        return Quantized(z_q.movedim(-1, 1), indices, self.kl_weight * kl, terms)

    def _logits(self, z: Tensor) -> Tensor:
        """Logits (b *grid k) of latents z (b c *grid)."""
        weight = self._in_use(widened(self.proj.weight.flatten(1)))
        return F.linear(z.movedim(1, -1), weight, self._in_use(widened(self.proj.bias)))

    def _in_use(self, rows: Tensor) -> Tensor:
        return rows if self.used is None else rows[self.used]

    def _next_temperature(self) -> Tensor:
        """This step's temperature; in training, move the schedule on."""
        if self.training and self.temp_final is not None and self.anneal_steps:
            done = (self._step / self.anneal_steps).clamp(max=1)
            self._temperature.copy_(self.temp_init * (self.temp_final / self.temp_init) ** done)
            self._step.add_(1)
        return self._temperature.clone()


def _gumbel_noise(like: Tensor) -> Tensor:
    return -torch.rand_like(like).log_().neg_().log_()  # a fifth of the time of exponential_()


def _gradient_only(x: Tensor) -> Tensor:
    """Zero, with the gradient of x."""
    return x - x.detach()


def _kl_from_uniform(logits: Tensor) -> Tensor:
    """KL divergence, in nats, of softmax(logits) (... k) from uniform; the mean over positions."""
    q = torch.softmax(logits, -1)
    return (q * torch.log(q * logits.shape[-1] + 1e-10)).sum(-1).mean()
