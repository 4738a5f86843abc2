"""Encode and decode clips without a model, to test reading and writing alone."""

import io

import torch

from vqtok.model.batching import Batcher
from vqtok.pipeline.clip import decode_clip, encode_clip
from vqtok.tokens import read_tokens, tokens_to_bytes
from vqtok.video import open_video


class LosslessTokenizer:
    """A Tokenizer whose indices are the colors of the pixels."""

    stride, codebook_size, kind, fingerprint = (1, 1, 1), 2**24, "lossless", "0" * 64
    zero_code = False
    stages = keyframe_interval = 1
    device = torch.device("cpu")
    batcher = Batcher(1, device)

    def chunk_frames(self, height, width):
        return 2

    def encode_stream(self, chunks, rate, keyframe_interval):
        for chunk in chunks:  # (1 c t h w) uint8
            yield (chunk.long() * torch.tensor([65536, 256, 1]).view(1, 3, 1, 1, 1)).sum(1)

    def decode_stream(self, chunks, keyframe_interval):
        for indices in chunks:  # (1 t h w)
            yield torch.stack([indices >> 16, indices >> 8 & 255, indices & 255], 1) / 255


def round_trip(source, target, audio_from=None, codec=None, crf=None, **options):
    """Encode `source` to a token file and decode it to `target`: the tokens, and decoding notes."""
    with open_video(source, **options) as clip:
        data = tokens_to_bytes(encode_clip(clip, LosslessTokenizer()))
    tokens = read_tokens(io.BytesIO(data))
    output = {"codec": codec, "crf": crf, "audio_from": audio_from}
    return tokens, decode_clip(tokens, LosslessTokenizer(), target, **output)


def expected_seconds(tokens):
    """Return when each frame should be shown in the decoded video."""
    return [(timestamp - tokens.origin) * tokens.time_base for timestamp in tokens.timestamps]
