"""Token files: the format, reading and writing. Needs no PyTorch."""

from vqtok.tokens.format import Tokens, check_tokenizer, validate
from vqtok.tokens.io import (
    IndexBuffer,
    read_metadata,
    read_tokens,
    tokens_to_bytes,
    write_tokens,
)

__all__ = [
    "IndexBuffer",
    "Tokens",
    "check_tokenizer",
    "read_metadata",
    "read_tokens",
    "tokens_to_bytes",
    "validate",
    "write_tokens",
]
