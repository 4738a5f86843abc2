"""The `vqtok` command, also with `python -m vqtok`."""

import gc
import os

from vqtok.interrupt import raise_on_signals
from vqtok.streams import prepare_streams

# New objects before the garbage collector looks for cycles. With Python's own 700 to 2,000, it goes
# over the modules of torch again and again while they are imported, and frees nothing.
GC_THRESHOLD = 10_000


def main() -> None:
    """Run the command line."""
    prepare_streams()
    raise_on_signals()
    gc.set_threshold(GC_THRESHOLD)
    from vqtok.cli import app  # only now: Ctrl-C during slow imports is no traceback

    try:
        app(prog_name="vqtok")  # the name in help and completion, also under `python -m vqtok`
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:  # interrupted, and cleaned up
            os._exit(end.code)  # a thread that is blocked would keep the process alive
        raise


if __name__ == "__main__":
    main()
