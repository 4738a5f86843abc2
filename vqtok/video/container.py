"""Open a source as an FFmpeg container that reads the source and nothing else."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Stream

from vqtok.errors import VqtokError, os_reason
from vqtok.video.hardware import current_context, find_hwaccel
from vqtok.video.source import InputFile, PathOrFile, display_name, open_source

# FFmpeg's names of the formats that may be read. All of them are contained in one file: playlists,
# session descriptions, manifests, devices and text are left out.
_VIDEOS = """
mov matroska avi flv live_flv kux asf asf_o wtv ogg mpeg mpegts mpegvideo rm mxf gxf nut dv dhav
h264 hevc vvc evc h261 h263 ivf obu av1 vc1 vc1test mjpeg mjpeg_2000 m4v dirac dnxhd cavsvideo avs2
avs3 apv hxvs yuv4mpegpipe cine bink smk flic apng gif jpegxl_anim
4xm anm avr avs bethsoftvid bfi bmv c93 cdxl dfa dsicin dxa ea ea_cdata film_cpk filmstrip frm
gdv hnm idcin iff ifv ingenient ipmovie ipu iss iv8 ivr jv lmlm4 lvf lxf mgsts mlv mm mods moflex
mpjpeg mtv mv mvi mxg nc nsv nuv paf pdv pmp psxstr pva r3d rl2 roq rpl ser sga siff simbiosis_imx
smjpeg smush swf thp tiertexseq tmv ty usm v210 v210x vividas vivo vmd wc3movie wsvqa xmv yop
"""
_IMAGES = """
image2 bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe fits gem_pipe gif_pipe hdr_pipe ico j2k_pipe
jpeg_pipe jpegls_pipe jpegxl_pipe jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe
pgmyuv_pipe pgx_pipe phm_pipe photocd_pipe pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe
qoi_pipe sgi_pipe sunrast_pipe tiff_pipe vbn_pipe webp_pipe xbm_pipe xpm_pipe xwd_pipe alias_pix
brender_pix
"""
_AUDIO = """
aa aac aax ac3 ac4 adx aea aiff amr amrnb amrwb ape aptx aptx_hd ast au binka bit caf daud dsf dts
dtshd eac3 flac g722 g729 gsm iamf ilbc ircam laf lc3 loas mlp mmf mp3 mpc mpc8 musx nistsphere oma
osq pvf qcp qoa rka sbc sds shn sln sox spdif svs tak truehd tta voc vqf w64 wav wsd wv xwma
"""
_OPTIONS = {
    "format_whitelist": ",".join(f"{_VIDEOS} {_IMAGES} {_AUDIO}".split()),
    "protocol_whitelist": "none",
    "pattern_type": "none",  # of image2: a name is no pattern
}


@contextmanager
def open_container(source: PathOrFile, hardware: str | None = None) -> Iterator[InputContainer]:
    """Open a container for reading. Nothing but the source is read, whatever it refers to.

    hardware: a device that decodes the video if it is available and supports the codec, such as
        cuda or cuda:1. Only files on disk are decoded by it.

    Raises VqtokError, naming the file and the reason.
    """
    with ExitStack() as stack:
        container = _open(source, stack)
        if hardware is not None and isinstance(source, str | os.PathLike):
            device = find_hwaccel(container, hardware)
            if device is not None:
                with suppress(VqtokError), current_context(hardware):  # no such device, no driver
                    accelerated = _open(source, stack, device)
                    container.close()
                    container = accelerated
        yield container


def _open(source: PathOrFile, stack: ExitStack, hwaccel: HWAccel | None = None) -> InputContainer:
    """Open a container, which the stack closes."""
    name = display_name(source)
    try:
        file = open_source(source, stack)
    except VqtokError:
        raise
    except (OSError, ValueError) as error:  # a path with a NUL, a closed file
        raise VqtokError(f"{name}: {os_reason(error)}") from error
    stack.callback(file.raise_interrupt)  # once the container is closed
    return stack.enter_context(_open_file(file, name, hwaccel))


def _open_file(file: InputFile, name: str, hwaccel: HWAccel | None) -> InputContainer:
    def refuse(*_: object) -> NoReturn:
        raise VqtokError(f"{name} refers to other files, which are not read: name the video itself")

    try:
        return av.open(
            file, "r", options=_OPTIONS, io_open=refuse, hwaccel=hwaccel, metadata_errors="replace"
        )
    except VqtokError:
        raise
    except (av.FFmpegError, ValueError, ArithmeticError) as error:  # the last two are PyAV's own
        raise VqtokError(f"{name} {_reason(file.head)}") from error
    except OSError as error:
        raise VqtokError(f"{name}: {os_reason(error)}") from error


def _reason(head: bytes) -> str:
    """Return why FFmpeg did not open a file that begins with `head`."""
    if not head:
        return "is empty"
    if head[:32].isascii() and b"\0" not in head:
        return "is not a video but text; playlists are not read: name the video itself"
    return "is not a video that FFmpeg can read"


def is_truncated(path: str | os.PathLike[str], format_name: str) -> bool:
    """Return True if a GIF lacks its trailer or a Matroska file is shorter than its header says.

    A Matroska file written as a stream does not store its length and is never called truncated.
    Other formats are not checked.
    """
    with Path(path).open("rb") as file:
        head, size = file.read(4096), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
    if format_name == "gif":
        return not tail.rstrip(b"\0\r\n").endswith(b";")
    if not format_name.startswith("matroska"):
        return False
    length_offset = head.find(b"\x18\x53\x80\x67") + 4  # the length follows the ID of the Segment
    if length_offset < 4 or len(head) < length_offset + 8:
        return False
    # An EBML length takes one byte more than its leading zero bits; all ones mean "unknown".
    width = 9 - head[length_offset].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[length_offset : length_offset + width], "big") & unknown
    return length != unknown and length_offset + width + length > size


def start_seconds(stream: Stream) -> Fraction | None:
    """Return the first presentation time of a stream in seconds, or None if it is unknown."""
    if stream.start_time is None or stream.time_base is None:
        return None
    return stream.start_time * stream.time_base
