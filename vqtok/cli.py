"""The command line: each command checks, calls one function, prints. stdout carries data only."""

import json
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vqtok import DEFAULT
from vqtok.errors import UsageError, VqtokError

if TYPE_CHECKING:
    from vqtok.tokens import Tokens

# Whatever is slow to import (torch, av, rich) is imported inside the commands: --help stays fast.


class Commands(TyperGroup):
    """All commands; failures are one sentence and exit 1 (bad data), 2 (usage) or 130 (Ctrl-C)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            fail(error, 2)
        except VqtokError as error:
            fail(error, 1)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            fail(f"{error.filename}: {reason}" if error.filename else reason, 1)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except (MemoryError, RuntimeError) as error:  # torch says so with a RuntimeError
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            fail("out of memory: try a smaller --size, or --device cpu", 1)


def fail(reason: object, code: int) -> None:
    """Say why on stderr and leave with an exit code."""
    typer.echo(f"vqtok: {reason}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A video tokenizer: any video to a grid of integers, and back.",
)

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="A file made by `vqtok train`, or a bundled name.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16 [default: bfloat16 where it is fast]."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail if frames are damaged or timestamps broken.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


@app.command()
def encode(
    clip: Annotated[str, typer.Argument(help="A video or an image; - reads a pipe.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Token file [default: stdout].")
    ] = None,
    tokenizer: TokenizerOption = DEFAULT,
    size: Annotated[
        int | None, typer.Option(min=1, help="Scale the short side to this many pixels.")
    ] = None,
    fps: Annotated[str | None, typer.Option(help="Frame rate, such as 24 or 30000/1001.")] = None,
    start: Annotated[float, typer.Option(min=0, max=1e9, help="Seconds to skip.")] = 0.0,
    duration: Annotated[float | None, typer.Option(min=0, max=1e9, help="Seconds to take.")] = None,
    strict: StrictOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn a video into tokens: vqtok encode clip.mp4 > tokens.safetensors"""
    rate = frame_rate(fps)
    check_output(output, force, "redirect it (> tokens.safetensors) or give -o FILE")
    check_dtype(dtype)

    from vqtok import pipeline, tokens
    from vqtok.terminal import progress, say
    from vqtok.video import open_video

    model = pipeline.load_tokenizer(tokenizer, device, dtype)
    begin = time.perf_counter()
    source = sys.stdin.buffer if clip == "-" else clip
    with open_video(source, size=size, fps=rate, start=start, duration=duration) as video:
        left = max(0.0, (video.duration or 0) - start)
        total = round(min(left, duration or left) * float(video.fps)) or None
        with progress(quiet, "encoding", total) as advance:
            result = pipeline.encode_clip(video, model, advance)
    if strict and video.damage:
        raise VqtokError(f"{clip}: {', '.join(video.damage)} (without --strict it goes on)")
    if output in (None, "-"):
        sys.stdout.buffer.write(tokens.to_bytes(result))
        sys.stdout.buffer.flush()
    else:
        tokens.write(output, result)
    say(quiet, *video.notes, encode_summary(clip, result, time.perf_counter() - begin))


@app.command()
def decode(
    tokens: Annotated[str, typer.Argument(help="A token file; - reads a pipe.")],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help=".mp4 .mkv .webm .mov or .gif, .png or .jpg of one frame; - for a stream (mkv).",
        ),
    ],
    tokenizer: TokenizerOption = DEFAULT,
    crf: Annotated[
        int | None, typer.Option(min=0, max=63, help="Quality of the video codec; lower is better.")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Video codec, such as ffv1 (lossless).")] = None,
    audio_from: Annotated[
        Path | None, typer.Option(help="Copy the sound of this video over.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn tokens back into a video: vqtok decode tokens.safetensors -o clip.mp4"""
    check_output(output, force, "redirect it or give -o FILE")
    check_dtype(dtype)

    from vqtok import pipeline
    from vqtok import tokens as token_file
    from vqtok.terminal import progress, say

    source = sys.stdin.buffer if tokens == "-" else tokens
    content = token_file.read(source)
    model = pipeline.load_tokenizer(tokenizer, device, dtype)
    begin = time.perf_counter()
    target = sys.stdout.buffer if output == "-" else Path(output)
    with progress(quiet, "decoding", content.frames) as advance:
        notes = pipeline.decode_clip(content, model, target, advance, codec, crf, audio_from)
    speed = content.frames / (time.perf_counter() - begin)
    say(
        quiet,
        *notes,
        f"{output}: {content.frames} frames of {content.height}x{content.width} "
        f"at {float(content.fps):.6g} frames/s, decoded at {speed:.1f} frames/s",
    )


@app.command()
def train(
    files: Annotated[
        list[Path] | None, typer.Argument(help="More training data, as with --data.")
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option(help="vq2, ema, gumbel, lfq or fsq [default: fsq].")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Videos, stills or folders of them [default: clips made from nothing]."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file [default: configs/QUANTIZER.toml].")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, such as train.batch_size=4."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run [default: a new one in runs/].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop here; the schedule's length is train.steps.")
    ] = None,
    device: DeviceOption = "auto",
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Train a tokenizer: vqtok train --quantizer lfq --data my_videos/"""
    if resume is not None and (quantizer or config or set_ or out):
        raise UsageError("--resume goes on with the run's own settings; leave the others out")

    from vqtok import runs
    from vqtok.pipeline import find_device
    from vqtok.report import TrainingView
    from vqtok.terminal import console, say
    from vqtok.train import train as run_training

    where = find_device(device)
    sources = [*(data or []), *(files or [])]
    if resume is not None:
        run = runs.reopen(resume, sources)
    else:
        run = runs.create(out, quantizer, config, set_ or [], sources)
    if not run.sources:
        say(
            quiet,
            "no --data: training on moving patterns made up on the spot, good for a trial only",
        )
    clips, view = run.clips(), TrainingView(console(quiet), run.settings.train)
    try:
        with view.open(steps or run.settings.train.steps):
            run_training(run, clips, where, view.show, steps)
    finally:
        say(quiet, *(f"left out: {reason}" for reason in clips.broken.values()))
    say(quiet, f"{run.folder / 'tokenizer.safetensors'} is ready: use it with --tokenizer")


@app.command()
def stats(
    files: Annotated[list[str], typer.Argument(help="Token files; - reads a pipe.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same numbers for machines.")] = False,
) -> None:
    """Report how a codebook is used: vqtok stats tokens.safetensors"""
    from vqtok import report, tokens

    sources = ((f, tokens.read(sys.stdin.buffer if f == "-" else f)) for f in files)
    summary = report.summarize(sources)
    if as_json:
        typer.echo(json.dumps(summary.numbers(), indent=2))
    else:
        from rich.console import Console

        Console().print(summary.tables())


def frame_rate(text: str | None) -> Fraction | None:
    """What --fps says; UsageError if it is no positive number."""
    try:
        rate = None if text is None else Fraction(text).limit_denominator(1_000_000)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate is not None and not 0 < rate <= 1000:
        raise UsageError(f"--fps {text}: write a number up to 1000, such as 24 or 30000/1001")
    return rate


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


def encode_summary(clip: str, tokens: "Tokens", elapsed: float) -> str:
    """One line on what went in and what came out."""
    from vqtok.metrics import bits_per_pixel

    pixels = tokens.frames * tokens.height * tokens.width
    bits = bits_per_pixel(tokens.indices.size, tokens.codebook_size, pixels)
    return (
        f"{clip}: {tokens.frames} frames of {tokens.height}x{tokens.width} at "
        f"{float(tokens.fps):.6g} frames/s -> {'x'.join(map(str, tokens.indices.shape))} tokens of "
        f"{tokens.codebook_size:,}, {bits:.4f} bits per pixel, encoded at "
        f"{tokens.frames / elapsed:.1f} frames/s"
    )


def main() -> None:
    """The `vqtok` command."""
    app()
