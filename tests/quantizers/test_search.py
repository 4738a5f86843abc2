"""Nearest-code search against distances computed directly."""

import pytest
import torch

from helpers.quantizers import exact_indices
from vqtok.quantizers.search import nearest, neighbors


@pytest.mark.parametrize("n, k, d", [(1, 1, 1), (100, 7, 3), (2500, 4200, 4)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_search_agrees_with_float64_near_and_far_from_the_origin(n, k, d, offset):
    z, codebook = torch.randn(n, d) + offset, torch.randn(k, d) + offset
    assert torch.equal(nearest(z, codebook), exact_indices(z, codebook))


def test_search_returns_the_lowest_of_equally_near_codes():
    codebook = torch.randn(50, 8).repeat(100, 1)
    assert nearest(torch.randn(500, 8), codebook).max() < 50


@pytest.mark.parametrize("k, d", [(2, 3), (33, 2), (2048, 3), (2049, 3), (5000, 8)])
def test_neighbors_are_the_nearest_other_codes(k, d):
    codes = torch.randn(k, d, generator=torch.Generator().manual_seed(k))
    distances = torch.cdist(codes.double(), codes.double()).fill_diagonal_(torch.inf)
    indices = neighbors(codes)
    assert (indices != torch.arange(k)).all()
    assert torch.allclose(distances[torch.arange(k), indices], distances.min(1)[0], atol=1e-6)
