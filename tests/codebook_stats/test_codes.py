"""The statistics of a quantizer's codes against a direct computation."""

import pytest
import torch

from vqtok import config
from vqtok.codebook_stats.codes import codebook_table
from vqtok.commands.stats import codebook_arrays
from vqtok.quantizers import build
from vqtok.settings import QUANTIZERS, Config, EMASettings, VQ2Settings

SMALL = {"vq2": {}, "ema": {}, "gumbel": {"dim": 8}, "lfq": {"codebook_size": 64}, "fsq": {}}


def table_of(kind, quantizer):
    size = quantizer.codebook_size, quantizer.dim
    return codebook_table(kind, *size, **codebook_arrays(quantizer))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_codes_of_every_quantizer(kind):
    options = SMALL[kind] | ({"codebook_size": 64} if kind != "fsq" else {})
    settings = {"quantizer": {"kind": kind, **options}}
    quantizer = build(config.validate(Config, settings, "a test").quantizer)
    table = table_of(kind, quantizer)
    assert (table.quantizer, table.codebook_size) == (kind, quantizer.codebook_size)
    if kind in ("lfq", "fsq"):
        assert table.codes is None
        return
    with torch.no_grad():
        quantizer.codebook[3] = quantizer.codebook[9]
    codes = quantizer.codebook.detach().double()
    statistics = table_of(kind, quantizer).codes
    norms, distances = codes.norm(dim=1), torch.cdist(codes, codes)
    nearest = distances.fill_diagonal_(torch.inf).min(1)[0]
    for distribution, values in ((statistics.norms, norms), (statistics.distances, nearest)):
        assert distribution.least == pytest.approx(values.min().item(), abs=1e-6)
        assert distribution.most == pytest.approx(values.max().item(), rel=1e-5)
        assert distribution.median == pytest.approx(values.median().item(), rel=1e-5)
        assert sum(distribution.bins) == 64
    assert statistics.duplicates == (nearest <= 1e-3 * norms.median()).sum() == 2


def test_dead_and_idle_codes():
    quantizer = build(EMASettings(codebook_size=64))
    quantizer.embedding.cluster_size[:5] = 1e-3
    quantizer.age[:7] = 50
    codes = table_of("ema", quantizer).codes
    assert (codes.dead, codes.idle) == (5, 7)
    assert codes.counts.most == 1
    assert codes.counts.least == pytest.approx(1e-3)


def test_a_single_code_has_no_distances():
    codes = table_of("vq2", build(VQ2Settings(codebook_size=1))).codes
    assert codes.distances is None and codes.duplicates == 0
