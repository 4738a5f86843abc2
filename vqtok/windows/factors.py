"""Factorised vocabularies: an index as several digits, so that a model's output layer is small."""

from typing import TypeVar

import numpy as np
from torch import Tensor

from vqtok.errors import UsageError, VqtokError

Array = TypeVar("Array", np.ndarray, Tensor)


class Factors:
    """Indices of a codebook as `count` digits each, the most significant first.

    base: values of a digit, the least for which `count` digits are enough: 256 for two digits of
        65,536 codes. With one digit, the size of the codebook.
    """

    def __init__(self, codebook_size: int, count: int) -> None:
        if not 1 <= count <= max(1, (codebook_size - 1).bit_length()):
            raise UsageError(
                f"factors is {count}: an index of {codebook_size:,} codes has 1 to "
                f"{max(1, (codebook_size - 1).bit_length())} digits"
            )
        self.codebook_size, self.count = codebook_size, count
        base = round(codebook_size ** (1 / count))
        while base**count < codebook_size:
            base += 1
        while (base - 1) ** count >= codebook_size:
            base -= 1
        self.base = base

    def split(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Write the digits of indices (...), of any unsigned dtype that holds them, to `out`.

        out: (... count).
        """
        base = np.min_scalar_type(self.base).type(self.base)  # may need a wider dtype than indices
        for digit in range(self.count - 1, 0, -1):
            quotient = indices // base
            np.subtract(indices, quotient * base, out=out[..., digit], casting="unsafe")
            indices = quotient
        out[..., 0] = indices

    def join(self, digits: Array) -> Array:
        """Return the indices (... stages), int64, of digits (... stages * count), integers.

        Raises VqtokError if they are digits of no index, as special tokens.
        """
        digits = digits.long() if isinstance(digits, Tensor) else digits.astype(np.int64)
        parts = digits.reshape(*digits.shape[:-1], -1, self.count)
        indices = parts[..., 0]
        for digit in range(1, self.count):
            indices = indices * self.base + parts[..., digit]
        wrong = (parts < 0) | (parts >= self.base)
        if bool(wrong.any()) or bool((indices >= self.codebook_size).any()):
            raise VqtokError(
                f"some of these are no indices of a codebook of {self.codebook_size:,}: remove "
                "special tokens, and do not let a model generate them"
            )
        return indices
