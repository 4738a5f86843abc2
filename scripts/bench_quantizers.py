"""Speed and memory of the quantizers, beside the plain formulas: a Markdown table.

    python scripts/bench_quantizers.py [--device cuda] [--rounds 5] [--only LFQ]

One row a case: median time and extra peak memory of a training step (of search and eval: forward
alone), then ratios to the formula as papers write it, with all N x K numbers in memory, and to the
bare product N x D times D x K in tiles; vqp: vector_quantize_pytorch. A dash: none, or over 6 GiB.

The sides take turns in each round, for absolute times drift. All of them, LFQ's plain formula
too, flush subnormal floats on the CPU: they would slow it down many times. Memory is that of a
fresh process (on the CPU its growth in RAM: Linux only), gradients included, input and weights not.
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

import torch
import torch._dynamo  # else a first `checkpoint` imports it, and it counts as memory of that step
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from vqtok.quantizers import FSQ, LFQ, EMAVectorQuantizer, GumbelQuantize, VectorQuantizer2
from vqtok.quantizers.search import nearest

try:
    import vector_quantize_pytorch as vqp
except ImportError:
    vqp = None

torch.set_flush_denormal(True)  # before any work: the threads of the pool inherit it

HEADER = """\
| quantizer | N | D | K | ms | MiB | ms/plain | MiB/plain | ms/product | vqp ms | vqp MiB |
|---|---|---|---|---|---|---|---|---|---|---|"""
LIMIT, TILE, LEVELS = 6 << 30, 2048, (8, 8, 8, 5, 5, 5)
Case = tuple[str, int, int, int]  # name, n, d, k
SIZES = (2**14, 4, 1024), (2**14, 64, 8192), (2**16, 18, 2**18)
CASES: list[Case] = [
    *((name, *size) for name in ("search", "VQ2", "EMA") for size in SIZES),
    *(("LFQ", 2**n, bits, 2**bits) for n, bits in ((14, 10), (10, 16), (14, 18), (16, 18))),
    ("Gumbel", 2**14, 64, 8192),
    ("Gumbel eval", 2**14, 64, 2**16),
    ("FSQ", 2**16, 6, 64000),
]


def product(x: Tensor, codes: Tensor, scores: Tensor) -> None:
    for a in x.split(TILE):
        for b in codes.split(TILE):
            torch.mm(a, b.T, out=scores[: len(a) * len(b)].view(len(a), len(b)))


def search(x: Tensor, codes: Tensor) -> Tensor:
    distances = x.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * (x @ codes.T)
    return distances.argmin(1)


def vq(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    q = F.embedding(search(x, codes), codes)
    return x + (q - x).detach(), F.mse_loss(q.detach(), x) + 0.25 * F.mse_loss(q, x.detach())


def ema(x: Tensor, codes: Tensor, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    encodings = F.one_hot(search(x, codes), len(codes)).to(x.dtype)  # (n k)
    q = encodings @ codes
    counts.mul_(0.99).add_(encodings.sum(0), alpha=0.01)
    sums.mul_(0.99).add_(encodings.T @ x.detach(), alpha=0.01)
    smoothed = (counts + 1e-5) / (counts.sum() + len(codes) * 1e-5) * counts.sum()
    codes.copy_(sums / smoothed[:, None])
    return x + (q - x).detach(), 0.25 * F.mse_loss(q, x)


def gumbel(x: Tensor, proj: Tensor, bias: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(x, proj, bias)
    one_hot = F.gumbel_softmax(logits, tau=1.0, hard=True)
    p = torch.softmax(logits, -1)
    return one_hot @ codes, 5e-4 * (p * torch.log(p * len(codes) + 1e-10)).sum(-1).mean()


def lfq(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(2 * 100.0 * (x @ codes.T), -1)
    mean = p.mean(0)
    sure = -(p * p.clamp(min=1e-5).log()).sum(-1).mean()
    diverse = -(mean * mean.clamp(min=1e-5).log()).sum()
    q = torch.where(x > 0, 1.0, -1.0)
    return x + (q - x).detach(), 0.1 * (sure - diverse) + 0.25 * F.mse_loss(x, q)


def fsq(x: Tensor, levels: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    half, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
    bounded = torch.tanh(x + torch.atanh(offset / half)) * half - offset
    q = bounded + (bounded.round() - bounded).detach()
    return q / (levels // 2), ((q.detach() + levels // 2) * basis).sum(-1).int()


PLAIN = {  # functions of x (n d) and of these weights
    "product": lambda d, k: (product, [torch.randn(k, d), torch.empty(TILE * TILE)]),
    "search": lambda d, k: (search, [torch.randn(k, d)]),
    "VQ2": lambda d, k: (vq, [nn.Embedding(k, d).weight]),
    "EMA": lambda d, k: (ema, [codes := torch.randn(k, d), torch.ones(k), codes.clone()]),
    "Gumbel": lambda d, k: (gumbel, [*nn.Linear(d, k).parameters(), nn.Embedding(k, d).weight]),
    "LFQ": lambda d, k: (lfq, [2.0 * (torch.arange(k)[:, None] >> torch.arange(d) & 1) - 1]),
    "FSQ": lambda d, k: (fsq, [n := torch.tensor(LEVELS), n.cumprod(0) // n]),
}
GRID = {"accept_image_fmap": True, "rotation_trick": False}
GRADIENT = {"learnable_codebook": True, "ema_update": False}
MODULES = {  # of z (1 d h w)
    "ours VQ2": lambda d, k: VectorQuantizer2(k, d, 0.25),
    "ours EMA": lambda d, k: EMAVectorQuantizer(k, d, 0.25),
    "ours Gumbel": lambda d, k: GumbelQuantize(d, d, k),
    "ours LFQ": lambda d, k: LFQ(codebook_size=k),
    "ours FSQ": lambda d, k: FSQ(LEVELS),
    "vqp VQ2": lambda d, k: vqp.VectorQuantize(d, k, **GRADIENT, **GRID),
    "vqp EMA": lambda d, k: vqp.VectorQuantize(d, k, **GRID),
    "vqp LFQ": lambda d, k: vqp.LFQ(codebook_size=k, commitment_loss_weight=0.25),
    "vqp FSQ": lambda d, k: vqp.FSQ(LEVELS),
}


def prepare(case: Case, side: str, device: str) -> Callable[[], Sequence[Tensor]]:
    """A step to call; it returns the gradients of z and of all weights that learn by gradient."""
    name, n, d, k = case[0].removesuffix(" eval"), *case[1:]
    flat = name in ("search", "product")
    train = not flat and name == case[0]
    with torch.device(device):
        z, upstream = torch.randn(2, *((n, d) if flat else (1, d, n // 64, 64)))
        if flat or side == "plain":
            work, weights = PLAIN[name](d, k)
        else:
            work = MODULES[f"{side} {name}"](d, k).train(train)
            weights = list(work.parameters())
    if name == "VQ2":
        nn.init.normal_(weights[0])  # as after some training: at first they all lie near zero
    leaves = [x for x in (z.requires_grad_(train), *weights) if x.requires_grad]

    def forward() -> Iterable[object]:
        if flat:
            return [(nearest if side == "ours" else work)(z, *weights)]
        if side == "plain":
            q, loss = work(z.movedim(1, -1).reshape(n, d), *weights)
            return q.view(1, n // 64, 64, d).movedim(-1, 1).contiguous(), loss
        return vars(work.quantize(z)).values() if side == "ours" else work(z)

    def step() -> Sequence[Tensor]:
        with torch.set_grad_enabled(train):
            outputs = [x for x in forward() if getattr(x, "requires_grad", False)]
        upstreams = [upstream if x.ndim else None for x in outputs]
        gradients = torch.autograd.grad(outputs, leaves, upstreams) if outputs else ()
        if device != "cpu":
            torch.cuda.synchronize()
        return gradients

    return step


def status(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def peak(case: Case, side: str, device: str) -> float:
    """Extra MiB of one step, in a fresh process; NaN where it would take more than LIMIT."""
    prepare((case[0], 64, 6, 64), side, device)()  # libraries take what they need for good
    step = prepare(case, side, device)
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # lest the step gets for free what building has left
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
        resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + LIMIT, -1))
        before, most = status("VmRSS"), lambda: status("VmHWM")
    else:
        torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.mem_get_info()[1])
        torch.cuda.reset_peak_memory_stats()
        before, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    try:
        gradients = step()
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return nan
    extra = most() - before
    assert all(gradient.any() for gradient in gradients), (case, side)
    return extra / 2**20


def measure(case: Case, device: str, rounds: int) -> list[float]:
    """The numbers of a row from ms on; NaN for what there is not."""
    mib = {"ours": nan, "plain": nan, "vqp": nan}
    for side in mib if vqp and f"vqp {case[0]}" in MODULES else ("ours", "plain"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            mib[side] = fresh.submit(peak, case, side, device).result()
    steps = {side: prepare(case, side, device) for side in mib if not isnan(mib[side])}
    if case[0] != "FSQ":  # it compares no codes
        steps["product"] = prepare(("product", *case[1:]), "plain", device)
    times = [{s: timeit(f, number=1) for s, f in steps.items()} for _ in range(rounds + 1)]
    ms = {s: 1000 * statistics.median(t.get(s, nan) for t in times[1:]) for s in (*mib, "product")}
    ratios = ms["ours"] / ms["plain"], mib["ours"] / mib["plain"], ms["ours"] / ms["product"]
    return [ms["ours"], mib["ours"], *ratios, ms["vqp"], mib["vqp"]]


def main(device: str = "cpu", rounds: int = 5, only: str = "") -> None:
    missing = "" if vqp else "; vector_quantize_pytorch is not installed, so dashes stand for it"
    typer.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads{missing}", err=True)
    print(HEADER, flush=True)
    for case in (case for case in CASES if only.lower() in case[0].lower()):
        numbers = measure(case, device, rounds)
        cells = ["—" if isnan(x) else f"{x:.3g}" if x < 1000 else f"{x:.0f}" for x in numbers]
        print("|", " | ".join([*map(str, case), *cells]), "|", flush=True)


if __name__ == "__main__":
    typer.run(main)
