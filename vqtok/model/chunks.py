"""How a clip is cut into chunks for the model."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

CHUNK = 2  # latent frames per chunk on a CPU, where more are no faster
LONG_CHUNK = 8  # on other devices, where launching a layer takes as long as a small chunk does
LARGE = 2**16  # positions of a chunk; of more, it has a single latent frame, to bound memory


def chunk_length(device: torch.device, height: int, width: int) -> int:
    """Return the latent frames per chunk for latents of this height and width.

    It depends on nothing else, so that a clip gives the same tokens every time.
    """
    positions = height * width
    if device.type == "cpu":
        return 1 if positions > LARGE else CHUNK
    return max(1, min(LONG_CHUNK, LARGE // positions))


def rechunk(
    chunks: Iterable[Tensor], stride: int, chunk_frames: Callable[[int, int], int]
) -> Iterator[Tensor]:
    """Cut a clip (b c t h w) anew, so that each chunk but the last is a whole one.

    stride: in time. The first chunk has 1 frame in place of the first `stride` ones.
    chunk_frames: returns the frames of the other chunks, given height and width.
    """
    waiting: list[Tensor] = []
    step = missing = 0  # frames per chunk, and those still missing in this one
    for chunk in chunks:
        if not step:
            step = chunk_frames(*chunk.shape[3:])
            missing = 1 + step - stride
        while chunk.shape[2] >= missing:
            yield torch.cat([*waiting, chunk[:, :, :missing]], dim=2)
            chunk, waiting, missing = chunk[:, :, missing:], [], step
        waiting.append(chunk)
        missing -= chunk.shape[2]
    if any(part.shape[2] for part in waiting):
        yield torch.cat(waiting, dim=2)


def split_chunks(indices: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Return the chunks of indices (b t h w ...) that are decoded at once on a device."""
    return indices.split(chunk_length(device, *indices.shape[2:4]), dim=1)


def repeat_edges(video: Tensor, front: int, step: int) -> Tensor:
    """Return the video (b c t h w) with its first frame repeated `front` times.

    The last frame is repeated until there are a multiple of `step` frames.
    """
    back = -(front + video.shape[2]) % step
    if not front and not back:
        return video
    first, last = (
        video[:, :, i, None].expand(-1, -1, n, -1, -1) for i, n in ((0, front), (-1, back))
    )
    return torch.cat([first, video, last], dim=2)
