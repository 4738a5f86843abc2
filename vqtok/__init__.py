"""A video tokenizer: any video to a grid of integers, and back.

Files:

    tokens = vqtok.encode_video("clip.mp4")
    vqtok.write_tokens("tokens.safetensors", tokens)
    vqtok.decode_video("tokens.safetensors", "decoded.mp4")

Tensors:

    tokenizer = vqtok.load()           # the bundled one, or the path of a trained one
    indices = tokenizer.encode(video)  # (b 3 t h w), uint8 or float 0..1 -> (b t' h' w') int64
    video = tokenizer.decode(indices)  # float 0..1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtok.model.checkpoint import load
    from vqtok.model.tokenizer import Tokenizer
    from vqtok.pipeline.api import decode_video, encode_video, tokens_from_indices
    from vqtok.tokens import Tokens, read_tokens, write_tokens

__all__ = [
    "DEFAULT",
    "Tokenizer",
    "Tokens",
    "__version__",
    "decode_video",
    "encode_video",
    "load",
    "read_tokens",
    "tokens_from_indices",
    "write_tokens",
]
__version__ = "0.2.0"

DEFAULT = "ema-4x8x8-64k"  # name of the bundled tokenizer

# Imported on first use: PyTorch takes a second to import, and `vqtok --help` does not need it.
_MODULES = {
    "Tokenizer": "vqtok.model.tokenizer",
    "Tokens": "vqtok.tokens",
    "decode_video": "vqtok.pipeline.api",
    "encode_video": "vqtok.pipeline.api",
    "load": "vqtok.model.checkpoint",
    "read_tokens": "vqtok.tokens",
    "tokens_from_indices": "vqtok.pipeline.api",
    "write_tokens": "vqtok.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vqtok' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
