"""Command-line options, and checks of them that need neither PyTorch nor PyAV."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vqtok.encoding import Rate
from vqtok.errors import UsageError
from vqtok.export.layout import Layout
from vqtok.files import check_not_empty, is_list, is_pattern
from vqtok.targets import (
    File,
    check_apart,
    check_overwrite,
    check_targets,
    check_writable,
    check_writable_folder,
    tokenizer_file,
)

PLOT_SUFFIXES = (".png", ".svg")

# Shared by several commands.
Tokenizer = Annotated[
    str,
    typer.Option(
        "--tokenizer", help="A bundled name, a file written by `vqtok train`, or hf:org/name."
    ),
]
Size = Annotated[int | None, typer.Option(min=1, help="Scale the short side to this many pixels.")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, max=256, help="Files to process at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16 (default: bfloat16 where it is fast)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Also print the device, the decoder and timings.")
]

# Options of `encode`.
TokensOutput = Annotated[
    str | None,
    typer.Option("-o", "--output", help="Token file, or a folder for several (default: stdout)."),
]
Fps = Annotated[
    str | None, typer.Option(help="Resample to this frame rate, such as 24 or 30000/1001.")
]
Start = Annotated[float, typer.Option(min=0, max=1e9, help="Seconds to skip.")]
Duration = Annotated[float | None, typer.Option(min=0, max=1e9, help="Seconds to encode.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail on damaged frames and broken timestamps.")
]
KeepPartial = Annotated[
    bool, typer.Option("--keep-partial", help="On Ctrl-C or SIGTERM, write the tokens so far.")
]
Lambda = Annotated[
    float | None,
    typer.Option("--lambda", metavar="PRICE", help="Price of a token; higher is fewer tokens."),
]
TokensPerPosition = Annotated[
    float | None, typer.Option("--tokens", help="Tokens per position to spend on average.")
]
Psnr = Annotated[float | None, typer.Option("--psnr", help="PSNR in dB to keep throughout.")]
KeyframeInterval = Annotated[
    int | None,
    typer.Option(min=1, help="Latent frames from one key frame to the next (1: all are)."),
]

# Arguments of `decode` and `export`.
TokenSources = Annotated[
    list[str],
    typer.Argument(
        help="Token files, folders, packed corpora, glob patterns, @LIST, or - for stdin."
    ),
]

# Options of `decode`.
VideoOutput = Annotated[
    str,
    typer.Option(
        "-o",
        "--output",
        help=".mp4 .mkv .webm .mov or .gif, .png or .jpg for one frame; - for stdout (mkv); "
        "a folder for several.",
    ),
]
Crf = Annotated[
    int | None, typer.Option(min=0, max=63, help="Quality of the video codec; lower is better.")
]
Codec = Annotated[str | None, typer.Option(help="Video codec, such as ffv1 (lossless).")]
Audio = Annotated[Path | None, typer.Option("--audio-from", help="Copy the audio of this video.")]

# Options of `eval`.
Frames = Annotated[
    int,
    typer.Option(min=1, max=100_000, help="Measure this many frames from the start of each clip."),
]
Lambdas = Annotated[
    str | None,
    typer.Option("--lambda", metavar="PRICES", help="Measure at these prices, such as 0.5,1,2."),
]
TokensPerPositionList = Annotated[
    str | None,
    typer.Option(
        "--tokens",
        metavar="NUMBERS",
        help="Measure at these tokens per position, such as 0.4,0.6,1.",
    ),
]
PsnrList = Annotated[
    str | None,
    typer.Option("--psnr", metavar="DECIBELS", help="Measure at these PSNR, such as 30,32."),
]
Save = Annotated[
    Path | None,
    typer.Option(help="Folder for videos with clip (left) and reconstruction (right)."),
]

# Options of `stats`.
StatsTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="Encodes clips and knows FSQ levels; without FILES, shows its codebook."
    ),
]
Each = Annotated[bool, typer.Option("--each", help="One column per FILE instead of per tokenizer.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV, one line per column.")]
Plot = Annotated[Path | None, typer.Option(help="Write a plot, .png or .svg (extra: plot).")]
Watch = Annotated[Path | None, typer.Option(help="Follow the training run in a folder.")]

# Options of `export`.
To = Annotated[Layout, typer.Option(help="Layout of other projects to write.")]
ExportOutput = Annotated[str, typer.Option("-o", "--output", help="Folder to write to.")]


def check_verbosity(quiet: bool, verbose: bool) -> None:
    """Raise UsageError if both --quiet and --verbose are given."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")


def check_sources(sources: Sequence[str] | None) -> list[str]:
    """Return the inputs of a command; raise UsageError if there are none, or stdin is closed."""
    if not sources:
        raise UsageError("nothing to encode: name videos, folders or patterns, or - for stdin")
    check_stdin(sources)
    return list(sources)


def parse_rate(price: float | None, tokens: float | None, psnr: float | None) -> Rate:
    """Return the rate of --lambda, --tokens or --psnr. UsageError for several, or out of range."""
    if [price, tokens, psnr].count(None) < 2:
        raise UsageError("--lambda, --tokens and --psnr exclude each other")
    return Rate(price, tokens, psnr)


def parse_numbers(text: str | None) -> list[float]:
    """Return the numbers of a list such as 0.4,0.6; none for None. UsageError if it is not one."""
    if text is None:
        return []
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{text} is not a list of numbers such as 0.4,0.6,1") from None


def check_stdin(sources: Sequence[str]) -> None:
    """Raise UsageError if a source is stdin (-) and that is closed."""
    if "-" in sources and sys.stdin is None:
        raise UsageError("stdin is closed: redirect it (< FILE) or name a file instead of -")


def check_stdout() -> None:
    """Raise UsageError if stdout is closed: what is printed there would vanish."""
    if sys.stdout is None:
        raise UsageError("stdout is closed: redirect it (> FILE)")


def output_folder(sources: Sequence[str], output: str | None) -> Path | None:
    """Return the output folder of a batch, or None for a single source and output file.

    A batch has several sources, a folder, a pattern or a list as its source, or a folder as its
    output: one that exists, or a name that ends in a slash.
    Raises UsageError if a batch has no folder to write to, or if that is one of the sources.
    """
    check_not_empty(output, "the output")
    check_not_empty(sources[0], "an input")
    is_batch = len(sources) > 1 or is_list(sources[0]) or is_pattern(sources[0])
    is_batch = is_batch or Path(sources[0]).is_dir()
    is_folder = output is not None and (output.endswith("/") or Path(output).is_dir())
    if not is_batch and not is_folder:
        return None
    folder = check_folder(output)
    check_apart(folder, sources)
    return folder


def check_folder(output: str | None) -> Path:
    """Return the output as a folder, which need not exist; raise UsageError if it cannot be one."""
    if output is None or output == "-":
        raise UsageError("several files need an output folder, which is not stdout: -o FOLDER")
    check_writable_folder(output)
    return Path(output)


def check_output(output: str | None, inputs: Sequence[File], force: bool) -> None:
    """Raise UsageError if binary data would go to a terminal or overwrite a file.

    inputs: files that are read, which even `force` does not overwrite; - is stdin.
    """
    files = [sys.stdin if file == "-" else file for file in inputs]
    if output is None or output == "-":
        check_targets([sys.stdout], files)
        check_stdout()
        if sys.stdout.isatty():
            hint = "redirect it (> FILE) or use -o FILE"
            raise UsageError(f"refusing to write binary data to the terminal: {hint}")
    else:
        check_targets([output], files)
        check_file(Path(output), force)


def check_tokens_output(
    folder: Path | None,
    output: str | None,
    clips: Sequence[str],
    tokenizer: str,
    force: bool,
    keep_partial: bool,
) -> None:
    """Check where `encode` writes one clip, as `check_output`, or many, to a folder.

    clips, tokenizer: what is read. keep_partial: UsageError for many clips.
    """
    if folder is None:
        check_output(output, [*clips, tokenizer_file(tokenizer)], force)
    elif keep_partial:
        raise UsageError("--keep-partial is for a single clip: a batch resumes where it stopped")


def check_status(folder: str | None) -> Path:
    """Return the folder of the corpus that --status is about; raise UsageError if none is named."""
    check_stdout()
    if folder is None:
        raise UsageError("--status is about a corpus: name its folder with -o FOLDER")
    return Path(folder)


def check_file(path: Path, force: bool) -> None:
    """Raise UsageError if a file may not be overwritten, or cannot be written."""
    check_overwrite(path, force)
    check_writable(path)


def check_export(layout: Layout, sources: Sequence[str], output: str) -> Path:
    """Return the folder to export to; raise UsageError if the layout cannot be written there."""
    check_not_empty(output, "the output")
    folder = check_folder(output)
    check_apart(folder, sources)
    if layout is Layout.PARQUET and find_spec("pyarrow") is None:
        raise UsageError("--to parquet needs pyarrow: pip install pyarrow")
    return folder


def check_plot(path: Path, inputs: Sequence[File], force: bool) -> None:
    """Raise UsageError if a plot could not be written to `path`, or may not overwrite it.

    inputs: as in `check_output`.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot {path}: must end in {' or '.join(PLOT_SUFFIXES)}")
    check_targets([path], inputs)
    check_file(path, force)
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install matplotlib")
