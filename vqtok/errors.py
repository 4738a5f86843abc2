"""Errors that the user can fix, and errors as text. Any other exception is a bug."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from traceback import format_exception_only

MAX_REASONS = 5  # printed: the rest are most often the same

# What ends a command on purpose. All else that is raised while a file of many is processed is a
# failure of that file, even if it is no Exception, such as a panic of a library written in Rust.
INTERRUPTS = (KeyboardInterrupt, SystemExit, GeneratorExit)


# Parts of messages of PyTorch: a lack of memory, and CUDA's errors after which a process can use no
# GPU any more.
_OUT_OF_MEMORY = (
    *("out of memory", "allocate", "_ALLOC_FAILED", "_ALLOCATION_FAILED"),
    "could not create a primitive",
)
_DEVICE_FAILURES = (
    *("illegal memory access", "device-side assert", "illegal instruction", "misaligned address"),
    *("invalid program counter", "operation not supported on global/shared address space"),
    *("unspecified launch failure", "launch timed out", "hardware stack error", "uncorrectable"),
    *("no kernel image is available", "busy or unavailable", "driver shutting down"),
    *("CUDA error: unknown error", "GPU is lost", "fallen off the bus"),
)


class VqtokError(ValueError):
    """Bad data. The message is one sentence: what is wrong, in which file, and what to do."""


class UsageError(VqtokError):
    """Wrong usage, such as an option, a key or a value that does not exist."""


def os_reason(error: BaseException) -> str:
    """Return why the operating system or FFmpeg refused something, in lower case."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def os_message(error: OSError) -> str:
    """Return the file that an error of the operating system is about, if known, and the reason."""
    return f"{error.filename}: {os_reason(error)}" if error.filename else os_reason(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory, which PyTorch reports as a RuntimeError.

    That includes memory that cuBLAS, cuDNN or cuSOLVER asked for. oneDNN reports a tensor that is
    too large for it as "could not create a primitive".
    """
    if isinstance(error, RuntimeError):
        return any(reason in str(error) for reason in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


def is_device_failure(error: BaseException) -> bool:
    """Return whether an error leaves a GPU unusable: all later work of the process on it fails."""
    if not isinstance(error, RuntimeError):
        return False
    return any(reason in _first_line(error) for reason in _DEVICE_FAILURES)


@contextmanager
def name_file(path: object) -> Iterator[None]:
    """Let errors of the operating system in the block name this file, if they name none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def describe_device_failure(error: BaseException) -> str:
    """Return one sentence on the failure of a GPU: what CUDA reports, and what to do."""
    reason = _first_line(error).rstrip(".")
    return f"the GPU failed ({reason}): run the command again, or with --device cpu"


def _first_line(error: BaseException) -> str:
    """Return the reason in an error of CUDA; the lines below it are advice for programmers."""
    return str(error).partition("\n")[0]


def describe_failure(error: BaseException, file: object) -> str:
    """Return one sentence on why a file of many failed.

    It names the file, and the kind of an error that was not expected.
    """
    if isinstance(error, VqtokError):
        reason = str(error)
    elif is_out_of_memory(error):
        reason = "out of memory"
    elif is_device_failure(error):
        reason = describe_device_failure(error)
    elif isinstance(error, OSError):
        reason = os_message(error)
    else:
        reason = " ".join("".join(format_exception_only(error)).split())
    return reason if reason.startswith(str(file)) else f"{file}: {reason}"


def join_reasons(reasons: Sequence[str], count: int) -> str:
    """Return the first of the reasons as one text, and how many of the `count` it leaves out."""
    first = reasons[:MAX_REASONS]
    more = count - len(first)
    return "; ".join([*first, f"and {more} more"] if more else first)
