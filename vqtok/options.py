"""Options that commands share, and the checks that need neither a tensor nor a video."""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from vqtok.errors import UsageError
from vqtok.files import OUTPUT_SUFFIXES

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A file made by `vqtok train`, or a bundled name.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16 (default: bfloat16 where it is fast)."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail if frames are damaged or timestamps broken.")
]
JobsOption = Annotated[
    int, typer.Option("--jobs", min=1, max=256, help="Clips worked on at once, of many.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The same numbers for machines.")]
SizeOption = Annotated[
    int | None, typer.Option(min=1, help="Scale the short side to this many pixels.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", help="Say what runs where, and what takes the time.")
]


def frame_rate(text: str | None) -> Fraction | None:
    """What --fps says; UsageError if it is no positive number."""
    try:
        rate = None if text is None else Fraction(text).limit_denominator(1_000_000)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate is not None and not 0 < rate <= 1000:
        raise UsageError(f"--fps {text}: write a number up to 1000, such as 24 or 30000/1001")
    return rate


def check_talk(quiet: bool, verbose: bool) -> None:
    """UsageError if both --quiet and --verbose are given."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose: give one of them")


def check_dtype(name: str | None) -> None:
    """UsageError if --dtype names another type than the two there are."""
    if name not in (None, "float32", "bfloat16"):
        raise UsageError(f"--dtype {name}: must be float32 or bfloat16")


def check_output(output: str | None, force: bool, instead: str) -> None:
    """UsageError if data would go to a terminal or over a file that is already there."""
    if output in (None, "-"):
        if sys.stdout.isatty():
            raise UsageError(f"this would print binary data to your terminal: {instead}")
    elif Path(output).exists() and not force:
        raise UsageError(f"{output} exists: --force overwrites it")
    elif not Path(output).parent.is_dir():
        raise UsageError(f"{Path(output).parent}: no such folder")


def check_folder(output: str | None) -> Path:
    """The folder that many clips go to; UsageError if it is none."""
    if output in (None, "-"):
        raise UsageError("many clips need a folder: -o FOLDER")
    if Path(output).exists() and not Path(output).is_dir():
        raise UsageError(f"{output} is a file: give a folder")
    return Path(output)


def video_name(tokens: str) -> str:
    """What many token files are decoded to: clip.mp4.safetensors to clip.mp4, others to .mp4."""
    name = tokens.removesuffix(".safetensors")
    return name if Path(name).suffix.lower() in OUTPUT_SUFFIXES else f"{name}.mp4"
