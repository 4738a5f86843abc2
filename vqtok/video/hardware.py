"""Decoding by hardware: which streams, in which CUDA context, and what differs in its frames."""

from collections.abc import Iterator
from contextlib import contextmanager

from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vqtok.video.cropping import Cropping
from vqtok.video.images import is_heif_picture

# Codecs that NVDEC decodes to the same pixels as FFmpeg's software decoder, in these formats.
_CODECS = {"h264", "hevc", "vp9"}
_PIX_FMTS = {"yuv420p", "yuv420p10le"}

# The formats in which PyAV downloads frames from hardware.
_DOWNLOADED_FORMATS = {"nv12", "p010le"}


def find_hwaccel(container: InputContainer, hardware: str) -> HWAccel | None:
    """Return the device that can decode the video of a container, or None.

    hardware: such as cuda or cuda:1.
    """
    device_type, _, index = hardware.partition(":")
    stream = container.streams.best("video")
    if is_heif_picture(container):  # each tile would have a decoder of its own
        return None
    if device_type not in hwdevices_available() or not isinstance(stream, VideoStream):
        return None
    context = stream.codec_context
    if context is None or context.name not in _CODECS or context.pix_fmt not in _PIX_FMTS:
        return None
    if device_type != "cuda":
        return HWAccel(device_type, index or None)
    if int(index or 0) >= _cuda_devices():
        return None
    return HWAccel(device_type, index or None, options={"current_ctx": "1"})


def _cuda_devices() -> int:
    import torch  # here: reading needs it for CUDA only

    return torch.cuda.device_count()


@contextmanager
def current_context(hardware: str) -> Iterator[None]:
    """Make torch's context of a CUDA device that of this thread, for decoders opened in the block.

    A decoder would otherwise create a context of its own, which takes about 400 MB and a good part
    of a second for each clip. It must exist by then: if there is no current context, FFmpeg opens
    the decoder but decodes in software. FFmpeg leaves the context alone when it closes the decoder.
    """
    if not hardware.startswith("cuda"):
        yield
        return
    import torch

    with torch.cuda.device(hardware):
        torch.zeros(1, device=hardware)  # creates the context, or makes it current in this thread
        yield


def is_from_hardware(frame: VideoFrame) -> bool:
    """Return whether a frame of a hardware decoder was decoded by the hardware.

    If it cannot decode a stream after all, frames come in the stream's own format.
    """
    return frame.format.name in _DOWNLOADED_FORMATS


def remaining_cropping(frame: VideoFrame, context: VideoCodecContext) -> Cropping:
    """Return what is left to cut off the frames of a hardware decoder, given its first one.

    Of the cropping that a stream asks for, FFmpeg applies only that at the right and the bottom to
    frames on hardware. The rest is by how much they are larger than the context's size.
    """
    top, left = frame.height - context.height, frame.width - context.width
    return Cropping(top=max(0, top), left=max(0, left))
