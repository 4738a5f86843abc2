"""Gumbel-softmax quantization (Jang et al. 2016, arXiv:1611.01144; DALL-E, arXiv:2102.12092)."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqtok.distributed import all_reduce_mean
from vqtok.errors import UsageError
from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers.base import Quantized
from vqtok.quantizers.codebook import CodebookQuantizer
from vqtok.quantizers.kmeans import kmeans
from vqtok.quantizers.search import nearest

BLOCK = 1 << 20  # logits held at once: 4 MiB per tensor


class GumbelQuantizer(CodebookQuantizer):
    """Sample a code per position from logits in training; take the most likely one in eval.

    `.proj` (1x1, num_hiddens -> k) makes the logits, `.embed` holds the codes (k, embedding_dim).

    straight_through: give the sampled code in training; else a mixture of codes.
    kl_weight: weight of the KL divergence of the softmax from uniform.
    temp_init, temp_final, anneal_steps: the temperature goes from temp_init to temp_final
        geometrically over anneal_steps training steps. It is saved with the weights.
    init_from_data: see `CodebookQuantizer`; the most likely code is then the nearest one. Needs
        num_hiddens equal to embedding_dim.
    """

    _temperature: Tensor
    _step: Tensor

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        codebook_size: int,
        *,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        temp_final: float | None = None,
        anneal_steps: int = 0,
        init_from_data: bool = False,
    ) -> None:
        if init_from_data and num_hiddens != embedding_dim:
            raise UsageError("init_from_data needs num_hiddens equal to embedding_dim.")
        super().__init__(codebook_size, embedding_dim, init_from_data)
        self.straight_through, self.kl_weight = straight_through, kl_weight
        self.temp_init, self.temp_final, self.anneal_steps = temp_init, temp_final, anneal_steps
        self.proj = nn.Conv2d(num_hiddens, codebook_size, 1)
        self.embed = nn.Embedding(codebook_size, embedding_dim)
        self.register_buffer("_temperature", torch.tensor(float(temp_init)))
        self.register_buffer("_step", torch.tensor(0))

    @property
    def codebook(self) -> Tensor:
        """The codes (k, embedding_dim)."""
        return self.embed.weight

    @property
    def active(self) -> Tensor | None:
        """Ids of the codes that can be chosen; None for all."""
        return None

    @property
    def temperature(self) -> float:
        """The temperature of the last step; assign to set the next one's if it is not annealed."""
        return self._temperature.item()

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.fill_(value)

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> None:
        """Initialize as a mixture of Gaussians about k-means codes, all equally likely."""
        latents = _rows(at_least_float32(z))
        codes = kmeans(latents, self.codebook_size)
        spread = all_reduce_mean((latents - codes[nearest(latents, codes)]).square().mean())
        # With about as many codes as latents the spread is near zero, and gradients would vanish.
        sharpness = 0.5 / spread.clamp(min=0.01 * codes.var(correction=0).item() + 1e-6)
        self.embed.weight.copy_(codes)
        self.proj.weight.copy_((2 * sharpness * codes).view_as(self.proj.weight))
        _bias(self.proj).copy_(-sharpness * codes.square().sum(-1))
        if self.initialized is not None:
            self.initialized.fill_(True)

    def logits(self, z: Tensor) -> Tensor:
        """Return the logits (b k *grid) of the active codes for z (b num_hiddens *grid)."""
        x = at_least_float32(z).movedim(1, -1)
        with fixed_precision(z.device.type):
            return F.linear(x, *self._projection(x.dtype)).movedim(-1, 1)

    def _encode(self, z: Tensor) -> Tensor:
        latents, (weight, bias) = _rows(z), self._projection(z.dtype)
        blocks = _blocks(latents, len(bias), seed=None)
        best = torch.cat([torch.addmm(bias, latents[b], weight.T).argmax(-1) for b, _ in blocks])
        return self._ids(best.view(len(z), *z.shape[2:]))

    def _quantize(self, z: Tensor, temp: float | None = None) -> Quantized:
        if self.needs_init:
            self.init_from_data(z)
        temperature = (
            self._next_temperature() if temp is None else self._temperature.new_tensor(temp)
        )
        weight, bias = self._projection(z.dtype)
        codes = self._active_rows(self.codebook.to(z.dtype))
        hard = self.straight_through or not self.training
        # The backward pass redraws the noise from this seed.
        seed = int(torch.randint(2**62, ())) if self.training else None
        z_q, best, kl = _Sample.apply(_rows(z), weight, bias, codes, temperature, seed, hard)
        best = best.view(len(z), *z.shape[2:])
        terms = {"kl": kl, "temperature": temperature}
        z_q = z_q.view(*best.shape, -1).movedim(-1, 1)
        return Quantized(z_q, self._ids(best), self.kl_weight * kl, terms)

    def _projection(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return weight (k c) and bias (k) of the logits."""
        weight, bias = self.proj.weight.flatten(1), _bias(self.proj)
        return self._active_rows(weight).to(dtype), self._active_rows(bias).to(dtype)

    def _active_rows(self, rows: Tensor) -> Tensor:
        return rows if self.active is None else rows[self.active]

    def _ids(self, positions: Tensor) -> Tensor:
        """Return the ids of codes from their positions among the active ones."""
        return positions if self.active is None else self.active[positions]

    def _next_temperature(self) -> Tensor:
        """Return this step's temperature; in training, advance the schedule."""
        if self.training and self.temp_final is not None and self.anneal_steps:
            progress = (self._step / self.anneal_steps).clamp(max=1)
            self._temperature.copy_(self.temp_init * (self.temp_final / self.temp_init) ** progress)
            self._step.add_(1)
        return self._temperature.clone()

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Weights from elsewhere have no schedule: continue with this one's.
        state.setdefault(f"{prefix}_temperature", self._temperature)
        state.setdefault(f"{prefix}_step", self._step)
        super()._load_from_state_dict(state, prefix, *rest)


class _Sample(torch.autograd.Function):
    """Sample z_q (n d), indices (n) and the mean KL from latents (n c), in blocks of rows.

    No (n k) tensor is held: backward recomputes each block, with the same noise.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        codes: Tensor,
        temperature: Tensor,
        seed: int | None,
        hard: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Allocated first: small tensors between large ones would fragment the heap.
        z_q, kl = z.new_empty(len(z), codes.shape[1]), z.new_empty(len(z))
        best = torch.empty(len(z), dtype=torch.int64, device=z.device)
        for block, noise in _blocks(z, len(codes), seed):
            logits = torch.addmm(bias, z[block], weight.T)
            kl[block] = _kl_from_uniform(logits)
            noisy = logits.add_(noise)
            best[block] = noisy.argmax(-1)
            if not hard:
                z_q[block] = noisy.div_(temperature).softmax(-1) @ codes
        if hard:
            torch.index_select(codes, 0, best, out=z_q)
        ctx.save_for_backward(z, weight, bias, codes, temperature, best)
        ctx.seed, ctx.hard = seed, hard
        ctx.mark_non_differentiable(best)
        return z_q, best, kl.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z_q: Tensor, _: Tensor, grad_kl: Tensor) -> tuple[Any, ...]:
        z, *weights, temperature, best = ctx.saved_tensors
        grad_z, sums = torch.empty_like(z), [torch.zeros_like(w) for w in weights]
        with fixed_precision(z.device.type):
            for block, noise in _blocks(z, len(weights[-1]), ctx.seed):
                picks = best[block] if ctx.hard else None
                with torch.enable_grad():
                    inputs = [t.detach().requires_grad_() for t in (z[block], *weights)]
                    z_q, kl = _relaxed(inputs, noise, temperature, picks)
                grads = (grad_z_q[block], (grad_kl / len(z)).expand_as(kl))
                grad_z[block], *rest = torch.autograd.grad((z_q, kl), inputs, grads)
                for total, grad in zip(sums, rest, strict=True):
                    total.add_(grad)
        return grad_z, *sums, None, None, None


def _blocks(z: Tensor, k: int, seed: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows of z (n c) and their Gumbel noise (rows k); without a seed, 0."""
    generator = None if seed is None else torch.Generator(z.device).manual_seed(seed)
    size = max(1, BLOCK // k)
    for start in range(0, len(z), size):
        block = slice(start, min(start + size, len(z)))
        noise = z.new_zeros(())
        if generator is not None:  # five times as fast as exponential_()
            noise = z.new_empty(block.stop - start, k)
            noise.uniform_(generator=generator).log_().neg_().log_().neg_()
        yield block, noise


def _relaxed(
    inputs: list[Tensor], noise: Tensor, temperature: Tensor, picks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a stand-in for z_q (n d) that has its gradient but not its value, and the KL (n).

    inputs: latents (n c), weight (k c), bias (k), codes (k d). picks: the indices (n) if hard.
    """
    z, weight, bias, codes = inputs
    logits = torch.addmm(bias, z, weight.T)
    soft = torch.softmax((logits + noise) / temperature, -1)
    if picks is None:
        return soft @ codes, _kl_from_uniform(logits)
    # The chosen row trains its code; the others only train the logits.
    return F.embedding(picks, codes) + soft @ codes.detach(), _kl_from_uniform(logits)


def _kl_from_uniform(logits: Tensor) -> Tensor:
    """Return the KL divergence (n), in nats, of softmax(logits) (n k) from uniform."""
    log_q = torch.log_softmax(logits, -1)
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _rows(z: Tensor) -> Tensor:
    return rearrange(z, "b c ... -> (b ...) c")
