"""Measure the speed and memory of the quantizers, and print a Markdown table.

    python scripts/bench_quantizers.py [--device cuda] [--rounds 5] [--only LFQ]

Each row is a training step of one quantizer on N latents of D channels with K codes, forward and
backward; search and eval are forward only. Columns: median time and additional peak memory, then
their ratios to other implementations:

- plain: the formula as papers write it, with all N x K values in memory;
- product: a bare N x D times D x K matrix product, computed in tiles;
- vqp: vector_quantize_pytorch, if it is installed.

A dash means that there is no such implementation, or that it needs more than 6 GiB.

Implementations take turns in each round, because absolute times drift. Subnormal floats are flushed
to zero on the CPU for all of them. Memory is measured in a fresh process, includes gradients and
excludes inputs and weights; on the CPU it is the growth of resident memory (Linux only).
"""

import ctypes
import re
import resource
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import isnan, nan
from multiprocessing import get_context
from pathlib import Path
from timeit import timeit
from typing import NamedTuple

import torch
import torch._dynamo  # the first `checkpoint` imports it, which would count as memory of that step
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from vqtok.errors import is_out_of_memory
from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GumbelQuantize,
    Quantizer,
    VectorQuantizer2,
)
from vqtok.quantizers.search import nearest

try:
    import vector_quantize_pytorch as vqp
except ImportError:
    vqp = None

torch.set_flush_denormal(True)  # before any work, so that torch's threads inherit it

HEADER = """\
| quantizer | N | D | K | ms | MiB | ms/plain | MiB/plain | ms/product | vqp ms | vqp MiB |
|---|---|---|---|---|---|---|---|---|---|---|"""
LIMIT = 6 << 30  # bytes
TILE = 2048
LEVELS = (8, 8, 8, 5, 5, 5)
FLAT = ("search", "product")  # functions of (n d), without gradient


class Case(NamedTuple):
    """A row of the table: n latents of d channels, k codes."""

    name: str
    n: int
    d: int
    k: int


SIZES = (2**14, 4, 1024), (2**14, 64, 8192), (2**16, 18, 2**18)
CASES = [
    *(Case(name, *size) for name in ("search", "VQ2", "EMA") for size in SIZES),
    *(Case("LFQ", 2**n, bits, 2**bits) for n, bits in ((14, 10), (10, 16), (14, 18), (16, 18))),
    Case("Gumbel", 2**14, 64, 8192),
    Case("Gumbel eval", 2**14, 64, 2**16),
    Case("FSQ", 2**16, 6, 64000),
]


def tiled_product(x: Tensor, codes: Tensor, scores: Tensor) -> None:
    for a in x.split(TILE):
        for b in codes.split(TILE):
            torch.mm(a, b.T, out=scores[: len(a) * len(b)].view(len(a), len(b)))


def plain_search(x: Tensor, codes: Tensor) -> Tensor:
    distances = x.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * (x @ codes.T)
    return distances.argmin(1)


def plain_vq(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    q = F.embedding(plain_search(x, codes), codes)
    return x + (q - x).detach(), F.mse_loss(q.detach(), x) + 0.25 * F.mse_loss(q, x.detach())


def plain_ema(x: Tensor, codes: Tensor, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    encodings = F.one_hot(plain_search(x, codes), len(codes)).to(x.dtype)  # (n k)
    q = encodings @ codes
    counts.mul_(0.99).add_(encodings.sum(0), alpha=0.01)
    sums.mul_(0.99).add_(encodings.T @ x.detach(), alpha=0.01)
    smoothed = (counts + 1e-5) / (counts.sum() + len(codes) * 1e-5) * counts.sum()
    codes.copy_(sums / smoothed[:, None])
    return x + (q - x).detach(), 0.25 * F.mse_loss(q, x)


def plain_gumbel(x: Tensor, proj: Tensor, bias: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(x, proj, bias)
    one_hot = F.gumbel_softmax(logits, tau=1.0, hard=True)
    p = torch.softmax(logits, -1)
    return one_hot @ codes, 5e-4 * (p * torch.log(p * len(codes) + 1e-10)).sum(-1).mean()


def plain_lfq(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(2 * 100.0 * (x @ codes.T), -1)
    mean = p.mean(0)
    per_sample_entropy = -(p * p.clamp(min=1e-5).log()).sum(-1).mean()
    batch_entropy = -(mean * mean.clamp(min=1e-5).log()).sum()
    q = torch.where(x > 0, 1.0, -1.0)
    loss = 0.1 * (per_sample_entropy - batch_entropy) + 0.25 * F.mse_loss(x, q)
    return x + (q - x).detach(), loss


def plain_fsq(x: Tensor, levels: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    half, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
    bounded = torch.tanh(x + torch.atanh(offset / half)) * half - offset
    q = bounded + (bounded.round() - bounded).detach()
    return q / (levels // 2), ((q.detach() + levels // 2) * basis).sum(-1).int()


PLAIN: dict[str, Callable[[int, int], tuple[Callable, list[Tensor]]]] = {
    # d and k -> a function of x (n d) and of these weights
    "product": lambda d, k: (tiled_product, [torch.randn(k, d), torch.empty(TILE * TILE)]),
    "search": lambda d, k: (plain_search, [torch.randn(k, d)]),
    "VQ2": lambda d, k: (plain_vq, [nn.Embedding(k, d).weight]),
    "EMA": lambda d, k: (plain_ema, [codes := torch.randn(k, d), torch.ones(k), codes.clone()]),
    "Gumbel": lambda d, k: (
        plain_gumbel,
        [*nn.Linear(d, k).parameters(), nn.Embedding(k, d).weight],
    ),
    "LFQ": lambda d, k: (plain_lfq, [2.0 * (torch.arange(k)[:, None] >> torch.arange(d) & 1) - 1]),
    "FSQ": lambda d, k: (plain_fsq, [n := torch.tensor(LEVELS), n.cumprod(0) // n]),
}
GRID = {"accept_image_fmap": True, "rotation_trick": False}
GRADIENT = {"learnable_codebook": True, "ema_update": False}
MODULES: dict[str, Callable[[int, int], nn.Module]] = {
    # d and k -> a module that takes z (1 d h w)
    "vqtok VQ2": lambda d, k: VectorQuantizer2(k, d, 0.25),
    "vqtok EMA": lambda d, k: EMAVectorQuantizer(k, d, 0.25),
    "vqtok Gumbel": lambda d, k: GumbelQuantize(d, d, k),
    "vqtok LFQ": lambda d, k: LFQ(codebook_size=k),
    "vqtok FSQ": lambda d, k: FSQ(LEVELS),
    "vqp VQ2": lambda d, k: vqp.VectorQuantize(d, k, **GRADIENT, **GRID),
    "vqp EMA": lambda d, k: vqp.VectorQuantize(d, k, **GRID),
    "vqp LFQ": lambda d, k: vqp.LFQ(codebook_size=k, commitment_loss_weight=0.25),
    "vqp FSQ": lambda d, k: vqp.FSQ(LEVELS),
}


def make_forward(
    implementation: str, name: str, d: int, k: int, train: bool
) -> tuple[Callable[[Tensor], Iterable[object]], list[Tensor]]:
    """Return a function of z whose results include z_q and the loss, and its weights."""
    if name in FLAT:
        function, weights = PLAIN[name](d, k)
        search = nearest if implementation == "vqtok" else function
        return lambda z: [search(z, *weights)], weights
    if implementation == "plain":
        function, weights = PLAIN[name](d, k)

        def forward(z: Tensor) -> tuple[Tensor, Tensor]:
            q, loss = function(z.movedim(1, -1).reshape(-1, d), *weights)
            return q.view(1, -1, 64, d).movedim(-1, 1).contiguous(), loss

        return forward, weights
    module = MODULES[f"{implementation} {name}"](d, k).train(train)
    if isinstance(module, Quantizer):
        return lambda z: vars(module.quantize(z)).values(), list(module.parameters())
    return module, list(module.parameters())


def make_step(case: Case, implementation: str, device: str) -> Callable[[], Sequence[Tensor]]:
    """Return a function that runs a step and returns the gradients of z and of the weights."""
    name, (n, d, k) = case.name.removesuffix(" eval"), case[1:]
    train = name == case.name and name not in FLAT
    with torch.device(device):
        z, upstream = torch.randn(2, *((n, d) if name in FLAT else (1, d, n // 64, 64)))
        forward, weights = make_forward(implementation, name, d, k, train)
    if name == "VQ2":
        nn.init.normal_(weights[0])  # as after some training: initially all codes are close to 0
    leaves = [x for x in (z.requires_grad_(train), *weights) if x.requires_grad]

    def step() -> Sequence[Tensor]:
        with torch.set_grad_enabled(train):
            outputs = [x for x in forward(z) if isinstance(x, Tensor) and x.requires_grad]
        upstreams = [upstream if x.ndim else None for x in outputs]
        gradients = torch.autograd.grad(outputs, leaves, upstreams) if outputs else ()
        if device != "cpu":
            torch.cuda.synchronize()
        return gradients

    return step


def peak_memory(case: Case, implementation: str, device: str) -> float:
    """Return the additional MiB of one step, NaN if above LIMIT. To be run in a fresh process."""
    make_step(Case(case.name, 64, 6, 64), implementation, device)()  # initializes libraries
    step = make_step(case, implementation, device)
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # else the step would reuse memory freed before it
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
        resource.setrlimit(resource.RLIMIT_DATA, (process_memory("VmData") + LIMIT, -1))
        before = process_memory("VmRSS")
    else:
        torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.mem_get_info()[1])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    try:
        gradients = step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return nan
    peak = process_memory("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    assert all(gradient.any() for gradient in gradients), (case, implementation)
    return (peak - before) / 2**20


def process_memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match is not None, field
    return int(match[1]) << 10


def measure(case: Case, device: str, rounds: int) -> list[float]:
    """Return the numbers of a row from `ms` on; NaN becomes a dash."""
    mib = {"vqtok": nan, "plain": nan, "vqp": nan}
    for name in mib if vqp and f"vqp {case.name}" in MODULES else ("vqtok", "plain"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh_process:
            mib[name] = fresh_process.submit(peak_memory, case, name, device).result()
    steps = {name: make_step(case, name, device) for name in mib if not isnan(mib[name])}
    if case.name != "FSQ":  # it compares no codes
        steps["product"] = make_step(case._replace(name="product"), "plain", device)
    times = [
        {name: timeit(step, number=1) for name, step in steps.items()} for _ in range(rounds + 1)
    ]
    warm = times[1:]
    ms = {
        name: 1000 * statistics.median(t.get(name, nan) for t in warm) for name in (*mib, "product")
    }
    ratios = ms["vqtok"] / ms["plain"], mib["vqtok"] / mib["plain"], ms["vqtok"] / ms["product"]
    return [ms["vqtok"], mib["vqtok"], *ratios, ms["vqp"], mib["vqp"]]


def main(device: str = "cpu", rounds: int = 5, only: str = "") -> None:
    missing = "" if vqp else "; vector_quantize_pytorch is not installed: its columns are dashes"
    typer.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads{missing}", err=True)
    print(HEADER, flush=True)
    for case in CASES:
        if only.lower() in case.name.lower():
            numbers = measure(case, device, rounds)
            cells = ["—" if isnan(x) else f"{x:.3g}" if x < 1000 else f"{x:.0f}" for x in numbers]
            print("|", " | ".join([*map(str, case), *cells]), "|", flush=True)


if __name__ == "__main__":
    typer.run(main)
