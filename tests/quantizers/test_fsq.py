"""Finite scalar quantization: indices and codes survive a round trip, invalid levels do not."""

import pytest
import torch

from vqtok.errors import UsageError
from vqtok.quantizers import FSQ, build
from vqtok.settings import FSQSettings


def test_indices_survive_a_round_trip_at_every_number_of_levels():
    for level in (*range(3, 257), 500):
        quantizer = FSQ((level, 3))
        codes = quantizer.implicit_codebook
        for dtype in (torch.float32, torch.bfloat16):
            indices = quantizer.codes_to_indices(codes.to(dtype))
            assert indices.tolist() == list(range(3 * level))
        out, indices = quantizer(torch.linspace(-6, 6, 8000)[None, :, None].expand(1, -1, 2))
        assert torch.equal(quantizer.indices_to_codes(indices), out)
        assert len((indices % level).unique()) == level


def test_every_index_of_the_default_codebook_survives_a_round_trip():
    quantizer = build(FSQSettings())
    indices = torch.arange(64000).view(1, 200, 320)
    codes = quantizer.decode(indices).movedim(1, -1)
    assert torch.equal(quantizer.codes_to_indices(codes).long(), indices)
    assert torch.equal(quantizer.codes_to_indices(codes.bfloat16()).long(), indices)


@pytest.mark.parametrize("levels", [(), [2, 3], (1,), (2**11, 2**10, 2**10)], ids=str)
def test_invalid_levels_are_refused(levels):
    with pytest.raises(UsageError, match="FSQ levels"):
        FSQ(levels)
