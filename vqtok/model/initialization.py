"""Initial weights from data: the best linear codec."""

import torch
from torch import Tensor

from vqtok.model.layers import CausalConv3d, DepthToSpace, principal_components, tail_std
from vqtok.model.tokenizer import Tokenizer

MIN_STD = 0.1  # of a channel that is scaled alone; less is noise, as in a video of one color


@torch.no_grad()
def init_from_data(tokenizer: Tokenizer, video: Tensor) -> None:
    """Initialize a tokenizer as the best linear codec for clips (b 3 t h w): principal components.

    Residual blocks start as identities, so only the convolutions between them are set. The
    latents are then uncorrelated. If the quantizer rounds channels on their own, each is scaled
    so that it reaches the outer levels. Otherwise they have unit variance on average over the
    channels, so that distances between latents are proportional to those between pixels.
    """
    x, stages = tokenizer.pad(video, first=True), []
    convolutions = [m for m in tokenizer.encoder if isinstance(m, CausalConv3d)]
    for conv in convolutions:
        components, mean = principal_components(conv.patches(x))
        basis = components[: conv.out_channels]  # (m k)
        conv.weight[: len(basis)] = basis.view(-1, *conv.weight.shape[1:])
        assert conv.bias is not None
        conv.bias[: len(basis)] = -basis @ mean
        stages.append((basis, mean))
        x = conv(x)
    over = (0, 2, 3, 4)
    if tokenizer.coder.quantizer.per_channel:
        std = tail_std(x, over).clamp(min=MIN_STD)
    else:
        std = (
            x.var(over, correction=0, keepdim=True)
            .mean()
            .sqrt()
            .clamp(min=MIN_STD)
            .expand(1, x.shape[1], 1, 1, 1)
        )
    convolutions[-1].weight.div_(std.view(-1, 1, 1, 1, 1))
    assert convolutions[-1].bias is not None
    convolutions[-1].bias.div_(std.flatten())
    z = x / std
    z_q = tokenizer.coder.init_from_data(z)
    # Least squares: z is about gain * z_q + offset.
    center = z_q.mean(over, keepdim=True)
    deviation = z_q - center
    gain = (z * deviation).sum(over) / deviation.square().sum(over).clamp(min=1e-6)
    rank = len(basis)  # fewer than channels, if the latents are wider than the network
    scale, shift = ((v * std.flatten())[:rank] for v in (gain, -gain * center.flatten()))
    stages[-1] = scale[:, None] * basis, mean + shift @ basis
    inverses = [m for m in tokenizer.decoder if isinstance(m, DepthToSpace)]
    for inverse, (basis, mean) in zip(inverses, reversed(stages), strict=True):
        inverse.init_as_inverse(basis, mean)
