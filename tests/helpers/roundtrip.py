"""Encode and decode without a model: what is lost is lost in reading and writing."""

import io

import torch

from vqtok.pipeline.clip import decode_clip, encode_clip
from vqtok.tokens import read_tokens, tokens_to_bytes
from vqtok.video import open_video


class Lossless:
    """Stands in for a Tokenizer: an index is the colour of a pixel."""

    stride, codebook_size, kind, fingerprint = (1, 1, 1), 2**24, "lossless", "0" * 64
    device = torch.device("cpu")

    def encode_stream(self, chunks):
        for chunk in chunks:  # (1 c t h w) uint8
            yield (chunk.long() * torch.tensor([65536, 256, 1]).view(1, 3, 1, 1, 1)).sum(1)

    def decode_stream(self, parts):
        for part in parts:  # (1 t h w)
            yield torch.stack([part >> 16, part >> 8 & 255, part & 255], 1) / 255


def through(source, target, audio_from=None, codec=None, crf=None, **options):
    """Encode and decode by way of a token file: the tokens, and what was said while decoding."""
    with open_video(source, **options) as clip:
        data = tokens_to_bytes(encode_clip(clip, Lossless()))
    tokens = read_tokens(io.BytesIO(data))
    said = decode_clip(tokens, Lossless(), target, codec=codec, crf=crf, audio_from=audio_from)
    return tokens, said


def played(tokens):
    """When each frame should be shown in the decoded video, in seconds."""
    return [(time - tokens.origin) * tokens.time_base for time in tokens.timestamps]
