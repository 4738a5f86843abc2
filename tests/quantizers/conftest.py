"""Fixtures of the quantizer tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """Start every test from the same random state."""
    torch.manual_seed(0)
