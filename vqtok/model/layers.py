"""Causal building blocks: each gives on a clip cut into chunks what it gives on the whole clip."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

Kernel = tuple[int, int, int]
State = dict[nn.Module, Any]  # what each module has to remember of a stream


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution that never looks ahead in time: (b c t h w) -> (b c' t' h' w').

    In front of the first frame it sees that frame again, so that 1 + s*n frames become 1 + n at a
    stride of s; inside `streaming`, the last kernel - stride frames of the chunk before. Where the
    stride is 1, height and width are kept.
    """

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: Kernel = (1, 1, 1)) -> None:
        height, width = (
            k // 2 if s == 1 else 0 for k, s in zip(kernel[1:], stride[1:], strict=True)
        )
        super().__init__(c_in, c_out, kernel, stride, padding=(0, height, width))
        nn.init.orthogonal_(self.weight)  # keeps the signal's size through a stack of linear layers
        nn.init.zeros_(self.bias)
        self.state: State | None = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self._with_past(x) if self.kernel_size[0] > 1 else x)

    def patches(self, x: Tensor) -> Tensor:
        """What each output of a convolution without overlap is made of: (n k)."""
        p, q, r = self.kernel_size
        pattern = "b c (t p) (h q) (w r) -> (b t h w) (c p q r)"
        return rearrange(self._with_past(x), pattern, p=p, q=q, r=r)

    def _with_past(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)  # (b t h w c) is how the memory lies: joining frames is then one copy
        past = None if self.state is None else self.state.get(self)
        if past is None:
            past = x[:, :1].expand(-1, self.kernel_size[0] - 1, -1, -1, -1)
        x = torch.cat([past, x], dim=1)
        if self.state is not None:
            keep = self.kernel_size[0] - self.stride[0]
            self.state[self] = x[
                :, x.shape[1] - keep :
            ].clone()  # a view would keep the chunk alive
        return x.movedim(-1, 1)


@contextmanager
def streaming(model: nn.Module, state: State) -> Iterator[None]:
    """Inside, `model` goes on where `state` (empty at the start of a clip) left off.

    The caller holds the state, so that any number of clips can take turns on one model.
    """
    convolutions = [m for m in model.modules() if isinstance(m, CausalConv3d)]
    for m in convolutions:
        m.state = state
    try:
        yield
    finally:
        for m in convolutions:
            m.state = None


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of (b c t h w): blind to time and picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Residual (2+1)-D block: a 1x3x3 convolution over the picture, a 3x1x1 one over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.space = CausalConv3d(width, width, (1, 3, 3))
        self.act = nn.SiLU()
        self.time = CausalConv3d(width, width, (3, 1, 1))
        nn.init.zeros_(self.time.weight)  # every block starts as the identity
        nn.init.zeros_(self.time.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.time(self.act(self.space(self.norm(x))))


class DepthToSpace(nn.Module):
    """Convolution and depth-to-space-time: each position becomes p x q x r of them.

    look: height and width of the convolution.
    """

    def __init__(self, c_in: int, c_out: int, factors: Kernel, look: int = 1) -> None:
        super().__init__()
        p, q, r = factors
        self.conv = CausalConv3d(c_in, c_out * p * q * r, (1, look, look))
        self.factors = {"p": p, "q": q, "r": r}

    def forward(self, x: Tensor) -> Tensor:
        pattern = "b (c p q r) t h w -> b (t p) (h q) (w r) c"
        return rearrange(self.conv(x), pattern, **self.factors).movedim(-1, 1)

    @torch.no_grad()
    def init_as_inverse(self, basis: Tensor) -> None:
        """Undo a fold whose weight was this basis (m k): each channel gives its component back."""
        middle = self.conv.kernel_size[1] // 2
        self.conv.weight.zero_()
        self.conv.weight[:, : len(basis), 0, middle, middle] = basis.T


def compile_blocks(models: Iterable[nn.Module]) -> None:
    """Have torch.compile make the kernels of the blocks, whenever a new shape comes.

    The past of a stream stays outside of the kernels.
    """
    compile_every_shape()
    CausalConv3d._with_past = torch.compiler.disable(CausalConv3d._with_past)
    for module in chain.from_iterable(model.modules() for model in models):
        if isinstance(module, Block):
            module.compile(dynamic=False)


def compile_every_shape() -> None:
    """In this thread, no shape goes back to eager kernels: else what a clip gives would depend on
    the clips before it.
    """
    limits = torch.compiler.config
    limits.recompile_limit = limits.accumulated_recompile_limit = 2**20


def principal_components(samples: Tensor) -> Tensor:
    """Orthonormal rows (k k), those that carry most of the samples' (n k) energy first."""
    _, vectors = torch.linalg.eigh(samples.T @ samples / len(samples))  # in ascending order
    return vectors.T.flip(0)
