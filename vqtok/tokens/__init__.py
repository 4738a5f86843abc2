"""Token files: the format, reading and writing. Needs no PyTorch."""

from vqtok.tokens.format import Tokens, check_tokenizer, count_tokens, validate
from vqtok.tokens.io import (
    IndexBuffer,
    read_header_at,
    read_header_of,
    read_settings,
    read_tokens,
    read_tokens_at,
    tokens_to_bytes,
    write_tokens,
)
from vqtok.tokens.packed import pack_sequence, sequence_vocabulary, unpack_sequence

read, write = read_tokens, write_tokens  # their names in vqtok 0.1

__all__ = [
    "IndexBuffer",
    "Tokens",
    "check_tokenizer",
    "count_tokens",
    "pack_sequence",
    "read",
    "read_header_at",
    "read_header_of",
    "read_settings",
    "read_tokens",
    "read_tokens_at",
    "sequence_vocabulary",
    "tokens_to_bytes",
    "unpack_sequence",
    "validate",
    "write",
    "write_tokens",
]
