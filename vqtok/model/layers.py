"""Causal building blocks whose output on a clip in chunks equals that on the whole clip."""

from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from vqtok.model.stream_state import StreamState

M = TypeVar("M", bound=nn.Module)
Size3d = tuple[int, int, int]


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution that never looks ahead in time: (b c t h w) -> (b c' t' h' w').

    s*n frames become n at a stride of s: the first one is repeated kernel - s times in front. With
    a `state`, the last kernel - s frames of the previous chunk are there instead.
    Height and width are padded with zeros to keep their size if the stride is 1.
    """

    def __init__(self, c_in: int, c_out: int, kernel: Size3d, stride: Size3d = (1, 1, 1)) -> None:
        height, width = (
            k // 2 if s == 1 else 0 for k, s in zip(kernel[1:], stride[1:], strict=True)
        )
        super().__init__(c_in, c_out, kernel, stride, padding=(0, height, width))

    def reset_parameters(self) -> None:
        """Draw the weights anew; on the meta device there are none to draw."""
        if self.weight.is_meta:
            return
        super().reset_parameters()
        nn.init.orthogonal_(self.weight)  # keeps the signal's variance through linear layers
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        past = self.kernel_size[0] - self.stride[0]
        return super().forward(self._with_past(x, past, state) if past else x)

    def patches(self, x: Tensor) -> Tensor:
        """Return the inputs (n k) of each output position, if the stride equals the kernel."""
        p, q, r = self.kernel_size
        pattern = "b c (t p) (h q) (w r) -> (b t h w) (c p q r)"
        return rearrange(x, pattern, p=p, q=q, r=r)

    def _with_past(self, x: Tensor, length: int, state: StreamState | None) -> Tensor:
        x = x.movedim(1, -1)  # (b t h w c), the memory layout: concatenating in time is one copy
        if state is None or self not in state:
            joined = _RepeatFirst.apply(x, length)
        else:
            past = state[self]
            if state.starts is not None:
                past = torch.where(state.starts, x[:, :1], past)
            joined = torch.cat([past, x], dim=1)
        if state is not None:
            frames = x if x.shape[1] >= length else joined
            last = frames[:, frames.shape[1] - length :]
            # A view would keep all frames of the chunk in memory, so of many there is a copy.
            state[self] = last.clone() if frames.shape[1] >= 2 * length else last
        return joined.movedim(-1, 1)


class _RepeatFirst(torch.autograd.Function):
    """Repeat the first frame of (b t ...) `count` times in front.

    The gradient takes two operations; derived from those of `forward`, it takes five.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.count = count
        return torch.cat([x[:, :1].expand(-1, count, *x.shape[2:]), x], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        first, rest = grad.tensor_split((ctx.count + 1,), dim=1)
        return torch.cat([first.sum(1, keepdim=True), rest], dim=1), None


def look_back(module: nn.Module) -> int:
    """Return how many frames before a frame its output depends on, in frames of the output.

    Strided convolutions must have a kernel of the size of their stride.
    """
    convolutions = (layer for layer in module.modules() if isinstance(layer, CausalConv3d))
    return sum(layer.kernel_size[0] - layer.stride[0] for layer in convolutions)


def channels_last(module: M) -> M:
    """Store the module's weights in torch.channels_last_3d, in which convolutions are fastest."""
    return module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


class CausalSequential(nn.Sequential):
    """Layers in a row; with a `state`, they continue a clip from it, and update it."""

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        for layer in self:
            x = layer(x, state)
        return x


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of (b c t h w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Residual (2+1)-D block: a 1x3x3 convolution in space, then a 3x1x1 one in time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.space = CausalConv3d(width, width, (1, 3, 3))
        self.act = nn.SiLU()
        self.time = CausalConv3d(width, width, (3, 1, 1))
        nn.init.zeros_(self.time.weight)  # the block is the identity at first

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return x + self.time(self.act(self.space(self.norm(x))), state)


class DepthToSpace(nn.Module):
    """Convolution, then depth-to-space: each position becomes p x q x r positions.

    kernel: height and width of the convolution.
    """

    def __init__(self, c_in: int, c_out: int, factors: Size3d, kernel: int = 1) -> None:
        super().__init__()
        p, q, r = factors
        self.conv = CausalConv3d(c_in, c_out * p * q * r, (1, kernel, kernel))
        self.factors = {"p": p, "q": q, "r": r}

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        pattern = "b (c p q r) t h w -> b (t p) (h q) (w r) c"
        return rearrange(self.conv(x, state), pattern, **self.factors).movedim(-1, 1)

    @torch.no_grad()
    def init_as_inverse(self, basis: Tensor, mean: Tensor) -> None:
        """Initialize as the inverse of a strided convolution: x -> basis (m k) @ (x - mean (k))."""
        center = self.conv.kernel_size[1] // 2
        self.conv.weight.zero_()
        self.conv.weight[:, : len(basis), 0, center, center] = basis.T
        assert self.conv.bias is not None
        self.conv.bias.copy_(mean)


def principal_components(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal components (k k) of samples (n k) and the mean (k) they are about.

    The components are orthonormal rows, that of the largest variance first.
    """
    mean = samples.mean(0)
    centered = samples - mean
    _, vectors = torch.linalg.eigh(centered.T @ centered / len(samples))  # in ascending order
    return vectors.T.flip(0), mean


def tail_std(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the standard deviation of the normal distribution with the same E[x^4] / E[x^2].

    It is larger than that of x if most values are zero and a few are large. x has zero mean.
    """
    second, fourth = (x.pow(n).mean(dims, keepdim=True) for n in (2, 4))
    return (fourth / (3 * second).clamp(min=1e-6)).sqrt()
