"""The command line: each command checks, calls one function, prints. stdout carries data only."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vqtok import DEFAULT
from vqtok.commands import batch
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES
from vqtok.options import (
    CompileOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JobsOption,
    JsonOption,
    QuietOption,
    SizeOption,
    StrictOption,
    TokenizerOption,
    VerboseOption,
    check_dtype,
    check_folder,
    check_output,
    check_talk,
    frame_rate,
    video_name,
)

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
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                fail("--compile failed: it needs a working C++ compiler (on CUDA: Triton)", 2)
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


@app.command()
def encode(
    clips: Annotated[
        list[str], typer.Argument(help="A video or an image, - for a pipe; or many, or folders.")
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Token file, a folder for many (default: stdout)."),
    ] = None,
    tokenizer: TokenizerOption = DEFAULT,
    size: SizeOption = None,
    fps: Annotated[str | None, typer.Option(help="Frame rate, such as 24 or 30000/1001.")] = None,
    start: Annotated[float, typer.Option(min=0, max=1e9, help="Seconds to skip.")] = 0.0,
    duration: Annotated[float | None, typer.Option(min=0, max=1e9, help="Seconds to take.")] = None,
    strict: StrictOption = False,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="On Ctrl-C, keep what is encoded of one clip.")
    ] = False,
    jobs: JobsOption = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    compile: CompileOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn videos into tokens: vqtok encode clip.mp4 > tokens.safetensors"""
    rate = frame_rate(fps)
    check_dtype(dtype)
    check_talk(quiet, verbose)
    many = batch.is_many(clips, output)
    if many:
        folder = check_folder(output)
        if keep_partial:
            raise UsageError("--keep-partial is for one clip: many go on where they stopped")
        todo = batch.jobs(clips, folder, MEDIA_SUFFIXES, "{}.safetensors".format)
    else:
        check_output(output, force, "redirect it (> tokens.safetensors) or give -o FILE")

    from vqtok.commands.encode import EncodeOptions, RunOptions, encode_many, encode_one

    running = RunOptions(tokenizer, device, dtype, compile, jobs, quiet, verbose)
    how = EncodeOptions(size, rate, start, duration, strict, keep_partial)
    if many:
        encode_many(todo, folder, running, how, force)
    else:
        encode_one(clips[0], output, running, how)


@app.command()
def decode(
    tokens: Annotated[
        list[str], typer.Argument(help="A token file, - for a pipe; or many, or folders.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help=".mp4 .mkv .webm .mov or .gif, .png or .jpg of one frame; - for a stream (mkv); "
            "a folder for many.",
        ),
    ],
    tokenizer: TokenizerOption = DEFAULT,
    crf: Annotated[
        int | None,
        typer.Option(min=0, max=63, help="EvalResult of the video codec; lower is better."),
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Video codec, such as ffv1 (lossless).")] = None,
    audio_from: Annotated[
        Path | None, typer.Option(help="Copy the sound of this video over.")
    ] = None,
    jobs: JobsOption = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    compile: CompileOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn tokens back into videos: vqtok decode tokens.safetensors -o clip.mp4"""
    check_dtype(dtype)
    check_talk(quiet, verbose)
    many = batch.is_many(tokens, output)
    if many:
        folder = check_folder(output)
        if audio_from is not None:
            raise UsageError("--audio-from is for one clip: decode the files one by one")
        todo = batch.jobs(tokens, folder, {".safetensors"}, video_name)
    else:
        check_output(output, force, "redirect it or give -o FILE")

    from vqtok.commands.encode import DecodeOptions, RunOptions, decode_many, decode_one

    running = RunOptions(tokenizer, device, dtype, compile, jobs, quiet, verbose)
    how = DecodeOptions(codec, crf, audio_from)
    if many:
        decode_many(todo, folder, running, how, force)
    else:
        decode_one(tokens[0], output, running, how)


@app.command()
def train(
    files: Annotated[
        list[Path] | None, typer.Argument(help="More training data, as with --data.")
    ] = None,
    quantizer: Annotated[
        str | None, typer.Option(help="vq2, ema, gumbel, lfq or fsq (default: fsq).")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Videos, stills or folders of them (default: clips made from nothing)."),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Videos to measure on (default: every 20th file of --data)."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for decoded clips, for all runs (default: memory)."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file (default: configs/QUANTIZER.toml).")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, such as train.batch_size=4."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: a new one in runs/).")
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

    from vqtok.commands.train import TrainOptions, run_training

    run_training(
        TrainOptions(
            sources=[*(data or []), *(files or [])],
            validation=validation or [],
            cache=cache,
            quantizer=quantizer,
            config=config,
            overrides=set_ or [],
            out=out,
            resume=resume,
            last_step=steps,
            device=device,
            quiet=quiet,
        )
    )


@app.command("eval")
def evaluate(
    clips: Annotated[list[str], typer.Argument(help="Videos or images, or folders of them.")],
    tokenizer: TokenizerOption = DEFAULT,
    size: SizeOption = None,
    frames: Annotated[int, typer.Option(min=1, help="Measure the first so many of a clip.")] = 33,
    save: Annotated[
        Path | None,
        typer.Option(help="Folder for videos: a clip on the left, what came back on the right."),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a tokenizer, beside averages of blocks of its stride: vqtok eval clips/"""
    check_dtype(dtype)
    if save is not None:
        check_folder(str(save))

    from vqtok.commands import eval as scores
    from vqtok.pipeline.clip import load_tokenizer

    todo = scores.tasks(clips, save, force)
    model = load_tokenizer(tokenizer, device, dtype)
    scores.show(todo, model, size, frames, as_json, quiet)


@app.command()
def stats(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Token files, folders or patterns, - for a pipe; or clips."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Encodes clips and knows FSQ's levels; alone: its codes themselves."),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="A column for each FILE, not for each tokenizer.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A line for each column.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A .png or .svg (extra: plot).")] = None,
    watch: Annotated[Path | None, typer.Option(help="Follow the run in this folder.")] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Report how a codebook is used: vqtok stats tokens.safetensors"""
    alone, counting = not (files or watch), as_csv or plot or each or device != "auto"
    if watch and (files or tokenizer or as_json or counting):
        raise UsageError("--watch follows a run's own log; leave the others out")
    if alone and not tokenizer:
        raise UsageError("name token files, a --tokenizer, or a run to --watch")
    if (as_json and as_csv) or (alone and counting):
        raise UsageError("--json and --csv exclude each other; a codebook alone has --json only")

    from vqtok.commands import stats as command

    if watch:
        command.watch(watch)
    elif alone:
        command.show_codes(tokenizer, as_json)
    else:
        how = command.Showing(as_json, as_csv, plot, force)
        command.show_tokens(files, tokenizer, device, each, how, quiet)


def main() -> None:
    """The `vqtok` command."""
    app()
