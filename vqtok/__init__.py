"""A video tokenizer: any video to a grid of integers, and back.

tokenizer = vqtok.load()              # the bundled one; or the path of a trained one
indices = tokenizer.encode(video)     # (b 3 t h w), uint8 or float 0..1 -> (b t' h' w') int64
video = tokenizer.decode(indices)     # float 0..1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtok.model.checkpoint import load
    from vqtok.model.tokenizer import Tokenizer

__all__ = ["DEFAULT", "Tokenizer", "__version__", "load"]
__version__ = "0.1.0"

DEFAULT = "ema-4x8x8-64k"  # the bundled tokenizer


def __getattr__(name: str) -> Any:
    # torch takes a second to import; `vqtok --help` does not need it.
    home = {"load": "vqtok.model.checkpoint", "Tokenizer": "vqtok.model.tokenizer"}.get(name)
    if home is None:
        raise AttributeError(f"module 'vqtok' has no attribute {name!r}")
    return getattr(import_module(home), name)
