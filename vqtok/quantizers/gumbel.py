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
from vqtok.precision import at_least_float32, full_float32
from vqtok.quantizers.base import CodebookQuantizer, Quantized
from vqtok.quantizers.kmeans import kmeans
from vqtok.quantizers.search import nearest

_BLOCK = 1 << 20  # logits held at once: 4 MiB a tensor


class GumbelQuantize(CodebookQuantizer):
    """Sample a code per position from logits in training; take the likeliest in eval.

    `.proj` (1x1, num_hiddens -> n_embed) makes the logits, `.embed` holds the codes (n_embed,
    embedding_dim). With remap, only the ids in `used` take part. straight_through False mixes
    codes in training. use_vqinterface shapes what `forward` returns.
    temp_final, anneal_steps: in training the temperature goes from temp_init to temp_final
        geometrically over so many steps; it is saved with the weights.
    init_from_data: see `CodebookQuantizer`; the likeliest code is then the nearest. Needs
        num_hiddens equal to embedding_dim.
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
        init_from_data: bool = False,
    ) -> None:
        if init_from_data and num_hiddens != embedding_dim:
            raise UsageError(
                "GumbelQuantize init_from_data needs num_hiddens equal to embedding_dim."
            )
        super().__init__(n_embed, embedding_dim, remap, unknown_index, init_from_data)
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
        logits = ()
        if return_logits:
            x = at_least_float32(z).movedim(1, -1)
            with torch.autocast(z.device.type, enabled=False), full_float32():
                logits = (F.linear(x, *self._projection(x.dtype)).movedim(-1, 1),)
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
        latents = rearrange(z, "b c ... -> (b ...) c")
        if self.training:
            self._begin(latents)
        temperature = (
            self._next_temperature() if temp is None else self._temperature.new_tensor(temp)
        )
        weight, bias = self._projection(z.dtype)
        codes = self._in_use(self.codebook.to(z.dtype))
        hard = self.straight_through or not self.training
        # One number stands for the noise: backward draws the same again.
        seed = int(torch.randint(2**62, ())) if self.training else None
        z_q, best, kl = _Sample.apply(latents, weight, bias, codes, temperature, seed, hard)
        best = best.view(len(z), *z.shape[2:])
        indices = best if self.used is None else self.used[best]
        terms = {"kl": kl, "temperature": temperature}
        z_q = z_q.view(*best.shape, -1).movedim(-1, 1)
        return Quantized(z_q, indices, self.kl_weight * kl, terms)

    def _projection(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight (k c) and bias (k) of the logits."""
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        return self._in_use(weight).to(dtype), self._in_use(bias).to(dtype)

    def _in_use(self, rows: Tensor) -> Tensor:
        return rows if self.used is None else rows[self.used]

    def _next_temperature(self) -> Tensor:
        """This step's temperature; in training, move the schedule on."""
        if self.training and self.temp_final is not None and self.anneal_steps:
            done = (self._step / self.anneal_steps).clamp(max=1)
            self._temperature.copy_(self.temp_init * (self.temp_final / self.temp_init) ** done)
            self._step.add_(1)
        return self._temperature.clone()

    @torch.no_grad()
    def _start(self, latents: Tensor) -> None:
        """Begin as a mixture of Gaussians about k-means codes, in which each code is as likely."""
        codes = kmeans(latents, self.n_embed)
        spread = all_reduce_mean((latents - codes[nearest(latents, codes)]).square().mean())
        # With hardly more latents than codes it is near zero, and no gradient would get through.
        sharpness = 0.5 / spread.clamp(min=0.01 * codes.var(correction=0).item() + 1e-6)
        self.embed.weight.copy_(codes)
        self.proj.weight.copy_((2 * sharpness * codes).view_as(self.proj.weight))
        self.proj.bias.copy_(-sharpness * codes.square().sum(-1))


class _Sample(torch.autograd.Function):
    """Latents (n c) to z_q (n d), indices (n) and the mean KL, a block of rows at a time.

    No (n k) tensor is ever held: backward makes each block again, with the same noise.
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
        # Made first: small tensors born between large ones would keep the heap from reusing these.
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
        with torch.autocast(z.device.type, enabled=False), full_float32():
            for block, noise in _blocks(z, len(weights[-1]), ctx.seed):
                picks = best[block] if ctx.hard else None
                with torch.enable_grad():
                    inputs = [t.detach().requires_grad_() for t in (z[block], *weights)]
                    z_q, kl = _relaxed(*inputs, noise, temperature, picks)
                grads = (grad_z_q[block], (grad_kl / len(z)).expand_as(kl))
                grad_z[block], *rest = torch.autograd.grad((z_q, kl), inputs, grads)
                for total, grad in zip(sums, rest, strict=True):
                    total.add_(grad)
        return grad_z, *sums, None, None, None


def _blocks(z: Tensor, k: int, seed: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of z (n c) at a time, and their Gumbel noise (rows k), which the seed decides."""
    generator = None if seed is None else torch.Generator(z.device).manual_seed(seed)
    size = max(1, _BLOCK // k)
    for start in range(0, len(z), size):
        block = slice(start, min(start + size, len(z)))
        noise = z.new_zeros(())
        if generator is not None:  # a fifth of the time of exponential_()
            noise = z.new_empty(block.stop - start, k)
            noise.uniform_(generator=generator).log_().neg_().log_().neg_()
        yield block, noise


def _relaxed(
    z: Tensor,
    weight: Tensor,
    bias: Tensor,
    codes: Tensor,
    noise: Tensor,
    temperature: Tensor,
    picks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """z_q (n d), as far as gradients go, and KL (n), for one block; picks: its indices, if hard."""
    logits = torch.addmm(bias, z, weight.T)
    soft = torch.softmax((logits + noise) / temperature, -1)
    if picks is None:
        return soft @ codes, _kl_from_uniform(logits)
    # One row per position trains its code; the others only steer the logits.
    return F.embedding(picks, codes) + soft @ codes.detach(), _kl_from_uniform(logits)


def _kl_from_uniform(logits: Tensor) -> Tensor:
    """KL divergence, in nats, of softmax(logits) (n k) from uniform, as (n)."""
    log_q = torch.log_softmax(logits, -1)
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])
