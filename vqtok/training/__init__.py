"""Training: the loop, a step, the state that is saved, the log, validation."""

from vqtok.training.loop import train

__all__ = ["train"]
