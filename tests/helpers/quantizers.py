"""Every quantizer, and what the tests compare it with."""

import torch

from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    GumbelQuantize,
    VectorQuantizer2,
)

MAKE = {
    "vq2": lambda: VectorQuantizer2(100, 8, 0.25),
    "vq2 revived": lambda: VectorQuantizer2(100, 8, 0.25, init_from_data=True, revive_after=1),
    "ema": lambda: EMAVectorQuantizer(100, 8, 0.25),
    "ema revived": lambda: EMAVectorQuantizer(100, 8, 0.25, init_from_data=True, revive_after=1),
    "gumbel": lambda: GumbelQuantize(8, 8, 100),
    "gumbel started": lambda: GumbelQuantize(8, 8, 100, init_from_data=True),
    "lfq": lambda: LFQ(codebook_size=256),
    "lfq projected": lambda: LFQ(dim=8, codebook_size=2**5),
    "lfq twofold": lambda: LFQ(dim=8, codebook_size=2**4, num_codebooks=2),
    "fsq": lambda: FSQ((8, 3, 4, 5, 3, 3, 3, 3)),
    "fsq projected": lambda: FSQ([7, 5, 5], dim=8),
    "fsq twofold": lambda: FSQ([4, 3, 4, 3], num_codebooks=2),
}


DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def exact_indices(z, codebook):
    return torch.cdist(z.double(), codebook.double()).argmin(-1)
