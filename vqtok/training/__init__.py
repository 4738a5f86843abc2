"""Training of tokenizers: the loop, the data, and the folders of runs."""

from vqtok.training.loop import train

__all__ = ["train"]
