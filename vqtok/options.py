"""Options that commands share, and checks of options that need neither PyTorch nor PyAV."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vqtok.errors import UsageError
from vqtok.files import is_pattern

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A bundled name, or a file written by `vqtok train`.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16 (default: bfloat16 where it is fast)."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail on damaged frames and broken timestamps.")
]
JobsOption = Annotated[
    int, typer.Option("--jobs", min=1, max=256, help="Files to process at once.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SizeOption = Annotated[
    int | None, typer.Option(min=1, help="Scale the short side to this many pixels.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Also print the device, the decoder and timings.")
]


def check_verbosity(quiet: bool, verbose: bool) -> None:
    """Raise UsageError if both --quiet and --verbose are given."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")


def output_folder(sources: Sequence[str], output: str | None) -> Path | None:
    """Return the output folder of a batch, or None for a single source and output file.

    A batch has several sources, a folder or a pattern as its source, or a folder as its output.
    Raises UsageError if a batch has no folder to write to.
    """
    if len(sources) > 1 or Path(sources[0]).is_dir() or is_pattern(sources[0]):
        return check_folder(output)
    return Path(output) if output is not None and Path(output).is_dir() else None


def check_folder(output: str | None) -> Path:
    """Return the output as a folder, which need not exist; raise UsageError if it cannot be one."""
    if output is None or output == "-":
        raise UsageError("several files need an output folder: -o FOLDER")
    if Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"{output} is a file: choose a folder")
    return Path(output)


def check_output(output: str | None, force: bool, hint: str) -> None:
    """Raise UsageError if binary data would go to a terminal or overwrite a file.

    hint: what to do instead of writing to a terminal.
    """
    if output is None or output == "-":
        if sys.stdout.isatty():
            raise UsageError(f"refusing to write binary data to the terminal: {hint}")
    elif Path(output).exists() and not force:
        raise UsageError(f"{output} exists: --force overwrites it")
    elif not Path(output).parent.is_dir():
        raise UsageError(f"{Path(output).parent}: no such folder")
