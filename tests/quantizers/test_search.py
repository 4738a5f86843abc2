"""Nearest-code search against distances computed directly."""

import pytest
import torch

from vqtok.quantizers.search import neighbours


@pytest.mark.parametrize("k, d", [(2, 3), (33, 2), (2048, 3), (2049, 3), (5000, 8)])
def test_neighbours_are_the_nearest_other_codes(k, d):
    codes = torch.randn(k, d, generator=torch.Generator().manual_seed(k))
    distances = torch.cdist(codes.double(), codes.double()).fill_diagonal_(torch.inf)
    indices = neighbours(codes)
    assert (indices != torch.arange(k)).all()
    assert torch.allclose(distances[torch.arange(k), indices], distances.min(1)[0], atol=1e-6)
