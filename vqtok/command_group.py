"""The group of commands: an error is one sentence on stderr, and an exit code."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from vqtok.errors import (
    UsageError,
    VqtokError,
    describe_device_failure,
    is_device_failure,
    is_out_of_memory,
    os_message,
)
from vqtok.files import printable
from vqtok.interrupt import Interrupted
from vqtok.streams import finish_stdout


class Commands(TyperGroup):
    """The commands; errors become one sentence on stderr and an exit code.

    1 is bad data, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
    """

    def make_context(self, *args: Any, **options: Any) -> Any:
        with errors_as_sentences():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with errors_as_sentences():
            super().invoke(ctx)
            finish_stdout()


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error of the block as one sentence on stderr, and exit."""
    try:
        yield
    except UsageError as error:
        fail(error, 2)
    except VqtokError as error:
        fail(error, 1)
    except BrokenPipeError:  # its reader has what it wanted
        raise typer.Exit(1) from None
    except OSError as error:
        fail(os_message(error), 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Interrupted as error:
        is_ctrl_c = error.signal == signal.SIGINT
        name = "interrupted" if is_ctrl_c else f"stopped by {error.signal.name}"
        fail(name, 128 + error.signal)
    except (MemoryError, RuntimeError) as error:
        if is_device_failure(error):
            fail(describe_device_failure(error), 1)
        if not is_out_of_memory(error):
            raise
        fail("out of memory: try a smaller --size, or --device cpu", 1)
    except TyperException as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # private; its message is the help
            error.message = printable(error.message)
        raise


def fail(reason: object, code: int) -> None:
    """Print the reason on stderr and exit."""
    typer.echo(printable(f"vqtok: {reason}"), err=True)
    raise typer.Exit(code)
